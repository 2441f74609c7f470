"""Stage 1: teach the projector (or what the recipe names) on captions. The same run name resumes.

ray job submit --working-dir . -- python jobs/pretrain.py --recipe demo
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cli.job import Job, run_job, shared_options


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="name of the run (default: RECIPE-pretrain)")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--from-run", help="run whose model to train further (default: a model as the recipe says)")
    origin.add_argument("--from-model", metavar="LOCATION", help="model folder to start from: an import or a release")


def preview(job: Job) -> str:
    from warren.evaluate.recipe_evaluations import check_evaluations
    from warren.train.dry_run import dry_run

    check_evaluations(job.recipe, job.root_or_none)
    return dry_run(job.recipe, "pretrain", job.resources, job.root_or_none)


def main(job: Job) -> None:
    from warren.cluster.train.stage import run_name, train_stage
    from warren.storage import Location

    name = job.options.run or run_name(job.recipe, "pretrain")
    model = Location.parse(job.options.from_model) if job.options.from_model else None
    origin, options = (job.options.from_run, model), shared_options(job.options)
    run = train_stage(job.recipe, "pretrain", job.resources, job.root, name, *origin, options)
    print(f"trained: {run.folder}, step {run.checkpoints.steps()[-1]}")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, extend=options, preview=preview, needs=["model", "pretrain"]))
