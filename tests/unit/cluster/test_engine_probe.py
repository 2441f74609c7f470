"""The gate's own engine: what it measures, with a real model in a process of its own."""

from pathlib import Path

from warren.cluster.serve.engine_probe import measure
from warren.inference.testing import save_random_model


def test_an_engine_is_measured_as_a_replica_would_run(tmp_path: Path) -> None:
    save_random_model(tmp_path / "model")
    probe = measure(tmp_path / "model", ("what is there?", "why?"), num_cpus=1.5)
    assert probe.problem == ""
    assert probe.token_s > 0
    assert probe.first_token_s > 0
    assert probe.memory_bytes > 50 << 20, "it imports torch at least"
    assert probe.hardware.startswith("1.5 CPU of ")
    assert [answer.prompt for answer in probe.answers] == ["what is there?", "why?"]
    assert all(answer.text for answer in probe.answers)
