"""Which versions an endpoint runs, written by whoever deploys them, so that nobody removes them meanwhile.

releases/NAME/deployments/ENDPOINT.json    {"versions": ["run-00000500", …]}
"""

from collections.abc import Sequence

from warren.config import check_name
from warren.errors import NotFoundError
from warren.release.records import read_record
from warren.release.removal_marks import check_not_removed
from warren.storage import Location


def deployment_marker(root: Location, name: str, endpoint: str) -> Location:
    """Return where an endpoint says what it runs.

    Raises:
        ConfigError: One of the two is not a name.
    """
    return deployments_folder(root, name) / f"{check_name(endpoint, 'endpoint')}.json"


def deployments_folder(root: Location, name: str) -> Location:
    """Return the folder of a release's markers."""
    return root / "releases" / check_name(name, "release") / "deployments"


def write_deployment(root: Location, name: str, endpoint: str, versions: Sequence[str]) -> None:
    """Say which versions an endpoint runs or is about to start; before it starts them.

    Args:
        versions: All of them; none removes the marker.

    Raises:
        ReleaseError: One is being removed; the marker names it all the same.
    """
    marker = deployment_marker(root, name, endpoint)
    if not versions:
        marker.store.delete(marker.key)
        return
    marker.put_json({"versions": sorted({check_name(version, "version") for version in versions})})
    for version in versions:
        check_not_removed(root, name, version)


def read_deployment(root: Location, name: str, endpoint: str) -> tuple[str, ...]:
    """Return the versions that an endpoint says it runs; none where it never said so."""
    try:
        return read_record(deployment_marker(root, name, endpoint), lambda value: tuple(value["versions"]))
    except NotFoundError:
        return ()


def read_deployments(root: Location, name: str) -> dict[str, tuple[str, ...]]:
    """Return the versions that run, by endpoint."""
    markers = [each for each in deployments_folder(root, name).list() if each.name.endswith(".json")]
    endpoints = [marker.name.removesuffix(".json") for marker in markers]
    return {endpoint: read_deployment(root, name, endpoint) for endpoint in endpoints}
