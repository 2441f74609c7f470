"""A model's own chat template: the same text as transformers renders, with every answer and its end supervised."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from warren.data.images import ImageSpec
from warren.data.jinja_chat_template import NativeTemplate
from warren.data.model_inputs import Inputs
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.template import TokenSpec
from warren.errors import ConfigError
from warren.models import read_tokenizer, train_tokenizer

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)
TURNS = (
    Turn("user", f"{IMAGE_MARK}\nwhat is it?"),
    Turn("assistant", "a hare"),
    Turn("user", "sure?"),
    Turn("assistant", "yes"),
)


@pytest.mark.parametrize(("source", "eos"), [(CHATML, "<|im_end|>"), (LLAMA, "<|eot|>")])
def test_the_text_is_transformers_own_and_each_answer_with_its_end_is_supervised(source: str, eos: str) -> None:
    segments = NativeTemplate(source).training(TURNS, eos)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), bos_token="", chat_template=source)
    messages = [{"role": turn.role, "content": turn.text} for turn in TURNS]
    assert "".join(s.text for s in segments) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert [s.text for s in segments if s.supervised] == [f"a hare{eos}", f"yes{eos}"]
    asked = "".join(s.text for s in NativeTemplate(source).generation(TURNS[:3], eos))
    assert asked == tokenizer.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    assert "Be brief." in "".join(s.text for s in NativeTemplate(source).generation(TURNS[:1], eos, "Be brief."))


def _tokenizer() -> object:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(train_tokenizer(["a hare sits"] * 3, 300).json)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "ends answers with .*the model's eos is"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}",
            "earlier turns anew",
        ),
        ("{% for m in messages %}", "cannot be rendered"),
        ("{{ raise_exception('no system here') }}", "cannot be rendered: no system here"),
    ],
)
def test_a_template_that_cannot_be_supervised_is_refused(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NativeTemplate(source).check_eos("<|im_end|>")


def test_it_travels_with_the_inputs_and_a_model_without_one_is_refused() -> None:
    tokens = TokenSpec(image_token_id=2, tokens_per_image=4, eos_token="<|im_end|>", pad_token_id=1)
    image = ImageSpec(size_px=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    inputs = Inputs("native", tokens, image, CHATML)
    assert Inputs.from_json(json.loads(json.dumps(inputs.to_json()))) == inputs
    assert inputs.with_template("plain", False).with_template("native", True).chat_template == CHATML
    with pytest.raises(ConfigError, match="tokenizer has no chat template"):
        Inputs("native", tokens, image)
    with pytest.raises(ConfigError, match=r"eos is '<\|endoftext\|>'"):
        Inputs("native", TokenSpec(2, 4, "<|endoftext|>", 1), image, CHATML)


def test_labels_are_the_answers_tokens(tmp_path: Path) -> None:
    trained = train_tokenizer(["a hare sits. yes, sure? <|im_start|>user assistant"] * 3, 320)
    tree = json.loads(trained.json)
    last = max(token["id"] for token in tree["added_tokens"]) + 1000
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": last, "content": "<|im_end|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML}))
    read, _ = read_tokenizer(tmp_path)
    assert read.chat_template == CHATML
    tokens = TokenSpec(read.image_token_id, 1, read.eos_token, read.pad_token_id, read.bos_token_id)
    image = ImageSpec(size_px=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(read.json)
    turns = tuple(Turn(turn.role, turn.text.replace(IMAGE_MARK, "")) for turn in TURNS)
    encoded = Inputs("native", tokens, image, CHATML).encode_sample(Sample("k", (), turns, "tests"), tokenizer, 512)
    learnt = [int(label) for label in encoded.labels if label >= 0]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "a hare<|im_end|>yes<|im_end|>"
