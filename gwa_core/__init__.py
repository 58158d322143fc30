"""Gradient-weight alignment: which epoch to keep, and which labels to look at.

The core computes and does nothing else: no I/O, no framework, no global state. Arrays in are
arrays out, of the same namespace and on the same device.
"""

from gwa_core.alignment import alignment_from_logits, alignment_scores
from gwa_core.attribution import epoch_weights, label_quality, rank_samples
from gwa_core.baseline_rules import GradientDisparity, LabelWave, Patience
from gwa_core.estimator import batch_gwa, exponential_window, glass_delta
from gwa_core.gradient import gradient_alignment
from gwa_core.history import EpochSummary, HistorySummary, summarize_history
from gwa_core.moments import Moments
from gwa_core.projection import JLSketch, jl_dimension, project
from gwa_core.residual import residual
from gwa_core.rules import DipThenMax, MaxBimodality, MaxGWA, MaxSeparation, Rule
from gwa_core.score import Summary, gwa_score, summarize
from gwa_core.stopping import EarlyStopper, Selection, select_epoch, select_step
from gwa_core.targets import weighted_targets
from gwa_core.tracker import GWATracker

__version__ = "0.1.0"

__all__ = [
    "DipThenMax",
    "EarlyStopper",
    "EpochSummary",
    "GWATracker",
    "GradientDisparity",
    "HistorySummary",
    "JLSketch",
    "LabelWave",
    "MaxBimodality",
    "MaxGWA",
    "MaxSeparation",
    "Moments",
    "Patience",
    "Rule",
    "Selection",
    "Summary",
    "alignment_from_logits",
    "alignment_scores",
    "batch_gwa",
    "epoch_weights",
    "exponential_window",
    "glass_delta",
    "gradient_alignment",
    "gwa_score",
    "jl_dimension",
    "label_quality",
    "project",
    "rank_samples",
    "residual",
    "select_epoch",
    "select_step",
    "summarize",
    "summarize_history",
    "weighted_targets",
]
