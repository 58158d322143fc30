"""The optimiser of a run, and its rate at each step."""

from __future__ import annotations

import math
from typing import Any

import torch

from experiments.engine import Engine
from experiments.plan import Settings

__all__ = ["optimizer", "rate"]


def optimizer(settings: Settings, engine: Engine) -> Any:
    """Return the optimiser of a run; its rate is a tensor on the device."""
    s, fast = settings, engine.fast
    parameters = engine.model.parameters()
    # A rate on the device can change without a new kernel.
    first = torch.tensor(s.learning_rate, device=engine.device)
    if s.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, first, momentum=0.9, weight_decay=s.weight_decay, fused=fast
        )
    kind = torch.optim.AdamW if s.weight_decay else torch.optim.Adam
    return kind(parameters, first, weight_decay=s.weight_decay, fused=fast)


def rate(settings: Settings, step: int, steps: int) -> float:
    """Return the learning rate of a step, from 0, of so many."""
    s = settings
    if step < s.warmup:
        return s.learning_rate * (step + 1) / s.warmup
    share = (step - s.warmup) / (steps - s.warmup)
    factor = (1 + math.cos(math.pi * share)) / 2 if s.schedule == "cosine" else 1.0
    return s.learning_rate * factor
