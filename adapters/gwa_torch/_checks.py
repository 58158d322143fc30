"""Numbers of any library's kind as Python's own, and labels in their range."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import torch

__all__ = ["check_count", "check_integer", "check_labels", "check_real"]


def check_integer(name: str, value: Any) -> int:
    """Return an integer, of NumPy or of a tensor too."""
    try:
        integer = operator.index(value)
    except TypeError:
        integer = None
    # The dtype of a NumPy scalar or of a tensor tells a bool that passes for an integer.
    if integer is None or "bool" in str(getattr(value, "dtype", type(value))):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    return integer


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Return an integer of at least one, or of another least value."""
    try:
        count = check_integer(name, value)
    except TypeError:
        count = least - 1
    if count < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}")
    return count


def check_real(name: str, value: Any) -> float:
    """Return a finite number."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}")
    return float(value)


def check_labels(labels: torch.Tensor, classes: int, ignore_index: int) -> None:
    """Refuse class numbers on the host that are out of range."""
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        raise IndexError(
            f"`targets` must be in 0..{classes - 1} or ignore_index={ignore_index}, got "
            f"{int(labels[wrong][0])}; usual cause: padding that is not marked, or another vocabulary"
        )
