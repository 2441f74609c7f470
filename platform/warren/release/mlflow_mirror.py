"""A copy of the registry in MLflow's model registry, for people who look there. Storage stays the truth.

Every version becomes a version of the registered model of the same name: its source is the release's URI, its tags are
the release's lineage, scores and verdict. MLflow numbers versions itself, so the tag `warren.version` has the name.
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from warren.errors import ConfigError, ServiceError
from warren.release.registry import Registry
from warren.release.release import Release
from warren.release.verdict import GateVerdict

VERSION_TAG = "warren.version"
_MAX_TAG_CHARS = 4000  # MLflow's SQL stores refuse more than 5,000


@dataclass(frozen=True)
class MirrorChanges:
    """What a mirroring changed: versions by Warren's names, and aliases with theirs."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str | None], ...] = ()


def mirror(registry: Registry, tracking_uri: str) -> MirrorChanges:
    """Make a registered model of MLflow say what the registry says. Versions that others made there are left alone.

    Args:
        tracking_uri: Of the MLflow server.

    Raises:
        ConfigError: MLflow is not installed.
        ServiceError: The server refuses, or does not answer.
    """
    try:
        mlflow, exceptions = (importlib.import_module(name) for name in ("mlflow", "mlflow.exceptions"))
    except ImportError:
        raise ConfigError("MLflow is not installed: pip install 'warren-vlm[trackers]'") from None
    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    try:
        return _mirror(client, registry)
    except exceptions.MlflowException as error:
        raise ServiceError(f"MLflow at {tracking_uri} did not take {registry.name}: {error}") from None


def _mirror(client: Any, registry: Registry) -> MirrorChanges:
    releases = {release.version: release for release in registry.releases()}
    name = registry.name
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"A copy of {registry.folder}, made by Warren")
    there = _versions(client, name)
    added = [version for version in releases if version not in there]
    for version in added:
        tags = _tags(releases[version], registry.verdict(version))
        folder = registry.folder / version
        tags["warren.folder"] = folder.uri
        source = folder.uri if folder.is_s3 else f"warren://{name}/{version}"  # MLflow takes no folder of a machine
        there[version] = client.create_model_version(name, source, tags=tags, await_creation_for=0).version
    moved = _move_aliases(client, registry.aliases(), name, there)
    removed = [version for version in there if version not in releases]
    for version in removed:
        client.delete_model_version(name, there[version])
    return MirrorChanges(tuple(added), tuple(removed), moved)


def _versions(client: Any, name: str) -> dict[str, str]:
    """Return MLflow's numbers of the versions that Warren mirrored, by Warren's names."""
    numbers: dict[str, str] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        for each in page:
            if VERSION_TAG in each.tags:
                numbers[each.tags[VERSION_TAG]] = each.version
        token = page.token
        if not token:
            return numbers


def _move_aliases(
    client: Any, aliases: Mapping[str, str], name: str, numbers: Mapping[str, str]
) -> tuple[tuple[str, str | None], ...]:
    present = client.get_registered_model(name).aliases
    ours = set(numbers.values())
    moved: list[tuple[str, str | None]] = []
    for alias, version in aliases.items():
        if version in numbers and str(present.get(alias)) != str(numbers[version]):
            client.set_registered_model_alias(name, alias, numbers[version])
            moved.append((alias, version))
    for alias, number in present.items():
        if alias not in aliases and number in ours:
            client.delete_registered_model_alias(name, alias)
            moved.append((alias, None))
    return tuple(moved)


def _tags(release: Release, verdict: GateVerdict | None) -> dict[str, str]:
    lineage = release.lineage
    facts: dict[str, Any] = {
        "created": release.created,
        "run": lineage.run,
        "step": lineage.step,
        "stage": lineage.stage,
        "recipe": lineage.fingerprint,
        "code": lineage.git_revision,
        "datasets": [dataset.reference for dataset in lineage.datasets],
        "parents": [parent.description for parent in lineage.parents],
        "packages": dict(lineage.packages),
        "verdict": verdict.lines() if verdict else None,
        **{f"score.{each}": value for each, value in release.scores.items()},
    }
    named = {
        f"warren.{key.replace('/', '.')}": value for key, value in facts.items() if value not in (None, "", [], {})
    }
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in named.items()}
    return {VERSION_TAG: release.version, **{key: text[:_MAX_TAG_CHARS] for key, text in texts.items()}}
