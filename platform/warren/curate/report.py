"""The report of a selection: counts, a map of clusters, scores with their bands, groups and images of every step.

A hash of the rows decides which images are shown, so equal selections have equal reports, byte for byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from warren.curate.cluster_map import ClusterMap
from warren.curate.row_mask import RowSet, StoredRows
from warren.curate.sample_pieces import SamplePiece, read_row
from warren.curate.sampling import sample
from warren.data.images import MAX_PIXELS, decode_image
from warren.data.manifest import Manifest
from warren.data.plots import new_figure, to_png
from warren.storage import Location

CARD = "README.md"
_SHOWN = 16  # images in each half of a contact sheet
_TILE_PX = 96
_BINS = 60
_PLOTS = ("funnel", "clusters", "scores", "groups", "matches", "images")  # in the order of a card
_TITLES = {
    "funnel": "Samples after each step",
    "clusters": "Clusters",
    "scores": "{}: scores",
    "groups": "{}: largest groups",
    "matches": "{}: matches",
    "images": "{}: images",
}
Groups = tuple[tuple[int, tuple[int, ...]], ...]
_GREY, _BLUE = "tab:gray", "tab:blue"


@dataclass(frozen=True)
class ScoreTable:
    """The scores of a rank band.

    Attributes:
        values: The scores, or a part of them, for the histogram.
        lowest: The lowest score that was kept.
        highest: The highest score that was kept.
    """

    by: str
    values: np.ndarray
    lowest: float
    highest: float


@dataclass(frozen=True)
class StepReport:
    """What the report shows of one step.

    Attributes:
        before: The rows that were selected before it; `num_before` is their number.
        after: The rows that it kept; `num_after` is their number.
        groups: For near duplicates: size and first rows of the largest groups.
        matches: For evaluation images that were found: some of the pairs.
    """

    name: str
    before: StoredRows
    after: StoredRows
    num_before: int
    num_after: int
    scores: ScoreTable | None = None
    groups: Groups = ()
    matches: tuple["ImagePair", ...] = ()


@dataclass(frozen=True)
class ImagePair:
    """A sample, and a sample of an evaluation set whose image it shows.

    Attributes:
        evaluation: The pieces of the evaluation set.
    """

    row: int
    evaluation: tuple[SamplePiece, ...]
    evaluation_row: int


def write_report(
    folder: Location, steps: Sequence[StepReport], pieces: Sequence[SamplePiece], clusters: ClusterMap | None
) -> None:
    """Write the images of a report into a folder."""
    plots = {"funnel": _funnel(steps), "clusters": _map(clusters, pieces) if clusters else None}
    for number, step in enumerate(steps):
        name = f"{number:02d}-{step.name}"
        plots[f"{name}-scores"] = _histogram(step.scores) if step.scores else None
        plots[f"{name}-groups"] = _groups(step.groups, pieces) if step.groups else None
        plots[f"{name}-matches"] = _matches(step.matches, pieces) if step.matches else None
        plots[f"{name}-images"] = _contact_sheet(step, pieces)
    for name, plot in plots.items():
        if plot is not None:
            (folder / f"{name}.png").put_bytes(plot)


def write_card(folder: Location, manifest: Manifest, report: str) -> None:
    """Write a selection's card, which shows the report.

    Args:
        report: The report's folder below the dataset's.
    """
    record = manifest.selection
    lines = [
        f"# {manifest.name}@{manifest.version}",
        "",
        f"A selection of {manifest.rows:,} samples. Many are read from the shards of the datasets it came from, so",
        "give it to Warren (`dataset:` in a recipe) rather than to other tools.",
        "",
        "| selected from | digest |",
        "|---|---|",
        *(f"| {name} | `{digest}` |" for name, digest in record["parents"].items()),
        "",
        "| step | before | after | kept |",
        "|---|---|---|---|",
    ]
    for each in record["counts"]:
        share = each["after"] / each["before"]
        lines.append(f"| {each['step']} | {each['before']:,} | {each['after']:,} | {share:.1%} |")
    if "certificate" in record:
        certificate = record["certificate"]
        fate, sets = "removed" if certificate["removed"] else "kept", ", ".join(certificate["evaluations"])
        number = certificate["samples_matched"]
        some = "1 sample shows an image" if number == 1 else f"{number:,} samples show images"
        lines += ["", f"Contamination: {some} of {sets} ({fate}); `{certificate['file']}` has the list."]
    names = [file.name.removesuffix(".png") for file in (folder / report).list() if file.name.endswith(".png")]
    for name in sorted(names, key=_order):
        step, _, kind = name.rpartition("-")
        title = _TITLES[kind].format(step[3:])
        lines += ["", f"## {title}", "", f"![{title}]({report}/{name}.png)"]
    (folder / CARD).put_bytes(("\n".join(lines) + "\n").encode())


def _order(name: str) -> tuple[bool, str, int]:
    """Sort the plots of a report: first those of the whole, then step by step."""
    step, _, kind = name.rpartition("-")
    return step != "", step, _PLOTS.index(kind)


def _funnel(steps: Sequence[StepReport]) -> bytes:
    figure, axis = _figure(8.0, 0.5 * len(steps) + 1.6)
    names = ["start", *(step.name for step in steps)]
    counts = [steps[0].num_before, *(step.num_after for step in steps)]
    places = np.arange(len(names))
    axis.barh(places, counts, color=_BLUE)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.set(title="samples after each step", xlabel="samples", xlim=(0, max(counts) * 1.25))
    for place, count in zip(places, counts, strict=True):
        axis.text(count + max(counts) * 0.01, place, f"{count:,} ({count / max(1, counts[0]):.1%})", va="center")
    return to_png(figure)


def _histogram(scores: ScoreTable) -> bytes:
    figure, axis = _figure(8.0, 3.4)
    edges = np.histogram_bin_edges(scores.values, _BINS)
    axis.hist(scores.values, edges, color=_GREY, label="left out")
    inside = scores.values[(scores.values >= scores.lowest) & (scores.values <= scores.highest)]
    axis.hist(inside, edges, color=_BLUE, label="kept")
    for edge in (scores.lowest, scores.highest):
        axis.axvline(edge, color="black", linewidth=1, linestyle="--")
    title = f"{scores.by}: kept from {scores.lowest:.3f} to {scores.highest:.3f}"
    axis.set(title=title, xlabel=scores.by, ylabel="samples")
    axis.legend(loc="upper right")  # to look for the best place takes long with many bars, and matplotlib warns
    return to_png(figure)


def _map(clusters: ClusterMap, pieces: Sequence[SamplePiece]) -> bytes:
    """Draw clusters as discs: position by centroid, area by size, colour by the share that was kept."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    figure, axis = _figure(8.0, 6.4)
    areas = 20 + 380 * clusters.sizes / clusters.sizes.max()
    shares = clusters.kept / clusters.sizes
    discs = axis.scatter(*clusters.points.T, s=areas, c=shares, vmin=0, cmap="viridis", alpha=0.8)
    figure.colorbar(discs, label="share of the cluster in the selection", shrink=0.8)
    for place, row in clusters.examples.items():
        for tile in _tiles([row], pieces):
            x, y = clusters.points[place]
            beside = (x + (0.07 if x < 0.85 else -0.07), y)
            box = AnnotationBbox(OffsetImage(np.asarray(tile), zoom=0.38), (x, y), beside, pad=0.1)
            box.patch.set_edgecolor(_GREY)
            axis.add_artist(box)
    number, shown = clusters.num_clusters, len(clusters.points)
    which = f"{number:,} clusters" if shown == number else f"the {shown:,} largest of {number:,} clusters"
    axis.set(title=f"{which}: area by samples, image nearest to the centroid", xlim=(-0.08, 1.08), ylim=(-0.08, 1.08))
    axis.set(xlabel="first principal component of the centroids", ylabel="second", xticks=[], yticks=[])
    return to_png(figure)


