"""What the adapters to trainers share: options, targets and ids of a batch, log keys, the rule."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from gwa_core import BestMetric, EarlyStopper, EpochSummary, Rule
from gwa_core.signals import SIGNALS
from gwa_torch._keep import Average
from gwa_torch._keeper import NoScoresError
from gwa_torch.averaging import AveragedWeights
from gwa_torch.monitor import GWAMonitor

__all__ = [
    "Pick",
    "Watched",
    "begin_stopper",
    "best_values",
    "check_options",
    "end_record",
    "find_targets",
    "pick_ids",
    "pick_targets",
    "resume_rule",
]

# A callback itself brings head, model and targets.
OWN = ("head", "num_samples", "model", "criterion")
OPTIONS = tuple(name for name in inspect.signature(GWAMonitor).parameters if name not in OWN)

Pick: TypeAlias = str | int | Callable[[Any], torch.Tensor] | None
"""A key or position in a batch, a function of the batch, or None for the usual one."""

TARGETS = ("labels", "label", "targets", "target", "y")
IDS = ("ids", "id", "idx", "index", "indices", "sample_id")


class Watched:
    """What a callback shows of its monitor and its rule."""

    monitor: GWAMonitor | None = None
    stopper: EarlyStopper | None = None
    _average: Average | None = None

    @property
    def averaged(self) -> AveragedWeights | None:
        """The average of the weights under ``keep="average"``, from the start of a training on."""
        return None if self._average is None else self._average.weights

    @property
    def history(self) -> list[EpochSummary]:
        """Ended epochs in order."""
        return [] if self.monitor is None else self.monitor.history

    @property
    def scores(self) -> torch.Tensor | None:
        """Scores (N,) of the epoch in progress, or of the one that ended last; see `GWAMonitor`."""
        return None if self.monitor is None else self.monitor.scores

    @property
    def label_quality(self) -> torch.Tensor | None:
        """Label quality (N,) over the ended epochs, low = suspicious; see `GWAMonitor`."""
        return None if self.monitor is None else self.monitor.label_quality

    @property
    def best_epoch(self) -> int | None:
        """The best epoch by the rule so far, or None."""
        return None if self.stopper is None else self.stopper.best_step

    @property
    def stopping_reason(self) -> str | None:
        """Why the rule stopped, or None if it did not."""
        return self.stopper.reason if self.stopper and self.stopper.should_stop else None

    @property
    def _hooked(self) -> GWAMonitor:
        assert self.monitor is not None  # noqa: S101  # made when training starts
        return self.monitor

    def _record(self) -> dict[str, Any]:
        """Return the summary of the epoch that ended last, with the means of its signals."""
        return {**self._hooked.history[-1]._asdict(), **signal_means(self._hooked)}

    def _values(self, prefix: str, stopper: EarlyStopper | None = None) -> dict[str, float]:
        """Return the numbers to log for the epoch that ended last, with its share in the average."""
        share = {} if self._average is None else self._average.values(prefix)
        return {**log_values(self._hooked, prefix, stopper), **share}

    def _observe(self, metrics: Mapping[str, Any]) -> bool:
        """Show the epoch that ended last to the rule, with what else was logged.

        Returns
        -------
        bool
            Whether it is the best so far.
        """
        assert self.stopper is not None  # noqa: S101  # asked before
        # The trainers log an epoch and a step of their own.
        epoch = self.history[-1].epoch
        self.stopper.observe({**metrics, **self._record()}, step=epoch)
        return self.stopper.best_step == epoch


def end_record(
    monitor: GWAMonitor, step: int, *, batches: int | None, steps: int, window: int | None
) -> bool:
    """End an epoch or a window of steps, and tell whether it had scores on any rank.

    Parameters
    ----------
    monitor : GWAMonitor
        The monitor.
    step : int
        The step of the optimiser.
    batches : int or None
        How many a whole epoch has.
    steps : int
        How many there were since the window before.
    window : int or None
        How many a whole window has; None for epochs.
    """
    if window is None:
        monitor.end_epoch(step, batches=batches)
        return True
    # Steps may have unlike numbers of batches, as the last one of an epoch under accumulation.
    batches = round(monitor._keeper.batches * window / max(1, steps))
    try:
        monitor.end_epoch(step, batches=batches, window=window)
    except NoScoresError:
        warnings.warn(
            f"GWACallback leaves out the window that ends at step {step}, in which no sample had a "
            "score; usual cause: labels that are all ignored",
            stacklevel=2,
        )
        return False
    return True


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that `GWAMonitor` does not have, before training starts."""
    # Parsers of configuration files pass all that GWAMonitor takes, `criterion=None` as well.
    given = {name for name in options if name != "criterion" or options[name] is not None}
    if unknown := sorted(given - set(OPTIONS)):
        raise TypeError(
            f"`options` must be among {', '.join(OPTIONS)}, got {', '.join(unknown)}; they are "
            "handed to GWAMonitor"
        )


