"""The collectives that the end of an epoch needs; without a process group they do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["each", "gather", "minimum", "position", "total"]


def position(group: Any = None) -> tuple[int, int]:
    """Return (rank, world size)."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def _reachable(x: torch.Tensor, group: Any) -> torch.Tensor:
    """Move a tensor to where the backend can send it from: gloo on the host, nccl on the GPU."""
    backend = dist.get_backend(group)
    if backend == "gloo":
        return x.cpu()
    return x.cuda() if backend == "nccl" and not x.is_cuda else x


def _reduce(x: torch.Tensor, operation: Any, group: Any) -> torch.Tensor:
    if position(group)[1] == 1:
        return x
    sent = _reachable(x, group).clone()
    dist.all_reduce(sent, op=operation, group=group)
    return sent.to(x.device)


def minimum(x: torch.Tensor, group: Any = None) -> torch.Tensor:
    """Return the smallest of all ranks, entry by entry."""
    return _reduce(x, dist.ReduceOp.MIN if dist.is_available() else None, group)


def total(x: torch.Tensor, group: Any = None) -> torch.Tensor:
    """Return the sum over all ranks."""
    return _reduce(x, dist.ReduceOp.SUM if dist.is_available() else None, group)


def gather(x: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
    """Return the tensors of all ranks in the order of ranks."""
    world = position(group)[1]
    if world == 1:
        return [x]
    sent = _reachable(x, group).contiguous()
    parts = [torch.empty_like(sent) for _ in range(world)]
    dist.all_gather(parts, sent, group=group)
    return [part.to(x.device) for part in parts]


def each(x: Any, group: Any = None) -> Iterator[Any]:
    """Yield what each rank has, a state of plain values, in the order of ranks; one at a time."""
    rank, world = position(group)
    if world == 1:
        yield x
        return
    for source in range(world):
        box = [x if source == rank else None]
        place = source if group is None else dist.get_global_rank(group, source)
        dist.broadcast_object_list(box, src=place, group=group)
        yield box.pop()
