"""The gradient that arrives at the logits, from the backward pass of the training itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gwa_jax.scoring import Array

__all__ = ["add_probe"]


def add_probe(logits: Array, probe: Array | None) -> Array:
    r"""Add a zero to logits, whose gradient is that of the logits.

    .. math:: \frac{\partial \mathcal L(\ell + 0)}{\partial 0} =
       \frac{\partial \mathcal L}{\partial \ell}

    Call it in your loss on what the head returns, before a temperature, a soft cap or a prior.
    Differentiate the loss also with respect to the probe, and give its gradient to `update` as
    `logit_gradients`.

    Parameters
    ----------
    logits : array of shape (..., C)
        Outputs of the head.
    probe : array of shape (..., C) or None
        Zeros of floating point, one for each logit. With None there is no probe, as in evaluation.

    Returns
    -------
    array of shape (..., C)
        The logits themselves, in their dtype. Nothing of the training changes.

    Raises
    ------
    TypeError
        If the probe is not of floating point.
    ValueError
        If its shape is not that of the logits, or if under `shard_map` it is the same on all devices
        and the logits are not.

    Notes
    -----
    Cost: no operation; one array (..., C) for the gradient. The values of the probe are not read.
    The gradient arrives in the dtype of the logits and is returned in that of the probe. Works under
    ``jax.grad``, ``nnx.grad``, ``eqx.filter_grad``, jit, vmap, scan, remat and shard_map.

    A loss that is a plain function of the logits needs no probe: in the same jitted step
    ``jax.grad(my_loss)(logits, targets)`` is the same array, and XLA merges it with the backward pass.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import gwa_jax
    >>> def loss_fn(kernel, probe, latents, labels):
    ...     logits = gwa_jax.add_probe(latents @ kernel, probe)
    ...     log_p = jax.nn.log_softmax(30.0 * jnp.tanh(logits / 30.0))  # a soft cap
    ...     return -log_p[jnp.arange(len(labels)), labels].mean(), logits
    >>> latents, labels = jnp.asarray([[2.0, 0.0], [0.0, 1.0]]), jnp.asarray([0, 0])
    >>> kernel, probe = jnp.eye(2), jnp.zeros((2, 2))
    >>> backward = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)
    >>> (_, g), logits = backward(kernel, probe, latents, labels)
    >>> gwa_jax.head_scores(
    ...     latents=latents, kernel=kernel, logits=logits, logit_gradients=g
    ... ).round(3)
    Array([ 0.499, -0.5  ], dtype=float32)
    """
    if probe is None:
        return logits
    if not jnp.issubdtype(probe.dtype, jnp.floating):
        raise TypeError(
            f"`probe` must be of floating point, got {probe.dtype}; `jax.grad` needs that"
        )
    if probe.shape != logits.shape:
        raise ValueError(
            f"`probe` must have the shape of the logits, {tuple(logits.shape)}, got "
            f"{tuple(probe.shape)}; the gradient of a probe that is broadcast is a sum over samples"
        )
    missing = _varying(logits) - _varying(probe)
    if missing:
        axes = tuple(sorted(missing))
        raise ValueError(
            f"`probe` must differ between the devices of {axes}, as the logits do, got one for all; "
            "its gradient would be a sum over devices; make it by `jax.lax.pcast(jnp.zeros(shape), "
            f'{axes}, to="varying")`, in JAX 0.8 by `jax.lax.pvary(jnp.zeros(shape), {axes})`'
        )
    probed: Array = _probed(logits, probe)
    return probed


@jax.custom_jvp
def _probed(logits: Array, probe: Array) -> Array:  # noqa: ARG001
    """Return the logits; no sum, which would turn -0 into 0 and half precision into float32."""
    return logits


@_probed.defjvp
def _tangents(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the derivative of a sum."""
    logits, _ = primals
    return logits, tangents[0] + tangents[1].astype(logits.dtype)


def _varying(x: Array) -> frozenset[str]:
    """Return the axes of `shard_map` over which an array differs."""
    kind: Any = jax.typeof(x)
    # JAX 0.8 has it on the type itself.
    manual = getattr(kind, "manual_axis_type", None)
    return frozenset(getattr(kind, "vma", ()) if manual is None else manual.varying)
