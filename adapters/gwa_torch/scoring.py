"""γ of tensors by the fastest path of their device; the numbers are gwa_core's."""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gwa_core import (
    JLSketch,
    alignment_from_logit_gradients,
    alignment_from_logits,
    alignment_scores,
    weighted_targets,
)

__all__ = ["frobenius_norm", "head_scores"]

# Logits made at once where only latents are given.
BLOCK_BYTES = 192 * 1024 * 1024


def frobenius_norm(weight: torch.Tensor) -> torch.Tensor:
    r"""Return the Frobenius norm of a head's weight, of a sharded one too.

    .. math:: \|W\| = \sqrt{\textstyle\sum_{cd} W_{cd}^2}

    Parameters
    ----------
    weight : tensor of shape (C, D)
        A plain tensor, or a DTensor of FSDP2 or tensor parallelism.

    Returns
    -------
    0-D tensor
        In float32, or float64 for float64, on the device of the weight.

    Notes
    -----
    Cost: one read of the weight; for a DTensor one small collective in which every rank must take
    part. Nothing waits for the device.

    Examples
    --------
    >>> import torch
    >>> from gwa_torch import frobenius_norm
    >>> frobenius_norm(torch.eye(4))
    tensor(2.)
    """
    weight = weight.detach()
    if type(weight) is torch.Tensor and weight.dtype == torch.float32:
        plain: torch.Tensor = torch.linalg.vector_norm(weight)
        return plain
    wide = torch.promote_types(weight.dtype, torch.float32)
    norm: Any = torch.linalg.vector_norm(weight, dtype=wide)
    whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


@torch.no_grad()
def head_scores(
    *,
    latents: torch.Tensor,
    targets: torch.Tensor,
    logits: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    weight_norm: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
    where: torch.Tensor | None = None,
    sketch: JLSketch | None = None,
) -> torch.Tensor:
    r"""Return γ of a batch, the alignment of each sample's negative head gradient with the head.

    .. math:: \gamma_i = \frac{r_i \cdot W z_i}{\|r_i\|\,\|z_i\|\,\|W\|}

    For what a hook cannot see: heads inside fused losses, compiled steps, functional models.

    Parameters
    ----------
    latents : tensor of shape (N, D)
        Inputs of the head.
    targets : tensor of shape (N,) or (N, C)
        Class numbers or probabilities. A class number outside 0..C-1 gives nan.
    logits : tensor of shape (N, C), optional
        Outputs of the head, bias included. Without them they are made in blocks of rows, and the
        whole (N, C) is never there.
    weight : tensor of shape (C, D), optional
        Weight of the head at the forward pass. Needed without `logits` or `weight_norm`, and
        under a `sketch`.
    weight_norm : 0-D tensor, optional
        Its Frobenius norm where that was kept; then the weight is not read.
    bias : tensor of shape (C,), optional
        Bias of the head at the forward pass.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1), default 0.
    class_weights : tensor of shape (C,), optional
        Weights of the classes in the loss, as in ``torch.nn.CrossEntropyLoss(weight=...)``.
    where : boolean tensor of shape (N,), optional
        True for samples that count; the others get nan.
    sketch : JLSketch, optional
        Measure in K dimensions.

    Returns
    -------
    tensor of shape (N,)
        In [-1, 1], float32 (float64 for float64 input), on the device of the latents.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit.

    Notes
    -----
    Cost: one read of logits and latents. On a GPU with Triton that is one kernel for softmax; a
    GPU without it, sigmoid and float64 run the core in PyTorch. On the CPU the tensors are shared
    with NumPy, where the core works in row blocks. Nothing waits for the device.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1 and Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from gwa_torch import head_scores
    >>> latents = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> head_scores(latents=latents, weight=torch.eye(2), targets=torch.tensor([0, 0]))
    tensor([ 0.5000, -0.5000])
    """
    if weight is None and (weight_norm is None or logits is None or sketch is not None):
        raise ValueError(
            "`weight` must be given without `logits` and `weight_norm`, and under a `sketch`, "
            "got None; pass head.weight as it was at the forward pass"
        )
    options: dict[str, Any] = {"loss": loss, "label_smoothing": label_smoothing}
    if not targets.is_floating_point():
        # A byte may not hold the number of classes that it is compared with.
        targets = targets.long()
    if class_weights is not None:
        refuse_class_weights(loss)
        targets, options["label_smoothing"] = as_soft(targets, class_weights, label_smoothing)
    with full_precision(latents.device):
        if latents.device.type == "cpu" or sketch is not None:
            return _by_the_core(
                latents, targets, logits, weight, weight_norm, bias, where, sketch, options
            )
        norm = frobenius_norm(weight) if weight_norm is None else weight_norm  # type: ignore[arg-type]
        if logits is not None:
            scores = _on_device(logits, latents, targets, norm, bias, options)
        else:
            scores = _blockwise(latents, targets, weight, norm, bias, options)  # type: ignore[arg-type]
    return scores if where is None else torch.where(where, scores, torch.nan)


