"""A place for the score of each sample, where the first of an epoch stays."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Slots"]


class Slots:
    """Scores by sample id, with the number of the batch that brought each (-1: not seen)."""

    def __init__(self, num_samples: int, dtype: Any) -> None:
        self.scores: np.ndarray[Any, Any] = np.full(num_samples, np.nan, dtype)
        self.seen_in: np.ndarray[Any, np.dtype[np.int64]] = np.full(num_samples, -1, np.int64)

    @staticmethod
    def check_ids(ids: np.ndarray[Any, Any], num_samples: int) -> None:
        """Raise unless the ids are integers in range."""
        if ids.dtype.kind not in "iu":
            raise ValueError(f"`ids` must be integers, got {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= num_samples):
            raise ValueError(
                f"`ids` must be in 0..{num_samples - 1}, got {ids.min()}..{ids.max()}; "
                "ids number the whole training set, not the batch"
            )

    def add(self, scores: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], batch: int) -> None:
        """Add a batch; a sample that was seen keeps its score."""
        new = self.seen_in[ids] < 0
        # Written backwards, so that the first of several equal ids in a batch stays.
        ids, scores = ids[new][::-1], scores[new][::-1]
        self.scores[ids] = scores
        self.seen_in[ids] = batch

    def merge(self, other: Slots) -> None:
        """Take what the other saw alone, or in an earlier batch."""
        earlier = (self.seen_in < 0) | (other.seen_in < self.seen_in)
        take = (other.seen_in >= 0) & earlier
        self.scores[take] = other.scores[take]
        self.seen_in[take] = other.seen_in[take]

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the arrays."""
        return {"scores": self.scores.copy(), "seen_in": self.seen_in.copy()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Slots:
        """Return slots with copies of the arrays of a state."""
        slots = cls(0, np.float64)
        slots.scores, slots.seen_in = np.array(state["scores"]), np.array(state["seen_in"])
        return slots
