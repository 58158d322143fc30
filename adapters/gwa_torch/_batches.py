"""Batches that wait for their backward pass, and the scores that come of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from gwa_torch._capture import Forward
from gwa_torch._evidence import Evidence
from gwa_torch._sequences import gradient_parts
from gwa_torch._targets import Flat

__all__ = ["Batch", "Scored", "joined", "seen"]


class Scored(NamedTuple):
    """A batch with the scores of its gradient."""

    scores: torch.Tensor
    flat: Flat


class Batch(NamedTuple):
    """A batch that waits for its backward pass."""

    taps: list[Any]
    flat: Flat
    # Empty where the gradient is used in any case.
    evidence: list[Evidence]
    # The passes and their rows, for sums of gradients by sequence.
    parts: list[tuple[Forward, Flat]]

    @property
    def silent(self) -> bool:
        """Whether nobody is told when the gradient comes."""
        return any(tap is not None and tap.silent for tap in self.taps)

    def scores(self) -> torch.Tensor | None:
        """Return the scores of all rows, or None where some have not come."""
        parts = [None if tap is None else tap.scores() for tap in self.taps]
        return None if any(part is None for part in parts) else joined(parts)

    def sums(self) -> torch.Tensor | None:
        """Return numerators and lengths of all rows, or None where a gradient was not kept."""
        kept: list[Any] = [getattr(tap, "gradient", None) for tap in self.taps]
        if any(gradient is None for gradient in kept):
            return None
        with torch.no_grad():
            found = zip(self.parts, kept, strict=True)
            return joined([gradient_parts(made, g, rows) for (made, rows), g in found])


def seen(scores: torch.Tensor, flat: Flat) -> Flat:
    """Leave out the tokens that the loss does not see, whose gradient has no direction."""
    if not flat.tokens or scores.ndim == 2:
        return flat
    seen = ~torch.isnan(scores)
    return flat._replace(where=seen if flat.where is None else flat.where & seen)


def joined(parts: list[Any]) -> torch.Tensor:
    """Return the scores of the passes of a batch, on the device of the first."""
    first: torch.Tensor = parts[0]
    return torch.cat([part.to(first.device) for part in parts]) if len(parts) > 1 else first
