"""The options of `jobs/evaluate.py score` for benchmarks that a judge model scores, and the requests file."""

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

from warren.errors import ConfigError
from warren.evaluate.endpoint_client import EndpointOptions, OptionNames
from warren.evaluate.llm_judge import AnswerJudge, JudgementCache
from warren.storage import Location

_NAMES = OptionNames("--judge", "--judge-model", "--judge-key-env")
_TIMEOUT_S = 120.0


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a judge."""
    group = parser.add_argument_group("judge", "for conventions that a judge model scores, as MM-Vet's lmms-eval")
    group.add_argument("--judge", metavar="URL", help="base URL of an OpenAI-compatible endpoint, as https://…/v1")
    group.add_argument("--judge-model", metavar="NAME", help="the model that judges")
    group.add_argument("--judge-key-env", metavar="VAR", help="environment variable that holds the endpoint's key")
    group.add_argument(
        "--judge-cache",
        metavar="PATH",
        help="folder that keeps judgements by model and prompt (default: judgements/ beside --out)",
    )


def judge_of(options: argparse.Namespace) -> AnswerJudge | None:
    """Return the judge that options name, None where they name none.

    Raises:
        ConfigError: An option is missing or wrong.
    """
    if options.judge is None:
        if options.judge_key_env or options.judge_cache:
            raise ConfigError("--judge-key-env and --judge-cache need --judge URL")
        return None
    if not options.judge_model:
        raise ConfigError("--judge needs --judge-model: the name of the model that judges")
    key = os.environ.get(options.judge_key_env) if options.judge_key_env else None
    if options.judge_key_env and not key:
        raise ConfigError(
            f"--judge-key-env names {options.judge_key_env}, which is not set: export it, or leave it out"
        )
    endpoint = EndpointOptions(options.judge, options.judge_model, key, timeout_s=_TIMEOUT_S, names=_NAMES)
    cache = options.judge_cache or f"{options.out.rpartition('/')[0] or '.'}/judgements"
    return AnswerJudge(endpoint, JudgementCache(Location.parse(cache)))


def write_requests(report: Mapping[str, Any], options: argparse.Namespace) -> str | None:
    """Write the requests for a judge as a file for OpenAI's Batch API, if the answers still need one.

    Returns:
        Where they are; None where there is nothing to judge.
    """
    if not report["needs_judge"] or report["judge"]:
        return None
    file = f"{options.out.removesuffix('.json')}.judge.jsonl"
    lines = [{**line, "body": {**line["body"], "model": options.judge_model or ""}} for line in report["submission"]]
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    Location.parse(file).put_bytes(text.encode("utf-8", "replace"))
    return file
