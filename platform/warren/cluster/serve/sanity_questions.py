"""Sanity questions of a new release: some of its evaluation's questions, with the answers that are right.

A rollout asks them of the candidate and of the serving release before the candidate gets any traffic
(`warren.rollout.answer_checks`), so that a model that learnt less is undone by its answers.
"""

import base64
import json
from collections.abc import Iterator

from warren.config import EvaluateConfig
from warren.data.golden_cases import GOLDEN_FOLDER
from warren.data.manifest import dataset_folder, read_manifest
from warren.data.sample import IMAGE_MARK, Sample
from warren.data.stream import read_group
from warren.storage import FileEntry, Location, digest_bytes

QUESTIONS_FILE = f"{GOLDEN_FOLDER}/questions.json"
_NUM_QUESTIONS = 64
_MAX_IMAGE_BYTES = 1 << 20


def write_questions(config: EvaluateConfig, root: Location, folder: Location) -> tuple[FileEntry, ...]:
    """Write the questions into the folder of a release; return their entry.

    Only an exact match has one right answer; an evaluation of another kind gives no questions.
    """
    if config.metric != "exact_match":
        return ()
    questions = [question for sample in _samples(config, root) if (question := _question(sample)) is not None]
    if not questions:
        return ()
    data = json.dumps({"dataset": config.dataset, "cases": questions}, indent=1).encode()
    (folder / QUESTIONS_FILE).put_bytes(data)
    return (FileEntry(QUESTIONS_FILE, len(data), digest_bytes(data)),)


def _samples(config: EvaluateConfig, root: Location) -> Iterator[Sample]:
    """Yield samples from all over the dataset, without reading all of it."""
    manifest = read_manifest(root, config.dataset)
    groups = [shard.group(number) for shard in manifest.shards for number in range(len(shard.row_groups))]
    num_groups = min(len(groups), _NUM_QUESTIONS)
    for place in range(num_groups):
        rows = read_group(dataset_folder(root, config.dataset), groups[place * len(groups) // num_groups]).to_pylist()
        num_rows = min(len(rows), _NUM_QUESTIONS // num_groups)
        # Spread evenly in the row group, because neighbours are often about the same image.
        yield from (Sample.from_row(rows[row * len(rows) // num_rows]) for row in range(num_rows))


def _question(sample: Sample) -> dict[str, str] | None:
    """Return the first question of a sample as `warren.rollout.questions` reads it; None if it is not of that form."""
    if [turn.role for turn in sample.turns[:2]] != ["user", "assistant"] or len(sample.images) > 1:
        return None
    if any(len(image) > _MAX_IMAGE_BYTES for image in sample.images):
        return None
    question = {"question": sample.turns[0].text.replace(IMAGE_MARK, "").strip(), "expected": sample.turns[1].text}
    if sample.images:
        image = base64.b64encode(sample.images[0]).decode()
        question["image"] = f"data:application/octet-stream;base64,{image}"
    return question
