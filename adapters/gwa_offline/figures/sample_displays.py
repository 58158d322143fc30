"""Displays of the samples: how their alignment is distributed, and a contact sheet of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.view import class_of, column, epoch_numbers, occupied_bins, unit
from gwa_offline.figures.style import (
    BAD,
    BEST,
    GWA,
    HEAT,
    MUTED,
    Display,
    mark_epochs,
    plain,
)

if TYPE_CHECKING:
    from gwa_offline.figures.images import ImageSource

__all__ = ["DistributionDisplay", "SamplesDisplay"]

_SHOWN = 40  # samples, where nobody says which
_COLUMNS = 10
_HEIGHT = 1.62  # of a place, in widths of it: an image, a line above it and two below


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
    """A contact sheet: images with their sample id, their label, and what the model says.

    Parameters
    ----------
    ids : sequence of int
        The samples, in the order of the sheet.
    images : sequence of image or None
        As PIL images or arrays (H, W) or (H, W, channels); None leaves a place empty.
    labels, predictions : sequence of str or None
        Of each sample; None where unknown. A prediction that differs is in colour.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.

    Examples
    --------
    >>> images = np.random.default_rng(0).random((2, 8, 8))
    >>> display = SamplesDisplay(
    ...     ids=[638, 7], images=images, labels=["cat", "dog"], predictions=["dog", "dog"])
    >>> [text.get_text() for text in display.plot().ax_.texts][:3]
    ['638', 'label cat', 'model dog']
    """

    ids: Sequence[int]
    images: Sequence[Any]
    labels: Sequence[str | None]
    predictions: Sequence[str | None]

    @property
    def _columns(self) -> int:
        # Long lists become wide, too: a picture has at most 65,535 rows of pixels.
        return min(len(self.ids), max(_COLUMNS, math.isqrt(2 * len(self.ids))))

    @property
    def _rows(self) -> int:
        return -(-len(self.ids) // self._columns)

    def _figsize(self) -> tuple[float, float]:
        return 0.95 * max(self._columns, 3), 0.3 + 0.95 * _HEIGHT * self._rows

    @classmethod
    def from_report(
        cls, report: Findings, images: ImageSource, ids: Sequence[int] | None = None
    ) -> Self:
        """Take samples of a report.

        Parameters
        ----------
        report : Report
            What `analyse` returned.
        images : str, path, array or Images
            As in `gwa_offline.figures.images.open_images`.
        ids : sequence of int, optional
            Which samples, in this order; default the 40 of lowest label quality.

        Raises
        ------
        FeaturesError
            The images cannot be read or are not N.
        """
        from gwa_offline.figures.images import match_images

        found = match_images(images, report.num_samples)
        shown = [int(i) for i in (report.rank(_SHOWN) if ids is None else ids)]
        return cls(
            ids=shown,
            images=[found.thumbnail(i, 96) if i in found else None for i in shown],
            labels=[class_of(report, report.targets, i) for i in shown],
            predictions=[class_of(report, report.predictions, i) for i in shown],
        )

    def plot(self, ax: Any = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself."""
        return self._plot(ax)

    def _draw(self, ax: Any, **_: Any) -> None:
        ax.grid(visible=False)
        ax.set_axis_off()
        rows = zip(self.ids, self.images, self.labels, self.predictions, strict=True)
        for place, (sample, picture, label, prediction) in enumerate(rows):
            row, x = divmod(place, self._columns)
            top = _HEIGHT * row
            wrong = prediction is not None and label is not None and prediction != label
            if picture is not None:
                pixels = np.asarray(picture)
                height, width = (0.9 * n / max(pixels.shape[:2]) for n in pixels.shape[:2])
                left, up = x + (1 - width) / 2, top + 0.22 + (0.9 - height) / 2
                shown = ax.imshow(pixels, cmap="gray", extent=(left, left + width, up + height, up))
                # SVG names a clip by all digits of its place, where the layout may differ.
                shown.set_clip_on(False)
            lines = [(0.16, f"{sample}", MUTED)]
            lines += [(1.28, f"label {_short(label)}", "black")] if label is not None else []
            if prediction is not None:
                lines += [(1.46, f"model {_short(prediction)}", BAD if wrong else MUTED)]
            for below, text, color in lines:
                weight = "bold" if wrong and color == BAD else "normal"
                ax.text(
                    x + 0.5, top + below, plain(text), ha="center", fontsize=7.5, color=color,
                    fontweight=weight,
                )  # fmt: skip
        ax.set(xlim=(0, max(self._columns, 3)), ylim=(_HEIGHT * self._rows, 0), aspect="equal")
        ax.set_title(f"{len(self.ids)} samples to look at")


def _short(name: str, most: int = 10) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
