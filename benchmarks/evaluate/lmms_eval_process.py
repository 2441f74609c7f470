"""lmms-eval's own loop over the same model, where `LMMS_EVAL_PYTHON` names an environment that has it."""

import json
import os
import subprocess
from pathlib import Path

from benchmarks.evaluate.contestants import Questions

_VARIABLE = "LMMS_EVAL_PYTHON"
_LOOP = Path(__file__).with_name("lmms_eval_loop.py")
_TIMEOUT_S = 3600.0
_SHOWN_CHARS = 300


class LmmsEvalError(RuntimeError):
    """lmms-eval does not answer here."""


def why_not() -> str | None:
    """Return why lmms-eval is not measured; None where it can be."""
    python = os.environ.get(_VARIABLE)
    if not python:
        return f"{_VARIABLE} is not set"
    return None if Path(python).is_file() else f"{_VARIABLE} names {python}, which does not exist"


def ask_with_lmms_eval(model: Path, questions: Questions, folder: Path) -> tuple[float, list[str]]:
    """Answer all questions with lmms-eval's `llava_hf`; returns the seconds of its loop and the answers.

    Args:
        model: A model folder in LLaVA layout.
        questions: What is asked.
        folder: For the questions and images as files.

    Raises:
        LmmsEvalError: It does not run.
    """
    rows = []
    for number, (text, image) in enumerate(zip(questions.texts, questions.images, strict=True)):
        file = folder / f"{number}.jpg"
        file.write_bytes(image)
        rows.append({"text": text, "image": str(file)})
    task = folder / "questions.json"
    task.write_text(json.dumps({"model": str(model), "rows": rows, "num_new_tokens": questions.num_new_tokens}))
    done = subprocess.run(
        [os.environ[_VARIABLE], str(_LOOP), str(task)], capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if done.returncode:
        raise LmmsEvalError(" ".join(done.stderr.split())[-_SHOWN_CHARS:])
    result = json.loads(done.stdout.splitlines()[-1])
    return float(result["seconds"]), list(result["answers"])
