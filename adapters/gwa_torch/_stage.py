"""Rows of several small batches on the host, to be scored together: a call costs more than a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gwa_core import alignment_from_logits
from gwa_torch._capture import Forward
from gwa_torch._targets import Flat, LossOptions

__all__ = ["Stage"]

# Logits that wait. Larger batches are scored at once.
BYTES = 1 << 20


class Stage:
    """Copies of logits, norms, targets, ids and masks, until they are scored.

    Copies, because the user may write into logits or latents after the step.

    Parameters
    ----------
    options : callable
        What the closed form depends on.
    """

    def __init__(self, options: Callable[[], LossOptions]) -> None:
        self._options = options
        self.rows = 0
        # NumPy's, whose copies of a few rows cost less.
        self._buffers: dict[str, np.ndarray[Any, Any]] = {}
        self._given: tuple[bool, ...] = ()

    def fits(self, forward: Forward, flat: Flat) -> bool:
        """Tell whether a batch is small, on the host, and has class numbers alone."""
        logits, options = forward.logits, self._options()
        return (
            logits.device.type == "cpu"
            and logits.dtype == torch.float32
            and forward.latents.dtype == torch.float32
            and forward.weight is None
            and 8 * logits.numel() <= BYTES
            and flat.targets.ndim == 1
            and not flat.targets.is_floating_point()
            and flat.targets.device.type == "cpu"
            and options.loss == "cross_entropy"
            and options.label_smoothing == 0.0
        )

    def full_for(self, forward: Forward, flat: Flat) -> bool:
        """Tell whether what waits must be scored before this batch."""
        if not self.rows:
            return False
        room = self._buffers["logits"].shape[0] - self.rows
        return flat.samples > room or _given(forward, flat) != self._given

    def put(self, forward: Forward, flat: Flat) -> None:
        """Copy a batch; `full_for` was asked before."""
        logits = forward.logits.reshape(-1, forward.logits.shape[-1])
        if not self._buffers:
            self._buffers = _buffers(logits.shape[1])
        into, to = self._buffers, slice(self.rows, self.rows + flat.samples)
        into["logits"][to] = logits.numpy()
        norms = torch.linalg.vector_norm(forward.latents, dim=-1).reshape(-1)
        np.multiply(norms.numpy(), forward.weight_norm.item(), out=into["norms"][to])
        into["targets"][to] = flat.targets.numpy()
        if flat.ids is not None:
            into["ids"][to] = flat.ids.numpy()
        if flat.where is not None:
            into["where"][to] = flat.where.numpy()
        if forward.bias is not None:
            into["bias"][to] = forward.bias.numpy()
        self._given = _given(forward, flat)
        self.rows = to.stop

    def take(self) -> tuple[torch.Tensor, Flat]:
        """Return the scores of all rows, and begin again."""
        part = {name: x[: self.rows] for name, x in self._buffers.items()}
        has_bias, has_ids, has_where = self._given
        self.rows = 0
        targets = part["targets"]
        where = (targets >= 0) & (targets < part["logits"].shape[1])
        if has_where:
            where &= part["where"]
        scores = alignment_from_logits(
            logits=part["logits"],
            latent_norms=part["norms"],
            # The norms are products with ‖W‖ already, which is another one in each step.
            weight_norm=1.0,
            targets=np.where(where, targets, 0),
            bias=part["bias"] if has_bias else None,
            where=where,
        )
        return torch.from_numpy(scores), Flat(
            torch.from_numpy(targets),
            torch.from_numpy(part["ids"].copy()) if has_ids else None,
            torch.from_numpy(part["where"].copy()) if has_where else None,
        )


def _given(forward: Forward, flat: Flat) -> tuple[bool, ...]:
    return forward.bias is not None, flat.ids is not None, flat.where is not None


def _buffers(classes: int) -> dict[str, np.ndarray[Any, Any]]:
    rows = max(1, BYTES // (4 * classes))
    return {
        "logits": np.empty((rows, classes), np.float32),
        "bias": np.empty((rows, classes), np.float32),
        "norms": np.empty(rows, np.float32),
        "targets": np.empty(rows, np.int64),
        "ids": np.empty(rows, np.int64),
        "where": np.empty(rows, np.bool_),
    }
