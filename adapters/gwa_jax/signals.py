"""Signals beside the scores, as a pytree that goes through a jitted step."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gwa_core import Moments, summarize
from gwa_core.signals import OverEpochs, sample_signals
from gwa_core.signals.over_epochs import check_names
from gwa_jax._rows import NEVER, check_rows, check_size, place, seen
from gwa_jax._tracing import automatic, everywhere, lenient, spec
from gwa_jax.scoring import Array

__all__ = ["State", "end_epoch", "init", "over_epochs", "update", "values"]


class State(NamedTuple):
    """The signals of a training. Make one with `init`.

    Parameters
    ----------
    rows : 0-D int32 array
        Rows with ids that came in this epoch.
    omitted : 0-D int32 array
        Rows that were left out since `init`, with an id outside 0..N-1 other than -1.
    order : int32 array of shape (N,)
        When each sample was seen first in this epoch; 2^31 - 1 where it was not.
    latest : dict of str to array of shape (N,)
        Each sample's values when it was seen last; read them with `values`.
    moments : Moments, optional
        Of values without ids: fields of one entry a signal, in the order of their names.
    run : OverEpochs
        Of the epochs that ended.
    """

    rows: Array
    omitted: Array
    order: Array
    latest: dict[str, Array]
    moments: Moments | None
    run: OverEpochs


def init(names: Iterable[str], num_samples: int | None = None) -> State:
    """Return a state before its first epoch.

    Parameters
    ----------
    names : iterable of str
        Keys of ``gwa_core.signals.SIGNALS``.
    num_samples : int, optional
        N, the size of the training set: values are kept by sample id, and compared between epochs.
        Without it there are means of epochs alone, in O(1) memory.

    Returns
    -------
    State
        A pytree of float32 arrays: 4 N bytes, and 8 to 20 N a signal.

    Raises
    ------
    ValueError
        On unknown names, on names that need ids without `num_samples`, and if that is not an
        integer of at least 1.

    Examples
    --------
    >>> import gwa_jax
    >>> state = gwa_jax.signals.init(["margin", "forgetting_events"], 50_000)
    >>> {name: values.shape for name, values in gwa_jax.signals.values(state).items()}
    {'margin': (50000,)}
    """
    size = check_size(num_samples)
    # What jit returns is bound to no device, and each leaf has a buffer that a step may donate.
    state: State = _empty(check_names(names, num_samples), size)
    return state


@functools.partial(jax.jit, static_argnums=(0, 1))
@lenient
def _empty(names: tuple[str, ...], size: int) -> State:
    zero, whole = jnp.zeros((), jnp.int32), jnp.zeros((size,), jnp.float32)
    run = OverEpochs.begin(names, whole)
    return State(
        rows=zero,
        omitted=zero,
        order=jnp.full((size,), NEVER, jnp.int32),
        latest=dict.fromkeys(run.sources, whole + jnp.nan),
        moments=None if size else _no_moments(len(run.sources)),
        run=run,
    )


def _no_moments(signals: int) -> Moments:
    """Return moments of nothing for each signal."""
    moments: Moments = jax.vmap(Moments.empty)(jnp.zeros((signals,), jnp.float32))
    return moments


def update(
    state: State,
    *,
    logits: Array,
    targets: Array,
    latents: Array | None = None,
    ids: Array | None = None,
    where: Array | None = None,
    axis_name: Any = None,
) -> State:
    """Take in a batch.

    Parameters
    ----------
    state : State
        From `init` or the update before; a step may donate it.
    logits : array of shape (..., C)
        Outputs of the head, before the optimiser's step; tokens and pixels are samples. One output
        (..., 1) is that of a sigmoid.
    targets : integer array of shape (...,)
        Class numbers in 0..C-1, of a sigmoid 0 or 1. Another number makes the sample's values nan.
    latents : array of shape (..., D), optional
        Inputs of the head, for the signals that need them.
    ids : integer array of shape (...,)
        Sample numbers in 0..num_samples-1, where the state has `num_samples`. A sample counts once
        an epoch, with its first row. -1 is padding; other ids are counted as `omitted`.
    where : boolean array of shape (...,), optional
        True for samples that count, False for padding.
    axis_name : str or tuple of str, optional
        Inside `shard_map` or `pmap`: the axes that the batch is split over. Every device then
        takes in the whole batch, and the state stays the same on all of them. Global arrays under
        jit need no axis.

    Returns
    -------
    State
        The new one.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit, on latents that are missing, and on ids out of range
        where they are a NumPy array.

    Notes
    -----
    Cost: one pass over the logits and one over the latents for all signals together, and a scatter
    of the batch for each. Nothing goes to the host, no gradient flows through it. Runs under jit,
    scan and vmap.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import gwa_jax
    >>> state = gwa_jax.signals.init("margin", 3)
    >>> logits, targets = jnp.asarray([[2.0, 0.5], [1.0, 3.0]]), jnp.asarray([0, 0])
    >>> ids = jnp.asarray([2, 0])
    >>> state = gwa_jax.signals.update(state, logits=logits, targets=targets, ids=ids)
    >>> gwa_jax.signals.values(state)["margin"]
    Array([-2. ,  nan,  1.5], dtype=float32)
    """
    shape = tuple(logits.shape[:-1])
    if logits.ndim < 1 or math.prod(shape) == 0:
        raise ValueError(
            f"`logits` must be (..., C) with at least one sample, got shape {tuple(logits.shape)}"
        )
    if tuple(targets.shape) != shape or not jnp.issubdtype(targets.dtype, jnp.integer):
        cause = (
            "cast class numbers to an integer dtype"
            if tuple(targets.shape) == shape
            else "after mixup no class is the label"
        )
        raise ValueError(
            f"`targets` must be class numbers of shape {shape} for logits {tuple(logits.shape)}, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}; {cause}"
        )
    if latents is not None and tuple(latents.shape[:-1]) != shape:
        raise ValueError(
            f"`latents` must be (*{shape}, D) for logits {tuple(logits.shape)}, got "
            f"{tuple(latents.shape)}"
        )
    check_rows(shape, state.order.shape[-1], ids=ids, where=where)
    new: State = _update(state, logits, targets, latents, ids, where, axis_name)
    return new


@functools.partial(jax.jit, static_argnums=6)
@lenient
def _update(
    state: State,
    logits: Array,
    targets: Array,
    latents: Array | None,
    ids: Array | None,
    where: Array | None,
    axis_name: Any,
) -> State:
    taken = functools.partial(_take_in, axis_name=axis_name)
    given = jax.lax.stop_gradient((logits, targets, latents))
    new: State = automatic(taken, jax.tree.map(spec, state), state, *given, ids, where)
    return new


def _take_in(
    state: State,
    logits: Array,
    targets: Array,
    latents: Array | None,
    ids: Array | None,
    where: Array | None,
    *,
    axis_name: Any,
) -> State:
    """Return the state after a batch."""
    found = sample_signals(
        state.latest,
        logits=logits.reshape(-1, logits.shape[-1]),
        targets=targets.reshape(-1),
        latents=None if latents is None else latents.reshape(-1, latents.shape[-1]),
    )
    where = seen(where, targets.size, axis_name)
    if axis_name is not None:
        found = {name: everywhere(x, axis_name) for name, x in found.items()}
    if ids is None:
        # One call for all signals: each would be compiled on its own.
        merge: Any = jax.vmap(Moments.merge)
        moments = jax.vmap(functools.partial(Moments.from_batch, where=where))(_stacked(found))
        return state._replace(moments=merge(state.moments, moments))
    rows = place(state.order, state.rows, ids, where, axis_name)
    return state._replace(
        rows=state.rows + len(where),
        omitted=state.omitted + rows.unknown,
        order=rows.order,
        latest={
            name: state.latest[name].at[rows.slots].set(x.astype(jnp.float32), mode="drop")
            for name, x in found.items()
        },
    )


def _stacked(values: dict[str, Array]) -> Array:
    """Stack values in the order of their names."""
    return jnp.stack([values[name] for name in sorted(values)])


@jax.jit
@lenient
def end_epoch(state: State) -> tuple[State, dict[str, Array]]:
    """Return the mean of each signal over the samples of the epoch, and begin a new one.

    Parameters
    ----------
    state : State
        After the last update of the epoch.

    Returns
    -------
    State, dict of str to 0-D array
        The state of the next epoch; and what `gwa_core.signals.TrackedSignals` puts into its
        history, on the device: "prediction_changes" is the share of changed predictions, nan in
        the first epoch; "forgetting_events" and "variability" are means of what they are up to
        here. ``jax.device_get`` makes numbers of them.

    Notes
    -----
    The mean over no sample is nan. Cost: O(N) a signal. Runs under jit, scan and vmap.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import gwa_jax
    >>> state = gwa_jax.signals.init(["margin", "prediction_changes"], 2)
    >>> targets, ids = jnp.asarray([0, 0]), jnp.asarray([0, 1])
    >>> for logits in ([[2.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]):
    ...     logits = jnp.asarray(logits)
    ...     state = gwa_jax.signals.update(state, logits=logits, targets=targets, ids=ids)
    ...     state, means = gwa_jax.signals.end_epoch(state)
    ...     print({name: float(mean) for name, mean in means.items()})
    {'margin': 1.5, 'prediction_changes': nan}
    {'margin': 0.5, 'prediction_changes': 0.5}
    """
    whole = dict.fromkeys(state.run.kept, PartitionSpec())  # type: ignore[no-untyped-call]
    both: tuple[State, dict[str, Array]] = automatic(
        _end, (jax.tree.map(spec, state), whole), state
    )
    return both


def _end(state: State) -> tuple[State, dict[str, Array]]:
    """Return the state of the next epoch, and the means of the one that ends."""
    size, latest, run = state.order.shape[0], state.latest, state.run
    of: Array | Moments | None = state.moments
    names = sorted(latest)
    if size:
        # By the order alone: an epoch without a row has none of the values before it.
        latest = _where(state.order < NEVER, latest)
        run, of = run.add(latest), _stacked(latest)
    means = dict(zip(names, jax.vmap(summarize)(of).mean, strict=True)) | run.means()
    means = {name: means[name] for name in run.kept}
    new = state._replace(
        rows=jnp.zeros((), jnp.int32),
        order=jnp.full((size,), NEVER, jnp.int32),
        latest=latest,
        moments=None if size else _no_moments(len(names)),
        run=run,
    )
    return new, means


@jax.jit
@lenient
def values(state: State) -> dict[str, Array]:
    """Return each sample's value of the epoch in progress, or of the last one before a first batch.

    Parameters
    ----------
    state : State
        With `num_samples`.

    Returns
    -------
    dict of str to array of shape (N,)
        By id, nan where not seen; of the signals that do not compare epochs.

    Raises
    ------
    ValueError
        If the state has no `num_samples`.
    """
    _check_size(state)
    specs = {name: spec(x) for name, x in state.latest.items()}
    found: dict[str, Array] = automatic(_known_values, specs, state)
    return {name: x for name, x in found.items() if name in state.run.kept}


def _known_values(state: State) -> dict[str, Array]:
    """Return the values by sample, nan where it was not seen."""
    # Also of _stacked states. Nothing is erased between epochs.
    known = (state.rows[..., None] == 0) | (state.order < NEVER)
    return _where(known, state.latest)


def _where(known: Array, values: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.where(known, x, jnp.nan) for name, x in values.items()}


@jax.jit
@lenient
def over_epochs(state: State) -> dict[str, Array]:
    """Return each sample's value over the epochs that ended.

    Parameters
    ----------
    state : State
        With `num_samples`.

    Returns
    -------
    dict of str to array of shape (N,)
        By id, nan where never seen: the mean over the epochs in which it was seen; of
        "variability" the standard deviation of its probabilities, of "forgetting_events" their
        number. `suspicious` in ``gwa_core.signals.SIGNALS`` says which end to look at.

    Raises
    ------
    ValueError
        If the state has no `num_samples`.
    """
    _check_size(state)
    specs = dict.fromkeys(state.run.by_sample(), spec(state.order))
    found: dict[str, Array] = automatic(OverEpochs.by_sample, specs, state.run)
    return found


def _check_size(state: State) -> None:
    if not state.order.shape[-1]:
        raise ValueError(
            "`num_samples` must be given to keep values by sample, got None; say "
            "init(names, num_samples=len(dataset))"
        )
