"""A pod of the rendered manifests runs as the manifest says: confined, watched, started again, cut off, removed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kuberay_manifests import REPOSITORY, render
from pods.manifest import Manifests, deployment_plan
from pods.network import PodNetwork
from pods.pod import RunningPod

STORAGE = "warren-object-storage"
KEYS = {"AWS_ACCESS_KEY_ID": "warren", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test"}
PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "weed")
WAYS = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
able = sys.platform == "linux" and os.geteuid() == 0 and all(shutil.which(name, path=WAYS) for name in PROGRAMS)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not able, reason=f"needs Linux, root and {', '.join(PROGRAMS)}"),
]


@pytest.fixture
def network() -> Iterator[PodNetwork]:
    made = PodNetwork()
    made.create()
    yield made
    made.remove()


@pytest.fixture
def storage(network: PodNetwork) -> Iterator[RunningPod]:
    plan = deployment_plan(Manifests(render(REPOSITORY / "tests" / "pods" / "overlay"), {STORAGE: KEYS}), STORAGE)
    with TemporaryDirectory(prefix="warren-pod-") as folder:
        pod = RunningPod(plan, "storage", network.add(), Path(folder), {"another": "10.93.0.9"})
        pod.start()
        until(pod, lambda: pod.ready)
        yield pod
        pod.delete()


def until(pod: RunningPod, condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, pod.log.read_text()[-2000:]
        pod.tend()
        time.sleep(0.2)


def says(pod: RunningPod, script: str) -> str:
    """Run a script in the pod and return what it prints into the pod's log."""
    before = len(pod.log.read_bytes())
    assert pod.execute(["bash", "-c", f"{script}; echo said"]).wait(30) == 0
    return pod.log.read_bytes()[before:].decode()


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def test_a_pod_is_what_its_manifest_says(storage: RunningPod, network: PodNetwork) -> None:
    inside = says(
        storage, "id; hostname; cat /etc/hosts; touch /x; touch /tmp/x && echo wrote; cat /proc/1/cmdline; env"
    )
    assert "uid=1000(warren)" in inside
    assert "another" in inside
    assert "cannot touch '/x'" in inside
    assert "wrote" in inside
    assert "weed" in inside.partition("wrote")[2]  # the first process of the pod
    assert KEYS["AWS_SECRET_ACCESS_KEY"] in inside

    storage.kill()  # its volumes stay
    assert not storage.ready
    until(storage, lambda: storage.ready)
    assert storage.restarts == 1
    assert "/tmp/x" in says(storage, "ls /tmp/x")

    network.cut(storage.place)
    until(storage, lambda: not storage.ready)
    network.mend(storage.place)
    until(storage, lambda: storage.ready)
    assert storage.restarts == 1  # nothing but readiness asks this pod

    assert storage.place.namespace in namespaces()
    PodNetwork().remove()  # as the next run does, if this one was killed
    assert storage.place.namespace not in namespaces()
    until(storage, lambda: storage._process is not None and storage._process.poll() is not None)
