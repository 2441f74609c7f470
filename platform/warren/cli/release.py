"""The command line of `jobs/release.py`."""

import argparse
import shlex

from warren.cli.job import Job, shared_options
from warren.errors import ConfigError
from warren.release import GateOverride
from warren.release.aliases import user_name


def options(parser: argparse.ArgumentParser) -> None:
    """Add the job's own options."""
    parser.add_argument("--run", help="run to release (default: RECIPE-finetune)")
    parser.add_argument("--step", type=int, help="of the checkpoint to release (default: as release.choose says)")
    parser.add_argument("--no-deploy", action="store_true", help="publish only; the alias `candidate` names it")
    parser.add_argument(
        "--endpoint",
        help="name or path of an endpoint file, whose settings the endpoint gets; --set endpoint.KEY=VALUE overrides "
        "(default: an endpoint that runs keeps its settings)",
    )
    parser.add_argument(
        "--timeout-s", type=float, default=900.0, help="time to come up, else it is undone (default: 900)"
    )
    parser.add_argument("--override-gate", metavar="WHY", help="release what the gate refuses, and say why")
    parser.add_argument("--who", help="who releases (default: the user's name)")


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
