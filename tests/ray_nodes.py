"""Further nodes for a Ray cluster on this machine: raylets with addresses, folders and deaths of their own."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from warren.compat.ray_cli import ray_command
from warren.testbed import RayHead, free_port

_ATTEMPTS, _JOIN_TIMEOUT_S, _POLL_S = 3, 120, 0.2
_PORTS = (  # passed, because a raylet waits only seconds for agents that find their own
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "object-manager-port",
    "node-manager-port",
)


class RayNode:
    """One `ray start --address` process; it and what it starts have a temporary folder of their own, as on a machine.

    On a busy machine a raylet may give up while its agents start. It is started again then, as Kubernetes would.

    Args:
        number: From 2 on: its address is 127.0.0.NUMBER.
    """

    def __init__(self, head: RayHead, folder: Path, number: int, num_cpus: int, object_store_bytes: int) -> None:
        self._head, self._address = head, f"127.0.0.{number}"
        for attempt in range(_ATTEMPTS):
            self._process = self._start(folder / str(attempt), num_cpus, object_store_bytes)
            if self._joins():
                return
            self.kill()
        raise RuntimeError(f"no raylet came up at {self._address}: look at {folder}")

    def _start(self, folder: Path, num_cpus: int, object_store_bytes: int) -> "subprocess.Popen[bytes]":
        folder.mkdir(parents=True)
        taken: set[int] = set()
        environment = {**os.environ, **self._head.environment, "TMPDIR": str(folder)}
        environment.pop("RAY_ADDRESS")
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        command = [
            *ray_command("start", "--block", "--disable-usage-stats"),
            f"--address={self._head.driver_address}",
            f"--node-ip-address={self._address}",
            f"--num-cpus={num_cpus}",
            f"--object-store-memory={object_store_bytes}",
            f"--temp-dir={folder}",
            *(f"--{name}={free_port(taken)}" for name in _PORTS),
        ]
        with (folder / "node.log").open("wb") as log:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _joins(self) -> bool:
        """Wait until the cluster lists the node; False when its process ended before."""
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._alive_ids():
                return True
            time.sleep(_POLL_S)
        return False

    def _alive_ids(self) -> list[str]:
        listed = httpx.get(f"{self._head.dashboard_url}/api/v0/nodes", timeout=30).json()["data"]["result"]["result"]
        return [row["node_id"] for row in listed if row["node_ip"] == self._address and row["state"] == "ALIVE"]

    def announce_its_end(self, deadline_s: int) -> None:
        """Tell Ray that the node is to be taken back, as an autoscaler does when the cloud gives notice.

        The node stays until then, or until nothing runs on it any more.
        """
        (node_id,) = self._alive_ids()
        command = [
            *ray_command("drain-node", f"--address={self._head.driver_address}"),
            *(f"--node-id={node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=notice"),
            f"--deadline-remaining-seconds={deadline_s}",
        ]
        subprocess.run(command, env={**os.environ, **self._head.environment}, check=True)

    def kill(self) -> None:
        """End every process of the node at once, as a power cut would."""
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self._process.pid)
            for process in [first, *first.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
