"""Average the models of two finetuned runs, as the recipe weighs them (Bunny's published soups). Needs no cluster.

python jobs/average.py --recipe bunny-v1_0-4b
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cli.job import Job, run_job


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="name of the run to make (default: RECIPE-finetune)")
    parser.add_argument("--first", help="run that first_weight weighs (default: FIRST-finetune)")
    parser.add_argument("--second", help="the other run (default: SECOND-finetune)")


def main(job: Job) -> None:
    from warren.train.averaging import average_runs

    config, names = job.recipe.require("average"), job.options
    first, second = names.first or f"{config.first}-finetune", names.second or f"{config.second}-finetune"
    run = average_runs(job.recipe, job.root, names.run or f"{job.recipe.name}-finetune", first, second)
    print(f"averaged: {run.folder}, step {run.checkpoints.steps()[-1]}")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, extend=options, cluster=False, needs=["average"]))
