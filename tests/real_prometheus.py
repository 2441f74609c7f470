"""A real Prometheus over series of every declared metric, and the queries of dashboards and alerts."""

import json
import re
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml

from warren.metrics import ALL_METRICS, TRAINING_METRICS, MetricSpec
from warren.testbed import free_port

REPOSITORY = Path(__file__).resolve().parents[1]
OBSERVABILITY = REPOSITORY / "infra" / "observability"
_STEP_S, _BEGIN_S = 15, 1_780_000_000
_NAME = re.compile(r"\b(ray_\w+|up)\b")
_RECORDED = re.compile(r"(warren:[\w:]+)\{[^}]*\}")


@cache
def rules() -> list[dict[str, Any]]:
    """Return the alerts and recording rules."""
    groups = yaml.safe_load((OBSERVABILITY / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metric_names(query: str) -> set[str]:
    """Return the names of the metrics that a query asks for."""
    return set(_NAME.findall(query))


def _queries() -> list[str]:
    """Return every panel's queries, with Grafana's variables and the recording rules put in."""
    boards = [json.loads(path.read_text()) for path in sorted((OBSERVABILITY / "dashboards").glob("*.json"))]
    texts = [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    texts = [_RECORDED.sub(lambda match: f"({recorded[match[1]]})", text) for text in texts]
    return [re.sub(r"\$(run|application)", ".*", text.replace("$__rate_interval", "1m")) for text in texts]


QUERIES = _queries()


def declared_series() -> str:
    """Return ten minutes of every declared metric, and of those of Ray that the dashboards show."""
    series = [f"ray_{name}" for spec in ALL_METRICS for name in _series_of(spec)]
    series += [f'ray_data_output_{what}{{dataset="d"}}' for what in ("rows", "bytes")]
    series += ['ray_object_store_memory{Location="MMAP_SHM"}', 'ray_node_cpu_utilization{ip="10.0.0.1"}']
    times = range(_BEGIN_S, _BEGIN_S + 600, _STEP_S)
    return "".join(f"{one} {time_s - _BEGIN_S + 1} {time_s}\n" for time_s in times for one in series)


def _series_of(spec: MetricSpec) -> list[str]:
    labels = {label: {"reason": "internal_error", "route": "/v1/completions"}.get(label, "x") for label in spec.labels}
    if spec not in TRAINING_METRICS:
        labels |= {"application": "chat", "replica": "a"}  # Ray Serve adds them
    if spec.kind != "histogram":
        return [f"{spec.series}{_shown(labels)}"]
    return [f"{spec.name}_bucket{_shown({**labels, 'le': bound})}" for bound in ("1.0", "+Inf")]


def _shown(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


class Prometheus:
    """A server whose storage was filled from a text: each line a series, a value and a time."""

    def __init__(self, folder: Path, text: str) -> None:
        times = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines()]
        self._range = {"start": min(times), "end": max(times), "step": _STEP_S}
        (folder / "metrics.txt").write_text(f"{text}# EOF\n")
        data = folder / "data"
        backfill: list[str | Path] = [
            "promtool",
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            folder / "metrics.txt",
            data,
        ]
        subprocess.run(backfill, check=True, capture_output=True)
        (folder / "prometheus.yml").write_text("{}\n")
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._log = (folder / "log").open("w")
        command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={data}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self._process = subprocess.Popen(command, stderr=self._log, stdout=self._log)

    def __enter__(self) -> "Prometheus":
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert self._process.poll() is None, Path(self._log.name).read_text()
            assert time.monotonic() < deadline, "Prometheus does not become ready"
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def series(self, query: str) -> list[dict[str, Any]]:
        """Return what a query finds in the whole recording."""
        reply = httpx.get(f"{self._url}/api/v1/query_range", params={**self._range, "query": query}, timeout=60).json()
        assert reply["status"] == "success", (query, reply)
        found: list[dict[str, Any]] = reply["data"]["result"]
        return [one for one in found if any(value != "NaN" for _, value in one["values"])]

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self._url}/-/ready", timeout=5).is_success
        except httpx.HTTPError:
            return False
