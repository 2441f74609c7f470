"""Ray's command line and processes, for those who start a cluster and import nothing of Ray."""

import sys

ADDRESS_VARIABLE = "RAY_ADDRESS"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
_TITLES = {
    "worker": "ray::RayTrainWorker",
    "reader": "ray::Map",
    "splitter": "ray::SplitCoordinator",
    "controller": "ray::TrainController",
    "task": "ray::curate",
    "embedder": "ray::MapWorker(MapBatches(_Embedder))",
}
_NOISE = ("PYTHON worker processes have been started", "core_worker.cc")
_SUBMISSION = (
    "ray job ",
    "Job '",
    "Running entrypoint",
    "Job submission server",
    "Next steps",
    "Query the",
    "Request the",
    "Tailing logs",
    "Submitted",
    "----",
)


def ray_command(*arguments: str) -> list[str]:
    """Return the command line that runs Ray's program with this Python.

    Why: The program `ray` on the path may belong to another environment, and may not be there at all.
    Upstream: `ray/scripts/scripts.py` of Ray 2.60; the distribution's entry point `ray` names it.
    If it breaks: Take the module that the entry point `ray` in Ray's `entry_points.txt` names now.
    """
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


def client_variables(dashboard_url: str, token: str | None) -> dict[str, str]:
    """Return the variables that make a process a client of a cluster, and its nodes its nodes.

    Why: The authentication mode is always set. Unset, it depends on a file in the home folder that any local
        `ray.init()` may have written.
    Upstream: `ray/_private/authentication/authentication_token_setup.py` and `ray/_common/usage/usage_lib.py` of Ray
        2.60.
    If it breaks: Look up the variables in Ray's guide to token authentication.

    Args:
        dashboard_url: Where `ray job submit` sends jobs.
        token: What clients must send; None switches authentication off.
    """
    authentication = {"RAY_AUTH_MODE": "token", TOKEN_VARIABLE: token} if token else {"RAY_AUTH_MODE": "disabled"}
    return {ADDRESS_VARIABLE: dashboard_url, **authentication, "RAY_USAGE_STATS_ENABLED": "0"}


def process_title(kind: str) -> str:
    """Return what the command lines of a cluster's processes of a kind begin with.

    Why: The chaos run kills a training worker, a data reader, the data splitter or the training controller, and a test
        kills a task or an actor of a selection. They find them by the titles that Ray gives its processes.
    Upstream: The classes `RayTrainWorker`, `TrainController`, `SplitCoordinator` and `MapWorker`, and the map
        operators' task names, of Ray 2.60.
    If it breaks: Run `ps` while a run trains, and write down the new titles.

    Args:
        kind: `worker`, `reader`, `splitter` or `controller`; of a selection `task` or `embedder`.
    """
    return _TITLES[kind]


def quiet_submission() -> dict[str, str]:
    """Return the variables with which `ray job submit` prints no log lines of its own.

    Why: The demo shows what the jobs print.
    Upstream: `ray/_private/ray_constants.py` of Ray 2.60 reads `RAY_LOG_TO_STDERR`.
    If it breaks: The demo prints more lines. Look for the variable that took this one's place.
    """
    return {"RAY_LOG_TO_STDERR": "0"}


def is_submission_message(line: str) -> bool:
    """Tell the messages of `ray job submit` from what the job prints.

    Why: Both come on one stream, and the demo shows the job's lines only.
    Upstream: `ray/dashboard/modules/job/cli.py` of Ray 2.60 prints them.
    If it breaks: The demo prints more lines. Add the new messages.
    """
    text = line.strip()
    return text.startswith(_SUBMISSION) or " -- " in text or any(word in text for word in _NOISE)
