"""How far the gradients of mini-batches lie apart (Forouzesh and Thiran)."""

from __future__ import annotations

from typing import Any

from gwa_core._lib.array import Array, accumulator_dtype, namespace, quiet, result_dtype
from gwa_core._lib.checks import Loss, check_loss, check_matrix, check_scores
from gwa_core._lib.numerics import first_argmax, log_sigmoid, norm, replace_at, row_sum
from gwa_core.residual import _scaled_residual
from gwa_core.targets import _indexable, _soft_targets

__all__ = ["gradient_disparity", "head_gradient_disparity", "rescaled_loss"]


def gradient_disparity(gradients: Array, /) -> Array:
    r"""Return the mean distance between the gradients of every two mini-batches.

    .. math:: \frac{2}{S (S - 1)} \sum_{s < t} \|g_s - g_t\|_2

    A rise from epoch to epoch is taken for overfitting; see `gwa_core.GradientDisparity`.

    Parameters
    ----------
    gradients : array of shape (S, P)
        Gradient of each mini-batch's loss at the same weights, flattened. Its paper takes S = 5
        and the loss of each mini-batch divided by its deviation, `rescaled_loss`.

    Returns
    -------
    0-D array
        At least 0; nan where a gradient is not finite. Lower is better.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit, and on fewer than two mini-batches.

    Notes
    -----
    Distances are those of explicit differences: from a Gram matrix near gradients would lose their
    digits. Cost: O(S² P) time, O(SP) memory. Runs under jit, which unrolls S - 1 steps.

    References
    ----------
    Forouzesh and Thiran, "Disparity Between Batches as a Signal for Early Stopping", ECML PKDD
    2021.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import gradient_disparity
    >>> float(gradient_disparity(np.asarray([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])).round(3))
    3.333
    """
    xp = namespace(gradients=gradients)
    check_matrix(xp, "gradients", gradients, shape="(S, P)")
    count = _check_count("gradients", gradients)
    dtype = result_dtype(xp, gradients)
    with quiet(xp):
        gradients = xp.astype(gradients, dtype, copy=False)
        distances = [
            norm(xp, gradients[i + 1 :, :] - gradients[i, :][None, :]) for i in range(count - 1)
        ]
        mean = xp.mean(xp.concat(distances))
        return xp.where(xp.isfinite(mean), mean, xp.nan)


def rescaled_loss(losses: Array, /) -> Array:
    r"""Return the loss of a mini-batch over its deviation, whose gradients `gradient_disparity` takes.

    .. math:: \frac{m}{\sigma}, \qquad m = \frac 1 B \sum_i \mathcal L_i, \quad
       \sigma^2 = \frac 1 {B - 1} \sum_i (\mathcal L_i - m)^2

    A falling loss alone then does not lower the disparity.

    Parameters
    ----------
    losses : array of shape (B,)
        Loss of each sample. To be differentiated, by the library that made them.

    Returns
    -------
    0-D array
        At least 0 for losses that are; not finite where all losses are equal.

    Raises
    ------
    TypeError, ValueError
        If the losses are not floating, not (B,), or fewer than two.

    Notes
    -----
    The deviation is differentiated too, as the authors' code does. Cost: O(B). Runs under jit.

    References
    ----------
    Forouzesh and Thiran, "Disparity Between Batches as a Signal for Early Stopping", ECML PKDD
    2021.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import rescaled_loss
    >>> float(rescaled_loss(np.asarray([1.0, 2.0, 3.0])))
    2.0
    """
    xp = namespace(losses=losses)
    check_scores(xp, "losses", losses)
    if losses.shape[0] < 2:
        raise ValueError(
            f"`losses` must be (B,) with B >= 2, got shape {tuple(losses.shape)}; the deviation of "
            "one loss is none"
        )
    losses = xp.astype(losses, result_dtype(xp, losses), copy=False)
    with quiet(xp):
        # Against the first, so that equal losses have no deviation, not one of rounding.
        return xp.mean(losses) / xp.std(losses - losses[:1], correction=1.0)


