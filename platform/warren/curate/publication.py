"""The files of a selection's version that are not its samples, and what is deleted once the version is complete.

Several jobs may work on one version. Their files have the identities of their selections in their names, and the first
that writes the manifest wins.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from warren.curate.report import write_card
from warren.data.manifest import ABOUT, MANIFEST, Manifest, write_about
from warren.errors import DataError, NotFoundError
from warren.storage import Location, digest_bytes

_CERTIFICATE = "contamination-{}.json"
_IO_THREADS = 16


def write_certificate(folder: Location, identity: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the certificate beside the dataset, and return its summary for the manifest."""
    target = folder / _CERTIFICATE.format(identity[:8])
    target.put_json({"steps": steps})
    # A step that found nothing proves as much as one that removed what it found.
    clean = [step for step in steps if step["removed"] or step["samples_matched"] == 0]
    return {
        "file": target.name,
        "sha256": digest_bytes(target.read_bytes()),
        "evaluations": _searched_for(steps),
        "free_of": _searched_for(clean),
        "samples_matched": sum(step["samples_matched"] for step in steps),
        "removed": all(step["removed"] for step in steps),
    }


def _searched_for(steps: list[dict[str, Any]]) -> dict[str, str]:
    return {each["dataset"]: each["digest"] for step in steps for each in step["evaluations"]}


def completed(folder: Location, identity: str) -> Manifest | None:
    """Return the manifest if this version is complete and is the same selection; then delete what is not of it.

    Raises:
        DataError: It is another selection.
    """
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_json())
    except NotFoundError:
        return None
    if manifest.selection.get("identity") != identity:
        raise DataError(
            f"{folder} exists with {manifest.rows} samples and is kept as it is, but it was made of other datasets, "
            "embeddings or steps: give the new selection another version (--set curate.version=…)"
        )
    try:
        (folder / ABOUT).read_json()
    except NotFoundError:  # behind the manifest, so that a job that comes second never writes it
        write_about(folder, manifest)
    write_card(folder, manifest, f"report-{identity[:8]}")
    _tidy(folder, manifest, identity)
    return manifest


def _tidy(folder: Location, manifest: Manifest, identity: str) -> None:
    """Delete the workspaces, and what attempts with other options made."""
    listed = {(folder / shard.file.path).uri for shard in manifest.shards if not shard.dataset}
    own = {f"report-{identity[:8]}", _CERTIFICATE.format(identity[:8])}
    spare = []
    for file in folder.list():
        first = file.uri.removeprefix(f"{folder.uri}/").partition("/")[0]
        # Only files that a selection makes; what people put beside the dataset stays.
        is_made = first.startswith(("shard-", "report-", "contamination-")) or first == "curation"
        if is_made and first not in own and file.uri not in listed:
            spare.append(file)
    with ThreadPoolExecutor(_IO_THREADS) as pool:
        list(pool.map(lambda file: file.store.delete(file.key), spare))