@torch.no_grad()
def gradient_scores(
    gradients: torch.Tensor,
    logits: torch.Tensor,
    latents: torch.Tensor,
    weight_norm: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return γ from the gradient at the logits, whatever the loss is.

    Parameters
    ----------
    gradients, logits : tensor of shape (N, C)
        Gradient of the loss by the logits, and the logits.
    latents : tensor of shape (N, D)
        Inputs of the head.
    weight_norm : 0-D tensor
        Frobenius norm of the head's weight at the forward pass.
    bias : tensor of shape (C,), optional
        Bias of the head at the forward pass.

    Returns
    -------
    tensor of shape (N,)
        As `gwa_core.alignment_from_logit_gradients`.
    """
    with full_precision(logits.device):
        narrow = all(x.dtype != torch.float64 for x in (gradients, logits, latents))
        if has_triton(logits.device) and narrow:
            from gwa_torch._triton_gradients import fused_gradient_scores

            return fused_gradient_scores(gradients, logits, latents, weight_norm, bias)
        wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
        norms, host = torch.linalg.vector_norm(wide, dim=1), logits.device.type == "cpu"
        give: Any = to_numpy if host else (lambda x: x)
        scores = alignment_from_logit_gradients(
            logit_gradients=give(gradients),
            logits=give(logits),
            latent_norms=give(norms),
            weight_norm=float(weight_norm) if host else weight_norm,
            bias=None if bias is None else give(bias),
        )
    return torch.from_numpy(scores) if host else scores


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Leave mixed precision, which would round what the core keeps exact.

    Asking first is faster than leaving it.
    """
    mixed = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if mixed else nullcontext()


def as_soft(
    targets: torch.Tensor, class_weights: torch.Tensor | None, label_smoothing: float
) -> tuple[torch.Tensor, float]:
    """Return targets in which class weights are contained, and the label smoothing that is left."""
    if class_weights is None or (targets.ndim == 1 and label_smoothing == 0.0):
        # Of one class number a weight changes the length of the gradient alone.
        return targets, label_smoothing
    weights = class_weights.to(torch.promote_types(class_weights.dtype, torch.float32))
    soft = weighted_targets(targets=targets, class_weights=weights, label_smoothing=label_smoothing)
    return soft, 0.0


def refuse_class_weights(loss: str) -> None:
    if loss != "cross_entropy":
        raise ValueError(
            "`class_weights` belong to loss='cross_entropy', got loss="
            f"{loss!r}; a weighted sigmoid loss has another gradient than the one measured"
        )


def has_triton(device: torch.device) -> bool:
    """Tell whether the fused kernels run on a device."""
    return device.type == "cuda" and _triton_is_there()


@functools.cache
def _triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None


def _on_device(
    logits: torch.Tensor,
    latents: torch.Tensor,
    targets: torch.Tensor,
    norm: torch.Tensor,
    bias: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    if _fits_the_kernel(logits, latents, targets, bias, options["loss"]):
        from gwa_torch._triton import fused_scores

        return fused_scores(logits, latents, targets, norm, bias, options["label_smoothing"])
    wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
    scores: torch.Tensor = alignment_from_logits(
        logits=logits,
        latent_norms=torch.linalg.vector_norm(wide, dim=1),
        weight_norm=norm,
        targets=targets,
        bias=bias,
        **options,
    )
    return scores


def _fits_the_kernel(
    logits: torch.Tensor,
    latents: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    loss: str,
) -> bool:
    """Tell whether the fused kernel may read these; what does not fit is refused by the core."""
    if not has_triton(logits.device) or loss != "cross_entropy":
        return False
    rows, classes = logits.shape
    hard = targets.shape == (rows,) and not targets.is_floating_point()
    arrays = (logits, latents, targets, logits if bias is None else bias)
    return (
        (hard or targets.shape == (rows, classes))
        and rows > 0
        and classes > 1
        and latents.shape[0] == rows
        and (bias is None or bias.shape == (classes,))
        and all(x.dtype != torch.float64 and x.device == logits.device for x in arrays)
        and logits.is_floating_point()
    )


def _blockwise(
    latents: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    norm: torch.Tensor,
    bias: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Score blocks of rows, whose logits share one buffer."""
    rows, classes = latents.shape[0], weight.shape[0]
    fits = (
        latents.ndim == weight.ndim == 2
        and latents.shape[1] == weight.shape[1]
        and latents.is_floating_point()
        and targets.shape[:1] == (rows,)
        and rows > 0
        and (bias is None or bias.shape == (classes,))
    )
    if not fits:
        # The core says what is wrong; blocks would hide targets without latents.
        return _by_the_core(latents, targets, None, weight, None, bias, None, None, options)
    step = max(1, min(rows, BLOCK_BYTES // (classes * weight.dtype.itemsize)))
    # Whole tiles of a matrix product.
    step = step // 128 * 128 or step
    buffer = torch.empty(step, classes, dtype=weight.dtype, device=weight.device)
    blocks = []
    for start in range(0, rows, step):
        z = latents[start : start + step].to(weight.dtype)
        logits = torch.mm(z, weight.T, out=buffer[: z.shape[0]])
        if bias is not None:
            logits += bias
        t = targets[start : start + step]
        blocks.append(_on_device(logits, z, t, norm, bias, options))
    return torch.cat(blocks)


def _by_the_core(
    latents: torch.Tensor,
    targets: torch.Tensor,
    logits: torch.Tensor | None,
    weight: torch.Tensor | None,
    norm: torch.Tensor | None,
    bias: torch.Tensor | None,
    where: torch.Tensor | None,
    sketch: JLSketch | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Call the core; on the CPU with NumPy arrays that share the tensors' memory."""
    host = latents.device.type == "cpu"
    if host and targets.shape == latents.shape[:1] and not targets.is_floating_point():
        # On a GPU an unknown label is nan and no error; so it is here.
        like = logits if logits is not None else weight
        classes = 0 if like is None else like.shape[1 if logits is not None else 0]
        known = (targets >= 0) & (targets < max(classes, 2))
        where = known if where is None else known & where
        targets = torch.where(known, targets, 0)
    give: Any = to_numpy if host else (lambda x: x)
    shared = {
        "latents": latents,
        "logits": logits,
        "targets": targets,
        "bias": bias,
        "where": where,
        "weight": weight,
        "weight_norm": norm,
    }
    arrays: dict[str, Any] = {
        name: None if x is None else give(x.detach()) for name, x in shared.items()
    }
    norm = arrays.pop("weight_norm")
    if logits is not None and norm is not None and sketch is None:
        # The norm of each row by the core, without its product with the weight.
        z, _ = arrays.pop("latents"), arrays.pop("weight")
        norms = torch.linalg.vector_norm(torch.as_tensor(z), dim=1)
        scores = alignment_from_logits(
            latent_norms=give(norms), weight_norm=float(norm) if host else norm, **arrays, **options
        )
    else:
        scores = alignment_scores(sketch=sketch, **arrays, **options)
    return torch.from_numpy(scores) if host else scores


def to_numpy(x: torch.Tensor) -> Any:
    """Share a tensor with NumPy, which has no bfloat16."""
    return (x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x).numpy()
