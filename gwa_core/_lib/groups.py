"""Sums and minima of the entries of each group, with a fixed number of groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from gwa_core._lib.array import Array, constant, device_of, index_dtype, is_host

__all__ = ["group_min", "group_sum"]

# Entries of the comparison of groups with their numbers that are made at once.
COMPARED = 4 * 1024 * 1024


def group_sum(xp: Any, values: Array, groups: Array, num_groups: int) -> Array:
    """Return the sum of each group, (G,), 0 where it has no entry; other numbers are of no group."""
    if is_host(values, groups):
        known = (groups >= 0) & (groups < num_groups)
        sums = np.bincount(groups[known], weights=values[known], minlength=num_groups)
        return xp.astype(sums, values.dtype)
    return _reduced(xp, xp.sum, values, groups, num_groups, 0.0)


def group_min(xp: Any, values: Array, groups: Array, num_groups: int) -> Array:
    """Return the minimum of each group, (G,), inf where it has no entry; nan stays nan."""
    if is_host(values, groups):
        known = (groups >= 0) & (groups < num_groups)
        least = xp.full(num_groups, xp.inf, dtype=values.dtype)  # on the host
        np.minimum.at(least, groups[known], values[known])
        return least
    return _reduced(xp, xp.min, values, groups, num_groups, xp.inf)


def _reduced(
    xp: Any, reduce: Any, values: Array, groups: Array, num_groups: int, nothing: float
) -> Array:
    """Reduce by comparing each entry with each group: the standard has no scatter."""
    groups = xp.astype(groups, index_dtype(xp, groups), copy=False)
    fill = constant(xp, nothing, values)
    step = max(1, COMPARED // values.shape[0])
    parts = []
    for start in range(0, num_groups, step):
        stop = min(start + step, num_groups)
        numbers = xp.arange(start, stop, dtype=groups.dtype, device=device_of(groups))
        own = numbers[:, None] == groups[None, :]
        # No product: nan of one group must not reach another.
        parts.append(reduce(xp.where(own, values[None, :], fill), axis=1))
    return xp.concat(parts)
