"""Turn raw image-text pairs into datasets: checked Parquet shards and a manifest.

ray job submit --working-dir . -- python jobs/ingest.py --recipe demo
python jobs/ingest.py --recipe demo --dry-run      # look at samples first: needs no cluster and no storage
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cli.job import Job, run_job


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, help="with --dry-run: read so many samples of a dataset (default: 200)")
    parser.add_argument(
        "--report", help="with --dry-run: folder of the page that shows ten of them (default: ingest-preview)"
    )


def preview(job: Job) -> str:
    from warren.storage import Location
    from warren.train.sample_preview import preview_samples

    limit = 200 if job.options.limit is None else job.options.limit
    return preview_samples(job.recipe, limit, Location.parse(job.options.report or "ingest-preview"))


def main(job: Job) -> None:
    from warren.cluster.batch.ingestion import ingest
    from warren.errors import ConfigError

    if job.options.limit is not None or job.options.report is not None:
        raise ConfigError("--limit and --report go with --dry-run: an ingest reads its whole source")
    for manifest in ingest(job.recipe.require("ingest"), job.root):
        print(f"{manifest.name}@{manifest.version}: {manifest.rows} samples in {len(manifest.shards)} shards")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, extend=options, preview=preview, needs=["ingest"]))
