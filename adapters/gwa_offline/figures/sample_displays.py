"""Displays of the samples: how their alignment is distributed, and images of both ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.view import (
    class_ends,
    column,
    epoch_numbers,
    format_number,
    occupied_bins,
    unit,
)
from gwa_offline.figures.style import (
    BAD,
    BEST,
    GWA,
    HEAT,
    MUTED,
    Display,
    mark_epochs,
    plain,
    split_axes,
)

if TYPE_CHECKING:
    from gwa_offline.figures.images import ImageSource

__all__ = ["DistributionDisplay", "SamplesDisplay"]

_ROWS, _ENDS = 6, 6  # classes, and images at each end of a class


@dataclass(kw_only=True, eq=False, repr=False)
class DistributionDisplay(Display):
    """Distribution of alignment: its histograms over epochs, or the histogram of one epoch.

    Parameters
    ----------
    epochs : array of shape (T,)
        Numbers of the epochs.
    edges : array of shape (B + 1,)
        Edges of the bins.
    histograms : array of shape (T, B)
        Scores in each bin.
    mean : array of shape (T,) or None
        Drawn as a line.
    best_index : int or None
        Position of the best epoch.
    unit : {"epoch", "step"}
        What `epochs` counts: steps where each record is of a window of them.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.

    Examples
    --------
    >>> display = DistributionDisplay(
    ...     epochs=[0, 1], edges=[-1.0, 0.0, 1.0], histograms=[[5, 5], [2, 8]])
    >>> display.plot().ax_.get_ylabel(), display.plot(epoch=1).ax_.get_ylabel()
    ('alignment', 'samples')
    """

    _arrays: ClassVar[tuple[str, ...]] = ("epochs", "edges", "histograms", "mean")

    epochs: NDArray[Any]
    edges: NDArray[np.float64]
    histograms: NDArray[np.int64]
    mean: NDArray[np.float64] | None = None
    best_index: int | None = None
    unit: str = "epoch"

    @classmethod
    def from_report(cls, report: Findings) -> Self:
        """Take the histograms of a report."""
        return cls(
            epochs=np.array(epoch_numbers(report)),
            unit=unit(report.epochs),
            edges=report.histogram_edges,
            histograms=report.histograms,
            mean=column(report, "mean"),
            best_index=report.best_index,
        )

    def plot(self, ax: Any = None, *, epoch: int | None = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself.

        Parameters
        ----------
        ax : matplotlib Axes or None
            Where to draw.
        epoch : int or None
            Number of the epoch whose histogram to draw; None draws all epochs, where T > 1.

        Raises
        ------
        ValueError
            There is no such epoch.
        """
        if epoch is not None and epoch not in self.epochs:
            raise ValueError(f"`epoch` must be one of {self.epochs.tolist()}, got {epoch}")
        if epoch is None and len(self.epochs) == 1:
            epoch = int(self.epochs[0])
        return self._plot(ax, epoch=epoch)

    def _draw(self, ax: Any, *, epoch: int | None = None, **_: Any) -> None:
        used = occupied_bins(self.histograms)
        edges, counts = self.edges[:-1][used], self.histograms[:, used]
        if epoch is None:
            self._draw_all(ax, np.append(edges, self.edges[1:][used][-1]), counts)
            return
        row = counts[np.flatnonzero(self.epochs == epoch)[0]]
        width = np.diff(self.edges)[used]
        color = np.where(edges + width / 2 < 0, BAD, GWA)
        ax.bar(edges, row, width, align="edge", color=color, linewidth=0)
        ax.axvline(0.0, color=MUTED, linewidth=1)
        ax.grid(visible=False, axis="x")
        ax.set(xlabel="alignment", ylabel="samples", title=f"Alignment at {self.unit} {epoch}")

    def _draw_all(self, ax: Any, edges: Any, counts: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        middle = (self.epochs[1:] + self.epochs[:-1]) / 2
        first, last = 2 * self.epochs[0] - middle[0], 2 * self.epochs[-1] - middle[-1]
        ax.grid(visible=False)
        mark_epochs(ax, self.epochs, self.best_index, self.unit)
        ax.pcolormesh(
            np.concatenate([[first], middle, [last]]),
            edges,
            counts.T / np.maximum(counts.max(axis=1), 1),  # the fullest bin of each epoch is 1
            cmap=LinearSegmentedColormap.from_list("gwa", HEAT),
            rasterized=True,
        )
        ax.axhline(0.0, color=MUTED, linewidth=1, linestyle=":")
        if self.mean is not None:
            ax.plot(self.epochs, self.mean, color=BEST, linewidth=2, label="mean")
            ax.legend(loc="upper left", fontsize="small")
        ax.set(ylabel="alignment", title="Distribution of alignment")


@dataclass(kw_only=True, eq=False, repr=False)
class SamplesDisplay(Display):
    """Least and most aligned images, a row for each class.

    Parameters
    ----------
    names : sequence of str
        Names of the R classes.
    least, most : sequence of R sequences of images
        The images from each end inwards, as PIL images or arrays (H, W) or (H, W, channels).
    least_scores, most_scores : sequence of R sequences of float
        Their alignment.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    axes_ : array of Axes, shape (R, 2 k + 1)
        The grid, in the place of `ax_`; the column in the middle stays empty.

    Examples
    --------
    >>> images = np.random.default_rng(0).random((4, 8, 8))
    >>> display = SamplesDisplay(
    ...     names=["cat"], least=[images[:2]], most=[images[2:]],
    ...     least_scores=[[-0.3, -0.1]], most_scores=[[0.5, 0.4]])
    >>> display.plot().axes_.shape
    (1, 5)
    """

    names: Sequence[str]
    least: Sequence[Sequence[Any]]
    most: Sequence[Sequence[Any]]
    least_scores: Sequence[Sequence[float]]
    most_scores: Sequence[Sequence[float]]

    @property
    def _length(self) -> int:
        return max(len(row) for row in [*self.least, *self.most])

    def _figsize(self) -> tuple[float, float]:
        return 0.85 * (2 * self._length + 1), 0.5 + 1.05 * len(self.names)

    @classmethod
    def from_report(cls, report: Findings, images: ImageSource) -> Self:
        """Take six images at each end of the six classes of lowest mean alignment.

        Parameters
        ----------
        report : Report
            Where `report.targets` is None, all samples make one row.
        images : str, path, array or Images
            As in `gwa_offline.figures.images.open_images`.

        Raises
        ------
        FeaturesError
            The images cannot be read or are not N.
        """
        from gwa_offline.figures.images import match_images

        found = match_images(images, report.num_samples)
        rows = class_ends(report, limit=_ROWS, k=_ENDS)
        least = [[int(i) for i in row.least if i in found] for row in rows]
        most = [[int(i) for i in row.most if i in found] for row in rows]
        return cls(
            names=[row.name for row in rows],
            least=[[found.thumbnail(i, 96) for i in ids] for ids in least],
            most=[[found.thumbnail(i, 96) for i in ids] for ids in most],
            least_scores=[report.scores[ids].tolist() for ids in least],
            most_scores=[report.scores[ids].tolist() for ids in most],
        )

    def plot(self, ax: Any = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself."""
        return self._plot(ax)

    def _draw(self, ax: Any, **_: Any) -> None:
        k = self._length
        ratios = [1.0] * k + [0.35] + [1.0] * k
        self.axes_ = split_axes(ax, len(self.names), 2 * k + 1, width_ratios=ratios)
        for panel in self.axes_.flat:
            panel.set_axis_off()
        for start, color, title, rows, scores in [
            (0, BAD, "Least aligned", self.least, self.least_scores),
            (k + 1, GWA, "Most aligned", self.most, self.most_scores),
        ]:
            # As a title, so that its length does not widen the column.
            self.axes_[0, start].set_title(title, loc="left", pad=18, color=color)
            for row, (pictures, values) in enumerate(zip(rows, scores, strict=True)):
                for i, (picture, value) in enumerate(zip(pictures, values, strict=True)):
                    panel = self.axes_[row, start + i]
                    shown = panel.imshow(np.asarray(picture), cmap="gray")
                    # SVG names a clip by all digits of its place, where the layout may differ.
                    shown.set_clip_on(False)
                    panel.text(
                        0.5, 1.06, format_number(value), transform=panel.transAxes, ha="center",
                        fontsize=8, color=MUTED,
                    )  # fmt: skip
        for panel, name in zip(self.axes_[:, 0], self.names, strict=True):
            panel.text(
                -0.15, 0.5, plain(name if len(name) <= 18 else name[:17] + "…"), ha="right",
                transform=panel.transAxes, va="center", fontweight="bold",
            )  # fmt: skip
