"""Where the scores of a batch come from: the closed form of the loss, or the gradient itself."""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gwa_core.agreement import SHARE
from gwa_torch._batches import Batch, Scored, compare_sums, joined, seen
from gwa_torch._capture import Capture
from gwa_torch._evidence import Evidence, compare
from gwa_torch._forward import Forward
from gwa_torch._gradients import Arrival
from gwa_torch._keeper import Keeper
from gwa_torch._stage import Stage
from gwa_torch._targets import Flat, LossOptions

__all__ = ["FORMULA", "RESIDUALS", "Residuals", "check_residual"]

RESIDUALS = ("auto", "formula", "backward")

# After the first checks, one batch in so many is checked.
EVERY = 256

# Batches in which no row can tell, all of them saturated, until the next one is checked later.
MOST_IDLE = 4

# Batches that wait for a backward pass, as one backward of many small batches has them.
MOST_WAITING = 256

# The same where no gradient has ever come; each holds the arrays of its pass.
MOST_UNPROVED = 8

UNCHECKED = (
    "no gradient arrived at the output of the head, and the scores use the closed form of "
    "loss={loss!r} without a check. Usual causes: no backward pass, or two through one output; a compiled model with "
    "more than 16,384 rows or 16 million logits a pass, or moved to another device after the "
    "monitor was made; a checkpoint with use_reentrant=True around the head. If this is your loss, "
    "say residual='formula'"
)

DIFFERENT = (
    "the closed form of loss={loss!r} is not the gradient of your loss: in {differing:.0f} of "
    "{rows:.0f} rows the scores differ, by up to {largest:.2g}. From now on they come from the "
    "gradient (residual='backward'){past}. Usual causes: a temperature, scale or soft cap after "
    "the head; labels that are not shifted; pos_weight; a class prior or mask; weights of classes or tokens; label smoothing, "
    "mixup or distillation that `update` was not told of; another head"
)


NO_SUMS = (
    "`reduce` must be 'mean' or 'min' where the scores come from the gradient of a compiled or "
    "pooled pass, got 'gradient': that gradient is not kept. Say residual='formula' where the "
    "closed form is that of your loss"
)

NOT_KEPT = (
    "the closed form of loss={loss!r} is not the gradient of your loss, and reduce='gradient' has no "
    "other way in a compiled or pooled pass: the scores are not those of your sequences. Say "
    "reduce='mean' or 'min', which go over to the gradient, or do not compile the model"
)

# Frames that a warning is not about.
OURS = ("gwa_torch", "torch")


def check_residual(residual: str) -> None:
    """Refuse what is none of the three ways."""
    if residual not in RESIDUALS:
        raise ValueError(
            f"`residual` must be one of {', '.join(map(repr, RESIDUALS))}, got {residual!r}"
        )


def _warn(message: str) -> None:
    """Warn at the line of the user that led here."""
    frame, level = sys._getframe(1), 2
    # Code that runs by `exec` may have no name.
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


# The state of a monitor that had the closed form alone.
FORMULA = {"used": "formula", "batches": 0, "arrived": False, "tapping": True, "stage": None}


