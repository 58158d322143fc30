"""Parts of a network, from explicit gradients: γ, norms, and how far mini-batches lie apart."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gwa_core import gradient_alignment, gradient_norms
from gwa_core.signals import gradient_disparity, rescaled_loss
from gwa_jax._rows import check_count
from gwa_jax._tracing import automatic, lenient, spec
from gwa_jax.scoring import Array

__all__ = ["layer_alignment", "layer_gradient_disparity", "layer_gradient_norms"]

LossFn: TypeAlias = Callable[[Any, Any, Any], Any]
Stages: TypeAlias = Mapping[str, str | Sequence[str]] | Sequence[str]


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
    parameters of all stages together, a few copies of the largest stage, or
    ``chunk_size`` × P. Runs under jit, scan, vmap and shard_map, and on global arrays of any sharding.
    Call it under jit: outside, every call traces the loss again.

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

    return _Gradients(loss_fn, params, stages).of_samples(measure, inputs, targets, chunk_size)


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
    Parameters, cost and memory are the same as of `layer_alignment`. GraNd is the mean over several
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
        length: Array = gradient_norms(gradient[None])[0]
        return length

    return _Gradients(loss_fn, params, stages).of_samples(measure, inputs, targets, chunk_size)


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
    gradients = _Gradients(loss_fn, params, stages)
    return gradients.of_batches(rescaled_loss, gradient_disparity, batches)


class _Gradients:
    """Gradients of a loss with respect to the stages of a network.

    Parameters
    ----------
    loss_fn, params, stages
        As for `layer_alignment`.
    """

    def __init__(self, loss_fn: LossFn, params: Any, stages: Stages | None) -> None:
        nnx: Any = sys.modules.get("flax.nnx")
        self._loss_fn = loss_fn
        if nnx and isinstance(params, nnx.Module):
            graph, params = nnx.split(params)
            self._loss_fn = lambda params, x, y: loss_fn(nnx.merge(graph, params), x, y)
        self._leaves, self._tree = jax.tree.flatten(params)
        self._members = _members(_names(params, nnx), stages)
        self._wanted = sorted(set().union(*self._members.values()))
        self._arrays = {k: x for k, x in enumerate(self._leaves) if _is_array(x)}

    def of_samples(
        self,
        measure: Callable[[Array, Array], Array],
        inputs: Any,
        targets: Any,
        chunk_size: int | None,
    ) -> dict[str, Array]:
        """Return (N,) by stage: what `measure` makes of each gradient (P,) and the weights (P,)."""
        samples = _count("`inputs` and `targets`", (inputs, targets))
        step = samples if chunk_size is None else check_count("chunk_size", chunk_size)

        def of_all(arrays: dict[int, Array], data: Any) -> dict[str, Array]:
            weights, loss = self._parts(arrays, data)
            flat = self._by_stage(weights)

            def of_one(sample: Any) -> dict[str, Array]:
                found = self._by_stage(jax.grad(loss)(weights, *sample))
                return {stage: lenient(measure)(found[stage], flat[stage]) for stage in flat}

            if step < samples:
                made: dict[str, Array] = jax.lax.map(of_one, data, batch_size=step)
            else:
                made = jax.vmap(of_one)(data)
            return made

        first = jax.tree.leaves((inputs, targets))[0]
        return self._call(of_all, (inputs, targets), spec(first, leave=first.ndim - 1))

    def of_batches(
        self,
        reduce: Callable[[Array], Array],
        measure: Callable[[Array], Array],
        batches: Iterable[tuple[Any, Any]],
    ) -> dict[str, Array]:
        """Return by stage what `measure` makes of the gradients (S, P) of reduced losses (B,)."""
        batches = [(inputs, targets) for inputs, targets in batches]
        sizes = [_count("`batches`: inputs and targets", batch) for batch in batches]
        if len(sizes) < 2 or len(set(sizes)) > 1 or sizes[0] < 2:
            raise ValueError(
                "`batches` must be two mini-batches or more of one size, at least two samples, got "
                f"sizes {', '.join(map(str, sizes)) or 'of none'}; leave the rest of an epoch out"
            )

        def of_all(arrays: dict[int, Array], data: Any) -> dict[str, Array]:
            weights, loss = self._parts(arrays, data)

            def of_one(batch: Any) -> dict[str, Array]:
                def reduced(weights: dict[int, Array]) -> Array:
                    losses = jax.vmap(loss, in_axes=(None, 0, 0))(weights, *batch)
                    return lenient(reduce)(losses)  # type: ignore[no-any-return]

                return self._by_stage(jax.grad(reduced)(weights))

            # One after the other, so that the network is compiled once.
            found = jax.lax.map(of_one, jax.tree.map(lambda *x: jnp.stack(x), *data))
            return {stage: lenient(measure)(some) for stage, some in found.items()}

        return self._call(of_all, batches, PartitionSpec())  # type: ignore[no-untyped-call]

    def _call(self, function: Callable[..., Any], data: Any, out: Any) -> dict[str, Array]:
        arrays, data = jax.lax.stop_gradient((self._arrays, data))
        made = automatic(function, dict.fromkeys(self._members, out), arrays, data)
        # In the order that was asked for; JAX has sorted them.
        return {stage: jax.lax.stop_gradient(made[stage]) for stage in self._members}

    def _parts(
        self, arrays: dict[int, Array], data: Any
    ) -> tuple[dict[int, Array], Callable[..., Any]]:
        """Return the parameters of all stages, and the loss of a sample as a function of them."""
        known = dict(enumerate(self._leaves)) | arrays

        def loss(weights: dict[int, Array], x: Any, y: Any) -> Any:
            params = jax.tree.unflatten(self._tree, (known | weights).values())
            return _one_number(self._loss_fn(params, x, y))

        return {k: _varying(arrays[k], data) for k in self._wanted}, loss

    def _by_stage(self, arrays: dict[int, Array]) -> dict[str, Array]:
        return {stage: _flat(arrays[k] for k in some) for stage, some in self._members.items()}


@lenient
def _flat(arrays: Iterable[Array]) -> Array:
    """Join the arrays of a stage, in the widest of their dtypes but at least float32."""
    arrays = list(arrays)
    wide = jnp.result_type(jnp.float32, *(x.dtype for x in arrays))
    return jnp.concatenate([jnp.ravel(x).astype(wide) for x in arrays])


def _varying(x: Array, data: Any) -> Array:
    """Let a parameter differ between the devices of `shard_map` where the samples do.

    JAX would take the gradient of one that is the same on all devices as the sum over them.
    """
    axes = {axis for leaf in jax.tree.leaves(data) for axis in _axes(leaf)} - _axes(x)
    lax: Any = jax.lax
    if axes and hasattr(lax, "pcast"):
        x = lax.pcast(x, tuple(axes), to="varying")
    elif axes:  # JAX 0.8
        x = lax.pvary(x, tuple(axes))
    return x


def _axes(x: Any) -> frozenset[Any]:
    """Return the axes of a mesh over which an array varies inside `shard_map`."""
    kind: Any = jax.typeof(x) if isinstance(x, jax.Array) else None
    # JAX 0.10 has renamed it.
    axes: frozenset[Any] = getattr(
        getattr(kind, "manual_axis_type", None), "varying", getattr(kind, "vma", frozenset())
    )
    return axes


def _is_array(x: Any) -> bool:
    """Tell arrays from what else is a leaf of an Equinox module."""
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _one_number(value: Any) -> Any:
    if not _is_array(value) or value.ndim or not jnp.issubdtype(value.dtype, jnp.floating):
        got = f"{value.dtype}{list(value.shape)}" if _is_array(value) else type(value).__name__
        raise ValueError(
            f"`loss_fn` must return one floating-point number, a 0-D array, got {got}; it is called "
            "for one sample without an axis for the batch, and returns the loss alone"
        )
    return value


def _names(params: Any, nnx: Any) -> dict[int, str]:
    """Return the dotted paths of all parameters by their place among the leaves."""
    kind = nnx.Variable if nnx else ()
    nodes, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: isinstance(x, kind))
    names: dict[int, str] = {}
    place = 0
    for path, node in nodes:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        trained = not isinstance(node, kind) or isinstance(node, nnx.Param)
        for leaf in jax.tree.leaves(node):
            floating = _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)
            if trained and floating and not name.startswith("batch_stats."):
                names[place] = name
            place += 1
    return names


def _members(names: dict[int, str], stages: Stages | None) -> dict[str, list[int]]:
    """Return the places of the parameters of each stage, in the order of the tree."""
    if stages is None:
        stages = {"full": ""}
    if isinstance(stages, str):
        stages = [stages]
    if not isinstance(stages, Mapping):
        stages = {prefix: [prefix] for prefix in stages}
    if not stages:
        raise ValueError("`stages` must name at least one part of the tree, got none")
    # Haiku writes a module inside another as "outer/~/inner".
    places = {name[: end.start()] for name in names.values() for end in re.finditer("[./]", name)}
    places |= {"", *names.values()}
    found = {}
    for stage, given in stages.items():
        prefixes = [given] if isinstance(given, str) else list(given)
        for prefix in prefixes:
            if prefix not in places:
                near = difflib.get_close_matches(prefix, sorted(places - {""}), n=3) or sorted(
                    {re.split("[./]", name)[0] for name in names.values()}
                )
                raise ValueError(
                    "`stages` must name sub-trees or arrays with parameters, got "
                    f"{prefix!r} in stage {stage!r}; there are {', '.join(near) or 'none'}"
                )
        found[stage] = [
            place
            for place, name in names.items()
            if any(
                not prefix or name == prefix or name.startswith((f"{prefix}.", f"{prefix}/"))
                for prefix in prefixes
            )
        ]
        if not found[stage]:
            raise ValueError(
                f"`stages` must have parameters, got stage {stage!r} of {prefixes} with none; they "
                "are arrays of floating point"
            )
    return found


def _count(name: str, data: Any) -> int:
    """Return how many samples there are."""
    arrays = jax.tree.leaves(data)
    if not all(_is_array(x) and x.ndim for x in arrays):
        kinds = ", ".join(
            f"{x.dtype}{list(x.shape)}" if _is_array(x) else type(x).__name__ for x in arrays[:8]
        )
        raise TypeError(
            f"{name} must be arrays with the samples first, got {kinds}; convert "
            "lists with `jax.numpy.asarray`"
        )
    sizes = [x.shape[0] for x in arrays]
    if len(set(sizes)) != 1 or sizes[0] == 0:
        raise ValueError(
            f"{name} must have the same number of samples, at least one, got "
            f"{', '.join(map(str, sizes)) or 'no array'}"
        )
    return int(sizes[0])
