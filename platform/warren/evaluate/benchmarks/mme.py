"""MME (arXiv 2306.13394): two yes/no questions an image, fourteen subtasks."""

from collections import defaultdict
from collections.abc import Sequence

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.storage import Location

_PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_SUFFIX = "Answer the question using a single word or phrase."
_ASKED = "Please answer yes or no."
_PREFIX_CHARS = 4
_QUESTIONS_PER_IMAGE = 2


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Score as MME's own `calculation.py`: accuracy plus the share of images with both questions right."""
    truths = _truths(reference)
    decided: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    per_question = {}
    for answer in answers:
        task, _, file = answer.key.partition("/")
        image = file.rpartition("/")[2].split(".")[0] + ".txt"
        question = _question(answer.prompt, task, image, truths)
        verdict = _verdict(answer.text)
        right = verdict == truths[task, image, question].lower()
        decided[task].append((image, right))
        per_question[f"{answer.key}: {question}"] = {"decided": verdict, "right": right}
    counts: dict[str, int] = defaultdict(int)
    for task, _, _ in truths:
        counts[task] += 1
    groups = {
        name: _group([task for task in tasks if counts[task]], decided, counts)
        for name, tasks in (("Perception", _PERCEPTION), ("Cognition", _COGNITION))
    }
    return Scores(len(truths), len(per_question), groups, per_question)


def _group(
    tasks: Sequence[str], decided: dict[str, list[tuple[str, bool]]], counts: dict[str, int]
) -> dict[str, object]:
    scores = {task: _task_score(task, decided[task], counts[task]) for task in tasks}
    return {"tasks": scores, "total": sum(scores.values())}


def _task_score(task: str, decided: list[tuple[str, bool]], num_questions: int) -> float:
    if len(decided) != num_questions:
        raise DataError(f"MME {task}: {len(decided)} answers to {num_questions} questions; every question needs one")
    by_image: dict[str, list[bool]] = defaultdict(list)
    for image, right in decided:
        by_image[image].append(right)
    for image, rights in by_image.items():
        if len(rights) != _QUESTIONS_PER_IMAGE:
            raise DataError(f"MME {task}/{image}: {len(rights)} answers; an image has {_QUESTIONS_PER_IMAGE} questions")
    accuracy = sum(right for _, right in decided) / len(decided)
    both_right = sum(all(rights) for rights in by_image.values()) / len(by_image)
    return accuracy * 100 + both_right * 100


def _verdict(text: str) -> str:
    text = text.lower()
    if text in ("yes", "no"):
        return text
    prefix = text[:_PREFIX_CHARS]
    return "yes" if "yes" in prefix else "no" if "no" in prefix else "other"


def _question(prompt: str, task: str, image: str, truths: dict[tuple[str, str, str], str]) -> str:
    """Return the reference's spelling of a question; some of its files have two spaces before the last sentence."""
    asked = prompt.replace(_SUFFIX, "").strip()
    tried = [asked] if _ASKED in asked else [f"{asked} {_ASKED}", f"{asked}  {_ASKED}"]
    for question in tried:
        if (task, image, question) in truths:
            return question
    raise DataError(f"MME {task}/{image} has no question {asked[:80]!r}: answers and reference do not belong together")


def _truths(reference: Location) -> dict[tuple[str, str, str], str]:
    """Read the answer of every (subtask, file, question)."""
    truths = {}
    for file in reference.list():
        parts = file.uri.removeprefix(reference.uri).strip("/").split("/")
        if len(parts) < 2 or not file.name.endswith(".txt") or parts[0] not in _PERCEPTION + _COGNITION:
            continue
        for number, line in enumerate(file.read_bytes().decode().splitlines(), 1):
            question, tab, truth = line.strip().partition("\t")
            if not tab:
                raise DataError(f"{file}: line {number} is not 'question TAB answer'")
            truths[parts[0], file.name, question] = truth
    if not truths:
        raise DataError(f"{reference}: no MME subtask folder with question files, such as existence/*.txt")
    return truths


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    reference="the folder MME_Benchmark_release_version, with a folder of question files for each subtask",
    obtained_from="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (on request to the authors)",
    conventions={"bunny": _bunny},
)
