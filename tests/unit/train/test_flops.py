"""The FLOPs that a step is said to cost are those PyTorch counts when it is run."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from factories import tiny_model_config
from warren.config import LoraConfig, ModelPart
from warren.data.batch import MicroBatch
from warren.data.template import IGNORED
from warren.models import add_adapters, build_model, freeze_all_but, inputs_of, train_tokenizer
from warren.train.flops import FlopsCount
from warren.train.objective import Objective, to_tensors

TOKENIZER = train_tokenizer(["USER: a b ASSISTANT: c d"] * 3, 320)
EVERYTHING: tuple[ModelPart, ...] = ("vision_tower", "projector", "language_model")
SAMPLES, TEXT, SUPERVISED = 3, 24, 9


@pytest.mark.parametrize(
    ("trainable", "lora"),
    [
        (("projector",), None),
        (("projector", "language_model"), None),
        (EVERYTHING, None),
        (("projector", "language_model"), LoraConfig(rank=4, alpha=8, dropout=0.0)),
    ],
)
def test_the_count_is_pytorchs(trainable: tuple[ModelPart, ...], lora: LoraConfig | None) -> None:
    model = build_model(tiny_model_config(), TOKENIZER, seed=1)
    model.set_attn_implementation("eager")  # the counter knows matrix products
    if lora is not None:
        add_adapters(model, lora, 1)
    freeze_all_but(model, trainable)
    inputs = inputs_of(tiny_model_config(), TOKENIZER)
    images = inputs.tokens.tokens_per_image
    length = images + TEXT
    ids = torch.full((SAMPLES, length), 5)
    ids[:, :images] = TOKENIZER.image_token_id
    labels = torch.full_like(ids, IGNORED)
    labels[:, -SUPERVISED:] = 7
    pixels = torch.zeros(SAMPLES, 3, 32, 32, dtype=torch.uint8)
    lengths, numbers = np.full(SAMPLES, length), np.arange(SAMPLES)
    batch = MicroBatch(ids.numpy(), labels.numpy(), lengths, numbers, pixels.numpy())
    with FlopCounterMode(display=False) as counter:
        Objective(model, inputs)(**to_tensors(batch, torch.device("cpu"))).backward()
    said = FlopsCount.of(model).step(SAMPLES, SAMPLES * length, SAMPLES * length**2, SAMPLES * SUPERVISED)
    # The last block of the tower is run and thrown away, and gradients of its first layers' inputs are not needed.
    assert said.vision + said.text == pytest.approx(counter.get_total_flops(), rel=0.1)
