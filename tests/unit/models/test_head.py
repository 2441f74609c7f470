"""The head: loss and answers leave out what a language model was extended by, and it trains as its checkpoint did."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from bunny_oracle import checkpoint
from factories import colour_sample, text_sample
from warren.config import LanguageModelConfig, LoraConfig, ModelConfig, VisionTowerConfig
from warren.data.batch import Cut, MicroBatch, cut_global_batch
from warren.data.model_inputs import tokenizer_from_json
from warren.evaluate.multiple_choice import MultipleChoice
from warren.inference.engine import GenerationRequest, SamplingParams
from warren.inference.engine_options import EngineOptions
from warren.inference.transformers_engine.offline import generate_all
from warren.inference.transformers_engine.scheduler import Scheduler
from warren.models import (
    add_adapters,
    build_model,
    freeze_all_but,
    import_bunny,
    inputs_of,
    load_bundle,
    read_tokenizer,
    save_model,
    unfold_head,
)
from warren.models.head import Head, folded_state
from warren.train.objective import Objective, to_tensors

CPU = torch.device("cpu")
NUM_TOKENS = 420  # of the oracle's tokenizer; its language model has twelve rows more


def language_model(folder: Path, num_rows: int, tied: bool = False, minicpm: bool = False) -> Path:
    """Write the oracle's language model with that many rows."""
    shutil.copytree(checkpoint("base-llm-qwen2"), folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:num_rows].clone()
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": num_rows, "tie_word_embeddings": tied}
    if tied:
        del tensors["lm_head.weight"]
    if minicpm:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("_proj.bias")}
        config |= {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Trained:
    """A model on the oracle's language model, and the same computed without Warren's head: images spliced at -200."""

    def __init__(self, folder: Path) -> None:
        tokenizer, _ = read_tokenizer(folder)
        self.config = ModelConfig(
            vision_tower=VisionTowerConfig(family="siglip", pretrained=str(checkpoint("towers/siglip-tiny"))),
            language_model=LanguageModelConfig(pretrained=str(folder)),
        )
        self.tokenizer_json = tokenizer.json
        self.inputs = inputs_of(self.config, tokenizer)
        self.model: Any = build_model(self.config, tokenizer, seed=1)
        self.reference = reference(folder)
        self.image = self.inputs.tokens.image_token_id

    def unfolded(self) -> "Trained":
        unfold_head(self.model)
        freeze_all_but(self.model, ["projector", "language_model"])
        return self

    def micro_batch(self, packed_tokens: int | None = None) -> MicroBatch:
        samples = [colour_sample(0), text_sample(1), colour_sample(2)]
        encoded = [self.inputs.encode_sample(s, tokenizer_from_json(self.tokenizer_json), 512) for s in samples]
        cut = Cut.of(len(samples), 1, len(samples), packed_tokens)
        [part] = cut_global_batch(0, 0, encoded, [], cut, self.inputs.tokens.pad_token_id, self.inputs.image.size_px)
        return part.micro_batches[0]

    def expected_loss(self) -> torch.Tensor:
        """Return the summed loss of the samples, each alone, over the rows that the language model came with."""
        batch, total = self.micro_batch(), torch.zeros(())
        pixels = iter(batch.pixels)
        for ids, labels, length in zip(batch.input_ids, batch.labels, batch.lengths, strict=True):
            row, target = torch.from_numpy(ids[:length]).long(), torch.from_numpy(labels[:length]).long()
            embedded = self.reference.get_input_embeddings()(row.where(row != self.image, 0))
            if (row == self.image).any():
                image = (torch.from_numpy(next(pixels)).float()[None] / 255 - 0.5) / 0.5
                tower = self.model.model.vision_tower(image, output_hidden_states=True).hidden_states[-2]
                features = self.model.model.multi_modal_projector(tower)[0]
                embedded = embedded.masked_scatter((row == self.image)[:, None], features)
            logits = self.reference(inputs_embeds=embedded[None]).logits[0]
            total = total + functional.cross_entropy(logits[:-1], target[1:], reduction="sum")
        return total


def reference(folder: Path) -> Any:
    """Return the language model as transformers has it: with tied weights, and with MiniCPM's factors in Granite."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "minicpm":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    kept = (*sizes, "vocab_size", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "max_position_embeddings")
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "granite",
            **{key: config[key] for key in kept},
            embedding_multiplier=12.0,
            residual_multiplier=1.4 / config["num_hidden_layers"] ** 0.5,
            attention_multiplier=(config["hidden_size"] / config["num_attention_heads"]) ** -0.5,
            logits_scaling=config["hidden_size"] / 16,
        ),
        dtype=torch.float32,
    )
    found = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not found.unexpected_keys
    return model


@pytest.mark.parametrize("packed_tokens", [None, 256])
@pytest.mark.parametrize(
    ("num_rows", "tied"), [(NUM_TOKENS, False), (NUM_TOKENS, True), (NUM_TOKENS + 1, False), (NUM_TOKENS + 12, False)]
)
def test_the_softmax_is_over_the_rows_that_the_language_model_came_with(
    num_rows: int, tied: bool, packed_tokens: int | None, tmp_path: Path
) -> None:
    trained = Trained(language_model(tmp_path / "lm", num_rows, tied)).unfolded()
    assert len(trained.model.lm_head.weight) == max(num_rows, NUM_TOKENS + 1)
    expected = trained.expected_loss()
    torch.autograd.backward(expected)
    projector = trained.model.model.multi_modal_projector.linear_1.weight
    by_reference = projector.grad.clone()
    trained.model.zero_grad()
    loss = Objective(trained.model, trained.inputs)(**to_tensors(trained.micro_batch(packed_tokens), CPU))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(projector.grad, by_reference, rtol=1e-4, atol=1e-5)
    head = trained.reference.get_output_embeddings().weight.grad
    assert torch.allclose(trained.model.lm_head.weight.grad[:num_rows], head, rtol=1e-4, atol=1e-5)
    assert not trained.model.lm_head.weight.grad[num_rows:].any()


def test_adapters_and_long_batches_have_the_same_softmax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(language_model(tmp_path / "lm", NUM_TOKENS)).unfolded()
    expected = float(trained.expected_loss().detach())
    add_adapters(trained.model, LoraConfig(rank=4, alpha=8), seed=1)
    for rows_at_once in (256, 2):  # all logits at once, and a few at a time
        monkeypatch.setattr("warren.train.objective._MIN_ROWS", rows_at_once)
        monkeypatch.setattr("warren.train.objective._MAX_LOGITS", 1)
        loss = Objective(trained.model, trained.inputs)(**to_tensors(trained.micro_batch(), CPU))
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


def as_bunny(trained: Trained, folder: Path, target: Path) -> Any:
    """Load the same model from a Bunny checkpoint that was imported."""
    source = target / "bunny"
    shutil.copytree(folder, source)
    config = json.loads((folder / "config.json").read_text())
    tower = {"mm_vision_tower": str(checkpoint("towers/siglip-tiny")), "mm_hidden_size": 32}
    name = {"minicpm": "bunny-minicpm", "qwen2": "bunny-qwen2"}[config["model_type"]]
    (source / "config.json").write_text(json.dumps(config | tower | {"model_type": name}))
    tensors = load_file(source / "model.safetensors")
    for number, layer in enumerate(("linear_1", "linear_2")):
        module = trained.model.model.multi_modal_projector.get_submodule(layer)
        for kind, tensor in module.state_dict().items():
            tensors[f"model.mm_projector.{2 * number}.{kind}"] = tensor.clone()
    save_file(tensors, source / "model.safetensors")
    if name == "bunny-minicpm":  # its answers end with another token than the oracle's tokenizer has
        text = (source / "tokenizer.json").read_text().replace("<|endoftext|>", "</s>")
        (source / "tokenizer.json").write_text(text)
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            (source / file).write_text((source / file).read_text().replace("<|endoftext|>", "</s>"))
    import_bunny(source, target / "llava")
    return load_bundle(target / "llava")[0]


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize(
    ("minicpm", "tied", "num_rows"),
    [(True, True, NUM_TOKENS), (True, False, NUM_TOKENS), (False, True, NUM_TOKENS), (False, False, NUM_TOKENS + 12)],
)
def test_full_tuning_takes_the_steps_that_the_checkpoints_own_class_takes(
    minicpm: bool, tied: bool, num_rows: int, imported: bool, tmp_path: Path
) -> None:
    folder = language_model(tmp_path / "lm", num_rows, tied, minicpm)
    trained = Trained(folder)
    if imported:
        trained.model = as_bunny(trained, folder, tmp_path)
    trained.unfolded()
    trained.model.model.multi_modal_projector.requires_grad_(False)  # both losses use the same one
    objective, tensors = Objective(trained.model, trained.inputs), to_tensors(trained.micro_batch(), CPU)
    losses: list[tuple[float, float]] = []
    ours = torch.optim.AdamW([p for p in trained.model.parameters() if p.requires_grad], 1e-2, weight_decay=0.0)
    theirs = torch.optim.AdamW(trained.reference.parameters(), 1e-2, weight_decay=0.0)
    for _ in range(4):
        both = objective(**tensors), trained.expected_loss()
        for optimizer, loss in zip((ours, theirs), both, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append((float(both[0].detach()), float(both[1].detach())))
    assert losses[-1][1] < 0.9 * losses[0][1]
    assert [one for one, _ in losses] == pytest.approx([other for _, other in losses], rel=1e-4)
    # What is saved has the same logits in plain LLaVA, where a head of its own carries every factor.
    state = folded_state(trained.model.state_dict(), trained.model.config)
    (tmp_path / "saved").mkdir()
    save_model(state, trained.model.config, trained.inputs, trained.tokenizer_json, tmp_path / "saved")
    plain, _, _ = load_bundle(tmp_path / "saved")
    ids = torch.tensor([[5, 9, 300, 7, 41]])
    with torch.no_grad():
        expected = trained.reference(input_ids=ids).logits
        torch.testing.assert_close(plain(input_ids=ids).logits[..., :num_rows], expected, rtol=1e-4, atol=1e-4)
    assert Head.of(plain.config) == Head.of(trained.model.config)


@pytest.fixture
def eager(tmp_path: Path) -> Path:
    """Write a model that prefers `<image>` and a spare row to every token."""
    trained = Trained(language_model(tmp_path / "lm", NUM_TOKENS + 12))
    ids = [trained.image, NUM_TOKENS + 5]
    with torch.no_grad():
        trained.model.lm_head.weight[ids[0]] = 50 * trained.model.lm_head.weight[:NUM_TOKENS].sum(0)
        trained.model.lm_head.weight[ids[1]] = -trained.model.lm_head.weight[ids[0]]
    (tmp_path / "eager").mkdir()
    state = trained.model.state_dict()
    save_model(state, trained.model.config, trained.inputs, trained.tokenizer_json, tmp_path / "eager")
    return tmp_path / "eager"


def test_answers_hold_the_tokenizers_own_tokens_and_nothing_else(eager: Path) -> None:
    model, inputs, text = load_bundle(eager)
    tokenizer = tokenizer_from_json(text)
    prompt = inputs.encode_text("what colour is it?", tokenizer)
    pixels = inputs.pixels(())
    ids = torch.from_numpy(prompt).long()[None]
    with torch.no_grad():
        assert int(model(input_ids=ids).logits[0, -1].argmax()) >= NUM_TOKENS
        plain = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    asked = (
        SamplingParams(max_new_tokens=6, ignore_eos=True),
        SamplingParams(max_new_tokens=6, temperature=1.5, seed=3, num_logprobs=20, ignore_eos=True),
        SamplingParams(max_new_tokens=6, temperature=1.0, seed=4, repetition_penalty=1.3, ignore_eos=True),
    )
    batch = Scheduler(model, inputs, tokenizer, EngineOptions(num_slots=3, max_context_tokens=64))
    found = generate_all(batch, [GenerationRequest(prompt, pixels, sampling) for sampling in asked])
    for completion in found:
        assert all(token < NUM_TOKENS for token in completion.token_ids)
    assert list(found[0].token_ids)[: plain.shape[1] - len(prompt)] == plain[0, len(prompt) :].tolist()
    for logprob in found[1].logprobs:
        assert logprob.logprob > -30.0  # of the distribution that is sampled
        assert all(token < NUM_TOKENS for token, _ in logprob.alternatives)


def test_a_choice_is_scored_over_the_rows_that_the_language_model_came_with(tmp_path: Path) -> None:
    trained = Trained(language_model(tmp_path / "lm", NUM_TOKENS))
    with torch.no_grad():
        trained.model.lm_head.weight[trained.image] *= 100
    (tmp_path / "m").mkdir()
    state = trained.model.state_dict()
    save_model(state, trained.model.config, trained.inputs, trained.tokenizer_json, tmp_path / "m")
    chooser, turns = MultipleChoice(tmp_path / "m"), text_sample(1).turns
    found = chooser.log_likelihoods(turns[:1], chooser.inputs.pixels(()), [turns[1].text, "blue"])
    ids, labels = (torch.from_numpy(array).long() for array in chooser._encode(turns))
    with torch.no_grad():
        logits = trained.reference.eval()(input_ids=ids[None]).logits[0]
    expected = -functional.cross_entropy(logits[:-1], labels[1:], reduction="sum")
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-5)
