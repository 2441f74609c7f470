"""Going on with a published Bunny: imported, fine-tuned with LoRA, interrupted, resumed, merged and exported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bunny_oracle import checkpoint
from factories import colour_sample, tiny_recipe, tiny_stage, write_dataset
from train_processes import train_plainly
from warren.cli.convert import main as convert
from warren.cluster.train.preparation import prepare
from warren.cluster.train.stage import train_stage
from warren.config import Duration, LoraConfig, Resources
from warren.data.model_inputs import Inputs
from warren.errors import ConfigError, TrainingError
from warren.models import load
from warren.storage import Location
from warren.train.checkpoint import METRICS_FILE
from warren.train.initial_model import InitialModel
from warren.train.run import Run

ONE = Resources(num_workers=1, cpus_per_worker=0.5, data_cpus_per_task=0.5, zero_stage=2, micro_batch_size=8)
STAGE = tiny_stage(
    "train@v1",
    template="bunny",
    trainable=("projector", "language_model"),
    lora=LoraConfig(rank=4, alpha=8),  # with dropout: its noise must go on too
    duration=Duration(steps=4),
    max_length_tokens=256,
    warmup_fraction=0.0,
    checkpoint_every_steps=2,
    keep_checkpoints=9,
)
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


def test_an_imported_bunny_is_tuned_resumed_merged_and_exported(s3_root: Location, tmp_path: Path) -> None:
    tower = str(checkpoint("towers/siglip-tiny"))
    source, imported = s3_root / "models" / "bunny", str(tmp_path / "imported")
    assert convert("", ["import", str(checkpoint("bunny-qwen2")), imported, "--vision-tower", tower]) == 0
    for file in Path(imported).iterdir():
        (source / file.name).upload(file)
    write_dataset(s3_root, "train", [colour_sample(i) for i in range(32)])
    recipe = tiny_recipe(finetune=STAGE)
    brief = tiny_recipe(finetune=STAGE.model_copy(update={"template": None}))
    with pytest.raises(ConfigError, match=r"the recipe's template is 'brief', but .* was trained on 'bunny'"):
        train_stage(brief, "finetune", ONE, s3_root, "ft", model=source)

    begun = Run(s3_root / "runs" / "ft")
    run = train_plainly(prepare(recipe, "finetune", ONE, begun, None, InitialModel.of_folder(source)))
    whole = losses(run, 4)
    manifest = run.checkpoints.at(4) / "manifest.json"
    manifest.store.delete(manifest.key)
    with pytest.raises(TrainingError, match=r"exists with another origin .*/bunny'} → None"):
        train_stage(recipe, "finetune", ONE, s3_root, "ft")
    train_stage(recipe, "finetune", ONE, s3_root, "ft", model=source)
    assert losses(run, 4) == whole  # bit by bit
    assert whole[-1] < whole[0]

    model, adapter = download(run, 4, "model", tmp_path), download(run, 4, "adapter", tmp_path)
    assert Inputs.load(model) == Inputs.load(Path(imported))  # template, tokens and padding
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == source.uri
    assert convert("", ["merge", str(adapter), str(source), str(tmp_path / "merged")]) == 0
    one, other, before = weights(model), weights(tmp_path / "merged"), weights(Path(imported))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    changed = {name for name in one if not torch.equal(one[name], before[name])}
    assert not any(name.startswith("vision_tower.") or "embed_tokens" in name for name in changed)
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in changed
    assert convert("", ["export", "--layout", "bunny", str(model), str(tmp_path / "bunny")]) == 0
    assert load(tmp_path / "bunny")[0].config.text_config.model_type == "qwen2"


def losses(run: Run, step: int) -> list[float]:
    manifest = run.checkpoints.read(step)
    entry = next(entry for entry in manifest.files if entry.path.endswith(METRICS_FILE))
    lines = (run.checkpoints.at(step) / entry.path).read_bytes().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def download(run: Run, step: int, folder: str, target: Path) -> Path:
    for entry in run.checkpoints.read(step).below(folder):
        source = run.checkpoints.at(step) / entry.path
        local = target / "out" / folder / Path(entry.path).name
        local.parent.mkdir(parents=True, exist_ok=True)
        source.store.download(source.key, local)
    return target / "out" / folder
