"""γ of any part of a network, from explicit per-sample gradients (Fig. 7)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from gwa_core import gradient_alignment
from gwa_torch.heads import uncompiled, unwrap

__all__ = ["layer_alignment"]


@torch.no_grad()
def layer_alignment(
    model: nn.Module,
    loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
    inputs: Any,
    targets: torch.Tensor,
    stages: Mapping[str, str | Sequence[str]] | Sequence[str],
    *,
    chunk_size: int | None = None,
) -> dict[str, torch.Tensor]:
    r"""Return γ of a batch for chosen parts of a network, or for all of it.

    .. math:: \gamma_i = \frac{-\nabla_w \mathcal L_i \cdot w}{\|\nabla_w \mathcal L_i\|\,\|w\|}

    The paper compares the head with ever more stages before it, and finds that more layers make a
    worse signal (Fig. 7). For the head alone `GWAMonitor` and `head_scores` need no gradient.

    Parameters
    ----------
    model : Module
        Any differentiable model, in the mode and at the weights that it has.
    loss_fn : callable
        ``loss_fn(output, target)`` to one number, for a batch of one sample: a loss module or
        function that reduces by mean or sum.
    inputs : tensor, tuple or dict of tensors
        N samples along the first axis of every tensor; the model is called as ``model(inputs)``,
        ``model(*inputs)`` or ``model(**inputs)``.
    targets : tensor of shape (N, ...)
        One entry for each sample.
    stages : mapping of str to str or list of str, or list of str
        Which parameters belong together: a name for each stage, and the dotted names of its modules
        or parameters. A list makes each entry its own stage. An empty string is the full model.
    chunk_size : int, optional
        How many samples have their gradients at the same time, default all N.

    Returns
    -------
    dict of str to tensor of shape (N,)
        In [-1, 1] for each stage, float32 (float64 for float64 weights), on the device of the
        weights.

    Raises
    ------
    TypeError, ValueError
        If a stage names nothing in the model or no parameters, a loss is not one number, numbers of
        samples differ, or the model has batch norm in train mode.

    Notes
    -----
    Cost: a forward and a backward pass of each sample, vectorised. Memory: N × P gradients for the P
    parameters of all stages together and about three copies of those of the largest stage, or
    ``chunk_size`` × P. Each sample is alone in its pass, so that batch norm must be in eval mode,
    ``model.eval()``: a gradient of one sample under the statistics of a batch does not exist.
    Dropout, where it is on, draws anew for each sample. Frozen parameters count like others;
    tied ones count once. Compiled and parallel models are measured by the model inside.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. A.2 and Fig. 7.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from gwa_torch import layer_alignment
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    >>> x, y = torch.randn(6, 8), torch.arange(6) % 3
    >>> scores = layer_alignment(model, nn.CrossEntropyLoss(), x, y, {"head": "2", "full": ""})
    >>> {name: score.shape for name, score in scores.items()}
    {'head': torch.Size([6]), 'full': torch.Size([6])}
    """
    bare = unwrap(model)
    _check_norms(bare)
    names = _stages(bare, stages)
    arguments, keywords = _arguments(inputs)
    samples = _count([*arguments, *keywords.values()], targets)
    step = samples if chunk_size is None else chunk_size
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"`chunk_size` must be an integer of at least 1, got {chunk_size!r}")

    state = dict(bare.named_parameters()) | dict(bare.named_buffers())
    state = {name: x.detach() for name, x in state.items()}
    wanted = {name for stage in names.values() for name in stage}
    chosen = {name: state.pop(name) for name in list(state) if name in wanted}

    def loss(chosen: Any, arguments: Any, keywords: Any, target: torch.Tensor) -> torch.Tensor:
        one = tuple(x[None] for x in arguments)
        output = functional_call(
            bare, chosen | state, one, {name: x[None] for name, x in keywords.items()}
        )
        value = loss_fn(output, target[None])
        if not isinstance(value, torch.Tensor) or value.ndim:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"`loss_fn` must return one number, a 0-D tensor, got {got}; "
                "reduce by mean or sum over the batch of one sample"
            )
        return value

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="different")
    parts: dict[str, list[torch.Tensor]] = {stage: [] for stage in names}
    for start in range(0, samples, step):
        rows = slice(start, start + step)
        some = tuple(x[rows] for x in arguments)
        named = {name: x[rows] for name, x in keywords.items()}
        # Fused attention can't be vectorised; PyTorch would warn and loop.
        with uncompiled(), sdpa_kernel(SDPBackend.MATH):
            found = gradients(chosen, some, named, targets[rows])
        for stage, members in names.items():
            flat = torch.cat([found[name].flatten(1) for name in members], dim=1)
            weights = torch.cat([chosen[name].flatten() for name in members])
            parts[stage].append(gradient_alignment(flat, weights))
    return {stage: torch.cat(scores) for stage, scores in parts.items()}


def _stages(
    model: nn.Module, stages: Mapping[str, str | Sequence[str]] | Sequence[str]
) -> dict[str, list[str]]:
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