class Residuals:
    """Scores batches, and changes from the closed form to the gradient where the two differ.

    Parameters
    ----------
    residual : {"auto", "formula", "backward"}
        What the user said.
    capture : Capture
        The hook on the head.
    keeper : Keeper
        Where the scores go.
    closed : callable
        The scores of a pass and its targets by the closed form.
    options : callable
        What the closed form depends on.
    """

    def __init__(
        self,
        residual: str,
        capture: Capture,
        keeper: Keeper,
        closed: Callable[[Forward, Flat], torch.Tensor],
        options: Callable[[], LossOptions],
    ) -> None:
        self.asked = residual
        self.used = "backward" if residual == "backward" else "formula"
        self._capture = capture
        self._keeper = keeper
        self._closed = closed
        self._options = options
        self._stage = Stage(options, keeper.num_samples)
        self._waiting: deque[Batch] = deque()
        # Verdicts on their way from the device.
        self._verdicts: deque[tuple[Arrival, Scored | None]] = deque()
        self._batches = 0
        # Batches of the epoch scored from their gradient, until a verdict says that this was not
        # needed; None after that.
        self._beside: list[Scored] | None = []
        # Whether a gradient ever came, and whether it was said that none did.
        self._arrived = self._said = False
        # Whether passes may wait that ran before the change.
        self._changed = False
        self._missing = 0
        # Checks in turn in which no row could tell.
        self._idle = 0

    @property
    def _auto(self) -> bool:
        return self.asked == "auto" and self.used == "formula"

    def put(self, forwards: list[Forward], flat: Flat) -> None:
        """Score a batch now, or when its gradient has come."""
        changed, self._changed = self._changed, False
        if changed and any(forward.tap is None for forward in forwards):
            # It ran before the change was known, and is left out with the batches before it.
            self._keeper.batches -= 1
            return
        parts, start = [], 0
        for forward in forwards:
            part = flat if len(forwards) == 1 else flat.part(start, start + forward.samples)
            parts.append((forward, part))
            start += forward.samples
        self._count(flat.samples)
        closed = self._by_formula(parts, flat) if self.used == "formula" else None
        self._keeper.predict([(made.logits, part) for made, part in parts], self._options())
        if self._taps(due=self._capture.tapping):
            self._wait(parts, flat, closed)
        self._capture.tapping = self._taps(due=self._is_due())

    def _count(self, rows: int) -> None:
        self._keeper.count(rows)
        self._batches += 1

    def _taps(self, *, due: bool) -> bool:
        """Whether a batch needs its gradient, if a check is due."""
        return self.used == "backward" or (self._auto and due)

    def _is_due(self) -> bool:
        """Whether the next batch is checked."""
        n = self._batches
        often = n < EVERY and n & (n - 1) == 0
        return self._beside is not None or often or n % EVERY == 0

    def _wait(
        self, parts: list[tuple[Forward, Flat]], flat: Flat, closed: torch.Tensor | None
    ) -> None:
        """Have a batch wait for its backward pass, which may have been already."""
        taps = [forward.tap for forward, _ in parts]
        for tap in taps:
            if tap is not None:
                tap.own()
        known = all(tap is not None for tap in taps)
        options = self._options()
        wanted = parts if known and self._auto else []
        evidence = [Evidence.of(*part, options) for part in wanted]
        owned = flat.owned(parts[0][0].logits.device)
        sums = (parts, closed) if self._by_sums(flat) else ([], None)
        self._waiting.append(Batch(taps, owned, evidence, *sums))
        self.settle()

    def _by_sums(self, flat: Flat) -> bool:
        """Whether the scores are those of gradients of sequences."""
        return flat.tokens and self._keeper.reduce == "gradient"

    def stage(self, targets: Any, ids: torch.Tensor | None) -> bool:
        """Keep a small batch on the host, to be scored with others; False where it is another."""
        gradient = self._taps(due=self._capture.tapping)
        if gradient or not self._stage.takes(targets, ids):
            return False
        if (forward := self._capture.sole(targets.shape[0])) is None:
            return False
        if self._stage.is_full(forward):
            self.flush()
        self._stage.put(forward, targets, ids)
        self._keeper.batches += 1
        self._count(targets.shape[0])
        self._capture.tapping = self._taps(due=self._is_due())
        return True

    def _by_formula(self, parts: list[tuple[Forward, Flat]], flat: Flat) -> torch.Tensor:
        self.flush()
        scores = joined([self._closed(*part) for part in parts])
        self._keeper.add(scores, flat.to(scores.device))
        return scores

    def flush(self) -> None:
        """Score the rows that wait for others, to be scored together."""
        if self._stage.rows:
            self._stage.give(self._keeper)

    def settle(self, *, newest: bool = False, last: bool = False) -> None:
        """Take the scores of the backward passes that have come.

        Parameters
        ----------
        newest : bool
            Also of a compiled pass that came last, of which nobody can tell whether its backward
            pass has been.
        last : bool
            Stop waiting for gradients that have not arrived.
        """
        while self._waiting:
            batch = self._waiting[0]
            if batch.silent and len(self._waiting) == 1 and not (newest or last):
                break
            scores = batch.scores()
            if scores is None and not (last or self._is_late(batch)):
                break
            self._waiting.popleft()
            self._take(batch, scores)
        self._judge(wait=last)
        if last:
            self.flush()

    def _is_late(self, batch: Batch) -> bool:
        """Whether a batch will have no gradient: it can have none, or a later one has come."""
        most = MOST_WAITING if self._arrived or self.used == "backward" else MOST_UNPROVED
        if len(self._waiting) > most or any(
            tap is None or tap.error is not None for tap in batch.taps
        ):
            return True
        # The batch that came last may be of the same backward pass.
        return any(x.scores() is not None for x in list(self._waiting)[1:-1])

    def _take(self, batch: Batch, scores: torch.Tensor | None) -> None:
        self._arrived |= scores is not None
        kept = scores is not None
        if batch.parts and kept:
            scores = batch.sums()
            if scores is None and self.used == "backward":
                raise RuntimeError(NO_SUMS)
        if self.used == "backward":
            self._missing += scores is None
            if scores is None:
                scores = torch.full((batch.flat.samples,), torch.nan)
            self._keeper.add(scores, seen(scores, batch.flat.to(scores.device)))
            return
        if scores is None:
            # What comes later cannot replace all of the epoch.
            self._beside = None
            if kept:
                # The scores of the tokens say whether the closed form is right.
                self._verdicts.append((Arrival(compare(batch.taps, batch.evidence)), None))
            return
        scored = Scored(scores, seen(scores, batch.flat.to(scores.device)))
        if self._beside is not None:
            self._beside.append(scored)
        verdict = compare(batch.taps, batch.evidence)
        if batch.closed is not None:
            weights = compare_sums(scores, batch.closed, scored.flat.where)
            worse = weights[1] * verdict[0] > verdict[1] * weights[0]
            verdict = torch.where(worse, weights.to(verdict), verdict)
        self._verdicts.append((Arrival(verdict), scored))

    def _judge(self, *, wait: bool) -> None:
        while self._verdicts and (wait or self._verdicts[0][0].here):
            arrival, scored = self._verdicts.popleft()
            rows, differing, largest = arrival.get()
            self._idle += not rows
            if differing > SHARE * rows and scored is None:
                # A gradient that is not kept cannot be gone over to.
                self._asked_no_more()
                _warn(NOT_KEPT.format(loss=self._options().loss))
            elif differing > SHARE * rows:
                assert scored is not None  # noqa: S101  # the other case
                later = [scored, *(other for _, other in self._verdicts if other is not None)]
                past = self._change(later)
                found = {"rows": rows, "differing": differing, "largest": largest, "past": past}
                _warn(DIFFERENT.format(loss=self._options().loss, **found))
            elif rows or self._idle == MOST_IDLE:
                self._beside, self._idle = None, 0

    def _asked_no_more(self) -> None:
        """Stop checking, with what was said."""
        self.asked, self._beside = "formula", None
        self._capture.tapping = False
        self._verdicts.clear()

    def _change(self, later: list[Scored]) -> str:
        """Go over to the gradient, and say what became of the epoch so far.

        Parameters
        ----------
        later : list of Scored
            The batch that was found to differ, and those after it with a gradient.
        """
        self.flush()
        self.used, self._capture.tapping, self._changed = "backward", True, True
        self._keeper.by_gradient = True
        beside, self._beside = self._beside, None
        self._verdicts.clear()
        waiting = [batch.flat.samples for batch in self._waiting]
        replaced = sum(scored.flat.samples for scored in beside or []) + sum(waiting)
        whole = beside is not None and replaced == self._keeper.counted
        if not self._keeper.restart(whole=whole):
            return "; what this epoch had before stays as it was"
        kept = (beside or []) if whole else later
        if not whole:
            for rows in [*(scored.flat.samples for scored in kept), *waiting]:
                self._keeper.count(rows)
                self._keeper.batches += 1
        for scored in kept:
            self._keeper.add(*scored)
        return "" if whole else "; what this epoch had before is left out"

    def end_epoch(self) -> None:
        """Be done with the epoch, and say what could not be checked."""
        self.settle(last=True)
        if self._auto and self._batches and not self._arrived and not self._said:
            self._said = True
            _warn(UNCHECKED.format(loss=self._options().loss))
        if self._missing:
            _warn(
                f"{self._missing} batches had no gradient at the output of the head, so that their "
                "samples have no score; usual causes: no backward pass, or two through one "
                "output; logits that were changed in place; a compiled model with more than 16,384 "
                "rows a pass"
            )
            self._missing = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what is in use, when the next check is, and rows that wait for others."""
        self.settle(newest=True)
        return {
            "used": self.used,
            "batches": self._batches,
            "arrived": self._arrived,
            "tapping": self._capture.tapping,
            "stage": self._stage.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as a run that was saved."""
        self._stage.load_state_dict(state["stage"])
        self._waiting.clear()
        self._verdicts.clear()
        if self.asked == "auto":
            self.used = state["used"]
        elif self.used != state["used"] and self._keeper.epoch is not None:
            _warn(
                f"the epoch in the state has scores of residual={state['used']!r}, and goes on with "
                f"residual={self.used!r}; its summary has both"
            )
        self._keeper.by_gradient = self.used == "backward"
        self._batches, self._arrived = state["batches"], state["arrived"]
        # What the epoch had before cannot be scored from its gradient any more.
        self._beside = None
        self._capture.tapping = self._taps(due=state["tapping"])

    def begin_epoch(self) -> None:
        """Watch the first batch of the next epoch, and do as the other ranks."""
        if self._auto and self._keeper.all_by_gradient:
            self._change([])
            self._capture.always = True
            _warn(
                "another rank found that the closed form is not the gradient of your loss: the next "
                "epoch has scores from the gradient on all ranks, and this one had both"
            )
        if self._auto:
            self._beside, self._capture.tapping = [], True
