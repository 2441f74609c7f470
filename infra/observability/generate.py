"""Write the files that Grafana and the Prometheus operator take: `python infra/observability/generate.py`.

`dashboards/*.json` are made of `boards.py`, and `prometheusrule.yaml` of `rules.yaml`, which plain Prometheus reads.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))

from boards import BOARDS, Board, Panel  # noqa: E402

_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def files() -> dict[str, str]:
    """Return the text of every file, by its path below this folder."""
    texts = {f"dashboards/{board.uid}.json": json.dumps(_dashboard(board), indent=1) + "\n" for board in BOARDS}
    return {**texts, "prometheusrule.yaml": _prometheus_rule()}


def _dashboard(board: Board) -> dict[str, Any]:
    return {
        "uid": board.uid,
        "title": board.title,
        "tags": ["warren"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_datasource(), _variable(board)]},
        "panels": [_panel(number, panel) for number, panel in enumerate(board.panels)],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _variable(board: Board) -> dict[str, Any]:
    return {
        "name": board.variable,
        "type": "query",
        "label": board.variable.capitalize(),
        "datasource": _SOURCE,
        "query": {"query": f"label_values({board.source}, {board.variable})", "refId": "A"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
            for place, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


def _prometheus_rule() -> str:
    rules = yaml.safe_load((_HERE / "rules.yaml").read_text())
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "warren",
            "labels": {
                "app.kubernetes.io/part-of": "warren",
                "app.kubernetes.io/component": "monitoring",
                "release": "prometheus",
            },
        },
        "spec": rules,
    }
    text: str = yaml.safe_dump(resource, sort_keys=False, width=120)
    return f"# Made of rules.yaml: python infra/observability/generate.py\n{text}"


if __name__ == "__main__":
    for name, text in files().items():
        (_HERE / name).write_text(text)
