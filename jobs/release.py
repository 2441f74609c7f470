"""Publish the newest measured checkpoint if it passes the gate, and put it behind the endpoint.

ray job submit --working-dir . -- python jobs/release.py --recipe demo
"""

import argparse
import shlex
import sys
from functools import partial

import _source  # noqa: F401
from warren.cli.job import Job, run_job


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="run to release (default: RECIPE-finetune)")
    parser.add_argument("--no-deploy", action="store_true", help="publish only; the alias `candidate` names it")
    parser.add_argument(
        "--timeout-s", type=float, default=900.0, help="for the release to come up, else it is undone (default: 900)"
    )


def measuring(given: argparse.Namespace) -> str:
    """Return the command that measures what the gate asks for."""
    words = ["python", "jobs/evaluate.py", "--recipe", given.recipe, "--resources", given.resources]
    words += ["--run", given.run] if given.run else []
    words += [word for override in given.set for word in ("--set", override)]
    return shlex.join(words)


def main(job: Job) -> None:
    from warren.cluster.serve.golden import write_golden
    from warren.cluster.serve.rollout import make_release, roll_out
    from warren.cluster.train.stage import run_name
    from warren.train.run import Run

    run = Run.of(job.root, job.options.run or run_name(job.recipe, "finetune"))
    golden = partial(write_golden, job.resources)
    released = make_release(job.recipe, job.root, run, measuring(job.options), golden=golden)
    print(f"gate: {released.evaluation.summary()}")
    print(f"released: {released.uri} (score {released.score:.4f})")
    if not job.options.no_deploy:
        roll_out(job.resources, job.root, released, job.options.timeout_s)
        print(f"serving: {released.name} {released.version}")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, extend=options, needs=["evaluate", "release"]))
