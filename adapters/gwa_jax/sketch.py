"""A frozen sketch between latents and head, for heads of one width (Fig. 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from gwa_core import JLSketch, project
from gwa_jax._tracing import lenient
from gwa_jax.scoring import Array

__all__ = ["jl_layer"]


def jl_layer(
    in_features: int,
    out_features: int = 192,
    *,
    kind: Literal["gaussian", "rademacher", "sparse", "hadamard"] = "gaussian",
    seed: int = 0,
) -> Callable[[Array], Array]:
    r"""Return a frozen random sketch, a layer between latents and head.

    .. math:: z \mapsto S z, \qquad S \in \mathbb R^{K \times D} \text{ fixed}

    Models of different widths D get heads of one shape (K, C), and their scores can be compared.
    This changes the network that is trained. The latents of the head are the output of the layer.

    Parameters
    ----------
    in_features : int
        D.
    out_features : int
        K, default 192 as in the paper.
    kind : {"gaussian", "rademacher", "sparse", "hadamard"}
        See `gwa_core.JLSketch`, default Gaussian.
    seed : int
        The same seed gives the same sketch, default 0, here, in `gwa_core` and in `gwa_torch`.

    Returns
    -------
    callable
        From latents (..., D) to (..., K) in the dtype of the latents. A pure function without
        parameters, for ``__call__`` of a Linen, NNX, Haiku or Equinox module, or for a
        ``Sequential`` (``eqx.nn.Lambda`` in Equinox). The optimiser does not see it, and gradients
        flow through it to the latents.

    Raises
    ------
    TypeError, ValueError
        On sizes below one, an unknown kind, or a Hadamard sketch with K larger than D rounded up
        to a power of two; of the layer, on latents that are not floating or of another width.

    Notes
    -----
    Cost: O(DK) a sample, "hadamard" O(D log D); at least float32 inside. Under jit the sketch is a
    constant of 4DK bytes. No checkpoint contains it: make it with the same seed again.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. A.2 and Fig. 8.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gwa_jax import jl_layer
    >>> sketch = jl_layer(768)
    >>> sketch(jnp.ones((4, 768))).shape
    (4, 192)
    """
    sketch = JLSketch(in_features, out_features, kind=kind, seed=seed)

    def layer(latents: Array) -> Array:
        made: Array = _project(latents, sketch)
        return made.astype(latents.dtype)

    return layer


@lenient
def _project(latents: Array, sketch: JLSketch) -> Array:
    made: Array = project(latents, sketch)
    return made
