"""Parts of a network, from explicit gradients: γ, norms, and how far mini-batches lie apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gwa_core import gradient_alignment
from gwa_core.signals import gradient_disparity, rescaled_loss
from gwa_torch._stages import Gradients, LossFn, Stages

__all__ = ["layer_alignment", "layer_gradient_disparity", "layer_gradient_norms"]


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
    gradients = Gradients(model, loss_fn, stages)
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
    Cost and memory: those of `layer_alignment`. GraNd is the mean over several initialisations, and
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
    gradients = Gradients(model, loss_fn, stages)
    parts: dict[str, list[torch.Tensor]] = {stage: [] for stage in gradients.stages}
    for stage, some in gradients.of_samples(inputs, targets, chunk_size):
        wide = torch.promote_types(some.dtype, torch.float32)
        parts[stage].append(torch.linalg.vector_norm(some, dim=1, dtype=wide))
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
    gradients = Gradients(model, loss_fn, stages)
    found = [gradients.of_batch(x, y, rescaled_loss) for x, y in batches]
    if len(found) < 2:
        raise ValueError(
            f"`batches` must have S >= 2 mini-batches, got {len(found)}; a distance is between two"
        )
    return {
        stage: gradient_disparity(torch.stack([one[stage] for one in found]))
        for stage in gradients.stages
    }
