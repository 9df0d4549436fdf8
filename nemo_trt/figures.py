"""How every plot of this project looks; needs matplotlib (the extra `plots`)."""

from typing import Any

BLUE, ORANGE, GREEN, GREY, RED = "#2563eb", "#ea580c", "#059669", "#6b7280", "#dc2626"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}
"""For `matplotlib.rc_context`."""
WIDTH = 9.0
"""Inches."""


def new_figure(height: float, rows: int, columns: int) -> tuple[Any, Any]:
    """A figure of WIDTH by `height` inches, and its (rows, columns) axes; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
