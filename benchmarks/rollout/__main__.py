"""`make chaos-rollout`: good and broken releases roll in under load, and parts of the endpoint are killed meanwhile.

Everything runs on this machine, in a Ray cluster and an S3 server of its own, with real engines of a tiny model. The
last line printed is one JSON object.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.rollout.cases import CASES, HEAD, Rolled, Run
from benchmarks.rollout.load import Load, Outcome, p99_s
from benchmarks.rollout.world import world

_STEADY = "steady"
_FIRST = "v1"


def main() -> None:
    """Run the cases and report."""
    options = _options()
    begin_s = time.monotonic()
    with world(options.truths, is_persistent=HEAD in options.cases) as made:
        made.releases.publish(_FIRST)
        made.releases.propose(_FIRST)
        made.deploy("warren_serve.front:build", {"min_replicas": options.replicas, "max_replicas": options.replicas})
        with Load(made.url, options.requests_per_s) as load:
            run = Run(made, load, options.crash_after)
            _go_through(run, options)
        report = _report(run.rolled, load.outcomes)
        report |= {
            "head_away_s": run.head_away_s,
            "phase_at_end": made.watch.state.phase,
            "minutes": round((time.monotonic() - begin_s) / 60, 1),
        }
    print(json.dumps(report))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="which, in this order (default: all)")
    parser.add_argument("--good", type=int, default=12, help="good releases that roll in without any disturbance")
    parser.add_argument("--requests", type=int, default=10_000, help="ask at least so many")
    parser.add_argument("--requests-per-s", type=float, default=4.0)
    parser.add_argument("--replicas", type=int, default=2, help="engine replicas of each release")
    parser.add_argument("--truths", type=int, default=400, help="questions with known answers in every release")
    parser.add_argument("--crash-after", type=int, default=10, help="requests after which the crashing release dies")
    parser.add_argument("--steady-s", type=float, default=60.0, help="time without a rollout, to compare with")
    parser.add_argument("--quick", action="store_true", help="few cases, requests and questions: that it runs")
    options = parser.parse_args()
    if options.quick:
        options.good, options.requests, options.replicas, options.steady_s = 1, 0, 1, 10.0
        options.cases = options.cases or ["good", "corrupt", "garbage"]
    options.cases = options.cases or list(CASES)
    return options


def _go_through(run: Run, options: argparse.Namespace) -> None:
    time.sleep(options.steady_s / 6)
    run.load.phase = _STEADY
    time.sleep(options.steady_s)
    for case in options.cases:
        for _ in range(options.good if case == "good" else 1):
            CASES[case](run)
    run.load.phase = "afterwards"
    while len(run.load.outcomes) < options.requests:
        time.sleep(1)


def _report(rolled: Sequence[Rolled], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    bad, good = [one for one in rolled if one.is_bad], [one for one in rolled if not one.is_bad]
    bad_versions = {one.version for one in bad}
    accepted = [one for one in outcomes if not one.is_refused and not one.phase.startswith(HEAD)]
    answered = Counter(one.version in bad_versions for one in accepted if not one.error)
    steady_s = p99_s(outcomes, _STEADY)
    compared = [one for one in rolled if one.case != HEAD]
    p99 = {one.version: seconds for one in compared if (seconds := p99_s(outcomes, one.version))}
    ratios = {version: round(seconds / steady_s, 2) for version, seconds in p99.items()} if steady_s else {}
    served = [one for one in good if not one.is_undone]
    phases = sorted({phase for one in served for phase in one.seconds_by_phase})
    return {
        "requests": len(accepted),
        "failed_requests": sum(one.error is not None for one in accepted),
        "refused_requests": sum(one.is_refused for one in outcomes),
        "p99_ratio_worst": max(ratios.values(), default=None),
        "bad_releases_tried": len(bad),
        "bad_releases_undone": sum(one.is_undone for one in bad),
        "good_releases_tried": len(good),
        "good_releases_rejected": sum(one.is_undone for one in good),
        "answered_by_bad_fraction": round(answered[True] / max(1, answered.total()), 4),
        "seconds_by_phase": {
            phase: round(median(one.seconds_by_phase.get(phase, 0.0) for one in served), 1) for phase in phases
        },
        "seconds_to_full_traffic": round(median(sum(one.seconds_by_phase.values()) for one in served), 1)
        if served
        else None,
        "p99_steady_s": round(steady_s, 3) if steady_s else None,
        "p99_ratios": ratios,
        "reasons": {one.version: one.reason for one in rolled if one.is_undone},
        "failures": dict(Counter(one.error for one in accepted if one.error).most_common(5)),
    }


if __name__ == "__main__":
    main()
