"""What the deployment of an endpoint changes of a Serve instance that runs: that endpoint, and nothing else."""

from copy import deepcopy
from typing import Any

import pytest

from warren.cluster.serve.endpoint_config import (
    FRONT_IMPORT_PATH,
    EndpointSource,
    EndpointSpec,
    Instance,
    first_config,
)
from warren.config import Resources
from warren.errors import ServiceError

RESOURCES = Resources(num_workers=1)
SOURCE = EndpointSource("s3://b/releases/demo", "demo", ("gcs://_ray_pkg_new.zip",))
CHAT: dict[str, Any] = {
    "name": "chat",
    "route_prefix": "/",
    "import_path": FRONT_IMPORT_PATH,
    "runtime_env": {"env_vars": {"KEYS": "abc"}, "py_modules": ["gcs://_ray_pkg_old.zip", "s3://b/own.zip"]},
    "deployments": [{"name": "Ingress", "max_ongoing_requests": 7}],
    "args": {
        "release": "s3://b/releases/demo",
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


DECLARED = EndpointSpec(
    route="/v2",
    args={"max_replicas": 3, "num_gpus": 1.0, "rollout": {"step_s": 5.0}},
    instance={**EndpointSpec().instance, "proxy_location": "X"},
)


def instance(*configs: dict[str, Any]) -> Instance:
    running = Instance.of(details(*configs))
    assert running is not None
    return running


def test_an_endpoint_file_is_the_truth_for_its_application_and_nothing_else() -> None:
    deployment = instance(OTHER, CHAT).deploying(SOURCE, RESOURCES, DECLARED)
    other, chat = deployment.config.pop("applications")
    assert (deployment.application, other) == ("chat", OTHER)
    assert chat["args"] == {
        "release": "s3://b/releases/demo",
        "model_name": "demo",
        "num_cpus": 1.0,
        "num_gpus": 1.0,
        "max_replicas": 3,
        "rollout": {"step_s": 5.0},
    }
    assert (chat["route_prefix"], chat["import_path"], "deployments" in chat) == ("/v2", FRONT_IMPORT_PATH, False)
    assert chat["runtime_env"]["env_vars"]["KEYS"] == "abc", "what holds the keys stays"
    assert chat["runtime_env"]["py_modules"] == ["s3://b/own.zip", "gcs://_ray_pkg_new.zip"]
    assert deployment.config == {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 9000},
        "grpc_options": {},
        "target_capacity": 50.0,
    }
    assert deployment.changes == (
        "api_keys_file",
        "max_replicas",
        "num_cpus",
        "num_gpus",
        "rollout",
        "deployments",
        "logging_config",
        "route_prefix",
        "runtime_env.env_vars",
        "runtime_env.py_modules",
    )


def test_an_endpoint_that_is_as_declared_is_left_alone() -> None:
    deployed = DECLARED.config(SOURCE, RESOURCES)
    deployed["logging_config"] |= {"logs_dir": None, "enable_access_log": True}  # as Serve completes it
    assert instance(deployed).deploying(SOURCE, RESOURCES, DECLARED).changes == ()
    newer = EndpointSource(SOURCE.folder, SOURCE.name, ("gcs://_ray_pkg_newer.zip",))
    assert instance(deployed).deploying(newer, RESOURCES, DECLARED).changes == ("runtime_env.py_modules",)


def test_a_new_endpoint_is_added_to_what_runs() -> None:
    deployment = instance(OTHER).deploying(SOURCE, RESOURCES, EndpointSpec())
    assert (deployment.application, deployment.changes) == ("chat", None)
    other, chat = deployment.config["applications"]
    assert (other, chat["args"]["release"]) == (OTHER, SOURCE.folder)
    second = EndpointSpec(application="second", route="/second")
    applications = instance(OTHER, CHAT).deploying(SOURCE, RESOURCES, second).config["applications"]
    assert (applications[:2], applications[2]["name"]) == ([OTHER, CHAT], "second")
    assert Instance.of({"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}) is None


def test_a_first_endpoint_listens_where_it_is_told() -> None:
    config = first_config(SOURCE, RESOURCES, "0.0.0.0", 9000, DECLARED)
    assert config["http_options"] == {"host": "0.0.0.0", "port": 9000}
    assert [each["name"] for each in config["applications"]] == ["chat"]
    plain = first_config(SOURCE, RESOURCES, "127.0.0.1", 8000, EndpointSpec())
    assert "max_replicas" not in plain["applications"][0]["args"], "its default is as many as fit"
    assert (plain["proxy_location"], plain["logging_config"]) == ("HeadOnly", {"log_level": "WARNING"})


def test_a_deleted_endpoint_leaves_the_others_as_they_were() -> None:
    assert instance(OTHER, CHAT).without("chat") == {**instance(OTHER).config}


UNREADABLE: list[tuple[dict[str, Any], str]] = [
    (details(CHAT) | {"applications": {"chat": {"status": "RUNNING", "source": "declarative"}}}, "cannot be read"),
    (details({**CHAT, "runtime_env": {"env_vars": {"KEYS": "<redacted>"}}}), "cannot be read"),
    (details() | {"applications": {"chat": {"status": "DELETING", "source": "declarative"}}}, "being deleted"),
    (
        details() | {"applications": {"chat": {"status": "RUNNING", "source": "imperative", "route_prefix": "/"}}},
        "API keys cannot be kept",
    ),
    (details({**CHAT, "import_path": "theirs:app"}), "was not deployed as a rolling endpoint"),
    (details({**CHAT, "import_path": "warren_serve.app:build"}), "was not deployed as a rolling endpoint"),
    (details({**OTHER, "route_prefix": "/"}), "'other' already serves the route '/'"),
    (details({"name": "rooted", "import_path": "theirs:app"}), "'rooted' already serves the route '/'"),
]


@pytest.mark.parametrize(("found", "message"), UNREADABLE)
def test_what_cannot_be_kept_is_not_replaced(found: dict[str, Any], message: str) -> None:
    def deploy() -> None:
        running = Instance.of(found)
        assert running is not None
        running.deploying(SOURCE, RESOURCES, EndpointSpec())

    with pytest.raises(ServiceError, match=message):
        deploy()


def test_engines_that_are_being_deleted_hold_nothing_up() -> None:
    found = details(CHAT)
    found["applications"]["chat-engine-v1"] = {"status": "DELETING", "source": "imperative", "route_prefix": None}
    assert Instance.of(found) is not None


@pytest.mark.parametrize("release", ["s3://b/releases/demo", "s3://b/releases/demo/stable", "demo", "demo/candidate"])
def test_the_endpoint_of_a_release_is_known_by_its_args(release: str) -> None:
    front = {"name": "shop", "import_path": FRONT_IMPORT_PATH, "args": {"release": release}}
    plain = {**CHAT, "import_path": "warren_serve.app:build", "args": {"release": "s3://b/releases/demo/v1"}}
    running = instance(plain, OTHER, front)
    assert running.rolling_endpoint("demo") == "shop"
    assert running.rolling_endpoint("other") is None
    assert instance(plain).rolling_endpoint("demo") is None
    with pytest.raises(ServiceError, match="shop and twin roll in releases of 'demo': name the one"):
        instance(front, {**front, "name": "twin"}).rolling_endpoint("demo")
