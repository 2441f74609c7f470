"""The command line of the jobs: options, errors as one line, exit codes."""

import argparse
import os
import runpy
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from warren.config import Recipe, Resources, Section, check_name, load_config
from warren.config.environment import STORAGE_VARIABLE, storage_root
from warren.config.folders import config_folders, job_folders
from warren.config.json_logs import json_standard_error
from warren.errors import ConfigError, WarrenError, root_cause
from warren.storage import Location

__all__ = ["Job", "Parser", "config_folders", "end_quietly", "exit_code", "job_parser", "load_job", "main", "run_job"]

_INTERRUPTED, _TERMINATED, _WRONG_USAGE = 130, 143, 2
_NAMES = ("run", "from_run", "first", "second")  # options that name runs


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options are written out."""

    def __init__(self, description: str | None = None, **others: Any) -> None:
        others |= {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(description=description, **others)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and exit."""
        print(f"error: {' '.join(message.split())}; see {self.prog} --help", file=sys.stderr)
        sys.exit(_WRONG_USAGE)


@dataclass(frozen=True)
class Job:
    """What every job gets: what to do, with what, where."""

    recipe: Recipe
    resources: Resources
    options: argparse.Namespace

    @property
    def root(self) -> Location:
        """Where datasets, runs and releases live.

        Raises:
            ConfigError: The environment does not say.
        """
        return Location.parse(storage_root())

    def sets(self, prefix: str) -> list[str]:
        """Return the `--set` overrides of one kind of configuration, such as `endpoint`, without the prefix."""
        return _sets(self.options, prefix)

    @property
    def root_or_none(self) -> Location | None:
        """The storage root, or None where none is configured, for jobs that can do without storage."""
        return self.root if os.environ.get(STORAGE_VARIABLE) else None


def run_job(
    main: Callable[[Job], None],
    description: str,
    arguments: Sequence[str] | None = None,
    extend: Callable[[argparse.ArgumentParser], None] | None = None,
    preview: Callable[[Job], str] | None = None,
    cluster: bool = True,
    needs: Sequence[Section] = (),
    check: Callable[[Job], object] | None = None,
) -> int:
    """Parse a job's command line, connect to Ray, run it, and return its exit code.

    Args:
        main: The job.
        description: Its `--help`: what it does and an example.
        arguments: The command line; None takes the process's.
        extend: Adds the job's own options.
        preview: Says what the job would do; it adds `--dry-run`, which needs no cluster and no storage.
        cluster: False for a job that runs in its own process.
        needs: The sections of a recipe that the job cannot do without.
        check: Looks at the rest of the command line before anything starts, and raises what is wrong with it.
    """
    options = job_parser(description, extend, preview is not None).parse_args(arguments)

    def work() -> None:
        job = load_job(options, needs)
        if preview and options.dry_run:
            print(preview(job))
            return
        _ = job.root  # an environment that lacks it fails before anything starts
        if check:
            check(job)
        if cluster:
            from warren.cluster.session import connect  # late: --help and wrong recipes answer at once

            connect(options.verbose)
            end_quietly()  # Ray has put in a handler of its own
        main(job)

    return exit_code(work)


def exit_code(work: Callable[[], None]) -> int:
    """Run a command, print an error of Warren's as one line, and return the exit code.

    Interrupted (Ctrl-C) and terminated, it ends without a word.
    """
    end_quietly()
    try:
        with json_standard_error(Path(sys.argv[0]).stem):
            return _exit_code(work)
    except ConfigError as error:  # of the environment, before anything began
        print(f"error: {error}", file=sys.stderr)
        return 1


def _exit_code(work: Callable[[], None]) -> int:
    try:
        work()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        known = root_cause(error)
        if not isinstance(known, WarrenError):
            raise
        print(f"error: {' '.join(str(known).split())}", file=sys.stderr)
        return 1
    return 0


def job_parser(
    description: str, extend: Callable[[argparse.ArgumentParser], None] | None = None, dry_run: bool = False
) -> argparse.ArgumentParser:
    """Return the parser of a job's command line: the options of every job, and its own."""
    parser = Parser(description)
    parser.add_argument("--recipe", default="demo", help="name of a recipe, or path of a YAML file (default: demo)")
    parser.add_argument("--resources", default="laptop", help="name or path of the resources (default: laptop)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, e.g. pretrain.seed=7"
    )
    parser.add_argument("--verbose", action="store_true", help="show what every process of the cluster prints")
    parser.epilog = f"Storage is ${STORAGE_VARIABLE} (s3://bucket/prefix or a folder); S3 is set up by $AWS_*."
    if dry_run:
        parser.add_argument("--dry-run", action="store_true", help="say what it would do and cost, and do nothing")
    if extend:
        extend(parser)
    return parser


def shared_options(options: argparse.Namespace) -> str:
    """Return the options of a command line that name recipe, resources and their overrides, to do more with them."""
    words = ["--recipe", options.recipe, "--resources", options.resources]
    sets = [override for override in options.set if not override.startswith("endpoint.")]
    return shlex.join([*words, *(word for override in sets for word in ("--set", override))])


def end_quietly() -> None:
    """Let SIGTERM end this process as an exception does: services are ended, and Ray's C++ threads print no stacks."""
    signal.signal(signal.SIGTERM, _end)


def _end(signum: int, _: Any) -> NoReturn:
    """End as a shell expects of a process that a signal ended; Ray's actors end with this process."""
    signal.signal(signum, signal.SIG_IGN)  # a second one must not interrupt the ending
    sys.exit(_TERMINATED)


def main() -> int:
    """Run a job by name: `warren pretrain --recipe demo` is `python jobs/pretrain.py --recipe demo`."""
    folder = next(folder for folder in job_folders() if folder.is_dir())
    jobs = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    parser = argparse.ArgumentParser(
        prog="warren", description="Run one of Warren's jobs; JOB --help tells its options."
    )
    parser.add_argument("job", choices=jobs)
    job = parser.parse_args(sys.argv[1:2]).job
    sys.argv = [f"warren {job}", *sys.argv[2:]]
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / f"{job}.py"), run_name="__main__")
    return 0


def _sets(options: argparse.Namespace, prefix: str) -> list[str]:
    return [each.removeprefix(f"{prefix}.") for each in options.set if each.startswith(f"{prefix}.")]


def load_job(options: argparse.Namespace, needs: Sequence[Section] = ()) -> Job:
    """Read what a parsed command line names: recipe, resources and overrides of both.

    Raises:
        ConfigError: A key, a value or a name is wrong, or the recipe lacks a section that the job needs.
    """
    for option in _NAMES:
        if getattr(options, option, None) is not None:
            check_name(getattr(options, option), f"--{option.replace('_', '-')}")
    kinds = ("resources.", "endpoint.") if hasattr(options, "endpoint") else ("resources.",)
    recipe_sets = [override for override in options.set if not override.startswith(kinds)]
    resource_sets = _sets(options, "resources")
    if "endpoint." in kinds and options.endpoint is None and _sets(options, "endpoint"):
        raise ConfigError(
            "--set endpoint.… changes an endpoint file: name one with --endpoint, as in --endpoint laptop"
        )
    recipe = load_config(Recipe, options.recipe, config_folders("recipes"), recipe_sets)
    resources = load_config(Resources, options.resources, config_folders("resources"), resource_sets)
    for section in needs:
        recipe.require(section)
    return Job(recipe, resources, options)
