"""Stage 2: train on conversations, from the last checkpoint of stage 1. The same run name resumes.

ray job submit --working-dir . -- python jobs/finetune.py --recipe demo
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cluster.cli import Job, run_job


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="name of the run (default: RECIPE-finetune)")
    parser.add_argument("--from-run", help="stage-1 run to start from (default: RECIPE-pretrain)")


def preview(job: Job) -> str:
    from warren.train.dry_run import dry_run

    return dry_run(job.recipe, "finetune", job.resources, job.root_or_none)


def main(job: Job) -> None:
    from warren.cluster.training import run_name, train_stage

    name = job.options.run or run_name(job.recipe, "finetune")
    parent = job.options.from_run or run_name(job.recipe, "pretrain")
    run = train_stage(job.recipe, "finetune", job.resources, job.root, name, parent)
    print(f"trained: {run.folder}, step {run.checkpoints.steps()[-1]}")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, extend=options, preview=preview))
