"""The command line of the jobs: options, errors as one line, exit codes."""

import argparse
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import warren
from warren.config import Recipe, Resources, load_config
from warren.config.environment import STORAGE_VARIABLE, storage_root
from warren.errors import WarrenError, root_cause
from warren.storage import Location

_INTERRUPTED = 130


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

    @property
    def root_or_none(self) -> Location | None:
        """The same for what can do without."""
        return self.root if os.environ.get(STORAGE_VARIABLE) else None


def run_job(
    main: Callable[[Job], None],
    description: str,
    arguments: Sequence[str] | None = None,
    extend: Callable[[argparse.ArgumentParser], None] | None = None,
    preview: Callable[[Job], str] | None = None,
    cluster: bool = True,
) -> int:
    """Parse a job's command line, connect to Ray, run it, and return its exit code.

    Args:
        main: The job.
        description: Its `--help`: what it does and an example.
        arguments: The command line; None takes the process's.
        extend: Adds the job's own options.
        preview: Says what the job would do; it adds `--dry-run`, which needs no cluster and no storage.
        cluster: False for a job that runs in its own process.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo", help="name of a recipe, or path of a YAML file (default: demo)")
    parser.add_argument("--resources", default="laptop", help="name or path of the resources (default: laptop)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, e.g. pretrain.seed=7"
    )
    parser.add_argument("--verbose", action="store_true", help="show what every process of the cluster prints")
    parser.epilog = f"Storage is ${STORAGE_VARIABLE} (s3://bucket/prefix or a folder); S3 is set up by $AWS_*."
    if preview:
        parser.add_argument("--dry-run", action="store_true", help="say what it would do and cost, and do nothing")
    if extend:
        extend(parser)
    options = parser.parse_args(arguments)
    try:
        job = _load(options)
        if preview and options.dry_run:
            print(preview(job))
            return 0
        _ = job.root  # an environment that lacks it fails before anything starts
        if cluster:
            from warren.cluster.session import connect  # late: --help and wrong recipes answer at once

            connect(options.verbose)
        main(job)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        known = root_cause(error)
        if not isinstance(known, WarrenError):
            raise
        print(f"error: {' '.join(str(known).split())}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Run a job by name: `warren pretrain --recipe demo` is `python jobs/pretrain.py --recipe demo`."""
    folder = next(folder for folder in _job_folders() if folder.is_dir())
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


def config_folders(kind: str) -> list[Path]:
    """Return where configurations of a kind are: beside the jobs of a source tree, and in the installed package."""
    return [folder / kind for folder in _job_folders()]


def _job_folders() -> list[Path]:
    package = Path(warren.__file__).parent
    return [package.parent.parent / "jobs", package / "jobs"]


def _load(options: argparse.Namespace) -> Job:
    recipe_sets = [s for s in options.set if not s.startswith("resources.")]
    resource_sets = [s.removeprefix("resources.") for s in options.set if s.startswith("resources.")]
    recipe = load_config(Recipe, options.recipe, config_folders("recipes"), recipe_sets)
    resources = load_config(Resources, options.resources, config_folders("resources"), resource_sets)
    return Job(recipe, resources, options)
