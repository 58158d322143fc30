"""The cross-entropy of a linear head and the scores of its rows in one pass, without the logits."""

from __future__ import annotations

from typing import Any

import torch

from gwa_torch._checks import check_integer, check_labels, check_real
from gwa_torch._linear_blocks import Head, in_blocks
from gwa_torch.scoring import has_triton

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    latents: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return the cross-entropy of a linear head, and γ of each row.

    .. math::

       \mathcal L = \operatorname{cross\_entropy}(z W^\top + b,\; y),
       \qquad \gamma_i = \frac{r_i \cdot W z_i}{\|r_i\|\,\|z_i\|\,\|W\|}

    In place of ``F.cross_entropy(F.linear(latents, weight, bias), targets)``, for heads whose logits
    are too large to keep: language models. The logits are made in blocks of rows. The scores and
    the gradients are taken from each block while it is there.

    Parameters
    ----------
    latents : tensor of shape (N, D) or (B, S, D)
        Inputs of the head. Floating point.
    weight : tensor of shape (C, D)
        Weight of the head, in the dtype of the latents; under autocast any.
    targets : integer tensor of shape (N,) or (B, S)
        Class numbers in 0..C-1, or `ignore_index`. Labels of a causal language model must be
        shifted: ``latents[:, :-1], weight, labels[:, 1:]``.
    bias : tensor of shape (C,), optional
        Bias of the head. Its own gradient is not part of γ (as in the paper).
    ignore_index : int
        Class number of rows that do not count, default -100.
    label_smoothing : float
        In [0, 1): the share of the target that is spread evenly, default 0.
    reduction : {"mean", "sum", "none"}
        Mean over the rows that count, their sum, or one loss a row; default mean.

    Returns
    -------
    loss : 0-D tensor, or tensor of shape (N,) or (B, S)
        In [0, inf), float32 (float64 for float64 input). Differentiable by latents, weight and bias.
    scores : tensor of shape (N,) or (B, S)
        In [-1, 1], of the dtype of the loss, without a gradient. nan for rows that do not count.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit.
    IndexError
        On the CPU, if a class number is outside 0..C-1. On a GPU, where looking would wait for the
        device, its loss, its score and all gradients are nan.
    RuntimeError
        On ``backward(create_graph=True)``: there is no second derivative.

    Notes
    -----
    Cost: three products of N·C·D multiplications, as the plain loss has. The forward pass makes the
    gradients too, and ``backward`` multiplies them by what comes in. ``reduction="none"`` and a
    second ``backward`` make the logits once more.

    Memory: one block of logits (115.5 MiB; up to five times that without Triton) and the gradients,
    each in the dtype of its tensor; the (N, C) logits are never there. A weight that needs no
    gradient costs none. With Triton, the memory of a gradient holds logits before the gradient is
    made: the weight's holds those of the first D tokens, the latents' holds a part of each later
    block.

    Numerics: logits have the dtype of the product, softmax is float32 or wider. The label's own
    gradient is the sum of the others, exact where softmax saturates. In half precision the
    gradient of the weight is rounded once for each block, on Hopper, and up to twice elsewhere.
    That of the latents is rounded up to twice. For 8192 tokens and 128,000 classes in bfloat16 the
    gradient of the weight has a relative error of 1.3e-3, that of the plain loss one of 1.1e-3.

    Mean over no rows that count: the loss is nan, as PyTorch's, and the gradients are 0. Under
    autocast the product runs in autocast's dtype. A compiled step leaves the graph here. On a GPU
    with Triton a block takes three kernels beside its products, and more with `label_smoothing`.
    Nothing waits for the device, but for a trial of a kernel in the first call on Hopper.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1 and Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from gwa_torch import linear_cross_entropy
    >>> head = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.eye_(head.weight)
    >>> latents = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> loss, scores = linear_cross_entropy(latents, head.weight, torch.tensor([0, 0, -100]))
    >>> loss.backward()
    >>> scores
    tensor([ 0.5000, -0.5000,     nan])
    """
    run: Any = _checked
    if torch.compiler.is_compiling():
        # Not as a decorator, which would import the compiler for everybody.
        run = torch.compiler.disable(run)  # type: ignore[no-untyped-call]
    loss, scores = run(latents, weight, bias, targets, ignore_index, label_smoothing, reduction)
    return loss, scores


def _checked(
    latents: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refuse what does not fit, and bring the rest into the shapes and dtypes of the function."""
    _check(latents, weight, targets, bias, label_smoothing, reduction)
    head = Head(check_integer("ignore_index", ignore_index), float(label_smoothing), reduction)
    kind = latents.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        latents, weight = _cast(latents, dtype), _cast(weight, dtype)
        bias = None if bias is None else _cast(bias, dtype)
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None and x.dtype != latents.dtype:
            raise TypeError(
                f"`{name}` must have the dtype of the latents, {latents.dtype}, got {x.dtype}; "
                "cast one of them, or use torch.autocast"
            )
    # A kernel reads them one behind the other; a column of a matrix is not so.
    labels = targets.reshape(-1).long().contiguous()
    if kind == "cpu":
        check_labels(labels, weight.shape[0], head.ignore_index)
    # The forward pass of a function does not see whether gradients are on.
    wanted = tuple(
        torch.is_grad_enabled() and x is not None and x.requires_grad
        for x in (latents, weight, bias)
    )
    loss, scores = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        latents.reshape(-1, latents.shape[-1]), weight, bias, labels, head, wanted
    )
    shape = targets.shape
    return loss if reduction != "none" else loss.reshape(shape), scores.reshape(shape)


