"""A release carries questions of its evaluation with the right answers, which a rollout asks of both releases."""

from pathlib import Path

from factories import colour_sample, write_dataset
from warren.cluster.serve.sanity_questions import write_questions
from warren.config import EvaluateConfig
from warren.data.sample import Sample, Turn
from warren.rollout.questions import BUILT_IN, read_questions
from warren.storage import Location, digest_bytes


def test_a_rollout_reads_the_questions_that_a_release_carries(tmp_path: Path) -> None:
    root = Location.parse(str(tmp_path))
    text = Sample("t", (), (Turn("user", "well?"), Turn("assistant", "yes")), "tests")
    write_dataset(root, "test", [*(colour_sample(number) for number in range(200)), text])
    folder = root / "releases/demo/v1"
    (entry,) = write_questions(EvaluateConfig(dataset="test@v1"), root, folder)
    data = (folder / entry.path).read_bytes()
    assert (entry.path, entry.bytes, entry.sha256) == ("golden/questions.json", len(data), digest_bytes(data))
    questions = read_questions(folder)
    assert 40 <= len(questions) <= 64
    asked = {(question.text, question.expected, question.image) for question in questions}
    samples = [colour_sample(number) for number in range(200)]
    assert asked <= {
        (sample.turns[0].text.replace("<image>", "").strip(), sample.turns[1].text, sample.images[0])
        for sample in samples
    } | {("well?", "yes", None)}
    assert len(asked) > 30, "they are of the whole dataset"


def test_an_evaluation_without_one_right_answer_gives_no_questions(tmp_path: Path) -> None:
    root = Location.parse(str(tmp_path))
    write_dataset(root, "test", [colour_sample(number) for number in range(3)])
    folder = root / "releases/demo/v1"
    assert write_questions(EvaluateConfig(dataset="test@v1", metric="choice"), root, folder) == ()
    assert read_questions(folder) == BUILT_IN
