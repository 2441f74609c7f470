"""A team's own test set as a benchmark: a few lines of YAML over JSON lines or Parquet."""

import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from warren.config import Config, load_config
from warren.errors import ConfigError, DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import ImageFolder, lettered
from warren.evaluate.benchmarks.reference_files import by_key, refuse_unknown
from warren.evaluate.benchmarks.table_records import Record, read_records
from warren.evaluate.measures import Measure, mean, share
from warren.evaluate.scorers.anls import anls
from warren.evaluate.scorers.texts import chosen_letter, contains, exact, relaxed
from warren.evaluate.scorers.vqa import normalise, soft_accuracies
from warren.storage import Location

CONVENTION = "warren"
_LETTERS = string.ascii_uppercase
_OPTIONS_FIELD = "options"


class BenchmarkFile(Config):
    """What a YAML file says.

    Attributes:
        name: What reports call the benchmark; the file's name by default.
        title: For people; the name by default.
        questions: A .jsonl, .json, .parquet or .tsv file; a relative path begins at the YAML file.
        images: The folder that image paths begin in; the questions' folder by default.
        key: The column of ids.
        prompt: The text of the question: columns in braces, as in `{question}`; `{options}` writes a line per option.
        image: The column of the image, or of its path; None for questions without.
        answer: The column of the truth: a text, a number, or a list of accepted ones.
        options: The columns of the options, or the one column that lists them. For `choice`.
        group: The column by which the table is broken down.
        scorer: How an answer becomes points.
        max_new_tokens: Longest answer.
    """

    name: str = ""
    title: str = ""
    questions: str
    images: str | None = None
    key: str = "id"
    prompt: str = "{question}"
    image: str | None = "image"
    answer: str = "answer"
    options: tuple[str, ...] = ()
    group: str | None = None
    scorer: Literal["exact", "contains", "choice", "anls", "relaxed", "vqa"] = "exact"
    max_new_tokens: int = 128

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
        except ValueError as error:
            raise ValueError(f"not a template: {error}; write {{{{ and }}}} for braces in the text") from None
        if any(not name.isidentifier() for name in fields):
            raise ValueError("name a column in braces, as in {question}; write {{ and }} for braces in the text")
        return prompt


