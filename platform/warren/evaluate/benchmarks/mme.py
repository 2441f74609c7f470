"""MME (arXiv 2306.13394): two yes/no questions an image, fourteen subtasks."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question, number_repeats, published_id
from warren.evaluate.benchmarks.question_files import SHORT_ANSWER, matching_file, questions_of_file, with_images
from warren.evaluate.benchmarks.reference_files import read_lines
from warren.evaluate.measures import Measure, blocks, summed
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.vlmevalkit import NAME as VLMEVALKIT
from warren.evaluate.scorers.vlmevalkit import yes_or_no
from warren.storage import Location

_PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_ASKED = "Please answer yes or no."
_PREFIX_CHARS = 4
_QUESTIONS_PER_IMAGE = 2


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Score as MME's own `calculation.py`: accuracy plus the share of images with both questions right."""
    return _score(answers, _without_failed(_truths(reference), answers.failed), _decision)


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's task `mme`: the same sums, but answers are stripped first, of full stops too."""
    names = {"Perception": "mme_perception_score", "Cognition": "mme_cognition_score"}
    return _renamed(_score(answers, _without_failed(_truths(reference), answers.failed), _lmms_decision), names)


def _vlmevalkit(answers: Answers, reference: Location) -> Scores:
    """Score as VLMEvalKit's dataset `MME`: the same sums, yes or no as the only one of the two words."""
    names = {"Perception": "perception", "Cognition": "reasoning"}
    return _renamed(_score(answers, _without_failed(_truths(reference), answers.failed), _vlmevalkit_decision), names)


def _vlmevalkit_decision(text: str) -> str:
    return (yes_or_no(text) or "other").lower()


def _renamed(result: Scores, names: Mapping[str, str]) -> Scores:
    """Return the scores in the form of a harness: the sums by its names, and the subtasks beside them."""
    groups = result.scores or {}
    totals = {new: groups[old]["total"] for old, new in names.items() if groups[old]["tasks"]}
    scores = totals | {"tasks": {task: value for old in names for task, value in groups[old]["tasks"].items()}}
    measures = []
    for measure in result.measures:
        group, _, name = measure.name.partition("/")
        measures.append(replace(measure, name=names[group] if name == "total" else name))
    return replace(result, scores=scores, measures=measures)


def _lmms_decision(text: str) -> str:
    text = text.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or _decision(text)


def _score(answers: Answers, truths: Mapping[tuple[str, str, str], str], decide: Callable[[str], str]) -> Scores:
    decided: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    per_question = {}
    images = {place[:2] for place in truths}
    for answer in answers:
        task, image = _place(answer.key)
        if answers.failed and (task, image) not in images:
            continue  # the other question about its image failed
        question = _question(answer.prompt, task, image, truths)
        decision = decide(answer.text)
        truth = truths[task, image, question].lower()
        right = decision == truth
        decided[task].append((image, right))
        per_question[f"{published_id(answer.key)}: {question}"] = {
            "key": answer.key,
            "decided": decision,
            "truth": truth,
            "right": right,
        }
    counts: dict[str, int] = defaultdict(int)
    for task, _, _ in truths:
        counts[task] += 1
    groups = {
        name: _group([task for task in tasks if counts[task]], decided, counts)
        for name, tasks in (("Perception", _PERCEPTION), ("Cognition", _COGNITION))
    }
    return Scores(len(truths), len(per_question), groups, per_question, measures=_measures(decided))


def _measures(decided: Mapping[str, Sequence[tuple[str, bool]]]) -> list[Measure]:
    """Return a number for each subtask and for the two sums; questions about one image belong together."""
    by_task = {task: _components(task, rows) for task, rows in decided.items() if rows}
    measures = []
    for name, tasks in (("Perception", _PERCEPTION), ("Cognition", _COGNITION)):
        present = [task for task in tasks if task in by_task]
        parts = {f"{name}/total": blocks([by_task[task] for task in present])} if present else {}
        parts |= {f"{name}/tasks/{task}": by_task[task] for task in present}
        for path, components in parts.items():
            clusters = {key: key.rpartition("#")[0] for key in components}
            measures.append(summed(path, "mme", components, 100, clusters))
    return measures


