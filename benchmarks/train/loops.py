"""The contestants that are not Warren, each in a process of its own: `-m benchmarks.train.loops NAME FOLDER STEPS`.

A loop yields at the end of every step, or the moments when they ended. Its batches are decoded and tokenised before the
clock starts; Warren's are not.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.train import workload
from warren.config import Resources
from warren.data.batch import BatchPart
from warren.data.manifest import dataset_folder, read_manifest
from warren.data.model_inputs import EncodedSample, tokenizer_from_json
from warren.data.stream import DatasetSource, Encoding, StreamSpec
from warren.models import TrainedTokenizer, build_model, freeze_all_but, inputs_of
from warren.train.kernels import choose_attention
from warren.train.objective import Objective, to_tensors
from warren.train.optimization import optimizer

Batch = dict[str, torch.Tensor]


class Workload:
    """Model, stage and batches, as Warren's own run builds them."""

    def __init__(self, folder: Path, steps: int) -> None:
        root = workload.root_of(folder)
        self.recipe = workload.recipe(steps)
        self.stage = self.recipe.require("pretrain")
        model = self.recipe.require("model")
        tokenizer = TrainedTokenizer(**json.loads((folder / "tokenizer.json").read_text()))
        self.inputs = inputs_of(model, tokenizer)
        self.model = build_model(model, tokenizer, self.stage.seed)
        freeze_all_but(self.model, self.stage.trainable)
        self.model.train()
        manifest = read_manifest(root, "mix@v1")
        source = DatasetSource(dataset_folder(root, "mix@v1"), manifest, manifest.rows)
        encoding = Encoding(self.inputs, tokenizer.json, self.stage.max_length_tokens)
        window = self.stage.shuffle_window_samples
        self._spec = StreamSpec((source,), encoding, workload.BATCH, self.stage.seed, window, num_steps=steps)
        self._tokenizer = tokenizer_from_json(tokenizer.json)

    def parts(self, resources: Resources) -> list[BatchPart]:
        """Return every step's batch as Warren cuts it."""
        reader = self._spec.reader(self._spec.cut(1, resources))
        return [parts[0] for read in self._spec.reads() for parts in reader.read(read)]

    def padded(self) -> list[list[Batch]]:
        """Return every step's micro-batches as a plain loader makes them: in order, padded to the longest."""
        reader = self._spec.reader(self._spec.cut(1, workload.PADDED))
        size = workload.PADDED.micro_batch_size
        steps = []
        for read in self._spec.reads():
            for batch, _ in reader.encode(read):
                steps.append([self._collate(batch[start : start + size]) for start in range(0, len(batch), size)])
        return steps

    def _collate(self, samples: list[EncodedSample]) -> Batch:
        ids = [torch.from_numpy(sample.input_ids).long() for sample in samples]
        labels = [torch.from_numpy(sample.labels).long() for sample in samples]
        pixels = torch.cat([torch.from_numpy(sample.pixels) for sample in samples])
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (self.inputs.image.mean, self.inputs.image.std)
        )
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.inputs.tokens.pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "pixel_values": (pixels.float() / 255.0 - mean) / std,
        }


def padded_loop(work: Workload) -> Iterator[float | None]:
    """Bunny's way without its trainer: padding to the longest, logits over the vocabulary at every place."""
    adam = optimizer(work.model, work.stage)
    for micro_batches in work.padded():
        for batch in micro_batches:
            (work.model(**batch).loss / len(micro_batches)).backward()
        torch.nn.utils.clip_grad_norm_(work.model.parameters(), work.stage.max_grad_norm)
        adam.step()
        adam.zero_grad()
        yield None


def hugging_face(work: Workload) -> Iterator[float | None]:
    """Bunny's own way: Hugging Face's trainer on DeepSpeed; the model's own loss."""
    from tempfile import TemporaryDirectory

    from transformers import Trainer, TrainerCallback, TrainingArguments

    batches = [batch for micro_batches in work.padded() for batch in micro_batches]
    per_step = workload.BATCH // workload.PADDED.micro_batch_size
    ended: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.perf_counter())

    class InOrder(Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(cast(torch.utils.data.Dataset[Batch], batches), batch_size=None)

    config = {
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": workload.PADDED.micro_batch_size,
        "gradient_accumulation_steps": per_step,
    }
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(batches) // per_step,
            per_device_train_batch_size=workload.PADDED.micro_batch_size,
            gradient_accumulation_steps=per_step,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            deepspeed=config,
            learning_rate=work.stage.learning_rate,
        )
        trainer = InOrder(work.model, arguments, train_dataset=batches, callbacks=[Clock()])
        trainer.train()
    yield from ended


def bare_deepspeed(work: Workload) -> Iterator[float | None]:
    """Warren's objective and batches in DeepSpeed's plainest loop."""
    from warren.compat.deepspeed import import_deepspeed
    from warren.train.engine import deepspeed_config

    parts = work.parts(workload.PACKED)
    cut = work._spec.cut(1, workload.PACKED)
    config = deepspeed_config(work.stage, workload.PACKED, cut)
    choose_attention(work.model, workload.PACKED)
    objective = Objective(work.model, work.inputs)
    deepspeed = import_deepspeed()
    engine, *_ = deepspeed.initialize(
        model=objective, optimizer=optimizer(work.model, work.stage), config=config, dist_init_required=False
    )
    batches = [[to_tensors(micro, torch.device("cpu")) for micro in part.micro_batches] for part in parts]
    for part, micro_batches in zip(parts, batches, strict=True):
        for number, tensors in enumerate(micro_batches):
            engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
            engine.backward(engine(**tensors) / part.num_supervised_tokens * cut.num_micro_batches)
            engine.step()
        yield None


LOOPS = {"padded": padded_loop, "hugging_face": hugging_face, "bare_deepspeed": bare_deepspeed}


def main(name: str, folder: Path, steps: int) -> None:
    """Run one contestant and print its steps' seconds and its peak memory."""
    torch.set_num_threads(workload.NUM_THREADS)
    if name != "padded":
        import torch.distributed as dist

        from warren.testbed import free_port

        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        dist.init_process_group("gloo", rank=0, world_size=1)
    ended = [ended_at or time.perf_counter() for ended_at in LOOPS[name](Workload(folder, steps))]
    seconds = [after - before for before, after in pairwise(ended)]
    print(json.dumps({"step_s": seconds, "peak_bytes": peak_bytes(os.getpid())}))


def peak_bytes(pid: int) -> int:
    """Return the largest resident size a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