def begin_stopper(
    rule: Rule | None, epochs: int | None, monitor: GWAMonitor
) -> EarlyStopper | None:
    """Return a stopper of a rule, or say now what would fail at the end of the first epoch."""
    if rule is None:
        return None
    followed = () if monitor.signals is None else monitor.signals.names
    # A metric of the user's own may have any name.
    known = rule.signal in SIGNALS and not isinstance(rule, BestMetric)
    if known and rule.signal not in followed:
        raise ValueError(
            f"`signals` must have what the rule watches, {rule.signal!r}, got "
            f"{', '.join(followed) or 'none'}; say GWACallback(..., signals={rule.signal!r})"
        )
    try:
        return EarlyStopper(rule, total_steps=epochs)
    except ValueError as error:
        raise ValueError(
            "`rule` must have a warm-up in whole epochs where their number is not known, got "
            f"{rule!r}; say {type(rule).__name__}(warmup=2), or how many epochs there are"
        ) from error


def resume_rule(stopper: EarlyStopper, state: Mapping[str, Any]) -> None:
    """Have a rule go on as in the run that is resumed."""
    total = stopper.total_steps
    stopper.load_state_dict(state)
    # A run may go on for longer than it was meant to.
    stopper.total_steps = total


def find_targets(batch: Any, pick: Pick, monitor: GWAMonitor) -> torch.Tensor | None:
    """Return the targets of a batch; what is measured by its gradient may have none."""
    unsaid = pick is None and monitor.signals is None
    if unsaid and monitor._residuals.asked == "backward":
        return None
    return pick_targets(batch, pick)


def pick_targets(batch: Any, pick: Pick = None) -> torch.Tensor:
    """Return the targets of a batch: by default the second of a tuple, or the labels of a dict."""
    return _pick("targets", batch, pick, 1, TARGETS)


def pick_ids(batch: Any, pick: Pick = None) -> torch.Tensor:
    """Return the ids of a batch: by default the third of a tuple, or the ids of a dict."""
    return _pick("ids", batch, pick, 2, IDS)


def _pick(name: str, batch: Any, pick: Pick, place: int, keys: tuple[str, ...]) -> torch.Tensor:
    if callable(pick):
        return pick(batch)
    try:
        if pick is not None:
            found = batch[pick]
        elif isinstance(batch, Mapping):
            found = next(batch[key] for key in keys if key in batch)
        elif isinstance(batch, Sequence):
            found = batch[place]
        else:
            found = None
    except (StopIteration, IndexError, KeyError, TypeError):
        found = None
    if isinstance(found, torch.Tensor):
        return found
    usual = f"item {place} of a tuple or one of the keys {', '.join(keys)}"
    where = usual if pick is None else repr(pick)
    if name == "ids" and _has_strings(found):
        raise ValueError(
            f"`ids` must be integers, got strings in {where}, such as {found[0]!r}; number the "
            "samples 0..N-1 by gwa_torch.with_ids(dataset), and look the strings up by the number"
        )
    has = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
    size = f" of {len(batch)}" if isinstance(batch, Sequence) else ""
    advice = f"pass `{name}=` with a key, a position or a function of the batch"
    if name == "ids":
        advice = f"wrap the data set in gwa_torch.with_ids, or {advice}"
    raise ValueError(
        f"`{name}` must be found in the batch as a tensor, as {where}, got {has}{size}; {advice}"
    )


def _has_strings(x: Any) -> bool:
    return isinstance(x, Sequence) and not isinstance(x, str) and any(isinstance(i, str) for i in x)


def log_values(
    monitor: GWAMonitor, prefix: str, stopper: EarlyStopper | None = None
) -> dict[str, float]:
    """Return the numbers to log for the epoch that ended last, with what the rule says by now."""
    summary = monitor.history[-1]
    return {
        f"{prefix}gwa": summary.gwa,
        f"{prefix}gwa_mean": summary.mean,
        f"{prefix}gwa_kurtosis": summary.kurtosis,
        f"{prefix}gwa_se": summary.gwa_standard_error,
        f"{prefix}gwa_bimodality": summary.bimodality,
        f"{prefix}gwa_separation": summary.separation,
        # Loggers take numbers.
        f"{prefix}gwa_healthy": float(summary.healthy),
        **{f"{prefix}{name}": mean for name, mean in signal_means(monitor).items()},
        **best_values(stopper, prefix),
    }


def best_values(stopper: EarlyStopper | None, prefix: str) -> dict[str, float]:
    """Return the best epoch so far to log, where there is one."""
    best = None if stopper is None else stopper.best_step
    return {} if best is None else {f"{prefix}gwa_best_epoch": float(best)}


def signal_means(monitor: GWAMonitor) -> dict[str, float]:
    """Return the means of the signals in the epoch that ended last."""
    return monitor.signals.history[-1] if monitor.signals else {}
