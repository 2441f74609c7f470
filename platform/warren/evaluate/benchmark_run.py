"""One model's run of one benchmark in storage: its plan, its pieces of answers, and the files that they become.

benchmarks/BENCHMARK/MODEL-DIGEST/plan.json        what the answers are of; written first
benchmarks/BENCHMARK/MODEL-DIGEST/pieces/…         answers as they come, with their times
benchmarks/BENCHMARK/MODEL-DIGEST/answers.parquet  all answers in the order of the questions; the same bytes each time
benchmarks/BENCHMARK/MODEL-DIGEST/scores.json      and report.md, report.html
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from warren import __version__
from warren.errors import ConfigError, ConflictError, DataError
from warren.evaluate.answer_file import AnswersOrigin, StoredAnswer, write_answers
from warren.evaluate.answer_pieces import AnswerPieces, Outcome, QuestionPiece, StoredPieces
from warren.evaluate.benchmark_questions import prompt_convention, questions
from warren.evaluate.benchmarks import Benchmark, Question, benchmark_named
from warren.storage import Location, digest_bytes

QUESTIONS_PER_PIECE = 128
ANSWERS = "answers.parquet"
_PLAN = "plan.json"
_FORMAT = 1
_NAME_CHARS = 80


@dataclass(frozen=True)
class AskedModel:
    """Who answers.

    Attributes:
        name: For people.
        digest: Differs where the model differs.
        versions: Packages that compute the answers, by name.
    """

    name: str
    digest: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class QuestionSource:
    """Where the questions of one split are, and whose prompts they have.

    Attributes:
        name: The benchmark's name, or the path of its YAML file.
        data: The folder of its published files.
        split: None for the benchmark's first.
        convention: None for the benchmark's first.
    """

    name: str
    data: Location
    split: str | None = None
    convention: str | None = None

    @classmethod
    def of(
        cls, name: str, data: str | None, split: str | None = None, convention: str | None = None
    ) -> "QuestionSource":
        """Return the source that a command line names.

        Raises:
            ConfigError: There is no such benchmark, split or convention, or it is not said where its data is.
        """
        benchmark = benchmark_named(name)
        prompts = prompt_convention(name, convention)
        place = Location.parse(data) if data else benchmark.default_reference
        if place is None:
            raise ConfigError(f"{name} needs --data, the folder of its questions: {benchmark.data}")
        return cls(name, place, split or benchmark.splits[0], prompts)

    @cached_property
    def benchmark(self) -> Benchmark:
        """The benchmark itself."""
        return benchmark_named(self.name)

    def __iter__(self) -> Iterator[Question]:
        return questions(self.name, self.data, self.split, self.convention)


@dataclass(frozen=True)
class AskPlan:
    """Everything that decides the answers of a run; answers of another plan are never mixed in.

    Attributes:
        prompts: Whose prompts are sent.
        model: The model's name; `model_digest` differs where the model differs.
        questions_digest: Of keys, texts and numbers of images, in their order.
        questions_per_piece: Questions that are asked together. The last bits of a logit, and with them a close choice
            between two tokens, can depend on it.
    """

    benchmark: str
    split: str
    prompts: str
    model: str
    model_digest: str
    questions_digest: str
    num_questions: int
    questions_per_piece: int
    max_new_tokens: int
    code: str = f"warren {__version__}, format {_FORMAT}"

    @property
    def name(self) -> str:
        """A folder name that differs where anything differs, for example `demo-finetune-at-step-120-0d1f5c7a9b3e`."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", self.model).strip("-.")[:_NAME_CHARS]
        return f"{readable}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


class BenchmarkRun:
    """A plan, the folder that it is carried out in, and the questions.

    Args:
        source: The questions.
        model: Who answers.
        folder: Where everything is written; a folder below `root` by default.
        root: The storage root; needed without `folder`.
        questions_per_piece: Of `AskPlan`.

    Raises:
        ConfigError: The folder holds answers of something else.
        DataError: The questions cannot be read.
    """

    def __init__(
        self,
        source: QuestionSource,
        model: AskedModel,
        folder: Location | None = None,
        root: Location | None = None,
        questions_per_piece: int = QUESTIONS_PER_PIECE,
    ) -> None:
        self.source, self.model = source, model
        self.plan, self.keys = _plan(source, model, questions_per_piece)
        if folder is None:
            if root is None:
                raise ConfigError("nowhere to write the answers: set WARREN_STORAGE, or give --out FOLDER")
            folder = root / "benchmarks" / self.plan.benchmark / self.plan.name
        self.folder = folder
        self.pieces = AnswerPieces(folder)
        self._take_folder()

    def remaining(self) -> Iterator[QuestionPiece]:
        """Yield the pieces that are to be asked."""
        return self.pieces.remaining(self.source, self.plan.questions_per_piece)

    def join(self) -> tuple[list[Outcome], StoredPieces]:
        """Write all answers as one file and return them in the order of the questions.

        Raises:
            DataError: A question has no outcome yet, or a piece is damaged.
        """
        stored = self.pieces.read()
        missing = [key for key in self.keys if key not in stored.outcomes]
        if missing:
            raise DataError(
                f"{self.folder}: {len(missing)} of {len(self.keys)} questions were not asked, {missing[0]!r} first: "
                "run this again"
            )
        outcomes = [stored.outcomes[key] for key in self.keys]
        write_answers(self.folder / ANSWERS, [without_time(each.answer) for each in outcomes], self._origin(outcomes))
        return outcomes, stored

    def _origin(self, outcomes: list[Outcome]) -> AnswersOrigin:
        images = digest_bytes("\n".join(each.images for each in outcomes).encode())
        digests = {"model": self.model.digest, "questions": self.plan.questions_digest, "images": images}
        plan = self.plan
        return AnswersOrigin(plan.benchmark, plan.split, plan.prompts, plan.model, digests, dict(self.model.versions))

    def _take_folder(self) -> None:
        """Write the plan into a new folder, or check that the folder is of the same plan."""
        plan = asdict(self.plan)
        try:
            (self.folder / _PLAN).create_json(plan)
        except ConflictError:
            present = (self.folder / _PLAN).read_json()
            differing = [name for name in plan if present.get(name) != plan[name]]
            changes = [f"its {name} is {present.get(name)}, not {plan[name]}" for name in differing]
            if changes:
                raise ConfigError(
                    f"{self.folder} holds answers of something else ({'; '.join(changes)}): give another --out"
                ) from None


def without_time(answer: StoredAnswer) -> StoredAnswer:
    """Return an answer without its time: times differ from run to run, and stay in the pieces."""
    return replace(answer, seconds=None)


def _plan(source: QuestionSource, model: AskedModel, questions_per_piece: int) -> tuple[AskPlan, list[str]]:
    """Read all questions once; return the plan and their keys."""
    if questions_per_piece < 1:
        raise ConfigError(f"--questions-per-piece is {questions_per_piece}; it must be at least 1")
    keys, digest = [], hashlib.sha256()
    for question in source:
        keys.append(question.key)
        # Pixels are not in it: reading all images here would take as long as asking. Each piece has their digest.
        line = json.dumps([question.key, question.prompt, len(question.images), question.fixed_answer])
        digest.update(f"{line}\n".encode())
    benchmark = source.benchmark
    plan = AskPlan(
        benchmark.name,
        source.split or benchmark.splits[0],
        source.convention or "",
        model.name,
        model.digest,
        digest.hexdigest(),
        len(keys),
        questions_per_piece,
        benchmark.max_new_tokens,
    )
    return plan, keys
