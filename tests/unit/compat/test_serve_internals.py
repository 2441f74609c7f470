"""Contracts with Ray Serve: what `warren.compat.ray_serve` takes for granted. No cluster is started."""

import inspect
from typing import Any

import ray.serve._private.application_state
from ray import serve
from ray._private.runtime_env import packaging
from ray.dashboard import runtime_env_redaction
from ray.dashboard.modules.serve import sdk
from ray.serve._private import constants, replica
from ray.serve.handle import DeploymentHandle

from library_contracts import changed, holds, parameters
from warren.compat import ray_serve
from warren.compat.ray_serve import (
    GRPC_MESSAGE_LIMIT_BYTES,
    SERVE_BY_HAPROXY,
    RoutesBuiltLate,
    dashboard_client,
    is_redacted,
    is_shipped_package,
    reason_in,
    streaming_by_grpc,
    streaming_by_object,
)


class Routes(RoutesBuiltLate):
    def build_routes(self) -> Any:
        return "routes"


def test_a_replica_builds_its_routes_after_its_constructor() -> None:
    name = replica.SERVE_BUILD_ASGI_APP_METHOD
    assert hasattr(RoutesBuiltLate, name), changed(RoutesBuiltLate, f"Serve calls {name} now")
    assert getattr(Routes(), name)() == "routes"
    wrapped: Any = serve.ingress()(Routes)  # Serve refuses classes without its method
    assert issubclass(wrapped, Routes)


def test_handles_choose_between_grpc_and_objects() -> None:
    assert "_by_reference" in parameters(DeploymentHandle.options), changed(
        streaming_by_grpc, "DeploymentHandle.options has no _by_reference any more"
    )

    class Handle:
        def options(self, **options: Any) -> dict[str, Any]:
            return options

    assert streaming_by_grpc(Handle()) == {"stream": True, "_by_reference": False}
    assert streaming_by_object(Handle()) == {"stream": True, "_by_reference": True}


def test_grpc_takes_messages_of_this_size() -> None:
    limit = constants.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH
    assert limit >= GRPC_MESSAGE_LIMIT_BYTES, changed(
        streaming_by_object, f"gRPC between replicas takes {limit} bytes, not {GRPC_MESSAGE_LIMIT_BYTES}"
    )


def test_serve_takes_haproxy_from_this_variable() -> None:
    source = inspect.getsource(constants)
    for name, value in SERVE_BY_HAPROXY.items():
        assert hasattr(constants, name), f"Serve reads another variable than {name} for HAProxy"
        assert f'os.environ.get("{name}", "0") == "{value}"' in source, f"{name}={value} means something else now"


def test_the_dashboards_client_reads_and_applies_configurations() -> None:
    client = sdk.ServeSubmissionClient
    assert parameters(client)[0] == "dashboard_head_address", changed(dashboard_client, "it takes another argument")
    for method in ("get_serve_details", "deploy_applications"):
        assert hasattr(client, method), changed(dashboard_client, f"ServeSubmissionClient has no {method} any more")


def test_left_out_values_are_recognised() -> None:
    mark = runtime_env_redaction.REDACTED_PLACEHOLDER
    assert is_redacted({"env_vars": {"KEYS": mark}}), changed(is_redacted, f"the dashboard writes {mark!r} now")
    assert not is_redacted({"env_vars": {"KEYS": "abc"}})


def test_packages_that_a_job_uploaded_are_recognised() -> None:
    uri = f"gcs://{packaging.RAY_PKG_PREFIX}0123.zip"
    assert is_shipped_package(uri), changed(is_shipped_package, f"packages are called {uri} now")
    assert not is_shipped_package("s3://bucket/code.zip")


def test_status_messages_hold_tracebacks() -> None:
    assert holds(ray.serve._private.application_state, "traceback.format_exc()"), changed(
        reason_in, "Serve's status messages hold no tracebacks any more"
    )
    message = "Traceback:\n  warren.errors.ReleaseError: no such release\n\nThe above exception …\n"
    assert reason_in(message, "warren.errors") == "warren.errors.ReleaseError: no such release"
    assert reason_in("\n", "warren.errors") == "no reason was given"
    assert ray_serve.reason_in("a\nb", "none") == "b"
