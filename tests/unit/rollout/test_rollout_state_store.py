"""The stored state of rollouts: two controllers, commands, and the policy's rules."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from warren.config import RolloutPolicy
from warren.errors import ConfigError, ServiceError
from warren.rollout.state_store import RolloutFiles, SupersededError
from warren.storage import Location


@pytest.fixture
def files(tmp_path: object) -> RolloutFiles:
    return RolloutFiles(Location.parse(str(tmp_path)), "tiny", "chat")


def test_of_two_controllers_the_older_one_stops(files: RolloutFiles) -> None:
    first = files.take_over("first")
    first.save(replace(first.record.state, stable="v1"))
    second = files.take_over("second")
    assert (second.record.epoch, second.record.state.stable) == (2, "v1")
    with pytest.raises(SupersededError, match=r"'second' \(epoch 2\) has taken over .* \('first', epoch 1\) stops"):
        first.check()
    with pytest.raises(SupersededError):
        first.save(replace(first.record.state, stable="v2"))
    second.check()
    second.save(replace(second.record.state, phase="verifying", candidate="v2", reason="é"))
    assert files.read() == second.record
    assert [event["phase"] for event in files.read().events] == ["idle", "verifying"]
    assert files.take_over("third").record.state.restarts == 1, "it took over in the middle of a rollout"


def test_a_command_waits_until_the_one_before_was_obeyed(files: RolloutFiles) -> None:
    assert files.read_command() is None
    owner = files.take_over("one")
    sent = files.send("pause", by="ann")
    assert files.read_command() == sent
    with pytest.raises(ServiceError, match="'pause' before this one has not been obeyed yet"):
        files.send("abort")
    owner.save(replace(owner.record.state, handled_command=sent.number))
    assert files.send("retry", "v2").number == sent.number + 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": []}, "does not end at 1.0"),
        ({"steps": [0.1, 0.5]}, "does not end at 1.0"),
        ({"steps": [0.5, 0.1, 1.0]}, "does not ascend"),
        ({"steps": [0.0, 1.0]}, "does not ascend"),
        ({"steps": [0.5, 0.5, 1.0]}, "does not ascend"),
        ({"steps": ["a", 1.0]}, "valid number"),
        ({"step_s": -1}, "greater than or equal to 0"),
        ({"step_s": 100, "max_step_s": 99}, "less than step_s"),
        ({"step_s": 600, "total_timeout_s": 2400}, "no rollout with little traffic could finish"),
        ({"max_step_s": 2000}, "4 steps of up to 2000 s"),
        ({"total_timeout_s": float("inf")}, "total_timeout_s is inf; it must be finite"),
        ({"max_slowdown": float("nan")}, "finite|greater than 1"),
        ({"steps": [float("nan"), 1.0]}, "does not ascend"),
        ({"steps": [0.5, 1.0, 1.0]}, "does not ascend"),
        ({"steps": [0.5, 2.0]}, "does not end at 1.0"),
        ({"min_requests": 2001}, "less than or equal to 2000"),
        ({"min_request": 1}, "Extra inputs"),
        ({"min_requests": "3"}, "valid integer"),
    ],
)
def test_a_policy_that_cannot_end_or_is_not_one_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutPolicy.model_validate(values)


def test_the_policy_reads_lists_as_yaml_has_them() -> None:
    assert RolloutPolicy.model_validate({"steps": [0.5, 1.0]}).steps == (0.5, 1.0)
    assert RolloutPolicy().steps == (0.01, 0.1, 0.5, 1.0)


def test_names_that_are_none_are_refused(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="is not a name"):
        RolloutFiles(Location.parse(str(tmp_path)), "tiny", "../x")


def test_the_documentation_has_every_key_of_the_policy(repository: Path) -> None:
    rows = [
        f"| `{name}` | `{json.dumps(field.default)}` | {field.description} |"
        for name, field in RolloutPolicy.model_fields.items()
    ]
    text = (repository / "docs" / "rollout.md").read_text()
    assert [row for row in rows if row not in text] == []
