"""Bunny's training replayed by Warren's own code: template, preprocessing, objective, schedule and engine."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from bunny_oracle import checkpoint
from warren.config import (
    LanguageModelConfig,
    LoraConfig,
    ModelConfig,
    Resources,
    StageConfig,
    VisionTowerConfig,
    ZeroStage,
)
from warren.data.batch import Cut, MicroBatch, cut_global_batch
from warren.data.importers.conversation import normalise_turns, read_messages
from warren.data.model_inputs import EncodedSample, tokenizer_from_json
from warren.data.sample import Sample
from warren.models import add_adapters, build_model, freeze_all_but, inputs_of, read_tokenizer, unfold_head
from warren.train.engine import TrainingEngine
from warren.train.objective import Objective, to_tensors
from warren.train.optimization import cosine_schedule, optimizer

ORACLE = Path(__file__).parent / "oracle" / "training"

_PRETRAIN = {"template": "plain", "trainable": ("projector",), "learning_rate": 1e-3}
_FINETUNE = {
    "trainable": ("projector", "language_model"),
    "image_padding": True,
    "learning_rate": 1e-3,
    "projector_learning_rate": 3e-4,
}
_LORA = {"learning_rate": 2e-3, "projector_learning_rate": 5e-4, "lora": LoraConfig(rank=8, alpha=16, dropout=0.0)}
_STAGES: dict[str, dict[str, Any]] = {
    "stage1": _PRETRAIN,
    "stage2_full": _FINETUNE,
    "stage2_full_accum": _FINETUNE,
    "stage2_lora": _FINETUNE | _LORA,
}


def steps_of(name: str) -> list[list[dict[str, Any]]]:
    """Return Bunny's log of a stage: for every optimizer step its micro-batches."""
    rows = json.loads((ORACLE / name / "log.json").read_text())["steps"]
    return [[row for row in rows if row["step"] == step] for step in range(1, rows[-1]["step"] + 1)]


def in_memory(name: str) -> str:
    """Return what a tensor of Bunny's is called in Warren's model."""
    name = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".lora_A.default.weight")
    name = name.replace(".lora_B.weight", ".lora_B.default.weight").replace("model.", "model.language_model.", 1)
    for number in (0, 2):
        old = f"model.language_model.mm_projector.{number}."
        name = name.replace(old, f"model.multi_modal_projector.linear_{number // 2 + 1}.")
    return name


class Replayed(NamedTuple):
    """What Warren got where Bunny logged.

    Attributes:
        losses: Of each step's micro-batches, their means over supervised tokens.
        rates: The learning rates that a step used, ascending.
        norms: Of each step's gradient, before clipping.
    """

    losses: list[list[float]]
    rates: list[list[float]]
    norms: list[float]
    state: dict[str, torch.Tensor]


