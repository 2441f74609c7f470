"""Child processes that work for this one over a pipe: started alike, whatever they do."""

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection


def start_child(entry: str) -> "tuple[subprocess.Popen[bytes], Connection]":
    """Start a process that runs `entry(descriptor)`, and return it with this end of the pipe.

    Args:
        entry: `module:function`. The function gets the file descriptor of its own end, and returns when that is closed.
    """
    module, function = entry.split(":")
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            # By path: modules that a job shipped are found as here, and the starter's program does not run again.
            [sys.executable, "-c", f"from {module} import {function}; {function}({theirs.fileno()})"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # whoever interrupts the starter is answered by it alone
        )
    return process, Connection(ours.detach())
