"""The hook on the head, and the passes that wait for their targets."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from gwa_core import JLSketch
from gwa_torch._forward import Forward, SmallForward
from gwa_torch._gradients import CompiledTap, Slots, SlotTap, Tap
from gwa_torch.heads import Head, head_device, head_weight, rows_last
from gwa_torch.scoring import frobenius_norm

__all__ = [
    "NOTHING_WAITS",
    "Capture",
    "Listener",
    "Recent",
    "same_memory",
    "whole",
]

# A loop that never asks for the scores must not fill the memory.
MOST_WAITING = 256

NOTHING_WAITS = (
    "`update` must follow a forward pass of the head in training mode, got none since the last "
    "call. Usual causes: the model, or its head alone, is in eval mode; the head was replaced or "
    "the model copied after the monitor was made, or the monitor was closed; torch.compile had "
    "compiled this model, or another of its class, before the monitor was made or before the first "
    "pass of this one (make it before and run the watched model first, or call "
    "torch._dynamo.reset()); a fused loss or a functional call goes around the module (score by "
    "`head_scores` and pass it to `add`)"
)


class Listener:
    """A forward hook that copies of its module do not have: not a teacher's, not a saved one's."""

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self.function = function

    def __call__(self, *call: Any) -> Any:
        """Pass a call on."""
        return None if self.function is None else self.function(*call)

    def __deepcopy__(self, memo: Any) -> Listener:
        """Leave the monitor out of a copy."""
        return Listener(None)

    def __reduce__(self) -> Any:
        """Become a call of the standard library that does nothing.

        A saved model then loads without this package.
        """
        return getattr, (contextlib.nullcontext(), "__exit__")


class Recent:
    """The tensor that was seen last, which this does not keep alive; a copy has seen none."""

    def __init__(self) -> None:
        self._seen: Callable[[], torch.Tensor | None] | None = None

    def see(self, x: torch.Tensor) -> None:
        """Remember a tensor."""
        self._seen = weakref.ref(x)

    def is_memory_of(self, x: torch.Tensor) -> bool:
        """Tell whether a tensor is a view of the one that was seen."""
        seen = None if self._seen is None else self._seen()
        return seen is not None and same_memory(seen, x)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the reference out of a copy."""
        return {"_seen": None}


class _Link:
    """A pass and the one before it. A list would tell compiled code how many wait."""

    def __init__(self, forward: Forward | SmallForward, before: _Link | None) -> None:
        self.forward = forward
        self.before = before