@dataclass(frozen=True)
class _Table:
    """A benchmark file and where it lies."""

    config: BenchmarkFile
    folder: str

    @property
    def location(self) -> Location:
        """The file of questions."""
        return self._at(self.config.questions)

    def _at(self, path: str) -> Location:
        is_absolute = path.startswith("/") or "://" in path
        return Location.parse(path if is_absolute else f"{self.folder}/{path}")

    def questions(self, place: Location, split: str) -> Iterator[Question]:
        """Read the questions; `place` is the file."""
        config = self.config
        images: ImageFolder | None = None
        for record in read_records(place):
            sources: tuple[Any, ...] = ()
            if config.image:
                sources = record.image(config.image)
                path = record.get(config.image)
                if not sources and path:
                    # Listed at the first path, because a table may hold its images itself and have no folder.
                    images = images or ImageFolder(self._image_folder(place).list())
                    sources = (images.find(_text(record, config.image)),)
            key = self._key(record)
            cluster = str(record.get(config.image or "") or key)
            group = "" if config.group is None else str(record[config.group])
            yield Question(key, self._prompt(record), sources, group, cluster)

    def _image_folder(self, place: Location) -> Location:
        return self._at(self.config.images) if self.config.images else Location(place.uri.rpartition("/")[0])

    def _prompt(self, record: Record) -> str:
        fields = [name for _, name, _, _ in string.Formatter().parse(self.config.prompt) if name]
        values = {name: record[name] for name in fields if name != _OPTIONS_FIELD}
        if _OPTIONS_FIELD in fields:
            values[_OPTIONS_FIELD] = lettered("", list(self.options(record).values())).strip()
        return self.config.prompt.format(**values)

    def options(self, record: Record) -> dict[str, str]:
        """Return the options of a question by letter.

        Raises:
            DataError: There are fewer than two, or they cannot be read.
        """
        columns = self.config.options or (_OPTIONS_FIELD,)
        value = record[columns[0]] if len(columns) == 1 else [record.get(column) for column in columns]
        if not isinstance(value, list) or len(value) > len(_LETTERS):
            raise DataError(f"{record.where}: options must be a list of texts, found {str(value)[:80]!r}")
        options = [str(option) for option in value if option is not None]
        if len(options) < 2:
            raise DataError(f"{record.where}: {len(options)} options; a choice needs two")
        return dict(zip(_LETTERS, options, strict=False))

    def score(self, answers: Answers, place: Location) -> Scores:
        """Give every answer its points; a question without an answer earns none."""
        records = self._records(place)
        answered = by_key(answers)
        refuse_unknown(answered, records, self.config.name)
        per_question: dict[str, dict[str, Any]] = {}
        groups: dict[str, dict[str, float]] = defaultdict(dict)
        clusters = {}
        for key, record in records.items():
            # A failed request says nothing of the model, so the question is in no score.
            if key in answers.failed:
                continue
            truths = self._truths(record)
            answer = answered[key].text if key in answered else None
            # A question that the file does not answer is the model's fault, unlike a failed request.
            points = 0.0 if answer is None else self._points(answer, record, truths)
            per_question[key] = {"score": points, "truth": truths[0], "right": points == 1.0}
            clusters[key] = str(record.get(self.config.image or "") or key)
            if self.config.group:
                groups[str(record[self.config.group])][key] = points
        points_of = {key: row["score"] for key, row in per_question.items()}
        tables = {"percent": points_of} | {f"groups/{name}": of for name, of in sorted(groups.items())}
        measures = [self._measure(name, of, clusters) for name, of in tables.items() if of]
        scores: dict[str, Any] = {"percent": 100 * sum(points_of.values()) / max(1, len(points_of))}
        if groups:
            scores["groups"] = {name: 100 * sum(of.values()) / len(of) for name, of in sorted(groups.items())}
        return Scores(len(records), len(answered), scores, per_question, measures=measures)

    def _records(self, place: Location) -> dict[str, Record]:
        records: dict[str, Record] = {}
        for record in read_records(place):
            if records.setdefault(self._key(record), record) is not record:
                raise DataError(f"{record.where}: the id {self._key(record)!r} occurs twice; ids must be unique")
        return records

    def _key(self, record: Record) -> str:
        key = record[self.config.key]
        if key is None or not str(key).strip():
            raise DataError(f"{record.where}: no id in column {self.config.key!r}")
        return str(key)

    def _measure(self, name: str, points: Mapping[str, float], clusters: Mapping[str, str]) -> Measure:
        if self.config.scorer in ("anls", "vqa"):
            return mean(name, points, 100, clusters)
        return share(name, {key: value == 1.0 for key, value in points.items()}, 100, clusters)

    def _points(self, answer: str, record: Record, truths: Sequence[str]) -> float:
        if self.config.scorer != "choice":
            return _SCORERS[self.config.scorer](answer, truths)
        options = self.options(record)
        return float(chosen_letter(answer, options) in {_letter(truth, options, record) for truth in truths})

    def _truths(self, record: Record) -> list[str]:
        value = record[self.config.answer]
        truths = [str(one) for one in (value if isinstance(value, list) else [value]) if one is not None]
        if not truths:
            raise DataError(f"{record.where}: no truth in column {self.config.answer!r}")
        return truths


def _vqa(answer: str, truths: Sequence[str]) -> float:
    return soft_accuracies(truths).get(normalise(answer), 0.0)


_SCORERS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact,
    "contains": contains,
    "relaxed": relaxed,
    "anls": anls,
    "vqa": _vqa,
}


def yaml_benchmark(path: str) -> Benchmark:
    """Read a YAML file that defines a benchmark.

    Raises:
        ConfigError: It is not valid.
    """
    config = load_config(BenchmarkFile, path, [])
    if config.scorer != "choice" and config.options and "{options}" not in config.prompt:
        raise ConfigError(
            f"{path}: options are read by the scorer choice and by {{options}} in the prompt; neither is used"
        )
    table = _Table(config, str(Path(path).absolute().parent))
    return Benchmark(
        name=config.name,
        title=config.title or config.name,
        reference=f"{config.questions} (default: where the file says)",
        obtained_from=path,
        conventions={CONVENTION: table.score},
        questions={CONVENTION: table.questions},
        data=config.questions,
        splits=("all",),
        max_new_tokens=config.max_new_tokens,
        default_reference=table.location,
    )


def _letter(truth: str, options: Mapping[str, str], record: Record) -> str:
    """Return the letter of a truth: itself, or the option with this text."""
    if truth.strip().upper() in options:
        return truth.strip().upper()
    same = [letter for letter, option in options.items() if option == truth]
    if len(same) != 1:
        raise DataError(f"{record.where}: the truth {truth!r} is neither a letter nor the text of one option")
    return same[0]


def _text(record: Record, column: str) -> str:
    value = record[column]
    if not isinstance(value, str):
        raise DataError(f"{record.where}: {column} must be the path of an image, found {str(value)[:80]!r}")
    return value
