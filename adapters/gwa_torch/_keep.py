"""The average of the weights in a trainer: the share of each epoch, its state, and its end."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from gwa_core import EpochAverage, warmup_steps
from gwa_torch._distributed import position
from gwa_torch.averaging import AveragedWeights

__all__ = ["Average", "Keep", "check_keep", "refuse_shards"]

Keep: TypeAlias = Literal["average", "best"] | None
"""Whether a model ends a training with the average of its weights, or with one epoch's weights."""


class Average:
    """The average of the weights, from the start of a training to its end.

    Parameters
    ----------
    model : nn.Module
        The model in training.
    epochs : int or None
        Number of epochs, of which the first tenth is the warm-up. Where it is not known, the
        warm-up is the first epoch.
    """

    def __init__(self, model: nn.Module, epochs: int | None) -> None:
        rule = EpochAverage(warmup=1) if epochs is None else EpochAverage(total_steps=epochs)
        self.weights = AveragedWeights(model, rule)
        self._model = model
        # Of the epoch that ended last.
        self._share: float | None = None

    def update(self, record: Mapping[str, Any]) -> None:
        """Take in the weights that the model has at the end of an epoch."""
        self._share = self.weights.update(record)

    def values(self, prefix: str) -> dict[str, float]:
        """Return the share of the epoch that ended last, to be logged."""
        return {} if self._share is None else {f"{prefix}gwa_share": self._share}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors on the host, which nothing changes later, and plain values."""
        state = self.weights.state_dict()
        for name in ("mean", "statistics"):
            state[name] = {key: x.to("cpu", copy=True) for key, x in state[name].items()}
        return {"weights": state, "share": self._share}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take over a state, and the warm-up that it began with; without one, begin here."""
        if state is None:
            rule = self.weights.average
            first = warmup_steps(rule.warmup, rule.total_steps)
            _say(
                "the checkpoint has no average of the weights, because its run was without "
                'keep="average"; the average begins now, with a warm-up of '
                f"{first} epoch{'s' * (first != 1)}, and the epochs before do not count"
            )
            return
        began = state["weights"]["average"]
        rule = EpochAverage(**began["options"], total_steps=began["total_steps"])
        self.weights = AveragedWeights(self._model, rule)
        self.weights.load_state_dict(state["weights"])
        self._share = state["share"]

    def end(self, passes: Iterable[Any]) -> str:
        """Give the model the average.

        Parameters
        ----------
        passes : iterable
            Makes a forward pass in train mode for each batch of the training data, as it goes. It is
            run through if the model has batch norm, whose statistics must be those of the average.

        Returns
        -------
        str
            What the model has now, to be said.
        """
        counted = self.weights.average.counted
        if not counted:
            _say(
                "no epoch counts in the average of the weights, and the model has those of the end; "
                "usual cause: the training ended within its warm-up or its first epoch, or separation "
                "is 0 in each epoch, because the scores have one group"
            )
            return "the model has the weights of the end"
        said = f"the model has the average of {counted} epoch{'s' * (counted > 1)}"
        if self.weights.has_batch_norm:
            said += ", and statistics of batch norm from one more pass over the training data"
            try:
                with same_random_numbers():
                    self.weights._measure(passes)
            except Exception as error:  # whatever a model of the user's may raise
                _say(
                    "the statistics of batch norm are those of the last epoch, because a pass over "
                    f"the training data failed: {type(error).__name__}: {error}; call "
                    "`callback.averaged.update_bn(loader)` and `callback.averaged.copy_to()`"
                )
                said = said.partition(",")[0]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the model has batch norm")  # said already
            self.weights.copy_to()
        return said


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave the random numbers of Python, NumPy and PyTorch as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's
    begun = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if begun else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def check_keep(keep: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse what cannot be kept."""
    if keep not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"`keep` must be one of {names}, got {keep!r}")


def refuse_shards(how: str) -> None:
    """Say that weights in shards are not averaged by a trainer's callback."""
    raise ValueError(
        f'`keep="average"` must have whole weights on each process, got {how}, whose shards are not '
        "in the state that the first process saves; in a loop of your own "
        "gwa_torch.AveragedWeights averages them where they lie"
    )


def _say(message: str) -> None:
    """Warn once, not on each process."""
    if position()[0] == 0:
        warnings.warn(message, stacklevel=4)