def _contact_sheet(step: StepReport, pieces: Sequence[SamplePiece]) -> bytes | None:
    """Draw images that a step kept above images that it left out; None if the samples have no images."""
    kept = step.after.load()
    dropped = RowSet(kept.num_rows, step.before.load().bits & ~kept.bits)
    halves = [("kept", kept), ("left out", dropped)]
    drawn = [(f"{name} ({len(rows):,})", _tiles(_rows(sample(rows, _SHOWN, 0)), pieces)) for name, rows in halves]
    return _sheet([each for each in drawn if each[1]], step.name)


def _groups(groups: Groups, pieces: Sequence[SamplePiece]) -> bytes:
    drawn = [(f"{size:,} alike", _tiles(list(rows[: _SHOWN // 2]), pieces)) for size, rows in groups]
    return _sheet([each for each in drawn if each[1]], "largest groups", _SHOWN // 2) or b""


def _matches(matches: Sequence[ImagePair], pieces: Sequence[SamplePiece]) -> bytes:
    drawn = [
        ("samples", [tile for pair in matches for tile in _tiles([pair.row], pieces)]),
        ("images of evaluation sets", [tile for m in matches for tile in _tiles([m.evaluation_row], m.evaluation)]),
    ]
    return _sheet(drawn, "matches, one above the other", _SHOWN // 2) or b""


def _sheet(rows: list[tuple[str, list[Image.Image]]], title: str, along: int = _SHOWN // 2) -> bytes | None:
    """Draw rows of images, each under its heading."""
    if not rows:
        return None
    heights = [-(-len(tiles) // along) for _, tiles in rows]
    figure, axis = _figure(along * 1.1, sum(heights) * 1.1 + 0.35 * len(rows) + 0.4)
    axis.set_axis_off()
    axis.set_title(title)
    top = 0.0
    for (heading, tiles), height in zip(rows, heights, strict=True):
        axis.text(0, top + 0.25, heading, fontsize=10)
        top += 0.35
        for number, tile in enumerate(tiles):
            line, column = divmod(number, along)
            axis.imshow(tile, extent=(column, column + 0.95, top + line + 0.95, top + line))
        top += height
    axis.set(xlim=(0, along), ylim=(top, 0))
    return to_png(figure)


def _rows(rows: RowSet) -> list[int]:
    return [int(row) for block in rows.blocks() for row in block]


def _tiles(rows: list[int], pieces: Sequence[SamplePiece]) -> list[Image.Image]:
    """Return small images of samples; those without an image are left out."""
    tiles = []
    for row in rows:
        images = read_row(pieces, row, ["images"])["images"]
        if images:
            image = ImageOps.contain(decode_image(images[0]["bytes"], MAX_PIXELS), (_TILE_PX, _TILE_PX))
            tiles.append(ImageOps.pad(image, (_TILE_PX, _TILE_PX), color="white"))
    return tiles


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Return an empty figure with one pair of axes."""
    figure = new_figure(width, height)
    return figure, figure.subplots()
