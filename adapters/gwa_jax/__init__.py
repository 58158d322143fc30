"""Gradient-weight alignment in JAX: pure functions on a pytree, inside your own jitted step."""

from gwa_core import (
    BestMetric,
    DipThenMax,
    EarlyStopper,
    EpochAverage,
    GradientDisparity,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    average_shares,
    rank_samples,
    select_epoch,
    update_share,
)
from gwa_jax import signals
from gwa_jax.agreement import check
from gwa_jax.averaging import average
from gwa_jax.gradients import add_probe
from gwa_jax.layers import layer_alignment, layer_gradient_disparity, layer_gradient_norms
from gwa_jax.runs import save
from gwa_jax.scoring import head_scores
from gwa_jax.sketch import jl_layer
from gwa_jax.state import State, add, init, merge, update
from gwa_jax.summaries import end_epoch, fetch, label_quality, scores, summary

__all__ = [
    "BestMetric",
    "DipThenMax",
    "EarlyStopper",
    "EpochAverage",
    "GradientDisparity",
    "LabelWave",
    "MaxBimodality",
    "MaxGWA",
    "MaxSeparation",
    "State",
    "add",
    "add_probe",
    "average",
    "average_shares",
    "check",
    "end_epoch",
    "fetch",
    "head_scores",
    "init",
    "jl_layer",
    "label_quality",
    "layer_alignment",
    "layer_gradient_disparity",
    "layer_gradient_norms",
    "merge",
    "rank_samples",
    "save",
    "scores",
    "select_epoch",
    "signals",
    "summary",
    "update",
    "update_share",
]
