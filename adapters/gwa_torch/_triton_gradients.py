"""A fused Triton kernel for scores from gradients: one launch, one read of each array."""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gwa_torch._triton import cosine, latent_squares, on, shape_of


@triton.jit
def _gradient_kernel(
    gradients,
    logits,
    latents,
    bias,
    weight_norm,
    out,
    C,
    D,
    gradient_stride,
    logit_stride,
    latent_stride,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    squares = latent_squares(latents, row, latent_stride, D, BLOCK_D)
    # In float64: a gradient is as small or large as its loss is scaled.
    dot = tl.zeros([BLOCK_C], dtype=tl.float64)
    square = tl.zeros([BLOCK_C], dtype=tl.float64)
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        inside = column < C
        g = tl.load(gradients + row * gradient_stride + column, mask=inside, other=0.0)
        x = tl.load(logits + row * logit_stride + column, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            x -= tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        g = g.to(tl.float64)
        dot -= g * x.to(tl.float64)
        square += g * g
    length = tl.sqrt(tl.sum(square, axis=0))
    latent_norm = tl.sqrt(tl.sum(squares, axis=0))
    score = cosine(tl.sum(dot, axis=0), length, latent_norm, tl.load(weight_norm))
    tl.store(out + row, tl.where(length == 0, float("nan"), score))


def fused_gradient_scores(
    gradients: torch.Tensor,
    logits: torch.Tensor,
    latents: torch.Tensor,
    weight_norm: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return γ of (N, C) gradients, (N, C) logits and (N, D) latents on a GPU."""
    rows, classes = logits.shape
    features = latents.shape[1]
    out = torch.empty(rows, dtype=torch.float32, device=logits.device)
    gradients, logits, latents = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (gradients, logits, latents)
    )
    offset = logits if bias is None else bias.contiguous()
    strides = (gradients.stride(0), logits.stride(0), latents.stride(0))
    with on(logits.device):
        _gradient_kernel[(rows,)](
            gradients,
            logits,
            latents,
            offset,
            weight_norm,
            out,
            classes,
            features,
            *strides,
            HAS_BIAS=bias is not None,
            **shape_of(classes, features, streams=2),
        )
    return out
