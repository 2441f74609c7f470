"""The command line of `jobs/evaluate.py score` and `--list`, which need no cluster, no run and no recipe."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from warren.errors import WarrenError
from warren.evaluate.benchmark_scores import describe_benchmarks, score_answers
from warren.storage import Location


def score_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="evaluate.py score", description="Score answers that are in a file already.")
    parser.add_argument("--benchmark", required=True, help="its name; evaluate.py --list shows them")
    parser.add_argument("--answers", required=True, metavar="FILE", help="JSON lines with question_id and text")
    parser.add_argument("--reference", required=True, metavar="PATH", help="the benchmark's published file or folder")
    parser.add_argument("--convention", default="bunny", help="whose rules (default: bunny)")
    parser.add_argument("--out", required=True, metavar="FILE", help="where the scores are written, as JSON")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Score answers as the command line says and return the exit code."""
    options = score_parser().parse_args(arguments)
    try:
        places = (Location.parse(options.answers), Location.parse(options.reference))
        report = score_answers(options.benchmark, *places, options.convention)
        Location.parse(options.out).put_json(report)
    except WarrenError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{_summary(report)}\nwritten: {options.out}")
    return 0


def list_benchmarks() -> int:
    """Print what each benchmark needs and where people get it."""
    print(describe_benchmarks())
    return 0


def _summary(report: dict[str, Any]) -> str:
    answered = f"{report['num_answered']} of {report['num_questions']} answered"
    lines = [f"{report['benchmark']} ({report['convention']}): {answered}"]
    if report["random_fallback_ids"]:
        lines[0] += f", {report['random_fallback_fraction']:.1%} unreadable and drawn at random"
    if report["scores"] is None:
        lines.append("the benchmark's server scores; what it takes is under 'submission'")
    else:
        lines += [f"  {line}" for line in json.dumps(_numbers(report["scores"]), indent=1).splitlines()[1:-1]]
    return "\n".join(lines)


def _numbers(scores: dict[str, Any]) -> dict[str, Any]:
    """Leave out tables of single questions."""
    return {name: value for name, value in scores.items() if name != "results"}
