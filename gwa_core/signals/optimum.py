"""How a mini-batch's step aligns with the way to the weights of another run's end (App. B.2)."""

from __future__ import annotations

from gwa_core._lib.array import Array, is_floating, namespace, quiet, result_dtype
from gwa_core._lib.numerics import bounded_score, divide_or_zero, norm

__all__ = ["optimum_alignment"]


def optimum_alignment(*, gradient: Array, weights: Array, optimum: Array) -> Array:
    r"""Return the cosine of the negative gradient with the way from the weights to the optimum.

    .. math:: \frac{-g \cdot (w^* - w)}{\|g\|\,\|w^* - w\|}

    High: a step down this gradient goes towards where the other run ended.

    Parameters
    ----------
    gradient : array of any one shape, (P,) or (C, D)
        Gradient g of a mini-batch's loss as automatic differentiation gives it.
    weights : array of the same shape
        The weights w at which it was taken.
    optimum : array of the same shape
        The weights w* at the end of an earlier run of the same seed.

    Returns
    -------
    0-D array
        In [-1, 1], dtype of the widest input but at least float32. 0 where the gradient vanishes
        or the weights are those of the optimum; nan where an entry is not finite.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit.

    Notes
    -----
    Weights saved in half precision are raised to float32, but what their rounding took away is
    gone: near the end w* - w consists of it. Cost: O(P). Runs under jit.

    References
    ----------
    Guille-Escuret et al., "No Wrong Turns: The Simple Geometry of Neural Networks Optimization
    Paths", ICML 2024; Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. B.2.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import optimum_alignment
    >>> weights, optimum = np.asarray([0.0, 0.0]), np.asarray([1.0, 1.0])
    >>> gradient = np.asarray([-2.0, 0.0])
    >>> optimum_alignment(gradient=gradient, weights=weights, optimum=optimum).round(3)
    np.float64(0.707)
    """
    given = {"gradient": gradient, "weights": weights, "optimum": optimum}
    xp = namespace(**given)
    shape = tuple(gradient.shape)
    for name, x in given.items():
        if not is_floating(xp, x):
            raise TypeError(f"`{name}` must be floating point, got {x.dtype}; cast it first")
        if tuple(x.shape) != shape or 0 in shape or not shape:
            raise ValueError(
                f"`{name}` must have the shape of `gradient` and not be empty, got "
                f"{tuple(x.shape)} and {shape}; flatten all three in the same order"
            )
    dtype = result_dtype(xp, gradient, weights, optimum)
    # Row by row first, as long float32 sums lose digits.
    rows = (-1, shape[-1])
    g, w, end = (xp.reshape(xp.astype(x, dtype), rows) for x in given.values())
    with quiet(xp):
        way = end - w
        length, distance = norm(xp, norm(xp, g)), norm(xp, norm(xp, way))
        unit, ahead = divide_or_zero(xp, g, length), divide_or_zero(xp, way, distance)
        return bounded_score(xp, -xp.sum(xp.vecdot(unit, ahead)), length + distance)
