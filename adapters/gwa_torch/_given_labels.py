"""The given label of each sample, from the batches that were seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gwa_torch._distributed import minimum

__all__ = ["GivenLabels"]

# Of a sample that was not seen.
UNKNOWN = -1


class GivenLabels:
    """A class number for each sample; nothing waits for the device before `known`.

    Parameters
    ----------
    num_samples : int
        N.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        # One more place, for ids that are out of range.
        self.labels: torch.Tensor | None = None

    def see(self, labels: torch.Tensor, ids: torch.Tensor) -> None:
        """Keep the labels of a batch, where they are class numbers of samples."""
        if labels.is_floating_point() or labels.ndim != 1 or labels.shape != ids.shape:
            return
        if self.labels is None or self.labels.device != labels.device:
            before = self.state()
            self.load(torch.full((self.num_samples,), UNKNOWN) if before is None else before)
            self.labels = self.labels.to(labels.device)  # type: ignore[union-attr]  # loaded
        ids = ids.to(labels.device).long()
        known = (ids >= 0) & (ids < self.num_samples)
        self.labels[torch.where(known, ids, self.num_samples)] = labels.long()

    def fill(self, labels: Sequence[int], ids: Sequence[int]) -> None:
        """Keep labels that a data set has in a column, of samples that were not seen."""
        column = GivenLabels(self.num_samples)
        column.see(torch.as_tensor(labels), torch.as_tensor(ids))
        found, seen = column.state(), self.state()
        if found is not None:
            self.load(found if seen is None else torch.where(seen == UNKNOWN, found, seen))

    def known(self, group: Any = None) -> torch.Tensor | None:
        """Return the labels (N,) of all ranks on the host, or None where some are not known."""
        seen = self.state()
        # Every rank takes part, also one that has seen none.
        seen = torch.full((self.num_samples,), UNKNOWN) if seen is None else seen
        merged = -minimum(-seen, group)
        return merged if bool((merged >= 0).all()) else None

    def state(self) -> torch.Tensor | None:
        """Return what is there on the host."""
        return None if self.labels is None else self.labels[:-1].cpu().clone()

    def load(self, state: torch.Tensor | None) -> None:
        """Take over what `state` returned."""
        spare = torch.tensor([UNKNOWN])
        self.labels = None if state is None else torch.cat([state, spare])
