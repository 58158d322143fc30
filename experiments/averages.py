"""Means of the weights beside single epochs: which are made, and what each is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from gwa_core import EpochSummary, average_shares

if TYPE_CHECKING:
    from experiments.engine import Engine

__all__ = ["HORIZONS", "Averages", "names"]

#: Decay of the exponential means of the steps, by the column of their accuracy.
HORIZONS = {"ema_99": 0.99, "ema_998": 0.998}
#: Signals of the summary, their powers, and warm-ups of the means of the epochs.
SIGNALS = ("separation", "bimodality", "gwa", "mean", "deviation", "spread", "both", "modes")
POWERS = (1, 2, 5, 10, 20)
WARMUPS = (0, 0.1, 0.2)
#: Images whose statistics of batch norm belong to a mean.
IMAGES, BATCH = 10_240, 512

Weights = list[torch.Tensor]


def names() -> dict[str, tuple[str, float, float, bool]]:
    """Return the means of the epochs by name: signal, power, warm-up, and whether within epochs too."""
    found = {f"plain, warm-up {warmup}": ("separation", 0, warmup, False) for warmup in WARMUPS}
    for signal in SIGNALS:
        for power in POWERS:
            found[f"{signal}^{power}"] = (signal, power, 0.1, False)
    for warmup in (0, 0.2):
        found[f"separation^10, warm-up {warmup}"] = ("separation", 10, warmup, False)
    found["separation^10, within epochs"] = ("separation", 10, 0.1, True)
    return found


class Averages:
    """The weights at the end of each epoch, and means of the steps.

    Parameters
    ----------
    engine : Engine
        The network.
    images : tensor
        Those that are trained on, for the statistics of batch norm.
    """

    def __init__(self, engine: Engine, images: torch.Tensor) -> None:
        self.engine = engine
        self.images = images[:IMAGES]
        self.own: Weights = [p.detach() for p in engine.model.parameters()]
        # The end of each epoch, and the mean of its steps.
        self.ends: list[Weights] = []
        self.means: list[Weights] = []
        self.fading = {name: _copies(self.own) for name in HORIZONS}
        self._mean, self._steps = _copies(self.own), 0
        # A pretrained body that is in evaluation keeps the statistics that it came with.
        norms = (m for m in engine.model.modules() if isinstance(m, nn.BatchNorm2d))
        self._norms = [m for m in norms if m.training]

    @torch.no_grad()
    def step(self) -> None:
        """Take in the weights after a step."""
        for name, decay in HORIZONS.items():
            torch._foreach_lerp_(self.fading[name], self.own, 1 - decay)
        self._steps += 1
        torch._foreach_lerp_(self._mean, self.own, 1 / self._steps)

    def epoch(self, tests: Mapping[str, Any]) -> dict[str, float]:
        """Keep the end of an epoch, and return the accuracies of the exponential means there."""
        self.ends.append(_copies(self.own))
        self.means.append(_copies(self._mean))
        self._steps = 0
        found = {}
        for name, weights in self.fading.items():
            for test, accuracy in self._accuracies(weights, tests).items():
                found[f"{name}_{test}"] = accuracy
        return found

    def kept(
        self,
        history: Sequence[EpochSummary],
        tests: Mapping[str, Any],
        chosen: Collection[str] | None = None,
    ) -> dict[str, dict[str, float]]:
        """Return the accuracies of each mean of the epochs, by the name of the test set and of the mean.

        Of all means, or of those that are chosen.
        """
        records = [
            summary._asdict()
            | {
                "deviation": summary.variance**0.5,
                # How far the two groups lie apart, in units of the score.
                "spread": summary.separation * summary.variance**0.5,
                "both": summary.separation * max(summary.gwa, 0.0),
                # What label quality weighs epochs by.
                "modes": 1 / (summary.kurtosis + 3 - summary.skewness**2),
            }
            for summary in history
        ]
        found: dict[str, dict[str, float]] = {}
        for name, (signal, power, warmup, within) in names().items():
            if chosen is not None and name not in chosen:
                continue
            shares = average_shares(records, power, warmup, signal=signal)
            weights = _weighted(self.means if within else self.ends, shares.tolist())
            for test, accuracy in self._accuracies(weights, tests).items():
                found.setdefault(test, {})[name] = round(accuracy, 5)
        return found

    def _accuracies(self, weights: Weights, tests: Mapping[str, Any]) -> dict[str, float]:
        with self._applied(weights):
            return {
                f"{name}_accuracy": _accuracy(self.engine, *tests[name])
                for name in ("test", "validation")
                if name in tests
            }

    @contextlib.contextmanager
    def _applied(self, weights: Weights) -> Iterator[None]:
        """Give the network these weights for a while, with the statistics that belong to them."""
        before = _copies(self.own)
        buffers = {k: x.clone() for k, x in self.engine.model.state_dict().items() if _counts(k)}
        try:
            with torch.no_grad():
                torch._foreach_copy_(self.own, weights)
                if self._norms:
                    model = self.engine.model
                    parts = (model.scaled(part) for part in self.images.split(BATCH))
                    with self.engine.precision():
                        update_bn(parts, model.body)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.own, before)
                self.engine.model.load_state_dict(buffers, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on needs."""
        return {"ends": self.ends, "means": self.means, "fading": self.fading}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on between two epochs."""
        device = self.own[0].device
        self.ends, self.means = (
            [[x.to(device) for x in weights] for weights in state[name]]
            for name in ("ends", "means")
        )
        self.fading = {k: [x.to(device) for x in v] for k, v in state["fading"].items()}


def _accuracy(engine: Engine, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((engine.evaluate(images)[1].argmax(1) == labels).float().mean())


def _copies(weights: Sequence[torch.Tensor]) -> Weights:
    return [x.detach().clone() for x in weights]


def _weighted(ends: Sequence[Weights], shares: Sequence[float]) -> Weights:
    total = [torch.zeros_like(x) for x in ends[0]]
    for weights, share in zip(ends, shares, strict=True):
        if share > 0:
            torch._foreach_add_(total, weights, alpha=share)
    return total


def _counts(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
