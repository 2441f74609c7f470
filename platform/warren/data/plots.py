"""Plots as PNG files, drawn without a display. matplotlib is slow to import, so it is imported when a plot is drawn."""

import io
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of this size, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: Any, dpi: int = 90) -> bytes:
    """Return a figure as a PNG file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
