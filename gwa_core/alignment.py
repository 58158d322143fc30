"""Per-sample alignment of the head's gradient with its weights (Def. 1), in closed form."""

from __future__ import annotations

from functools import partial
from typing import Any

from gwa_core._lib.array import (
    Array,
    is_host,
    map_rows,
    namespace,
    quiet,
    recompute_rows,
    result_dtype,
    scalar,
)
from gwa_core._lib.checks import (
    Loss,
    check_bias,
    check_loss,
    check_matrix,
    check_sketch,
    check_vector,
    check_weight,
    check_where,
)
from gwa_core._lib.numerics import bounded_score, divide_or_zero, norm
from gwa_core.projection import JLSketch, project
from gwa_core.residual import _products
from gwa_core.targets import _indexable

__all__ = ["alignment_from_logit_gradients", "alignment_from_logits", "alignment_scores"]

# Rows of logits made at once from latents: large enough for a fast matrix product, small enough
# that offline analysis needs no more than this whatever N and C.
LOGIT_BLOCK_BYTES = 8 * 1024 * 1024

# Where less than this share of the terms of a float32 sum remains, NumPy sums again in float64.
CANCELLED = 1 / 256

# Products in bfloat16, as a GPU makes logits, differ from exact ones by less than this share.
ROUNDED = 1 / 32


def alignment_scores(
    *,
    latents: Array,
    weight: Array,
    targets: Array,
    logits: Array | None = None,
    bias: Array | None = None,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    where: Array | None = None,
    sketch: JLSketch | None = None,
) -> Array:
    r"""Return the alignment of each sample's negative head gradient with the head's weights.

    .. math::

       \gamma_i = \frac{\langle r_i \otimes z_i, W\rangle}{\|r_i\|\,\|z_i\|\,\|W\|}
                = \frac{r_i \cdot (W z_i)}{\|r_i\|\,\|z_i\|\,\|W\|},
       \qquad r_i = t_i - \operatorname{softmax}(\ell_i)

    High: the sample pulls the head the way it already points. Around zero or below: the sample
    disagrees with what the others taught, as wrong labels and rare samples do.

    Parameters
    ----------
    latents : array of shape (N, D)
        Input z of the linear head. Half precision is raised to float32.
    weight : array of shape (C, D)
        Weight W of the head at the forward pass; a Flax kernel (D, C) must be transposed.
    targets : array of shape (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities that sum to one in each row (with
        ``loss="binary_cross_entropy"``: one probability in [0, 1] for each output).
    logits : array of shape (N, C), optional
        Outputs of the head, bias included; saves the product ``latents @ weight.T``. Of NumPy arrays
        the first finite row is compared with it: call once for each source of logits.
    bias : array of shape (C,), optional
        Bias of the head. Its own gradient is not part of the alignment (as in the paper).
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1): the share of the target that is spread evenly, default 0.
    where : boolean array of shape (N,), optional
        True for samples that count; the others get nan.
    sketch : JLSketch, optional
        Measure in K dimensions: the latents and the rows of W are projected, the residual is
        not. The mean stays, each score gets noise of order 1/sqrt(K) (see `JLSketch`).

    Returns
    -------
    array of shape (N,)
        In [-1, 1], in the dtype of the widest input but at least float32. 0 where the latents,
        the weights or the residual vanish; nan where the sample's input is not finite, its class
        number is outside 0..C-1, or `where` is False.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on target values, and on
        logits of another head.

    Notes
    -----
    The (N, C, D) gradient is never formed. Exact where softmax saturates, see `residual`. Cost:
    O(NC) with `logits`, O(NCD) without; NumPy works in row blocks (8 MiB), other libraries hold
    O(NC) temporaries unless they fuse. Runs under jit; no branch depends on a value.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1 and Algorithm 1; sketches: App. A.2.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import alignment_scores
    >>> latents = np.asarray([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> alignment_scores(latents=latents, weight=np.eye(2), targets=np.asarray([0, 1, 0])).round(3)
    array([ 0.5,  0.5, -0.5])
    """
    xp = namespace(
        latents=latents, weight=weight, targets=targets, logits=logits, bias=bias, where=where
    )
    check_matrix(xp, "latents", latents, shape="(N, D)")
    rows, features = latents.shape
    if logits is not None:
        check_matrix(xp, "logits", logits, shape="(N, C)", rows=rows)
    classes = None if logits is None else logits.shape[1]
    check_weight(xp, weight, features=features, classes=classes)
    classes = weight.shape[0]
    check_bias(xp, bias, classes)
    check_loss(xp, targets, rows, classes, loss, label_smoothing, where)
    if sketch is not None:
        check_sketch(features, sketch.in_features)
    dtype = result_dtype(xp, latents, weight, logits)
    weight = xp.astype(weight, dtype, copy=False)
    bias = None if bias is None else xp.astype(bias, dtype)
    if logits is not None and is_host(latents, weight, logits, bias, where):
        _check_logits(xp, latents, weight, logits, bias, where, loss)
    head = weight if sketch is None else project(weight, sketch)
    # Row by row first: short sums lose fewer digits, and do not wake the threads of BLAS.
    weight_norm = norm(xp, norm(xp, head))

    def score(z: Array, target: Array, logit: Array | None, mask: Array | None) -> Array:
        z = xp.astype(z, dtype, copy=False)
        product = None
        if logit is None:
            product = z @ weight.T
            logit = product if bias is None else product + bias
        if sketch is not None:
            z = project(z, sketch)
            product = z @ head.T
        return _from_logits(
            xp,
            logit,
            map_rows(partial(norm, xp), xp, z, row_bytes=4 * z.shape[1]),
            weight_norm,
            target,
            bias,
            loss,
            label_smoothing,
            mask,
            product,
        )

    return map_rows(
        score,
        xp,
        latents,
        targets,
        logits,
        where,
        # With logits given all that is left is blocked by itself.
        row_bytes=4 * (classes + features) if logits is None else 1,
        block_bytes=LOGIT_BLOCK_BYTES,
    )


