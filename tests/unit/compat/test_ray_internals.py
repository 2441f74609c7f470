"""Contracts with Ray: what `warren.compat.ray_*` takes for granted. No cluster is started."""

import json
import os
from collections.abc import Callable
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray._private.metrics_agent
import ray._private.state
import ray._private.worker
import ray.dashboard.modules.job.cli
import ray.dashboard.modules.job.job_supervisor
import ray.scripts.scripts
from ray._private import ray_constants
from ray._raylet import JobID, PlacementGroupID
from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.output_splitter import OutputSplitter
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants as train_constants
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.execution import callback as train_callbacks
from ray.train.v2._internal.execution.controller import controller, state
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from library_contracts import changed, holds, parameters
from warren.compat import ray_cli, ray_core, ray_data, ray_train
from warren.compat.ray_cli import client_variables, is_submission_message, process_title, quiet_submission, ray_command
from warren.compat.ray_core import (
    dashboard_address,
    job_placement_states,
    metrics_agents,
    staying_nodes,
    submitted_runtime_env,
)
from warren.compat.ray_data import Pace, deal_rows_in_turn, quieten_data, recount_resources, start_lasting_actors
from warren.compat.ray_train import ControllerMoments, ElasticTrainer, PlacementMoment, StayingNodes


def test_rays_program_is_where_its_entry_point_says() -> None:
    (program,) = [each for each in entry_points(group="console_scripts") if each.name == "ray"]
    module = ray_command()[2]
    assert program.value == f"{module}:main", changed(ray_command, f"Ray's program is {program.value} now")
    options = {option for parameter in ray.scripts.scripts.start.params for option in parameter.opts}
    wanted = {"--head", "--block", "--disable-usage-stats", "--metrics-export-port", "--temp-dir"}
    assert wanted <= options, changed(ray_command, f"`ray start` has no {sorted(wanted - options)}")


def test_clients_are_told_by_these_variables() -> None:
    from ray._common.usage import usage_constants
    from ray._private.authentication import authentication_token_setup as setup

    names = set(client_variables("http://127.0.0.1:1", "secret"))
    known = {"RAY_ADDRESS", setup.AUTH_MODE_ENV_VAR, "RAY_AUTH_TOKEN", usage_constants.USAGE_STATS_ENABLED_ENV_VAR}
    assert names == known, changed(client_variables, f"Ray reads {sorted(known - names)} now")
    assert client_variables("x", None)["RAY_AUTH_MODE"] == "disabled"


def test_processes_have_these_titles() -> None:
    from ray.data._internal.iterator import stream_split_iterator
    from ray.data._internal.logical.operators.map_operator import MapBatches
    from ray.train.v2._internal.execution.worker_group import worker

    for kind, module in {"worker": worker, "splitter": stream_split_iterator, "controller": controller}.items():
        name = process_title(kind).removeprefix("ray::")
        assert hasattr(module, name), changed(process_title, f"there is no actor {name} in {module.__name__} any more")
    assert MapBatches.__name__.startswith(process_title("reader").removeprefix("ray::")), changed(
        process_title, f"reading tasks are called {MapBatches.__name__} now"
    )


def test_a_submission_prints_these_messages() -> None:
    assert ray_constants.LOGGING_REDIRECT_STDERR_ENVIRONMENT_VARIABLE in quiet_submission(), changed(
        quiet_submission, "Ray reads another variable for where its processes log"
    )
    for message in ("Job submission server", "Next steps", "Query the", "Request the", "Tailing logs", "Job '"):
        assert holds(ray.dashboard.modules.job.cli, message), changed(
            is_submission_message, f"`ray job submit` does not print {message!r} any more"
        )
    assert is_submission_message("Job 'raysubmit_1' submitted successfully")
    assert not is_submission_message("step 3/10  loss 0.5")
    assert ray_cli.ADDRESS_VARIABLE == "RAY_ADDRESS"


def test_draining_nodes_are_told_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasattr(ray._private.state.GlobalState, "get_draining_nodes"), changed(
        staying_nodes, "GlobalState has no get_draining_nodes any more"
    )
    nodes = [{"NodeID": name, "Alive": name != "gone"} for name in ("head", "leaving", "gone")]
    monkeypatch.setattr(ray_core.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: {"leaving": 0})
    assert staying_nodes() == {"head"}


def test_nodes_name_their_metrics_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("NodeManagerAddress", "MetricsExportPort"):
        assert holds(ray._private.metrics_agent, f'node["{key}"]'), changed(metrics_agents, f"nodes have no {key}")
    nodes = [{"NodeManagerAddress": "10.0.0.1", "MetricsExportPort": 7, "Alive": alive} for alive in (True, False)]
    monkeypatch.setattr(ray_core.ray, "nodes", lambda: nodes)
    assert metrics_agents() == ["10.0.0.1:7"]


