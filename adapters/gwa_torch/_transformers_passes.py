"""What a model is seen to do while a loss is computed: what it returns, and what its body does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

__all__ = ["Passes"]


class Passes:
    """The passes of a model that train it, seen by hooks that are there for one batch.

    Parameters
    ----------
    model : Module
        The model as the trainer calls it, also wrapped.
    body : Module or None
        What comes before its head, where the head may be called by nobody.
    """

    def __init__(self, model: nn.Module, body: nn.Module | None = None) -> None:
        self.outputs: list[Any] = []
        # Of each pass of the body.
        self.latents: list[torch.Tensor] = []
        self._places = [(model, self._see)] + ([] if body is None else [(body, self._see_body)])
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._hooks = [module.register_forward_hook(see) for module, see in self._places]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def logits(self) -> torch.Tensor | None:
        """The logits that the model hands out, where it was called once and does."""
        logits = self.field("logits")
        return None if logits is None else logits.detach()

    def field(self, name: str) -> torch.Tensor | None:
        """Return a tensor of what the model hands out, where it was called once."""
        outputs = self.outputs[0] if len(self.outputs) == 1 else None
        found = outputs.get(name) if isinstance(outputs, Mapping) else None
        return found if isinstance(found, torch.Tensor) else None

    def _see(self, module: nn.Module, args: Any, outputs: Any) -> None:
        # A pass without gradients makes numbers for a log.
        if torch.is_grad_enabled():
            self.outputs.append(outputs)

    def _see_body(self, module: nn.Module, args: Any, outputs: Any) -> None:
        last = getattr(outputs, "last_hidden_state", None)
        if torch.is_grad_enabled() and isinstance(last, torch.Tensor):
            self.latents.append(last.detach())