def _check_logits(
    xp: Any,
    latents: Array,
    weight: Array,
    logits: Array,
    bias: Array | None,
    where: Array | None,
    loss: Loss,
) -> None:
    """Raise unless the first finite row of logits is that of the head, up to the rounding of bfloat16."""
    sound = xp.isfinite(logits[:, 0]) if where is None else xp.isfinite(logits[:, 0]) & where
    row = int(xp.argmax(sound))
    with quiet(xp):
        if not all(xp.all(xp.isfinite(array[row, :])) for array in (latents, logits)):
            # A row that is not finite says nothing of those after it.
            for array in (latents, logits):
                sound = sound & xp.isfinite(xp.sum(array, axis=1, dtype=weight.dtype))
            row = int(xp.argmax(sound))
        terms = weight * xp.astype(latents[row, :], weight.dtype)
        made = xp.sum(terms, axis=1)
        off = xp.astype(logits[row, :], weight.dtype) - made - (0.0 if bias is None else bias)
        if loss == "cross_entropy":
            # A residual that sums to zero does not see what all logits have in common.
            off = off - xp.mean(off)
        off = xp.abs(off)
        allowed = ROUNDED * (norm(xp, terms) + xp.abs(made) + 1e-6)
        # Not finite is answered by nan, as promised.
        wrong = xp.isfinite(off) & (off > allowed)
    if xp.any(wrong):
        cause = "the head has a bias, which must be given" if bias is None else "another head"
        raise ValueError(
            f"`logits` must be latents @ weight.T + bias, got row {row} that differs by up to "
            f"{float(xp.max(xp.where(wrong, off, 0.0))):.3g}; usual causes: {cause}; logits that "
            "were scaled or capped after the head; a weight of after the optimiser's step"
        )


