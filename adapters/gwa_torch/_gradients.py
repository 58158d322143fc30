"""Scores from the gradient that arrives at the head's output; nothing here waits for the device."""

from __future__ import annotations

import functools
from typing import Any

import torch

from gwa_core import JLSketch, project
from gwa_torch.scoring import frobenius_norm, gradient_scores

__all__ = ["Arrival", "CompiledTap", "Picked", "SlotTap", "Slots", "Tap"]

# Passes of a compiled model that can wait for their backward pass, and the rows of each.
SLOTS = 16
ROWS = 16384

# A compiled graph copies the logits for its tap, so that large ones have none.
LARGEST = 1 << 24


class Tap:
    """A hook on the output of the head in one forward pass, called with its gradient.

    Parameters
    ----------
    logits, latents : tensor of shape (N, C), (N, D)
        Of the pass, detached.
    weight_norm : 0-D tensor
        ‖W‖ of the pass.
    bias : tensor of shape (C,) or None
        Of the pass.
    weight : tensor of shape (C, D) or None
        Of the pass; for a sketch.
    sketch : JLSketch or None
        Measure in K dimensions.
    keep : bool
        Whether the gradient itself stays, for scores of sequences.
    """

    silent = False

    def __init__(
        self,
        logits: torch.Tensor,
        latents: torch.Tensor,
        weight_norm: torch.Tensor,
        bias: torch.Tensor | None,
        weight: torch.Tensor | None,
        sketch: JLSketch | None,
        *,
        keep: bool = False,
    ) -> None:
        self._keep = keep
        self.gradient: torch.Tensor | None = None
        self._pass: Any = (logits, latents, weight_norm, bias, weight)
        self._sketch = sketch
        self._version = None if logits.is_inference() else logits._version
        self._arrived: torch.Tensor | None = None
        self._plain: torch.Tensor | None = None
        # What went wrong in the user's backward pass, where nothing may be raised.
        self.error: Exception | None = None

    def arrive(self, gradient: torch.Tensor) -> None:
        """Score the rows, and let go of the pass."""
        if self._pass is None:
            # A second backward pass through the same output: the gradient is the sum of both, or
            # the first one was that of a gradient penalty.
            self._arrived = self.gradient = None
            self.error = RuntimeError("backward came twice through the output of the head")
            return
        (logits, latents, norm, bias, weight), self._pass = self._pass, None
        if self._version is not None and logits._version != self._version:
            self.error = RuntimeError("the logits were changed in place after the head made them")
            return
        try:
            with torch.no_grad():
                gradient = gradient.detach()
                self.gradient = gradient if self._keep else None
                self._plain = gradient_scores(gradient, logits, latents, norm, bias)
                if self._sketch is not None:
                    latents, weight = (project(x, self._sketch) for x in (latents, weight))
                    made, norm = latents @ weight.T, frobenius_norm(weight)
                    self._arrived = gradient_scores(gradient, made, latents, norm, None)
                else:
                    self._arrived = self._plain
        except Exception as error:  # the user's backward pass goes on
            self.error = error

    def own(self) -> None:
        """Do nothing: what this has is its own."""

    def scores(self) -> torch.Tensor | None:
        """Return the scores (N,), or None where no gradient came."""
        return self._arrived

    def plain(self) -> torch.Tensor | None:
        """Return what they are without a sketch."""
        return self._plain


class Picked:
    """Some rows of a tap.

    Parameters
    ----------
    tap : Tap or SlotTap
        Of the whole pass.
    rows : integer tensor
        Which rows of the flattened pass the samples have.
    """

    def __init__(self, tap: Tap | SlotTap, rows: torch.Tensor) -> None:
        self._tap = tap
        self._rows = rows

    @property
    def silent(self) -> bool:
        """Whether nobody is told when the gradient comes."""
        return self._tap.silent

    @property
    def error(self) -> Exception | None:
        """What went wrong."""
        return self._tap.error

    def own(self) -> None:
        """Copy what the next pass may write over."""
        self._tap.own()

    def scores(self) -> torch.Tensor | None:
        """Return the scores of the rows, or None where no gradient came."""
        found = self._tap.scores()
        return None if found is None else found[self._rows]

    def plain(self) -> torch.Tensor | None:
        """Return what they are without a sketch."""
        found = self._tap.plain()
        return None if found is None else found[self._rows]


