"""The weights that a training with the Trainer of Transformers keeps."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from gwa_core import EarlyStopper, MaxSeparation, Rule
from gwa_torch._keep import Average, check_keep, refuse_shards
from gwa_torch._loaders import from_the_start
from gwa_torch._methods import Methods
from gwa_torch._trainers import resume_rule

__all__ = ["Keep", "begin_average", "choose", "end_average", "ends_first", "restore_rule"]

AVERAGE_NAME = "gwa-average"

Keep: TypeAlias = Literal["average", "best", "last"] | None
"""What a model has at the end of a training; None is the best under a rule, else the last."""


def choose(args: Any, keep: Keep, rule: Rule | None) -> tuple[Keep, Rule | None]:
    """Return what is kept and the rule, or refuse what the arguments of the training contradict."""
    check_keep(keep, ("average", "best", "last", None))
    keep = keep or ("last" if rule is None else "best")
    metric = args.metric_for_best_model
    if keep == "best" and metric is not None:
        raise ValueError(
            f"`metric_for_best_model` must be None where a rule restores the best epoch, got "
            f'{metric!r}; leave `load_best_model_at_end` out, or say keep="last"'
        )
    if keep == "average" and args.load_best_model_at_end:
        raise ValueError(
            '`load_best_model_at_end` must be False under keep="average", got True; the model has '
            "either the average of the weights or those of one checkpoint"
        )
    return keep, MaxSeparation() if keep == "best" and rule is None else rule


def restore_rule(
    stopper: EarlyStopper | None, kept: Mapping[str, Any] | None, rule: Rule | None
) -> None:
    """Have a rule go on as in the run that is resumed, or say that this one had another."""
    if (stopper is None) != (kept is None):
        began = "without one" if kept is None else f"with {kept['rule']}"
        raise ValueError(
            f"`rule` must be the one of the resumed run, got {rule!r}; the run began {began}"
        )
    if stopper is not None and kept is not None:
        resume_rule(stopper, kept)


def begin_average(trainer: Any, model: nn.Module, epochs: int | None) -> Average:
    """Begin the average of a model, or refuse one in shards."""
    if trainer.is_deepspeed_enabled:
        refuse_shards("DeepSpeed")
    if trainer.is_fsdp_enabled or trainer.is_fsdp_xla_enabled:
        refuse_shards("FSDP")
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        refuse_shards("parameters that are sharded (DTensor)")
    return Average(model, epochs)


def end_average(average: Average, trainer: Any, loader: Iterable[Any], batches: int | None) -> str:
    """Give the model the average, save it beside the checkpoints, and say so.

    Parameters
    ----------
    average : Average
        The average.
    trainer : Trainer
        The trainer at the end of the training. All processes must call it.
    loader : iterable
        The batches of the training.
    batches : int or None
        How many of them are an epoch, where that is known.

    Returns
    -------
    str
        The folder, or an empty string where nothing is saved.
    """
    model, args = trainer.model, trainer.args
    training = model.training
    # As in each step of the trainer.
    model.train()
    limit = args.max_steps * args.gradient_accumulation_steps if batches is None else batches
    said = average.end(_passes(trainer, loader, limit))
    if not training:
        model.eval()
    folder = ""
    if args.save_strategy != "no":
        folder = str(Path(trainer._get_output_dir(trainer._trial)) / AVERAGE_NAME)
        # Not to the hub.
        trainer.save_model(folder, _internal_call=True)
    where = folder and f"; it is in {folder}"
    logging.getLogger("transformers.trainer").info("GWACallback: %s%s.", said, where)
    return folder


@contextlib.contextmanager
def ends_first(trainer: Any, callback: Any) -> Iterator[None]:
    """Have a callback come first at the end of a training: trackers then save what it leaves."""
    handler = trainer.callback_handler

    def end(call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        # Only there: during a training the trainer's own callbacks must come first.
        place = handler.callbacks.index(callback)
        handler.callbacks.insert(0, handler.callbacks.pop(place))
        try:
            return call(*args, **more)
        finally:
            handler.callbacks.remove(callback)
            handler.callbacks.insert(place, callback)

    methods = Methods(handler)
    methods.wrap("on_train_end", end)
    try:
        yield
    finally:
        methods.restore()


def _passes(trainer: Any, loader: Iterable[Any], batches: int) -> Iterator[Any]:
    """Make a pass for each batch, as the training does."""
    with from_the_start([loader]):
        for inputs in itertools.islice(loader, batches):
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs))
            yield loss
