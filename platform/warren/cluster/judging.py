"""What an evaluation asks of a model about each sample, and when the answer counts as right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from warren.config import EvaluateConfig
from warren.data.sample import Sample
from warren.errors import BadSampleError
from warren.evaluate.scoring import exact_match
from warren.inference import Prompt
from warren.inference.choosing import Chooser
from warren.inference.offline import OfflineGenerator


@dataclass(frozen=True)
class Verdict:
    """One sample's line in predictions.parquet."""

    key: str
    question: str
    truth: str
    answer: str
    correct: bool


Judge = Callable[[Sequence[Sample]], list[Verdict]]


def judge_of(config: EvaluateConfig, folder: Path) -> Judge:
    """Load a model and return what judges batches of samples with it, in their order.

    Raises:
        ReleaseError: The folder does not load.
    """
    ask: Callable[[Sequence[Sample]], list[str]]
    if config.metric == "choice":
        chooser = Chooser(folder)

        def ask(samples: Sequence[Sample]) -> list[str]:
            return [_choose(chooser, samples, place, config.num_choices) for place in range(len(samples))]

    else:
        generator = OfflineGenerator(folder)

        def ask(samples: Sequence[Sample]) -> list[str]:
            prompts = [Prompt(sample.turns[:1], sample.images, sample.system) for sample in samples]
            return generator.generate(prompts, config.max_new_tokens)

    def judge(samples: Sequence[Sample]) -> list[Verdict]:
        problems = [_problem(sample) for sample in samples]
        usable = [sample for sample, problem in zip(samples, problems, strict=True) if problem is None]
        shown = _with_others_images(usable, config.num_choices) if config.shuffled_images else usable
        answers = iter(ask(shown) if shown else [])
        return [
            _verdict(sample, next(answers) if problem is None else None, problem)
            for sample, problem in zip(samples, problems, strict=True)
        ]

    return judge


def _verdict(sample: Sample, answer: str | None, problem: str | None) -> Verdict:
    question, truth = sample.turns[0].text, sample.turns[1].text
    if answer is None:
        return Verdict(sample.key, question, truth, f"[unusable sample: {problem}]", False)
    return Verdict(sample.key, question, truth, answer.strip(), exact_match(answer, truth))


def _problem(sample: Sample) -> str | None:
    try:
        sample.check()
    except BadSampleError as error:
        return str(error)
    return None


def _choose(chooser: Chooser, samples: Sequence[Sample], place: int, num_choices: int) -> str:
    """Let the model choose between a sample's answer and the next other ones, in an order that tells nothing."""
    sample = samples[place]
    answers = [other.turns[1].text for other in (*samples[place:], *samples[:place])]
    choices = sorted(list(dict.fromkeys(answers))[:num_choices])
    return choices[chooser.choose(Prompt(sample.turns[:1], sample.images, sample.system), choices)]


def _with_others_images(samples: Sequence[Sample], distance: int) -> list[Sample]:
    """Give every sample the images of one that is none of its choices' and shows as many."""
    moved = list(samples)
    for count in {len(sample.images) for sample in samples}:
        alike = [place for place, sample in enumerate(samples) if len(sample.images) == count]
        shift = distance if distance < len(alike) else len(alike) // 2
        for place, other in zip(alike, alike[shift:] + alike[:shift], strict=True):
            moved[place] = replace(samples[place], images=samples[other].images)
    return moved
