"""Dashboards and alerts: Prometheus takes them, every query finds metrics, every alert has a cause and a runbook."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kuberay_manifests import KUBERAY, REPOSITORY, find, render
from real_prometheus import QUERIES, Prometheus, declared_series, metric_names, rules
from warren.metrics import ALL_METRICS

OBSERVABILITY = REPOSITORY / "infra" / "observability"
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}
ALERTS = [rule for rule in rules() if "alert" in rule]


@pytest.fixture(scope="module")
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH: apt-get install prometheus")
    return program


@pytest.fixture(scope="module")
def prometheus(promtool: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real Prometheus that has every metric."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not on PATH: apt-get install prometheus")
    with Prometheus(tmp_path_factory.mktemp("prometheus"), declared_series()) as server:
        yield server


def test_the_generated_files_are_current() -> None:
    written = subprocess.run(
        [sys.executable, "-c", "import generate, json; print(json.dumps(generate.files()))"],
        cwd=OBSERVABILITY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name, text in json.loads(written.stdout).items():
        assert (OBSERVABILITY / name).read_text() == text, "run: python infra/observability/generate.py"


def test_prometheus_takes_the_rules_and_every_alert_fires_when_its_cause_is_there(promtool: str) -> None:
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        result = subprocess.run([promtool, *command], cwd=OBSERVABILITY, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_a_cause_in_the_tests_a_severity_and_a_runbook() -> None:
    cases = yaml.safe_load((OBSERVABILITY / "tests.yaml").read_text())["tests"]
    fired = {one["alertname"] for case in cases for one in case.get("alert_rule_test", ()) if one["exp_alerts"]}
    assert fired == {rule["alert"] for rule in ALERTS}
    headings = re.findall(r"^## (\w+)$", (REPOSITORY / "docs" / "observability.md").read_text(), re.MULTILINE)
    assert [name for name in headings if name.startswith("Warren")] == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["runbook"] == f"docs/observability.md#{rule['alert'].lower()}"


def test_the_component_brings_alerts_and_dashboards(tmp_path: Path) -> None:
    folder = os.path.relpath(KUBERAY / "components" / "monitoring", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"components": [folder]}))
    resources = render(tmp_path)
    assert (
        find(resources, "PrometheusRule")["spec"]["groups"]
        == yaml.safe_load((OBSERVABILITY / "rules.yaml").read_text())["groups"]
    )
    boards = find(resources, "ConfigMap", "warren-dashboards")
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {json.loads(text)["uid"] for text in boards["data"].values()} == {
        path.stem for path in (OBSERVABILITY / "dashboards").iterdir()
    }


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in rules())], ids=lambda text: text[:60])
def test_a_query_asks_for_metrics_that_are_declared(query: str) -> None:
    declared = {f"ray_{spec.series}{end}" for spec in ALL_METRICS for end in SUFFIXES.get(spec.kind, ("",))}
    asked = {name for name in metric_names(query) if name.startswith("ray_warren")}
    assert asked <= declared


def test_every_query_of_every_panel_returns_series(prometheus: Prometheus) -> None:
    assert len(QUERIES) > 60
    assert [query for query in QUERIES if not prometheus.series(query)] == []


def test_every_expression_of_an_alert_runs(prometheus: Prometheus) -> None:
    for rule in rules():
        prometheus.series(rule["expr"])  # raises where Prometheus refuses it
