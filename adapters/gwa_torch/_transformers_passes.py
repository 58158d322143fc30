"""What a model is seen to do while a loss is computed: what it returns, and what its body does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["Passes"]


class Passes:
    """The passes of a model that train it, seen by hooks that are there for one batch.

    Parameters
    ----------
    body : Module or None
        What comes before its head, where the head may be called by nobody.
    """

    def __init__(self, body: nn.Module | None = None) -> None:
        self._body = body
        # Single values, which compiled code may write.
        self._outputs: Any = None
        self._latents: torch.Tensor | None = None
        self._count = self._body_count = 0

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """See the passes within the ``with`` block.

        Parameters
        ----------
        model : Module
            The model as the trainer calls it, also wrapped.
        """
        self.forget()
        hooks = [model.register_forward_hook(self._see)]
        if self._body is not None:
            hooks.append(self._body.register_forward_hook(self._see_body))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def forget(self) -> None:
        """Let go of what was seen."""
        self._outputs = self._latents = None
        self._count = self._body_count = 0

    @property
    def logits(self) -> torch.Tensor | None:
        """The logits that the model hands out, where it was called once and does."""
        logits = self.field("logits")
        return None if logits is None else logits.detach()

    @property
    def latents(self) -> torch.Tensor | None:
        """What the body made, where it was called once."""
        return self._latents if self._body_count == 1 else None

    def field(self, name: str) -> torch.Tensor | None:
        """Return a tensor of what the model hands out, where it was called once."""
        outputs = self._outputs if self._count == 1 else None
        found = outputs.get(name) if isinstance(outputs, Mapping) else None
        return found if isinstance(found, torch.Tensor) else None

    def _see(self, module: nn.Module, args: Any, outputs: Any) -> None:
        # A pass without gradients makes numbers for a log.
        if torch.is_grad_enabled():
            self._outputs = outputs
            self._count += 1

    def _see_body(self, module: nn.Module, args: Any, outputs: Any) -> None:
        last = getattr(outputs, "last_hidden_state", None)
        if torch.is_grad_enabled() and last is not None:
            self._latents = last.detach()
            self._body_count += 1
