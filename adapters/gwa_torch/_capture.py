"""What a forward pass of the head leaves behind for its scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from gwa_torch.heads import Head, head_weight, rows_last
from gwa_torch.scoring import frobenius_norm

__all__ = ["Capture", "Forward", "Listener", "same_memory", "whole"]

# A loop that never asks for the scores must not fill the memory; DataParallel makes one a replica.
MOST_WAITING = 64

NOTHING_WAITS = (
    "`update` must follow a forward pass of the head in training mode, got none since the last "
    "call. Usual causes: the model is in eval mode; torch.compile had compiled this model, or "
    "another of its class, before the monitor was made (make it before, or call "
    "torch._dynamo.reset()); a fused loss or a functional call goes around the module (score by "
    "`head_scores` and pass it to `add`)"
)


class Forward(NamedTuple):
    """One forward pass of the head, detached: channels last, the weight of that moment."""

    logits: torch.Tensor
    latents: torch.Tensor
    weight_norm: torch.Tensor
    bias: torch.Tensor | None
    weight: torch.Tensor | None
    version: int | None

    @property
    def samples(self) -> int:
        """How many samples, tokens or pixels there are."""
        return self.logits.numel() // self.logits.shape[-1]


class Listener:
    """A forward hook that copies of its module do not have: not a teacher's, not a saved one's."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function: Callable[..., None] | None = function

    def __call__(self, *call: Any) -> None:
        """Pass a call on."""
        if self.function is not None:
            self.function(*call)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the monitor out of a copy."""
        return {"function": None}


class Capture:
    """A forward hook on the head, and the forward passes that wait for their targets.

    Parameters
    ----------
    head : Linear or 1×1 convolution
        The head.
    keep_weight : bool
        Keep a copy of the weight with each pass (sketches need it).
    """

    def __init__(self, head: Head, *, keep_weight: bool = False) -> None:
        self.head = head
        self.keep_weight = keep_weight
        self.paused = False
        self.waiting: list[Forward] = []
        self._hook = head.register_forward_hook(Listener(self._keep), with_kwargs=True)

    def close(self) -> None:
        """Remove the hook and let go of what waits."""
        self._hook.remove()
        self.waiting.clear()

    def _keep(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        if self.paused or not module.training:
            return
        version = None
        if not torch.compiler.is_compiling():
            # Checkpointing runs the forward again inside backward; torch.func runs it on tensors
            # that must not leave it.
            functional = torch._C._functorch.peek_interpreter_stack() is not None
            if functional or torch._C._current_graph_task_id() != -1:
                return
            if len(self.waiting) >= MOST_WAITING:
                self.waiting.clear()
                raise RuntimeError(
                    f"`update` must follow the forward passes of the head, got {MOST_WAITING} "
                    "passes in training mode without one; wrap passes that do not train the head "
                    "in `with monitor.pause():`, and call `monitor.close()` when done"
                )
            version = None if output.is_inference() else output._version
        with torch.no_grad():
            bias: Any = module.bias
            weight = head_weight(module)
            forward = Forward(
                rows_last(whole(output.detach()), module),
                rows_last(whole((args[0] if args else kwargs["input"]).detach()), module),
                frobenius_norm(weight),
                # The optimiser's step writes into the parameters.
                None if bias is None else whole(bias.detach()).clone(),
                whole(weight).clone() if self.keep_weight else None,
                version,
            )
        self.waiting.append(forward)

    def take(self, samples: int, logits: torch.Tensor | None = None) -> list[Forward]:
        """Return the pass that has these targets, or several that have them together.

        All that waited is forgotten, except when there is nothing to return.

        Parameters
        ----------
        samples : int
            How many targets there are.
        logits : tensor, optional
            The output of the head, or a view of it, to say which pass is meant.
        """
        if not self.waiting:
            raise RuntimeError(NOTHING_WAITS)
        # Replicas of DataParallel run in threads; their pieces are in the order of devices.
        waiting = sorted(self.waiting, key=lambda forward: forward.logits.device.index or 0)
        if logits is not None:
            waiting = [forward for forward in waiting if same_memory(forward.logits, logits)]
        sizes = [forward.samples for forward in waiting]
        chosen = waiting
        if sum(sizes) != samples:
            chosen = [forward for forward in waiting if forward.samples == samples]
            if len(chosen) > 1:
                raise ValueError(
                    f"`targets` must belong to one forward pass, got {samples} targets and "
                    f"{len(chosen)} passes of that many samples since the last `update`; call "
                    "`update` after each pass, say which by `logits=`, or wrap the others in "
                    "`with monitor.pause():`"
                )
        if not chosen:
            raise ValueError(
                f"`targets` must be for the {' + '.join(map(str, sizes)) or 'same'} outputs of "
                f"the head since the last `update`, got {samples}; token targets are (B, S), soft "
                "targets have the shape of the logits, and ignored samples are left out by `where`"
            )
        self.waiting = []
        for forward in chosen:
            if forward.version is not None and forward.logits._version != forward.version:
                raise RuntimeError(
                    "the logits must stay as the head made them until `update`, got logits that "
                    "were changed in place; use `logits = logits / t`, not `logits /= t`"
                )
        return chosen


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two tensors are views of one storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def whole(x: Any) -> torch.Tensor:
    """Gather a DTensor; every rank takes part."""
    whole: torch.Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return whole
