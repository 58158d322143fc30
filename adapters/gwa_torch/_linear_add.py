"""Adding a matrix product to the gradient of the weight, by the fastest way that a device has."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["add_product"]

# The kernel of each device and dtype, or None.
_found: dict[tuple[torch.device, torch.dtype], Any] = {}

HOPPER = (9, 0)

# Rows of the matrices of the trial: several tiles, and more steps than stages.
TRIAL = 400
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


def _kernel(device: torch.device, dtype: torch.dtype) -> Any:
    """Return our kernel where it runs: on Hopper, with a Triton in whose Gluon it compiles.

    Gluon is experimental. Without the kernel the sum is right too, and takes longer.
    """
    if (device, dtype) not in _found:
        if torch.cuda.is_current_stream_capturing():
            # The trial reads its result.
            return None
        hopper = torch.version.hip is None and torch.cuda.get_device_capability(device) == HOPPER
        _found[device, dtype] = _tried(device, dtype) if hopper else None
    return _found[device, dtype]


def _tried(device: torch.device, dtype: torch.dtype) -> Any:
    """Return our kernel if it compiles, and adds as PyTorch does."""
    try:
        from gwa_torch._triton_add import add_tiles

        # Not the user's random numbers.
        random = torch.Generator(device).manual_seed(0)
        a, b = (
            torch.randn(TRIAL, TRIAL, device=device, generator=random).to(dtype) for _ in range(2)
        )
        out, wanted = torch.ones(2, TRIAL, TRIAL, device=device, dtype=dtype)
        add_tiles(out, a, b)
        wanted.addmm_(a, b)
        error = (out - wanted).float().norm() / wanted.float().norm()
        return add_tiles if float(error) < torch.finfo(dtype).eps else None
    except Exception:
        return None
