"""What a release changes of a Serve instance that runs: its release, and nothing else."""

from copy import deepcopy
from typing import Any

import pytest

from warren.cluster.serve.endpoint_config import (
    FRONT_IMPORT_PATH,
    IMPORT_PATH,
    Candidate,
    EndpointSpec,
    Instance,
    first_config,
)
from warren.config import Resources
from warren.errors import ServiceError

RESOURCES = Resources(num_workers=1)
CANDIDATE = Candidate("s3://b/releases/demo/v2", "demo", ("gcs://_ray_pkg_new.zip",))
CHAT: dict[str, Any] = {
    "name": "chat",
    "route_prefix": "/",
    "import_path": IMPORT_PATH,
    "runtime_env": {"env_vars": {"KEYS": "abc"}, "py_modules": ["gcs://_ray_pkg_old.zip", "s3://b/own.zip"]},
    "deployments": [{"name": "Engine", "ray_actor_options": {"num_gpus": 1}}],
    "args": {
        "release": "s3://b/releases/demo/v1",
        "model_name": "demo",
        "api_keys_file": "/etc/keys",
        "max_replicas": 8,
        "num_cpus": 3.0,
    },
}
OTHER = {"name": "other", "route_prefix": "/other", "import_path": "theirs:app"}


def details(*configs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return what Serve says runs."""
    applications = {
        config["name"]: {"status": "RUNNING", "source": "declarative", "deployed_app_config": deepcopy(config)}
        for config in configs
    }
    instance = {"proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0", "port": 9000}, "grpc_options": {}}
    return {**instance, "target_capacity": 50.0, "proxies": {}, "applications": applications, **changes}


def served(*configs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return changed(details(*configs))


def changed(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    running = Instance.of(found)
    assert running is not None
    return running.serving(CANDIDATE, RESOURCES)


def test_the_release_changes_and_nothing_else() -> None:
    name, config = served(OTHER, CHAT)
    assert name == "chat"
    other, chat = config.pop("applications")
    assert other == OTHER
    assert chat["args"] == {**CHAT["args"], "release": CANDIDATE.uri}
    assert chat["runtime_env"] == {
        "env_vars": {"KEYS": "abc"},
        "py_modules": ["s3://b/own.zip", "gcs://_ray_pkg_new.zip"],
    }
    same = ("name", "route_prefix", "import_path", "deployments")
    assert {key: chat[key] for key in same} == {key: CHAT[key] for key in same}
    assert config == {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 9000},
        "grpc_options": {},
        "target_capacity": 50.0,
    }


def test_code_that_nobody_shipped_is_not_replaced() -> None:
    installed = {**CHAT, "runtime_env": {"env_vars": {"A": "b"}}}
    _, config = served(installed)
    assert config["applications"][0]["runtime_env"] == {"env_vars": {"A": "b"}}


@pytest.mark.parametrize(("model_name", "becomes"), [("own", "demo"), ("chosen", "chosen"), (None, None)])
def test_another_model_takes_its_name_along_unless_one_was_chosen(model_name: str | None, becomes: str | None) -> None:
    args = {"release": "s3://b/releases/own/v1", **({"model_name": model_name} if model_name else {})}
    _, config = served({**CHAT, "args": args})
    assert config["applications"][0]["args"].get("model_name") == becomes


def test_an_endpoint_is_found_by_the_release_it_serves() -> None:
    own = {**CHAT, "name": "endpoint"}
    foreign = {**CHAT, "route_prefix": "/x", "args": {"release": "s3://b/releases/x/stable", "api_keys_file": "/k"}}
    name, config = served(foreign, own)
    assert name == "endpoint"
    assert config["applications"][0] == foreign


def test_a_new_endpoint_is_added_to_what_runs() -> None:
    name, config = served(OTHER)
    assert name == "chat"
    assert config["applications"][0] == OTHER
    assert config["applications"][1]["args"]["release"] == CANDIDATE.uri
    assert Instance.of({"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}) is None


DECLARED = EndpointSpec(
    route="/v2", args={"max_replicas": 3, "num_gpus": 1.0}, instance={**EndpointSpec().instance, "proxy_location": "X"}
)


def test_an_endpoint_file_is_the_truth_for_its_application_and_nothing_else() -> None:
    running = Instance.of(details(OTHER, CHAT))
    assert running is not None
    name, config = running.serving(CANDIDATE, RESOURCES, DECLARED)
    other, chat = config["applications"]
    assert (name, other, config["proxy_location"]) == ("chat", OTHER, "EveryNode")
    assert chat["args"] == {
        "release": CANDIDATE.uri,
        "model_name": "demo",
        "num_cpus": 1.0,
        "num_gpus": 1.0,
        "max_replicas": 3,
    }
    assert (chat["route_prefix"], "deployments" in chat) == ("/v2", False)
    assert chat["runtime_env"]["env_vars"]["KEYS"] == "abc", "what holds the keys stays"
    assert chat["runtime_env"]["py_modules"] == ["s3://b/own.zip", "gcs://_ray_pkg_new.zip"]


def test_an_endpoint_file_names_its_application() -> None:
    second = EndpointSpec(application="second", route="/second")
    running = Instance.of(details(OTHER, CHAT))
    assert running is not None
    name, config = running.serving(CANDIDATE, RESOURCES, second)
    assert name == "second"
    assert config["applications"][:2] == [OTHER, CHAT]
    assert config["applications"][2]["name"] == "second"
    with pytest.raises(ServiceError, match="'other' serves the route '/other' already"):
        running.serving(CANDIDATE, RESOURCES, EndpointSpec(route="/other"))
    with pytest.raises(ServiceError, match="the application 'other' was not deployed as an endpoint"):
        running.serving(CANDIDATE, RESOURCES, EndpointSpec(application="other", route="/x"))


def test_a_first_endpoint_listens_where_it_is_told() -> None:
    config = first_config(CANDIDATE, RESOURCES, "0.0.0.0", 9000, DECLARED)
    assert config["http_options"] == {"host": "0.0.0.0", "port": 9000}
    assert [each["name"] for each in config["applications"]] == ["chat"]
    plain = first_config(CANDIDATE, RESOURCES, "127.0.0.1", 8000)
    assert "max_replicas" not in plain["applications"][0]["args"], "its default is as many as fit"
    assert (plain["proxy_location"], plain["logging_config"]) == ("HeadOnly", {"log_level": "WARNING"})


UNREADABLE: list[tuple[dict[str, Any], str]] = [
    (details(CHAT) | {"applications": {"chat": {"status": "RUNNING", "source": "declarative"}}}, "cannot be read"),
    (details({**CHAT, "runtime_env": {"env_vars": {"KEYS": "<redacted>"}}}), "cannot be read"),
    (details() | {"applications": {"chat": {"status": "DELETING", "source": "declarative"}}}, "being deleted"),
    (
        details() | {"applications": {"chat": {"status": "RUNNING", "source": "imperative", "route_prefix": "/"}}},
        "API keys cannot be kept",
    ),
    (details({**CHAT, "import_path": "theirs:app"}), "API keys cannot be kept"),
    (details({**OTHER, "route_prefix": "/"}), "'other' serves the route '/' already"),
    (details({"name": "rooted", "import_path": "theirs:app"}), "'rooted' serves the route '/' already"),
    (details({**CHAT, "name": "a"}, {**CHAT, "name": "b", "route_prefix": "/b"}), "a and b serve 'demo'"),
]


@pytest.mark.parametrize(("found", "message"), UNREADABLE)
def test_what_cannot_be_kept_is_not_replaced(found: dict[str, Any], message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        changed(found)


@pytest.mark.parametrize("release", ["s3://b/releases/demo", "s3://b/releases/demo/stable", "demo", "demo/candidate"])
def test_an_endpoint_that_rolls_releases_in_by_itself_is_known_by_the_release(release: str) -> None:
    front = {"name": "shop", "import_path": FRONT_IMPORT_PATH, "args": {"release": release}}
    running = Instance.of(details(CHAT, OTHER, front))
    assert running is not None
    assert running.rolling_endpoint("demo") == "shop"
    assert running.rolling_endpoint("other") is None
    alone = Instance.of(details(CHAT))
    assert alone is not None
    assert alone.rolling_endpoint("demo") is None
