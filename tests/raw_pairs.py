"""Raw pairs in every format that Warren imports, each with the same bad rows among the good."""

import csv
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factories import COLOURS, make_image
from warren.config import IngestConfig
from warren.config.ingest import ColumnsConfig


def bomb() -> bytes:
    """Return a PNG of a few bytes that claims 9,000 × 9,000 pixels."""
    claim = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", claim), (b"IDAT", zlib.compress(b""))]
    encoded = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)


BAD_IMAGES = {
    "junk": (b"no image", "no known image format"),
    "truncated": (make_image(size=(300, 200), kind="JPEG")[:400], "cannot be decoded"),
    "empty": (b"", r"empty \(0 bytes\)"),
    "bomb": (bomb(), "9000×9000 pixels"),
}


def colour_image(number: int, kind: str = "JPEG") -> bytes:
    return make_image(COLOURS[list(COLOURS)[number % len(COLOURS)]], (40 + number, 30), kind)


def caption(number: int) -> str:
    return f'a {list(COLOURS)[number % len(COLOURS)]}, "flat" image\nnumber {number}'


def messages(number: int, mark: str = "<image>\n") -> list[dict[str, str]]:
    colour = list(COLOURS)[number % len(COLOURS)]
    return [{"from": "human", "value": f"{mark}which colour? {number}"}, {"from": "gpt", "value": f"it is {colour} ü"}]


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(colour_image(number))
    for name, (data, _) in BAD_IMAGES.items():
        (folder / f"{name}.jpg").write_bytes(data)


def bunny_records(good: int) -> list[dict[str, Any]]:
    """Return good records, one of them of text alone, and one record for everything that may be wrong."""
    records: list[dict[str, Any]] = [
        {"id": str(n), "image": f"{n}.jpg", "conversations": messages(n)} for n in range(good - 1)
    ]
    records.append({"id": "text", "conversations": messages(good, mark="")})
    records += [{"id": n, "image": f"{n}.jpg", "conversations": messages(0)} for n in BAD_IMAGES]
    records += [
        {"id": "missing", "image": "nowhere.jpg", "conversations": messages(0)},
        {"id": "no mark", "image": "0.jpg", "conversations": messages(0, mark="")},
        {"id": "no image", "conversations": messages(0)},
        {"id": "roles", "image": "0.jpg", "conversations": messages(0)[:1] * 2},
        {"id": "speaker", "image": "0.jpg", "conversations": [{"from": "system", "value": "<image>"}]},
        {"id": "long", "image": "0.jpg", "conversations": messages(0, mark="<image>" + "x" * 3000)},
        {"id": "none", "image": "0.jpg"},
        {"id": "outside", "image": "../secret.jpg", "conversations": messages(0)},
    ]
    return records


def write_bunny_json(folder: Path, good: int, name: str = "pairs") -> IngestConfig:
    write_images(folder / "images", good)
    (folder / f"{name}.json").write_text(json.dumps(bunny_records(good), indent=1, ensure_ascii=False))
    return config("bunny-json", path=str(folder / f"{name}.json"), images=str(folder / "images"))


def write_webdataset(folder: Path, good: int, per_tar: int = 5) -> IngestConfig:
    folder.mkdir(parents=True, exist_ok=True)
    images = [(f"{n:09d}", colour_image(n)) for n in range(good)]
    images[3:3] = [(name, data) for name, (data, _) in BAD_IMAGES.items()]
    images.append(("failed", None))  # type: ignore[arg-type]
    for number, start in enumerate(range(0, len(images), per_tar)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for key, data in images[start : start + per_tar]:
                facts = {
                    "url": f"http://example.org/{key}",
                    "status": "success" if data is not None else "failed_to_download",
                }
                members = {
                    "json": json.dumps({**facts, "error_message": None if data is not None else "HTTP 404"}).encode()
                }
                if data is not None:
                    members = {"jpg": data, "txt": caption(int(key) if key.isdigit() else 0).encode(), **members}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return config("webdataset", path=str(folder))


def write_parquet(folder: Path, good: int) -> IngestConfig:
    write_images(folder / "images", good)
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": colour_image(n), "path": None}, "text": caption(n)} for n in range(good)
    ]
    rows[1]["image"] = {"bytes": None, "path": "1.jpg"}
    rows += [{"image": {"bytes": data, "path": None}, "text": "bad"} for data, _ in BAD_IMAGES.values()]
    rows += [{"image": None, "text": "no image"}, {"image": rows[0]["image"], "text": None}]
    for number, start in enumerate(range(0, len(rows), 9)):
        pq.write_table(pa.Table.from_pylist(rows[start : start + 9]), folder / f"{number}.parquet", row_group_size=2)
    columns = ColumnsConfig(caption="text")
    return config("parquet", path=str(folder / "*.parquet"), images=str(folder / "images"), columns=columns)


def write_csv(folder: Path, good: int) -> IngestConfig:
    write_images(folder / "images", good)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file)
        table.writerow(["url", "text", "more"])
        table.writerows([f"{n}.jpg", caption(n), n] for n in range(good))
        table.writerows([f"{name}.jpg", "bad", 0] for name in BAD_IMAGES)
        table.writerows([["nowhere.jpg", "bad", 0], ["", "bad", 0], ["0.jpg", " ", 0]])
    columns = ColumnsConfig(image="url", caption="text")
    return config("table", path=str(folder / "pairs.csv"), images=str(folder / "images"), columns=columns)


def write_jsonl(folder: Path, good: int) -> IngestConfig:
    write_images(folder / "images", good)
    lines = [json.dumps({"image": r.get("image"), "talk": r.get("conversations")}) for r in bunny_records(good)]
    (folder / "pairs.jsonl").write_text("\n".join([*lines[:2], "", *lines[2:], "{broken", "[1]"]) + "\n")
    columns = ColumnsConfig(conversations="talk")
    return config("table", path=str(folder / "pairs.jsonl"), images=str(folder / "images"), columns=columns)


def config(source: str, **changes: Any) -> IngestConfig:
    values = {
        "source": source,
        "name": "pairs",
        "samples_per_shard": 4,
        "samples_per_row_group": 2,
        "max_characters": 2000,
        "max_quarantined_fraction": 0.9,
        **changes,
    }
    return IngestConfig(**values)
