"""The rows of a batch by sample: which of them count, and where their values go."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gwa_jax._tracing import everywhere

__all__ = ["NEVER", "Rows", "check_count", "check_rows", "check_size", "count", "place", "seen"]

# The order of a sample that was not seen yet.
NEVER = np.iinfo(np.int32).max
# The id of rows that only fill a batch up.
PADDING = -1


class Rows(NamedTuple):
    """Where the rows of a batch go.

    Parameters
    ----------
    order : int32 array of shape (N,)
        When each sample was seen first in this epoch, this batch included.
    slots : int32 array of shape (rows,)
        Place of each row's value; N, which is none, where the row is not the first of its sample.
    unknown : 0-D int32 array
        Rows that count, with an id outside 0..N-1 other than -1.
    """

    order: jax.Array
    slots: jax.Array
    unknown: jax.Array


def check_count(name: str, value: Any) -> int:
    """Return an integer of at least one, of any library's kind, as a Python one."""
    try:
        # Older releases of NumPy take their bools for integers.
        number = 0 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number < NEVER:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}")
    return number


def check_size(num_samples: int | None) -> int:
    """Return how many samples are kept by id, 0 for none."""
    return 0 if num_samples is None else check_count("num_samples", num_samples)


def check_rows(
    shape: tuple[int, ...], size: int, *, ids: Any, where: Any, sequences: bool = False
) -> None:
    """Check ids and mask of a batch of samples of this shape, for a state of `size` samples.

    Where sequences are kept, the samples are tokens, and the ids are of tokens or of rows of them.
    """
    for name, x in {"ids": ids, "where": where}.items():
        if x is not None and not hasattr(x, "shape"):
            raise TypeError(f"`{name}` must be an array, got {type(x).__name__}; use jnp.asarray")
        if x is None or tuple(x.shape) == shape:
            continue
        of_rows = name == "ids" and 0 < x.ndim < len(shape) and tuple(x.shape) == shape[: x.ndim]
        if of_rows and sequences:
            continue
        cause = (
            "; ids of rows of tokens need a way to make one score of them, say "
            "init(num_samples, reduce='mean')"
            if of_rows
            else ""
        )
        raise ValueError(
            f"`{name}` must have one entry a sample, {shape}, got {tuple(x.shape)}{cause}"
        )
    if where is not None and where.dtype != bool:
        raise ValueError(f"`where` must be boolean, got {where.dtype}; True marks what counts")
    if (ids is None) != (size == 0):
        raise ValueError(
            "`ids` and `num_samples` must be given together, got "
            f"{'no ' if ids is None else ''}ids and num_samples={size or None}; let the dataset "
            "give its index, and say init(num_samples=len(dataset))"
        )
    if ids is not None and not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"`ids` must be integers, got {ids.dtype}")
    if isinstance(ids, np.ndarray) and ids.size and not PADDING <= ids.min() <= ids.max() < size:
        raise ValueError(
            f"`ids` must be in 0..{size - 1}, got {ids.min()}..{ids.max()}; ids number the whole "
            "training set, not the batch, and -1 marks padding"
        )


def seen(where: jax.Array | None, rows: int, axis_name: Any) -> jax.Array:
    """Return which rows of all devices count."""
    where = jnp.ones((rows,), bool) if where is None else where.reshape(-1)
    return where if axis_name is None else everywhere(where, axis_name)


def narrow(ids: jax.Array, size: int) -> jax.Array:
    """Return ids of 32 bits; what is out of range stays so, and does not wrap to another sample."""
    if ids.dtype.itemsize > 4:
        inside = ((ids >= 0) & (ids < size)) | (ids == PADDING)
        ids = jnp.where(inside, ids, size)
    return ids.astype(jnp.int32)


def place(
    order: jax.Array, begin: jax.Array, ids: jax.Array, where: jax.Array, axis_name: Any
) -> Rows:
    """Find the rows that are the first of their sample, after `begin` rows of the epoch."""
    ids = narrow(ids, order.shape[0]).reshape(-1)
    if axis_name is not None:
        ids = everywhere(ids, axis_name)
    size = order.shape[0]
    where = where & (ids != PADDING)
    known = where & (ids >= 0) & (ids < size)
    # Places outside are dropped.
    slots = jnp.where(known, ids, size)
    moment = begin + jnp.arange(len(ids), dtype=jnp.int32)
    order = order.at[slots].min(moment, mode="drop")
    # One row of a batch is the first of its sample, so that no two write to one place.
    first = order.at[slots].get(mode="fill", fill_value=-1) == moment
    return Rows(order, jnp.where(first, slots, size), count(where & ~known))


def count(x: jax.Array) -> jax.Array:
    """Count what is true."""
    return jnp.sum(x, dtype=jnp.int32)
