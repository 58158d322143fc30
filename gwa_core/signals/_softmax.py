"""What the signals of a sample need of its softmax: a few numbers a row, from one pass."""

from __future__ import annotations

from typing import Any, NamedTuple

from gwa_core._lib.array import Array, constant, is_host, map_rows, namespace, result_dtype
from gwa_core._lib.checks import check_labels, check_matrix
from gwa_core._lib.numerics import (
    first_argmax,
    log_sigmoid,
    one_hot_mask,
    pick,
    replace_at,
    row_sum,
)
from gwa_core.targets import _indexable

__all__ = ["Rows", "softmax_rows"]


class Rows(NamedTuple):
    """Numbers of each row, with y its label and j the largest of the other classes.

    Nothing here cancels: the sums leave out both y and j, whose weights are known.

    Parameters
    ----------
    label : integer array of shape (N,)
        y, or 0 where it is none of the classes.
    gap : array of shape (N,)
        Logit of y less that of j.
    best : integer array of shape (N,)
        j.
    rest, square : array of shape (N,)
        Sums of w and of w^2 over the classes but y and j, with w = exp(logit - that of j).
    known : boolean array of shape (N,)
        Whether the label is one of the classes and the logits are finite.
    """

    label: Array
    gap: Array
    best: Array
    rest: Array
    square: Array
    known: Array

    @property
    def log_odds(self) -> Array:
        """Logarithm of (1 - p_y) / p_y."""
        xp = namespace(rest=self.rest)
        return xp.log1p(self.rest) - self.gap

    @property
    def loss(self) -> Array:
        """Cross-entropy, -log p_y."""
        xp = namespace(rest=self.rest)
        return -log_sigmoid(xp, -self.log_odds)

    @property
    def miss(self) -> Array:
        """Return 1 - p_y, to full relative accuracy."""
        xp = namespace(rest=self.rest)
        return xp.exp(log_sigmoid(xp, self.log_odds))

    @property
    def hit(self) -> Array:
        """Return p_y, to full relative accuracy."""
        xp = namespace(rest=self.rest)
        return xp.exp(log_sigmoid(xp, -self.log_odds))

    @property
    def residual_norm(self) -> Array:
        """Euclidean norm of onehot(y) - p: (1 - p_y) (1 + Σ q_k²)^½, q among the others."""
        xp = namespace(rest=self.rest)
        total = 1.0 + self.rest
        return self.miss * xp.sqrt(1.0 + (1.0 + self.square) / (total * total))

    @property
    def impurity(self) -> Array:
        """Return 1 - Σ p_k², from the class of the largest logit, whose p cancels in no term."""
        xp = namespace(rest=self.rest)
        ahead = self.gap >= 0
        # Against the largest logit: the weight of the other one of y and j.
        other = xp.exp(-xp.abs(self.gap))
        rest = xp.where(ahead, self.rest * other, self.rest)
        square = xp.where(ahead, self.square * other * other, self.square)
        away, squares = other + rest, other * other + square
        total = 1.0 + away
        # (1 + away)² - 1 - squares, over (1 + away)².
        return (2.0 * away + (away * away - squares)) / (total * total)

    @property
    def correct(self) -> Array:
        """Whether y has the largest logit, or one of the largest."""
        return self.gap >= 0

    @property
    def prediction(self) -> Array:
        """Class of the largest logit; y where several are."""
        xp = namespace(rest=self.rest)
        return xp.where(self.correct, xp.astype(self.label, self.best.dtype), self.best)

    def masked(self, values: Array) -> Array:
        """Return the values, nan where the sample is not known."""
        xp = namespace(values=values)
        return xp.where(self.known, values, constant(xp, xp.nan, values))


def softmax_rows(logits: Array, targets: Array) -> Rows:
    """Check logits (N, C) and class numbers (N,), and return the numbers of each row.

    Logits (N, 1) are of one sigmoid, and count as the softmax of two classes that has the same
    probabilities, labels 0 and 1.
    """
    xp = namespace(logits=logits, targets=targets)
    check_matrix(xp, "logits", logits, shape="(N, C)")
    if logits.shape[1] == 1:
        half = xp.astype(logits, result_dtype(xp, logits)) / 2
        logits = xp.concat([-half, half], axis=1)
    rows, classes = logits.shape
    check_labels(xp, targets, rows, classes)
    dtype = result_dtype(xp, logits)
    labels, known = _indexable(xp, targets, classes)

    def part(logit: Array, label: Array) -> tuple[Array, ...]:
        logit = xp.astype(logit, dtype, copy=False)
        others = replace_at(xp, logit, label, xp.finfo(dtype).min)
        best = first_argmax(xp, others) if not is_host(others) else xp.argmax(others, axis=1)
        own, peak = pick(xp, logit, label), pick(xp, logit, best)
        weights = _weights(xp, others, peak, best)
        return (
            xp.squeeze(own - peak, axis=1),
            best,
            row_sum(xp, weights),
            xp.vecdot(weights, weights),
            _finite(xp, logit),
        )

    gap, best, rest, square, finite = map_rows(part, xp, logits, labels, row_bytes=4 * classes)
    return Rows(labels, gap, best, rest, square, finite if known is None else known & finite)


def _finite(xp: Any, logits: Array) -> Array:
    if is_host(logits):
        # The sum sees in one pass what is not finite, and on rare occasions more than that.
        finite = xp.isfinite(row_sum(xp, logits))
        if xp.all(finite):
            return finite
    return xp.all(xp.isfinite(logits), axis=1)


def _weights(xp: Any, others: Array, peak: Array, best: Array) -> Array:
    """Return exp(logit - peak) of the classes but y and j, 0 at those."""
    if is_host(others):
        # `others` is this block's own copy.
        others -= peak
        weights = xp.exp(others, out=others)
        weights[xp.arange(best.shape[0]), best] = 0.0  # on the host
        return weights
    zero = constant(xp, 0.0, others)
    return xp.where(one_hot_mask(xp, best, others.shape[1]), zero, xp.exp(others - peak))
