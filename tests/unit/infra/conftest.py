"""Fixtures of the infra tests: the CRDs, found by `WARREN_KUBERAY_CRDS` or beside the repository."""

import os
from pathlib import Path

import pytest

from crd_schema import CrdSchemas, load_crd_schemas
from kuberay_manifests import CLUSTER_FIELDS, REPOSITORY

CRD_FOLDER_VARIABLE = "WARREN_KUBERAY_CRDS"


@pytest.fixture(scope="session")
def crd_schemas() -> CrdSchemas:
    """The strict validators of KubeRay's kinds. Too large for the repository, so absent on some machines."""
    folder = Path(os.environ.get(CRD_FOLDER_VARIABLE) or REPOSITORY.parent / "shared" / "kuberay-crds")
    paths = [folder / f"ray.io_{kind.lower()}s.yaml" for kind in CLUSTER_FIELDS]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"no KubeRay CRDs in {folder}: set {CRD_FOLDER_VARIABLE} to a folder that has them")
    return load_crd_schemas(paths)
