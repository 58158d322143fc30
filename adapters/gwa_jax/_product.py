"""Whether given logits are latents times kernel plus bias, by one row of them."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from gwa_core import alignment_scores

__all__ = ["check_on_host", "check_product", "concrete", "on_host"]

# Logits as near as this share of the largest one need no second look.
PLAIN = 1e-4


def concrete(*arrays: Any) -> bool:
    """Tell whether the values of all arrays can be looked at: none is traced, or on another host."""
    given = [x for x in arrays if x is not None]
    return not any(isinstance(x, jax.core.Tracer) for x in given) and all(
        getattr(x, "is_fully_addressable", True) for x in given
    )


def on_host(*arrays: Any) -> bool:
    """Tell whether NumPy can look at all arrays where they lie: outside jit, on one CPU."""
    places = [x.devices() for x in arrays if isinstance(x, jax.Array) and concrete(x)]
    return concrete(*arrays) and all(
        len(devices) == 1 and next(iter(devices)).platform == "cpu" for devices in places
    )


def check_on_host(latents: Any, kernel: Any, logits: Any, bias: Any, where: Any) -> None:
    """Check a row of logits where that needs no copy: outside jit, on one CPU."""
    given = [x for x in (latents, kernel, logits, bias, where) if x is not None]
    if logits is not None and on_host(*given):
        # To look where they lie is no transfer, which the user may have forbidden; to index is one.
        arrays = (latents, kernel, logits, bias, where)
        check_product(*(None if x is None else np.asarray(x) for x in arrays))


def check_product(latents: Any, kernel: Any, logits: Any, bias: Any, where: Any) -> None:
    """Raise unless the first row that counts is what the head makes of its latents."""
    shape = latents.shape[:-1]
    first = 0 if where is None else int(np.argmax(np.asarray(where)))
    row = np.unravel_index(first % math.prod(shape), shape)
    # One row of each, so that the others are not copied from their device.
    z, logit = np.asarray(latents[row]), np.asarray(logits[row])
    if where is not None and not np.asarray(where[row]):
        return
    z, weight, logit = (_wide(x) for x in (z, np.asarray(kernel).T, logit))
    bias = None if bias is None else _wide(np.asarray(bias))
    with np.errstate(all="ignore"):
        off = logit - weight @ z - (0.0 if bias is None else bias)
        # The usual case, at a tenth of the cost of what follows.
        if np.abs(off).max() < PLAIN * np.abs(logit).max():
            return
    try:
        # The core compares a row of NumPy arrays; the scores themselves are not needed.
        alignment_scores(
            latents=z[None],
            weight=weight,
            logits=logit[None],
            bias=bias,
            targets=np.zeros(1, int),
            loss="binary_cross_entropy" if len(logit) == 1 else "cross_entropy",
        )
    except ValueError as error:
        # Which names its arguments as PyTorch has them.
        words = str(error).replace("weight.T", "kernel").replace("row 0", f"row {first}")
        raise ValueError(words) from None


def _wide(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array in a dtype that NumPy knows."""
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