class Replay:
    """A stage set up as Bunny's was.

    Args:
        name: The stage of the oracle.
        token_weighted: Micro-batches count by their tokens, as Warren's do, or alike, as Bunny's do.
        num_micro_batches: Into how many each of Bunny's steps is cut.
        base: A language model instead of the oracle's own.
    """

    def __init__(self, name: str, token_weighted: bool, num_micro_batches: int = 1, base: Path | None = None) -> None:
        self.name, self.token_weighted, self.num_micro_batches = name, token_weighted, num_micro_batches
        folder = base or checkpoint("base-llm-qwen2")
        tokenizer, _ = read_tokenizer(folder)
        config = ModelConfig(
            vision_tower=VisionTowerConfig(family="siglip", pretrained=str(checkpoint("towers/siglip-tiny"))),
            language_model=LanguageModelConfig(pretrained=str(folder)),
            template="bunny",
        )
        self.stage = StageConfig(dataset="oracle@v1", global_batch_size=8, **_STAGES[name])
        template = self.stage.template or config.template
        self.inputs = inputs_of(config, tokenizer).with_template(template, self.stage.image_padding)
        self.tokenizer: Tokenizer = tokenizer_from_json(tokenizer.json)
        self.model = build_model(config, tokenizer, seed=0)
        unfold_head(self.model)
        if self.stage.lora is not None:
            add_adapters(self.model, self.stage.lora, seed=0)
        freeze_all_but(self.model, self.stage.trainable)
        self._load_start()
        self.samples = {sample.key: sample for sample in self._samples()}

    def run(self, rank: int, world_size: int, zero_stage: ZeroStage = 2) -> Replayed:
        """Train as long as Bunny did; the only rank of a process group."""
        steps = steps_of(self.name)
        cut = Cut(world_size, self.num_micro_batches)
        resources = Resources(
            num_workers=world_size, zero_stage=zero_stage, micro_batch_size=8 // self.num_micro_batches
        )
        engine = TrainingEngine(Objective(self.model.train(), self.inputs), self.stage, resources, cut, len(steps))
        found = Replayed([], [], [], {})
        for rows in steps:
            keys = [key for row in rows for key in row["sample_ids"]]
            found.rates.append(sorted(set(engine._engine.get_lr())))
            found.losses.append(self._forward_backward(engine, keys))
            found.norms.append(engine.step()[0])
        return found._replace(state=engine.model_state())

    def losses_without_deepspeed(self) -> list[float]:
        """Return each step's loss under torch's own AdamW."""
        steps, objective = steps_of(self.name), Objective(self.model.train(), self.inputs)
        built = optimizer(self.model, self.stage)
        schedule = torch.optim.lr_scheduler.LambdaLR(built, cosine_schedule(len(steps), self.stage.warmup_fraction))
        losses = []
        for rows in steps:
            batch = self._micro_batch([key for row in rows for key in row["sample_ids"]])
            tensors = to_tensors(batch, torch.device("cpu"))
            loss = objective(**tensors) / len(tensors["targets"])
            built.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.max_grad_norm)
            built.step()
            schedule.step()
            losses.append(float(loss.detach()))
        return losses

    def _forward_backward(self, engine: TrainingEngine, keys: list[str]) -> list[float]:
        size = len(keys) // self.num_micro_batches
        groups = [keys[start : start + size] for start in range(0, len(keys), size)]
        batches = [self._micro_batch(group) for group in groups]
        counts = [int((batch.labels[:, 1:] >= 0).sum()) for batch in batches]
        losses = []
        for batch, count in zip(batches, counts, strict=True):
            total = sum(counts) if self.token_weighted else count * len(counts)
            is_last = batch is batches[-1]
            share = engine.forward_backward(to_tensors(batch, engine.device), total, is_last)
            losses.append(float(share) * total / count)
        return losses

    def _micro_batch(self, keys: list[str]) -> MicroBatch:
        encoded = [self.samples[key] for key in keys]
        [part] = cut_global_batch(
            0, 0, encoded, [], Cut(1, 1), self.inputs.tokens.pad_token_id, self.inputs.image.size_px
        )
        return part.micro_batches[0]

    def _samples(self) -> list[EncodedSample]:
        file = "pretrain.json" if self.name == "stage1" else "finetune.json"
        encoded = []
        for record in json.loads((ORACLE / "data" / file).read_text()):
            images = [ORACLE / "data" / "images" / record["image"]] if "image" in record else []
            turns = normalise_turns(read_messages(record["conversations"]), len(images))
            sample = Sample(record["id"], tuple(path.read_bytes() for path in images), turns, file)
            encoded.append(self.inputs.encode_sample(sample, self.tokenizer, 2048))
        return encoded

    def _load_start(self) -> None:
        files = {"stage1": "stage1/init", "stage2_lora": "stage2_lora/init"}
        tensors = load_file(ORACLE / f"{files.get(self.name, 'stage1/final')}.safetensors")
        found = self.model.load_state_dict({in_memory(name): value for name, value in tensors.items()}, strict=False)
        assert not found.unexpected_keys
