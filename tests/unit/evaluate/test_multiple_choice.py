"""Choosing between answers: the shared image and question change no likelihood, and the control hides the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from factories import COLOURS, colour_sample, make_image
from warren.config import EvaluateConfig
from warren.data.sample import IMAGE_MARK, Turn
from warren.evaluate.multiple_choice import MultipleChoice, PreparedQuestion
from warren.evaluate.predictions import load_predictor
from warren.inference import Prompt
from warren.inference.testing import save_random_model

CHOICES = ["yes", "a blue circle", "no, a red one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model") / "random"
    save_random_model(target)
    return target


class Oracle:
    """Likelihoods by transformers and tokenizers alone: one plain forward of question, colour and choice."""

    def __init__(self, folder: Path) -> None:
        self._model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._size_px = self._model.config.vision_config.image_size

    def __call__(self, words: str, colour: tuple[int, int, int] | None, choice: str) -> float:
        """Return that of `choice` and the end of the answer, as the answer to `words` about an image of one colour."""
        config = self._model.config
        image = self._ids("USER: ") + [config.image_token_id] * config.image_seq_length if colour else []
        question = f"\n{words} ASSISTANT:" if colour else f"USER: {words} ASSISTANT:"
        whole, asked = self._ids(f"{question} {choice}<|endoftext|>"), self._ids(question)
        assert whole[: len(asked)] == asked
        answer, pixels = whole[len(asked) :], None
        if colour:
            plain = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, self._size_px, self._size_px) / 255
            pixels = (plain - 0.5) / 0.5  # SigLIP's mean and standard deviation
        with torch.no_grad():
            logits = self._model(input_ids=torch.tensor([image + whole]), pixel_values=pixels).logits[0]
        scores = torch.log_softmax(logits[-len(answer) - 1 : -1].float(), dim=-1)
        return float(scores[range(len(answer)), answer].sum())

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


WORDS = "what shape is there?"


@pytest.mark.parametrize("colour", [(200, 30, 60), None])
def test_likelihoods_are_those_of_each_choice_alone(
    folder: Path, oracle: Oracle, colour: tuple[int, int, int] | None
) -> None:
    chooser = MultipleChoice(folder)
    turns = (Turn("user", f"{IMAGE_MARK}\n{WORDS}" if colour else WORDS),)
    pixels = chooser.inputs.pixels((make_image(colour),) if colour else ())
    measured = chooser.log_likelihoods(turns, pixels, CHOICES)
    np.testing.assert_allclose(measured, [oracle(WORDS, colour, choice) for choice in CHOICES], rtol=1e-5)


def test_the_choice_is_what_gains_most_over_a_blank_image(folder: Path, oracle: Oracle) -> None:
    chooser = MultipleChoice(folder)
    turns = (Turn("user", f"{IMAGE_MARK}\n{WORDS}"),)
    grey: tuple[int, int, int] = (128, 128, 128)  # the mean of SigLIP's images, 0.5
    for colour in COLOURS.values():
        gains = [oracle(WORDS, colour, choice) - oracle(WORDS, grey, choice) for choice in CHOICES]
        asked = chooser.prepare(Prompt(turns, (make_image(colour),)), CHOICES[0])
        assert chooser.choose(asked, CHOICES) == int(np.argmax(gains))
        assert chooser.choose(asked, CHOICES[::-1]) == 2 - int(np.argmax(gains))  # what is known is not mixed up
    text = Prompt((Turn("user", WORDS),), ())
    likeliest = [oracle(WORDS, None, choice) for choice in CHOICES]
    assert chooser.choose(chooser.prepare(text, CHOICES[0]), CHOICES) == int(np.argmax(likeliest))


class _Recorder(MultipleChoice):
    """A chooser that knows the colour of an image, and notes what it was asked."""

    asked: ClassVar[list[tuple[str, list[str]]]] = []

    def choose(self, question: PreparedQuestion, choices: Sequence[str]) -> int:
        colour = tuple(question.pixels[0, :, 0, 0].tolist())
        seen = next(name for name, known in COLOURS.items() if known == colour)
        self.asked.append((seen, list(choices)))
        return choices.index(seen) if seen in choices else 0


def test_the_control_asks_about_images_that_are_none_of_the_choices(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warren.evaluate.predictions.MultipleChoice", _Recorder)
    monkeypatch.setattr(_Recorder, "asked", [])
    rows = [colour_sample(number).to_row() for number in range(8)]  # four colours, twice
    seeing = load_predictor(EvaluateConfig(dataset="d@v1", metric="choice", num_choices=3), folder)(rows)
    assert all(prediction.correct for prediction in seeing)
    assert {len(choices) for _, choices in _Recorder.asked} == {3}
    assert all(prediction.truth in choices for prediction, (_, choices) in zip(seeing, _Recorder.asked, strict=True))
    _Recorder.asked.clear()
    config = EvaluateConfig(dataset="d@v1", metric="choice", num_choices=3, shuffled_images=True)
    blind = load_predictor(config, folder)(rows)
    assert [prediction.truth for prediction in blind] == [prediction.truth for prediction in seeing]
    assert all(seen not in choices for seen, choices in _Recorder.asked)
