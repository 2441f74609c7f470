"""Endpoint files: typed, strict, in layers; what they say is what Serve and the application get."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from serve_config import serve_config_errors
from warren.cli.job import config_folders, job_parser, load_job, run_job
from warren.cluster.serve.endpoint_config import EndpointSource, EndpointSpec, first_config
from warren.config import Resources, load_config
from warren.errors import ConfigError
from warren_serve.endpoint_file import EndpointFile, with_endpoint_file
from warren_serve.front import FrontSettings
from warren_serve.replicas import replicas_that_fit
from warren_serve.settings import EndpointSettings, ServeSettings

FOLDERS = config_folders("endpoints")


def loaded(name: str, *sets: str) -> EndpointFile:
    return load_config(EndpointFile, name, FOLDERS, sets)


def written(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


def spec_of(file: EndpointFile) -> EndpointSpec:
    return EndpointSpec(file.application, file.route_prefix, file.application_args(), file.serve.to_config())


@pytest.mark.parametrize("name", ["laptop", "demo", "cluster", "kuberay", "kuberay-gpu"])
def test_named_files_are_valid_for_serve_and_autoscale(name: str) -> None:
    spec = spec_of(loaded(name))
    source = EndpointSource("s3://b/releases/demo", "demo")
    config = first_config(source, Resources(num_workers=1), "127.0.0.1", 8000, spec)
    assert serve_config_errors(json.dumps(config)) == []
    settings = FrontSettings.parse(config["applications"][0]["args"])
    assert settings.max_replicas is None or settings.min_replicas < settings.max_replicas
    assert settings.rollout.step_s <= 60
    assert settings.web_page is (name == "demo")


def test_a_file_goes_over_the_one_it_extends_and_set_over_both(tmp_path: Path) -> None:
    path = written(tmp_path, "extends: demo\nsettings: {max_replicas: 3}\nserve: {http: {port: 9000}}\n")
    file = loaded(path, "settings.max_replicas=5", "serve.logging.encoding=JSON")
    args = file.application_args()
    policy = {"steps": [0.2, 1.0], "step_s": 4.0, "max_step_s": 20.0, "min_requests": 10, "max_slowdown": 10.0}
    assert args.pop("rollout") == {**policy, "poll_s": 0.5}
    assert args == {"min_replicas": 1, "max_replicas": 5, "web_page": True, "max_new_tokens": 4}
    assert file.name == "demo"
    assert file.serve.to_config() == {
        "proxy_location": "HeadOnly",
        "http_options": {"port": 9000},
        "logging_config": {"log_level": "WARNING", "encoding": "JSON", "enable_access_log": True},
    }
    assert loaded(written(tmp_path, "description: nothing else\n")).name == "mine"


def test_every_setting_of_the_endpoint_can_be_in_a_file(tmp_path: Path) -> None:
    assert set(ServeSettings.model_fields) - set(EndpointSettings.model_fields) == {"release"}
    assert EndpointFile.model_fields["settings"].annotation is EndpointSettings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings: {max_replica: 3}\n", "unknown key 'settings.max_replica'; did you mean 'max_replicas'?"),
        ("settings: {release: s3://b/releases/demo/v1}\n", "unknown key 'settings.release'"),
        ("setting: {}\n", "unknown key 'setting'; did you mean 'settings'?"),
        ("settings: {num_slots: '8'}\n", "settings.num_slots: Input should be a valid integer"),
        ("settings: {min_replicas: 3, max_replicas: 2}\n", "min_replicas (3) is more than max_replicas (2)"),
        ("settings: {image_hosts: ['http://x/']}\n", "is not a host"),
        ("release: ../x\n", "is not a name"),
        ("route_prefix: chat\n", "route_prefix"),
        ("application: chat-engine-x\n", "'-engine-' is for applications of engines"),
        ("rollout: {steps: [0.5, 0.1, 1.0]}\n", "rollout.steps: [0.5, 0.1, 1.0] does not ascend"),
        ("rollout: {step: 3}\n", "unknown key 'rollout.step'; did you mean 'steps'?"),
        ("rollout: {step_s: 100, max_step_s: 5}\n", "max_step_s (5) is less than step_s (100)"),
        ("serve: {proxy_location: Everywhere}\n", "serve.proxy_location: Input should be 'HeadOnly', 'EveryNode'"),
        ("serve: {http: {port: 70000}}\n", "serve.http.port"),
        ("serve: {http: {ssl_keyfile: /k}}\n", "ssl_keyfile and ssl_certfile go together"),
        ("serve: {logging: {log_level: LOUD}}\n", "serve.logging.log_level"),
        ("extends: mine.yaml\n", "extends itself"),
        ("[]\n", "a mapping of keys is expected"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(written(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_does_not_exist_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no endpoint named 'lapto'; did you mean 'laptop'"):
        loaded("lapto")


def test_an_endpoint_serves_one_release() -> None:
    assert loaded("laptop").require_release("demo") == "demo"
    assert loaded("laptop", "release=demo").require_release() == "demo"
    with pytest.raises(ConfigError, match="'laptop' names no release: add `release: NAME`"):
        loaded("laptop").require_release()
    with pytest.raises(ConfigError, match="serves releases of 'other', but the recipe releases 'demo'"):
        loaded("laptop", "release=other").require_release("demo")


def test_an_applications_args_may_name_an_endpoint_file(tmp_path: Path) -> None:
    path = written(tmp_path, "release: demo\nsettings: {num_slots: 3, max_replicas: 2}\nrollout: {step_s: 5}\n")
    expected = {"release": "demo", "num_slots": 3, "max_replicas": 2, "rollout": {"step_s": 5.0}}
    assert with_endpoint_file({"endpoint": path}) == expected
    assert with_endpoint_file({"endpoint": path, "num_slots": 9}) == {**expected, "num_slots": 9}
    assert with_endpoint_file({"release": "s3://b/releases/x"}) == {"release": "s3://b/releases/x"}
    with pytest.raises(ConfigError, match="names no release: add `release: NAME`"):
        with_endpoint_file({"endpoint": "laptop"})
    with pytest.raises(ConfigError, match="must be the name or path of an endpoint file, not 3"):
        with_endpoint_file({"endpoint": 3})


def test_haproxy_is_asked_for_only_where_the_nodes_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    file = loaded("laptop", "serve.haproxy=true")
    with pytest.raises(ConfigError, match=r"takes from the environment of its nodes: start them with (RAY_\w+)=1") as e:
        file.check_haproxy()
    name = str(e.value).split("start them with ")[1].split("=")[0]
    loaded("laptop").check_haproxy()
    monkeypatch.setitem(os.environ, name, "1")
    file.check_haproxy()


@pytest.mark.parametrize(
    ("nodes", "settings", "fit"),
    [
        ([{"CPU": 4.0}], {}, 3),
        ([{"CPU": 1.0}], {}, 1),
        ([{"CPU": 0.0}], {}, 1),
        ([], {"min_replicas": 2}, 2),
        ([{"CPU": 1.9}, {"CPU": 1.9}, {"CPU": 4.0}], {}, 5),
        ([{"CPU": 2.0}], {"num_cpus": 0.1}, 19),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0}], {"num_gpus": 1.0}, 7),
        ([{"CPU": 64.0, "GPU": 2.0}], {"num_gpus": 0.5}, 3),
        ([{"CPU": 8.0}], {"num_gpus": 1.0}, 1),
    ],
)
def test_as_many_replicas_as_fit_less_one_for_the_next_release(
    nodes: list[dict[str, float]], settings: dict[str, Any], fit: int
) -> None:
    assert replicas_that_fit(EndpointSettings(**settings), nodes) == fit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--endpoint", "lapto"], "no endpoint named 'lapto'; did you mean 'laptop'?"),
        (["--endpoint", "laptop", "--set", "endpoint.settings.num_slot=1"], "did you mean 'num_slots'?"),
        (["--endpoint", "laptop", "--set", "endpoint.release=other"], "serves releases of 'other'"),
        (["--endpoint", "laptop", "--set", "endpoint.rollout.steps=[1.0, 0.5]"], "does not end at 1.0"),
        (["--set", "endpoint.settings.num_slots=1"], "name one with --endpoint"),
        (["--override-gate", " "], "--override-gate is empty"),
    ],
)
def test_the_job_refuses_before_anything_starts(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    def no_cluster(*_: object) -> None:
        raise AssertionError("connected to Ray")

    monkeypatch.setattr("warren.cluster.session.connect", no_cluster)
    monkeypatch.setattr("warren.cli.job.end_quietly", lambda: None)
    monkeypatch.setenv("WARREN_STORAGE", str(tmp_path))
    monkeypatch.syspath_prepend(str(repository / "jobs"))
    job = runpy.run_path(str(repository / "jobs" / "release.py"), run_name="job")
    assert run_job(job["main"], "", arguments, extend=job["options"], check=job["check"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_jobs_take_no_overrides_of_an_endpoint() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'endpoint'|endpoint"):
        load_job(job_parser("").parse_args(["--set", "endpoint.settings.num_slots=1"]))
