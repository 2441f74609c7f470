"""One image of a run: its loss curves, and a sheet of held-out images with question, answer and truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from warren.data.image_formats import open_image
from warren.data.plots import new_figure, to_png

_COLUMNS = 4
_SMOOTHING_STEPS = 20


def draw_run_plot(
    curves: Mapping[str, Sequence[float]], sheet: Sequence[tuple[bytes, str, str, str]], target: Path
) -> None:
    """Draw a run.

    Args:
        curves: Loss per step, by stage.
        sheet: Encoded image, question, answer and truth of each held-out sample.
        target: The PNG file to write.
    """
    rows = -(-len(sheet) // _COLUMNS)
    figure = new_figure(13, 3.2 + 2.3 * rows)
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.0, 2.3 * rows])
    for axis, (stage, losses) in zip(np.atleast_1d(top.subplots(1, len(curves))), curves.items(), strict=True):
        axis.plot(losses, color="tab:blue", alpha=0.3, linewidth=1)
        axis.plot(_smooth(losses), color="tab:blue", linewidth=2)
        axis.set(title=f"{stage}: {len(losses)} steps", xlabel="step", ylabel="loss per token", yscale="log")
        axis.grid(alpha=0.3)
    cells = bottom.subplots(rows, _COLUMNS, squeeze=False).flat
    for cell, (image, question, answer, truth) in zip(cells, sheet, strict=False):
        cell.imshow(open_image(image).convert("RGB"))
        colour = "tab:green" if answer == truth else "tab:red"
        cell.set_title(f"{question}\n{answer} (truth: {truth})", fontsize=9, color=colour)
    for cell in bottom.axes:
        cell.axis("off")
    target.write_bytes(to_png(figure, dpi=110))


def _smooth(losses: Sequence[float]) -> list[float]:
    """Return the mean of the last steps at each step."""
    return [float(np.mean(losses[max(0, i - _SMOOTHING_STEPS + 1) : i + 1])) for i in range(len(losses))]
