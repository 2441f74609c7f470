"""Choosing between answers: the shared image and question change no likelihood, and the control hides the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional

from factories import COLOURS, colour_sample, make_image
from warren.config import EvaluateConfig
from warren.data.sample import IMAGE_MARK, Turn
from warren.evaluate.judge import judge_of
from warren.evaluate.multiple_choice import MultipleChoice, PreparedQuestion
from warren.inference import Prompt
from warren.inference.testing import save_random_model

CHOICES = ["yes", "a blue circle", "no, a red one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model") / "random"
    save_random_model(target)
    return target


def alone(chooser: MultipleChoice, prompt: Prompt, choice: str) -> float:
    """Return one choice's log-likelihood from one plain forward of everything."""
    ids, labels = chooser._encode((*prompt.turns, Turn("assistant", choice)))
    pixels = chooser._normalised(chooser.inputs.pixels(prompt.images)) if prompt.images else None
    with torch.no_grad():
        logits = chooser._model(input_ids=torch.tensor(ids)[None].long(), pixel_values=pixels).logits[0]
    targets = torch.tensor(labels[1:]).long()
    loss = functional.cross_entropy(logits[:-1], targets, ignore_index=-100, reduction="sum")
    return -float(loss)


@pytest.mark.parametrize("images", [(make_image(),), ()])
def test_likelihoods_are_those_of_each_choice_alone(folder: Path, images: tuple[bytes, ...]) -> None:
    chooser = MultipleChoice(folder)
    mark = f"{IMAGE_MARK}\n" if images else ""
    prompt = Prompt((Turn("user", f"{mark}what shape is there?"),), images)
    found = chooser.log_likelihoods(prompt.turns, chooser.inputs.pixels(images), CHOICES)
    np.testing.assert_allclose(found, [alone(chooser, prompt, choice) for choice in CHOICES], rtol=1e-5)


def test_the_choice_is_what_gains_most_over_a_blank_image(folder: Path) -> None:
    chooser = MultipleChoice(folder)
    turns = (Turn("user", f"{IMAGE_MARK}\nwhat shape is there?"),)
    red, green, blue = (round(255 * v) for v in chooser.inputs.image.mean)
    blank = Prompt(turns, (make_image((red, green, blue)),))
    for colour in COLOURS.values():
        shown = Prompt(turns, (make_image(colour),))
        gains = [alone(chooser, shown, choice) - alone(chooser, blank, choice) for choice in CHOICES]
        asked = chooser.prepare(shown, CHOICES[0])
        assert chooser.choose(asked, CHOICES) == int(np.argmax(gains))
        assert chooser.choose(asked, CHOICES[::-1]) == 2 - int(np.argmax(gains))  # what is known is not mixed up
    text = Prompt((Turn("user", "what shape is there?"),), ())
    likeliest = [alone(chooser, text, choice) for choice in CHOICES]
    assert chooser.choose(chooser.prepare(text, CHOICES[0]), CHOICES) == int(np.argmax(likeliest))


class _Recorder(MultipleChoice):
    """A chooser that knows the colour of an image, and notes what it was asked."""

    asked: ClassVar[list[tuple[str, list[str]]]] = []

    def choose(self, shown: PreparedQuestion, choices: Sequence[str]) -> int:
        colour = tuple(shown.pixels[0, :, 0, 0].tolist())
        seen = next(name for name, known in COLOURS.items() if known == colour)
        self.asked.append((seen, list(choices)))
        return choices.index(seen) if seen in choices else 0


def test_the_control_asks_about_images_that_are_none_of_the_choices(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warren.evaluate.judge.Chooser", _Recorder)
    monkeypatch.setattr(_Recorder, "asked", [])
    rows = [colour_sample(number).to_row() for number in range(8)]  # four colours, twice
    seeing = judge_of(EvaluateConfig(dataset="d@v1", metric="choice", num_choices=3), folder)(rows)
    assert all(verdict.correct for verdict in seeing)
    assert {len(choices) for _, choices in _Recorder.asked} == {3}
    assert all(verdict.truth in choices for verdict, (_, choices) in zip(seeing, _Recorder.asked, strict=True))
    _Recorder.asked.clear()
    config = EvaluateConfig(dataset="d@v1", metric="choice", num_choices=3, shuffled_images=True)
    blind = judge_of(config, folder)(rows)
    assert [verdict.truth for verdict in blind] == [verdict.truth for verdict in seeing]
    assert all(seen not in choices for seen, choices in _Recorder.asked)