def alignment_from_logits(
    *,
    logits: Array,
    latent_norms: Array,
    weight_norm: Array,
    targets: Array,
    bias: Array | None = None,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    where: Array | None = None,
) -> Array:
    r"""Return `alignment_scores` from what a forward hook can keep: logits and two norms.

    .. math:: \gamma_i = \frac{r_i \cdot (\ell_i - b)}{\|r_i\|\,\|z_i\|\,\|W\|}

    With the norms taken at the forward pass the result is the same before and after the
    optimiser's step.

    Parameters
    ----------
    logits : array of shape (N, C)
        Outputs of the linear head, bias included. Half precision is raised to float32.
    latent_norms : array of shape (N,)
        Euclidean norm of the input of the head, one a sample.
    weight_norm : 0-D array, float, or array of shape (N,)
        Frobenius norm of the head's weight at the forward pass; (N,) where the rows come from
        several steps.
    targets : array of shape (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities that sum to one in each row (with
        ``loss="binary_cross_entropy"``: one probability in [0, 1] for each output).
    bias : array of shape (C,) or (N, C), optional
        Bias of the head, to be taken off the logits; (N, C) where the rows come from several steps.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1): the share of the target that is spread evenly, default 0.
    where : boolean array of shape (N,), optional
        True for samples that count; the others get nan.

    Returns
    -------
    array of shape (N,)
        As `alignment_scores`.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on target values.

    Notes
    -----
    Cost: O(NC) time; one read of the logits in row blocks with NumPy. Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1 and Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import alignment_from_logits
    >>> alignment_from_logits(
    ...     logits=np.asarray([[2.0, 0.0]]),
    ...     latent_norms=np.asarray([2.0]),
    ...     weight_norm=2.0**0.5,
    ...     targets=np.asarray([0]),
    ... ).round(3)
    array([0.5])
    """
    xp = namespace(
        logits=logits, latent_norms=latent_norms, targets=targets, bias=bias, where=where
    )
    check_matrix(xp, "logits", logits, shape="(N, C)")
    rows, classes = logits.shape
    check_vector(xp, "latent_norms", latent_norms, rows)
    check_bias(xp, bias, classes, rows)
    check_loss(xp, targets, rows, classes, loss, label_smoothing, where)
    dtype = result_dtype(xp, logits, latent_norms)
    if getattr(weight_norm, "ndim", 0) == 1:
        check_vector(xp, "weight_norm", weight_norm, rows)
        weight_norm = xp.astype(weight_norm, dtype, copy=False)
    else:
        weight_norm = scalar(xp, "weight_norm", weight_norm, logits, dtype)
    bias = None if bias is None else xp.astype(bias, dtype, copy=False)
    return _from_logits(
        xp,
        logits,
        xp.astype(latent_norms, dtype),
        weight_norm,
        targets,
        bias,
        loss,
        label_smoothing,
        where,
    )


def alignment_from_logit_gradients(
    *,
    logit_gradients: Array,
    logits: Array,
    latent_norms: Array,
    weight_norm: Array,
    bias: Array | None = None,
    where: Array | None = None,
) -> Array:
    r"""Return the alignment under any loss, from the gradient that arrives at the logits.

    .. math::

       \gamma_i = \frac{-g_i \cdot (\ell_i - b)}{\|g_i\|\,\|z_i\|\,\|W\|},
       \qquad g_i = \frac{\partial \mathcal L}{\partial \ell_i}

    For losses that `alignment_from_logits` does not know: temperatures, soft caps, class priors,
    ``pos_weight``, distillation, a sum of losses. It needs no targets and no options of the loss.

    Parameters
    ----------
    logit_gradients : array of shape (N, C)
        Gradient of the loss with respect to the outputs of the head, one row a sample. Its scale
        does not matter: a mean over the batch or a loss scale changes no score.
    logits : array of shape (N, C)
        Outputs of the linear head, bias included. Half precision is raised to float32.
    latent_norms : array of shape (N,)
        Euclidean norm of the input of the head, one a sample.
    weight_norm : 0-D array or float
        Frobenius norm of the head's weight at the forward pass.
    bias : array of shape (C,) or (N, C), optional
        Bias of the head, to be taken off the logits.
    where : boolean array of shape (N,), optional
        True for samples that count; the others get nan.

    Returns
    -------
    array of shape (N,)
        In [-1, 1], in the dtype of the widest input but at least float32. 0 where the latents or
        the weights vanish. nan where the gradient is 0, where an input is not finite, and where
        `where` is False.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit.

    Notes
    -----
    A gradient of 0 has no direction: the loss does not see the sample, or the gradient is smaller
    than its dtype can hold. The score is nan and not 0, because many zeros would raise the kurtosis.
    Where softmax saturates, a float32 gradient has lost its direction before it arrives here: its
    relative error is about 1e-7 / (1 - p) for a label of probability p. `alignment_from_logits` is
    exact there. Gradients in bfloat16 change a score by up to 4e-3 of its largest possible value
    ‖ℓ - b‖ / (‖z‖ ‖W‖), those in float16 by 5e-4. Entries below 6e-5 lose more in float16: scale the
    loss. `logits` are those before a temperature, a scale or a soft cap. Cost: O(NC) time; one read
    of both arrays in row blocks with NumPy. Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import alignment_from_logit_gradients
    >>> alignment_from_logit_gradients(
    ...     logit_gradients=np.asarray([[-0.2, 0.2], [0.0, 0.0]]),
    ...     logits=np.asarray([[2.0, 0.0], [0.0, 1.0]]),
    ...     latent_norms=np.asarray([2.0, 1.0]),
    ...     weight_norm=2.0**0.5,
    ... ).round(3)
    array([0.5, nan])
    """
    xp = namespace(
        logit_gradients=logit_gradients,
        logits=logits,
        latent_norms=latent_norms,
        bias=bias,
        where=where,
    )
    check_matrix(xp, "logits", logits, shape="(N, C)")
    rows, classes = logits.shape
    check_matrix(xp, "logit_gradients", logit_gradients, shape="(N, C)", rows=rows)
    if logit_gradients.shape[1] != classes:
        raise ValueError(
            f"`logit_gradients` must be (N, C) = ({rows}, {classes}) as the logits, got shape "
            f"{tuple(logit_gradients.shape)}; take the gradient at the output of the head"
        )
    check_vector(xp, "latent_norms", latent_norms, rows)
    check_bias(xp, bias, classes, rows)
    check_where(xp, where, rows)
    dtype = result_dtype(xp, logit_gradients, logits, latent_norms)
    per_row = bias if bias is not None and bias.ndim == 2 else None

    def along(
        gradient: Array, logit: Array, offset: Array | None, dtype: Any = dtype
    ) -> tuple[Array, Array]:
        gradient = xp.astype(gradient, dtype, copy=False)
        activation = xp.astype(logit, dtype, copy=False)
        offset = bias if offset is None else offset
        if offset is not None:
            activation = activation - xp.astype(offset, dtype, copy=False)
        length = norm(xp, gradient)
        # 0 / 0 is the nan that is promised.
        dot = -xp.vecdot(gradient / length[:, None], activation)
        # Not "smaller than", so that nan is doubtful too.
        return dot, ~(xp.abs(dot) >= CANCELLED * norm(xp, activation))

    row_bytes = 4 * classes
    ratio, doubtful = map_rows(along, xp, logit_gradients, logits, per_row, row_bytes=row_bytes)
    ratio = recompute_rows(
        along, xp, ratio, doubtful, logit_gradients, logits, per_row, row_bytes=row_bytes
    )
    return _finished(
        xp,
        ratio,
        xp.astype(latent_norms, dtype),
        scalar(xp, "weight_norm", weight_norm, logits, dtype),
        where,
    )


