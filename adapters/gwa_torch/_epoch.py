"""The scores of the epoch in progress, kept on their device; nothing here waits for it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from gwa_core import Moments
from gwa_torch._distributed import gather, minimum, position, total
from gwa_torch.scoring import has_triton

__all__ = ["BySample", "ByStream", "pack", "placed", "refuse_strays", "unpack"]

NEVER = torch.iinfo(torch.int64).max

# How often an id comes in an epoch, on average, until something is wrong.
MOST_REPEATS = 2

REPEATED = (
    "`ids` must number the samples, got {came} rows with {seen} different ids in this epoch; the first "
    "score of an id stays, and the others do not count. Usual cause: tokens of a row that were "
    "flattened. Pass labels (B, S) with ids (B,), and their scores add up"
)

# What the high half of an integer can count.
MOST_ROWS = 1 << 31

# Scores of a stream wait until this many have come: 1 MiB, and one fold in a few hundred steps.
FOLD = 1 << 18


class BySample:
    """A place for each sample, where the first of an epoch stays.

    One integer a sample holds when it was seen (high half) and its float32 score (low half), so
    that the smallest is the first: one scatter a batch, and one reduction over all ranks.

    Parameters
    ----------
    num_samples : int
        N, the size of the training set.
    device : device
        Where the scores will come from.
    repeats : bool
        Whether to count how often ids come, to warn of ids that are no numbers of samples.
    """

    def __init__(self, num_samples: int, device: torch.device, *, repeats: bool = False) -> None:
        # Rows that counted, where that is asked for.
        self.counted = torch.zeros((), dtype=torch.int64, device=device) if repeats else None
        # One more place, for what does not count.
        self.first = torch.full((num_samples + 1,), NEVER, dtype=torch.int64, device=device)
        self.strays = torch.zeros((), dtype=torch.int64, device=device)
        self.rows = 0

    def add(
        self,
        scores: torch.Tensor,
        ids: torch.Tensor,
        where: torch.Tensor | None,
        group: Any = None,
    ) -> None:
        """Add a batch."""
        # The order of one process that draws what the ranks of a distributed sampler draw in turn.
        rank, world = position(group)
        if (self.rows + scores.shape[0]) * world > MOST_ROWS - world:
            self._forget_order()
        begin, self.rows = self.rows, self.rows + scores.shape[0]
        scores = scores.float()
        if self.counted is not None:
            self.counted += scores.shape[0] if where is None else where.sum()
        if has_triton(scores.device):
            from gwa_torch._triton_record import record

            record(self.first, self.strays, scores, ids, where, begin, rank, world)
            return
        _, slots = placed(ids, where, self.first.shape[0] - 1, self.strays)
        order = torch.arange(begin, self.rows, device=scores.device) * world + rank
        bits = scores.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        self.first.scatter_reduce_(0, slots, (order << 32) | bits, "amin")

    def _forget_order(self) -> None:
        """Make all that were seen the earliest, and count the rows from one again."""
        bits = self.first & 0xFFFFFFFF
        self.first = torch.where(self.first == NEVER, NEVER, bits)
        self.rows = 1

    @property
    def device(self) -> torch.device:
        """Where the scores are."""
        return self.first.device

    @property
    def empty(self) -> bool:
        """Whether no sample was seen."""
        return bool((self.first[:-1] == NEVER).all())

    def synchronize(self, group: Any = None) -> None:
        """Take over what the other ranks saw."""
        self.first = minimum(self.first, group)

    def finish(self, group: Any = None) -> tuple[Moments, int]:
        """Return the moments of all ranks and how many scores were not finite."""
        self.synchronize(group)
        refuse_strays(self.strays, self.first.shape[0] - 1, group)
        scores = self.scores()
        moments = Moments.from_batch(scores.numpy())
        seen = int((self.first[:-1] != NEVER).sum())
        # All ranks meet here, also one that goes on from a state and does not count.
        own = torch.zeros_like(self.strays) if self.counted is None else self.counted
        came = int(total(own, group))
        if came > MOST_REPEATS * seen:
            warnings.warn(REPEATED.format(came=came, seen=seen), stacklevel=2)
        return moments, seen - int(moments.count)

    def scores(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return (N,) scores on a device, nan where not seen."""
        first = self.first[:-1].to(device)
        # The low half of the integer, as one of 32 bits with a sign.
        bits = first & 0xFFFFFFFF
        bits = bits - ((bits >> 31) << 32)
        scores = bits.to(torch.int32).view(torch.float32)
        return torch.where(first == NEVER, torch.nan, scores)

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.first, self.strays = self.first.to(device), self.strays.to(device)
        self.counted = None if self.counted is None else self.counted.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors on the host and plain values."""
        return {"first": self.first.cpu().clone(), "strays": int(self.strays), "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of the same number of samples."""
        self.first.copy_(state["first"])
        self.strays.fill_(state["strays"])
        self.rows = state["rows"]


