"""The scores of the epoch in flight, and the history of those that ended."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gwa_core import EpochSummary, summarize
from gwa_torch import _targets
from gwa_torch._distributed import gather, position
from gwa_torch._epoch import BySample, ByStream
from gwa_torch._runs import write_run
from gwa_torch._signals import Followed
from gwa_torch.heads import Head, head_device, head_size

__all__ = ["Keeper", "check_count"]

STATE_VERSION = 1


def check_count(name: str, value: Any) -> int:
    """Return an integer of at least one, of any library's kind."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}")
    return count


class Keeper:
    """What a monitor does with its scores: keep, summarise, merge over ranks, save and resume.

    Parameters
    ----------
    head : Linear or 1×1 convolution
        Where the scores come from.
    num_samples : int or None
        N; without it only moments are kept.
    beta : float
        The constant of Eq. 2.
    loss : str
        For the header of a run folder.
    process_group : ProcessGroup or None
        The data-parallel ranks.
    """

    def __init__(
        self, head: Head, num_samples: int | None, *, beta: float, loss: str, process_group: Any
    ) -> None:
        self.head = head
        self.num_samples = num_samples
        self.num_classes = head_size(head)[0]
        if not isinstance(beta, int | float) or not math.isfinite(beta):
            raise ValueError(f"`beta` must be a finite number, got {beta!r}")
        self.beta = beta
        self.loss = loss
        self.process_group = process_group
        self._followed = Followed((), num_samples, loss)
        #: Ended epochs in order.
        self.history: list[EpochSummary] = []
        self._updates = 0
        self._nothing = "call `update` for every batch, and train with the model in train mode"
        # Whether the epoch in flight is that of all ranks.
        self._whole = False
        self._epoch: BySample | ByStream | None = None
        self._ended = False
        # Whether a run folder with epochs in it may be this run's.
        self._resumed = False

    @torch.no_grad()
    def add(
        self,
        scores: torch.Tensor,
        ids: torch.Tensor | None = None,
        where: torch.Tensor | None = None,
    ) -> None:
        """Add scores that you computed yourself, by `head_scores`.

        Parameters
        ----------
        scores : tensor of shape (N,)
            Alignment scores.
        ids : integer tensor of shape (N,), optional
            Sample numbers in 0..num_samples-1.
        where : boolean tensor of shape (N,), optional
            True for samples that count.
        """
        if not isinstance(scores, torch.Tensor) or not scores.is_floating_point():
            raise TypeError(f"`scores` must be a floating tensor, got {_kind(scores)}")
        if scores.ndim != 1:
            raise ValueError(f"`scores` must be (N,), got shape {tuple(scores.shape)}")
        flat = _targets.flatten(scores, ids, where)
        self._check_ids(ids)
        self._add(scores.detach(), flat.to(scores.device))
        # The head may have been called as well.
        self._forget()

    def _add(self, scores: torch.Tensor, flat: _targets.Flat) -> None:
        epoch = self._in_flight() or self._new_epoch(scores.device)
        if epoch.device != scores.device:
            epoch.to(scores.device)
        epoch.add(scores, flat.ids, flat.where, self.process_group)  # type: ignore[arg-type]
        self._epoch, self._ended, self._whole = epoch, False, False

    def _in_flight(self) -> BySample | ByStream | None:
        return None if self._ended else self._epoch

    def _new_epoch(self, device: torch.device) -> BySample | ByStream:
        n = self.num_samples
        return ByStream(device) if n is None else BySample(n, device)

    def _check_ids(self, ids: torch.Tensor | None) -> None:
        if (ids is None) != (self.num_samples is None):
            raise ValueError(
                "`ids` and `num_samples` must be given together, got "
                f"{'no ' if ids is None else ''}ids and num_samples={self.num_samples}; let the "
                "dataset return its index, and say GWAMonitor(head, num_samples=len(dataset))"
            )
        if ids is None:
            return
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"`ids` must be integers, got {ids.dtype}")
        size = self.num_samples or 0
        # Looking at ids on a GPU would wait for it; those are counted and refused at the end.
        if ids.device.type == "cpu" and ids.numel() and not 0 <= ids.min() <= ids.max() < size:
            raise ValueError(
                f"`ids` must be in 0..{size - 1}, got {ids.min()}..{ids.max()}; ids number the "
                "whole training set, not the batch"
            )

    def end_epoch(self, step: int | None = None) -> EpochSummary:
        """Summarise the epoch over all ranks, append it to the history, and begin a new one.

        Parameters
        ----------
        step : int, optional
            The caller's clock, such as the optimiser's step; default the number of the epoch.

        Returns
        -------
        EpochSummary
            In plain numbers, the same on every rank; waits for the device once.

        Raises
        ------
        ValueError
            If no rank has a score, or ids on a GPU were out of range.
        """
        # A rank without samples takes part, too.
        epoch = self._in_flight() or self._new_epoch(head_device(self.head))
        self._agree()
        moments, omitted = epoch.finish(self.process_group)
        if int(moments.count) == 0 and omitted == 0:
            raise ValueError(
                f"an epoch must have scores, got none since the last `end_epoch`; {self._nothing}"
            )
        summary = EpochSummary.from_summary(
            summarize(moments, beta=self.beta),
            epoch=len(self.history),
            step=None if step is None else operator.index(step),
            omitted=omitted,
        )
        self._followed.end_epoch(epoch, self.process_group)
        self.history.append(summary)
        self._epoch, self._ended = epoch, True
        self._updates = 0
        self._forget()
        return summary

    def _agree(self) -> None:
        """Raise on every rank where the ranks differ in N: one collective would break or hang."""
        given = gather(torch.tensor([self.num_samples or 0]), self.process_group)
        if len({int(n) for n in given}) > 1:
            raise ValueError(
                "`num_samples` must be the same on all ranks, got "
                f"{', '.join(str(int(n) or None) for n in given)}; it is the size of the whole "
                "training set and not of a rank's part"
            )

    def _forget(self) -> None:
        """Let go of forward passes that wait for targets."""

    def synchronize(self) -> None:
        """Give every rank the epoch so far, so that the state of any rank is the whole state.

        All ranks must call it. Without ``torch.distributed`` it changes nothing.
        """
        if position(self.process_group)[1] == 1:
            return
        epoch = self._in_flight() or self._new_epoch(head_device(self.head))
        self._agree()
        epoch.synchronize(self.process_group)
        if not epoch.empty:
            self._followed.synchronize(epoch, self.process_group)
            self._epoch, self._ended, self._whole = epoch, False, True

    @property
    def scores(self) -> torch.Tensor | None:
        """Scores (N,) of the epoch in flight, or of the one that ended last, on the host.

        Not a number where a sample was not seen; None without `num_samples` or before the first
        batch. In flight, those of this rank.
        """
        return None if self._epoch is None else self._epoch.scores()

    def save(
        self,
        run_folder: str | os.PathLike[str],
        *,
        metrics: Mapping[str, float] | None = None,
        targets: torch.Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Write the epoch that ended last to a run folder, for ``gwa analyse``.

        Call it after every `end_epoch`. Epochs that the folder does not have yet are written
        without scores, and epochs after the last one, which a resumed run makes again, are dropped.
        Only the first rank writes.

        Parameters
        ----------
        run_folder : path
            The folder; made where it does not exist.
        metrics : mapping of str to float, optional
            Numbers to keep beside the summary and the means of the signals.
        targets : integer tensor of shape (N,), optional
            Given labels by sample id.
        class_names : sequence of str, optional
            C names.
        """
        if not self.history:
            raise ValueError("`save` must follow `end_epoch`, got no ended epoch")
        if position(self.process_group)[0] == 0:
            write_run(
                run_folder,
                self.history,
                self.scores if self._ended else None,
                resumed=self._resumed,
                num_samples=self.num_samples,
                num_classes=self.num_classes,
                beta=self.beta,
                loss=self.loss,
                metrics=self._followed.means | dict(metrics or {}),
                targets=targets,
                class_names=class_names,
            )
        self._resumed = True

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors on the host and plain values, with a version.

        In the middle of an epoch under ``torch.distributed`` call `synchronize` on all ranks first;
        then the state of any rank serves all of them.
        """
        rank, world = position(self.process_group)
        epoch = self._in_flight()
        return {
            "version": STATE_VERSION,
            "num_samples": self.num_samples,
            "beta": self.beta,
            "history": [summary._asdict() for summary in self.history],
            "updates": self._updates,
            "rank": rank,
            "world": world,
            "whole": world == 1 or self._whole,
            "epoch": None if epoch is None else epoch.state_dict(),
            "signals": self._followed.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, also in the middle of an epoch.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned; survives ``torch.load(weights_only=True)``.

        Raises
        ------
        ValueError
            If it is of another version or training set; the monitor is unchanged then.
        """
        found = state.get("version"), state.get("num_samples")
        if found != (STATE_VERSION, self.num_samples):
            raise ValueError(
                f"`state` must be of version {STATE_VERSION} and num_samples={self.num_samples}, "
                f"got {found[0]!r} and {found[1]!r}; it is of another gwa-core or training set"
            )
        place, epoch = position(self.process_group), None
        if state["epoch"] is not None:
            if not state["whole"] and place != (state["rank"], state["world"]):
                raise ValueError(
                    f"`state` must be of rank {place[0]} of {place[1]}, got one of rank "
                    f"{state['rank']} of {state['world']} from the middle of an epoch; call "
                    "`synchronize` on all ranks before `state_dict`, then any serves all"
                )
            epoch = self._new_epoch(head_device(self.head))
            epoch.load_state_dict(state["epoch"])
        self._followed.load_state_dict(state.get("signals"), in_flight=epoch is not None)
        history = [EpochSummary(**summary) for summary in state["history"]]
        self.beta, self.history = state["beta"], history
        self._updates = state["updates"]
        self._resumed = True
        self._epoch, self._ended, self._whole = epoch, False, state["whole"]
        self._forget()


def _kind(x: Any) -> str:
    return str(x.dtype) if isinstance(x, torch.Tensor) else type(x).__name__