def _from_logits(
    xp: Any,
    logits: Array,
    latent_norms: Array,
    weight_norm: Array,
    targets: Array,
    bias: Array | None,
    loss: Loss,
    label_smoothing: float,
    where: Array | None,
    product: Array | None = None,
) -> Array:
    """Score checked arrays; `product` is W z where that is not logits - bias (sketches)."""
    dtype = latent_norms.dtype
    targets, known = _indexable(xp, targets, logits.shape[1])
    spare: list[Array] = []

    per_row = bias if bias is not None and bias.ndim == 2 else None

    def rows(
        logit: Array,
        target: Array,
        activation: Array | None,
        offset: Array | None,
        dtype: Any = dtype,
    ) -> tuple[Array, Array]:
        logit = xp.astype(logit, dtype, copy=False)
        offset = bias if offset is None else offset
        if activation is not None:
            activation = xp.astype(activation, dtype, copy=False)
        elif offset is None:
            activation = logit
        else:
            activation = logit - xp.astype(offset, dtype, copy=False)
        dot, length, terms = _products(xp, logit, activation, target, loss, label_smoothing, spare)
        # Not "smaller than", so that nan is doubtful too.
        return divide_or_zero(xp, dot, length), ~(xp.abs(dot) >= CANCELLED * terms)

    row_bytes = 4 * logits.shape[1]
    arrays = (logits, targets, product, per_row)
    ratio, doubtful = map_rows(rows, xp, *arrays, row_bytes=row_bytes)
    ratio = recompute_rows(rows, xp, ratio, doubtful, *arrays, row_bytes=row_bytes)
    counted = known if where is None else where if known is None else where & known
    return _finished(xp, ratio, latent_norms, weight_norm, counted)


def _finished(
    xp: Any, ratio: Array, latent_norms: Array, weight_norm: Array, counted: Array | None
) -> Array:
    """Divide r·(W z) / ‖r‖ by the other two norms."""
    with quiet(xp):
        score = divide_or_zero(xp, divide_or_zero(xp, ratio, latent_norms), weight_norm)
        score = bounded_score(xp, score, latent_norms + xp.abs(ratio) + weight_norm)
        return score if counted is None else xp.where(counted, score, xp.nan)
