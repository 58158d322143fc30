"""Some rows of a pass, scored in both ways to see whether the closed form is the gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import torch

from gwa_core import score_agreement
from gwa_torch._forward import Forward
from gwa_torch._targets import Flat, LossOptions
from gwa_torch.scoring import as_soft, full_precision, to_numpy

__all__ = ["Evidence", "compare"]

# Rows of a batch that are checked, and the bytes that their logits may have.
CHECKED_ROWS = 256
CHECKED_BYTES = 1 << 26


class Evidence(NamedTuple):
    """Some rows of a pass, and what their closed form is made of."""

    rows: slice
    arrays: dict[str, Any]

    @classmethod
    def of(cls, forward: Forward, flat: Flat, options: LossOptions) -> Self:
        """Copy some rows, so that the whole of a large batch need not be kept."""
        logits = forward.logits.reshape(-1, forward.logits.shape[-1])
        latents = forward.latents.reshape(logits.shape[0], -1)
        most = min(CHECKED_ROWS, CHECKED_BYTES // (4 * logits.shape[1]))
        rows = slice(None, None, math.ceil(logits.shape[0] / max(1, most)))
        flat, weights = flat.to(logits.device), options.weights_on(logits.device)
        latents = latents[rows].to(torch.promote_types(latents.dtype, torch.float32))
        targets, smoothing = as_soft(flat.fitting(logits)[rows], weights, options.label_smoothing)
        where = None if flat.where is None else flat.where[rows]
        if targets.ndim == 1 and not targets.is_floating_point():
            known = (targets >= 0) & (targets < max(2, logits.shape[1]))
            targets = torch.where(known, targets, 0)
            if weights is not None:
                # A class without a weight has no gradient.
                known &= weights[targets] > 0
            where = known if where is None else where & known
        return cls(
            rows,
            {
                "logits": logits[rows].clone(),
                "latent_norms": torch.linalg.vector_norm(latents, dim=1),
                "weight_norm": forward.weight_norm.clone(),
                "targets": targets.clone(),
                "bias": None if forward.bias is None else forward.bias.clone(),
                "loss": options.loss,
                "label_smoothing": smoothing,
                "where": None if where is None else where.clone(),
            },
        )


def compare(taps: list[Any], evidence: list[Evidence]) -> torch.Tensor:
    """Return how many rows can tell, how many of them differ, and by how much at most."""
    found = []
    for tap, (rows, arrays) in zip(taps, evidence, strict=True):
        scores = tap.plain()[rows]
        # NumPy takes a few rows in less time, and has no bfloat16, whose rounding is allowed for.
        shared = scores.is_cpu and arrays["logits"].dtype.itemsize >= 4
        give: Any = _shared if shared else (lambda x: x)
        arrays = {name: give(x) for name, x in arrays.items()}
        with full_precision(scores.device):
            agreement = score_agreement(give(scores), **arrays)
        numbers = [torch.as_tensor(x, dtype=torch.float64) for x in agreement]
        found.append(torch.stack(numbers).to(scores.device))
    counts = torch.stack([x.to(found[0].device) for x in found])
    return torch.cat([counts[:, :2].sum(0), counts[:, 2:].amax(0)])


def _shared(x: Any) -> Any:
    return to_numpy(x) if isinstance(x, torch.Tensor) else x
