"""Parts of a network, from explicit gradients: γ, norms, and how far mini-batches lie apart."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from gwa_core import gradient_alignment, gradient_norms
from gwa_core.signals import gradient_disparity, rescaled_loss
from gwa_torch._checks import check_count
from gwa_torch.heads import uncompiled, unwrap

__all__ = ["layer_alignment", "layer_gradient_disparity", "layer_gradient_norms"]

Stages: TypeAlias = Mapping[str, str | Sequence[str]] | Sequence[str]
LossFn: TypeAlias = Callable[[Any, torch.Tensor], torch.Tensor]


@torch.no_grad()
def layer_alignment(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Any,
    targets: torch.Tensor,
    stages: Stages,
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
    parameters of all stages together and about three copies of the largest stage's, or
    ``chunk_size`` × P. Each sample is alone in its pass, so that batch norm must be in eval mode,
    ``model.eval()``: a gradient of one sample under the statistics of a batch does not exist.
    Dropout, where it is on, draws for each sample alone. Frozen parameters count like others;
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
    gradients = _Gradients(model, loss_fn, stages)
    weights = {stage: gradients.weights(stage) for stage in gradients.stages}
    parts: dict[str, list[torch.Tensor]] = {stage: [] for stage in weights}
    for stage, some in gradients.of_samples(inputs, targets, chunk_size):
        parts[stage].append(gradient_alignment(some, weights[stage]))
    return {stage: torch.cat(scores) for stage, scores in parts.items()}


@torch.no_grad()
def layer_gradient_norms(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Any,
    targets: torch.Tensor,
    stages: Stages,
    *,
    chunk_size: int | None = None,
) -> dict[str, torch.Tensor]:
    r"""Return the norm of each sample's gradient for chosen parts of a network (GraNd).

    .. math:: \|\nabla_w \mathcal L_i\|_2

    High is suspicious, or hard. For the head alone `gwa_core.signals.gradient_norm` needs no
    gradient. TracIn's self-influence at a checkpoint is its square times the learning rate.

    Parameters
    ----------
    model, loss_fn, inputs, targets, stages, chunk_size
        As for `layer_alignment`.

    Returns
    -------
    dict of str to tensor of shape (N,)
        At least 0 for each stage, float32 (float64 for float64 weights), on the device of the
        weights; not finite where a gradient is not.

    Raises
    ------
    TypeError, ValueError
        As `layer_alignment`.

    Notes
    -----
    Cost and memory: as for `layer_alignment`. GraNd is the mean over several initialisations, and
    TracIn's self-influence the sum over checkpoints.

    References
    ----------
    Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021; Pruthi et al.,
    "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from gwa_torch import layer_gradient_norms
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    >>> x, y = torch.randn(6, 8), torch.arange(6) % 3
    >>> norms = layer_gradient_norms(model, nn.CrossEntropyLoss(), x, y, {"full": ""})
    >>> norms["full"].shape, bool((norms["full"] > 0).all())
    (torch.Size([6]), True)
    """
    gradients = _Gradients(model, loss_fn, stages)
    parts: dict[str, list[torch.Tensor]] = {stage: [] for stage in gradients.stages}
    for stage, some in gradients.of_samples(inputs, targets, chunk_size):
        parts[stage].append(gradient_norms(some))
    return {stage: torch.cat(norms) for stage, norms in parts.items()}


@torch.no_grad()
def layer_gradient_disparity(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[tuple[Any, torch.Tensor]],
    stages: Stages,
) -> dict[str, torch.Tensor]:
    r"""Return how far the gradients of mini-batches lie apart for chosen parts of a network.

    .. math:: \frac{2}{S (S - 1)} \sum_{s < t} \left\|\nabla_w \frac{m_s}{\sigma_s} -
       \nabla_w \frac{m_t}{\sigma_t}\right\|_2

    with :math:`m_s` the mean and :math:`\sigma_s` the deviation of the losses of mini-batch s, as
    `gwa_core.signals.rescaled_loss` has it. A rise from epoch to epoch is taken for overfitting;
    see `gwa_core.GradientDisparity`. For the head alone `gwa_core.signals.head_gradient_disparity`
    needs no gradient.

    Parameters
    ----------
    model, loss_fn, stages
        As for `layer_alignment`.
    batches : iterable of pairs (inputs, targets)
        S mini-batches as `layer_alignment` takes one, of two samples or more each. The paper takes
        S = 5.

    Returns
    -------
    dict of str to 0-D tensor
        At least 0 for each stage, float32 (float64 for float64 weights), on the device of the
        weights. Lower is better; nan where a gradient is not finite, and where all losses of a
        mini-batch are equal.

    Raises
    ------
    TypeError, ValueError
        As `layer_alignment`, and on fewer than two mini-batches or samples in one.

    Notes
    -----
    Cost: a forward and a backward pass of each mini-batch, and S² P / 2 for the distances. Memory:
    S × P gradients for the P parameters of all stages together. Like the other functions of this
    module it takes each sample alone, so that batch norm must be in eval mode.

    References
    ----------
    Forouzesh and Thiran, "Disparity Between Batches as a Signal for Early Stopping", ECML PKDD
    2021.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from gwa_torch import layer_gradient_disparity
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    >>> batches = [(torch.randn(6, 8), torch.arange(6) % 3) for _ in range(5)]
    >>> found = layer_gradient_disparity(model, nn.CrossEntropyLoss(), batches, {"full": ""})
    >>> found["full"].shape, bool(found["full"] > 0)
    (torch.Size([]), True)
    """
    gradients = _Gradients(model, loss_fn, stages)
    found = [gradients.of_batch(x, y, rescaled_loss) for x, y in batches]
    if len(found) < 2:
        raise ValueError(
            f"`batches` must have S >= 2 mini-batches, got {len(found)}; a distance is between two"
        )
    return {
        stage: gradient_disparity(torch.stack([one[stage] for one in found]))
        for stage in gradients.stages
    }


class _Gradients:
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
        step = samples if chunk_size is None else check_count("chunk_size", chunk_size)
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
