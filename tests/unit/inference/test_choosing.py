"""Choosing between answers: the shared picture and question change no likelihood, and the control hides the picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from factories import COLOURS, colour_sample, picture
from warren.cluster.judging import judge_of
from warren.config import EvaluateConfig
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.inference import Prompt
from warren.inference.choosing import Chooser
from warren.inference.testing import save_random_model

CHOICES = ["yes", "a blue circle", "no, a red one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model") / "random"
    save_random_model(target)
    return target


def alone(chooser: Chooser, prompt: Prompt, choice: str) -> float:
    """Return one choice's log-likelihood from one plain forward of everything."""
    ids, labels = chooser._encode((*prompt.turns, Turn("assistant", choice)))
    pixels = chooser._normalised(chooser.inputs.pixels(prompt.images)) if prompt.images else None
    with torch.no_grad():
        logits = chooser._model(input_ids=torch.tensor(ids)[None].long(), pixel_values=pixels).logits[0]
    targets = torch.tensor(labels[1:]).long()
    loss = functional.cross_entropy(logits[:-1], targets, ignore_index=-100, reduction="sum")
    return -float(loss)


@pytest.mark.parametrize("images", [(picture(),), ()])
def test_likelihoods_are_those_of_each_choice_alone(folder: Path, images: tuple[bytes, ...]) -> None:
    chooser = Chooser(folder)
    mark = f"{IMAGE_MARK}\n" if images else ""
    prompt = Prompt((Turn("user", f"{mark}what shape is there?"),), images)
    found = chooser.log_likelihoods(prompt.turns, chooser.inputs.pixels(images), CHOICES)
    np.testing.assert_allclose(found, [alone(chooser, prompt, choice) for choice in CHOICES], rtol=1e-5)


def test_the_choice_is_what_gains_most_over_a_blank_picture(folder: Path) -> None:
    chooser = Chooser(folder)
    turns = (Turn("user", f"{IMAGE_MARK}\nwhat shape is there?"),)
    grey = tuple(round(255 * v) for v in chooser.inputs.image.mean)
    blank = Prompt(turns, (picture(grey),))
    for colour in COLOURS.values():
        shown = Prompt(turns, (picture(colour),))
        gains = [alone(chooser, shown, choice) - alone(chooser, blank, choice) for choice in CHOICES]
        assert chooser.choose(shown, CHOICES) == int(np.argmax(gains))
        assert chooser.choose(shown, CHOICES[::-1]) == 2 - int(
            np.argmax(gains)
        )  # what is known by then is not mixed up
    text = Prompt((Turn("user", "what shape is there?"),), ())
    likeliest = [alone(chooser, text, choice) for choice in CHOICES]
    assert chooser.choose(text, CHOICES) == int(np.argmax(likeliest))


class _Recorder:
    """Stands for a chooser: knows the colour of a picture, and what it was asked."""

    asked: list[tuple[bytes, list[str]]]

    def __init__(self, _folder: Path) -> None:
        _Recorder.asked = []

    def choose(self, prompt: Prompt, choices: Sequence[str]) -> int:
        _Recorder.asked.append((prompt.images[0], list(choices)))
        seen = next(name for name, colour in COLOURS.items() if picture(colour) == prompt.images[0])
        return choices.index(seen) if seen in choices else 0


def test_the_control_asks_about_pictures_that_are_none_of_the_choices(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warren.cluster.judging.Chooser", _Recorder)
    samples = [colour_sample(number) for number in range(8)]  # four colours, twice
    seeing = judge_of(EvaluateConfig(dataset="d@v1", metric="choice", num_choices=3), folder)(samples)
    assert all(verdict.correct for verdict in seeing)
    assert {len(choices) for _, choices in _Recorder.asked} == {3}
    assert all(verdict.truth in choices for verdict, (_, choices) in zip(seeing, _Recorder.asked, strict=True))
    config = EvaluateConfig(dataset="d@v1", metric="choice", num_choices=3, shuffled_images=True)
    blind = judge_of(config, folder)(samples)
    assert [verdict.truth for verdict in blind] == [verdict.truth for verdict in seeing]
    for image, choices in _Recorder.asked:
        assert next(name for name, colour in COLOURS.items() if picture(colour) == image) not in choices


def test_an_unusable_sample_is_wrong_and_keeps_its_place(folder: Path) -> None:
    bad = Sample("bad", (), (Turn("user", f"{IMAGE_MARK}\nwhat?"), Turn("assistant", "red")), "tests")
    config = EvaluateConfig(dataset="d@v1", metric="choice", num_choices=2)
    verdicts = judge_of(config, folder)([colour_sample(0), bad, colour_sample(1)])
    assert [verdict.key for verdict in verdicts] == ["sample-00000", "bad", "sample-00001"]
    assert verdicts[1].answer.startswith("[unusable sample:")
    assert not verdicts[1].correct
