"""The convert job between folders on a real S3 server."""

from pathlib import Path

import pytest

from bunny_oracle import checkpoint
from warren.cli.convert import main
from warren.models import load
from warren.storage import Location


def test_a_checkpoint_on_s3_is_imported_to_s3(
    s3_root: Location, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoint("bunny-qwen2")
    for file in source.iterdir():
        (s3_root / "bunny" / file.name).upload(file)
    tower = checkpoint("towers/siglip-tiny")
    command = ["import", str(s3_root / "bunny"), str(s3_root / "llava"), "--vision-tower", str(tower)]
    assert main("", command) == 0
    for stored in (s3_root / "llava").list():
        stored.store.download(stored.key, tmp_path / stored.name)
    assert load(tmp_path)[0].config.text_config.model_type == "qwen2"
    capsys.readouterr()
    assert main("", command) == 1
    assert "llava holds something already" in capsys.readouterr().err
    assert main("", ["import", str(s3_root / "nothing"), str(s3_root / "x")]) == 1
    assert "nothing holds no files" in capsys.readouterr().err
