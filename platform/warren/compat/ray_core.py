"""Ray's nodes, jobs and placement groups, as far as its public API does not show them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_OVERRIDE_VARIABLE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"


def staying_nodes() -> set[str]:
    """Return the ids of the nodes that are alive and that nobody is taking away.

    Why: A node that is being drained is alive, but nothing starts on it any more. `ray.nodes()` does not tell.
    Upstream: `GlobalState.get_draining_nodes` in `ray/_private/state.py` of Ray 2.60, as Ray Train itself uses it
        (`ray/train/v2/_internal/execution/preemption.py`, https://github.com/ray-project/ray/pull/63807).
    If it breaks: Do as `_get_draining_nodes` in Ray Train's `preemption.py` does. Returning all alive nodes is safe,
        but an elastic run then waits for a node until it is gone.
    """
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    draining: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return alive - draining.keys()


def metrics_agents() -> list[str]:
    """Return `host:port` of the metrics agent of every node that is alive.

    Why: The endpoint's `/metrics` asks all agents. Ray has no call that lists them.
    Upstream: `PrometheusServiceDiscoveryWriter` in `ray/_private/metrics_agent.py` of Ray 2.60 reads the same two keys
        of `ray.nodes()`.
    If it breaks: Take host and port from where Ray writes `prom_metrics_service_discovery.json` from.
    """
    return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]


def dashboard_address() -> str | None:
    """Return `host:port` of the cluster's dashboard as the cluster has it now; None without one.

    Why: `ray.init` remembers the address that was there when it connected. `ray start` writes it only after the
        dashboard answers, so a driver that connects in between remembers none for good.
    Upstream: `get_webui_url_from_internal_kv` in `ray/_private/services.py` of Ray 2.60, which `ray.init` itself calls
        once (`ray/_private/node.py`).
    If it breaks: Return None: then such a driver has to be started again.
    """
    address: str | None = ray._private.services.get_webui_url_from_internal_kv()
    return address or None


def job_placement_states() -> set[str]:
    """Return the states of what this job has asked the cluster for, such as `PENDING`; empty at first.

    Why: A job that waits for room and one whose processes are starting look alike. A placement group's id ends with
        the id of its job; the table names the job nowhere else.
    Upstream: `ray._raylet.PlacementGroupID.of(job_id)` of Ray 2.60: 18 bytes, of which the last 4 are the job's; and
        `ray.util.placement_group_table`.
    If it breaks: Return an empty set: the run then tells by the free resources alone whether it waits.
    """
    job = ray.get_runtime_context().get_job_id()
    groups = ray.util.placement_group_table().items()
    return {facts["state"] for group, facts in groups if group.endswith(job)} - {"REMOVED"}


def submitted_runtime_env() -> dict[str, Any]:
    """Return the runtime environment that `ray job submit` gave this process; empty outside a job.

    Why: What outlives a job, as Serve's replicas do, needs the job's variables again, and Ray's API names only the
        runtime environment of the running driver, merged.
    Upstream: `RAY_JOB_CONFIG_JSON_ENV_VAR` in `ray/_private/runtime_env/constants.py` of Ray 2.60, set by
        `ray/dashboard/modules/job/job_supervisor.py`.
    If it breaks: Read what the job supervisor sets instead.
    """
    return dict(json.loads(os.environ.get(_JOB_VARIABLE) or "{}").get("runtime_env") or {})


@contextmanager
def job_keys_may_repeat() -> Iterator[None]:
    """Let `ray.init` inside take keys of a runtime environment that the job has as well.

    Why: `ray.init` refuses them, even if their values are equal.
    Upstream: `RAY_OVERRIDE_JOB_RUNTIME_ENV` in `ray/_private/worker.py` of Ray 2.60, from
        https://github.com/ray-project/ray/pull/39208.
    If it breaks: Leave out of the driver's runtime environment what `submitted_runtime_env` holds.
    """
    before = os.environ.get(_OVERRIDE_VARIABLE)
    os.environ[_OVERRIDE_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[_OVERRIDE_VARIABLE]
        if before is not None:
            os.environ[_OVERRIDE_VARIABLE] = before
