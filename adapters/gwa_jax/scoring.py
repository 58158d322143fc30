"""γ of a batch from what the forward pass of a JAX model has: latents, kernel, logits."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from gwa_core import (
    alignment_from_logit_gradients,
    alignment_from_logits,
    weighted_targets,
)
from gwa_jax._product import check_on_host
from gwa_jax._tracing import automatic, lenient, spec

__all__ = ["Array", "Loss", "batch_scores", "check_batch", "head_scores", "loss_options"]

Array: TypeAlias = jax.Array
Loss: TypeAlias = Literal["cross_entropy", "binary_cross_entropy"]

# Logits made at once where only latents are given.
BLOCK_BYTES = 160 * 1024 * 1024


def head_scores(
    *,
    latents: Array,
    kernel: Array,
    targets: Array | None = None,
    logits: Array | None = None,
    bias: Array | None = None,
    logit_gradients: Array | None = None,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
    where: Array | None = None,
) -> Array:
    r"""Return γ of a batch, the alignment of each sample's negative head gradient with the head.

    .. math:: \gamma_i = \frac{r_i \cdot W z_i}{\|r_i\|\,\|z_i\|\,\|W\|},
       \qquad r_i = -\frac{\partial \mathcal L}{\partial \ell_i}

    Give the parameters that the forward pass used, those before the optimiser's update.

    Parameters
    ----------
    latents : array of shape (..., D)
        Inputs of the head; tokens and pixels are samples.
    kernel : array of shape (D, C)
        Weight of the head as Flax and Haiku have it. Equinox has (C, D): pass ``weight.T``.
    targets : integer array of shape (...,) or array of shape (..., C), optional
        Class numbers, or probabilities. A class number outside 0..C-1 gives nan. Not needed, and
        not read, with `logit_gradients`.
    logits : array of shape (..., C), optional
        Outputs of the head, bias included. Without them they are made in blocks of rows.
    bias : array of shape (C,), optional
        Bias of the head, to be taken off the logits.
    logit_gradients : array of shape (..., C), optional
        Gradient of your own loss with respect to the logits, one row a sample, as `add_probe` or
        ``jax.grad`` of the loss gives it. The scores are then right for any loss, and `loss`,
        `label_smoothing` and `class_weights` play no part. The scale of a row does not matter.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1), default 0.
    class_weights : array of shape (C,), optional
        Weights of the classes in a cross-entropy loss, default all alike. They matter for soft
        targets and label smoothing: for class numbers alone γ does not depend on them.
    where : boolean array of shape (...,), optional
        True for samples that count; the others get nan.

    Returns
    -------
    array of shape (...,)
        In [-1, 1], float32 (float64 for float64 input). nan where a row of `logit_gradients` is 0:
        it has no direction. No gradient flows through it.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit. Outside jit on a CPU, also if a row of
        `logits` is not the product of latents and kernel plus bias.

    Notes
    -----
    Without `logit_gradients` the loss must be the one that the options say, applied to these logits.
    `check` compares the two.

    Cost: one read of logits, latents and kernel. Without logits they are a product with the kernel
    in its own dtype, and where they are larger than 160 MiB they are made in blocks, so that the
    whole (N, C) is never there. Runs under jit, vmap, scan and shard_map, and on global arrays of
    any sharding.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1 and Algorithm 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gwa_jax import head_scores
    >>> latents = jnp.asarray([[2.0, 0.0], [0.0, 1.0]])
    >>> head_scores(latents=latents, kernel=jnp.eye(2), targets=jnp.asarray([0, 0])).round(3)
    Array([ 0.5, -0.5], dtype=float32)
    """
    scores = batch_scores(
        latents,
        kernel,
        targets,
        logits=logits,
        bias=bias,
        logit_gradients=logit_gradients,
        loss=loss,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        where=where,
    )
    check_on_host(latents, kernel, logits, bias, where)
    return scores


def batch_scores(
    latents: Array,
    kernel: Array,
    targets: Array | None,
    *,
    logits: Array | None,
    bias: Array | None,
    logit_gradients: Array | None,
    loss: Loss,
    label_smoothing: float,
    class_weights: Array | None,
    where: Array | None = None,
) -> Array:
    """Return the scores of a batch from arrays whose values nobody looks at."""
    check_batch(latents, kernel, targets, logits, logit_gradients, class_weights, where, loss)
    if logit_gradients is not None:
        targets = class_weights = None
    scores: Array = _scores(
        latents,
        kernel,
        targets,
        logits,
        bias,
        logit_gradients,
        class_weights,
        where,
        loss,
        float(label_smoothing),
    )
    return scores


def predicted(logits: Array | None, axes: int) -> Array:
    """Return the classes of largest logit of a batch whose scores have so many axes."""
    if logits is None or axes > 1:
        raise ValueError(
            "`logits` must be those of samples (N, C) for a state with predictions, got "
            f"{'none' if logits is None else 'those of tokens'}; leave out init(predictions=True)"
        )
    return logits[:, 0] > 0 if logits.shape[1] == 1 else jnp.argmax(logits, axis=1)


def check_batch(
    latents: Array,
    kernel: Array,
    targets: Array | None,
    logits: Array | None,
    logit_gradients: Array | None,
    class_weights: Array | None,
    where: Array | None,
    loss: Loss,
) -> None:
    """Check the arrays of a batch."""
    _check_shapes(latents, kernel, targets, logits, logit_gradients, where)
    _check_class_weights(class_weights, kernel.shape[1], loss)


def _check_shapes(
    latents: Array,
    kernel: Array,
    targets: Array | None,
    logits: Array | None,
    logit_gradients: Array | None,
    where: Array | None,
) -> None:
    """Check what reshaping would hide."""
    needed: dict[str, Any] = {"latents": latents, "kernel": kernel}
    if logit_gradients is None:
        needed["targets"] = targets
    given = needed | {"logits": logits, "logit_gradients": logit_gradients, "where": where}
    if logit_gradients is None and targets is None:
        raise TypeError(
            "`targets` must be an array, got None; without targets give `logit_gradients`, the "
            "gradient of your loss"
        )
    for name, x in given.items():
        if (name in needed or x is not None) and not hasattr(x, "shape"):
            raise TypeError(f"`{name}` must be an array, got {type(x).__name__}")
    for name in ("latents", "kernel"):
        if not jnp.issubdtype(needed[name].dtype, jnp.floating):
            raise TypeError(f"`{name}` must be floating point, got {needed[name].dtype}")
    if kernel.ndim != 2 or latents.ndim < 1 or kernel.shape[0] != latents.shape[-1]:
        d = latents.shape[-1] if latents.ndim else "D"
        turned = kernel.ndim == 2 and kernel.shape[1] == d
        cause = (
            "the weight of an Equinox layer is (C, D) and must be transposed"
            if turned
            else "`latents` must be the input of this head, not of another layer"
        )
        raise ValueError(f"`kernel` must be (D, C) = ({d}, C), got {tuple(kernel.shape)}; {cause}")
    shape, classes = tuple(latents.shape[:-1]), kernel.shape[1]
    if math.prod(shape) == 0:
        raise ValueError(
            f"`latents` must have at least one sample, got shape {tuple(latents.shape)}"
        )
    expected = {
        "logits": ((*shape, classes), logits),
        "logit_gradients": ((*shape, classes), logit_gradients),
        "where": (shape, where),
    }
    if logit_gradients is None and targets is not None:
        hard = jnp.issubdtype(targets.dtype, jnp.integer) or classes == 1
        wanted = shape if hard and targets.shape == shape else (*shape, classes)
        expected = {"targets": (wanted, targets)} | expected
    for name, (wanted, x) in expected.items():
        if x is not None and tuple(x.shape) != wanted:
            also = f"{shape} class numbers or {wanted}" if name == "targets" else f"{wanted}"
            labels = name == "targets" and x.shape == shape
            got = f"{x.dtype} of shape {shape}; cast class numbers to an integer dtype"
            raise ValueError(
                f"`{name}` must be {also} for latents {tuple(latents.shape)} and kernel "
                f"{tuple(kernel.shape)}, got {got if labels else tuple(x.shape)}"
            )


def _check_class_weights(weights: Array | None, classes: int, loss: str) -> None:
    if weights is None:
        return
    if not hasattr(weights, "shape"):
        raise TypeError(f"`class_weights` must be an array, got {type(weights).__name__}")
    if loss != "cross_entropy":
        raise ValueError(
            f"`class_weights` must come with loss='cross_entropy', got {loss!r}; a weighted sigmoid "
            "loss has another gradient than the one measured"
        )
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise TypeError(f"`class_weights` must be floating point, got {weights.dtype}")
    if tuple(weights.shape) != (classes,):
        raise ValueError(
            f"`class_weights` must be (C,) = ({classes},), got shape {tuple(weights.shape)}"
        )


@functools.partial(jax.jit, static_argnums=(8, 9))
@lenient
def _scores(
    latents: Array,
    kernel: Array,
    targets: Array | None,
    logits: Array | None,
    bias: Array | None,
    logit_gradients: Array | None,
    class_weights: Array | None,
    where: Array | None,
    loss: Loss,
    label_smoothing: float,
) -> Array:
    """Score arrays that fit together."""
    arrays = latents, kernel, targets, logits, bias, logit_gradients, class_weights
    score = functools.partial(_flat_scores, loss=loss, label_smoothing=label_smoothing)
    given = jax.lax.stop_gradient(arrays)
    scores: Array = automatic(score, spec(latents, leave=1), *given, where)
    return scores


def _flat_scores(
    latents: Array,
    kernel: Array,
    targets: Array | None,
    logits: Array | None,
    bias: Array | None,
    logit_gradients: Array | None,
    class_weights: Array | None,
    where: Array | None,
    *,
    loss: Loss,
    label_smoothing: float,
) -> Array:
    shape = latents.shape[:-1]
    features, classes = kernel.shape
    latents = latents.reshape(-1, features)
    rows = latents.shape[0]
    # In the kernel's dtype, as the model makes logits, but not rounded to it.
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    # One pass each, where norms that can neither overflow nor underflow take two.
    weight_norm = jnp.linalg.norm(kernel.astype(wide))

    def score(z: Array, of_loss: Array, logits: Array | None = None) -> Array:
        """Score rows by their targets, or by their gradients."""
        if logits is None:
            logits = jnp.dot(z.astype(kernel.dtype), kernel, preferred_element_type=wide)
            logits = logits if bias is None else logits + bias.astype(wide)
        head = {
            "logits": logits,
            "latent_norms": jnp.linalg.norm(
                z.astype(jnp.promote_types(z.dtype, jnp.float32)), axis=1
            ),
            "weight_norm": weight_norm,
            "bias": bias,
        }
        found: Array = (
            alignment_from_logits(
                **head, **loss_options(of_loss, loss, label_smoothing, class_weights)
            )
            if logit_gradients is None
            else alignment_from_logit_gradients(**head, logit_gradients=of_loss)
        )
        return found

    of_loss: Any = targets if logit_gradients is None else logit_gradients
    numbers = logit_gradients is None and of_loss.size == rows
    of_loss = of_loss.reshape(rows) if numbers else of_loss.reshape(rows, classes)
    step = max(1, BLOCK_BYTES // (classes * wide.itemsize))
    # Whole tiles of a matrix product.
    step = step // 128 * 128 or step
    if logits is not None:
        scores = score(latents, of_loss, logits.reshape(rows, classes))
    elif rows <= step:
        scores = score(latents, of_loss)
    else:
        scores = jax.lax.map(
            lambda row: score(row[0][None], row[1][None])[0], (latents, of_loss), batch_size=step
        )
    scores = scores if where is None else jnp.where(where.reshape(rows), scores, jnp.nan)
    return scores.reshape(shape)


def loss_options(
    targets: Array, loss: Loss, label_smoothing: float, class_weights: Array | None
) -> dict[str, Any]:
    """Return what the core must know of a loss; class weights are a matter of the targets."""
    options: dict[str, Any] = {"targets": targets, "label_smoothing": label_smoothing}
    if class_weights is not None and (targets.ndim == 2 or label_smoothing > 0.0):
        options = {"targets": weighted_targets(class_weights=class_weights, **options)}
    return options | {"loss": loss}
