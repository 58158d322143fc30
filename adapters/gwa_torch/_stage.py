"""Rows of several small batches on the host, to be scored together: a call costs more than a row."""

from __future__ import annotations

from collections.abc import Callable

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
        self._buffers: dict[str, torch.Tensor] = {}
        self._used: LossOptions | None = None
        self._parts = ""

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
        return flat.samples > room or self._kind(forward, flat) != self._parts

    @staticmethod
    def _kind(forward: Forward, flat: Flat) -> str:
        given = {"bias": forward.bias, "ids": flat.ids, "where": flat.where}
        return " ".join(name for name, x in given.items() if x is not None)

    def put(self, forward: Forward, flat: Flat) -> None:
        """Copy a batch; `full_for` was asked before."""
        classes = forward.logits.shape[-1]
        if not self._buffers:
            most = BYTES // (4 * classes)
            self._buffers = {
                "logits": torch.empty(most, classes),
                "bias": torch.empty(most, classes),
                "norms": torch.empty(most),
                "targets": torch.empty(most, dtype=torch.int64),
                "ids": torch.empty(most, dtype=torch.int64),
                "where": torch.empty(most, dtype=torch.bool),
            }
        to = slice(self.rows, self.rows + flat.samples)
        into = self._buffers
        into["logits"][to] = forward.logits.reshape(-1, classes)
        norms = torch.linalg.vector_norm(forward.latents, dim=-1).reshape(-1)
        torch.mul(norms, forward.weight_norm, out=into["norms"][to])
        for name, x in {"targets": flat.targets, "ids": flat.ids, "where": flat.where}.items():
            if x is not None:
                into[name][to] = x
        if forward.bias is not None:
            into["bias"][to] = forward.bias
        self._parts = self._kind(forward, flat)
        self.rows = to.stop

    def take(self) -> tuple[torch.Tensor, Flat]:
        """Return the scores of all rows, and begin again."""
        rows, self.rows = slice(0, self.rows), 0
        part = {name: x[rows] for name, x in self._buffers.items()}
        targets = part["targets"]
        known = (targets >= 0) & (targets < part["logits"].shape[1])
        where = part["where"] & known if "where" in self._parts else known
        scores = alignment_from_logits(
            logits=part["logits"].numpy(),
            latent_norms=part["norms"].numpy(),
            # The norms are products with ‖W‖ already, which is another one in each step.
            weight_norm=1.0,
            targets=torch.where(known, targets, 0).numpy(),
            bias=part["bias"].numpy() if "bias" in self._parts else None,
            where=where.numpy(),
        )
        return torch.from_numpy(scores), Flat(
            targets,
            part["ids"].clone() if "ids" in self._parts else None,
            part["where"].clone() if "where" in self._parts else None,
        )
