"""docs/reference/metrics.md has every metric, and nothing exports one that is not declared."""

import ast
from pathlib import Path
from typing import get_type_hints

import pytest

from warren import metrics as declared
from warren.train.step_metrics import StepMetrics
from warren_serve.metrics import all_families

LIBRARIES = ("prometheus_client", "ray.util.metrics", "ray.serve.metrics")
EXPORTERS = {
    "serve/warren_serve/metrics.py",
    "serve/warren_serve/cluster_metrics.py",
    "platform/warren/cluster/train/gauges.py",
}
CLASSES = {
    "Gauge",
    "Counter",
    "Histogram",
    "Summary",
    "GaugeMetricFamily",
    "CounterMetricFamily",
    "HistogramMetricFamily",
}


def test_the_page_is_current(repository: Path) -> None:
    page = repository / "docs" / "reference" / "metrics.md"
    assert page.read_text() == declared.reference(), "run: python -m warren.metrics"


def test_every_metric_has_a_name_of_its_own_a_unit_and_a_meaning() -> None:
    names = [spec.name for spec in declared.ALL_METRICS]
    assert len(names) == len(set(names))
    for spec in declared.ALL_METRICS:
        assert spec.name.startswith("warren_")
        assert spec.unit, spec
        assert spec.meaning.endswith("."), spec
        assert bool(spec.buckets) == (spec.kind == "histogram"), spec
        assert f"| `{spec.series}` |" in declared.reference()


def test_every_constant_is_in_the_page() -> None:
    constants = {value for value in vars(declared).values() if isinstance(value, declared.MetricSpec)}
    assert constants <= set(declared.ALL_METRICS)


def test_the_endpoint_exports_what_is_declared() -> None:
    exported = {(family.name, family.type, family.documentation) for family in all_families()}
    assert exported == {(spec.name, spec.kind, spec.meaning) for spec in declared.SERVE_METRICS}


def test_every_number_of_a_training_step_is_declared() -> None:
    fields = get_type_hints(StepMetrics)
    numbers = {name for name, kind in fields.items() if kind in (int, float) and name != "time"}
    assert {f"warren_train_{name}" for name in numbers} == {spec.name for spec in declared.STEP_METRICS}


@pytest.mark.parametrize("root", ["platform/warren", "serve/warren_serve"])
def test_only_the_exporters_make_metrics_and_none_names_one_itself(repository: Path, root: str) -> None:
    for path in (repository / root).rglob("*.py"):
        module = ast.parse(path.read_text())
        name = str(path.relative_to(repository))
        imported = {node.module for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.module}
        makes = [
            node
            for node in ast.walk(module)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES
        ]
        if name not in EXPORTERS:
            makes = [] if not any(each.startswith(LIBRARIES) for each in imported) else makes
            assert makes == [], f"{name} makes a metric: declare it in warren/metrics.py, and make it in an exporter"
        for call in makes:
            assert not isinstance(call.args[0], ast.Constant | ast.JoinedStr), (
                f"{name}:{call.lineno} names a metric itself"
            )
