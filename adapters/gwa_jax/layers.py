"""γ of any part of a JAX network, from explicit per-sample gradients (Fig. 7)."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from gwa_core import gradient_alignment
from gwa_jax._tracing import automatic, lenient, spec
from gwa_jax.scoring import Array

__all__ = ["layer_alignment"]

Stages: TypeAlias = Mapping[str, str | Sequence[str]] | Sequence[str]


def layer_alignment(
    loss_fn: Callable[[Any, Any, Any], Any],
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
    samples = _count(inputs, targets)
    step = samples if chunk_size is None else chunk_size
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise ValueError(f"`chunk_size` must be an integer of at least 1, got {chunk_size!r}")
    nnx: Any = sys.modules.get("flax.nnx")
    loss_of = loss_fn
    if nnx and isinstance(params, nnx.Module):
        graph, params = nnx.split(params)

        def loss_of(params: Any, x: Any, y: Any) -> Any:
            return loss_fn(nnx.merge(graph, params), x, y)

    leaves, tree = jax.tree.flatten(params)
    members = _members(_names(params, nnx), stages)
    wanted = sorted(set().union(*members.values()))
    arrays = {k: x for k, x in enumerate(leaves) if _is_array(x)}

    def measure(arrays: dict[int, Array], inputs: Any, targets: Any) -> dict[str, Array]:
        known = dict(enumerate(leaves)) | arrays
        weights = {k: _varying(arrays[k], (inputs, targets)) for k in wanted}

        def loss(weights: dict[int, Array], x: Any, y: Any) -> Any:
            return _one_number(loss_of(jax.tree.unflatten(tree, (known | weights).values()), x, y))

        flat = {stage: _flat(weights[k] for k in some) for stage, some in members.items()}

        def score(sample: tuple[Any, Any]) -> dict[str, Array]:
            found = jax.grad(loss)(weights, *sample)
            return {
                stage: _score(_flat(found[k] for k in some), flat[stage])
                for stage, some in members.items()
            }

        if step < samples:
            made: dict[str, Array] = jax.lax.map(score, (inputs, targets), batch_size=step)
        else:
            made = jax.vmap(score)((inputs, targets))
        return made

    args = jax.lax.stop_gradient((arrays, inputs, targets))
    first = jax.tree.leaves((inputs, targets))[0]
    rows = spec(first, leave=first.ndim - 1)
    scores = automatic(measure, dict.fromkeys(members, rows), *args)
    # In the order that was asked for; JAX has sorted them.
    return {stage: jax.lax.stop_gradient(scores[stage]) for stage in members}


@lenient
def _flat(arrays: Iterable[Array]) -> Array:
    """Join the arrays of a stage, in the widest of their dtypes but at least float32."""
    arrays = list(arrays)
    wide = jnp.result_type(jnp.float32, *(x.dtype for x in arrays))
    return jnp.concatenate([jnp.ravel(x).astype(wide) for x in arrays])


@lenient
def _score(gradient: Array, weights: Array) -> Array:
    score: Array = gradient_alignment(gradient[None], weights)[0]
    return score


def _varying(x: Array, data: Any) -> Array:
    """Let a parameter differ between the devices of `shard_map` where the samples do.

    JAX would take the gradient of one that is the same on all devices as the sum over them.
    """
    axes = {axis for leaf in jax.tree.leaves(data) for axis in _axes(leaf)} - _axes(x)
    lax: Any = jax.lax
    if axes and hasattr(lax, "pcast"):
        x = lax.pcast(x, tuple(axes), to="varying")
    elif axes:  # JAX 0.7 and 0.8
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


def _count(inputs: Any, targets: Any) -> int:
    """Return how many samples there are."""
    arrays = jax.tree.leaves((inputs, targets))
    if not all(_is_array(x) and x.ndim for x in arrays):
        kinds = ", ".join(
            f"{x.dtype}{list(x.shape)}" if _is_array(x) else type(x).__name__ for x in arrays[:8]
        )
        raise TypeError(
            f"`inputs` and `targets` must be arrays with the samples first, got {kinds}; convert "
            "lists with `jax.numpy.asarray`"
        )
    sizes = [x.shape[0] for x in arrays]
    if len(set(sizes)) != 1 or sizes[0] == 0:
        raise ValueError(
            "`inputs` and `targets` must have the same number of samples, at least one, got "
            f"{', '.join(map(str, sizes)) or 'no array'}"
        )
    return int(sizes[0])
