"""Batches that wait for their backward pass, and the scores that come of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from gwa_torch._evidence import Evidence
from gwa_torch._forward import Forward
from gwa_torch._sequences import gradient_parts
from gwa_torch._targets import Flat

__all__ = ["Batch", "Scored", "compare_sums", "joined", "seen"]

# By how much weights of tokens may differ, relative to each and to the largest: rounding of bfloat16.
FACTOR, SMALL = 0.1, 0.02


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
    # The passes and their rows, for sums of gradients by sequence, and those of the closed form.
    parts: list[tuple[Forward, Flat]]
    closed: torch.Tensor | None = None

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


def compare_sums(
    sums: torch.Tensor, closed: torch.Tensor, where: torch.Tensor | None
) -> torch.Tensor:
    """Return how many tokens count, how many of them have another weight, and by how much at most.

    A factor of one token changes none of its scores, and the sum over its sequence. One factor for
    all of a batch changes nothing.

    Parameters
    ----------
    sums, closed : tensor of shape (T, 2)
        Numerators and lengths, from the gradient and by the closed form.
    where : boolean tensor of shape (T,) or None
        Tokens that count.
    """
    got, want = sums[:, 0].double(), closed[:, 0].double()
    counted = torch.isfinite(got) & torch.isfinite(want)
    counted = counted if where is None else counted & where
    got, want = (torch.where(counted, x, 0.0) for x in (got, want))
    factor = (got * want).sum() / (want * want).sum().clamp_min(torch.finfo(torch.float64).tiny)
    # What is small beside the others does not matter for the sum.
    near = FACTOR * (factor * want).abs() + SMALL * (factor * want).abs().amax()
    away = (got - factor * want).abs()
    differing = counted & (away > near)
    largest = away.amax() / (factor * want).abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.stack([counted.sum().double(), differing.sum().double(), largest])
