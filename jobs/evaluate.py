"""Measure a model: the newest checkpoint of a run on the recipe's dataset, or any model on a benchmark.

ray job submit --working-dir . -- python jobs/evaluate.py --recipe demo
ray job submit --working-dir . -- python jobs/evaluate.py --benchmark mme --data s3://my-bucket/mme --run mine
python jobs/evaluate.py --benchmark signs.yaml --endpoint http://127.0.0.1:8000/v1 --out answers
python jobs/evaluate.py --list
python jobs/evaluate.py score --benchmark mme --answers FILE --reference PATH --convention bunny --out scores.json
python jobs/evaluate.py compare A/scores.json B/scores.json
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cli.ask import ask_model, ask_options, asks_benchmark, asks_endpoint, run_endpoint
from warren.cli.job import Job, run_job


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="run to measure (default: RECIPE-finetune)")
    ask_options(parser)


def main(job: Job) -> None:
    from warren.cluster.batch.checkpoint_evaluation import evaluate_on_dataset
    from warren.cluster.batch.evaluation import evaluations_of
    from warren.cluster.train.stage import run_name
    from warren.train.run import Run

    if job.options.benchmark:
        print(ask_model(job))
        return
    run = Run.of(job.root, job.options.run or run_name(job.recipe, "finetune"))
    config = job.recipe.require("evaluate")
    measured = evaluate_on_dataset(config, job.resources, job.root, run, job.options.step)
    print(f"report: {evaluations_of(run).at(measured.step, measured.identity)}/report.md")
    print(measured.summary())


if __name__ == "__main__":
    if sys.argv[1:2] in (["score"], ["compare"], ["--list"]):
        from warren.cli.score import run_command

        sys.exit(run_command(sys.argv[1:]))
    if asks_endpoint(sys.argv):
        sys.exit(run_endpoint(sys.argv[1:], __doc__, options))
    sys.exit(run_job(main, __doc__, extend=options, needs=() if asks_benchmark(sys.argv) else ["evaluate"]))
