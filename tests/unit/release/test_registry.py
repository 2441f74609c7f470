"""The registry: what there is, pins, differences, deployments, lineage of every age."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from releases import NAME, publish_text, registry_with, stored_model
from warren.errors import ConfigError, ReleaseError
from warren.release import (
    Decontamination,
    EvaluationReference,
    Lineage,
    ParentModel,
    Registry,
    TrainingDataset,
    deployment_marker,
    plan_gc,
    publish,
    read_deployment,
    write_deployment,
)
from warren.release.removal_marks import mark_for_removal
from warren.storage import Location

FULL = Lineage(
    run="mine",
    step=40,
    stage="finetune",
    fingerprint="0123456789abcdef",
    datasets=(
        TrainingDataset("captions@v1", "d2", 5, 5, "pretrain"),
        TrainingDataset("train@v1", "d1", 10, 12, "finetune", Decontamination({"test@v1": "e"}, {"train@v1": "s"})),
    ),
    evaluations=(EvaluationReference("c", "e", {"dataset": "test@v1", "metric": "exact_match"}, "warren 0.1"),),
    parents=(ParentModel("origin", "base", 8, fingerprint="f"),),
    git_revision="abc",
    packages={"torch": "2.13"},
    record={"recipe": {"name": "demo"}, "resources": {"num_workers": 2}, "origin": {"run": "base"}, "origin_step": 8},
)


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "store"))


def test_it_lists_complete_releases_and_nothing_else(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v2", "v10", "v1")
    registry.move("candidate", "v2", expected=None)
    registry.pin("v1", "kept for a customer", "ada")
    write_deployment(root, NAME, "chat", ["v2"])
    (registry.folder / "v3" / "model.safetensors").put_bytes(b"not complete")
    assert registry.versions() == ["v1", "v10", "v2"]
    assert Registry.names(root) == [NAME]
    assert registry.read("candidate").version == "v2"
    with pytest.raises(ReleaseError, match="no release 'v3' of 'demo'; versions: v1, v10, v2"):
        registry.read("v3")
    with pytest.raises(ReleaseError, match="ever stable"):
        registry.read("stable")
    with pytest.raises(ConfigError, match="is not a name"):
        Registry(root, "../x")


def test_an_empty_storage_has_no_releases(root: Location) -> None:
    assert Registry.names(root) == []
    assert (Registry(root, NAME).versions(), Registry(root, NAME).pins(), Registry(root, NAME).aliases()) == (
        [],
        {},
        {},
    )


def test_pins_say_who_and_why_and_the_first_stays(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2")
    registry.move("stable", "v2", expected=None)
    registry.pin("stable", "an audit", "ada")
    assert registry.pin("v2", "another reason", "bob").who == "ada"
    assert [(version, pin.why) for version, pin in registry.pins().items()] == [("v2", "an audit")]
    registry.unpin("v2")
    with pytest.raises(ReleaseError, match="v2 is not pinned; pinned are: none"):
        registry.unpin("v2")
    with pytest.raises(ReleaseError, match="no release 'v9'"):
        registry.pin("v9", "why")
    mark_for_removal(root, NAME, "v1", "gc")
    with pytest.raises(ReleaseError, match="is being removed"):
        registry.pin("v1", "too late")


def test_an_endpoint_says_what_it_runs(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2")
    write_deployment(root, NAME, "chat", ["v2", "v1"])
    assert read_deployment(root, NAME, "chat") == ("v1", "v2")
    assert deployment_marker(root, NAME, "chat").uri == f"{registry.folder}/deployments/chat.json"
    assert deployment_marker(root, NAME, "chat").read_json() == {"versions": ["v1", "v2"]}
    write_deployment(root, NAME, "chat", ["v2"])
    assert registry.deployments() == {"chat": ("v2",)}
    write_deployment(root, NAME, "chat", [])
    assert (registry.deployments(), read_deployment(root, NAME, "chat")) == ({}, ())
    mark_for_removal(root, NAME, "v1", "gc")
    with pytest.raises(ReleaseError, match="is being removed"):
        write_deployment(root, NAME, "chat", ["v1"])


def test_a_difference_names_scores_lineage_and_files(root: Location, tmp_path: Path) -> None:
    model = stored_model(root, tmp_path, "one")
    publish(root, NAME, "v1", model, FULL, {"test@v1/exact_match": 0.8})
    retrained = replace(FULL, step=50, packages={"torch": "2.14"}, datasets=FULL.datasets[1:])
    publish(root, NAME, "v2", model, retrained, {"test@v1/exact_match": 0.9})
    differences = {each.key: (each.first, each.second) for each in Registry(root, NAME).diff("v1", "v2")}
    assert differences["scores.test@v1/exact_match"] == (0.8, 0.9)
    assert differences["step"] == (40, 50)
    assert differences["packages.torch"] == ("2.13", "2.14")
    assert differences["datasets.captions@v1.digest"] == ("d2", None)
    assert not [key for key in differences if key.startswith(("files", "fingerprint", "recipe"))]
    assert Registry(root, NAME).diff("v1", "v1") == []
    publish_text(root, tmp_path, "v3")
    assert "files.config.json" in {each.key for each in Registry(root, NAME).diff("v1", "v3")}


def test_lineage_comes_back_as_it_was(root: Location, tmp_path: Path) -> None:
    publish(root, NAME, "v1", stored_model(root, tmp_path, "one"), FULL, {})
    assert Registry(root, NAME).read("v1").lineage == FULL
    assert Lineage.from_json(Lineage().to_json()) == Lineage()


@pytest.mark.parametrize("place", ["aliases/stable.json", "pins/v1.json", "deployments/chat.json", "v1/verdict.json"])
@pytest.mark.parametrize("text", ["", "3", "[]", "{}", '{"version"', '{"checks": 1}'])
def test_a_damaged_record_is_named_in_one_line(root: Location, tmp_path: Path, place: str, text: str) -> None:
    registry = registry_with(root, tmp_path, "v1")
    damaged = Location(f"{registry.folder}/{place}")
    damaged.put_bytes(text.encode())
    with pytest.raises(ReleaseError, match=r"is damaged .*: restore it from a copy") as error:
        (registry.aliases(), registry.pins(), registry.deployments(), registry.verdict("v1"))
    assert str(error.value).startswith(damaged.uri)
    if not place.startswith("v1"):
        with pytest.raises(ReleaseError, match="is damaged"):
            plan_gc(registry, min_age_s=0)


OLD: list[tuple[dict[str, Any], Lineage]] = [
    ({}, Lineage()),
    ({"run": "r", "checkpoint_step": 7, "dataset": "tiny/v1"}, Lineage("r", 7, record={"dataset": "tiny/v1"})),
    (
        {
            "run": "r",
            "step": 3,
            "stage": "finetune",
            "recipe": {"name": "demo"},
            "fingerprint": "f",
            "origin": {"run": "base"},
            "origin_step": 8,
            "datasets": {"train@v1": {"digest": "d", "rows": 3, "samples_per_epoch": 4}},
            "packages": {"ray": "2.60"},
            "git_revision": "g",
            "changes": [],
            "evaluation": {"checkpoint": "c", "dataset": "e", "options": {"metric": "choice"}, "code": "w"},
        },
        Lineage(
            "r",
            3,
            "finetune",
            "f",
            (TrainingDataset("train@v1", "d", 3, 4),),
            (EvaluationReference("c", "e", {"metric": "choice"}, "w"),),
            (ParentModel("origin", "base", 8),),
            "g",
            {"ray": "2.60"},
            {"recipe": {"name": "demo"}, "origin": {"run": "base"}, "origin_step": 8, "changes": []},
        ),
    ),
    (
        {
            "run": "soup",
            "step": 5,
            "stage": "average",
            "datasets": None,
            "parents": [{"run": "a", "step": 5, "fingerprint": "x", "recipe": {}}, {"run": "b", "step": 6}],
        },
        Lineage(
            "soup",
            5,
            "average",
            parents=(ParentModel("average", "a", 5, fingerprint="x"), ParentModel("average", "b", 6)),
        ),
    ),
]


@pytest.mark.parametrize(("stored", "lineage"), OLD)
def test_the_lineage_of_earlier_versions_is_read(stored: dict[str, Any], lineage: Lineage) -> None:
    assert Lineage.from_json(stored) == lineage
    assert Lineage.from_json(lineage.to_json()) == lineage


@pytest.mark.parametrize(
    ("model", "release"),
    [
        ("s3://b/x/releases/demo/v1", ("demo", "v1")),
        ("/data/releases/demo/v1/", ("demo", "v1")),
        ("s3://b/models/llava", None),
        ("", None),
        ("v1", None),
    ],
)
def test_a_parent_that_is_a_release_is_known_by_its_location(model: str, release: tuple[str, str] | None) -> None:
    assert ParentModel("origin", model=model).release == release


@pytest.mark.parametrize(
    ("free_of", "covers"),
    [({"t@v1": "d"}, True), ({"t@v1": "other"}, False), ({"t@v2": "d"}, False), ({}, False)],
)
def test_a_dataset_is_free_of_the_content_that_was_searched_for(free_of: dict[str, str], covers: bool) -> None:
    assert Decontamination(free_of).covers("t@v1", "d") is covers
