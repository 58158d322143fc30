"""Length of each sample's gradient at the head, and its influence on itself."""

from __future__ import annotations

import math

from gwa_core._lib.array import Array, namespace
from gwa_core._lib.checks import Loss, check_matrix
from gwa_core.gradient import gradient_norms
from gwa_core.signals.el2n import el2n

__all__ = ["gradient_norm", "self_influence"]


def gradient_norm(
    *,
    latents: Array,
    logits: Array,
    targets: Array,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
) -> Array:
    r"""Return the length of each sample's gradient with respect to the head's weight.

    .. math:: \|\nabla_W \mathcal L_i\|_F = \|r_i\| \, \|z_i\|

    High is suspicious, or hard: GraNd, taken at the head. For a whole network take explicit
    gradients.

    Parameters
    ----------
    latents : array of shape (N, D)
        Input z of the linear head. Half precision is raised to float32.
    logits : array of shape (N, C)
        Its output.
    targets : array of shape (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1), as in the loss, default 0.

    Returns
    -------
    array of shape (N,)
        At least 0; nan where the sample is not finite or its label is none of the classes.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on target values.

    Notes
    -----
    The (N, C, D) gradient is never formed; that of the bias, of length ``el2n``, is no part of it.
    Cost: O(NC + ND). Runs under jit.

    References
    ----------
    Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021; Hölzl, Rueckert,
    Kaissis, NeurIPS 2025, App. B.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import gradient_norm
    >>> latents, logits = np.asarray([[3.0, 4.0]]), np.asarray([[0.0, 0.0]])
    >>> gradient_norm(latents=latents, logits=logits, targets=np.asarray([1])).round(4)
    array([3.5355])
    """
    xp = namespace(latents=latents, logits=logits, targets=targets)
    check_matrix(xp, "logits", logits, shape="(N, C)")
    length = el2n(logits=logits, targets=targets, loss=loss, label_smoothing=label_smoothing)
    # The residual of a loss that is given is that of its own outputs, of one sigmoid too.
    return length * latent_norms(latents, rows=logits.shape[0], outputs=2)


def self_influence(
    *,
    latents: Array,
    logits: Array,
    targets: Array,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
) -> Array:
    r"""Return how much a step on each sample lowers its own loss, at the head (TracIn).

    .. math:: \|\nabla_W \mathcal L_i\|_F^2 = \|r_i\|^2 \, \|z_i\|^2

    High is suspicious, or hard. TracIn sums it over checkpoints, each times its learning rate.

    Parameters
    ----------
    latents, logits, targets, loss, label_smoothing
        As those of `gradient_norm`.

    Returns
    -------
    array of shape (N,)
        At least 0, for a learning rate of 1 and one checkpoint; nan as in `gradient_norm`.

    Raises
    ------
    TypeError, ValueError
        As `gradient_norm`.

    Notes
    -----
    The square of `gradient_norm`, so that both rank alike at one checkpoint, but not in sum over
    several. Cost: O(NC + ND). Runs under jit.

    References
    ----------
    Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import self_influence
    >>> latents, logits = np.asarray([[3.0, 4.0]]), np.asarray([[0.0, 0.0]])
    >>> self_influence(latents=latents, logits=logits, targets=np.asarray([1]))
    array([12.5])
    """
    length = gradient_norm(
        latents=latents, logits=logits, targets=targets, loss=loss, label_smoothing=label_smoothing
    )
    return length * length


def latent_norms(latents: Array, *, rows: int, outputs: int) -> Array:
    r"""Return the Euclidean norm of each sample's latents, as the softmax of a head has them.

    One sigmoid of :math:`w \cdot z` is the softmax of two outputs with weights
    :math:`\mp w / \sqrt 2` on latents :math:`z / \sqrt 2`: those weights are as far from each
    other as w is from 0, so that gradients and curvature equal the sigmoid's.
    """
    xp = namespace(latents=latents)
    check_matrix(xp, "latents", latents, shape="(N, D)", rows=rows)
    norms = gradient_norms(latents)
    return norms * math.sqrt(0.5) if outputs == 1 else norms
