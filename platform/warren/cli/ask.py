"""`jobs/evaluate.py --benchmark`: ask a benchmark of a checkpoint, a release or an endpoint, score it, and report."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from warren.cli.job import Job, exit_code, job_parser, load_job
from warren.cli.score import add_scoring_options, check_fraction, summary
from warren.config import BenchmarkConfig
from warren.errors import ConfigError
from warren.evaluate.benchmark_run import QUESTIONS_PER_PIECE, BenchmarkRun, QuestionSource
from warren.storage import Location

if TYPE_CHECKING:
    from warren.evaluate.benchmark_result import BenchmarkResult
    from warren.evaluate.model_source import ModelSource
    from warren.train.checkpoint import CheckpointManifest
    from warren.train.run import Run


def asks_benchmark(arguments: Sequence[str]) -> bool:
    """Tell whether a command line asks a benchmark, rather than measuring on a dataset."""
    return _has(arguments, "--benchmark")


def asks_endpoint(arguments: Sequence[str]) -> bool:
    """Tell whether it asks an endpoint, which needs no cluster."""
    return _has(arguments, "--endpoint")


def ask_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of asking a benchmark."""
    group = parser.add_argument_group("a benchmark", "asked and scored instead of the recipe's dataset")
    group.add_argument("--benchmark", metavar="NAME", help="its name (evaluate.py --list), or a YAML file")
    group.add_argument("--data", metavar="PATH", help="the folder of its questions and images")
    group.add_argument("--split", help="one of its splits (default: the first, as --list shows)")
    add_scoring_options(group)
    group.add_argument("--out", metavar="FOLDER", help="where answers and report go (default: benchmarks/ in storage)")
    group.add_argument(
        "--questions-per-piece",
        type=int,
        default=QUESTIONS_PER_PIECE,
        metavar="N",
        help=f"questions that are asked and stored together (default: {QUESTIONS_PER_PIECE})",
    )
    who = parser.add_argument_group("who answers the benchmark", "--run NAME, or one of these")
    who.add_argument("--step", type=int, metavar="N", help="with --run: of its checkpoint (default: the newest)")
    who.add_argument("--checkpoint", metavar="URI", help="a checkpoint's folder, or a model folder")
    who.add_argument("--release", metavar="URI", help="a release's folder, or NAME/VERSION or NAME/ALIAS in storage")
    who.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible endpoint; needs no cluster")
    who.add_argument("--model", metavar="NAME", help="the model's name at the endpoint (default: its only one)")
    who.add_argument("--api-key-env", metavar="VARIABLE", help="the environment variable that holds the endpoint's key")
    who.add_argument("--concurrency", type=int, default=8, metavar="N", help="most requests at a time (default: 8)")
    who.add_argument("--timeout-s", type=float, default=300.0, metavar="S", help="for one response (default: 300)")


def ask_model(job: Job) -> str:
    """Ask a benchmark on the cluster and return what to print."""
    from warren.cluster.batch.benchmark import ask_on_cluster
    from warren.cluster.batch.checkpoint_evaluation import write_benchmark_scores

    options = job.options
    check_options(options)
    source = QuestionSource.of(options.benchmark, options.data, options.split, options.convention)
    answering, checkpoint = _model_of(job)
    folder = Location.parse(options.out) if options.out else None
    run = BenchmarkRun(source, answering.model, folder, job.root, options.questions_per_piece)
    text, result = _finished(run, options, lambda: ask_on_cluster(run, answering.files, job.resources))
    if checkpoint is not None:
        write_benchmark_scores(*checkpoint, _config_of(options), result.report, result.page or run.folder)
    return text


