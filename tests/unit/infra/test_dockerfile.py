"""What can be said of the image without building it."""

import re

import pytest

from kuberay_manifests import REPOSITORY, SOURCES, cluster_spec, load, ray_resources

DOCKER = REPOSITORY / "infra" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in DOCKERFILE.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
CREDENTIAL_NAME = re.compile(r"secret|token|password|access_key|credential", re.IGNORECASE)


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def ray_version() -> str:
    (version,) = (text.removeprefix("RAY_VERSION=") for text in arguments("ARG") if text.startswith("RAY_VERSION="))
    return version


def test_the_base_image_is_the_pinned_ray() -> None:
    assert arguments("FROM")[-1] == "rayproject/ray:${RAY_VERSION}-py311-${DEVICE}"
    constraints = REPOSITORY / "constraints.txt"
    if not constraints.is_file():
        pytest.skip("constraints.txt does not exist")
    (pinned,) = re.findall(r"^ray(?:\[[^]]*])?==(\S+)", constraints.read_text(), re.MULTILINE)
    assert ray_version() == pinned


@pytest.mark.parametrize("source", SOURCES)
def test_the_manifests_name_the_version_of_the_image(source: str) -> None:
    versions = {cluster_spec(resource)["rayVersion"] for resource in ray_resources(load(source))}
    assert versions == {ray_version()}


def test_the_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    user, _, _ = arguments("USER")[-1].partition(":")
    assert int(user) > 0


def test_the_image_carries_no_credentials() -> None:
    assert not [text for text in arguments("ARG") + arguments("ENV") if CREDENTIAL_NAME.search(text)]
    assert arguments("ADD") == []


def test_the_build_context_is_an_allow_list() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == {"pyproject.toml", "constraints.txt", "README.md", "platform", "serve", "jobs"}
    copied = {word for text in arguments("COPY") for word in text.split()[:-1] if not word.startswith("--")}
    assert copied == allowed


def test_jobs_run_from_where_the_manifests_expect_them() -> None:
    assert arguments("WORKDIR")[-1] == "/opt/warren"
    for resource in ray_resources(load("files")):
        spec = cluster_spec(resource)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert group["template"]["spec"]["containers"][0]["workingDir"] == "/opt/warren"