def test_the_dashboards_address_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasattr(ray._private.services, "get_webui_url_from_internal_kv"), changed(
        dashboard_address, "services has no get_webui_url_from_internal_kv any more"
    )
    stored: dict[tuple[str, object], bytes] = {}
    monkeypatch.setattr(ray.experimental.internal_kv, "_internal_kv_initialized", lambda: True)
    monkeypatch.setattr(
        ray.experimental.internal_kv, "_internal_kv_get", lambda key, namespace: stored.get((key, namespace))
    )
    assert dashboard_address() is None
    stored["webui:url", ray._private.ray_constants.KV_NAMESPACE_DASHBOARD] = b"10.0.0.1:8265"
    assert dashboard_address() == "10.0.0.1:8265", changed(dashboard_address, "the address has another key")


def test_placement_groups_end_with_their_jobs_id(monkeypatch: pytest.MonkeyPatch) -> None:
    job = JobID.from_int(7)
    group = PlacementGroupID.of(job).hex()
    assert group.endswith(job.hex()), changed(
        job_placement_states, f"group {group} of job {job.hex()} does not end with its id"
    )
    monkeypatch.setattr(ray_core.ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=job.hex))
    groups = {
        PlacementGroupID.of(JobID.from_int(6)).hex(): {"state": "CREATED"},
        group: {"state": "PENDING"},
        PlacementGroupID.of(job).hex(): {"state": "REMOVED"},
    }
    monkeypatch.setattr(ray_core.ray.util, "placement_group_table", lambda: groups)
    assert job_placement_states() == {"PENDING"}
    groups[group] = {"state": "CREATED"}
    assert job_placement_states() == {"CREATED"}


def test_a_jobs_driver_finds_its_runtime_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holds(ray.dashboard.modules.job.job_supervisor, "RAY_JOB_CONFIG_JSON_ENV_VAR: json.dumps("), changed(
        submitted_runtime_env, "the job supervisor sets the job's configuration elsewhere"
    )
    assert submitted_runtime_env() == {}
    name = ray._private.worker.RAY_JOB_CONFIG_JSON_ENV_VAR
    monkeypatch.setenv(name, json.dumps({"runtime_env": {"env_vars": {"A": "1"}}}))
    assert submitted_runtime_env() == {"env_vars": {"A": "1"}}, changed(submitted_runtime_env, f"Ray sets {name} now")


def test_keys_may_repeat_by_this_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_OVERRIDE_JOB_RUNTIME_ENV"
    assert holds(ray._private.worker, f'os.getenv("{name}") == "1"'), changed(
        ray_core.job_keys_may_repeat, f"ray.init does not read {name} any more"
    )
    monkeypatch.setenv(name, "0")
    with ray_core.job_keys_may_repeat():
        assert os.environ[name] == "1"
    assert os.environ[name] == "0"


def test_the_scheduling_loop_calls_its_callbacks() -> None:
    assert hasattr(ExecutionCallback, "on_execution_step"), changed(Pace, "ExecutionCallback has no on_execution_step")
    assert holds(StreamingExecutor, "callback.on_execution_step(self)"), changed(
        Pace, "the loop does not call on_execution_step any more"
    )
    assert "custom_execution_callback_classes" in DataContext.__dataclass_fields__, changed(
        Pace, "DataContext has no custom_execution_callback_classes any more"
    )


def test_blocks_of_one_row_are_dealt_in_turn() -> None:
    splitter: Any = SimpleNamespace(_num_output=[0, 0, 0])
    dealt = []
    for _ in range(7):
        assert hasattr(OutputSplitter, "_select_next_output_index"), changed(
            deal_rows_in_turn, "OutputSplitter chooses its outputs elsewhere"
        )
        chosen = OutputSplitter._select_next_output_index(splitter)
        splitter._num_output[chosen] += 1
        dealt.append(chosen)
    assert dealt == [0, 1, 2, 0, 1, 2, 0], changed(deal_rows_in_turn, f"rows are dealt as {dealt}")
    stream: Any = SimpleNamespace(context=DataContext())
    deal_rows_in_turn(stream)
    assert stream.context.target_max_block_size == 1
    assert stream.context.custom_execution_callback_classes == [Pace]


def test_locality_does_not_change_the_order_of_rows() -> None:
    assert holds(OutputSplitter.start, "options.preserve_order"), changed(
        deal_rows_in_turn, "OutputSplitter does not look at preserve_order when it starts"
    )


def test_the_coordinator_counts_anew_when_asked() -> None:
    actor = default_autoscaling_coordinator._AutoscalingCoordinatorActor
    assert parameters(actor.get_reserved_resources) == ["requester_id", "recompute"], changed(
        recount_resources, f"get_reserved_resources takes {parameters(actor.get_reserved_resources)} now"
    )
    maker = default_autoscaling_coordinator.get_or_create_autoscaling_coordinator
    assert parameters(maker) == [], changed(recount_resources, "the coordinator is found with arguments now")


def test_a_lost_answer_of_the_coordinator_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    method = SimpleNamespace(remote=lambda *names, recompute: asked.append((*names, recompute)))
    coordinator = SimpleNamespace(get_reserved_resources=method)
    monkeypatch.setattr(ray_data, "get_or_create_autoscaling_coordinator", lambda: coordinator)
    monkeypatch.setattr(ray_data.ray, "get", lambda value, timeout: asked.append(timeout))
    recount_resources(2.0)
    assert asked == [("", True), 2.0]


