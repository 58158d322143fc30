"""Rows of several small batches on the host, to be scored together: a call costs more than a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from gwa_core import alignment_from_logits
from gwa_torch._capture import Forward
from gwa_torch._host import BYTES
from gwa_torch._keeper import Keeper
from gwa_torch._targets import Flat, LossOptions

__all__ = ["Stage"]


class Stage:
    """Copies of logits, norms, targets and ids, until they are scored.

    Copies, because the user may write into logits or latents after the step.

    Parameters
    ----------
    options : callable
        What the closed form depends on.
    num_samples : int or None
        N; then every batch has ids.
    """

    def __init__(self, options: Callable[[], LossOptions], num_samples: int | None) -> None:
        self._options = options
        self._samples = num_samples
        self.rows = 0
        # NumPy's, whose copies of a few rows cost less than PyTorch's.
        self._buffers: dict[str, np.ndarray[Any, Any]] = {}
        self._has_bias = False

    def takes(self, targets: torch.Tensor | None, ids: torch.Tensor | None) -> bool:
        """Tell whether a batch has class numbers and sound ids, and is small enough.

        What is not of this kind goes the usual way, which says what is wrong.
        """
        if not _is_vector(targets) or (ids is None) != (self._samples is None):
            return False
        options = self._options()
        usual = options.loss == "cross_entropy" and options.label_smoothing == 0.0
        rows = 0 if targets is None else targets.shape[0]
        if not usual or not 0 < 4 * rows * options.classes <= BYTES:
            return False
        if ids is None:
            return True
        if not _is_vector(ids) or ids.shape[0] != rows:
            return False
        low, high = torch.aminmax(ids)
        return int(low) >= 0 and int(high) < (self._samples or 0)

    def put(self, forward: Forward, targets: torch.Tensor, ids: torch.Tensor | None) -> None:
        """Copy a batch; there must be room."""
        assert forward.host_norms is not None  # noqa: S101  # what `Capture.sole` gives has them
        if not self._buffers:
            self._buffers = _buffers(forward.logits.shape[1])
        into, to = self._buffers, slice(self.rows, self.rows + targets.shape[0])
        into["logits"][to] = forward.logits.numpy()
        into["latent_norms"][to] = forward.host_norms
        into["weight_norm"][to] = forward.weight_norm.item()
        into["targets"][to] = targets.numpy()
        if forward.bias is not None:
            into["bias"][to] = forward.bias.numpy()
        if ids is not None:
            into["ids"][to] = ids.numpy()
        self._has_bias = forward.bias is not None
        self.rows = to.stop

    def is_full(self, forward: Forward) -> bool:
        """Tell whether what waits must be scored before a pass."""
        if not self.rows:
            return False
        short = self.rows + forward.logits.shape[0] > self._buffers["targets"].shape[0]
        return short or self._has_bias != (forward.bias is not None)

    def state_dict(self) -> dict[str, Any] | None:
        """Return what waits, so that a resumed run scores the very same rows together."""
        if not self.rows:
            return None
        kept = {name: torch.from_numpy(x[: self.rows].copy()) for name, x in self._buffers.items()}
        return kept | {"has_bias": self._has_bias}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take over what waited."""
        self.rows = 0
        if state is None:
            return
        self._buffers = _buffers(state["logits"].shape[1])
        self.rows = state["targets"].shape[0]
        for name, buffer in self._buffers.items():
            buffer[: self.rows] = state[name].numpy()
        self._has_bias = state["has_bias"]

    def give(self, keeper: Keeper) -> None:
        """Score all rows, hand them over, and begin again."""
        logits = torch.from_numpy(self._buffers["logits"][: self.rows])
        scores, flat = self._take()
        keeper.add(scores, flat)
        keeper.predict([(logits, flat)], self._options())

    def _take(self) -> tuple[torch.Tensor, Flat]:
        part = {name: x[: self.rows] for name, x in self._buffers.items()}
        self.rows = 0
        targets, options = part["targets"], self._options()
        known = (targets >= 0) & (targets < options.classes)
        counted = targets != options.ignore_index
        scores = alignment_from_logits(
            logits=part["logits"],
            latent_norms=part["latent_norms"],
            weight_norm=part["weight_norm"],
            targets=np.where(known, targets, 0),
            bias=part["bias"] if self._has_bias else None,
            where=known,
        )
        ids = None if self._samples is None else torch.from_numpy(part["ids"].copy())
        where = torch.from_numpy(counted)
        return torch.from_numpy(scores), Flat(torch.from_numpy(targets), ids, where)


def _is_vector(x: torch.Tensor | None) -> bool:
    return type(x) is torch.Tensor and x.dtype == torch.int64 and x.ndim == 1 and x.is_cpu


def _buffers(classes: int) -> dict[str, np.ndarray[Any, Any]]:
    rows = max(1, BYTES // (4 * classes))
    return {
        "logits": np.empty((rows, classes), np.float32),
        "bias": np.empty((rows, classes), np.float32),
        "latent_norms": np.empty(rows, np.float32),
        "weight_norm": np.empty(rows, np.float32),
        "targets": np.empty(rows, np.int64),
        "ids": np.empty(rows, np.int64),
    }
