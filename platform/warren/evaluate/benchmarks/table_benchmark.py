"""Benchmarks that are published as one Parquet table and scored question by question."""

import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.table_records import Record, find_tables, read_records
from warren.evaluate.measures import Measure, mean, nested_values, share
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete
from warren.evaluate.scorers.vlmevalkit import NAME as VLMEVALKIT
from warren.evaluate.scorers.vlmevalkit import chosen_option
from warren.storage import Location

Points = Mapping[str, float]


@dataclass(frozen=True)
class TableTask:
    """How the rows of a table are asked and scored.

    Attributes:
        title: For people and messages.
        files: What the names of the table's files begin with.
        text: The question as it is sent.
        truth: What a right answer is, for reports.
        points: What an answer earns, between 0 and 1; answers come stripped.
        metric: What the convention calls the mean of all points.
        key: The id of a row; None numbers the rows from 0.
        group: What the table is broken down by.
        group_name: What the mean of a group is called.
        images: The columns of images, in order.
        is_share: Whether an answer earns all or nothing.
        cluster: What questions share, usually a document; by default each question stands alone.
        options: The options of a question, for multiple choice that VLMEvalKit scores too.
    """

    title: str
    files: str
    text: Callable[[Record], str]
    truth: Callable[[Record], str]
    points: Callable[[str, Record], float]
    metric: str
    key: str | None = None
    group: Callable[[Record], str] | None = None
    group_name: str = "groups/{}"
    images: Sequence[str] = ("image",)
    is_share: bool = True
    cluster: Callable[[Record], str] | None = None
    options: Callable[[Record], Sequence[str]] | None = None

    def rows(self, folder: Location) -> Iterator[tuple[str, Record]]:
        """Yield every row with its id."""
        number = 0
        for file in find_tables(folder, self.files):
            for record in read_records(file):
                yield str(number if self.key is None else record[self.key]), record
                number += 1

    def questions(self, folder: Location, split: str) -> Iterator[Question]:
        """Read the questions."""
        for key, record in self.rows(folder):
            images = tuple(image for column in self.images for image in record.image(column))
            yield Question(
                key, self.text(record), images, self.group(record) if self.group else "", self._cluster(key, record)
            )

    def score(self, answers: Answers, reference: Location) -> Scores:
        """Score every answer; every question needs one."""
        records = dict(self.rows(reference))
        answered = complete(answers, records, self.title)
        points = {key: self.points(answer.text.strip(), records[key]) for key, answer in answered.items()}
        clusters = {key: self._cluster(key, records[key]) for key in points}
        measures = [self.measure(self.metric, points, clusters)]
        for name, of in sorted(self.grouped(points, records).items()):
            measures.append(self.measure(self.group_name.format(name), of, clusters))
        return self.scores(points, records, measures)

    def score_as_vlmevalkit(self, answers: Answers, reference: Location) -> Scores:
        """Score multiple choice as VLMEvalKit does without a judge model; every question needs an answer."""
        records = dict(self.rows(reference))
        answered = complete(answers, records, self.title, convention=VLMEVALKIT)
        points = {
            key: float(chosen_option(answer.text, self._lettered(records[key])) == self.truth(records[key]))
            for key, answer in answered.items()
        }
        tables = {"Overall": points} | {
            f"category/{name}": of for name, of in sorted(self.grouped(points, records).items())
        }
        clusters = {key: self._cluster(key, records[key]) for key in points}
        return self.scores(points, records, [self.measure(name, of, clusters) for name, of in tables.items()])

    def _lettered(self, record: Record) -> dict[str, str]:
        options = self.options(record) if self.options else ()
        return dict(zip(string.ascii_uppercase, map(str, options), strict=False))

    def grouped(self, points: Points, records: Mapping[str, Record]) -> dict[str, dict[str, float]]:
        """Return the points by group."""
        groups: dict[str, dict[str, float]] = defaultdict(dict)
        for key, value in points.items() if self.group else ():
            groups[self.group(records[key])][key] = value  # type: ignore[misc]
        return groups

    def measure(self, name: str, points: Points, clusters: Mapping[str, str]) -> Measure:
        """Return the mean of points."""
        if not self.is_share:
            return mean(name, points, 1, clusters)
        return share(name, {key: bool(value) for key, value in points.items()}, 1, clusters)

    def _cluster(self, key: str, record: Record) -> str:
        return self.cluster(record) if self.cluster else key

    def scores(self, points: Points, records: Mapping[str, Record], measures: Sequence[Measure]) -> Scores:
        """Return what a convention reports: its measures, as nested numbers."""
        per_question = {key: {"truth": self.truth(records[key]), "score": value} for key, value in points.items()}
        return Scores(len(records), len(points), nested_values(measures), per_question, measures=measures)


def table_benchmark(name: str, task: TableTask, obtained_from: str, max_new_tokens: int, split: str) -> Benchmark:
    """Return the benchmark of a table, scored as lmms-eval's task does."""
    return Benchmark(
        name=name,
        title=task.title,
        reference=f"the folder of its Parquet files, {task.files}*.parquet",
        obtained_from=obtained_from,
        conventions={LMMS_EVAL: task.score} | ({VLMEVALKIT: task.score_as_vlmevalkit} if task.options else {}),
        questions={LMMS_EVAL: task.questions},
        data="the same folder; images are in it",
        splits=(split,),
        max_new_tokens=max_new_tokens,
    )