def test_two_actors_of_ray_data_last() -> None:
    from ray.data._internal import stats

    assert callable(stats.get_or_create_stats_actor), changed(start_lasting_actors, "the stats actor is gone")
    assert holds(ray.actor, "def __ray_ready__"), changed(start_lasting_actors, "actors have no __ray_ready__")


def test_ray_data_can_be_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"enable_progress_bars", "print_on_execution_start", "raise_original_map_exception"}
    missing = names - set(DataContext.__dataclass_fields__)
    assert not missing, changed(quieten_data, f"DataContext has no {sorted(missing)} any more")


def test_the_elastic_policy_counts_workers_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = ElasticScalingPolicy._count_possible_workers
    assert parameters(counted) == ["reserved_resources"], changed(StayingNodes, f"it takes {parameters(counted)} now")
    policy = StayingNodes(ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 2}))
    for staying, room in (({"head", "other"}, 3), ({"head"}, 1), (set(), 0)):
        monkeypatch.setattr(ray_train, "staying_nodes", lambda staying=staying: staying)
        offers = {"head": {"CPU": 3.0}, "other": {"CPU": 4.0}}
        assert policy._count_possible_workers(offers) == room, changed(StayingNodes, f"on {staying} it is not {room}")
    for method in ("make_decision_for_running_worker_group", "make_decision_for_non_running_worker_group"):
        assert holds(getattr(ElasticScalingPolicy, method), "self._count_possible_workers(reserved_resources)"), (
            changed(StayingNodes, f"{method} counts workers in another way")
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_create_default_callbacks", []),
        ("_register_sigint_handler", ["controller"]),
        ("_initialize_and_run_controller", ["controller_init_kwargs"]),
    ],
)
def test_the_trainer_has_what_is_overridden(name: str, expected: list[str]) -> None:
    method: Callable[..., Any] | None = getattr(TorchTrainer, name, None)
    assert method is not None, changed(ElasticTrainer, f"TorchTrainer has no {name} any more")
    assert parameters(method) == expected, changed(ElasticTrainer, f"{name} takes {parameters(method)} now")


def test_the_trainer_leaves_nothing_detached() -> None:
    made = ElasticTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))._create_default_callbacks()
    cleaner = placement_group_callback.PlacementGroupCleanerCallback
    assert made, changed(ElasticTrainer, "there are no default callbacks any more")
    assert not any(isinstance(callback, cleaner) for callback in made)
    assert holds(TorchTrainer._create_default_callbacks, cleaner.__name__), changed(
        ElasticTrainer, "the cleaner is not among the default callbacks: look for where it is started now"
    )
    assert holds(TorchTrainer.fit, "scaling_policy="), changed(ElasticTrainer, "the policy is passed in another way")


def test_a_resize_is_a_state_of_its_own_before_the_workers_end() -> None:
    assert parameters(train_callbacks.ControllerCallback.after_controller_state_update) == [
        "previous_state",
        "current_state",
    ], changed(ControllerMoments, "after_controller_state_update takes other arguments")
    assert holds(controller, '"after_controller_state_update", previous_state, state'), changed(
        ControllerMoments, "the controller does not call after_controller_state_update in this way"
    )
    calls: list[str] = []

    class Moments(ControllerMoments):
        def before_resize(self) -> None:
            calls.append("resize")

        def before_restart(self) -> None:
            calls.append("restart")

    error: Any = None
    for current in (
        state.ResizingState(error),
        state.RestartingState(error),
        state.ReschedulingState(error),
        state.RunningState(),
    ):
        Moments().after_controller_state_update(state.RunningState(), current)
    assert calls == ["resize", "restart", "restart"]


def test_a_worker_group_knows_its_placement_group() -> None:
    path = "placement_group_handle.placement_group"
    assert holds(placement_group_callback, path), changed(
        PlacementMoment, f"Ray Train itself does not read {path} any more"
    )
    assert parameters(train_callbacks.WorkerGroupCallback.after_worker_group_start) == ["worker_group"], changed(
        PlacementMoment, "after_worker_group_start takes other arguments"
    )
    noted: list[Any] = []

    class Moment(PlacementMoment):
        def placed(self, group: Any) -> None:
            noted.append(group)

    handle = SimpleNamespace(placement_group="group")
    group: Any = SimpleNamespace(get_worker_group_state=lambda: SimpleNamespace(placement_group_handle=handle))
    Moment().after_worker_group_start(group)
    assert noted == ["group"]


def test_the_controllers_pace_is_set_by_these_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for set_pace, name in (
        (ray_train.look_after_workers_every, train_constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR),
        (ray_train.reconsider_workers_after, train_constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR),
    ):
        monkeypatch.delenv(name, raising=False)
        set_pace(0.5)
        assert os.environ.get(name) == "0.5", changed(set_pace, f"Ray Train reads {name} now")
        set_pace(9)
        assert os.environ[name] == "0.5"  # what somebody set stays
        monkeypatch.delenv(name)
