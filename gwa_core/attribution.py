"""From scores to samples: rankings, and label quality from trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from gwa_core._lib.array import (
    Array,
    device_of,
    is_floating,
    namespace,
    quiet,
    result_dtype,
)
from gwa_core._lib.checks import check_choice, check_positive_int
from gwa_core._lib.numerics import divide_or_zero
from gwa_core.history import EpochSummary
from gwa_core.score import summarize

__all__ = ["informative_epochs", "label_quality", "rank_samples"]

Order: TypeAlias = Literal["lowest", "highest"]
Method: TypeAlias = Literal["separation", "mean"]


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
    history: Array, *, until: int | None = None, method: Method = "separation"
) -> Array:
    r"""Return one number a sample from its trajectory: how far its label can be trusted.

    .. math:: q_i = \frac 1 2 \left(1 + \frac 1 {|S_i|} \sum_{t \in S_i} \gamma_{t,i}\right)

    over the epochs :math:`S_i` in which sample i was seen, up to a last one. Below one half the
    sample pulled against the head's weights on average.

    Parameters
    ----------
    history : array of shape (T, N)
        Alignment scores by epoch and sample; nan where not seen.
    until : int, optional
        Use this many first epochs; default as `method` says.
    method : {"separation", "mean"}
        Without `until`: use the epochs up to twice the one of largest bimodality (default), after
        which a network that memorises makes wrong labels look right; or all epochs.

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
    The most bimodal epoch is looked for among healthy ones after the first tenth; where there is
    none all epochs count. The concept page on label quality gives the evidence for this default.
    Cost: O(TN). Runs under jit, which unrolls the epochs.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.3 and Fig. 16; the average is ours.

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
    history = xp.astype(history, dtype)
    seen = xp.isfinite(history)
    if until is None and method == "separation":
        summaries = [summarize(history[t, ...]) for t in range(history.shape[0])]
        bimodality = xp.stack([summary.bimodality for summary in summaries])
        healthy = xp.stack([summary.healthy for summary in summaries])
        seen = seen & _informative(xp, bimodality, healthy)[:, None]
    with quiet(xp):
        count = xp.sum(xp.astype(seen, dtype), axis=0)
        total = xp.sum(xp.where(seen, history, 0.0), axis=0)
        quality = 0.5 * (1.0 + divide_or_zero(xp, total, count))
    # Clipped, because a sum of rounded scores may leave [-1, 1] by a bit.
    return xp.where(count > 0, xp.clip(quality, 0.0, 1.0), xp.nan)


def informative_epochs(history: Sequence[EpochSummary]) -> int:
    """Return how many first epochs `label_quality` uses by default, from summaries alone.

    Parameters
    ----------
    history : sequence of EpochSummary
        All epochs in order.

    Returns
    -------
    int
        In 1..T, to be given to `label_quality` as `until` where the scores come in pieces.

    Raises
    ------
    ValueError
        If the history is empty.

    Notes
    -----
    Up to twice the healthy epoch of largest bimodality after the first tenth. Cost: O(T).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Fig. 16.

    Examples
    --------
    >>> from gwa_core import EpochSummary, informative_epochs
    >>> row = dict.fromkeys(EpochSummary._fields, 1)
    >>> curve = [0.3, 0.5, 0.4, 0.3, 0.3]
    >>> informative_epochs([EpochSummary(**{**row, "bimodality": value}) for value in curve])
    3
    """
    if not history:
        raise ValueError("`history` must have at least one epoch, got none")
    bimodality = np.asarray([summary.bimodality for summary in history])
    healthy = np.asarray([summary.healthy for summary in history])
    return int(_informative(namespace(bimodality=bimodality), bimodality, healthy).sum())


def _informative(xp: Any, bimodality: Array, healthy: Array) -> Array:
    """Return the (T,) mask of epochs up to twice the healthy one of largest bimodality."""
    epochs = bimodality.shape[0]
    clock = xp.arange(epochs, dtype=bimodality.dtype, device=device_of(bimodality))
    usable = healthy & (clock >= epochs // 10)
    height = xp.where(usable, bimodality, -1.0)
    peak = xp.min(xp.where(height == xp.max(height), clock, float(epochs)))
    return clock <= xp.where(xp.any(usable), 2.0 * peak, float(epochs))