def _cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor as autocast has it, which leaves float64 alone."""
    return x if x.dtype == torch.float64 else x.to(dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, where the logits are, and given out once."""

    @staticmethod
    def forward(
        ctx: Any,
        latents: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        counted = targets != head.ignore_index
        count = counted.sum()
        wide = torch.promote_types(latents.dtype, torch.float32)
        scale = torch.ones((), dtype=wide, device=latents.device)
        if head.reduction == "mean":
            scale = scale / count.clamp(min=1)
        # Shares of a mean are below what float16 can hold, and a sum of many rows is above it: half
        # of the scale is taken in each row, the other half at the end.
        half = latents.dtype == torch.float16 and head.reduction != "none"
        late = scale.sqrt() if half else None
        factors = _factors(targets, weight.shape[0], counted, scale if late is None else late)
        # Of one loss a row the factors are not known before the backward pass.
        now = wanted if head.reduction != "none" else (False, False, False)
        made = in_blocks(latents, weight, bias, targets, factors, head, now)
        ctx.save_for_backward(latents, weight, bias, targets, factors)
        ctx.head, ctx.wanted, ctx.late = head, wanted, late
        ctx.gradients = made.gradients if any(now) else None
        ctx.mark_non_differentiable(made.scores)
        ctx.set_materialize_grads(False)
        if head.reduction == "none":
            return made.losses, made.scores
        total = made.losses.sum()
        return total / count if head.reduction == "mean" else total, made.scores

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor | None) -> Any:
        along = incoming[0]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "`linear_cross_entropy` has no second derivative, got a backward pass with "
                "create_graph=True; use F.cross_entropy(F.linear(latents, weight, bias), targets)"
            )
        if along is None:
            return (None,) * 6
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            latents, weight, bias, targets, factors = ctx.saved_tensors
            if ctx.head.reduction == "none":
                factors = torch.where(factors == 0, factors, factors * along)
            made = in_blocks(latents, weight, bias, targets, factors, ctx.head, ctx.wanted)
            gradients = made.gradients
        if ctx.head.reduction != "none":
            factor = along if ctx.late is None else along * ctx.late
            for gradient in gradients:
                if gradient is not None:
                    _scale(gradient, factor)
        return (*gradients, None, None, None)


def _factors(
    targets: torch.Tensor, classes: int, counted: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return what the gradient of each row is multiplied by: nothing where it does not count."""
    known = (targets >= 0) & (targets < classes)
    return torch.where(counted, torch.where(known, scale, torch.nan), 0.0)


def _scale(gradient: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply a gradient by what comes in, which is nearly always 1, in place."""
    if has_triton(gradient.device) and gradient.dtype != torch.float64:
        from gwa_torch._triton_linear_loss import fused_scale

        fused_scale(gradient, factor)
    elif gradient.device.type != "cpu" or factor != 1:
        gradient.mul_(factor)


def _check(
    latents: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    label_smoothing: float,
    reduction: str,
) -> None:
    arrays: Any = (("latents", latents), ("weight", weight), ("targets", targets))
    for name, x in arrays:
        if not isinstance(x, torch.Tensor):
            raise TypeError(
                f"`{name}` must be a tensor, got {type(x).__name__}; use torch.as_tensor"
            )
    check_real("label_smoothing", label_smoothing)
    if not latents.is_floating_point() or latents.ndim not in (2, 3) or latents.shape[-1] == 0:
        raise ValueError(
            "`latents` must be floating point of shape (N, D) or (B, S, D), got "
            f"{latents.dtype} of shape {tuple(latents.shape)}; pass the input of the head"
        )
    if hasattr(weight, "full_tensor"):
        raise TypeError(
            "`weight` must be a plain tensor, got a DTensor; pass weight.full_tensor(), or call "
            "the loss where the head is unsharded"
        )
    features = latents.shape[-1]
    shape = tuple(weight.shape)
    if len(shape) != 2 or shape[1] != features or shape[0] < 2:
        turned = len(shape) == 2 and shape[0] == features
        cause = (
            "it must be transposed"
            if turned
            else "pass the weight of the head, two classes or more"
        )
        raise ValueError(f"`weight` must be (C, D) = (C, {features}), got {shape}; {cause}")
    if targets.shape != latents.shape[:-1]:
        raise ValueError(
            f"`targets` must be class numbers of shape {tuple(latents.shape[:-1])} as the rows of the "
            f"latents, got shape {tuple(targets.shape)}; probabilities need "
            "F.cross_entropy and `head_scores`"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"`targets` must be integers, got {targets.dtype}; call targets.long()")
    if bias is not None and tuple(bias.shape) != shape[:1]:
        raise ValueError(f"`bias` must be (C,) = ({shape[0]},), got {tuple(bias.shape)}")
    for name, x in (("weight", weight), ("targets", targets), ("bias", bias)):
        if x is not None and x.device != latents.device:
            raise ValueError(
                f"`{name}` must be on the device of the latents, {latents.device}, got {x.device}"
            )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing!r}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'`reduction` must be "mean", "sum" or "none", got {reduction!r}')
