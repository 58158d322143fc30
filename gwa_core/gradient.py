"""Explicit per-sample gradients: their alignment with the weights (Def. 1), and their norms."""

from __future__ import annotations

from gwa_core._lib.array import Array, map_rows, namespace, quiet, result_dtype
from gwa_core._lib.checks import check_matrix, check_vector
from gwa_core._lib.numerics import bounded_score, divide_or_zero, norm

__all__ = ["gradient_alignment", "gradient_norms"]


def gradient_alignment(gradients: Array, weights: Array, /) -> Array:
    r"""Return the alignment of explicit per-sample gradients with the weights they belong to.

    .. math:: \gamma_i = \frac{-\nabla_w \mathcal L_i \cdot w}{\|\nabla_w \mathcal L_i\|\,\|w\|}

    For layers without a closed form, or several at once (Fig. 7).

    Parameters
    ----------
    gradients : array of shape (N, P)
        Gradient of each sample's loss as automatic differentiation gives it, flattened; the
        minus sign of Definition 1 is applied here.
    weights : array of shape (P,)
        The weights, flattened in the same order.

    Returns
    -------
    array of shape (N,)
        In [-1, 1], dtype of the inputs but at least float32. 0 where the gradient or the weights
        vanish; nan where a gradient is not finite.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit.

    Notes
    -----
    Norms are scaled, so that they neither overflow nor underflow. Cost: O(NP). Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1 and App. A.2.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import gradient_alignment
    >>> gradient_alignment(np.asarray([[-1.0, 0.0], [1.0, 1.0]]), np.asarray([2.0, 0.0])).round(3)
    array([ 1.   , -0.707])
    """
    xp = namespace(gradients=gradients, weights=weights)
    check_matrix(xp, "gradients", gradients, shape="(N, P)")
    check_vector(xp, "weights", weights, gradients.shape[1], letter="P")
    dtype = result_dtype(xp, gradients, weights)
    weights = xp.astype(weights, dtype)
    with quiet(xp):
        size = norm(xp, weights)
        direction = divide_or_zero(xp, weights, size)

        def rows(gradient: Array) -> Array:
            gradient = xp.astype(gradient, dtype, copy=False)
            length = norm(xp, gradient)
            unit = divide_or_zero(xp, gradient, length[:, None])
            return bounded_score(xp, -(unit @ direction), length)

        score = map_rows(rows, xp, gradients, row_bytes=4 * gradients.shape[1])
        return xp.where(xp.isfinite(size), score, xp.nan)


def gradient_norms(gradients: Array, /) -> Array:
    r"""Return the norm of each explicit per-sample gradient (GraNd).

    .. math:: \|\nabla_w \mathcal L_i\|

    For the head alone `gwa_core.signals.gradient_norm` needs no gradients.

    Parameters
    ----------
    gradients : array of shape (N, P)
        Gradient of each sample's loss, flattened. Half precision is raised to float32.

    Returns
    -------
    array of shape (N,)
        At least 0, dtype of the input but at least float32; nan or inf where a gradient is not
        finite.

    Raises
    ------
    TypeError, ValueError
        If the input is not a floating (N, P) array.

    Notes
    -----
    Norms are scaled, so that they neither overflow nor underflow. Cost: O(NP). Runs under jit.

    References
    ----------
    Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021; Hölzl, Rueckert,
    Kaissis, NeurIPS 2025, App. B.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import gradient_norms
    >>> gradient_norms(np.asarray([[3.0, 4.0], [0.0, 1e-200]]))
    array([5.e+000, 1.e-200])
    """
    xp = namespace(gradients=gradients)
    check_matrix(xp, "gradients", gradients, shape="(N, P)")
    dtype = result_dtype(xp, gradients)

    def rows(gradient: Array) -> Array:
        return norm(xp, xp.astype(gradient, dtype, copy=False))

    return map_rows(rows, xp, gradients, row_bytes=4 * gradients.shape[1])
