"""What a monitor has of its epochs: the scores of the one in progress, and what ended ones left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from gwa_core import EpochSummary, LabelQuality, summarize
from gwa_core.history import expected_samples
from gwa_torch._checks import check_count
from gwa_torch._distributed import gather, position
from gwa_torch._epoch import BySample, ByStream
from gwa_torch._predictions import Predictions, one_class
from gwa_torch._sequences import BySequence
from gwa_torch._signals import Followed, made_of_arrays, made_of_tensors
from gwa_torch._targets import Flat, LossOptions
from gwa_torch.heads import Head, head_device

__all__ = ["Keeper", "NoScoresError"]

STATE_VERSION = 2

Epoch: TypeAlias = BySample | BySequence | ByStream


class NoScoresError(ValueError):
    """An epoch ended in which no rank had a score."""


class Keeper:
    """Keeps scores, merges them over the ranks, summarises, saves and resumes.

    Parameters
    ----------
    head : Linear or 1×1 convolution
        Where the scores come from.
    num_samples : int or None
        N; without it only moments are kept.
    beta : float
        The constant of Eq. 2.
    every : int
        The monitor scores every n-th batch.
    followed : Followed
        The signals beside the scores.
    process_group : ProcessGroup or None
        The data-parallel ranks.
    reduce : {"mean", "min", "gradient"}
        How tokens of one sequence become a score.
    """

    def __init__(
        self,
        head: Head,
        num_samples: int | None,
        *,
        beta: float,
        every: int,
        followed: Followed,
        process_group: Any,
        reduce: str,
    ) -> None:
        self.head = head
        self.num_samples = num_samples
        self.beta = beta
        self.every = every
        self.followed = followed
        self.group = process_group
        self.reduce = reduce
        # Whether the rows of this run are tokens, some of which may be of one sequence.
        self._tokens = False
        self.history: list[EpochSummary] = []
        self.quality = None if num_samples is None else LabelQuality(num_samples)
        # Where its sums are.
        self._quality_device: torch.device | None = None
        self.epoch: Epoch | None = None
        self.ended = False
        # Whether predicted classes are kept, for a run folder: those of the epoch in progress, and of
        # the one that ended last.
        self.predicts = False
        self._predictions: Predictions | None = None
        self._predicted: Predictions | None = None
        # Whether the epoch in progress is that of all ranks.
        self._whole = False
        # Whether a run folder with epochs in it may be this run's.
        self.resumed = False
        # Whether scores come from gradients: of this rank, and of any when they last met.
        self.by_gradient = self.all_by_gradient = False
        # Whether any rank had predictions when they last met.
        self._all_predict = False
        # Rows of the epoch that ended last, of all ranks.
        self._before = 0
        self._begin()

    def _begin(self) -> None:
        """Count from nothing."""
        # Of this rank, whether they were scored or not.
        self.batches = 0
        # Scored rows: of this rank since the last `synchronize`, and of all ranks before it.
        self._rows = self._common_rows = 0
        self._largest = 0

    def count(self, rows: int) -> None:
        """Count a batch that is scored, now or later."""
        self._rows += rows
        self._largest = max(self._largest, rows)

    @torch.inference_mode(False)  # what begins in it could not go on in training
    def add(self, scores: torch.Tensor, flat: Flat) -> None:
        """Add the scores of a batch, or of several."""
        self._tokens |= flat.tokens
        epoch = self._of_kind(self._current() or self._new_epoch(scores.device))
        if epoch.device != scores.device:
            epoch.to(scores.device)
        epoch.add(scores, flat.ids, flat.where, self.group)  # type: ignore[arg-type]
        self.epoch, self.ended, self._whole = epoch, False, False

    def predict(self, parts: list[tuple[torch.Tensor, Flat]], options: LossOptions) -> None:
        """Add the outputs of the head in the passes of a batch, where predictions are kept."""
        if not self.predicts or self.num_samples is None:
            return
        for logits, flat in parts:
            if not one_class(flat, options):
                return
            if self._predictions is None:
                self._predictions = Predictions(self.num_samples, logits.device)
            if self._predictions.device != logits.device:
                self._predictions.to(logits.device)
            self._predictions.add_logits(logits, flat, self.group)

    @property
    def predictions(self) -> torch.Tensor | None:
        """Classes (N,) of the epoch that ended last on the host, -1 where not known, if any are."""
        return None if self._predicted is None else self._predicted.classes()

    @property
    def counted(self) -> int:
        """Rows of this rank since the epoch began or the ranks exchanged theirs."""
        return self._rows

    def restart(self, *, whole: bool) -> bool:
        """Forget the scores of the epoch, and unless all of them come again its rows, too.

        Returns
        -------
        bool
            False where other ranks have these scores already, and nothing can be forgotten.
        """
        if self._common_rows:
            return False
        if not self.ended:
            self.epoch = None
        if not whole:
            self._begin()
        return True

    def _current(self) -> Epoch | None:
        return None if self.ended else self.epoch

    def _of_kind(self, epoch: Epoch) -> Epoch:
        """Return the epoch as one of sequences, if a batch of any rank had several tokens a row."""
        single = self._tokens and isinstance(epoch, BySample)
        return BySequence.of_samples(epoch, self.reduce) if single else epoch  # type: ignore[arg-type]

    def _new_epoch(self, device: torch.device, *, tokens: bool | None = None) -> Epoch:
        n = self.num_samples
        if n is None:
            return ByStream(device)
        by_sequence = self._tokens if tokens is None else tokens
        if by_sequence:
            return BySequence(n, device, self.reduce)
        # What the ids are is seen in the first epoch.
        return BySample(n, device, repeats=not self.history)

    def end_epoch(
        self, step: int | None, batches: int | None, advice: str, window: int | None
    ) -> EpochSummary:
        """Summarise the epoch over all ranks; without any score raise, and give the advice."""
        step = None if step is None else check_count("step", step, least=0)
        columns = self._agree(-1 if batches is None else batches)
        # A rank without samples takes part, too.
        epoch = self._of_kind(self._current() or self._new_epoch(head_device(self.head)))
        if window is not None and isinstance(epoch, BySample):
            # It may be one of several epochs.
            epoch.counted = None
        moments, omitted = epoch.finish(self.group)
        came = int(moments.count) + omitted
        if came == 0:
            raise NoScoresError(
                f"an epoch must have scores, got none since the last `end_epoch`; {advice}"
            )
        summary = EpochSummary.from_summary(
            summarize(moments, beta=self.beta),
            epoch=len(self.history),
            step=step,
            omitted=omitted,
            expected=self._expected(came, *columns, of_epoch=window is None),
            window=window,
        )
        self.followed.end_epoch(self.group)
        self._merge_predictions()
        self._predicted, self._predictions = self._predictions, None
        if not isinstance(epoch, ByStream):
            self._assess(epoch, summary)
        self.history.append(summary)
        self._before = sum(columns[0], self._common_rows)
        self.epoch, self.ended = epoch, True
        self._begin()
        return summary

    def _assess(self, epoch: BySample | BySequence, summary: EpochSummary) -> None:
        """Add the epoch to the quality of the labels, where the scores are."""
        assert self.quality is not None  # noqa: S101  # made with `num_samples`
        if self._quality_device != epoch.device:
            # Its sums go by the host to where the next scores are.
            self.quality.load_state_dict(self.quality.state_dict())
            self._quality_device = epoch.device
        scores = epoch.scores(epoch.device)
        # NumPy shares the memory, and the core works on its arrays in blocks.
        self.quality.update(scores.numpy() if scores.device.type == "cpu" else scores, summary)

    def _merge_predictions(self) -> None:
        """Take over what the other ranks saw, where any keeps predictions."""
        if self.num_samples is None or not self._all_predict:
            return
        own = self._predictions
        self._predictions = own or Predictions(self.num_samples, head_device(self.head))
        self._predictions.synchronize(self.group)
        if self._predictions.empty:
            self._predictions = None

    def _agree(self, whole: int) -> list[list[int]]:
        """Return by rank the rows, the largest batch, the batches, and how many an epoch has.

        Raises on every rank where the ranks differ in N: one collective would break or hang.
        """
        own = [self.num_samples or 0, int(self.by_gradient), int(self._tokens)]
        own += [int(self._predictions is not None)]
        own += [self._rows, self._largest, self.batches, whole]
        stacked = torch.stack(gather(torch.tensor(own), self.group))
        sizes, changed, tokens, predict, *columns = stacked.T.tolist()
        self.all_by_gradient, self._tokens = any(changed), any(tokens)
        self._all_predict = any(predict)
        if len(set(sizes)) > 1:
            raise ValueError(
                "`num_samples` must be the same on all ranks, got "
                f"{', '.join(str(n or None) for n in sizes)}; it is the size of the whole "
                "training set and not of a rank's part"
            )
        return columns

    def _expected(
        self,
        came: int,
        rows: list[int],
        largest: list[int],
        batches: list[int],
        whole: list[int],
        *,
        of_epoch: bool,
    ) -> float | None:
        """Return how many scores a whole epoch has, or None where nobody knows."""
        if min(whole) >= 0 and sum(whole) > 0 and any(batches):
            return float(expected_samples(came, rows=sum(batches), total=sum(whole)))
        seen = sum(rows, self._common_rows)
        # Nobody counts how many sequences a batch of tokens has.
        if self.num_samples is None or not seen or self._tokens or not of_epoch:
            return None
        total = self.num_samples / self.every
        return float(
            expected_samples(came, rows=seen, total=total, batch=sum(largest), before=self._before)
        )

    def synchronize(self) -> None:
        """Take over what the other ranks saw."""
        if position(self.group)[1] == 1:
            return
        rows, *_ = self._agree(-1)
        epoch = self._of_kind(self._current() or self._new_epoch(head_device(self.head)))
        epoch.synchronize(self.group)
        if not epoch.empty:
            self.followed.synchronize(self.group)
            self._merge_predictions()
            self.epoch, self.ended, self._whole = epoch, False, True
            self._rows, self._common_rows = 0, sum(rows, self._common_rows)

    @property
    def scores(self) -> torch.Tensor | None:
        """Scores (N,) on the host, where there are any."""
        return None if self.epoch is None else self.epoch.scores()

    @property
    def label_quality(self) -> torch.Tensor | None:
        """Label quality (N,) on the host, where there is any."""
        value = None if self.quality is None else self.quality.value
        return None if value is None else torch.as_tensor(value).cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors on the host and plain values, with a version."""
        rank, world = position(self.group)
        epoch, predicted = self._current(), self._predictions
        if epoch is None and self._rows:
            # Of batches that are not scored yet.
            epoch = self._new_epoch(head_device(self.head))
        return {
            "version": STATE_VERSION,
            "num_samples": self.num_samples,
            "beta": self.beta,
            "history": [summary._asdict() for summary in self.history],
            "batches": self.batches,
            "rows": [self._rows, self._common_rows, self._largest],
            "before": self._before,
            "rank": rank,
            "world": world,
            "whole": world == 1 or self._whole,
            "epoch": None if epoch is None else epoch.state_dict(),
            "tokens": self._tokens,
            "predicts": self.predicts,
            "predictions": None if predicted is None else predicted.state_dict(),
            "signals": self.followed.state_dict(),
            "quality": None if self.quality is None else made_of_tensors(self.quality.state_dict()),
        }

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, also in the middle of an epoch."""
        found = state.get("version"), state.get("num_samples")
        if found != (STATE_VERSION, self.num_samples):
            raise ValueError(
                f"`state` must be of version {STATE_VERSION} and num_samples={self.num_samples}, "
                f"got {found[0]!r} and {found[1]!r}; it is of another gwa-core or training set"
            )
        place, epoch, alone = position(self.group), None, False
        tokens = bool(state.get("tokens"))
        if state["epoch"] is not None:
            if not state["whole"] and place != (state["rank"], state["world"]):
                raise ValueError(
                    f"`state` must be of rank {place[0]} of {place[1]}, got one of rank "
                    f"{state['rank']} of {state['world']} from the middle of an epoch; call "
                    "`synchronize` on all ranks before `state_dict`, then any serves all"
                )
            # What one process saw goes on at the first rank, or each rank would count it.
            alone = state["world"] == 1 and place[1] > 1
            if place[0] == 0 or not alone:
                epoch = self._new_epoch(head_device(self.head), tokens=tokens)
                epoch.load_state_dict(state["epoch"])
                if alone and not isinstance(epoch, BySample):
                    epoch.own_all()
        self.followed.load_state_dict(state["signals"], in_progress=epoch is not None)
        if self.quality is not None:
            self.quality.load_state_dict(made_of_arrays(state["quality"]))
            self._quality_device = None
        self.beta, self._tokens = state["beta"], tokens
        self.history = [EpochSummary(**summary) for summary in state["history"]]
        self._before = state["before"]
        self._begin()
        self.predicts |= bool(state.get("predicts"))
        self._predictions = self._predicted = None
        if epoch is not None and (predicted := state.get("predictions")) is not None:
            self._predictions = Predictions(self.num_samples or 0, epoch.device)
            self._predictions.load_state_dict(predicted)
        if epoch is not None:
            self.batches = state["batches"]
            self._rows, self._common_rows, self._largest = state["rows"]
        self.resumed = True
        self.epoch, self.ended, self._whole = epoch, False, state["whole"] and not alone