class Capture:
    """A forward hook on the head, and the forward passes that wait for their targets.

    Parameters
    ----------
    head : Linear or 1×1 convolution
        The head.
    sketch : JLSketch, optional
        Measure in K dimensions; a copy of the weight is kept with each pass.
    gradients : bool
        Whether gradients are asked for at all.
    always : bool
        Whether they are in every pass.
    whole : bool
        Whether a pass keeps its gradient, for scores of sequences.

    Attributes
    ----------
    always : bool
        As the parameter.
    tapping : bool
        Whether the next passes bring the scores of their gradient. Compiled passes do so whenever
        gradients are asked for, since a change would compile the model again.
    """

    def __init__(
        self,
        head: Head,
        *,
        sketch: JLSketch | None = None,
        gradients: bool = False,
        always: bool = False,
        whole: bool = False,
    ) -> None:
        self.head = head
        self._keep_gradients = whole
        self.sketch = sketch
        # Others keep more of a pass, or have its channels elsewhere.
        self._may_be_small = sketch is None and isinstance(head, nn.Linear)
        self.tapping = gradients
        self.always = always
        self.paused = False
        self._slots = Slots(head_device(head)) if gradients and sketch is None else None
        self._newest: _Link | None = None
        self._count = 0
        self._closed = False
        # Of a call that failed, for one more try; and beside passes that `logits` named.
        self._missed: list[Forward] = []
        self._left: list[Forward] = []
        # Before hooks that were there already: one of them may replace the output.
        self._hook = head.register_forward_hook(
            Listener(self._keep), prepend=True, with_kwargs=True
        )

    def close(self) -> None:
        """Remove the hook and let go of what waits."""
        self._closed = True
        self._hook.remove()
        self.forget()

    def forget(self) -> None:
        """Let go of what waits."""
        self._drain()
        self._missed, self._left = [], []

    @property
    def waiting(self) -> list[Forward]:
        """All passes that could still get their targets."""
        found, link = [], self._newest
        while link is not None:
            made = link.forward
            found.append(made if isinstance(made, Forward) else made.forward_pass())
            link = link.before
        return [*self._left, *self._missed, *reversed(found)]

    def replace(self, forwards: list[Forward]) -> None:
        """Let these passes wait instead of the present ones."""
        self.forget()
        for forward in forwards:
            self._newest = _Link(forward, self._newest)

    def _keep(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> Any:
        if self.paused or not module.training or output.numel() == 0:
            return None
        compiling = torch.compiler.is_compiling()
        version = None
        if not compiling:
            # Checkpointing runs the forward again inside backward; torch.func runs it on tensors
            # that must not leave it.
            functional = torch._C._functorch.peek_interpreter_stack() is not None
            if functional or torch._C._current_graph_task_id() != -1:
                return None
            self._count += 1
            if self._count > MOST_WAITING:
                self.forget()
                # A monitor that nobody has any more closes this when it is collected.
                gc.collect()
                if self._closed:
                    return None
                raise RuntimeError(
                    f"`update` must follow the forward passes of the head, got {MOST_WAITING} "
                    "passes in training mode without one; wrap passes that do not train the head "
                    "in `with monitor.pause():`, and call `monitor.close()` when done"
                )
            version = None if output.is_inference() else output._version
            if self._may_be_small and not self.tapping and version is not None:
                small = SmallForward.of(module, args, output)
                if small is not None:
                    self._newest = _Link(small, self._newest)
                    return None
        differentiable = torch.is_grad_enabled() and output.requires_grad
        # All of it is detached, which is cheaper than to switch gradients off.
        matrix = head_weight(module)
        latents = rows_last(whole((args[0] if args else kwargs["input"]).detach()), module)
        norm, bias = frobenius_norm(matrix), cast("Any", module.bias)
        # The optimiser's step writes into the parameters.
        bias = None if bias is None else whole(bias.detach()).clone()
        weight = None if self.sketch is None else whole(matrix).clone()
        passed = output
        tap: Tap | SlotTap | None = None
        if differentiable and compiling:
            passed, tap = self._tap_compiled(module, output, latents, norm, bias)
        logits = rows_last(whole(passed.detach()), module)
        # To gather a gradient of tensor parallelism takes all ranks, which must do so in all passes.
        alone = type(output) is torch.Tensor or self.always
        if differentiable and not compiling and self.tapping and alone:
            arrays = _rows(logits), _rows(latents), norm, bias, weight, self.sketch
            tap = Tap(*arrays, keep=self._keep_gradients)
            hook = functools.partial(_arrive, tap, module)
            output.register_hook(hook)  # type: ignore[no-untyped-call]
        forward = Forward(logits, latents, norm, bias, weight, version, tap)
        self._newest = _Link(forward, self._newest)
        return None if passed is output else passed

    def _tap_compiled(
        self,
        module: nn.Module,
        output: torch.Tensor,
        latents: torch.Tensor,
        norm: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, SlotTap | None]:
        """Have the gradient scored within the graph; what has no room there has no tap."""
        logits, slots = rows_last(output.detach(), module), self._slots
        if slots is None or not slots.fit(logits):
            return output, None
        slots.count.add_(1)
        number, last = slots.count.clone(), isinstance(module, nn.Linear)
        passed: torch.Tensor = CompiledTap.apply(  # type: ignore[no-untyped-call]
            output,
            _rows(logits),
            _rows(latents),
            norm,
            bias,
            slots.scores,
            slots.stamps,
            number,
            last,
        )
        return passed, SlotTap(slots, number, logits.numel() // logits.shape[-1])

    def sole(self, rows: int) -> SmallForward | None:
        """Take the pass that waits, if there is one alone, small, and of this many rows."""
        newest = self._newest
        if newest is None or newest.before is not None or self._missed or self._left:
            return None
        forward = newest.forward
        if isinstance(forward, Forward) or forward.logits.shape[0] != rows:
            return None
        if forward.version != forward.logits._version:
            return None
        self._newest, self._count = None, 0
        return forward

    def _drain(self) -> list[Forward]:
        """Return the passes since the last call, and begin a new list."""
        new = self.waiting[len(self._left) + len(self._missed) :]
        self._newest, self._count = None, 0
        return new

    def miss(self) -> None:
        """Keep the passes of a call that failed, for one more try with the same batch."""
        self._missed = self._drain() or self._missed

    def take(self, shape: tuple[int, ...], logits: torch.Tensor | None = None) -> list[Forward]:
        """Return the pass that has these targets, or several that have them together.

        All that waited is forgotten. But those beside a pass that `logits` names stay until others
        come, and passes of a call that fails until the next pass.

        Parameters
        ----------
        shape : tuple of int
            Shape of the targets, one entry a sample.
        logits : tensor, optional
            The output of the head, or a view of it, to say which pass is meant.
        """
        self.miss()
        candidates = self._missed if logits is None else self.waiting
        if not candidates:
            raise RuntimeError(NOTHING_WAITS)
        chosen = _choose(candidates, shape, logits)
        # What was left by an earlier step is too old once new passes have come.
        others = self._missed or self._left
        taken = {id(forward) for forward in chosen}
        self._left = [x for x in others if id(x) not in taken] if logits is not None else []
        self._missed = []
        for forward in chosen:
            if forward.version is not None and forward.logits._version != forward.version:
                raise RuntimeError(
                    "the logits must stay as the head made them until `update`, got logits that "
                    "were changed in place; use `logits = logits / t`, not `logits /= t`"
                )
        return chosen


def _choose(
    waiting: list[Forward], shape: tuple[int, ...], logits: torch.Tensor | None
) -> list[Forward]:
    """Return the passes that the targets belong to, or say why none can be told."""
    samples = math.prod(shape)
    # Replicas of DataParallel run in threads; their pieces are in the order of devices.
    waiting = sorted(waiting, key=lambda forward: forward.logits.device.index or 0)
    if logits is not None:
        waiting = [forward for forward in waiting if same_memory(forward.logits, logits)]
        if any(forward.logits.numel() != logits.numel() for forward in waiting):
            raise ValueError(
                "`logits` must be all that the head made, got a part of shape "
                f"{tuple(logits.shape)}; the loss of some classes or tokens has another gradient "
                "(mask ignored samples by `where` or `ignore_index`)"
            )
        if not waiting:
            raise ValueError(
                f"`logits` must be the output of the head itself, got {tuple(logits.shape)} that "
                "no pass since the last `update` has made; a converted, rescaled or gathered copy "
                "is not it"
            )
    sizes = [forward.samples for forward in waiting]
    chosen = waiting
    if sum(sizes) != samples:
        chosen = [forward for forward in waiting if forward.samples == samples]
        if len(chosen) > 1:
            raise ValueError(
                f"`targets` must belong to one forward pass, got {samples} targets and "
                f"{len(chosen)} passes of that many samples since the last `update`; call "
                "`update` after each pass, say which by `logits=`, call `skip` for batches that "
                "are left out, or wrap passes of another loss in `with monitor.pause():`"
            )
    if not chosen:
        raise ValueError(
            f"`targets` must be for the {' + '.join(map(str, sizes))} outputs of the head since "
            f"the last `update`, got {samples}; token targets are (B, S), soft targets have the "
            "shape of the logits and are floating, and ignored samples are left out by `where`; "
            "where the loss pools or resizes the logits, residual='backward' takes `update(None)`"
        )
    # Joined passes are joined along the first axis.
    first = len(chosen) > 1
    for forward in chosen:
        made = forward.logits.shape[:-1]
        # Outputs that were flattened are in the order of their rows.
        laid_out = len(_long(shape)) > 1 and len(_long(made)) > 1
        if laid_out and _long(shape[first:]) != _long(made[first:]):
            raise ValueError(
                f"`targets` must be in the order of the head's outputs, {tuple(made)}, got "
                f"{tuple(shape)}; transpose them, or flatten them as the outputs are"
            )
    return chosen


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Lay leading axes out as rows."""
    return x.reshape(-1, x.shape[-1])


def _arrive(tap: Tap, module: nn.Module, gradient: torch.Tensor) -> None:
    """Hand the gradient of an output to its tap; the user's backward pass goes on in any case."""
    try:
        rows = _rows(rows_last(whole(gradient), module))
    except Exception as error:
        tap.error = error
    else:
        tap.arrive(rows)


def _long(shape: Sequence[int]) -> tuple[int, ...]:
    """Leave out the axes of length one."""
    return tuple(size for size in shape if size != 1)


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two tensors are views of one storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def whole(x: Any) -> torch.Tensor:
    """Gather a DTensor; every rank takes part."""
    if type(x) is torch.Tensor:
        return x
    whole: torch.Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return whole
