"""Ray Serve's dashboard client, its ways between replicas, and routes that a replica builds.

Ray is imported inside the functions: who only reads a Serve configuration needs none of it.
"""

from typing import Any

GRPC_MESSAGE_LIMIT_BYTES = 4 << 20
_SHIPPED = "gcs://_ray_pkg_"
_REDACTED = "<redacted>"

SERVE_BY_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
"""Serve's proxies are HAProxy.

Why: An endpoint file can ask for it. No configuration of Serve can: its processes read the variable when they start.
Upstream: `RAY_SERVE_ENABLE_HA_PROXY` in `ray/serve/_private/constants.py` of Ray 2.60.
If it breaks: Endpoints that ask for HAProxy get Serve's own proxy. Look up the variable's new name.
"""


class RoutesBuiltLate:
    """A Serve ingress whose routes its replica builds, by `build_routes`, after its constructor.

    Why: The routes need what the constructor read from storage. `serve.ingress(app)` would need them when the class is
        defined, and its builder function knows nothing of the replica's object.
    Upstream: `serve.ingress` without an app in `ray/serve/api.py` and `SERVE_BUILD_ASGI_APP_METHOD` in
        `ray/serve/_private/replica.py` of Ray 2.60; introduced for Serve's own language-model applications
        (https://github.com/ray-project/ray/pull/63183 shows its use).
    If it breaks: Pass a builder function to `serve.ingress` (https://github.com/ray-project/ray/pull/52892) that
        builds the service, too.
    """

    def build_routes(self) -> Any:
        """Return the ASGI application; Serve asks once."""
        raise NotImplementedError

    def __serve_build_asgi_app__(self) -> Any:
        """Answer Serve."""
        return self.build_routes()


def streaming_by_grpc(handle: Any) -> Any:
    """Return a deployment's handle whose answers stream by gRPC between the replicas.

    Why: As Ray objects, the pieces of an answer cost more (docs/adr/0005 has measurements). Messages over
        `GRPC_MESSAGE_LIMIT_BYTES` are refused.
    Upstream: The option `_by_reference` of `DeploymentHandle.options` in `ray/serve/handle.py` of Ray 2.60, from
        https://github.com/ray-project/ray/pull/59908.
    If it breaks: Return `handle.options(stream=True)`: answers stay right, and cost more.
    """
    return handle.options(stream=True, _by_reference=False)


def streaming_by_object(handle: Any) -> Any:
    """Return a deployment's handle whose questions and answers travel as Ray objects, of any size.

    Why: Serve's gRPC between replicas refuses a question with large images.
    Upstream: As `streaming_by_grpc`; the limit is `RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH` in
        `ray/serve/_private/constants.py` of Ray 2.60.
    If it breaks: Return `handle.options(stream=True)` as long as Ray objects are the default.
    """
    return handle.options(stream=True, _by_reference=True)


def dashboard_client(url: str) -> Any:
    """Return a client of a cluster's Serve REST API, with `get_serve_details` and `deploy_applications`.

    Why: It knows the cluster's token and the API's paths. Ray's public Python API applies no declarative configuration
        to a cluster that runs.
    Upstream: `ServeSubmissionClient` in `ray/dashboard/modules/serve/sdk.py` of Ray 2.60, which `serve deploy` uses.
    If it breaks: The REST API itself is documented (`/api/serve/applications/`): ask it by HTTP.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    return ServeSubmissionClient(url)


def is_redacted(runtime_env: Any) -> bool:
    """Tell whether the dashboard left values out of a runtime environment.

    Why: A configuration that is read and written back would lose them, API keys among them.
    Upstream: `REDACTED_PLACEHOLDER` in `ray/dashboard/runtime_env_redaction.py` of Ray 2.60, from
        https://github.com/ray-project/ray/pull/65226.
    If it breaks: Match the new placeholder. Without it a release could write placeholders into a running endpoint.
    """
    return _REDACTED in str(runtime_env)


def is_shipped_package(uri: str) -> bool:
    """Tell whether a job uploaded a package, rather than that somebody keeps it at an address.

    Why: A release replaces the code that an earlier job brought along by its own job's, and keeps other modules.
    Upstream: `RAY_PKG_PREFIX` in `ray/_private/runtime_env/packaging.py` of Ray 2.60.
    If it breaks: Match the new form. Without it a new release would run an earlier job's code.
    """
    return uri.startswith(_SHIPPED)


def reason_in(message: str, marker: str) -> str:
    """Return the line of a status message of Serve that says what went wrong.

    Why: Serve's messages hold whole tracebacks as text, and have no other field for the reason.
    Upstream: `ApplicationDetails.message` in `ray/serve/schema.py` of Ray 2.60, filled with `traceback.format_exc()`
        in `ray/serve/_private/application_state.py` and `deployment_state.py`.
    If it breaks: The error shows another line of the traceback. Take the last line that names the error.

    Args:
        marker: What lines about errors of interest contain; the last line counts where none does.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    known = [line for line in lines if marker in line]
    return (known or lines or ["no reason was given"])[-1]