def head_gradient_disparity(
    *,
    latents: Array,
    logits: Array,
    targets: Array,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
) -> Array:
    r"""Return the gradient disparity of mini-batches with respect to the head's weight.

    .. math:: g_s = \nabla_W \frac{m_s}{\sigma_s} = -\frac 1 {\sigma_s} \sum_i \left(
       \frac 1 B - \frac{m_s (\mathcal L_{si} - m_s)}{(B - 1) \sigma_s^2}\right) r_{si} \otimes z_{si}

    The loss of each mini-batch is its mean :math:`m_s` over its standard deviation
    :math:`\sigma_s`, as in the paper, so that a falling loss alone does not lower the disparity.

    Parameters
    ----------
    latents : array of shape (S, B, D)
        Input z of the linear head for S mini-batches of B samples, all at the same weights. Half
        precision is raised to float32.
    logits : array of shape (S, B, C)
        Its output.
    targets : array of shape (S, B) or (S, B, C)
        Class numbers in 0..C-1, or probabilities.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1), as in the loss, default 0.

    Returns
    -------
    0-D array
        At least 0; nan where a sample is not finite, and where all losses of a mini-batch are
        equal. Lower is better.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit, and on S or B below 2; on NumPy arrays also
        on target values.

    Notes
    -----
    The deviation is that of n - 1, and is differentiated too, as the authors' code does. The
    gradient of the bias is no part of it. Cost: O(SBCD) with S (C, D) gradients, or, where that is
    less, O((SB)² (C + D)) with the Gram matrices of the SB samples, in float64 where there is one;
    both take at most S times the memory of the inputs. Runs under jit.

    References
    ----------
    Forouzesh and Thiran, "Disparity Between Batches as a Signal for Early Stopping", ECML PKDD
    2021; Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import head_gradient_disparity
    >>> rng = np.random.default_rng(0)
    >>> latents, targets = rng.normal(size=(5, 8, 3)), rng.integers(0, 2, (5, 8))
    >>> given = {"latents": latents, "logits": latents[..., :2], "targets": targets}
    >>> round(float(head_gradient_disparity(**given)), 3)
    0.958
    """
    xp = namespace(latents=latents, logits=logits, targets=targets)
    for name, x in {"latents": latents, "logits": logits}.items():
        if x.ndim != 3 or x.shape[:2] != logits.shape[:2]:
            raise ValueError(
                f"`{name}` must be (S, B, ...) for S mini-batches of B samples, got shape "
                f"{tuple(x.shape)}; stack mini-batches of one size"
            )
    count, size, classes = logits.shape
    features, samples = latents.shape[2], count * size
    _check_count("logits", logits)
    if size < 2:
        raise ValueError(
            "`logits` must be (S, B, C) with B >= 2, got B = 1; the deviation of one loss is none"
        )
    if targets.shape[:2] != logits.shape[:2] or targets.ndim > 3:
        raise ValueError(
            f"`targets` must be (S, B) or (S, B, C) with S, B = {count}, {size}, got shape "
            f"{tuple(targets.shape)}"
        )
    logits = xp.reshape(logits, (samples, classes))
    latents = xp.reshape(latents, (samples, features))
    targets = xp.reshape(targets, (samples, *targets.shape[2:]))
    check_matrix(xp, "logits", logits, shape="(S, B, C)")
    check_matrix(xp, "latents", latents, shape="(S, B, D)")
    check_loss(xp, targets, samples, classes, loss, label_smoothing)
    dtype = result_dtype(xp, latents, logits)
    targets, known = _indexable(xp, targets, classes)
    with quiet(xp):
        logit, z = xp.astype(logits, dtype), xp.astype(latents, dtype)
        r = _rescaled(xp, logit, targets, loss, label_smoothing, (count, size))
        finite = xp.all(xp.isfinite(logit), axis=1)
        finite = finite if known is None else finite & known
        r = xp.where(finite[:, None], r, xp.nan)
        if classes * features <= samples * (classes + features):
            r = xp.permute_dims(xp.reshape(r, (count, size, classes)), (0, 2, 1))
            gradients = r @ xp.reshape(z, (count, size, features))
            return gradient_disparity(xp.reshape(gradients, (count, classes * features)))
        # Near gradients lose their digits here, and float64 has some to spare.
        wide = accumulator_dtype(xp, z)
        r, z = xp.astype(r, wide), xp.astype(z, wide)
        products = xp.reshape((r @ r.T) * (z @ z.T), (count, size, count, size))
        gram = xp.sum(xp.sum(products, axis=3), axis=1)
        own = xp.stack([gram[s, s] for s in range(count)])
        square = own[:, None] + own[None, :] - 2.0 * gram
        total = xp.sum(xp.sqrt(xp.maximum(square, xp.zeros_like(square))))
        return xp.astype(total / (count * (count - 1)), dtype)


def _check_count(name: str, x: Array) -> int:
    count: int = x.shape[0]
    if count < 2:
        raise ValueError(
            f"`{name}` must hold S >= 2 mini-batches, got shape {tuple(x.shape)}; a distance is "
            "between two"
        )
    return count


def _rescaled(
    xp: Any, logits: Array, targets: Array, loss: Loss, smoothing: float, shape: tuple[int, int]
) -> Array:
    """Return each sample's residual times its part in the rescaled loss of its mini-batch."""
    direction, size = _scaled_residual(xp, logits, targets, loss, smoothing)
    losses = xp.reshape(_losses(xp, logits, targets, loss, smoothing), shape)
    mean = xp.mean(losses, axis=1, keepdims=True)
    away, freedom = losses - mean, shape[1] - 1
    deviation = norm(xp, away)[:, None] / freedom**0.5
    deviation = xp.where(deviation > 0, deviation, xp.nan)
    part = 1.0 / shape[1] - (mean / deviation) * (away / deviation) / freedom
    # Where all losses are tiny, so are the residuals; of both only the ratio stays in range.
    part = part * xp.reshape(size, (*shape, -1))[..., 0] / deviation
    return direction * xp.reshape(part, (-1, 1))


def _losses(xp: Any, logits: Array, targets: Array, loss: Loss, smoothing: float) -> Array:
    """Return the loss of each sample, exact where it is small."""
    if loss == "binary_cross_entropy":
        soft = _soft_targets(xp, targets, logits, smoothing, 0.5)
        hit, miss = log_sigmoid(xp, logits), log_sigmoid(xp, -logits)
        return -(xp.vecdot(soft, hit) + xp.vecdot(1.0 - soft, miss))
    soft = _soft_targets(xp, targets, logits, smoothing, 1.0 / logits.shape[1])
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    others = replace_at(xp, xp.exp(shifted), first_argmax(xp, logits), 0.0)
    return -xp.vecdot(soft, shifted - xp.log1p(row_sum(xp, others))[:, None])
