"""The running mean of parameters over the epochs of a training, as a pytree."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gwa_jax._tracing import lenient

__all__ = ["average"]

Tree = TypeVar("Tree")

# What JAX would wait for is not looked at.
ON_HOST = (bool, int, float, np.generic, np.ndarray)


def average(mean: Tree | None, params: Tree, share: jax.Array | float) -> Tree:
    r"""Move the mean of the parameters to the newest ones, by their share.

    .. math:: \bar\theta_t = \bar\theta_{t-1} + a_t (\theta_t - \bar\theta_{t-1})

    Parameters
    ----------
    mean : pytree or None
        What the call before returned; None in the first call, where the mean is `params`.
    params : pytree
        The parameters at the end of an epoch: a dictionary, an ``nnx.State``, an Equinox module.
    share : float or 0-D array
        The share a of these parameters, in [0, 1], from ``EpochAverage.share`` or `update_share`.

    Returns
    -------
    pytree
        The new mean, of the same structure. Its leaves share no memory with `params`.

    Raises
    ------
    ValueError
        If `mean` has another structure or other shapes than `params`, or `share` is not a number in
        [0, 1]. The range is checked on Python and NumPy numbers only.

    See Also
    --------
    gwa_core.EpochAverage : The share of an epoch, outside of jit.
    gwa_core.update_share : The same for traced code.
    gwa_core.average_shares : The shares of a finished run with stored checkpoints.

    Notes
    -----
    Leaves of half precision are averaged in float32, and the mean has float32 there. To have it in
    the dtypes of the model: ``jax.tree.map(lambda m, p: m.astype(p.dtype), mean, params)``. Leaves
    that are not floating-point or complex arrays come from `params`.

    The share 1 returns `params` exactly, and the share 0 returns `mean` exactly, also where the
    other one is not finite. ``optax.incremental_update`` does neither, and averages in the
    promoted dtype of both.

    Runs under jit, scan and vmap. The mean lies where the parameters lie, sharded as they are. A
    step may donate `mean`. Statistics of batch norm stay at the last epoch: compute them from
    data with the mean in place.

    Cost: one copy of the parameters, and one pass over both a call. A training step costs nothing.

    References
    ----------
    Izmailov et al., UAI 2018, for the plain mean. The signal behind the share: Hölzl, Rueckert,
    Kaissis, NeurIPS 2025, Definition 2 and App. A.4.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import gwa_jax
    >>> shares, mean = gwa_jax.EpochAverage(power=1, warmup=0), None
    >>> for weight, separation in [(1.0, 0.2), (2.0, 0.6)]:
    ...     params = {"w": jnp.full(2, weight)}
    ...     mean = gwa_jax.average(mean, params, shares.share({"separation": separation}))
    >>> mean["w"]
    Array([1.75, 1.75], dtype=float32)
    """
    _check_share(share)
    if mean is None:
        mean, share = params, 1.0
    _check_trees(mean, params)
    pairs = zip(jax.tree.leaves(mean), jax.tree.leaves(params), strict=True)
    moved = iter(_move([(old, new) for old, new in pairs if _is_averaged(new)], share))
    moved_tree: Tree = jax.tree.map(
        lambda leaf: next(moved) if _is_averaged(leaf) else _copy(leaf), params
    )
    return moved_tree


@jax.jit
@lenient
def _move(pairs: list[tuple[Any, Any]], share: Any) -> list[jax.Array]:
    return [_toward(mean, new, share) for mean, new in pairs]


def _toward(mean: jax.Array, new: jax.Array, share: jax.Array) -> jax.Array:
    """Return the mean moved to the new values, in float32 or wider."""
    dtype = jnp.promote_types(_wide(mean), _wide(new))
    mean, new = mean.astype(dtype), new.astype(dtype)
    share = jnp.asarray(share, mean.real.dtype)
    moved = mean + share * (new - mean)
    return jnp.where(share == 0.0, mean, jnp.where(share == 1.0, new, moved))


def _wide(x: jax.Array) -> Any:
    return jnp.float32 if x.dtype.itemsize < 4 else x.dtype


def _is_averaged(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _copy(leaf: Any) -> Any:
    """Copy an array, whose memory a step may donate."""
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf


def _check_share(share: Any) -> None:
    if np.shape(share) != ():
        raise ValueError(
            f"`share` must be a number, got an array of shape {np.shape(share)}; "
            "for several runs at once use vmap"
        )
    if isinstance(share, ON_HOST) and not 0.0 <= float(share) <= 1.0:
        raise ValueError(f"`share` must be in [0, 1], got {share}; usual cause: a signal")


def _check_trees(mean: Any, params: Any) -> None:
    own: Any = jax.tree.structure(mean)
    other: Any = jax.tree.structure(params)
    if own != other:
        raise ValueError(
            f"`mean` must have the structure of `params`, {other}, got {own}; usual cause: "
            "parts of a model that were chosen in another way"
        )
    pairs = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(mean), strict=True)
    for (path, new), old in pairs:
        if _is_averaged(new) and np.shape(old) != np.shape(new):
            raise ValueError(
                f"`mean` must have the shapes of `params`, {np.shape(new)} at "
                f"{jax.tree_util.keystr(path)}, got {np.shape(old)}; usual cause: another model"
            )
