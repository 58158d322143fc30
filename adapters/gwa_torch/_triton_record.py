"""A Triton kernel that keeps the first score of each sample, in one launch."""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gwa_torch._triton import on


@triton.jit
def _record_kernel(
    first,
    strays,
    scores,
    ids,
    where,
    rows,
    samples,
    begin,
    rank,
    world,
    HAS_WHERE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    sample = tl.load(ids + row, mask=inside, other=0).to(tl.int64)
    score = tl.load(scores + row, mask=inside, other=0.0)
    counted = inside
    if HAS_WHERE:
        counted = counted & (tl.load(where + row, mask=inside, other=0) != 0)
    known = (sample >= 0) & (sample < samples)
    stray = tl.sum((counted & ~known).to(tl.int64), axis=0)
    tl.atomic_add(strays, stray, mask=stray > 0)
    order = (begin + row).to(tl.int64) * world + rank
    bits = score.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    tl.atomic_min(first + sample, (order << 32) | bits, mask=counted & known)


def record(
    first: torch.Tensor,
    strays: torch.Tensor,
    scores: torch.Tensor,
    ids: torch.Tensor,
    where: torch.Tensor | None,
    begin: int,
    rank: int,
    world: int,
) -> None:
    """Do in one launch what `BySample.add` does in many; see there."""
    rows = scores.shape[0]
    mask = scores if where is None else where.contiguous()
    arrays = (first, strays, scores.contiguous(), ids.contiguous(), mask)
    numbers = (rows, first.shape[0] - 1, begin, rank, world)
    with on(scores.device):
        _record_kernel[(triton.cdiv(rows, 512),)](
            *arrays, *numbers, HAS_WHERE=where is not None, BLOCK=512
        )
