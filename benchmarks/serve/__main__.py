"""`make bench-serve`: throughput, latency and goodput of the endpoint, beside what it replaces, on this machine.

Every way of serving gets the same requests at the same times, one way after another, and all that as often as there
are rounds; the metrics are medians over the rounds. The last line printed is one JSON object.
"""

import argparse
import asyncio
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve.cluster import Endpoint, endpoint
from benchmarks.serve.endpoint_overhead import latencies_s
from benchmarks.serve.load import Load, send_all
from benchmarks.serve.metrics import Metrics, draw, metrics_of, middle, table
from benchmarks.serve.model import IMAGE_PX, NAME
from benchmarks.serve.vllm_server import VllmError, VllmServer, why_not

_NUM_SLOTS, _CONTEXT_TOKENS = 32, 320
_QUEUE = {"max_queued_requests": 1000, "max_context_tokens": _CONTEXT_TOKENS, "request_timeout_s": 900.0}
_DEPLOYMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "warren": ("warren_serve.app:build", _QUEUE | {"num_slots": _NUM_SLOTS}),
    "sequential": ("benchmarks.serve.baselines:build_sequential", _QUEUE | {"max_ongoing_requests": 256}),
    "static batch": ("benchmarks.serve.baselines:build_static", _QUEUE | {"max_ongoing_requests": 256}),
}
_MODES = (*_DEPLOYMENTS, "vllm")
_SEED = 7
_ALONE_SEED = 1007  # images that no load has sent: their features would be in the cache


def main() -> None:
    """Measure, print and draw."""
    options = _options()
    results: dict[str, dict[int, list[Metrics]]] = {mode: {} for mode in options.modes}
    through_and_alone_s: list[tuple[float, float]] = []
    num_tokens = sum(options.new_tokens) // len(options.new_tokens)
    vllm_reason = None if "vllm" in options.modes else why_not() or "not asked for"
    with endpoint(options.quick) as served:
        for number in range(options.rounds):
            for mode in options.modes:
                try:
                    _measure(served, mode, number, options, results[mode])
                    if mode == "warren":
                        where = (served.url, NAME, served.model_folder, IMAGE_PX)
                        through_and_alone_s.append(latencies_s(*where, num_tokens, _ALONE_SEED))
                except VllmError as error:
                    vllm_reason = str(error)
            served.remove()
    medians = {mode: {n: middle(rounds) for n, rounds in by.items()} for mode, by in results.items() if by}
    print(table(medians))
    if options.plot:
        draw(medians, options.plot)
    print(json.dumps(_summary(medians, through_and_alone_s, options) | {"vllm_reason": vllm_reason}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a small model and few requests: that it runs, not how fast"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--new-tokens", type=int, nargs="+", default=[128], help="of every answer; two: drawn evenly between them"
    )
    parser.add_argument("--requests-per-client", type=int, default=2)
    parser.add_argument("--requests-per-client-s", type=float, default=0.25)
    parser.add_argument(
        "--modes", nargs="+", choices=_MODES, default=[m for m in _MODES if m != "vllm" or not why_not()]
    )
    parser.add_argument(
        "--step-budget-tokens", type=int, help="prompt tokens that Warren's step reads beside answers (its own default)"
    )
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.clients, options.rounds, options.new_tokens = [1, 4], 1, [8]
    return options


def _load(num_clients: int, options: argparse.Namespace) -> Load:
    num_requests = max(4, num_clients * options.requests_per_client)
    return Load(
        num_clients,
        options.requests_per_client_s,
        num_requests,
        IMAGE_PX,
        (min(options.new_tokens), max(options.new_tokens)),
    )


def _measure(
    served: Endpoint, mode: str, number: int, options: argparse.Namespace, results: dict[int, list[Metrics]]
) -> None:
    with ExitStack() as stack:
        if mode == "vllm":
            served.remove()
            url = stack.enter_context(VllmServer(served.model_folder, NAME, _CONTEXT_TOKENS, _NUM_SLOTS)).url
        else:
            build, args = _DEPLOYMENTS[mode]
            own = {"step_budget_tokens": options.step_budget_tokens} if mode == "warren" else {}
            served.deploy(build, args | own)
            url = served.url
        for clients in options.clients:
            load = _load(clients, options)
            asyncio.run(send_all(url, NAME, Load(1, 100.0, 2, load.image_px, (4, 4)), seed=_SEED - 1))  # warm
            start = time.perf_counter()
            timelines = asyncio.run(send_all(url, NAME, load, seed=_SEED + number))
            metrics = metrics_of(timelines)
            results.setdefault(clients, []).append(metrics)
            took_s = time.perf_counter() - start
            print(f"round {number} {mode}, {clients} clients: {metrics['tokens_per_s']:.1f} tokens/s, {took_s:.0f} s")
            for error in {one.error for one in timelines if one.error}:
                print(f"  failed: {error}")


def _summary(
    medians: dict[str, dict[int, Metrics]],
    through_and_alone_s: list[tuple[float, float]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return the metrics by which changes are judged, at 32 clients (or the most that were measured)."""
    level = 32 if 32 in options.clients else max(options.clients)
    own = medians.get("warren", {}).get(level)
    through_s, alone_s = np.median(through_and_alone_s, axis=0).tolist() if through_and_alone_s else (None, None)

    def ratio(other: str) -> float | None:
        theirs = medians.get(other, {}).get(level, {}).get("tokens_per_s")
        return round(own["tokens_per_s"] / theirs, 2) if own and theirs else None

    return {
        "quick": options.quick,
        "clients": level,
        "new_tokens": options.new_tokens,
        "tokens_per_s_vs_sequential_at_32": ratio("sequential"),
        "tokens_per_s_vs_static_batch_at_32": ratio("static batch"),
        "tokens_per_s_vs_vllm_cpu": ratio("vllm"),
        "engine_alone_p50_s": round(alone_s, 4) if alone_s else None,
        "endpoint_alone_p50_s": round(through_s, 4) if through_s else None,
        "ingress_overhead_fraction": round(1 - alone_s / through_s, 4) if through_s else None,
        **{
            f"{mode.replace(' ', '_')}_{name}": round(by[level][name], 4)
            for mode, by in medians.items()
            for name in ("tokens_per_s", "first_p50_s", "first_p99_s", "gap_p50_s", "gap_p99_s", "good_fraction")
        },
    }


if __name__ == "__main__":
    main()
