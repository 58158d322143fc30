"""What is kept of one signal over the epochs, a few numbers a sample."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["OverEpochs"]


class OverEpochs:
    """What is kept of one signal over the epochs, a few numbers a sample."""

    def __init__(self, size: int) -> None:
        self.count = np.zeros(size)
        self.total = np.zeros(size)
        self.square = np.zeros(size)  # about the mean (Welford)
        self.last = np.full(size, np.nan)
        self.falls = np.zeros(size)

    def add(self, values: np.ndarray[Any, Any]) -> None:
        """Add an epoch; nan where a sample was not seen."""
        seen = np.isfinite(values)
        before = self.mean()
        self.count = self.count + seen
        self.total = self.total + np.where(seen, values, 0.0)
        first = self.count == 1
        step = np.where(seen & ~first, (values - before) * (values - self.mean()), 0.0)
        self.square = self.square + step
        self.falls = self.falls + (seen & (values < self.last))
        self.last = np.where(seen, values, self.last)

    def mean(self) -> np.ndarray[Any, Any]:
        """Return the mean over the epochs in which a sample was seen."""
        return self._per_epoch(self.total)

    def deviation(self) -> np.ndarray[Any, Any]:
        """Return the population standard deviation over the epochs."""
        deviation: np.ndarray[Any, Any] = np.sqrt(self._per_epoch(self.square))
        return deviation

    def forgotten(self) -> np.ndarray[Any, Any]:
        """Return how often 1 was followed by 0; the number of epochs where there was no 1."""
        events = np.where(self.total > 0, self.falls, self.count)
        return np.where(self.count > 0, events, np.nan)

    def _per_epoch(self, total: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        seen = self.count > 0
        return np.where(seen, total / np.where(seen, self.count, 1.0), np.nan)
