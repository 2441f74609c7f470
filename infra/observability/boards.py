"""What the Grafana boards show: panels with their queries. `generate.py` makes Grafana's JSON of them."""

from dataclasses import dataclass, field

# Of the requests that count for the SLO, those that the endpoint itself failed; what a client did wrong is left out.
SERVER_ERRORS = 'reason=~"internal_error|unavailable|deadline_exceeded"'
_RUN = 'run=~"$run"'
_APP = 'application=~"$application"'
_BY_APP = "application"


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Attributes:
        unit: As Grafana calls it.
        queries: PromQL by legend.
        text: What to read from it.
    """

    title: str
    unit: str
    queries: dict[str, str]
    text: str = ""


@dataclass(frozen=True)
class Board:
    """One dashboard.

    Attributes:
        variable: The label that a reader chooses values of.
        source: The metric whose values of that label can be chosen.
    """

    uid: str
    title: str
    variable: str
    source: str
    panels: list[Panel] = field(default_factory=list)


def _train(name: str) -> str:
    return f"max by (run) (ray_warren_train_{name}{{{_RUN}}})"


def _rate(name: str, by: str = _BY_APP, more: str = "") -> str:
    labels = ", ".join(part for part in (_APP, more) if part)
    return f"sum by ({by}) (rate(ray_warren_{name}_total{{{labels}}}[$__rate_interval]))"


def _quantile(quantile: float, name: str) -> str:
    rate = f"rate(ray_warren_{name}_bucket{{{_APP}}}[$__rate_interval])"
    return f"histogram_quantile({quantile}, sum by ({_BY_APP}, le) ({rate}))"


def _quantiles(name: str) -> dict[str, str]:
    return {f"p{quantile * 100:g} {{{{application}}}}": _quantile(quantile, name) for quantile in (0.5, 0.95, 0.99)}


def _engine(name: str, by: str = _BY_APP) -> str:
    return f"sum by ({by}) (ray_warren_engine_{name}{{{_APP}}})"


def _data(name: str) -> str:
    return f"sum by (dataset) (ray_data_{name})"


TRAINING = Board(
    "warren-training",
    "Warren: training",
    "run",
    "ray_warren_train_step",
    [
        Panel("Loss", "none", {"{{run}}": _train("loss"), "{{run}} held out": _train("validation_loss")}),
        Panel("Gradient norm", "none", {"{{run}}": _train("grad_norm")}, "A norm that grows for long ends in a skip."),
        Panel("Learning rate", "sci", {"{{run}}": _train("learning_rate")}),
        Panel("Progress", "percentunit", {"{{run}}": f"{_train('step')} / {_train('num_steps')}"}),
        Panel("Tokens per second", "short", {"{{run}}": _train("tokens_per_s")}),
        Panel("Samples per second", "short", {"{{run}}": _train("samples_per_s")}),
        Panel(
            "Where a step's time goes",
            "s",
            {
                "{{run}} step": _train("step_s"),
                "{{run}} waits for data": _train("data_wait_s"),
                "{{run}} waits for a checkpoint": _train("checkpoint_stall_s"),
                "{{run}} skew between ranks": _train("rank_skew_s"),
            },
            "What is left of the step after the waits is training.",
        ),
        Panel("Model operations", "short", {"{{run}} TFLOP/s a rank": _train("tflops_per_s")}),
        Panel("MFU", "percentunit", {"{{run}}": _train("mfu")}, "Only where the device's peak is known."),
        Panel("Age of the newest checkpoint", "s", {"{{run}}": f"time() - {_train('checkpoint_time_s')}"}),
        Panel(
            "Checkpoints of this job",
            "short",
            {"{{run}} committed": _train("checkpoints"), "{{run}} failed": _train("checkpoint_failures")},
        ),
        Panel(
            "Recoveries of this job",
            "short",
            {"{{run}} count": _train("recoveries"), "{{run}} seconds of the newest": _train("recovery_s")},
        ),
        Panel("Without workers", "s", {"{{run}}": _train("without_workers_s")}),
    ],
)
DATA = Board(
    "warren-data",
    "Warren: data",
    "run",
    "ray_warren_train_step",
    [
        Panel(
            "Share of a step that waits for data",
            "percentunit",
            {"{{run}}": f"{_train('data_wait_s')} / {_train('step_s')}"},
        ),
        Panel("Padding", "percentunit", {"{{run}}": _train("padding_fraction")}),
        Panel(
            "Tokens of a step", "short", {"{{run}}": _train("tokens"), "{{run}} with loss": _train("supervised_tokens")}
        ),
        Panel("Images of a step", "short", {"{{run}}": _train("images")}),
        Panel("Samples quarantined since the beginning", "short", {"{{run}}": _train("samples_quarantined")}),
        Panel(
            "Cut off since the beginning",
            "short",
            {"{{run}} samples": _train("samples_cut"), "{{run}} supervised tokens": _train("supervised_tokens_cut")},
        ),
        Panel("Ray Data: rows put out", "short", {"{{dataset}}": _data("output_rows")}),
        Panel("Ray Data: bytes put out", "bytes", {"{{dataset}}": _data("output_bytes")}),
        Panel(
            "Object store",
            "bytes",
            {"{{Location}}": "sum by (Location) (ray_object_store_memory)"},
            "SPILLED is on disk.",
        ),
    ],
)
ENDPOINT = Board(
    "warren-endpoint",
    "Warren: endpoint",
    "application",
    "ray_warren_requests_in_flight",
    [
        Panel("Requests by status", "reqps", {"{{status}}": _rate("requests", "status")}),
        Panel(
            "Availability, one hour",
            "percentunit",
            {"{{application}}": f"1 - warren:server_errors:ratio_rate1h{{{_APP}}}"},
            "The objective is 99.5 %. Errors are those of the endpoint: 500, 503, 504 and streams that broke.",
        ),
        Panel("Errors by reason", "reqps", {"{{reason}}": _rate("request_errors", "reason")}),
        Panel("Time to the first token", "s", _quantiles("time_to_first_token_seconds"), "Of streamed answers."),
        Panel("Time between tokens", "s", _quantiles("inter_token_seconds"), "Of streamed answers."),
        Panel("Time of a request", "s", _quantiles("request_seconds")),
        Panel(
            "Requests being answered",
            "short",
            {"{{application}}": f"sum by (application) (ray_warren_requests_in_flight{{{_APP}}})"},
        ),
        Panel(
            "Tokens per second",
            "short",
            {"prompts {{application}}": _rate("prompt_tokens"), "answers {{application}}": _rate("answer_tokens")},
        ),
        Panel(
            "Ingress replicas",
            "short",
            {"{{application}}": f"count by (application) (ray_warren_requests_in_flight{{{_APP}}})"},
        ),
    ],
)
ENGINES = Board(
    "warren-engines",
    "Warren: engines",
    "application",
    "ray_warren_engine_slots",
    [
        Panel("Slots in use", "percentunit", {"{{application}}": f"{_engine('running')} / {_engine('slots')}"}),
        Panel("Requests that wait for a slot", "short", {"{{application}}": _engine("waiting")}),
        Panel(
            "Key/value cache in use",
            "percentunit",
            {"{{application}}": f"{_engine('kv_used_tokens')} / {_engine('kv_capacity_tokens')}"},
        ),
        Panel(
            "Tokens per second",
            "short",
            {
                "read {{application}}": _rate("engine_prompt_tokens"),
                "generated {{application}}": _rate("engine_generated_tokens"),
            },
        ),
        Panel(
            "How requests end",
            "reqps",
            {name: _rate(f"engine_{name}") for name in ("finished", "cancelled", "failed")},
        ),
        Panel(
            "Images whose features were kept",
            "percentunit",
            {
                "{{application}}": f"{_rate('engine_image_cache_hits')} / "
                f"({_rate('engine_image_cache_hits')} + {_rate('engine_image_cache_misses')})"
            },
        ),
        Panel("Replicas by version", "short", {"{{version}}": _engine("release", "version")}),
        Panel("Memory of keys and values", "bytes", {"{{application}}": _engine("kv_bytes")}),
        Panel("CPU of the nodes", "percent", {"{{ip}}": "avg by (ip) (ray_node_cpu_utilization)"}),
    ],
)
_ROLLOUT = f"{{{_APP}}}"
ROLLOUT = Board(
    "warren-rollout",
    "Warren: rollout",
    "application",
    "ray_warren_rollout_step",
    [
        Panel(
            "Traffic by version",
            "percentunit",
            {"{{version}}": f"max by (version) (ray_warren_rollout_weight{_ROLLOUT})"},
        ),
        Panel("Phase", "short", {"{{phase}}": f"max by (phase) (ray_warren_rollout_phase{_ROLLOUT})"}),
        Panel(
            "Stable and candidate",
            "short",
            {"{{role}} {{version}}": f"max by (role, version) (ray_warren_rollout_version{_ROLLOUT}) == 1"},
        ),
        Panel("Step", "short", {"{{application}}": f"max by (application) (ray_warren_rollout_step{_ROLLOUT})"}),
        Panel(
            "Undone",
            "short",
            {
                "rollbacks {{application}}": f"max by (application) (ray_warren_rollout_rollbacks_total{_ROLLOUT})",
                "refused {{application}}": f"max by (application) (ray_warren_rollout_refused_versions{_ROLLOUT})",
            },
        ),
        Panel(
            "Held",
            "short",
            {
                "paused {{application}}": f"max by (application) (ray_warren_rollout_paused{_ROLLOUT})",
                "gate refuses {{application}}": f"max by (application) (ray_warren_rollout_gate_refuses{_ROLLOUT})",
                "superseded {{application}}": f"max by (application) (ray_warren_rollout_superseded{_ROLLOUT})",
            },
        ),
    ],
)
BOARDS = (TRAINING, DATA, ENDPOINT, ENGINES, ROLLOUT)
