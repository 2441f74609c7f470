"""Predictions for hostile samples: each is asked, or left out with a reason; none ends the evaluation."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import colour_sample, make_image, text_sample
from warren.config import EvaluateConfig
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.errors import ConfigError
from warren.evaluate.predictions import PREDICTIONS, PredictBatch, load_predictor, to_table
from warren.inference.testing import save_random_model

OPTIONS: dict[str, dict[str, Any]] = {
    "exact_match": {"max_new_tokens": 2},
    "choice": {"metric": "choice", "num_choices": 3},
    "control": {"max_new_tokens": 2, "shuffled_images": True},
}
GOOD = [colour_sample(number).to_row() for number in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model") / "random"
    save_random_model(target)
    return target


@pytest.fixture(scope="module")
def predictors(folder: Path) -> dict[str, PredictBatch]:
    return {
        name: load_predictor(EvaluateConfig(dataset="d@v1", **options), folder) for name, options in OPTIONS.items()
    }


def asked(*texts: str, images: tuple[bytes, ...] = ()) -> dict[str, Any]:
    """Return a stored sample whose turns say these texts."""
    turns = tuple(Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts))
    return Sample("hostile", images, turns, "tests").to_row()


ASKED: dict[str, dict[str, Any]] = {
    "an image in the second question": asked(
        "Can you see?", "Yes.", f"{IMAGE_MARK}\nWhat is it?", "A square.", images=(make_image(),)
    ),
    "two images in two messages": asked(
        f"{IMAGE_MARK} what?", "Red.", f"{IMAGE_MARK} and this?", "Blue.", images=(make_image(), make_image((0, 0, 9)))
    ),
    "a later image that cannot be decoded": asked(
        f"{IMAGE_MARK} what?", "Red.", f"{IMAGE_MARK} and this?", "Blue.", images=(make_image(), b"no image")
    ),
    "no image at all": text_sample(1).to_row(),
}
LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "no image": (asked(f"{IMAGE_MARK}?", "red", images=(b"no image",)), "no known image format"),
    "an empty image": (asked(f"{IMAGE_MARK}?", "red", images=(b"",)), "empty"),
    "half an image": (asked(f"{IMAGE_MARK}?", "red", images=(make_image()[:90],)), "decoded"),
    "a mark too many": (asked(f"{IMAGE_MARK}{IMAGE_MARK}?", "red", images=(make_image(),)), "2 image marks"),
    "an image in the answer": (asked("what?", f"this: {IMAGE_MARK}", images=(make_image(),)), "first answer shows"),
    "an empty first answer": (asked("what?", " ", "and now?", "red"), "first answer is empty"),
    "no answer": ({**asked("what?", "red"), "turns": [{"role": "user", "text": "what?"}]}, "turns must alternate"),
    "roles in disorder": ({**asked("a", "b"), "turns": [{"role": "assistant", "text": "a"}] * 2}, "alternate"),
    "an unknown role": ({**asked("a", "b"), "turns": [{"role": "system", "text": "a"}] * 2}, "alternate"),
    "too long": (asked("what " * 5000, "red"), "tokens"),
    "images that are null": ({**asked("what?", "red"), "images": None}, "TypeError"),
    "a turn that is null": ({**asked("what?", "red"), "turns": [None, None]}, "TypeError"),
    "a text that is null": ({**asked("what?", "red"), "turns": [{"role": "user", "text": None}] * 2}, "alternate"),
    "a lone surrogate": (asked("what \ud800?", "red"), "valid Unicode"),
}


@pytest.mark.parametrize("metric", OPTIONS)
def test_one_bad_sample_neither_ends_a_batch_nor_changes_the_others(
    metric: str, predictors: dict[str, PredictBatch]
) -> None:
    alone = predictors[metric](GOOD)
    assert not any(prediction.problem for prediction in alone)
    for what, (row, reason) in LEFT_OUT.items():
        predictions = predictors[metric]([GOOD[0], row, *GOOD[1:]])
        assert [prediction for prediction in predictions if not prediction.problem] == alone, what
        assert reason in str(predictions[1].problem), what
        assert not predictions[1].correct
        assert len(str(predictions[1].problem)) < 400
    for what, row in ASKED.items():
        prediction = predictors[metric]([*GOOD, row])[-1]
        assert prediction.problem is None, (what, prediction.problem)
        assert prediction.truth == row["turns"][1]["text"]


def test_the_first_question_is_asked_with_its_own_images_only(predictors: dict[str, PredictBatch]) -> None:
    both = ASKED["two images in two messages"]
    first = asked(both["turns"][0]["text"], "Red.", images=(make_image(),))
    assert predictors["exact_match"]([both])[0].answer == predictors["exact_match"]([first])[0].answer


def test_what_has_nothing_to_be_compared_with_is_left_out(predictors: dict[str, PredictBatch]) -> None:
    same = predictors["choice"]([GOOD[0], GOOD[0]])
    assert all("same answer" in str(prediction.problem) for prediction in same), (
        "one choice would always be the right one"
    )
    (lonely,) = predictors["control"]([GOOD[0]])
    assert "none to show instead" in str(lonely.problem), "the control would show the sample's own image"


def test_more_new_tokens_than_the_model_takes_are_refused_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate.max_new_tokens is 100000, .* lower it"):
        load_predictor(EvaluateConfig(dataset="d@v1", max_new_tokens=100_000), folder)


def test_errors_of_the_model_are_nobodys_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = load_predictor(EvaluateConfig(dataset="d@v1", max_new_tokens=2), folder)

    def broken(*_: object) -> list[str]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("warren.inference.transformers_engine.offline.OfflineGenerator.answer", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(GOOD)


_VALUES = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.integers(-2, 2),
    st.binary(max_size=8),
    st.just(IMAGE_MARK),
    st.just("\x00\ud800"),
)
_TURNS = st.lists(st.one_of(_VALUES, st.fixed_dictionaries({"role": _VALUES, "text": _VALUES})), max_size=4)
_TALK = st.lists(st.text(max_size=20) | st.just(f"{IMAGE_MARK} what?"), min_size=2, max_size=4).map(
    lambda texts: [{"role": "assistant" if n % 2 else "user", "text": text} for n, text in enumerate(texts)]
)
_IMAGES = st.lists(
    st.one_of(
        _VALUES, st.sampled_from([make_image(), make_image()[:60], b""]).map(lambda data: {"bytes": data}), _VALUES
    ),
    max_size=3,
)
_ROWS = st.fixed_dictionaries(
    {"key": _VALUES, "images": _VALUES | _IMAGES, "turns": _VALUES | _TURNS | _TALK, "source": _VALUES}
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(_ROWS, min_size=1, max_size=3))
@pytest.mark.parametrize("metric", ["exact_match", "choice"])
def test_hostile_values_in_every_field_are_asked_or_left_out(
    metric: str, predictors: dict[str, PredictBatch], rows: list[dict[str, Any]]
) -> None:
    predictions = predictors[metric]([*GOOD, *rows])
    assert len(predictions) == len(GOOD) + len(rows)
    assert not any(prediction.problem for prediction in predictions[: len(GOOD)])
    table = to_table(predictions)
    assert table.schema == PREDICTIONS
    assert table.num_rows == len(predictions)
