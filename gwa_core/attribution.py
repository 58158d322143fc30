"""From scores to samples: rankings, and label quality from trajectories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from gwa_core._lib.array import (
    Array,
    constant,
    is_floating,
    namespace,
    quiet,
    result_dtype,
)
from gwa_core._lib.checks import check_choice, check_positive_int
from gwa_core._lib.numerics import divide_or_zero
from gwa_core.history import EpochSummary
from gwa_core.score import summarize

__all__ = ["epoch_weights", "label_quality", "rank_samples"]

Order: TypeAlias = Literal["lowest", "highest"]
Method: TypeAlias = Literal["separation", "mean"]
# What an epoch counts in any case: an excess over one group that is smaller may be chance.
FLOOR = 0.02


def rank_samples(
    scores: Array,
    *,
    k: int,
    order: Order = "lowest",
    targets: Array | None = None,
    per_class: bool = False,
) -> Array:
    """Return the indices of the k samples of lowest or highest score.

    Parameters
    ----------
    scores : array of shape (N,)
        Alignment scores or label quality; nan is never ranked.
    k : int
        How many, at most N.
    order : {"lowest", "highest"}
        Which end, default the suspicious one.
    targets : integer array of shape (N,), optional
        Class numbers; needed for `per_class`.
    per_class : bool
        Rank within each class.

    Returns
    -------
    integer array of shape (k,), or (C, k) with `per_class`
        In order, ties by index; -1 where a class has fewer than k ranked samples.

    Raises
    ------
    TypeError, ValueError
        On shapes and options that do not fit.

    Notes
    -----
    Cost: one sort, O(N log N); with `per_class` one sort a class. Runs under jit, except that
    `per_class` reads the number of classes from the values of `targets`.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.3, Fig. 4.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import rank_samples
    >>> scores = np.asarray([0.3, -0.2, np.nan, 0.1])
    >>> rank_samples(scores, k=2)
    array([1, 3])
    >>> rank_samples(scores, k=2, targets=np.asarray([0, 1, 1, 0]), per_class=True)
    array([[ 3,  0],
           [ 1, -1]])
    """
    check_choice("order", order, get_args(Order))
    check_positive_int("k", k)
    xp = namespace(scores=scores, targets=targets)
    if scores.ndim != 1 or not is_floating(xp, scores) or k > scores.shape[0]:
        raise ValueError(
            f"`scores` must be floating point (N,) with N >= k = {k}, got {scores.dtype} of "
            f"shape {tuple(scores.shape)}"
        )
    last = xp.where(xp.isnan(scores), xp.inf, scores if order == "lowest" else -scores)
    ranked = ~xp.isnan(scores)
    if not per_class:
        return _first(xp, last, ranked, k)
    whole = targets is not None and xp.isdtype(targets.dtype, "integral")
    if targets is None or not whole or tuple(targets.shape) != tuple(scores.shape):
        got = "None" if targets is None else f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise ValueError(
            f"`targets` must be (N,) = ({scores.shape[0]},) integers with `per_class`, got {got}"
        )
    classes = int(xp.max(targets)) + 1
    if classes < 1:
        raise ValueError(f"`targets` must hold class numbers from 0, got {classes - 1} at most")
    rows = []
    for label in range(classes):
        member = ranked & (targets == label)
        rows.append(_first(xp, xp.where(member, last, xp.inf), member, k))
    return xp.stack(rows)


def _first(xp: Any, keys: Array, ranked: Array, k: int) -> Array:
    order = xp.argsort(keys, stable=True)
    # A sample that is left out has the largest key, but so may one whose score is infinite.
    order = xp.take(order, xp.argsort(xp.astype(~xp.take(ranked, order), xp.int32), stable=True))
    top = order[:k]
    return xp.where(xp.take(ranked, top), top, -1)


def label_quality(
    history: Array,
    *,
    until: int | None = None,
    weights: Sequence[float] | None = None,
    method: Method = "separation",
) -> Array:
    r"""Return one number a sample from its trajectory: how far its label can be trusted.

    .. math:: q_i = \frac 1 2 \left(1 + \frac {\sum_{t \in S_i} w_t \gamma_{t,i}}
              {\sum_{t \in S_i} w_t}\right), \quad
              w_t = \max\left(\frac 1 {k_t + 3 - s_t^2} - \frac 1 3, 0\right)^2 + 0.02^2

    over the epochs :math:`S_i` in which sample i was seen, with skewness :math:`s_t` and excess
    kurtosis :math:`k_t` of epoch t. Below one half the sample pulled against the head's weights on
    average.

    Parameters
    ----------
    history : array of shape (T, N)
        Alignment scores by epoch and sample; nan where not seen.
    until : int, optional
        Use this many first epochs, each alike; default as `method` says.
    weights : sequence of T floats, optional
        At least 0; in place of those of `method`. All 0 counts all epochs alike. `epoch_weights`
        gives them from summaries.
    method : {"separation", "mean"}
        Epochs count by how far right and wrong labels stand apart in them (default), or alike.

    Returns
    -------
    array of shape (N,)
        In [0, 1], low = suspicious; nan where never seen. Dtype of `history`, at least float32.

    Raises
    ------
    TypeError, ValueError
        On shapes and options that do not fit.

    Notes
    -----
    The fraction is at most 1, for two values alone (Pearson's inequality), and one third for a
    normal distribution: the more an epoch's scores fall into two groups, the more it counts. They
    do while wrong labels are not learned by heart; afterwards there is one group, and in an
    untrained network one with a long tail. Where no epoch has two groups, all count nearly alike.
    A sample that was seen in epochs of weight 0 alone, those without a kurtosis, gets their mean.
    The concept page on label quality gives the evidence for this default. Cost: O(TN). Runs under
    jit, which unrolls the epochs.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.3 and Fig. 16; the weights are ours.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import label_quality
    >>> label_quality(np.asarray([[0.2, -0.4], [0.4, -0.2]]), method="mean").round(3)
    array([0.65, 0.35])
    """
    check_choice("method", method, get_args(Method))
    xp = namespace(history=history)
    if history.ndim != 2 or not is_floating(xp, history) or 0 in history.shape:
        raise ValueError(
            f"`history` must be floating point (T, N) and not empty, got {history.dtype} of shape "
            f"{tuple(history.shape)}; stack the scores of each epoch"
        )
    if until is not None:
        check_positive_int("until", until)
        history = history[:until, ...]
    dtype = result_dtype(xp, history)
    history = xp.astype(history, dtype, copy=False)
    if weights is not None:
        weight = constant(xp, _checked(weights, until, history.shape[0]), history)
    elif until is None and method == "separation":
        epochs = [summarize(history[t, ...]) for t in range(history.shape[0])]
        shape = (xp.stack([getattr(x, name) for x in epochs]) for name in ("skewness", "kurtosis"))
        weight = _weights(xp, *shape)
    else:
        weight = None
    seen = xp.isfinite(history)
    scores = xp.where(seen, history, 0.0)
    seen = xp.astype(seen, dtype)
    total, count = xp.sum(scores, axis=0), xp.sum(seen, axis=0)
    with quiet(xp):
        average = divide_or_zero(xp, total, count)
        if weight is not None:
            # Not as a product of matrices, which a GPU may round to fewer digits.
            weighted = xp.sum(weight[:, None] * scores, axis=0)
            share = xp.sum(weight[:, None] * seen, axis=0)
            average = xp.where(share > 0, divide_or_zero(xp, weighted, share), average)
    # Clipped, because a sum of rounded scores may leave [-1, 1] by a bit.
    return xp.where(count > 0, xp.clip(0.5 * (1.0 + average), 0.0, 1.0), xp.nan)


def _checked(weights: Sequence[float], until: int | None, epochs: int) -> list[float]:
    """Return the weights over the largest, so that they stay in the range of float32."""
    if until is not None:
        raise ValueError(f"`weights` must not be given with `until`, got both (until={until})")
    values = [float(x) for x in weights]
    bad = [x for x in values if not 0.0 <= x < math.inf]
    if len(values) != epochs or bad:
        got = f"{bad[0]} among {len(values)}" if bad else f"{len(values)}"
        raise ValueError(
            f"`weights` must be T = {epochs} finite numbers of at least 0, one for each row of "
            f"`history`, got {got}"
        )
    largest = max(values)
    return [x / largest for x in values] if largest > 0 else values


def epoch_weights(history: Sequence[EpochSummary]) -> list[float]:
    r"""Return how much each epoch counts in `label_quality` by default, from summaries alone.

    .. math:: w_t = \max\left(\frac 1 {k_t + 3 - s_t^2} - \frac 1 3, 0\right)^2 + 0.02^2

    with skewness :math:`s_t` and excess kurtosis :math:`k_t` of epoch t.

    Parameters
    ----------
    history : sequence of EpochSummary
        All epochs in order.

    Returns
    -------
    list of T floats
        In [0, 0.45], to be given to `label_quality` as `weights` where the scores come in pieces; 0
        where the kurtosis is not a number.

    Raises
    ------
    ValueError
        If the history is empty.

    Notes
    -----
    The weight of an epoch depends on it alone. Cost: O(T).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Fig. 16; Pearson, Phil. Trans. R. Soc. A 216, 1916, for
    the inequality; the weights are ours.

    Examples
    --------
    >>> from gwa_core import EpochSummary, epoch_weights
    >>> row = dict.fromkeys(EpochSummary._fields, 0)
    >>> history = [EpochSummary(**{**row, "kurtosis": value}) for value in (-2.0, -1.0, 0.0)]
    >>> [round(weight, 4) for weight in epoch_weights(history)]
    [0.4448, 0.0282, 0.0004]
    """
    if not history:
        raise ValueError("`history` must have at least one epoch, got none")
    skewness, kurtosis = (
        np.asarray([getattr(summary, name) for summary in history], dtype=np.float64)
        for name in ("skewness", "kurtosis")
    )
    weights: list[float] = _weights(namespace(kurtosis=kurtosis), skewness, kurtosis).tolist()
    return weights


def _weights(xp: Any, skewness: Array, kurtosis: Array) -> Array:
    """Return the weights (T,) of epochs; 0 where there is no kurtosis."""
    with quiet(xp):
        apart = kurtosis + 3.0 - skewness * skewness
        known = xp.isfinite(apart)
        # Less than 1 by rounding alone; 3 is one group, a normal distribution.
        groups = 1.0 / xp.where(known & (apart > 1.0), apart, 1.0) - 1.0 / 3.0
        groups = xp.where(groups > 0.0, groups, 0.0)
    return xp.where(known, groups * groups + FLOOR * FLOOR, 0.0)
