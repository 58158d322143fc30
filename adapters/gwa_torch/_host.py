"""The norms of a small pass on the host, taken while its tensors are in the cache."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["BYTES", "Host"]

# Logits of a small pass.
BYTES = 1 << 21


class Host(NamedTuple):
    """Norms of a pass in plain numbers: a few rows cost NumPy less than PyTorch."""

    latent_norms: np.ndarray
    weight_norm: float

    @classmethod
    def of(cls, weight: torch.Tensor, latents: torch.Tensor, logits: torch.Tensor) -> Host | None:
        """Return the norms, or None where the pass is not small, on the host and in float32.

        Parameters
        ----------
        weight : tensor of shape (C, D)
            Of the head, detached.
        latents, logits : tensor of shape (N, D), (N, C)
            Of the pass, detached.
        """
        if not 0 < 4 * logits.numel() <= BYTES:
            return None
        if not all(map(_is_plain, (weight, latents, logits))):
            return None
        z, w = latents.numpy(), weight.numpy().ravel()
        return cls(np.sqrt(np.vecdot(z, z)), math.sqrt(np.dot(w, w)))


def _is_plain(x: torch.Tensor) -> bool:
    plain = type(x) is torch.Tensor and x.dtype == torch.float32 and x.is_cpu
    return plain and x.ndim == 2 and x.is_contiguous()
