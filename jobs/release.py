"""Publish the newest measured checkpoint if it passes the gate, and have the endpoint roll it in.

ray job submit --working-dir . -- python jobs/release.py --recipe demo --endpoint demo
"""

import sys
from functools import partial

import _source  # noqa: F401
from _endpoint import endpoint_of, preview
from warren.cli.job import Job, run_job
from warren.cli.release import measuring, options, override_of


def check(job: Job) -> None:
    override_of(job)
    endpoint_of(job)


def main(job: Job) -> None:
    from warren.cluster.serve.engine_probe import probe_engine
    from warren.cluster.serve.golden_task import write_golden
    from warren.cluster.serve.publish_and_deploy import make_release, roll_out
    from warren.cluster.train.stage import run_name
    from warren.train.evaluation_plan import chosen_checkpoint
    from warren.train.run import Run

    run, who = Run.of(job.root, job.options.run or run_name(job.recipe, "finetune")), job.options.who
    golden, probe = partial(write_golden, job.resources), partial(probe_engine, job.resources)
    measure = measuring(job.options)
    checkpoint = chosen_checkpoint(job.recipe, run, measure, job.options.step)
    released = make_release(job.recipe, job.root, run, measure, override_of(job), who, golden, probe, checkpoint)
    print("\n".join(f"gate: {line}" for line in [released.evaluation.summary(), *released.verdict.lines()]))
    print(f"released: {released.uri} (score {released.score:.4f})")
    if not job.options.no_deploy:
        keeps = job.options.endpoint is None
        roll_out(job.resources, job.root, released, endpoint_of(job), keeps, job.options.timeout_s)
        print(f"serving: {released.name} {released.version}")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, extend=options, preview=preview, needs=["evaluate", "release"], check=check))
