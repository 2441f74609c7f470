"""The command line of `jobs/release.py`."""

import argparse
import shlex

from warren.cli.job import Job, shared_options
from warren.config import RolloutPolicy
from warren.errors import ConfigError
from warren.release import GateOverride
from warren.release.aliases import user_name

DEFAULT_ENDPOINT = "laptop"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the job's own options."""
    parser.add_argument("--run", help="run to release (default: RECIPE-finetune)")
    parser.add_argument("--step", type=int, help="step of its checkpoint (default: by release.choose)")
    parser.add_argument("--no-deploy", action="store_true", help="publish only; the alias `candidate` names it")
    parser.add_argument(
        "--endpoint",
        help="endpoint file, by name or path; --set endpoint.KEY=VALUE overrides "
        f"(default: what runs, as it is; else {DEFAULT_ENDPOINT})",
    )
    parser.add_argument(
        "--timeout-s", type=float, metavar="S", help="time to wait; the rollout goes on (default: by policy)"
    )
    parser.add_argument("--override-gate", metavar="WHY", help="release what the gate refuses, and say why")
    parser.add_argument("--who", help="who releases (default: the user's name)")


def rollout_preview(policy: RolloutPolicy) -> list[str]:
    """Say what a policy does with a candidate, one line a stage."""
    judged = f"judged from {policy.min_requests} answers on"
    times = f"{policy.step_s:g} s or more; with fewer answers, {policy.max_step_s:g} s"
    steps = [
        f"step {number}: {f'{step:.3g}' if step < 1 else 'all'} of the traffic, {judged}, {times}"
        for number, step in enumerate(policy.steps, 1)
    ]
    return [
        "rollout: its files are checked, its engines start beside those that serve, and both are asked its questions",
        *(f"rollout: {step}" for step in steps),
        f"rollout: undone by itself if it is worse, not ready after {policy.start_timeout_s:g} s, or not done after "
        f"{policy.total_timeout_s:g} s",
    ]


def measuring(arguments: argparse.Namespace) -> str:
    """Return the command that measures what the gate asks for."""
    run = f" --run {shlex.quote(arguments.run)}" if arguments.run else ""
    return f"python jobs/evaluate.py {shared_options(arguments)}{run}"


def override_of(job: Job) -> GateOverride | None:
    """Return the override that the command line asks for.

    Raises:
        ConfigError: It gives no reason.
    """
    if job.options.override_gate is None:
        return None
    why = " ".join(job.options.override_gate.split())
    if not why:
        raise ConfigError("--override-gate is empty: give the reason, which is recorded with the release")
    return GateOverride(job.options.who or user_name(), why)
