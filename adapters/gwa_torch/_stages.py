"""Parts of a network by name, and the gradients of their parameters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from gwa_torch.heads import uncompiled, unwrap

__all__ = ["Gradients", "LossFn", "Stages"]

Stages: TypeAlias = Mapping[str, str | Sequence[str]] | Sequence[str]
LossFn: TypeAlias = Callable[[Any, torch.Tensor], torch.Tensor]


class Gradients:
    """Gradients of losses by the parameters of stages, each sample alone in its pass.

    Parameters
    ----------
    model : Module
        The model.
    loss_fn : callable
        Output and target of a batch of one sample to one number.
    stages : mapping or sequence
        Names of modules or parameters, by stage.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, stages: Stages) -> None:
        self.model, self.loss_fn = unwrap(model), loss_fn
        _check_norms(self.model)
        self.stages = _members(self.model, stages)
        state = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        self._state = {name: x.detach() for name, x in state.items()}
        wanted = {name for stage in self.stages.values() for name in stage}
        self._chosen = {name: self._state.pop(name) for name in list(state) if name in wanted}

    def _loss(self, chosen: Any, arguments: Any, keywords: Any, target: Any) -> torch.Tensor:
        one = tuple(x[None] for x in arguments)
        named = {name: x[None] for name, x in keywords.items()}
        output = functional_call(self.model, chosen | self._state, one, named)
        value = self.loss_fn(output, target[None])
        if not isinstance(value, torch.Tensor) or value.ndim:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"`loss_fn` must return one number, a 0-D tensor, got {got}; "
                "reduce by mean or sum over the batch of one sample"
            )
        return value

    def of_samples(
        self, inputs: Any, targets: torch.Tensor, chunk_size: int | None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield a stage and the gradients (n, P) of a chunk of samples, chunk after chunk."""
        arguments, keywords, samples = _batch(inputs, targets)
        step = samples if chunk_size is None else chunk_size
        if not isinstance(step, int) or step < 1:
            raise ValueError(f"`chunk_size` must be an integer of at least 1, got {chunk_size!r}")
        gradients = vmap(grad(self._loss), in_dims=(None, 0, 0, 0), randomness="different")
        for start in range(0, samples, step):
            rows = slice(start, start + step)
            some = tuple(x[rows] for x in arguments)
            named = {name: x[rows] for name, x in keywords.items()}
            # Fused attention can't be vectorised; PyTorch would warn and loop.
            with uncompiled(), sdpa_kernel(SDPBackend.MATH):
                found = gradients(self._chosen, some, named, targets[rows])
            for stage, members in self.stages.items():
                yield stage, torch.cat([found[name].flatten(1) for name in members], dim=1)

    def of_batch(
        self, inputs: Any, targets: torch.Tensor, reduce: Callable[[Any], Any]
    ) -> dict[str, torch.Tensor]:
        """Return by stage the gradient (P,) of what `reduce` makes of the losses of the samples."""
        arguments, keywords, _ = _batch(inputs, targets)
        losses = vmap(self._loss, in_dims=(None, 0, 0, 0), randomness="different")
        gradient = grad(lambda *given: reduce(losses(*given)))
        with uncompiled(), sdpa_kernel(SDPBackend.MATH):
            found = gradient(self._chosen, arguments, keywords, targets)
        return {
            stage: torch.cat([found[name].flatten() for name in members])
            for stage, members in self.stages.items()
        }

    def weights(self, stage: str) -> torch.Tensor:
        """Return the parameters (P,) of a stage."""
        return torch.cat([self._chosen[name].flatten() for name in self.stages[stage]])


def _members(model: nn.Module, stages: Stages) -> dict[str, list[str]]:
    """Return the names of the parameters of each stage, in the order of the model."""
    if isinstance(stages, str):
        stages = [stages]
    if not isinstance(stages, Mapping):
        stages = {prefix: [prefix] for prefix in stages}
    if not stages:
        raise ValueError("`stages` must name at least one part of the model, got none")
    own = {id(x): name for name, x in model.named_parameters()}
    # Under every name that a tied parameter has.
    known = {name: own[id(x)] for name, x in model.named_parameters(remove_duplicate=False)}
    places = [name for name, _ in model.named_modules()]
    found = {}
    for stage, given in stages.items():
        prefixes = [given] if isinstance(given, str) else list(given)
        members = set()
        for prefix in prefixes:
            if prefix not in known and prefix not in places:
                everything = [name for name in (*places, *known) if name]
                near = difflib.get_close_matches(prefix, everything, n=3) or [
                    name for name, _ in model.named_children()
                ]
                raise ValueError(
                    f"`stages` must name modules or parameters of {type(model).__name__}, got "
                    f"{prefix!r} in stage {stage!r}; it has {', '.join(near)}"
                )
            dotted = f"{prefix}." if prefix else ""
            members |= {
                first for name, first in known.items() if name == prefix or name.startswith(dotted)
            }
        if not members:
            raise ValueError(
                f"`stages` must have parameters, got stage {stage!r} of {prefixes} with none"
            )
        found[stage] = [name for name in own.values() if name in members]
    return found


def _batch(
    inputs: Any, targets: Any
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor], int]:
    """Return positional and named inputs of the model, and the number of samples."""
    arguments, keywords = _arguments(inputs)
    return arguments, keywords, _count([*arguments, *keywords.values()], targets)


def _arguments(inputs: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    raise TypeError(
        f"`inputs` must be a tensor, or a tuple or dict of tensors, got {type(inputs).__name__}"
    )


def _count(inputs: Sequence[Any], targets: Any) -> int:
    """Return how many samples there are."""
    tensors = [*inputs, targets]
    if len(tensors) == 1 or not all(isinstance(x, torch.Tensor) and x.ndim for x in tensors):
        kinds = ", ".join(type(x).__name__ for x in tensors)
        raise TypeError(
            f"`inputs` and `targets` must be tensors with the samples first, got {kinds}"
        )
    sizes = [x.shape[0] for x in tensors]
    if len(set(sizes)) > 1 or sizes[0] == 0:
        raise ValueError(
            f"`inputs` and `targets` must have the same number of samples, at least one, got "
            f"{', '.join(map(str, sizes))}"
        )
    return int(sizes[0])


def _check_norms(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase):
            continue
        always = isinstance(module, _BatchNorm) and module.running_mean is None
        if always or (module.training and module.track_running_stats):
            how = "without running ones" if always else "in train mode"
            cure = "take another norm" if always else "call model.eval() first"
            raise ValueError(
                f"`model` must not take statistics of a batch, got {type(module).__name__} at "
                f"{name!r} {how}; the samples are measured one by one, so {cure}"
            )
