"""Which evaluation sets a dataset was searched for, as its `contamination-DIGEST.json` and those of its parents say.

A selection holds samples of its parents and no others, so it is free of what every one of its parents is free of.
"""

from typing import TypedDict

from warren.data.manifest import Manifest, dataset_folder, read_manifest
from warren.errors import NotFoundError
from warren.storage import Location


class DecontaminationRecord(TypedDict):
    """What a run, its checkpoints and its releases keep about one training dataset.

    Attributes:
        free_of: Digest of each evaluation set of which no image was found, or every one removed, by `name@version`.
        certificates: SHA-256 of each `contamination-DIGEST.json` that says so, by the dataset beside which it lies.
    """

    free_of: dict[str, str]
    certificates: dict[str, str]


def decontamination(root: Location, manifest: Manifest) -> DecontaminationRecord:
    """Return which evaluation sets a dataset is free of; both mappings are empty where nothing was searched for.

    Args:
        root: The storage root with the dataset and its parents. Nothing is known of a parent that was deleted.
    """
    parents = [_of(root, name) for name in manifest.selection.get("parents", {})]
    free_of = {
        name: digest
        for name, digest in (parents[0]["free_of"] if parents else {}).items()
        if all(parent["free_of"].get(name) == digest for parent in parents)
    }
    certificates = {name: digest for parent in parents for name, digest in parent["certificates"].items()}
    own = manifest.selection.get("certificate")
    if own:
        free_of |= own["free_of"]
        certificates[f"{manifest.name}@{manifest.version}"] = own["sha256"]
    return {"free_of": dict(sorted(free_of.items())), "certificates": dict(sorted(certificates.items()))}


def contaminated_samples(root: Location, manifest: Manifest, evaluation: str, digest: str) -> frozenset[str] | None:
    """Return the keys of an evaluation set's samples whose image or question was found in a dataset and left there.

    What was found in a parent may have been left out by a selection since; it is listed all the same.

    Args:
        root: The storage root with the dataset and its parents.
        evaluation: The evaluation set as `name@version`; `digest` is its digest.

    Returns:
        None, if the evaluation set was not looked for in the dataset or in one of its parents.
    """
    own = manifest.selection.get("certificate")
    if own and own["free_of"].get(evaluation) == digest:
        return frozenset()
    if own and own.get("evaluations", {}).get(evaluation) == digest:
        steps = (dataset_folder(root, f"{manifest.name}@{manifest.version}") / own["file"]).read_json()["steps"]
        return frozenset(key for step in steps for key in step.get("evaluation_samples", {}).get(evaluation, ()))
    keys: set[str] = set()
    parents = manifest.selection.get("parents", {})
    for reference in parents:
        try:
            of_parent = contaminated_samples(root, read_manifest(root, reference), evaluation, digest)
        except NotFoundError:
            return None
        if of_parent is None:
            return None
        keys |= of_parent
    return frozenset(keys) if parents else None


def _of(root: Location, reference: str) -> DecontaminationRecord:
    try:
        return decontamination(root, read_manifest(root, reference))
    except NotFoundError:
        return {"free_of": {}, "certificates": {}}
