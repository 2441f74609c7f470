"""Prompts: ids and labels come from the same text."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from warren.config.catalog import TEMPLATES
from warren.data.images import ImageSpec
from warren.data.jinja_chat_template import NATIVE
from warren.data.model_inputs import INPUTS_FILE, Inputs, tokenizer_from_json
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.template import _TEMPLATES, IGNORED, TokenSpec, encode, get_template
from warren.errors import BadSampleError, ConfigError, ReleaseError
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


def test_plain_learns_every_caption_of_a_conversation_and_takes_no_marks_from_it() -> None:
    first = (Turn("user", IMAGE_MARK), Turn("assistant", "a circle"))
    segments = get_template("plain").training(
        (*first, Turn("user", f"{IMAGE_MARK}?{IMAGE_MARK}"), Turn("assistant", "")), END_OF_TEXT
    )
    assert [s.text for s in segments] == [IMAGE_MARK, "a circle\n", IMAGE_MARK * 2, "\n"]
    assert [s.supervised for s in segments] == [False, True, False, True]


def test_published_versions_differ_in_their_eos_alone() -> None:
    ends = {"bunny": "<x>", "default": "<x>", "phi3": "<|endoftext|>", "minicpm": "</s>", "llama": "<|end_of_text|>"}
    for name, eos in ends.items():
        template = get_template(name)
        template.check_eos(eos)
        assert template.training(TURNS, eos) == get_template("bunny").training(TURNS, eos)
    with pytest.raises(ConfigError, match=r"'llama' ends answers with '<\|end_of_text\|>'.*'<\|endoftext\|>'"):
        get_template("llama").check_eos(END_OF_TEXT)


def test_a_model_saved_with_the_wrong_template_is_not_loaded(tmp_path: Path) -> None:
    inputs = Inputs("bunny", SPEC, ImageSpec(32, (0.5,) * 3, (0.5,) * 3, resize="crop"))
    inputs.save(tmp_path)
    assert Inputs.load(tmp_path) == inputs
    for template in ("llama", "vicuna-13"):
        (tmp_path / INPUTS_FILE).write_text(json.dumps({**inputs.to_json(), "template": template}))
        with pytest.raises(ReleaseError, match=template):
            Inputs.load(tmp_path)


def test_an_empty_answer_in_a_stored_sample_teaches_its_end() -> None:
    inputs = Inputs("brief", SPEC, ImageSpec(32, (0.5,) * 3, (0.5,) * 3))
    turns = (Turn("user", "say nothing"), Turn("assistant", ""), Turn("user", "why?"), Turn("assistant", "blue"))
    labels = inputs.encode_sample(Sample("k", (), turns, "tests"), TOKENIZER, 64).labels
    learnt = TOKENIZER.decode([int(t) for t in labels if t != IGNORED], skip_special_tokens=False)
    assert learnt == " <|endoftext|> blue<|endoftext|>"
    assert Sample("k", (), turns, "tests").check()
    silent = inputs.encode_sample(Sample("k", (), turns[:2], "tests"), TOKENIZER, 64)
    assert silent.num_supervised_tokens == 2


def test_a_tokenizer_file_that_asks_for_cutting_is_not_obeyed() -> None:
    cutting = Tokenizer.from_str(TRAINED.json)
    cutting.enable_truncation(3)
    cutting.enable_padding(length=50)
    text = "a deep blue circle a deep blue circle"
    assert tokenizer_from_json(cutting.to_str()).encode(text).ids == TOKENIZER.encode(text).ids


def test_a_token_that_merges_the_border_of_an_answer_belongs_to_the_answer() -> None:
    text = "USER: x ASSISTANT: y"
    vocabulary = {token: number for number, token in enumerate([*sorted(set(text)), ": "])}
    tokenizer = Tokenizer(BPE(vocabulary, [(":", " ")]))
    segments = get_template("brief").training((Turn("user", "x"), Turn("assistant", "y")), eos="")
    ids, labels = encode(segments, tokenizer, TokenSpec(-200, 1, "", 0))
    assert ids.tolist().count(vocabulary[": "]) == 2
    assert labels[labels != IGNORED].tolist() == [vocabulary[": "], vocabulary["y"]]


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


def test_a_recipe_may_name_every_template_and_no_other() -> None:
    assert set(TEMPLATES) == {*_TEMPLATES, NATIVE}
