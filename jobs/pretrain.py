"""Stage 1: teach the projector (or what the recipe names) on captions. The same run name resumes.

ray job submit --working-dir . -- python jobs/pretrain.py --recipe demo
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cluster.cli import Job, run_job


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="name of the run (default: RECIPE-pretrain)")


def preview(job: Job) -> str:
    from warren.train.dry_run import dry_run

    return dry_run(job.recipe, "pretrain", job.resources, job.root_or_none)


def main(job: Job) -> None:
    from warren.cluster.training import run_name, train_stage

    name = job.options.run or run_name(job.recipe, "pretrain")
    run = train_stage(job.recipe, "pretrain", job.resources, job.root, name)
    print(f"trained: {run.folder}, step {run.checkpoints.steps()[-1]}")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, extend=options, preview=preview, needs=["model", "pretrain"]))
