"""Prompts and labels are Bunny's, id for id, wherever Bunny supervises what it should."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from warren.config.catalog import BACKBONES
from warren.data.importers.conversation import normalise_turns, read_messages
from warren.data.model_inputs import tokenizer_from_json
from warren.data.sample import IMAGE_MARK, Turn
from warren.data.template import IGNORED, TokenSpec, encode, get_template
from warren.errors import BadSampleError, ModelError
from warren.models import read_tokenizer

ORACLE = Path(__file__).parents[2] / "oracle" / "prompts"
BUNNYS_IMAGE = -200
DIFFERS = set(json.loads((ORACLE / "differs_from_plain_rule.json").read_text()))
Encoded = tuple[np.ndarray, np.ndarray]


@lru_cache
def tokenizer_of(name: str) -> Tokenizer:
    return tokenizer_from_json((ORACLE / f"{name}.json").read_text())


def rows(file: str) -> Iterator[dict[str, Any]]:
    for line in (ORACLE / f"{file}.jsonl").read_text().splitlines():
        yield json.loads(line)


def spec_of(row: dict[str, Any], tokens_per_image: int = 1) -> TokenSpec:
    return token_spec(row["backbone"], row["tokenizer"], tokens_per_image)


@lru_cache
def token_spec(backbone: str, tokenizer: str, tokens_per_image: int) -> TokenSpec:
    """Read one of the oracle's tokenizers as a backbone's own, with Bunny's image id instead of Warren's."""
    entry = BACKBONES[backbone]
    with TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text((ORACLE / f"{tokenizer}.json").read_text())
        read, _ = read_tokenizer(Path(folder), entry.eos_token, entry.pad_token)
    return TokenSpec(BUNNYS_IMAGE, tokens_per_image, read.eos_token, read.pad_token_id, read.bos_token_id)


def encoded(row: dict[str, Any], max_length_tokens: int | None = None) -> Encoded:
    spec = spec_of(row)
    turns = normalise_turns(read_messages(row["conversations"]), int(row["has_image"]))
    segments = get_template(row["version"]).training(turns, spec.eos_token)
    return encode(segments, tokenizer_of(row["tokenizer"]), spec, max_length_tokens)


def test_templates_render_bunnys_text() -> None:
    for row in (*rows("sft"), *rows("plain")):
        turns = normalise_turns(read_messages(row["conversations"]), int(row["has_image"]))
        text = "".join(s.text for s in get_template(row["version"]).training(turns, spec_of(row).eos_token))
        assert text == row["prompt"] or row["id"] in DIFFERS, row["id"]


def outcome(row: dict[str, Any]) -> str:
    """Return `equal`, or why the row is refused."""
    try:
        ids, labels = encoded(row, row["model_max_length"])
    except BadSampleError as error:
        return str(error)
    length = row.get("collated_len", len(row["input_ids"]))
    equal = ids.tolist() == row["input_ids"][:length] and labels.tolist() == row["labels"][:length]
    return "equal" if equal else f"other ids or labels: {row['id']}"


@pytest.mark.parametrize(("file", "matching"), [("sft", 354), ("plain", 90)])
def test_ids_and_labels_are_bunnys(file: str, matching: int) -> None:
    found = Counter(outcome(row) for row in rows(file) if row["id"] not in DIFFERS)
    refused = {reason: count for reason, count in found.items() if reason != "equal"}
    assert not [reason for reason in refused if "cut an image" not in reason and "nothing is left" not in reason]
    assert found["equal"] == matching
    assert sum(refused.values()) == (24 if file == "sft" else 0)


def test_only_samples_that_teach_nothing_or_lose_an_image_are_refused_when_cut() -> None:
    for row in rows("sft"):
        if row["id"] in DIFFERS or (reason := outcome(row)) == "equal":
            continue
        length = row.get("collated_len", len(row["input_ids"]))
        assert row["model_max_length"] == 64
        if "nothing is left" in reason:
            assert set(row["labels"][:length]) == {IGNORED}
        else:  # Bunny goes on without the image that the rest of the conversation is about
            assert BUNNYS_IMAGE in row["input_ids"][length:]


def test_inference_prompts_are_bunnys_and_training_continues_them() -> None:
    for row in rows("inference"):
        spec = spec_of(row)
        turns = [Turn("user" if m["from"] == "human" else "assistant", m["value"]) for m in row["messages"]]
        segments = get_template(row["conv_mode"]).generation(turns, spec.eos_token)
        ids, labels = encode(segments, tokenizer_of(row["tokenizer"]), spec)
        assert "".join(s.text for s in segments) == row["prompt"]
        assert ids.tolist() == row["input_ids"], row["id"]
        assert labels[-1] == IGNORED


def test_where_bunny_loses_supervision_every_answer_and_its_end_is_learnt() -> None:
    seen: set[tuple[str, str]] = set()
    for row in rows("sft"):
        if row["id"] not in DIFFERS or row["model_max_length"] != 2048:
            continue
        ids, labels = encoded(row)
        tokenizer, spec = tokenizer_of(row["tokenizer"]), spec_of(row)
        answers = [m["value"] for m in row["conversations"] if m["from"] == "gpt"]
        eos = tokenizer.token_to_id(spec.eos_token)
        assert eos is not None
        learnt = [int(label) for label in labels if label != IGNORED]
        assert learnt.count(eos) == len(answers)
        text = tokenizer.decode(learnt, skip_special_tokens=False)
        assert [a.strip() for a in text.split(spec.eos_token)] == [*answers, ""]
        assert len(learnt) > row["n_supervised"]
        assert not ((labels != IGNORED) & (labels != ids)).any()
        seen.add((row["id"], row["tokenizer"]))
    assert len(seen) == len(DIFFERS) * 6


def test_an_eos_inside_an_answer_does_not_end_its_supervision() -> None:
    row = next(rows("sft"))
    spec, tokenizer = spec_of(row), tokenizer_of(row["tokenizer"])
    turns = (Turn("user", "Hi"), Turn("assistant", f"one{spec.eos_token}two ASSISTANT: three"))
    _, labels = encode(get_template("bunny").training(turns, spec.eos_token), tokenizer, spec)
    learnt = tokenizer.decode([int(t) for t in labels if t != IGNORED], skip_special_tokens=False)
    assert learnt == f" one{spec.eos_token}two ASSISTANT: three{spec.eos_token}"


def test_more_tokens_an_image_change_nothing_around_it() -> None:
    for row in rows("sft"):
        if row["id"] != "image_in_two_turns" or row["model_max_length"] != 2048:
            continue
        turns = normalise_turns(read_messages(row["conversations"]), 1)
        spec = replace(spec_of(row), image_token_id=70_000, tokens_per_image=5)
        segments = get_template(row["version"]).training(turns, spec.eos_token)
        ids, labels = encode(segments, tokenizer_of(row["tokenizer"]), spec)
        contracted = ids.tolist()
        for _ in range(2):
            at = contracted.index(70_000)
            assert set(contracted[at : at + 5]) == {70_000}
            contracted[at : at + 5] = [BUNNYS_IMAGE]
        assert contracted == row["input_ids"]
        assert [t for t in labels if t != IGNORED] == [t for t in row["labels"] if t != IGNORED]


def test_pad_eos_and_bos_follow_the_table_of_backbones() -> None:
    for key, ids in json.loads((ORACLE / "special_ids.json").read_text()).items():
        name, tokenizer = key.split("|")
        spec = token_spec(name, tokenizer, 729)
        assert spec.pad_token_id == ids["pad_token_id"], key
        assert tokenizer_of(tokenizer).token_to_id(spec.eos_token) == ids["eos_token_id"], key
        assert (spec.bos_token_id is not None) == tokenizer.endswith("_bos"), key
        get_template(BACKBONES[name].template).check_eos(spec.eos_token)


def test_a_tokenizer_of_another_backbone_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no token '</s>', which is to be its eos"):
        token_spec("minicpm", "tok_phi", 1)


def test_the_image_token_written_in_a_text_is_refused() -> None:
    tokenizer = tokenizer_of("tok_qwen_stablelm")
    start = tokenizer.token_to_id("<|im_start|>")
    assert start is not None
    turns = (Turn("user", "a <|im_start|> b"), Turn("assistant", "c"))
    segments = get_template("bunny").training(turns, "<|endoftext|>")
    spec = token_spec("stablelm-2", "tok_qwen_stablelm", 1)
    assert start in encode(segments, tokenizer, spec)[0]  # other special tokens are what they say, as in Bunny
    with pytest.raises(BadSampleError, match="the image token itself"):
        encode(segments, tokenizer, replace(spec, image_token_id=start))


def test_normalising_leaves_text_only_conversations_alone() -> None:
    messages = read_messages([{"from": "gpt", "value": "Hi"}, {"from": "human", "value": f" {IMAGE_MARK} a"}])
    assert normalise_turns(messages, 0) == (Turn("user", f" {IMAGE_MARK} a"),)
    assert normalise_turns(messages, 1) == (Turn("user", f"{IMAGE_MARK}\na"),)
    assert normalise_turns([], 1) == ()
    with pytest.raises(BadSampleError, match="message 0 is from 'narrator'; known are: human, user, gpt"):
        read_messages([{"from": "narrator", "value": "x"}])
