"""The scores of an epoch as a pytree, and the pure functions that take scores in."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gwa_core import Moments
from gwa_core.attribution import QualitySums
from gwa_jax._product import check_on_host, on_host
from gwa_jax._rows import NEVER, check_rows, check_size, count, place, seen
from gwa_jax._sequences import (
    Gradient,
    Min,
    Reduce,
    Sequences,
    add_parts,
    begin,
    check_reduce,
    gradient_parts,
    token_parts,
)
from gwa_jax._tracing import automatic, everywhere, lenient, spec
from gwa_jax.scoring import Array, Loss, batch_scores, check_batch, predicted

__all__ = ["State", "add", "empty", "init", "merge", "update"]


class State(NamedTuple):
    """The epoch in progress, and the label quality of those before. Make one with `init`.

    Parameters
    ----------
    epoch : 0-D int32 array
        Number of epochs that ended.
    rows : 0-D int32 array
        Rows with ids that came in this epoch, padding and repeated samples included.
    batch, before : 0-D int32 array
        Rows of the largest batch of this epoch, and rows of the epoch before.
    omitted : 0-D int32 array
        Scores that were left out: not finite, or with an id outside 0..N-1 other than -1.
    moments : Moments
        Of scores without ids.
    order : int32 array of shape (N,)
        When each sample was seen first in this epoch; 2^31 - 1 where it was not. Of sequences (0,).
    values : array of shape (N,)
        Its score then. Of sequences what their scores are made of; read them with `scores`.
    quality : QualitySums
        What `label_quality` is made of, over the epochs that ended; arrays of shape (N,).
    sequences : Mean, Min or Gradient, optional
        The other part of the scores of sequences, an array of shape (N,).
    predictions : int32 array of shape (N,), optional
        Class of the largest logit where the score was taken, -1 where not seen, if asked for.
    """

    epoch: Array
    rows: Array
    batch: Array
    before: Array
    omitted: Array
    moments: Moments
    order: Array
    values: Array
    quality: QualitySums
    sequences: Sequences | None = None
    predictions: Array | None = None


def init(
    num_samples: int | None = None,
    *,
    reduce: Reduce | None = None,
    predictions: bool = False,
    dtype: Any = jnp.float32,
) -> State:
    """Return a state before its first epoch.

    Parameters
    ----------
    num_samples : int, optional
        N, the size of the training set: scores and label quality are kept by sample id. Without
        it moments alone are kept, in O(1) memory.
    reduce : {"mean", "min", "gradient"}, optional
        The samples are sequences of tokens, `num_samples` of them: a prompt with its answer, a
        document. "mean" and "min" make one score of those of the tokens that count. "gradient" is
        the alignment of the sequence's own gradient, see `gwa_core.sequence_parts`. Default None:
        each sample has one score.
    predictions : bool
        Keep the predicted class of each sample, for `save`; every `update` then has `logits`. Default
        False.
    dtype : dtype
        Of the scores kept, default float32.

    Returns
    -------
    State
        A pytree of arrays, 16 N bytes in float32, and 4 N more for predictions.

    Raises
    ------
    ValueError
        If `num_samples` is not an integer of at least 1, or `reduce` is unknown or comes without it,
        or `predictions` come with `reduce` or without `num_samples`.

    Examples
    --------
    >>> import gwa_jax
    >>> gwa_jax.init(50_000).values.shape
    (50000,)
    """
    size = check_size(num_samples)
    check_reduce(reduce, size)
    if predictions and (not size or reduce is not None):
        raise ValueError(
            f"`predictions` must come with `num_samples` and without `reduce`, got {num_samples} and "
            f"{reduce!r}; tokens, and samples without ids, have no class to keep"
        )
    # What jit returns is bound to no device, and each leaf has a buffer that a step may donate.
    state: State = jax.jit(empty, static_argnums=(1, 2, 3, 4))(
        0, size, jnp.dtype(dtype), reduce, bool(predictions)
    )
    return state


def empty(
    epoch: Array | int, size: int, dtype: Any, reduce: str | None, predictions: bool
) -> State:
    """Return the state before an epoch."""
    zero, like = jnp.zeros((), jnp.int32), jnp.zeros((), dtype)
    values, sequences = begin(reduce, size, dtype)
    return State(
        epoch=jnp.asarray(epoch, jnp.int32),
        rows=zero,
        batch=zero,
        before=zero,
        omitted=zero,
        moments=Moments.empty(like),
        order=jnp.full((size if sequences is None else 0,), NEVER, jnp.int32),
        values=values,
        quality=QualitySums.empty(size, like),
        sequences=sequences,
        predictions=jnp.full((size,), -1, jnp.int32) if predictions else None,
    )


def update(
    state: State,
    *,
    latents: Array,
    kernel: Array,
    targets: Array | None = None,
    logits: Array | None = None,
    bias: Array | None = None,
    logit_gradients: Array | None = None,
    ids: Array | None = None,
    where: Array | None = None,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
    axis_name: Any = None,
) -> State:
    """Score a batch and take its scores in.

    Parameters
    ----------
    state : State
        From `init` or the update before; a step may donate it.
    latents, kernel, targets, logits, bias, logit_gradients, loss, label_smoothing, class_weights
        See `head_scores`; the kernel is (D, C), the one that the forward pass used. With
        `logit_gradients` the scores are right for any loss, and need no targets.
    ids : integer array of the samples' shape
        Sample numbers in 0..num_samples-1, where the state has `num_samples`. A sample counts once
        an epoch, with its first score. Rows with the id -1 are padding and do not count. With
        `reduce` the number of the sequence of each token (B, S), or of each row (B,): what comes of a
        sequence in one call or in several adds up.
    where : boolean array of the samples' shape, optional
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
        On shapes, dtypes and options that do not fit, and on ids out of range where they are a
        NumPy array. In a JAX array, ids out of range are counted in `omitted`. Outside jit on a CPU,
        also if in the first batch of an epoch a row of `logits` is not latents times kernel plus
        bias; elsewhere `check` tells.

    Notes
    -----
    Cost: that of `head_scores` and O(batch). Nothing goes to the host, no gradient flows through
    it. Runs under jit, scan and vmap; under vmap one call serves several models or seeds.

    Give sequences `where`, True for the tokens that the loss sees: a token that counts and has no
    score, such as one with the label -100, makes its sequence nan. With `logit_gradients` tokens
    whose gradient is 0 do not count. ``reduce="gradient"`` costs O(B S² (C + D)) more, and memory
    for the residuals of some rows; a sequence that is cut gets the mean of its pieces, see
    `gwa_core.sequence_parts`.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Algorithm 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import gwa_jax
    >>> state = gwa_jax.init(4)
    >>> latents, kernel = jnp.asarray([[2.0, 0.0], [0.0, 1.0]]), jnp.eye(2)
    >>> targets, ids = jnp.asarray([0, 0]), jnp.asarray([3, 1])
    >>> state = gwa_jax.update(state, latents=latents, kernel=kernel, targets=targets, ids=ids)
    >>> gwa_jax.scores(state).round(3)
    Array([ nan, -0.5,  nan,  0.5], dtype=float32)
    """
    if isinstance(state.sequences, Gradient):
        check_batch(latents, kernel, targets, logits, logit_gradients, class_weights, where, loss)
        _check_rows(state, latents.shape[:-1], ids, where)
        if bias is not None and tuple(bias.shape) != tuple(kernel.shape[1:]):
            raise ValueError(
                f"`bias` must be (C,) = {tuple(kernel.shape[1:])}, got {tuple(bias.shape)}"
            )
        parts = gradient_parts(
            latents,
            kernel,
            None if logit_gradients is not None else targets,
            logits,
            bias,
            logit_gradients,
            None if logit_gradients is not None else class_weights,
            ids,
            where,
            loss,
            float(label_smoothing),
        )
        if logits is not None and _begins(state):
            check_on_host(latents, kernel, logits, bias, where)
        new: State = _add_parts(state, parts, ids, axis_name)
        return new
    found = batch_scores(
        latents,
        kernel,
        targets,
        logits=logits,
        bias=bias,
        logit_gradients=logit_gradients,
        loss=loss,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
    )
    _check_rows(state, found.shape, ids, where)
    if logits is not None and _begins(state):
        check_on_host(latents, kernel, logits, bias, where)
    if state.predictions is not None:
        added: State = _add(state, found, ids, where, axis_name, predicted(logits, found.ndim))
        return added
    if state.sequences is not None and logit_gradients is not None:
        # A token that the loss does not see has a gradient of 0.
        seen_by_loss = jnp.any(logit_gradients != 0, axis=-1)
        where = seen_by_loss if where is None else where & seen_by_loss
    return add(state, found, ids=ids, where=where, axis_name=axis_name)


def _begins(state: State) -> bool:
    """Tell whether an epoch has no batch yet, where that can be looked at."""
    rows = state.rows if _size(state) else state.moments.count
    return on_host(rows) and rows.ndim == 0 and float(rows) == 0.0


def _check_rows(state: State, shape: tuple[int, ...], ids: Any, where: Any) -> None:
    """Check ids and mask of samples, or of tokens, of this shape."""
    sequences = state.sequences is not None
    check_rows(shape, _size(state), ids=ids, where=where, sequences=sequences)
    if ids is not None and not sequences and len(shape) > 1:
        raise ValueError(
            f"`ids` must be of samples (N,), got those of tokens {shape}; with init(num_samples, "
            "reduce='mean') the tokens of an id become one score, and where all arrays are "
            "reshaped to (N, ...) each token is a sample"
        )


def _size(state: State) -> int:
    """Return how many samples are kept by id, 0 for none; also of stacked states."""
    return state.values.shape[-1]


def add(
    state: State,
    scores: Array,
    *,
    ids: Array | None = None,
    where: Array | None = None,
    axis_name: Any = None,
) -> State:
    """Take in scores that you have already, such as the result of `head_scores`.

    Parameters
    ----------
    state : State
        From `init` or the update before.
    scores : array of any shape
        Alignment scores.
    ids, where, axis_name
        See `update`.

    Returns
    -------
    State
        The new one.

    Raises
    ------
    TypeError, ValueError
        As `update`.
    """
    kept = state.sequences
    if isinstance(kept, Gradient):
        raise TypeError(
            "`state` must keep scores or their means, got one with reduce='gradient'; the gradient "
            "of a sequence is not known from the scores of its tokens, call `update`"
        )
    check_rows(tuple(scores.shape), _size(state), ids=ids, where=where, sequences=kept is not None)
    new: State
    if kept is not None:
        new = _add_tokens(state, scores, ids, where, axis_name)
        return new
    if ids is not None and scores.ndim > 1:
        raise ValueError(
            f"`ids` must be of samples (N,), got tokens {tuple(scores.shape)}; with "
            "init(num_samples, reduce='mean') the tokens of an id become one score, and with "
            "`ids.reshape(-1)` and all else each of them is a sample"
        )
    new = _add(state, scores, ids, where, axis_name)
    return new


@functools.partial(jax.jit, static_argnums=4)
@lenient
def _add_tokens(
    state: State, scores: Array, ids: Array, where: Array | None, axis_name: Any
) -> State:
    scores = jax.lax.stop_gradient(scores)
    make = functools.partial(token_parts, least=isinstance(state.sequences, Min))
    parts = automatic(make, (spec(scores), spec(scores)), scores, where)
    new: State = _add_parts(state, parts, ids, axis_name)
    return new


@functools.partial(jax.jit, static_argnums=3)
@lenient
def _add_parts(state: State, parts: tuple[Array, Array], ids: Array, axis_name: Any) -> State:
    take_in = functools.partial(_take_in_parts, axis_name=axis_name)
    new: State = automatic(take_in, jax.tree.map(spec, state), state, parts, ids)
    return new


def _take_in_parts(
    state: State, parts: tuple[Array, Array], ids: Array, *, axis_name: Any
) -> State:
    kept: Any = state.sequences
    taken = add_parts(state.values, kept, parts, ids, axis_name)
    return state._replace(
        rows=state.rows + taken.rows,
        batch=jnp.maximum(state.batch, taken.rows),
        omitted=state.omitted + taken.unknown,
        values=taken.values,
        sequences=kept._replace(lengths=taken.lengths),
    )


@functools.partial(jax.jit, static_argnums=4)
@lenient
def _add(
    state: State,
    scores: Array,
    ids: Array | None,
    where: Array | None,
    axis_name: Any,
    classes: Array | None = None,
) -> State:
    take_in = functools.partial(_take_in, axis_name=axis_name)
    new: State = automatic(take_in, jax.tree.map(spec, state), state, scores, ids, where, classes)
    return new


def _take_in(
    state: State,
    scores: Array,
    ids: Array | None,
    where: Array | None,
    classes: Array | None,
    *,
    axis_name: Any,
) -> State:
    scores = jax.lax.stop_gradient(scores).reshape(-1).astype(state.values.dtype)
    where = seen(where, len(scores), axis_name)
    if axis_name is not None:
        scores = everywhere(scores, axis_name)
    if ids is None:
        counted = where & jnp.isfinite(scores)
        return state._replace(
            omitted=state.omitted + count(where & ~counted),
            moments=state.moments.merge(Moments.from_batch(scores, where=counted)),
        )
    rows = place(state.order, state.rows, ids, where, axis_name)
    predictions = state.predictions
    if predictions is not None and classes is not None:
        classes = classes.astype(jnp.int32)
        classes = classes if axis_name is None else everywhere(classes, axis_name)
        predictions = predictions.at[rows.slots].set(classes, mode="drop")
    return state._replace(
        predictions=predictions,
        rows=state.rows + len(scores),
        batch=jnp.maximum(state.batch, len(scores)),
        omitted=state.omitted + rows.unknown,
        order=rows.order,
        values=state.values.at[rows.slots].set(scores, mode="drop"),
    )


@jax.jit
@lenient
def merge(state: State, other: State) -> State:
    """Return the epoch in progress of two states together, as of two shards of the data.

    Parameters
    ----------
    state, other : State
        Of the same `num_samples` and `reduce`. A sample that both saw keeps the score of the one
        that saw it in an earlier row; what both saw of a sequence adds up.

    Returns
    -------
    State
        Of both.

    Raises
    ------
    ValueError
        If they do not belong together.

    Notes
    -----
    Merge before `end_epoch`, and continue on all shards from the state that it returns: how much
    an epoch counts in label quality depends on all of its scores. Of label quality a sample keeps
    the sums of the state where it counted more, so that a past that both share counts once.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import gwa_jax
    >>> a, b = (gwa_jax.add(gwa_jax.init(), jnp.asarray(x)) for x in ([0.1, 0.2], [0.6]))
    >>> int(gwa_jax.summary(gwa_jax.merge(a, b)).count)
    3
    """
    if _size(state) != _size(other):
        raise ValueError(
            f"`other` must have num_samples={_size(state) or None}, got {_size(other) or None}"
        )
    if (state.predictions is None) != (other.predictions is None):
        raise ValueError("`other` must have predictions where `state` has them; `init` both alike")
    if type(state.sequences) is not type(other.sequences):
        raise ValueError("`other` must have the same `reduce`, got another way to keep sequences")
    kept: Any = state.sequences
    predictions = state.predictions
    if predictions is not None and other.predictions is not None:
        predictions = jnp.where(other.order < state.order, other.predictions, predictions)
    if kept is None:
        values = jnp.where(other.order < state.order, other.values, state.values)
    else:
        join = jnp.minimum if isinstance(kept, Min) else jnp.add
        values = join(state.values, other.values)
        more_of_them: Any = other.sequences
        kept = kept._replace(lengths=kept.lengths + more_of_them.lengths)
    # A negative share is of epochs without a weight: any epoch with one displaces them.
    ours, theirs = state.quality.share, other.quality.share
    more = jnp.where(theirs > 0, theirs > ours, (ours <= 0) & (theirs < ours))
    return State(
        epoch=jnp.maximum(state.epoch, other.epoch),
        rows=state.rows + other.rows,
        # Each of them may have dropped what did not fill a batch.
        batch=state.batch + other.batch,
        before=jnp.maximum(state.before, other.before),
        omitted=state.omitted + other.omitted,
        moments=state.moments.merge(other.moments),
        order=jnp.minimum(state.order, other.order),
        values=values,
        quality=QualitySums(
            *(jnp.where(more, b, a) for a, b in zip(state.quality, other.quality, strict=True))
        ),
        sequences=kept,
        predictions=predictions,
    )
