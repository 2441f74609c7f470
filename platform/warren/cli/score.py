"""The command lines of `jobs/evaluate.py` that need no cluster, no run and no recipe: score, compare, --list."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from warren.cli.judge_options import add_judge_options, judge_of, write_requests
from warren.errors import ConfigError, DataError, WarrenError
from warren.evaluate.compare import compare_reports, render_comparison
from warren.evaluate.llm_judge import AnswerJudge
from warren.evaluate.report_page import Page, write_page
from warren.evaluate.score_answers import describe_benchmarks, score_answers
from warren.evaluate.score_formatting import score_lines
from warren.evaluate.submission import write_submission
from warren.storage import Location

COMMANDS = ("score", "compare", "--list")


def main(arguments: Sequence[str]) -> int:
    """Score answers as the command line says and return the exit code."""
    return run_command(["score", *arguments])


def run_command(arguments: Sequence[str]) -> int:
    """Run one of `COMMANDS` and return the exit code."""
    command, *rest = arguments
    parser = {"score": score_parser, "compare": compare_parser}.get(command)
    run: Callable[[argparse.Namespace], str] = _compare if command == "compare" else _score
    try:
        print(run(parser().parse_args(rest)) if parser else describe_benchmarks())
    except WarrenError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def score_parser() -> argparse.ArgumentParser:
    """Return the parser of `score`."""
    parser = argparse.ArgumentParser(prog="evaluate.py score", description="Score answers that are in a file already.")
    parser.add_argument("--benchmark", required=True, help="its name (evaluate.py --list), or a YAML file")
    parser.add_argument(
        "--answers", required=True, metavar="FILE", help="Warren's Parquet or JSON lines of id and text"
    )
    add_scoring_options(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="where the scores are written, as JSON")
    parser.add_argument("--report", metavar="FOLDER", help="also write report.md and report.html here")
    parser.add_argument(
        "--data", metavar="FOLDER", help="the benchmark's questions and images, for the report's examples"
    )
    parser.add_argument("--submission", metavar="FILE", help="also write what the benchmark's server takes here")
    add_judge_options(parser)
    return parser


def compare_parser() -> argparse.ArgumentParser:
    """Return the parser of `compare`."""
    description = "Compare two runs on the same questions. A and B are scores.json files, or answers with --benchmark."
    parser = argparse.ArgumentParser(prog="evaluate.py compare", description=description)
    parser.add_argument("first", metavar="A")
    parser.add_argument("second", metavar="B")
    parser.add_argument("--benchmark", help="for files of answers: whose they are")
    add_scoring_options(parser)
    parser.add_argument("--out", metavar="FILE", help="also write the table here, as Markdown")
    return parser


def add_scoring_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what every scoring takes: reference, convention, allowed failures."""
    parser.add_argument("--reference", metavar="PATH", help="the benchmark's published file or folder")
    parser.add_argument("--convention", help="whose rules (default: the benchmark's first, as --list shows)")
    parser.add_argument(
        "--max-failed-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="share of questions whose request may have failed; they are left out and listed (default: 0)",
    )


def _score(options: argparse.Namespace) -> str:
    report = _scored(options, options.answers, judge_of(options))
    Location.parse(options.out).put_json(report)
    lines = [summary(report), f"written: {options.out}"]
    if options.submission:
        write_submission(report, Location.parse(options.submission))
        lines.append(f"for the benchmark's server: {options.submission}")
    if file := write_requests(report, options):
        lines.append(f"for the judge: {file}")
    if options.report:
        data = Location.parse(options.data) if options.data else None
        page = Page.of(report, Location.parse(options.answers), data)
        lines.append(f"report: {write_page(page, Location.parse(options.report))}")
    return "\n".join(lines)


def _compare(options: argparse.Namespace) -> str:
    first, second = (_report(options, path) for path in (options.first, options.second))
    text = render_comparison(compare_reports(first, second), first, second, _names(options, (first, second)))
    if options.out:
        Location.parse(options.out).put_bytes(text.encode())
    return text.rstrip()


def _report(options: argparse.Namespace, path: str) -> dict[str, Any]:
    """Read scores, or score answers."""
    if options.benchmark:
        return _scored(options, path)
    try:
        value = Location.parse(path).read_json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise DataError(f"{path}: not a scores.json; for files of answers give --benchmark and --reference") from None
    if not isinstance(value, dict) or "measures" not in value:
        raise DataError(f"{path}: not a scores.json of this version of Warren; score the answers again")
    return value


def check_fraction(value: float) -> None:
    """Check --max-failed-fraction.

    Raises:
        ConfigError: It is no share.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"--max-failed-fraction is {value}; it is a share between 0 and 1")


def _scored(options: argparse.Namespace, answers: str, judge: AnswerJudge | None = None) -> dict[str, Any]:
    check_fraction(options.max_failed_fraction)
    reference = Location.parse(options.reference) if options.reference else None
    place = Location.parse(answers)
    return score_answers(options.benchmark, place, reference, options.convention, options.max_failed_fraction, judge)


def _names(options: argparse.Namespace, reports: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Return the models' names where they differ, or else the paths."""
    models = [report.get("model") for report in reports]
    first, second = models if all(models) and models[0] != models[1] else (options.first, options.second)
    return str(first), str(second)


def summary(report: Mapping[str, Any]) -> str:
    """Return scores as lines for a terminal."""
    answered = f"{report['num_answered']} of {report['num_questions']} answered"
    lines = [f"{report['benchmark']} ({report['convention']}): {answered}"]
    if report["num_failed"]:
        lines[0] += f", {report['num_failed']} failed and are left out"
    if report["random_fallback_ids"]:
        lines[0] += f", {report['random_fallback_fraction']:.1%} unreadable and drawn at random"
    if judge := report["judge"]:
        lines.append(f"judged by {judge['model']}: {judge['num_asked']} asked, {judge['num_cached']} from the cache")
    if report["needs_judge"] and not judge:
        lines.append("a judge model scores these: no scores without --judge URL and --judge-model NAME")
    elif report["scores"] is None:
        lines.append("the benchmark's server scores; --submission FILE writes what it takes")
    return "\n".join([*lines, *(f"  {line}" for line in score_lines(report))])
