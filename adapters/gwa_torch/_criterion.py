"""A hook on the loss module, whose calls bring the targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gwa_torch._capture import Capture, Listener, Recent, same_memory

__all__ = ["Heard"]


class Heard:
    """Passes the targets of a loss on, where its input is the output of the head.

    Parameters
    ----------
    criterion : CrossEntropyLoss or BCEWithLogitsLoss
        The loss module.
    capture : Capture
        The hook on the head.
    update : callable
        What gets targets and logits.
    """

    def __init__(self, criterion: nn.Module, capture: Capture, update: Callable[..., None]) -> None:
        self._capture = capture
        self._update = update
        # PyTorch's cross-entropy has the classes second.
        softmax = isinstance(criterion, nn.CrossEntropyLoss)
        self._second = softmax and isinstance(capture.head, nn.Linear)
        # The output that the criterion was called with last.
        self._last = Recent()
        self._hook = criterion.register_forward_hook(Listener(self._on_loss), with_kwargs=True)

    def close(self) -> None:
        """Remove the hook."""
        self._hook.remove()

    def _on_loss(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = dict(zip(("input", "target"), args, strict=False)) | kwargs
        heard = self._heard
        if torch.compiler.is_compiling():
            heard = torch.compiler.disable(heard)  # type: ignore[no-untyped-call]
        heard(given["input"], given["target"])

    def _heard(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        if not any(same_memory(logits, x.logits) for x in self._capture.waiting):
            # A loss of something else, such as an auxiliary head, or of a pass in eval mode.
            again = self._last.is_memory_of(logits)
            if again and logits.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    "`criterion` must be called once with an output of the head, got a second "
                    "call; the sum of two losses (mixup) has soft targets: without `criterion=`, "
                    "call `update(soft_targets)`"
                )
            return
        self._last.see(logits)
        if self._second and targets.is_floating_point() and targets.ndim > 2:
            targets = targets.movedim(1, -1)
        self._update(targets, logits=logits)
