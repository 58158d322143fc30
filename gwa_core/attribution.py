"""From scores to samples: rankings, and label quality from trajectories."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from gwa_core._lib.array import Array, is_floating, namespace
from gwa_core._lib.checks import check_choice, check_positive_int

__all__ = ["label_quality", "rank_samples"]

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
    if targets is None or tuple(targets.shape) != tuple(scores.shape):
        raise ValueError(
            f"`targets` must be (N,) = ({scores.shape[0]},) integers with `per_class`, got "
            f"{None if targets is None else tuple(targets.shape)}"
        )
    rows = []
    for label in range(int(xp.max(targets)) + 1):
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
    raise NotImplementedError
