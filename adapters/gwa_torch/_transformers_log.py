"""The log of the Trainer: what is new in it, what is to come, and the scores in its trackers."""

from __future__ import annotations

import warnings
from typing import Any

from gwa_torch._loggers import to_transformers

__all__ = ["is_coming", "never_comes", "new_logs", "say_unseen", "show_scores"]


def new_logs(state: Any, history: list[Any]) -> dict[str, float]:
    """Return what was logged since the epoch before the last one ended."""
    before = history[-2].step if len(history) > 1 else 0
    rows = [row for row in state.log_history if row["step"] > before]
    return {name: value for row in rows for name, value in row.items()}


def is_coming(trainer: Any, control: Any, signal: str) -> bool:
    """Tell whether the trainer will log a metric at the end of this epoch."""
    if signal.startswith("eval_"):
        return bool(control.should_evaluate)
    return bool(control.should_log and trainer.state.global_step > trainer._globalstep_last_logged)


def never_comes(args: Any, state: Any, signal: str) -> bool:
    """Tell whether a metric was not logged by now, and no evaluation is to come first."""
    came = {name for row in state.log_history for name in row}
    evaluated = any(name.startswith("eval_") for name in came)
    # Not every epoch may have an evaluation.
    later = signal.startswith("eval_") and args.eval_strategy != "no" and not evaluated
    return not (later or signal in came)


def say_unseen(signal: str) -> None:
    """Warn that the metric of the rule never came."""
    warnings.warn(
        f"the rule watches {signal!r}, which no evaluation has logged; usual cause: `eval_steps` or "
        "`eval_delay` is longer than the training",
        stacklevel=3,
    )


def show_scores(trainer: Any, name: str, scores: Any, *, epoch: int) -> None:
    """Have the trackers show the scores of an epoch, where there are any."""
    state = trainer.state
    if scores is not None and state.is_world_process_zero:
        callbacks = trainer.callback_handler.callbacks
        to_transformers(callbacks, name, scores, step=state.global_step, epoch=epoch)