@functools.cache
def _register() -> None:
    """Make `gradient_scores` an operator that a compiled graph calls as it is."""
    operator = torch.library.custom_op("gwa_torch::gradient_scores", mutates_args=())

    @operator
    def scores(
        gradients: torch.Tensor,
        logits: torch.Tensor,
        latents: torch.Tensor,
        weight_norm: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        return gradient_scores(gradients, logits, latents, weight_norm, bias)

    @scores.register_fake
    def _(gradients: torch.Tensor, *_: Any) -> torch.Tensor:
        wide = torch.promote_types(gradients.dtype, torch.float32)
        return gradients.new_empty(gradients.shape[0], dtype=wide)


class Slots:
    """Places on the device where compiled backward passes write their scores.

    Parameters
    ----------
    device : device
        Where the head is.
    """

    def __init__(self, device: torch.device) -> None:
        _register()
        self.scores = torch.zeros(SLOTS, ROWS, device=device)
        # Number of the pass whose scores a place has, and number of the last pass.
        self.stamps = torch.zeros(SLOTS, dtype=torch.int64, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        for tensor in (self.scores, self.stamps, self.count):
            # A CUDA graph may then write to it.
            torch._dynamo.mark_static_address(tensor)

    def fit(self, logits: torch.Tensor) -> bool:
        """Tell whether a pass has room."""
        rows = logits.numel() // logits.shape[-1]
        small = rows <= ROWS and logits.numel() <= LARGEST
        return small and logits.device == self.scores.device


class CompiledTap(torch.autograd.Function):
    """The identity, whose backward pass writes the scores of the rows to a place of `Slots`."""

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        logits: torch.Tensor,
        latents: torch.Tensor,
        weight_norm: torch.Tensor,
        bias: torch.Tensor | None,
        scores: torch.Tensor,
        stamps: torch.Tensor,
        number: torch.Tensor,
        last: bool,
    ) -> torch.Tensor:
        """Return a copy: AOTAutograd drops the backward pass of a view."""
        ctx.save_for_backward(logits, latents, weight_norm, bias, scores, stamps, number)
        ctx.last = last
        return output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Pass the gradient on."""
        logits, latents, norm, bias, scores, stamps, number = ctx.saved_tensors
        rows = gradient if ctx.last else gradient.movedim(1, -1)
        found = torch.ops.gwa_torch.gradient_scores(
            rows.reshape(logits.shape), logits, latents, norm, bias
        )
        place = (number % SLOTS).reshape(1)
        padded = torch.nn.functional.pad(found.to(scores.dtype), (0, ROWS - found.shape[0]))
        scores.index_copy_(0, place, padded[None])
        stamps.index_copy_(0, place, number.reshape(1))
        return gradient, None, None, None, None, None, None, None, None


class SlotTap:
    """What a compiled pass has in `Slots`, to be read before as many more passes as there are."""

    error: Exception | None = None
    # The device writes the scores, and the host is not told.
    silent = True

    def __init__(self, slots: Slots, number: torch.Tensor, rows: int) -> None:
        self._slots = slots
        self._number = number
        self._rows = rows

    def own(self) -> None:
        """Copy the number of the pass, which the next replay of a CUDA graph writes over."""
        self._number = self._number.clone()

    def scores(self) -> torch.Tensor:
        """Return the scores (N,), nan where the backward pass has not come."""
        place = (self._number % SLOTS).reshape(1)
        found = self._slots.scores.index_select(0, place)[0, : self._rows]
        here = self._slots.stamps.index_select(0, place) == self._number
        return torch.where(here, found, torch.nan)

    plain = scores


class Arrival:
    """A few numbers on their way to the host, which is not made to wait for them."""

    def __init__(self, values: torch.Tensor) -> None:
        self._event: Any = None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(values.device))
            values = host
        self._values = values

    @property
    def here(self) -> bool:
        """Whether they have arrived."""
        return self._event is None or bool(self._event.query())

    def get(self) -> list[float]:
        """Return them; waits where they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers
