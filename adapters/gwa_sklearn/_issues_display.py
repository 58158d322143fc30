"""The picture of label quality."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.utils import check_consistent_length
from sklearn.utils._optional_dependencies import check_matplotlib_support

from gwa_core import rank_samples
from gwa_sklearn._drawing import BAD, CHOSEN, GOOD, new_axes, plain, show_images
from gwa_sklearn.label_issues import THRESHOLD

__all__ = ["LabelIssuesDisplay"]

# More points than this on a line can't be seen.
POINTS = 2000


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
        Given labels, to stand above the images.

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
            ax.axhline(self.threshold, color=CHOSEN, linewidth=1, linestyle="--")
        ax.set(xlabel="samples, most suspicious first", ylabel="label quality")
        if self.images is not None:
            top = order[:k]
            names = [f"{i}" if self.labels is None else plain(self.labels[i]) for i in top]
            show_images(ax, [self.images[i] for i in top], names)
        return self
