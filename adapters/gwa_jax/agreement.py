"""Whether what `update` is told fits the training: the head's product, and the loss's gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from gwa_core import Agreement, gradient_norms, score_agreement
from gwa_jax._product import check_product, concrete
from gwa_jax._tracing import lenient
from gwa_jax.scoring import Array, Loss, batch_scores, loss_options

__all__ = ["check"]


def check(
    *,
    latents: Array,
    kernel: Array,
    logits: Array,
    targets: Array,
    bias: Array | None = None,
    logit_gradients: Array | None = None,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
    where: Array | None = None,
) -> Agreement | None:
    r"""Raise unless the arguments of `update` fit the head and the loss of the training.

    Call it outside jit on a batch or two, before you rely on scores without `logit_gradients`. It
    compares

    1. one row of logits with latents times kernel plus bias: a bias that was not given, another
       kernel, logits that were scaled or capped;
    2. with `logit_gradients`, the scores that they give with the closed form of `loss`, for each
       sample: a temperature, class priors, ``pos_weight``, labels that are not shifted.

    Parameters
    ----------
    latents, kernel, logits, targets, bias, loss, label_smoothing, class_weights, where
        What `update` gets; see `head_scores`.
    logit_gradients : array of shape (..., C), optional
        Gradient of your loss with respect to the logits, as `add_probe` or ``jax.grad`` gives it.

    Returns
    -------
    Agreement or None
        ``rows`` that can tell, how many are ``differing``, and the ``largest`` difference of two
        scores. No ``rows`` means that rounding and saturation hide any difference: take a batch of an
        earlier epoch. None without `logit_gradients`.

    Raises
    ------
    TypeError
        If an array is traced: inside jit no value can be looked at.
    ValueError
        If one of the two does not fit, with what was measured and the usual causes. Also on shapes,
        dtypes and options that do not fit.

    Notes
    -----
    Waits for the device, and copies the kernel and a row to the host. Rounding in half precision and
    saturated softmax are allowed for, see `gwa_core.score_agreement`. Cost: O(NC).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import gwa_jax
    >>> keys = jax.random.split(jax.random.key(0))
    >>> latents, kernel = jax.random.normal(keys[0], (8, 5)), jax.random.normal(keys[1], (5, 3))
    >>> logits, labels = latents @ kernel, jnp.arange(8) % 3
    >>> def my_loss(logits):
    ...     return -jax.nn.log_softmax(logits / 0.1)[jnp.arange(8), labels].mean()
    >>> batch = {"latents": latents, "kernel": kernel, "logits": logits, "targets": labels}
    >>> gwa_jax.check(**batch, logit_gradients=jax.grad(my_loss)(logits))
    Traceback (most recent call last):
    ...
    ValueError: `loss` must be that of the training...
    """
    if not concrete(latents, kernel, logits, targets, bias, logit_gradients, where):
        raise TypeError(
            "`check` must be called outside jit, with arrays of this process, got a traced or a "
            "remote one; return the arrays from the step, as auxiliary outputs of the loss"
        )
    score = functools.partial(
        batch_scores,
        latents,
        kernel,
        logits=logits,
        bias=bias,
        loss=loss,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        where=where,
    )
    # Checks the arguments, too.
    score(targets, logit_gradients=None)
    check_product(latents, kernel, logits, bias, where)
    if logit_gradients is None:
        return None
    scores = score(None, logit_gradients=logit_gradients)
    if not jnp.isfinite(scores).any():
        raise ValueError(
            "`logit_gradients` must have a row that is not 0, got none among "
            f"{scores.size} samples; add the probe to the logits that the loss reads"
        )
    found: Agreement = jax.device_get(
        _compare(
            scores,
            latents,
            kernel,
            targets,
            logits,
            bias,
            class_weights,
            where,
            loss,
            float(label_smoothing),
        )
    )
    if not found.holds:
        raise ValueError(
            f"`loss` must be that of the training, {loss!r} of these logits and targets, got scores "
            f"that differ from those of `logit_gradients` in {int(found.differing)} of "
            f"{int(found.rows)} samples, by up to {float(found.largest):.2g}; usual causes: a "
            "temperature, a scale or a soft cap between head and loss; `label_smoothing`, "
            "`class_weights` or `pos_weight`; a class prior; mixup with hard labels; labels that "
            "are not shifted; another head. Give `logit_gradients` to `update`"
        )
    return found


@functools.partial(jax.jit, static_argnums=(8, 9))
@lenient
def _compare(
    scores: Array,
    latents: Array,
    kernel: Array,
    targets: Array,
    logits: Array,
    bias: Array | None,
    class_weights: Array | None,
    where: Array | None,
    loss: Loss,
    label_smoothing: float,
) -> Agreement:
    """Compare two kinds of scores, rows of samples."""
    features, classes = kernel.shape
    rows = scores.size
    targets = targets.reshape(rows) if targets.size == rows else targets.reshape(rows, classes)
    found: Agreement = score_agreement(
        scores=scores.reshape(rows),
        logits=logits.reshape(rows, classes),
        latent_norms=gradient_norms(latents.reshape(rows, features)),
        weight_norm=gradient_norms(kernel.reshape(1, -1))[0],
        bias=bias,
        where=None if where is None else where.reshape(rows),
        **loss_options(targets, loss, label_smoothing, class_weights),
    )
    return found
