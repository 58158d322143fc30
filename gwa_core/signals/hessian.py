"""Trace of the Hessian of the loss with respect to the head."""

from __future__ import annotations

from gwa_core._lib.array import Array, device_of, index_dtype, namespace
from gwa_core._lib.checks import check_matrix
from gwa_core.signals._softmax import softmax_rows
from gwa_core.signals.gradient_norm import latent_norms

__all__ = ["head_hessian_trace"]


def head_hessian_trace(*, latents: Array, logits: Array) -> Array:
    r"""Return the trace of the Hessian of each sample's loss with respect to the head's weight.

    .. math::

       \nabla^2_W \mathcal L_i = \left(\operatorname{diag}(p_i) - p_i p_i^\top\right)
       \otimes z_i z_i^\top, \qquad
       \operatorname{tr} = \left(1 - \sum_k p_{ik}^2\right) \|z_i\|^2

    How curved the softmax cross-entropy is there. Low means that the model is sure, whatever the
    label.

    Parameters
    ----------
    latents : array of shape (N, D)
        Input z of the linear head. Half precision is raised to float32.
    logits : array of shape (N, C)
        Its output; (N, 1) of one sigmoid.

    Returns
    -------
    array of shape (N,)
        At least 0; nan where the sample is not finite.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit.

    Notes
    -----
    The targets have no part in it. 1 - Σ p² is summed from positive terms, so that it keeps its
    digits where softmax saturates. Cost: O(NC + ND). Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. B.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import head_hessian_trace
    >>> head_hessian_trace(latents=np.asarray([[3.0, 4.0]]), logits=np.asarray([[0.0, 0.0]]))
    array([12.5])
    """
    xp = namespace(latents=latents, logits=logits)
    check_matrix(xp, "logits", logits, shape="(N, C)")
    # Any class will do as the label.
    first = xp.zeros(logits.shape[0], dtype=index_dtype(xp, logits), device=device_of(logits))
    rows = softmax_rows(logits, first)
    length = latent_norms(latents, rows=logits.shape[0], outputs=logits.shape[1])
    return rows.masked(rows.impurity) * length * length
