"""Drawing: one style for all pictures of the report, and their encoding into the page."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from popcosmos_hpc.report.section import Figure

INK, BLUE, ORANGE, GREEN, GREY = "#1b1f24", "#2a6f97", "#c8553d", "#4f8a6d", "#8b96a3"
DENSITY_MAP = "cividis"
_SCALE = 1.2  # inches; sets the size of letters against that of the page

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "svg.fonttype": "path",
    "svg.hashsalt": "popcosmos_hpc",  # the same picture gives the same bytes
}


@contextmanager
def canvas(width: float = 7.0, height: float = 3.2) -> Iterator[Canvas]:
    """A figure of `width` by `height`, of which 7 fill the page, laid out when it is encoded."""
    with rc_context(_STYLE):
        yield Canvas(figsize=(_SCALE * width, _SCALE * height), layout="constrained")


def encode(figure: Canvas, caption: str, alt: str, wide: bool = True) -> Figure:
    """The drawn figure as a block of the page: SVG, in which dense layers are bitmaps."""
    stream = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(stream, format="svg", dpi=160, metadata={"Date": None, "Creator": None})
    source = "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
    return Figure(source, caption, alt, wide)


def density(axes: Axes, x: np.ndarray, y: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    """Points where there are few, hexagons of logarithmic density where there are many.

    Args:
        axes: where to draw.
        x: (n,) abscissae.
        y: (n,) ordinates.
        extent: left, right, bottom and top of the axes; what lies outside is not drawn.
    """
    left, right, bottom, top = extent
    inside = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
    x, y = x[inside], y[inside]
    axes.set(xlim=(left, right), ylim=(bottom, top))
    if x.size < 1500:
        axes.scatter(x, y, s=7, color=BLUE, alpha=0.55, linewidths=0, rasterized=x.size > 500)
        return
    axes.hexbin(
        x,
        y,
        gridsize=70,
        extent=extent,
        bins="log",
        mincnt=1,
        cmap=DENSITY_MAP,
        linewidths=0.1,
        rasterized=True,
    )


def running(
    x: np.ndarray, y: np.ndarray, edges: np.ndarray, minimum: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles 16, 50 and 84 percent of `y` in bins of `x`.

    Returns:
        Bin centres (bin,) and quantiles (bin, 3); bins with fewer than `minimum` points are left out.
    """
    centres, values = [], []
    for low, high in pairwise(edges):
        inside = (x >= low) & (x < high)
        if np.count_nonzero(inside) >= minimum:
            centres.append((low + high) / 2)
            values.append(np.quantile(y[inside], (0.16, 0.5, 0.84)))
    return np.array(centres), np.array(values).reshape(-1, 3)


def limits(values: np.ndarray, fraction: float = 0.005, pad: float = 0.05) -> tuple[float, float]:
    """Axis limits that leave out a fraction of the values at either end."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.quantile(values, (fraction, 1 - fraction))
    margin = pad * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def few_ticks(axis: Axis, count: int = 2) -> None:
    """At most `count` intervals between ticks, for narrow panels."""
    axis.set_major_locator(MaxNLocator(nbins=count))


def plain_log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of each decade of a logarithmic axis, written as plain numbers."""
    low, high = sorted(axis.get_view_interval())
    wide = low <= 0 or high / low > 300
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())