def _model_of(job: Job) -> "tuple[ModelSource, tuple[Run, CheckpointManifest] | None]":
    """Return who answers, and the run and checkpoint that this is, if it is one."""
    from warren.cluster.train.stage import run_name
    from warren.evaluate.model_source import ModelSource
    from warren.train.run import Run

    options = job.options
    if options.release:
        return ModelSource.of_release(options.release, job.root), None
    if options.checkpoint:
        return ModelSource.of_checkpoint(Location.parse(options.checkpoint)), None
    run = Run.of(job.root, options.run or run_name(job.recipe, "finetune"))
    checkpoint = run.newest_checkpoint() if options.step is None else run.checkpoints.read(options.step)
    return ModelSource.of_run(run, checkpoint.step), (run, checkpoint)


def _config_of(options: argparse.Namespace) -> BenchmarkConfig:
    """Return the section of a recipe that asks the same."""
    names = ("data", "split", "convention", "reference", "max_failed_fraction")
    return BenchmarkConfig(name=options.benchmark, **{name: getattr(options, name) for name in names})


def run_endpoint(arguments: Sequence[str], description: str, extend: Callable[[argparse.ArgumentParser], None]) -> int:
    """Ask a benchmark of an endpoint, without a cluster, and return the exit code."""
    options = job_parser(description, extend).parse_args(arguments)
    return exit_code(lambda: print(_ask_endpoint(load_job(options))))


def _ask_endpoint(job: Job) -> str:
    from warren.evaluate.ask_endpoint import ask_at_endpoint, find_model
    from warren.evaluate.endpoint_client import EndpointOptions

    options = job.options
    check_options(options)
    key = None
    if options.api_key_env:
        key = os.environ.get(options.api_key_env)
        if not key:
            raise ConfigError(f"--api-key-env is {options.api_key_env}, but that variable is not set")
    endpoint = EndpointOptions(options.endpoint, options.model, key, options.concurrency, options.timeout_s)
    source = QuestionSource.of(options.benchmark, options.data, options.split, options.convention)
    folder = Location.parse(options.out) if options.out else None
    root = None if folder else job.root
    run = BenchmarkRun(source, find_model(endpoint), folder, root, options.questions_per_piece)
    with tqdm(total=len(run.keys), desc=f"ask {run.plan.benchmark}", unit="question", mininterval=5) as bar:
        return _finished(run, options, lambda: ask_at_endpoint(run, endpoint, bar.update))[0]


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: With what to do instead.
    """
    if not options.benchmark:
        raise ConfigError("--endpoint needs --benchmark NAME: the benchmark that is asked")
    who = [name for name in ("run", "checkpoint", "release", "endpoint") if getattr(options, name)]
    if len(who) > 1:
        raise ConfigError(f"{' and '.join(f'--{name}' for name in who)} name two models: give one")
    if options.step is not None and who not in ([], ["run"]):
        raise ConfigError(f"--step names a checkpoint of a run, so it does not go with --{who[0]}")
    if not options.endpoint and (options.model or options.api_key_env):
        raise ConfigError("--model and --api-key-env need --endpoint URL")
    check_fraction(options.max_failed_fraction)


def _finished(
    run: BenchmarkRun, options: argparse.Namespace, ask: Callable[[], tuple[int, int]]
) -> "tuple[str, BenchmarkResult]":
    """Ask what is left, score it, and return what to print and the result."""
    from warren.evaluate.benchmark_result import finish

    num_asked, num_known = ask()
    print(f"answers: {run.folder} ({num_asked} questions asked, {num_known} answered before)", file=sys.stderr)
    reference = Location.parse(options.reference) if options.reference else None
    result = finish(run, reference, options.convention, options.max_failed_fraction)
    lines = [summary(result.report), *(summary(report) for report in result.others.values())]
    lines += [f"{run.plan.benchmark} ({name}): no scores: {reason}" for name, reason in result.unscored.items()]
    return "\n".join([f"report: {result.page}", f"scores: {run.folder / 'scores.json'}", *lines]), result


def _has(arguments: Sequence[str], option: str) -> bool:
    return any(each == option or each.startswith(f"{option}=") for each in arguments)
