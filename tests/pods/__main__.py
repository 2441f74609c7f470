"""Show on nodes of this machine's own what the manifests promise; the last line is one JSON object.

make test-cluster           or: make test-cluster ARGS="training"
"""

import argparse
import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kuberay_manifests import REPOSITORY, render
from pods.autoscaling import Autoscaling
from pods.endpoint import API_KEYS, EndpointOnPods
from pods.manifest import Manifests
from pods.network import PodNetwork
from pods.outcome import Outcome
from pods.ray_cluster import Machine, note
from pods.training import STORAGE, TrainingRuns, start_storage

_FOLDER = Path("/tmp/warren-test-cluster")  # short, because a pod's logs are looked up here; one run at a time
_CLIENT_KEY = secrets.token_hex(16)
_PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "kubectl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], help=f"which parts, of {', '.join(PARTS)} (default: training)"
    )
    options = parser.parse_args()
    if reason := refusal():
        print(f"test-cluster: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is removed then, too
    network = PodNetwork()
    try:
        network.create()
    except OSError as error:
        print(f"test-cluster: {error}", file=sys.stderr)
        return 2
    outcome = run(options.parts or ["training"], network)
    print(json.dumps(outcome.to_json()))
    return 0 if outcome.is_good else 1


def refusal() -> str | None:
    """Say why this machine cannot run pods; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "this needs Linux and root: it makes network, process and mount namespaces"
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"not on PATH: {', '.join(missing)} (Debian: iproute2 and util-linux; kubectl renders the overlay)"
    return None


def run(parts: list[str], network: PodNetwork) -> Outcome:
    """Run parts of the test, and remove everything that they made."""
    started, outcome = time.monotonic(), Outcome()
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir()
    manifests = Manifests(render(REPOSITORY / "tests" / "pods" / "overlay"), _secrets(_CLIENT_KEY))
    machine = Machine(network, _FOLDER, manifests)
    try:
        storage = start_storage(machine)
        for part in parts:
            try:
                PARTS[part](machine, outcome)
            except (OSError, RuntimeError) as error:  # the other parts may hold all the same
                note(f"{part}: {error}")
                outcome.failed[part] = str(error).partition("\n")[0]
            machine.remove_all_but(storage)
    finally:
        machine.remove_all_but()
        network.remove()
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def _secrets(client_key: str) -> dict[str, dict[str, str]]:
    """The Secrets that infra/README.md tells people to make."""
    return {
        STORAGE: {"AWS_ACCESS_KEY_ID": "warren", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)},
        API_KEYS: {"digests": hashlib.sha256(client_key.encode()).hexdigest()},
    }


def train(machine: Machine, outcome: Outcome) -> None:
    """Three nodes train a small run in peace, and again while nodes and links fail."""
    runs = TrainingRuns(machine, outcome)
    runs.undisturbed()
    runs.disturbed()


def drain(machine: Machine, outcome: Outcome) -> None:
    """Nodes train a small run in peace, and again while one of them leaves in good order and another comes."""
    runs = TrainingRuns(machine, outcome)
    runs.undisturbed()
    runs.drained()


def serve(machine: Machine, outcome: Outcome) -> None:
    """An endpoint over two nodes loses one of them, and then the head."""
    EndpointOnPods(machine, outcome, _CLIENT_KEY).lose_a_node_and_the_head()


def autoscale(machine: Machine, outcome: Outcome) -> None:
    """A head without workers runs jobs: Ray's own autoscaler gets it workers, and takes them back."""
    Autoscaling(machine, outcome).from_none_to_two_and_back()


PARTS: dict[str, Callable[[Machine, Outcome], None]] = {
    "training": train,
    "drain": drain,
    "endpoint": serve,
    "autoscaling": autoscale,
}

if __name__ == "__main__":
    sys.exit(main())
