"""Loaders for one more pass over the training data, which leaves them as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

__all__ = ["from_the_start"]


@contextlib.contextmanager
def from_the_start(loaders: Iterable[Any]) -> Iterator[None]:
    """Give loaders the order of their first epoch, and leave their own generators as they were.

    A run that was resumed then has the same batches as one that was not.
    """
    parts = [part for loader in loaders for part in _parts(loader) if part is not None]
    found = (getattr(part, "generator", None) for part in parts)
    states = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(0)
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _parts(loader: Any) -> tuple[Any, ...]:
    """Return a loader and its samplers, whatever may have an order of its own."""
    batches = getattr(loader, "batch_sampler", None)
    return loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)
