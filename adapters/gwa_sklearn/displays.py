"""Pictures of scores, of training runs and of label quality, as scikit-learn's displays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils import check_consistent_length
from sklearn.utils._optional_dependencies import check_matplotlib_support

from gwa_core import EpochSummary
from gwa_sklearn._drawing import (
    BAD,
    CHOSEN,
    GOOD,
    MUTED,
    limits,
    new_axes,
    plain,
)
from gwa_sklearn._issues_display import LabelIssuesDisplay
from gwa_sklearn.scores import alignment_scores

__all__ = ["AlignmentDisplay", "GWACurveDisplay", "LabelIssuesDisplay"]

# More classes than this can't be told apart in one picture.
CLASSES = 20

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
        Gives each label a histogram of its own. Of more than 20 those of lowest mean are shown.
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
            As those of `alignment_scores`.
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
            # Classes stand above each other, each as high as its fullest bin.
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
    """A field of the epoch summaries over a training run, and the epoch that was kept.

    Best made by `from_estimator` or `from_history`.

    Parameters
    ----------
    history : sequence of EpochSummary
        Epochs in order.
    best_epoch : int, optional
        Position of the kept epoch.
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
            ax.axvline(best, color=CHOSEN, linewidth=1, linestyle="--")
            ax.plot(best, values[self.best_epoch], "*", color=CHOSEN, markersize=14,
                    markeredgecolor="white", label=f"kept: epoch {best}", zorder=5)  # fmt: skip
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
