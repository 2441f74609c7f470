"""Runs in an environment that has lmms-eval: its `llava_hf` answers the questions of a file on one core."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models.simple.llava_hf import LlavaHf
from PIL import Image

_TASK, _SPLIT = "bench", "test"
_NUM_WARM = 2


def main() -> None:
    """Print the seconds and the answers as one JSON object."""
    task: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    where = {"device": "cpu", "device_map": "cpu", "dtype": "float32"}
    model = LlavaHf(pretrained=task["model"], chat_template=_chat_template(), **where)
    model.task_dict = {_TASK: {_SPLIT: task["rows"]}}
    model.generate_until(_requests(task)[:_NUM_WARM])
    started = time.perf_counter()
    answers = model.generate_until(_requests(task))
    print(json.dumps({"seconds": time.perf_counter() - started, "answers": answers}))


def _requests(task: dict[str, Any]) -> list[Any]:
    return [
        Instance(
            request_type="generate_until",
            arguments=(row["text"], {"max_new_tokens": task["num_new_tokens"]}, _images, number, _TASK, _SPLIT),
            idx=0,
            metadata={"task": _TASK, "doc_id": number, "repeats": 1},
        )
        for number, row in enumerate(task["rows"])
    ]


def _images(row: dict[str, str]) -> list[Any]:
    return [Image.open(row["image"]).convert("RGB")]


def _chat_template() -> str:
    """Return Warren's template `brief` for one turn."""
    return "USER: {{ messages[0]['content'] }} ASSISTANT:"


if __name__ == "__main__":
    main()
