"""The latent norms of a small pass on the host, taken while its tensors are in the cache."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["BYTES", "host_norms"]

# Logits of a small pass.
BYTES = 1 << 21


def host_norms(
    weight: torch.Tensor, latents: torch.Tensor, logits: torch.Tensor
) -> np.ndarray | None:
    """Return ‖z‖ of each row, or None where the pass is not small, on the host and in float32.

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
    # As `head_scores` takes them, so that rows that wait have the scores of rows that do not.
    norms: np.ndarray = torch.linalg.vector_norm(latents, dim=-1).numpy()
    return norms


def _is_plain(x: torch.Tensor) -> bool:
    plain = type(x) is torch.Tensor and x.dtype == torch.float32 and x.is_cpu
    return plain and x.ndim == 2 and x.is_contiguous()
