"""Split a table of images and captions for two stages of training and a test: `pairs.jsonl` to four tables.

python -m benchmarks.split_pairs PAIRS.jsonl FOLDER

`captions.jsonl` and `questions.jsonl` hold the same nine tenths of the images, for stages 1 and 2; `heldout.jsonl`
and `alike.jsonl` ask about the rest. Which image goes where depends on its name alone. The answers to choose from are
those of the next samples: in `heldout.jsonl` they are of any source; in `alike.jsonl`, which is in the order of the
sources, of one source and so of one wording.
"""

import argparse
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
QUESTION = "What is shown in this image?"
_LEFT_OUT = ("gimp-help", "kgeography-maps")  # images of text and of outlines: nothing to name at a small size


def split(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each table, by the table's name."""
    kept = sorted((row for row in rows if row["source"] not in _LEFT_OUT), key=lambda row: _digest(row["image"]))
    training = [row for row in kept if not _is_held_out(row)]
    held_out = [row for row in kept if _is_held_out(row)]
    return {
        "captions": [{"image": row["image"], "caption": row["caption"]} for row in training],
        "questions": [_asked(row) for row in training],
        "heldout": [_asked(row) for row in held_out],
        "alike": [_asked(row) for row in sorted(held_out, key=lambda row: str(row["source"]))],
    }


def _is_held_out(row: Row) -> bool:
    return int(_digest(row["image"]), 16) % 10 == 0


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _asked(row: Row) -> Row:
    turns = [("user", f"<image>\n{QUESTION}"), ("assistant", row["caption"])]
    return {"image": row["image"], "conversations": [{"role": role, "content": text} for role, text in turns]}


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with options.pairs.open() as lines:
        tables = split(map(json.loads, lines))
    for name, rows in tables.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (options.folder / f"{name}.jsonl").write_text(text)
        print(f"{name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
