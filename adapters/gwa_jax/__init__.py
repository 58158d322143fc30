"""Gradient-weight alignment in JAX: pure functions on a pytree, inside your own jitted step."""

from gwa_jax import signals
from gwa_jax.layers import layer_alignment, layer_gradient_disparity, layer_gradient_norms
from gwa_jax.scoring import head_scores
from gwa_jax.sketch import jl_layer
from gwa_jax.state import State, add, init, merge, update
from gwa_jax.summaries import end_epoch, fetch, scores, summary

__all__ = [
    "State",
    "add",
    "end_epoch",
    "fetch",
    "head_scores",
    "init",
    "jl_layer",
    "layer_alignment",
    "layer_gradient_disparity",
    "layer_gradient_norms",
    "merge",
    "scores",
    "signals",
    "summary",
    "update",
]