class ByStream:
    """Moments alone, for batches without ids.

    Parameters
    ----------
    device : device
        Where the scores will come from.
    """

    def __init__(self, device: torch.device) -> None:
        like = torch.zeros((), device=device)
        # What all ranks have agreed on, and what this one saw since.
        self.common = self.own = Moments.empty(like)
        self.omitted = torch.zeros((), dtype=torch.int64, device=device)
        self.common_omitted = 0
        self._pending: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._waiting = 0

    def add(
        self,
        scores: torch.Tensor,
        ids: torch.Tensor | None = None,
        where: torch.Tensor | None = None,
        group: Any = None,
    ) -> None:
        """Add a batch."""
        self._pending.append((scores, where))
        self._waiting += scores.shape[0]
        if self._waiting >= FOLD:
            self._fold()

    def _fold(self) -> None:
        if self._pending:
            scores, counted = self._waiting_scores()
            self.omitted += (counted & ~torch.isfinite(scores)).sum()
            self.own = self.own.merge(Moments.from_batch(scores, where=counted))
            self._pending, self._waiting = [], 0

    @property
    def device(self) -> torch.device:
        """Where the scores are."""
        return self.omitted.device

    @property
    def empty(self) -> bool:
        """Whether no score came; to be asked after `synchronize`."""
        return int(self.common.count) + self.common_omitted == 0

    def _waiting_scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        scores = [scores for scores, _ in self._pending]
        return torch.cat(scores), torch.cat([_mask(*pending) for pending in self._pending])

    def synchronize(self, group: Any = None) -> None:
        """Take over what the other ranks saw."""
        self._fold()
        parts = [unpack(part) for part in gather(pack(self.own), group)]
        self.common = functools.reduce(Moments.merge, parts, self.common)
        self.common_omitted += int(total(self.omitted, group))
        self.own = Moments.empty(self.own.mean)
        self.omitted = torch.zeros_like(self.omitted)

    def own_all(self) -> None:
        """Count as one's own what all ranks had agreed on, of which the others know nothing now."""
        self._fold()
        self.own = self.common.merge(self.own)
        self.omitted += self.common_omitted
        self.common, self.common_omitted = Moments.empty(self.own.mean), 0

    def finish(self, group: Any = None) -> tuple[Moments, int]:
        """Return the moments of all ranks and how many scores were not finite."""
        self.synchronize(group)
        return Moments(*(field.cpu() for field in self.common)), self.common_omitted

    def scores(self) -> None:
        """Return None: nothing says which sample a score belongs to."""
        return

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.common, self.own = (
            unpack(pack(moments).to(device)) for moments in (self.common, self.own)
        )
        self.omitted = self.omitted.to(device)
        self._pending = [(x.to(device), _mask(x, mask).to(device)) for x, mask in self._pending]

    def state_dict(self) -> dict[str, Any]:
        """Return tensors on the host and plain values."""
        return {
            "common": pack(self.common).cpu(),
            "own": pack(self.own).cpu(),
            "omitted": int(self.omitted),
            "common_omitted": self.common_omitted,
            # Not folded, so that a resumed run folds the very same scores together.
            "pending": [x.cpu() for x in self._waiting_scores()] if self._pending else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        like = pack(self.own)
        self.common, self.own = (unpack(state[name].to(like)) for name in ("common", "own"))
        self.omitted.fill_(state["omitted"])
        self.common_omitted = state["common_omitted"]
        self._pending, self._waiting = [], 0
        if state["pending"] is not None:
            scores, mask = (x.to(like.device) for x in state["pending"])
            self._pending, self._waiting = [(scores, mask)], scores.shape[0]


def placed(
    ids: torch.Tensor, where: torch.Tensor | None, size: int, strays: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which rows count and the place of each; place `size` is for what does not count.

    Rows that count and have an id outside 0..size-1 are added to `strays`.
    """
    known = (ids >= 0) & (ids < size)
    strays += (~known if where is None else where & ~known).sum()
    counted = known if where is None else known & where
    return counted, torch.where(counted, ids, size)


def refuse_strays(strays: torch.Tensor, size: int, group: Any) -> None:
    """Raise where a rank had ids out of range."""
    outside = int(total(strays, group))
    # Said once; the epoch can then be ended without them.
    strays.zero_()
    if outside:
        raise ValueError(
            f"`ids` must be in 0..{size - 1}, got {outside} outside in this epoch; ids number the "
            "whole training set, not the batch"
        )


def _mask(scores: torch.Tensor, where: torch.Tensor | None) -> torch.Tensor:
    return torch.ones_like(scores, dtype=torch.bool) if where is None else where


def pack(moments: Moments) -> torch.Tensor:
    """Return moments as one vector of 20, for a collective or a file."""
    return torch.cat([torch.stack(list(moments[:10])), moments.low])


def unpack(packed: torch.Tensor) -> Moments:
    """Return the moments that `pack` made a vector of."""
    return Moments._make([*packed[:10].unbind(), packed[10:]])
