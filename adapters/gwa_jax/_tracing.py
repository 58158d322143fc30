"""How the functions of this package are traced, whatever JAX is set to, and on many devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

__all__ = ["automatic", "everywhere", "lenient", "spec"]


def lenient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let the core promote and broadcast as it means to, also where the user is strict."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapper


def automatic(function: Callable[..., Any], specs: Any, *args: Any) -> Any:
    """Call a function whose results are sharded by `specs`, leaving what is inside to XLA.

    Where shardings are part of the types, every intermediate one would have to be said.
    """
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(args))
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return function(*args)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(function, out_sharding=specs)(*args)


def spec(x: Any, *, leave: int = 0) -> Any:
    """Return how an array is sharded, without so many of its last axes."""
    axes = jax.typeof(x).sharding.spec
    return PartitionSpec(*axes[: len(axes) - leave])  # type: ignore[no-untyped-call]


def everywhere(x: jax.Array, axis_name: Any) -> jax.Array:
    """Join the pieces of all devices in the order of their axes.

    By a sum of pieces in their places: unlike what `all_gather` returns, JAX knows of a sum that
    it is the same on all devices.
    """
    place, devices = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    whole: jax.Array = jnp.zeros((devices, *x.shape), x.dtype if x.dtype != bool else jnp.int32)
    mine = whole.at[place].set(x.astype(whole.dtype))
    whole = jax.lax.psum(mine, axis_name)  # type: ignore[no-untyped-call]
    return whole.reshape(-1).astype(x.dtype)
