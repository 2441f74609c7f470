"""Model folders: who may read them, and which files an index may name."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from warren.errors import UnsafePathError
from warren.models.llava_layout import new_folder
from warren.models.tensors import read_folder


def test_the_umask_decides_who_reads_a_converted_model(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with new_folder(tmp_path / "model") as folder:
            save_file({"x": torch.ones(2)}, folder / "model.safetensors")  # writes mode 0600
            (folder / "config.json").write_text("{}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o644}


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd", "a/../../x"])
def test_an_index_names_files_of_its_own_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "model").mkdir()
    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"x": place}}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafePathError, match="inside its own folder"):
        read_folder(tmp_path / "model")