def _components(task: str, rows: Sequence[tuple[str, bool]]) -> dict[str, tuple[float, ...]]:
    """Return of each question: right, one, half if its image has both right, half an image."""
    both: dict[str, bool] = {}
    for image, right in rows:
        both[image] = right and both.get(image, True)
    seen: dict[str, int] = defaultdict(int)
    components: dict[str, tuple[float, ...]] = {}
    for image, right in rows:
        seen[image] += 1
        components[f"{task}/{image}#{seen[image]}"] = (float(right), 1.0, both[image] / 2, 0.5)
    return components


def _place(key: str) -> tuple[str, str]:
    """Return subtask and question file of an answer's id."""
    task, _, file = published_id(key).partition("/")
    return task, file.rpartition("/")[2].split(".")[0] + ".txt"


def _without_failed(
    truths: Mapping[tuple[str, str, str], str], failed: frozenset[str]
) -> Mapping[tuple[str, str, str], str]:
    """Leave out images with a question whose request failed: accuracy+ needs both."""
    places = {_place(key) for key in failed}
    return {place: truth for place, truth in truths.items() if place[:2] not in places}


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


def _decision(text: str) -> str:
    text = text.lower()
    if text in ("yes", "no"):
        return text
    prefix = text[:_PREFIX_CHARS]
    return "yes" if "yes" in prefix else "no" if "no" in prefix else "other"


def _question(prompt: str, task: str, image: str, truths: Mapping[tuple[str, str, str], str]) -> str:
    """Return the reference's spelling of a question; some of its files have two spaces before the last sentence."""
    bare = prompt.replace(SHORT_ANSWER, "").strip()
    tried = [bare] if _ASKED in bare else [f"{bare} {_ASKED}", f"{bare}  {_ASKED}"]
    for question in tried:
        if (task, image, question) in truths:
            return question
    raise DataError(f"MME {task}/{image} has no question {bare[:80]!r}: answers and reference do not belong together")


def _truths(reference: Location) -> dict[tuple[str, str, str], str]:
    """Read the answer of every (subtask, file, question)."""
    truths = {}
    for file in reference.list():
        parts = file.uri.removeprefix(reference.uri).strip("/").split("/")
        if len(parts) < 2 or not file.name.endswith(".txt") or parts[0] not in _PERCEPTION + _COGNITION:
            continue
        for number, line in enumerate(read_lines(file), 1):
            if not line.strip():
                continue
            question, tab, truth = line.strip().partition("\t")
            if not tab:
                raise DataError(f"{file}: line {number} is not 'question TAB answer'")
            truths[parts[0], file.name, question] = truth
    if not truths:
        raise DataError(f"{reference}: no MME subtask folder with question files, such as existence/*.txt")
    return truths


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read Bunny's question file, or make the same questions of the published folder."""
    file = matching_file(folder, "*mme*.jsonl")
    questions = questions_of_file(file, folder) if file else _of_release(folder)
    for question in number_repeats(questions):
        yield replace(question, group=question.key.partition("/")[0])


def _of_release(folder: Location) -> Iterator[Question]:
    images = {
        (file.uri.removeprefix(folder.uri).strip("/").split("/")[0], file.name.rpartition(".")[0]): file
        for file in folder.list()
        if file.name.lower().endswith((".jpg", ".jpeg", ".png"))
    }
    with_paths = []
    for task, name, question in _truths(folder):
        image = images.get((task, name.removesuffix(".txt")))
        path = f"{task}/{name.removesuffix('.txt')}.jpg" if image is None else _below(folder, image)
        text = f"{question.replace(_ASKED, '').strip()}\n{SHORT_ANSWER}"
        with_paths.append((Question(f"{task}/{path.rpartition('/')[2]}", text), [path]))
    return with_images(folder, with_paths)


def _below(folder: Location, file: Location) -> str:
    return file.uri.removeprefix(folder.uri).strip("/")


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    reference="the folder MME_Benchmark_release_version, with a folder of question files for each subtask",
    obtained_from="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (on request to the authors)",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval, VLMEVALKIT: _vlmevalkit},
    questions={"bunny": _questions},
    data="the same folder with its images; questions may also come from bunny_mme.jsonl or llava_mme.jsonl in it",
)
