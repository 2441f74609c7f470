"""Asking a benchmark as a Ray Data job: tasks decode images, actors hold the model and store pieces of answers."""

import pickle
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from tqdm import tqdm

from warren.cluster.capacity import lacks, size_of, waiting
from warren.config import Resources
from warren.data.model_inputs import INPUTS_FILE, Inputs
from warren.evaluate.answer_pieces import AnswerPieces, QuestionPiece
from warren.evaluate.ask_model import ModelAsker, prepare_piece
from warren.evaluate.benchmark_run import BenchmarkRun
from warren.inference.engine import EngineError
from warren.storage import StoredFiles
from warren.storage.file_cache import local_copy

_READERS_PER_EVALUATOR = 2
_MAX_TRIES_PER_PIECE = 4
"""How often a piece may be begun without being stored. Then the job ends, because the piece may kill the evaluators."""

LoadAsker = Callable[[StoredFiles, int], ModelAsker]


def load_asker(model: StoredFiles, max_new_tokens: int) -> ModelAsker:
    """Load a model from storage into this process."""
    with local_copy(model) as folder:  # loading reads all of it
        return ModelAsker(folder, max_new_tokens)


def ask_on_cluster(
    run: BenchmarkRun, model: StoredFiles, resources: Resources, load: LoadAsker = load_asker
) -> tuple[int, int]:
    """Ask the questions of a run that no stored piece answers, and store each piece as soon as it is answered.

    Args:
        run: What is asked, and where the answers go.
        model: The files of the model that the run names.
        resources: `num_evaluators`, and what each of them gets.
        load: Loads the model in an evaluator.

    Returns:
        How many questions were asked now, and how many were answered before.

    Raises:
        EngineError: The model failed for all questions of a piece.
        StorageError: Storage did not answer within its deadline.
    """
    # The pieces lie in the object store, and the dataset has their numbers alone: `from_arrow_refs` would look at each
    # table in a task that needs a whole CPU, and wait for ever where no node has one free.
    pieces, num_left = [], 0
    for piece in run.remaining():
        num_left += len(piece.questions)
        pieces.append(ray.put(piece))
    if not pieces:
        return 0, len(run.keys)
    number, cpus, gpus = resources.num_evaluators, resources.cpus_per_replica, resources.gpus_per_replica
    evaluators = min(number, len(pieces))
    answered = (
        ray.data.from_blocks([pa.table({"number": [number]}) for number in range(len(pieces))])
        .map_batches(
            _Prepare(_inputs_of(model), pieces),
            batch_size=1,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(_READERS_PER_EVALUATOR * evaluators),
            num_cpus=0,  # evaluators may take every CPU, and would wait for ever for readers that need one
        )
        .map_batches(
            _Evaluator,
            fn_constructor_args=(model, run.pieces, run.plan.max_new_tokens, _Attempt.start(), load),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=evaluators),
            num_cpus=cpus,
            num_gpus=gpus,
        )
    )
    if lacks(evaluators * cpus, evaluators * gpus):
        print(f"{run.plan.benchmark}: {waiting(size_of(evaluators, 'evaluators', cpus, gpus))}", file=sys.stderr)
    num_asked = 0
    with tqdm(total=num_left, desc=f"ask {run.plan.benchmark}", unit="question", mininterval=5) as bar:
        for row in answered.iter_rows():
            num_asked += row["num_asked"]
            bar.update(row["num_questions"])
    return num_asked, len(run.keys) - num_left


def _inputs_of(model: StoredFiles) -> Inputs:
    return Inputs.from_json((model.folder / INPUTS_FILE).read_json())


@dataclass(frozen=True)
class _Prepare:
    """What a Ray Data task does: it decodes the images of a piece.

    Attributes:
        inputs: What the model takes.
        pieces: References to all pieces, by number.
    """

    inputs: Inputs
    pieces: list[Any]

    def __call__(self, batch: pa.Table) -> pa.Table:
        [number] = batch["number"].to_pylist()
        prepared = prepare_piece(ray.get(self.pieces[number]), self.inputs)
        # Pickled, because Ray Data splits tables by their size, and a piece must stay whole.
        return pa.table({"piece": [pickle.dumps(prepared, protocol=pickle.HIGHEST_PROTOCOL)]})


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)  # type: ignore[untyped-decorator]
class _Tries:
    """Counts how often each piece was begun; evaluators die, and Ray begins their piece again without end."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, piece: str) -> int:
        self._counts[piece] += 1
        return self._counts[piece]


@dataclass(frozen=True)
class _Attempt:
    """One start of the job."""

    name: str
    tries: Any

    @classmethod
    def start(cls) -> "_Attempt":
        return cls(uuid.uuid4().hex[:8], _Tries.remote())  # type: ignore[attr-defined]

    def begin(self, piece: QuestionPiece) -> None:
        """Count a try.

        Raises:
            EngineError: There were too many.
        """
        if ray.get(self.tries.begin.remote(piece.name)) > _MAX_TRIES_PER_PIECE:
            first, last = piece.questions[0].key, piece.questions[-1].key
            raise EngineError(
                f"the evaluator died {_MAX_TRIES_PER_PIECE} times while it asked the questions {first!r} to {last!r}: "
                "look into its log for the reason (often memory: lower --questions-per-piece). Answers so far are kept"
            )


class _Evaluator:
    """A Ray Data actor: it holds the model, and asks each piece unless somebody has done so."""

    def __init__(
        self, model: StoredFiles, pieces: AnswerPieces, max_new_tokens: int, attempt: _Attempt, load: LoadAsker
    ) -> None:
        self._asker = load(model, max_new_tokens)
        self._pieces, self._attempt = pieces, attempt

    def __call__(self, batch: pa.Table) -> pa.Table:
        [data] = batch["piece"].to_pylist()
        prepared = pickle.loads(data)
        piece: QuestionPiece = prepared.piece
        num_asked = 0
        if not self._pieces.is_stored(piece):  # Ray repeats the call of an actor that died behind its last write
            self._attempt.begin(piece)
            outcomes, effort = self._asker.ask(prepared, self._attempt.name)
            self._pieces.write(piece, outcomes, effort)
            num_asked = effort.num_asked
        return pa.table({"num_asked": [num_asked], "num_questions": [len(piece.questions)]})
