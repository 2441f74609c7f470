"""The command line of `jobs/release.py`."""

import argparse
import shlex

from warren.cli.job import Job
from warren.errors import ConfigError
from warren.release import GateOverride
from warren.release.aliases import user_name

DEFAULT_ENDPOINT = "laptop"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the job's own options."""
    parser.add_argument("--run", help="run to release (default: RECIPE-finetune)")
    parser.add_argument("--no-deploy", action="store_true", help="publish only; the alias `candidate` names it")
    parser.add_argument(
        "--endpoint",
        help="name or path of an endpoint file: it is deployed like that; --set endpoint.KEY=VALUE overrides "
        f"(default: the endpoint that runs, as it is; else {DEFAULT_ENDPOINT})",
    )
    parser.add_argument(
        "--timeout-s", type=float, help="how long to wait; the rollout goes on after it (default: by the policy)"
    )
    parser.add_argument("--override-gate", metavar="WHY", help="release what the gate refuses, and say why")
    parser.add_argument("--who", help="who releases (default: the user's name)")


def measuring(arguments: argparse.Namespace) -> str:
    """Return the command that measures what the gate asks for."""
    words = ["python", "jobs/evaluate.py", "--recipe", arguments.recipe, "--resources", arguments.resources]
    words += ["--run", arguments.run] if arguments.run else []
    sets = [override for override in arguments.set if not override.startswith("endpoint.")]
    words += [word for override in sets for word in ("--set", override)]
    return shlex.join(words)


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
