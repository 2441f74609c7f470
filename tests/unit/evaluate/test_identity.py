"""What an evaluation is of: whatever can change the result changes its place, and nothing is measured twice."""

from pathlib import Path
from typing import Any

import pytest

from warren.config import EvaluateConfig
from warren.evaluate.accuracy import score
from warren.evaluate.evaluation_report import Evaluation
from warren.evaluate.identity import Identity
from warren.evaluate.stored_evaluations import Evaluations
from warren.storage import FileEntry, Location
from warren.train.checkpoint import CheckpointManifest

CONFIG = EvaluateConfig(dataset="test@v1")
OTHERS: dict[str, Any] = {
    "dataset": "test@v2",
    "metric": "choice",
    "num_choices": 4,
    "shuffled_images": True,
    "batch_size": 8,
    "max_new_tokens": 40,
    "limit_samples": 100,
    "sample_seed": 1,
}


def model(digest: str = "aa", attempt: str = "attempt-1") -> str:
    files = (
        FileEntry(f"{attempt}/model/model.safetensors", 1, digest),
        FileEntry(f"{attempt}/model/config.json", 1, "c"),
    )
    return CheckpointManifest(5, 2, 2, "fingerprint", files).digest("model")


def identity(config: EvaluateConfig = CONFIG, digest: str = "aa", dataset: str = "d", **parts: str) -> Identity:
    return Identity.of(config, model(digest, **parts), dataset)


def test_every_option_of_an_evaluation_is_part_of_what_it_is() -> None:
    fields = set(EvaluateConfig.model_fields) - {"max_quarantined_fraction"}  # accepts a result, does not change it
    assert fields == set(OTHERS), "a new option must be in OTHERS"
    changed = {key: identity(CONFIG.model_copy(update={key: value})) for key, value in OTHERS.items()}
    names = {identity().name, *(each.name for each in changed.values())}
    assert len(names) == 1 + len(OTHERS)
    for key, other in changed.items():
        assert identity().differences(other) == [f"{key}={OTHERS[key]}"]
    assert identity(CONFIG.model_copy(update={"max_quarantined_fraction": 0.5})) == identity()


def test_other_weights_other_data_and_other_code_are_another_evaluation() -> None:
    first = identity()
    assert identity(digest="bb").name != first.name
    assert identity(dataset="e").name != first.name
    assert Identity(first.checkpoint, first.dataset, first.options, "warren 0.0, evaluation 1").name != first.name
    assert identity(attempt="attempt-2") == first, "who uploaded the same weights changes nothing"
    assert first.differences(identity(digest="bb", dataset="e")) == [
        "other weights at the same step",
        "the dataset had other content",
    ]


def test_evaluations_are_kept_side_by_side(tmp_path: Path) -> None:
    stored = Evaluations(Location.parse(str(tmp_path)))
    asked = [identity(), identity(EvaluateConfig(dataset="test@v1", metric="choice"))]
    for number, each in enumerate(asked):
        assert stored.find(5, each) is None
        stored.write(Evaluation("run", 5, each, score([bool(number)], ["yes"]), {}), [{"key": "a"}])
    assert [found.value for each in asked if (found := stored.find(5, each))] == [0.0, 1.0]
    assert {each.identity.name for each in stored.of_step(5)} == {each.name for each in asked}
    again = Evaluation("run", 5, asked[0], score([True], ["yes"]), {})
    assert stored.write(again, [{"key": "a"}]).value == 0.0, "what is stored stays"
    assert not stored.of_step(6)


@pytest.mark.parametrize("old", ["[]", '{"run": "r", "dataset": "test@v1"}'])
def test_reports_of_earlier_versions_are_passed_over(tmp_path: Path, old: str) -> None:
    report = tmp_path / "00000005" / "test@v1" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(old)
    assert Evaluations(Location.parse(str(tmp_path))).of_step(5) == []
