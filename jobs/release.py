"""Publish the newest measured checkpoint if it passes the gate, and put it behind the endpoint.

ray job submit --working-dir . -- python jobs/release.py --recipe demo
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cluster.cli import Job, run_job


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="run to release (default: RECIPE-finetune)")
    parser.add_argument("--no-deploy", action="store_true", help="publish only; the alias `candidate` names it")


def main(job: Job) -> None:
    from warren.cluster.releasing import make_release, roll_out
    from warren.cluster.training import run_name
    from warren.train.record import Run

    run = Run.of(job.root, job.options.run or run_name(job.recipe, "finetune"))
    released = make_release(job.recipe, job.root, run)
    print(f"released: {released.uri} (score {released.score:.4f})")
    if not job.options.no_deploy:
        roll_out(job.recipe, job.resources, job.root, released)
        print(f"serving: {job.recipe.require('release').name} {released.version}")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, extend=options, needs=["evaluate", "release"]))
