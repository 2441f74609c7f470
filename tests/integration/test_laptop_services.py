"""The S3 server of the demo: alone on its folder, and gone with whoever started it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from warren.errors import ServiceError
from warren.testbed import S3Server

_START = """
import sys, time
from pathlib import Path
from warren.testbed import S3Server
with S3Server(Path(sys.argv[1])) as server:
    print(server._process.pid, flush=True)
    time.sleep(300)
"""


def test_a_folder_has_one_server_and_a_killed_starter_leaves_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _START, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        server = psutil.Process(int(starter.stdout.readline()))
        with pytest.raises(ServiceError, match="another S3 server uses"):
            S3Server(tmp_path).start()
        starter.kill()
    patience = time.monotonic() + 60
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < patience, "the server outlives who started it"
        time.sleep(0.1)
    with S3Server(tmp_path):
        pass
