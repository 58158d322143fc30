"""A metric of the module's own that a rule watches, in the log of Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from gwa_core import EarlyStopper

__all__ = ["LoggedMetric"]


class LoggedMetric:
    """The newest value of a metric: Lightning keeps the old ones, and not every epoch has one."""

    def __init__(self) -> None:
        # The value of this epoch, and the last one seen.
        self.value: Any = None
        self._seen: Any = None
        # In this fit, whether it came, and whether there was a validation.
        self.came = self.validated = False
        # Whether a validation brings it, and no training step.
        self._of_validation = False

    def begin(self) -> None:
        """Begin a fit."""
        self.value, self.came, self.validated = None, False, False
        self._of_validation = False

    def restore(self, value: float | None) -> None:
        """Take over the value of an epoch in progress."""
        self.value, self.came = value, value is not None

    def look(self, trainer: Trainer, signal: str, *, validation: bool = False) -> None:
        """Take the value, if it is a new one; one of a validation at the end of one alone."""
        if self._of_validation and not validation:
            return
        value = trainer.callback_metrics.get(signal)
        if value is not None and value is not self._seen:
            self._seen = self.value = value
            self._of_validation = self._of_validation if self.came else validation
            self.came = True

    def after_validation(
        self, trainer: Trainer, stopper: EarlyStopper | None, *, windows: bool
    ) -> None:
        """Take the value that a validation has logged, if there is one."""
        self.validated = True
        if stopper is not None:
            self.look(trainer, stopper.rule.signal, validation=windows)

    def take(self, trainer: Trainer, signal: str) -> dict[str, Any] | None:
        """Return what was logged, or None where the metric has no new value; all ranks take part."""
        logged = dict(trainer.callback_metrics)
        self.look(trainer, signal)
        value = self.number
        # Not every epoch may have a validation.
        later = self.came or (trainer.enable_validation and not self.validated)
        # It may differ between the processes, or be logged by the first one alone.
        value, later = trainer.strategy.broadcast((value, later))
        self.value = None
        logged.pop(signal, None)
        if value is None:
            return None if later else logged
        return logged | {signal: value}

    @property
    def number(self) -> float | None:
        """The value as a plain number."""
        return None if self.value is None else float(self.value)
