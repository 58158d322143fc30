"""Rows of several small batches on the host, to be scored together: a call costs more than a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from gwa_core import alignment_from_logits
from gwa_torch._forward import SmallForward
from gwa_torch._keeper import Keeper
from gwa_torch._targets import Flat, LossOptions

__all__ = ["Stage"]

# Logits that wait: the more, the less each row costs, until they leave the cache of a processor.
BYTES = 1 << 23

# Batches that wait; each keeps the norm of its weight, and its bias.
MOST_BATCHES = 1024

# Python finds the ends of a short list before a library has loaded its code into the cache.
FEW = 512


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
        # PyTorch copies into them: an array of NumPy that shares a user's tensor would keep its
        # memory from being resized.
        self._rows: dict[str, torch.Tensor] = {}
        # One entry a batch.
        self._sizes: list[int] = []
        self._weight_norms: list[torch.Tensor] = []
        self._biases: list[torch.Tensor] = []

    def takes(self, targets: Any, ids: torch.Tensor | None) -> bool:
        """Tell whether a batch has class numbers and sound ids, and is small enough.

        What is not of this kind goes the usual way, which says what is wrong.
        """
        if not _is_vector(targets) or (ids is None) != (self._samples is None):
            return False
        options = self._options()
        usual = options.loss == "cross_entropy" and options.label_smoothing == 0.0
        rows = targets.shape[0]
        if not usual or not 0 < 4 * rows * options.classes <= BYTES:
            return False
        if ids is None:
            return True
        if not _is_vector(ids) or ids.shape[0] != rows:
            return False
        some = ids.tolist() if rows <= FEW else [int(x) for x in torch.aminmax(ids)]
        return min(some) >= 0 and max(some) < (self._samples or 0)

    def put(self, forward: SmallForward, targets: torch.Tensor, ids: torch.Tensor | None) -> None:
        """Copy a batch; there must be room."""
        if not self._rows:
            self._rows = _buffers(forward.logits.shape[1])
        size = targets.shape[0]
        into, to = self._rows, slice(self.rows, self.rows + size)
        into["logits"][to] = forward.logits
        into["latent_norms"][to] = forward.latent_norms
        into["targets"][to] = targets
        if ids is not None:
            into["ids"][to] = ids
        self._sizes.append(size)
        self._weight_norms.append(forward.weight_norm)
        if forward.bias is not None:
            self._biases.append(forward.bias)
        self.rows = to.stop

    def is_full(self, forward: SmallForward) -> bool:
        """Tell whether what waits must be scored before a pass."""
        if not self.rows:
            return False
        short = self.rows + forward.logits.shape[0] > self._rows["targets"].shape[0]
        short |= len(self._sizes) == MOST_BATCHES
        return short or bool(self._biases) != (forward.bias is not None)

    def state_dict(self) -> dict[str, Any] | None:
        """Return what waits, so that a resumed run scores the very same rows together."""
        if not self.rows:
            return None
        kept = {name: x[: self.rows].clone() for name, x in self._rows.items()}
        kept |= {"sizes": torch.from_numpy(np.array(self._sizes, np.int64))}
        kept |= {"weight_norms": torch.stack(self._weight_norms)}
        return kept | ({"biases": torch.stack(self._biases)} if self._biases else {})

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take over what waited."""
        self._forget()
        if state is None:
            return
        self._sizes = state["sizes"].tolist()
        self._weight_norms = list(state["weight_norms"].clone())
        self._biases = list(state["biases"].clone()) if "biases" in state else []
        self._rows = _buffers(state["logits"].shape[1])
        self.rows = state["targets"].shape[0]
        for name, buffer in self._rows.items():
            buffer[: self.rows] = state[name]

    def _forget(self) -> None:
        self.rows, self._sizes, self._weight_norms, self._biases = 0, [], [], []

    def give(self, keeper: Keeper) -> None:
        """Score all rows, hand them over, and begin again."""
        logits = self._rows["logits"][: self.rows]
        scores, flat = self._take()
        keeper.add(scores, flat)
        keeper.predict([(logits, flat)], self._options())

    def _take(self) -> tuple[torch.Tensor, Flat]:
        rows = {name: x[: self.rows] for name, x in self._rows.items()}
        part = {name: x.numpy() for name, x in rows.items()}
        targets, options = part["targets"], self._options()
        known = (targets >= 0) & (targets < options.classes)
        weight_norms = torch.stack(self._weight_norms).numpy()
        biases = torch.stack(self._biases).numpy() if self._biases else None
        scores = alignment_from_logits(
            logits=part["logits"],
            latent_norms=part["latent_norms"],
            weight_norm=np.repeat(weight_norms, self._sizes),
            targets=np.where(known, targets, 0),
            bias=None if biases is None else np.repeat(biases, self._sizes, axis=0),
            where=known,
        )
        self._forget()
        ids = None if self._samples is None else rows["ids"].clone()
        where = torch.from_numpy(targets != options.ignore_index)
        return torch.from_numpy(scores), Flat(rows["targets"], ids, where)


def _is_vector(x: torch.Tensor | None) -> bool:
    return type(x) is torch.Tensor and x.dtype == torch.int64 and x.ndim == 1 and x.is_cpu


def _buffers(classes: int) -> dict[str, torch.Tensor]:
    rows = max(1, BYTES // (4 * classes))
    # Not of PyTorch's default dtype and device, and to be written into in and out of inference mode.
    with torch.inference_mode(False):
        return {
            "logits": torch.from_numpy(np.empty((rows, classes), np.float32)),
            "latent_norms": torch.from_numpy(np.empty(rows, np.float32)),
            "targets": torch.from_numpy(np.empty(rows, np.int64)),
            "ids": torch.from_numpy(np.empty(rows, np.int64)),
        }
