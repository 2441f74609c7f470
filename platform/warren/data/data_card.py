"""The data card: a Markdown page with plots beside a dataset's manifest, for people.

Its first lines are for the Hugging Face `datasets` library: they name the shards as the data, because the folder holds
other Parquet files too.
"""

from warren.data.manifest import Manifest
from warren.data.plots import new_figure, to_png
from warren.data.statistics import Statistics
from warren.storage import Location

CARD = "README.md"
_PLOT = "card.png"
_TITLES = {
    "longer_side_px": ("images by longer side", "px"),
    "characters": ("samples by length of text", "characters"),
    "questions": ("samples by number of questions", "user turns"),
}


def write_card(folder: Location, manifest: Manifest, statistics: Statistics) -> None:
    """Write a dataset's card and its plots."""
    (folder / _PLOT).put_bytes(_plots(statistics))
    (folder / CARD).put_bytes(_markdown(manifest, statistics).encode())


def _markdown(manifest: Manifest, statistics: Statistics) -> str:
    totals = statistics.totals
    samples = max(1, totals["samples"])
    facts = {
        "samples": f"{manifest.rows:,}",
        "images": f"{totals['images']:,} ({_megabytes(totals['image_bytes'])})",
        "samples without an image": f"{totals['text_only']:,}",
        "shards": f"{len(manifest.shards):,} ({_megabytes(sum(shard.file.bytes for shard in manifest.shards))})",
        "characters per sample": f"{totals['characters'] / samples:.0f} in the mean",
        "quarantined": f"{totals['quarantined']:,} of {totals['quarantined'] + totals['samples']:,}",
        "source": manifest.source,
        "licence": manifest.licence,
        "digest": f"`{manifest.digest}`",
    }
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files: shard-*.parquet",
        "---",
        f"# {manifest.name}@{manifest.version}",
        "",
        *_table(("", ""), facts.items()),
        "",
        f"![What the samples are like]({_PLOT})",
    ]
    for name, (title, unit) in _TITLES.items():
        lines += ["", f"## {title.capitalize()}", "", *_table((unit, "count"), _counts(statistics, name))]
    if statistics.reasons:
        lines += ["", "## Quarantined", "", "Each is named in `quarantine/`.", ""]
        lines += _table(("reason", "count"), statistics.reasons.most_common())
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, str], rows: object) -> list[str]:
    cells = [(str(left).replace("|", "\\|"), str(right).replace("|", "\\|")) for left, right in rows]  # type: ignore[attr-defined]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {left} | {right} |" for left, right in cells)]


def _counts(statistics: Statistics, name: str) -> list[tuple[str, int]]:
    return list(statistics.to_json()[name].items())


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _plots(statistics: Statistics) -> bytes:
    figure = new_figure(13, 3.6)
    for axis, (name, (title, unit)) in zip(figure.subplots(1, len(_TITLES)), _TITLES.items(), strict=True):
        counts = _counts(statistics, name)
        axis.bar([label for label, _ in counts], [count for _, count in counts], color="tab:blue")
        axis.set(title=title, xlabel=unit)
        axis.tick_params(axis="x", rotation=60)
        axis.grid(axis="y", alpha=0.3)
    return to_png(figure)
