"""Colours and style of the Matplotlib displays, and their base class."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

__all__ = [
    "BAD",
    "BEST",
    "GWA",
    "HEAT",
    "METRIC",
    "MUTED",
    "STYLE",
    "Display",
    "dot_size",
    "draw_metric",
    "import_pyplot",
    "mark_epochs",
    "plain",
    "split_axes",
    "star_best",
]

# The colours of the HTML page on white; blue, orange and purple stay apart in all colour vision.
GWA, BEST, BAD, METRIC, MUTED = "#0b62a8", "#d55e00", "#a8337d", "#00856a", "#59646f"
HEAT = ("#ffffff", "#cfe2f3", "#85b8de", "#357fbd", "#0a3566")
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#b4bcc3",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.dpi": 110,
    "font.size": 10.5,
    "grid.color": "#e6eaed",
    "legend.frameon": False,
    "savefig.dpi": 170,
    "svg.hashsalt": "gwa",  # the same report gives the same bytes
    "xtick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
}


def import_pyplot() -> Any:
    """Import matplotlib.pyplot, or say how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("displays need matplotlib: pip install 'gwa-core[report]'") from error
    return plt


class Display:
    """Draws into the axes given, or into a new figure in the style of this module."""

    _arrays: ClassVar[tuple[str, ...]] = ()
    _size: ClassVar[tuple[float, float]] = (7.2, 4.0)
    ax_: Any
    axes_: Any
    figure_: Any

    def __post_init__(self) -> None:
        for name in self._arrays:
            if getattr(self, name) is not None:
                setattr(self, name, np.asarray(getattr(self, name)))

    def _figsize(self) -> tuple[float, float]:
        return self._size

    def _plot(self, ax: Any, **options: Any) -> Self:
        plt = import_pyplot()
        with plt.rc_context(STYLE if ax is None else {}):
            if ax is None:
                _, ax = plt.subplots(figsize=self._figsize(), layout="constrained")
            self.ax_, self.figure_ = ax, ax.figure
            self._draw(ax, **options)
        return self

    def _draw(self, ax: Any, **options: Any) -> None:
        raise NotImplementedError


def split_axes(ax: Any, rows: int, columns: int, **options: Any) -> Any:
    """Put a grid of axes in the place of one."""
    ax.set_axis_off()
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError("`ax` must be made by plt.subplots, got axes placed by hand")
    sharex = options.pop("sharex", False)
    return place.subgridspec(rows, columns, **options).subplots(squeeze=False, sharex=sharex)


def plain(text: str) -> str:
    """Keep Matplotlib from reading a name as TeX, or hiding it from the legend."""
    return ("\N{ZERO WIDTH SPACE}" if text.startswith("_") else "") + text.replace("$", r"\$")


def dot_size(epochs: Any) -> float:
    """Return the size of the dots on a line; they must show an epoch without neighbours."""
    return 4.0 if len(epochs) <= 50 else 2.2


def mark_epochs(ax: Any, epochs: Any, best_index: int | None, unit: str = "epoch") -> None:
    """Make x an axis of epochs, or of steps, and draw a line at the best one."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel(unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if best_index is not None:
        ax.axvline(epochs[best_index], color=BEST, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.5)


def draw_metric(ax: Any, epochs: Any, metric: Any, name: str) -> Any:
    """Draw a metric, if there is one, on an axis of its own at the right, and return that axis."""
    if metric is None:
        return None
    right, label = ax.twinx(), plain(name)
    right.grid(visible=False)
    right.plot(epochs, metric, color=METRIC, linewidth=1.8, linestyle=":")
    right.set_ylabel(label, color=METRIC, labelpad=8)
    ax.plot([], [], color=METRIC, linewidth=1.8, linestyle=":", label=label)
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    return right


def star_best(ax: Any, epochs: Any, values: Any, best_index: int | None, unit: str) -> None:
    """Draw a star at the best epoch of a curve, if it has one."""
    if best_index is not None:
        ax.plot(
            epochs[best_index], values[best_index], "*", color=BEST, markersize=17,
            markeredgecolor="white", label=f"best {unit} {epochs[best_index]}", zorder=5,
        )  # fmt: skip
