"""Pictures of scores, of training runs and of label quality, as scikit-learn's displays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils import check_consistent_length
from sklearn.utils._optional_dependencies import check_matplotlib_support

from gwa_core import EpochSummary, rank_samples
from gwa_sklearn.label_issues import THRESHOLD
from gwa_sklearn.scores import alignment_scores

__all__ = ["AlignmentDisplay", "GWACurveDisplay", "LabelIssuesDisplay"]

# Blue, orange and purple can be told apart in all colour vision.
GOOD, BEST, BAD, MUTED = "#0b62a8", "#d55e00", "#a8337d", "#59646f"

# More classes than this can't be told apart in one picture.
CLASSES = 20
# More points than this on a line can't be seen.
POINTS = 2000

SIGNALS = ("gwa", "mean", "bimodality", "separation", "kurtosis", "skewness", "variance",
           "negative_fraction")  # fmt: skip
NAMES = {"gwa": "GWA", "mean": "mean alignment", "kurtosis": "excess kurtosis"}


class AlignmentDisplay:
    """Histogram of alignment scores: of all samples, or one for each class.

    Best made by `from_estimator` or `from_scores`.

    Parameters
    ----------
    scores : array of shape (n_samples,)
        Alignment scores; nan is left out.
    labels : array of shape (n_samples,), optional
        Gives each label a histogram of its own. Of more than 20 the ones of lowest mean are shown.
    wrong : boolean array of shape (n_samples,), optional
        Samples whose label is known to be wrong, drawn in another colour.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of `ax_`.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_sklearn import AlignmentDisplay
    >>> display = AlignmentDisplay.from_scores(np.asarray([0.3, 0.2, 0.4, -0.5]))
    >>> display.ax_.get_xlabel()
    'alignment'
    """

    ax_: Any
    figure_: Any

    def __init__(self, *, scores: Any, labels: Any = None, wrong: Any = None) -> None:
        self.scores = scores
        self.labels = labels
        self.wrong = wrong

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        sample_weight: Any = None,
        by_class: bool = False,
        wrong: Any = None,
        bins: int = 50,
        ax: Any = None,
    ) -> Self:
        """Draw the scores of a fitted classifier.

        Parameters
        ----------
        estimator, X, y, sample_weight
            See `alignment_scores`.
        by_class : bool
            One histogram for each label, default False.
        wrong : boolean array of shape (n_samples,), optional
            Samples whose label is known to be wrong.
        bins : int
            Number of bins, default 50.
        ax : matplotlib Axes, optional
            Where to draw; default a new figure.

        Returns
        -------
        AlignmentDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        scores = alignment_scores(estimator, X, y, sample_weight=sample_weight)
        labels = y if by_class else None
        return cls.from_scores(scores, labels=labels, wrong=wrong, bins=bins, ax=ax)

    @classmethod
    def from_scores(
        cls, scores: Any, *, labels: Any = None, wrong: Any = None, bins: int = 50, ax: Any = None
    ) -> Self:
        """Draw scores that are there already, such as ``alignment_``; see the class and `plot`."""
        check_matplotlib_support(f"{cls.__name__}.from_scores")
        scores = np.asarray(scores)
        labels, wrong = (None if x is None else np.asarray(x) for x in (labels, wrong))
        check_consistent_length(scores, labels, wrong)
        if wrong is not None and wrong.dtype != bool:
            raise ValueError(f"`wrong` must be a boolean mask (N,), got {wrong.dtype}")
        return cls(scores=scores, labels=labels, wrong=wrong).plot(bins=bins, ax=ax)

    def plot(self, *, bins: int = 50, ax: Any = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself."""
        groups = list(self._groups())
        rows = len(groups) if self.labels is not None else 0
        self.ax_ = ax = new_axes(self, ax, (6.4, max(4.0, 1.2 + 0.42 * rows)))
        self.figure_ = ax.figure
        found = self.scores[np.isfinite(self.scores)]
        edges = np.histogram_bin_edges(found, bins)
        wrong = np.zeros(len(self.scores), dtype=bool) if self.wrong is None else self.wrong
        for row, (_, member) in enumerate(groups):
            counts = [np.histogram(self.scores[member & w], edges)[0] for w in (wrong, ~wrong)]
            # Classes are stacked, each as high as its fullest bin.
            height = max((counts[0] + counts[1]).max(), 1) / 0.9 if rows else 1.0
            bottom = np.full(len(edges) - 1, float(row))
            for values, color in zip(counts, (BAD, GOOD), strict=True):
                ax.stairs(bottom + values / height, edges, baseline=bottom, fill=True, color=color)
                bottom = bottom + values / height
        ax.axvline(0.0, color=MUTED, linewidth=1, linestyle=":")
        ax.set(xlabel="alignment", ylabel="class" if rows else "samples")
        if rows:
            ax.set_yticks(np.arange(rows), [plain(name) for name, _ in groups])
            ax.set_ylim(0.0, rows + 0.05)
        if self.wrong is not None:
            for name, color in (("known to be wrong", BAD), ("others", GOOD)):
                ax.fill_between([], [], color=color, label=name)
            ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False)
        return self

    def _groups(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield names and members of the histograms, from below."""
        finite = np.isfinite(self.scores)
        if self.labels is None:
            yield "", finite
            return
        groups = [(str(x), finite & (self.labels == x)) for x in np.unique(self.labels)]
        groups = [(name, member) for name, member in groups if member.any()]
        if len(groups) > CLASSES:
            groups = sorted(groups, key=lambda group: self.scores[group[1]].mean())[:CLASSES]
        yield from groups[::-1]


class GWACurveDisplay:
    """A field of the epoch summaries over a training run, and the best epoch.

    Best made by `from_estimator` or `from_history`.

    Parameters
    ----------
    history : sequence of EpochSummary
        Epochs in order.
    best_epoch : int, optional
        Position of the best epoch.
    signal : str
        The field: "gwa" (default), "mean", "bimodality", "separation", "kurtosis", ...

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of `ax_`.

    Notes
    -----
    GWA and the mean have a band of two standard errors. Epochs whose GWA means nothing are crosses
    on a curve of GWA, at its edge where they lie far away.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import GWATracker
    >>> from gwa_sklearn import GWACurveDisplay
    >>> tracker = GWATracker()
    >>> for mean in (0.1, 0.3, 0.2):
    ...     tracker.update(np.asarray([-0.1, 0.0, 0.05, 0.3]) + mean)
    ...     _ = tracker.end_epoch()
    >>> GWACurveDisplay.from_history(tracker.history, best_epoch=1).ax_.get_ylabel()
    'GWA'
    """

    ax_: Any
    figure_: Any

    def __init__(
        self, *, history: Sequence[EpochSummary], best_epoch: int | None = None, signal: str = "gwa"
    ) -> None:
        self.history = history
        self.best_epoch = best_epoch
        self.signal = signal

    @classmethod
    def from_estimator(cls, estimator: Any, *, signal: str = "gwa", ax: Any = None) -> Self:
        """Draw the run of a fitted `GWAEarlyStoppingClassifier`, also at the end of a pipeline."""
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        found = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        if not hasattr(found, "history_"):
            raise TypeError(
                "`estimator` must have a history, as a fitted GWAEarlyStoppingClassifier, got "
                f"{type(found).__name__} without `history_`"
            )
        return cls.from_history(found.history_, best_epoch=found.best_epoch_, signal=signal, ax=ax)

    @classmethod
    def from_history(
        cls,
        history: Sequence[EpochSummary],
        *,
        best_epoch: int | None = None,
        signal: str = "gwa",
        ax: Any = None,
    ) -> Self:
        """Draw a history, such as that of a `GWATracker`; see the class and `plot`."""
        check_matplotlib_support(f"{cls.__name__}.from_history")
        if signal not in SIGNALS:
            raise ValueError(f"`signal` must be one of {', '.join(SIGNALS)}, got {signal!r}")
        if not history:
            raise ValueError("`history` must have at least one epoch, got none")
        return cls(history=history, best_epoch=best_epoch, signal=signal).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself."""
        self.ax_ = ax = new_axes(self, ax, (6.4, 4.0))
        self.figure_ = ax.figure
        from matplotlib.ticker import MaxNLocator

        epochs = np.array([summary.epoch for summary in self.history])
        values = np.array([getattr(summary, self.signal) for summary in self.history], dtype=float)
        half = 2.0 * self._standard_errors()
        shown = np.isfinite(values)
        if self.signal == "gwa":
            shown &= np.array([summary.healthy for summary in self.history])
        line = np.where(shown, values, np.nan)
        if np.isfinite(half).any():
            ax.fill_between(epochs, line - half, line + half, color=GOOD, alpha=0.2, linewidth=0)
        ax.plot(epochs, line, ".-", color=GOOD)
        low, high = limits(line[shown], half[shown])
        if not shown.all():
            height = np.clip(np.nan_to_num(values, nan=low)[~shown], low, high)
            ax.plot(epochs[~shown], height, "X", color=BAD, clip_on=False, label="unhealthy")
        if self.best_epoch is not None:
            best = epochs[self.best_epoch]
            ax.axvline(best, color=BEST, linewidth=1, linestyle="--")
            ax.plot(best, values[self.best_epoch], "*", color=BEST, markersize=14,
                    markeredgecolor="white", label=f"best: epoch {best}", zorder=5)  # fmt: skip
        ax.set(xlabel="epoch", ylabel=NAMES.get(self.signal, self.signal.replace("_", " ")))
        ax.set_ylim(low, high)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
        return self

    def _standard_errors(self) -> NDArray[np.float64]:
        if self.signal == "gwa":
            return np.array([summary.gwa_standard_error for summary in self.history])
        if self.signal == "mean":
            return np.array([(s.variance / max(s.count, 1)) ** 0.5 for s in self.history])
        return np.full(len(self.history), np.nan)


class LabelIssuesDisplay:
    """Label quality of all samples in order, and which of them are issues.

    Best made by `from_estimator` or `from_scores`.

    Parameters
    ----------
    quality : array of shape (n_samples,)
        In [0, 1], low = suspicious; nan is left out.
    issues : boolean array of shape (n_samples,), optional
        Samples that are held to be mislabelled.
    threshold : float, optional
        Quality below which they are.
    images : array or sequence of n_samples images, optional
        Each (height, width) or (height, width, channels); the most suspicious are shown.
    labels : array of shape (n_samples,), optional
        Given labels, to write above the images.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of `ax_`.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_sklearn import LabelIssuesDisplay
    >>> quality = np.asarray([0.7, 0.2, 0.8, 0.9])
    >>> display = LabelIssuesDisplay.from_scores(quality, threshold=0.5)
    >>> display.ax_.get_ylabel()
    'label quality'
    """

    ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        quality: Any,
        issues: Any = None,
        threshold: float | None = None,
        images: Any = None,
        labels: Any = None,
    ) -> None:
        self.quality = quality
        self.issues = issues
        self.threshold = threshold
        self.images = images
        self.labels = labels

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, images: Any = None, labels: Any = None, k: int = 8, ax: Any = None
    ) -> Self:
        """Draw what a fitted `LabelIssues` found; see the class and `plot`."""
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        if not hasattr(estimator, "label_quality_"):
            raise TypeError(
                "`estimator` must be a fitted LabelIssues, got "
                f"{type(estimator).__name__} without `label_quality_`"
            )
        return cls.from_scores(
            estimator.label_quality_,
            issues=estimator.issues_,
            threshold=THRESHOLD,
            images=images,
            labels=labels,
            k=k,
            ax=ax,
        )

    @classmethod
    def from_scores(
        cls,
        quality: Any,
        *,
        issues: Any = None,
        threshold: float | None = None,
        images: Any = None,
        labels: Any = None,
        k: int = 8,
        ax: Any = None,
    ) -> Self:
        """Draw qualities that are there already; without `issues` those below the threshold are."""
        check_matplotlib_support(f"{cls.__name__}.from_scores")
        quality = np.asarray(quality)
        if issues is None and threshold is not None:
            issues = quality < threshold
        check_consistent_length(quality, issues, images, labels)
        display = cls(
            quality=quality, issues=issues, threshold=threshold, images=images, labels=labels
        )
        return display.plot(k=k, ax=ax)

    def plot(self, *, k: int = 8, ax: Any = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself; `k` images at most."""
        self.ax_ = ax = new_axes(self, ax, (6.4, 4.0))
        self.figure_ = ax.figure
        known = int(np.isfinite(self.quality).sum())
        order = rank_samples(self.quality, k=len(self.quality))[:known]
        ranks = np.unique(np.linspace(0, known - 1, min(known, POINTS)).astype(int))
        ax.plot(ranks + 1, self.quality[order[ranks]], color=GOOD)
        if self.issues is not None:
            found = np.flatnonzero(np.asarray(self.issues)[order])
            ax.plot(found + 1, self.quality[order[found]], ".", color=BAD,
                    label=f"{len(found)} issue{'s' * (len(found) != 1)}")  # fmt: skip
            ax.legend(loc="lower right")
        if self.threshold is not None:
            ax.axhline(self.threshold, color=BEST, linewidth=1, linestyle="--")
        ax.set(xlabel="samples, most suspicious first", ylabel="label quality")
        if self.images is not None:
            top = order[:k]
            names = [f"{i}" if self.labels is None else plain(self.labels[i]) for i in top]
            show_images(ax, [self.images[i] for i in top], names)
        return self


def new_axes(display: object, ax: Any, size: tuple[float, float]) -> Any:
    """Return `ax`, or the axes of a new figure; say how to get Matplotlib where it is missing."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def plain(text: object) -> str:
    """Keep Matplotlib from reading a name as TeX."""
    return str(text).replace("$", r"\$")


def limits(values: NDArray[Any], half: NDArray[Any]) -> tuple[float, float]:
    """Return the range that shows the values, and their bands of +- half unless far wider."""
    if not len(values):
        return -1.0, 1.0
    half = np.nan_to_num(half)
    low, high = float(values.min()), float(values.max())
    span = (high - low) or max(float(half.max()), 1e-3)
    bottom = max(float((values - half).min()), low - span)
    top = min(float((values + half).max()), high + span)
    return bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)


def show_images(ax: Any, images: Sequence[Any], titles: Sequence[str]) -> None:
    """Draw images side by side above `ax`."""
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        panel = ax.inset_axes((i / len(images), 1.03, 0.9 / len(images), 0.25))
        panel.imshow(np.asarray(image), cmap="gray_r" if np.ndim(image) == 2 else None)
        panel.set_title(title, fontsize="small", pad=3)
        panel.set_axis_off()
