"""Prompts: ids and labels come from the same text."""

import pytest
from tokenizers import Tokenizer

from warren.data.sample import IMAGE_MARK, Turn
from warren.data.template import IGNORED, TokenSpec, encode, get_template
from warren.errors import BadSampleError, ConfigError
from warren.models.tokenizer import END_OF_TEXT, train_tokenizer

TEXTS = ["USER: what colour is it? ASSISTANT: a deep blue circle", "a curious user ASSISTANT USER:"]
TRAINED = train_tokenizer(TEXTS * 4, 400)
TOKENIZER = Tokenizer.from_str(TRAINED.json)
SPEC = TokenSpec(TRAINED.image_token_id, 3, END_OF_TEXT, TRAINED.pad_token_id)
TURNS = (
    Turn("user", f"{IMAGE_MARK}\nwhat colour is it?"),
    Turn("assistant", "a deep blue circle"),
    Turn("user", "and this?"),
    Turn("assistant", "blue"),
)


def test_bunny_renders_as_published() -> None:
    text = "".join(s.text for s in get_template("bunny").training(TURNS, END_OF_TEXT))
    assert text == (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nwhat colour is it? ASSISTANT: a deep blue circle<|endoftext|>"
        "USER: and this? ASSISTANT: blue<|endoftext|>"
    )
    open_turn = get_template("bunny").generation(TURNS[:1], END_OF_TEXT, system="Be brief.")
    assert "".join(s.text for s in open_turn) == "Be brief. USER: <image>\nwhat colour is it? ASSISTANT:"


def test_only_answers_and_their_ends_are_supervised() -> None:
    ids, labels = encode(get_template("bunny").training(TURNS, END_OF_TEXT), TOKENIZER, SPEC)
    learnt = TOKENIZER.decode([int(t) for t in labels if t != IGNORED], skip_special_tokens=False)
    assert learnt == " a deep blue circle<|endoftext|> blue<|endoftext|>"
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_an_image_mark_becomes_one_token_a_feature() -> None:
    ids, labels = encode(get_template("brief").training(TURNS, END_OF_TEXT), TOKENIZER, SPEC)
    positions = [i for i, token in enumerate(ids) if token == SPEC.image_token_id]
    assert len(positions) == SPEC.tokens_per_image
    assert positions == list(range(positions[0], positions[0] + 3))
    assert {int(labels[i]) for i in positions} == {IGNORED}


def test_plain_supervises_caption_and_newline_and_drops_the_question() -> None:
    turns = (Turn("user", f"Describe it. {IMAGE_MARK}"), Turn("assistant", "a blue circle"))
    ids, labels = encode(get_template("plain").training(turns, END_OF_TEXT), TOKENIZER, SPEC)
    assert ids[:3].tolist() == [SPEC.image_token_id] * 3
    assert TOKENIZER.decode([int(t) for t in labels if t != IGNORED]) == "a blue circle\n"


def test_training_on_a_prompt_and_generating_from_it_agree() -> None:
    template = get_template("bunny")
    whole, labels = encode(template.training(TURNS[:2], END_OF_TEXT), TOKENIZER, SPEC)
    prompt, _ = encode(template.generation(TURNS[:1], END_OF_TEXT), TOKENIZER, SPEC)
    assert whole[: len(prompt)].tolist() == prompt.tolist()
    assert labels[len(prompt)] != IGNORED


def test_truncation_keeps_images_whole_and_something_to_learn() -> None:
    segments = get_template("brief").training(TURNS, END_OF_TEXT)
    whole, _ = encode(segments, TOKENIZER, SPEC)
    assert len(encode(segments, TOKENIZER, SPEC, len(whole) - 2)[0]) == len(whole) - 2
    with pytest.raises(BadSampleError, match="cut an image"):
        encode(segments, TOKENIZER, SPEC, 3)
    with pytest.raises(BadSampleError, match="nothing is left to learn"):
        encode(segments, TOKENIZER, SPEC, 10)


def test_an_unknown_template_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="bunny"):
        get_template("vicuna-13")
