"""Adding a matrix product to the gradient of the weight, by the fastest way that a device has."""

from __future__ import annotations

import functools
from typing import Any

import torch

__all__ = ["add_product"]

HOPPER = (9, 0)
HALF = (torch.bfloat16, torch.float16)

# The hardware that copies tiles wants them to begin there.
ALIGNED = 16


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a (C, n) times b (n, D) to out (C, D) in place."""
    kernel = None
    if out.dtype in HALF and out.is_cuda and all(_aligned(x) for x in (out, a, b)):
        kernel = _kernel(out.device, out.dtype)
    if kernel is None:
        out.addmm_(a, b)
    else:
        kernel(out, a, b)


def _aligned(x: torch.Tensor) -> bool:
    # A row that is repeated has a stride of 0.
    apart = x.stride(1) == 1 and x.stride(0) >= x.shape[1]
    return apart and x.stride(0) * x.itemsize % ALIGNED == 0 and x.data_ptr() % ALIGNED == 0


@functools.cache
def _kernel(device: torch.device, dtype: torch.dtype) -> Any:
    """Return our kernel where it runs: on Hopper, and where Triton's Gluon is as it was written for.

    Gluon is experimental. Without the kernel the sum is right too, and takes longer.
    """
    if torch.cuda.get_device_capability(device) != HOPPER:
        return None
    try:
        from gwa_torch._triton_add import add_tiles

        nothing = torch.zeros(64, 64, dtype=dtype, device=device)
        add_tiles(nothing, nothing, nothing)
    except Exception:
        return None
    return add_tiles
