"""Parts of a network, from explicit gradients: γ, norms, and how far mini-batches lie apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from gwa_core import gradient_alignment
from gwa_core.signals import gradient_disparity, rescaled_loss
from gwa_jax._stages import Gradients, LossFn, Stages
from gwa_jax.scoring import Array

__all__ = ["layer_alignment", "layer_gradient_disparity", "layer_gradient_norms"]


def layer_alignment(
    loss_fn: LossFn,
    params: Any,
    inputs: Any,
    targets: Any,
    stages: Stages | None = None,
    *,
    chunk_size: int | None = None,
) -> dict[str, Array]:
    r"""Return γ of a batch for chosen parts of a network, or for all of it.

    .. math:: \gamma_i = \frac{-\nabla_w \mathcal L_i \cdot w}{\|\nabla_w \mathcal L_i\|\,\|w\|}

    The paper compares the head with ever more stages before it, and finds that more layers make a
    worse signal (Fig. 7). For the head alone `update` and `head_scores` need no gradient.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(params, x, y)`` to one number, for one sample without an axis for the batch, as
        ``jax.vmap`` has it. A model that must have that axis gets ``x[None]``.
    params : pytree
        All parameters: of Flax Linen or Haiku, an ``nnx.State``, an ``nnx.Module``, an Equinox
        module, or any other. The first argument of `loss_fn`.
    inputs : array, or pytree of arrays
        N samples along the first axis of every array.
    targets : array, or pytree of arrays
        One entry for each sample.
    stages : mapping of str to str or list of str, or list of str, optional
        Which parameters belong together: a name for each stage, and the dotted paths of its
        sub-trees or arrays, such as ``"Dense_1"``, ``"Dense_1.kernel"`` or ``"layers.2"``. A list
        makes each entry its own stage. An empty string is everything. Default all in one stage,
        ``"full"``.
    chunk_size : int, optional
        How many samples have their gradients at the same time, default all N.

    Returns
    -------
    dict of str to array of shape (N,)
        In [-1, 1] for each stage, float32 (float64 for float64 parameters). No gradient flows
        through it.

    Raises
    ------
    TypeError, ValueError
        If a stage names nothing in the tree or no parameters, a loss is not one number, or numbers
        of samples differ.

    Notes
    -----
    What counts as a parameter: every array of floating point, except the collection
    ``batch_stats`` of Linen and the variables of NNX other than ``nnx.Param``. No gradient is taken
    of what no stage names. An array that is in the tree twice counts twice; a shared variable of an
    NNX module counts once, under its name in ``nnx.state`` (take ``nnx.jit``: ``jax.jit`` parts it).

    Each sample is alone in its pass, so that batch norm must use its running statistics. Dropout
    draws the same for every sample, unless its keys are in `inputs`:
    ``(x, jax.random.split(key, N))``.

    Cost: a forward and a backward pass of each sample, vectorised. Memory: N × P gradients for the P
    parameters of all stages together and a few copies of those of the largest stage, or
    ``chunk_size`` × P. Runs under jit, scan, vmap and shard_map, and on global arrays of any sharding.
    It is made for jit: outside, every call traces the loss anew.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. A.2 and Fig. 7.

    Examples
    --------
    >>> import jax
    >>> from gwa_jax import layer_alignment
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {
    ...     "body": jax.random.normal(keys[0], (8, 16)),
    ...     "head": jax.random.normal(keys[1], (16, 3)),
    ... }
    >>> def loss_fn(params, x, y):
    ...     logits = jax.numpy.tanh(x @ params["body"]) @ params["head"]
    ...     return -jax.nn.log_softmax(logits)[y]
    >>> x, y = jax.random.normal(keys[2], (6, 8)), jax.numpy.arange(6) % 3
    >>> stages = {"head": "head", "full": ""}
    >>> measure = jax.jit(lambda *args: layer_alignment(loss_fn, *args, stages))
    >>> {name: score.shape for name, score in measure(params, x, y).items()}
    {'full': (6,), 'head': (6,)}
    """

    def measure(gradient: Array, weights: Array) -> Array:
        score: Array = gradient_alignment(gradient[None], weights)[0]
        return score

    return Gradients(loss_fn, params, stages).of_samples(measure, inputs, targets, chunk_size)


def layer_gradient_norms(
    loss_fn: LossFn,
    params: Any,
    inputs: Any,
    targets: Any,
    stages: Stages | None = None,
    *,
    chunk_size: int | None = None,
) -> dict[str, Array]:
    r"""Return the norm of each sample's gradient for chosen parts of a network (GraNd).

    .. math:: \|\nabla_w \mathcal L_i\|_2

    High is suspicious, or hard. For the head alone `gwa_core.signals.gradient_norm` needs no
    gradient. TracIn's self-influence at a checkpoint is its square times the learning rate.

    Parameters
    ----------
    loss_fn, params, inputs, targets, stages, chunk_size
        As for `layer_alignment`.

    Returns
    -------
    dict of str to array of shape (N,)
        At least 0 for each stage, float32 (float64 for float64 parameters); not finite where a
        gradient is not. No gradient flows through it.

    Raises
    ------
    TypeError, ValueError
        As `layer_alignment`.

    Notes
    -----
    Parameters, cost and memory are those of `layer_alignment`. GraNd is the mean over several
    initialisations, and TracIn's self-influence the sum over checkpoints.

    References
    ----------
    Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021; Pruthi et al.,
    "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gwa_jax import layer_gradient_norms
    >>> def loss_fn(params, x, y):
    ...     return 0.5 * (params["w"] @ x + params["b"] - y) ** 2
    >>> params = {"w": jnp.asarray([1.0, 0.0]), "b": jnp.asarray(0.0)}
    >>> x, y = jnp.asarray([[3.0, 4.0], [0.0, 0.0]]), jnp.asarray([2.0, 1.0])
    >>> layer_gradient_norms(loss_fn, params, x, y, ["w", ""])
    {'w': Array([5., 0.], dtype=float32), '': Array([5.0990195, 1.       ], dtype=float32)}
    """

    def measure(gradient: Array, _: Array) -> Array:
        length: Array = jnp.linalg.norm(gradient)
        return length

    return Gradients(loss_fn, params, stages).of_samples(measure, inputs, targets, chunk_size)


def layer_gradient_disparity(
    loss_fn: LossFn,
    params: Any,
    batches: Iterable[tuple[Any, Any]],
    stages: Stages | None = None,
) -> dict[str, Array]:
    r"""Return how far the gradients of mini-batches lie apart for chosen parts of a network.

    .. math:: \frac{2}{S (S - 1)} \sum_{s < t} \left\|\nabla_w \frac{m_s}{\sigma_s} -
       \nabla_w \frac{m_t}{\sigma_t}\right\|_2

    with :math:`m_s` the mean and :math:`\sigma_s` the deviation of the losses of mini-batch s, as
    `gwa_core.signals.rescaled_loss` has it. A rise from epoch to epoch is taken for overfitting;
    see `gwa_core.GradientDisparity`. For the head alone `gwa_core.signals.head_gradient_disparity`
    needs no gradient.

    Parameters
    ----------
    loss_fn, params, stages
        As for `layer_alignment`; the loss is that of one sample.
    batches : iterable of pairs (inputs, targets)
        S mini-batches of one size, at least two samples, each as `layer_alignment` takes one. The
        paper takes S = 5.

    Returns
    -------
    dict of str to 0-D array
        At least 0 for each stage, float32 (float64 for float64 parameters). Lower is better; nan
        where a gradient is not finite, and where all losses of a mini-batch are equal. No gradient
        flows through it.

    Raises
    ------
    TypeError, ValueError
        As `layer_alignment`, and on fewer than two mini-batches, on sizes that differ, and on
        mini-batches of one sample.

    Notes
    -----
    Cost: a forward and a backward pass of each mini-batch, one after the other, and O(S² P) for
    the distances. Memory: S × P gradients for the P parameters of all stages together. Each sample
    is alone in its pass, as in `layer_alignment`. Runs under jit, scan and vmap, and on global
    arrays of any sharding; in shard_map a mini-batch must be whole on its device.

    References
    ----------
    Forouzesh and Thiran, "Disparity Between Batches as a Signal for Early Stopping", ECML PKDD
    2021.

    Examples
    --------
    >>> import jax
    >>> from gwa_jax import layer_gradient_disparity
    >>> def loss_fn(kernel, x, y):
    ...     return -jax.nn.log_softmax(x @ kernel)[y]
    >>> keys = jax.random.split(jax.random.key(0), 6)
    >>> y = jax.numpy.arange(6) % 3
    >>> batches = [(jax.random.normal(key, (6, 8)), y) for key in keys[1:]]
    >>> found = layer_gradient_disparity(loss_fn, jax.random.normal(keys[0], (8, 3)), batches)
    >>> found["full"].shape, bool(found["full"] > 0)
    ((), True)
    """
    gradients = Gradients(loss_fn, params, stages)
    return gradients.of_batches(rescaled_loss, gradient_disparity, batches)
