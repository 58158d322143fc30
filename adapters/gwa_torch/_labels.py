"""The labels of a training set, by sample, from the batches of its first epoch."""

from __future__ import annotations

import torch

__all__ = ["SeenLabels"]


class SeenLabels:
    """Labels (N,) as they come by, on their device.

    Parameters
    ----------
    num_samples : int
        N.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        # One place more, for numbers out of range: the monitor refuses those, and says why.
        self._labels = torch.full((num_samples + 1,), -1)

    def see(self, targets: torch.Tensor | None, ids: torch.Tensor) -> None:
        """Take in a batch; tokens and probabilities are no labels of samples."""
        if targets is None or targets.is_floating_point() or targets.numel() != ids.numel():
            return
        targets, ids = targets.reshape(-1), ids.reshape(-1)
        if self._labels.device != targets.device:
            self._labels = self._labels.to(targets.device)
        ids = ids.to(targets.device, torch.int64, non_blocking=True)
        inside = (ids >= 0) & (ids < self.num_samples)
        self._labels[torch.where(inside, ids, self.num_samples)] = targets.to(torch.int64)

    @property
    def value(self) -> torch.Tensor:
        """Labels (N,), negative where a sample was not seen."""
        return self._labels[: self.num_samples]

    @staticmethod
    def complete(labels: torch.Tensor, classes: int) -> torch.Tensor | None:
        """Return the labels on the host if each sample has one of the classes, else None."""
        labels = labels.cpu()
        known = ((labels >= 0) & (labels < max(classes, 2))).all()
        return labels if bool(known) else None
