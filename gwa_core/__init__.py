"""Gradient-weight alignment: which epoch to keep, and which labels to look at.

The core computes and does nothing else: no I/O, no framework, no global state. Arrays in are
arrays out, of the same namespace and on the same device.
"""

from gwa_core.agreement import Agreement, score_agreement
from gwa_core.alignment import (
    alignment_from_logit_gradients,
    alignment_from_logits,
    alignment_scores,
)
from gwa_core.attribution import LabelQuality, epoch_weights, label_quality, rank_samples
from gwa_core.averaging import EpochAverage, average_shares, update_share
from gwa_core.baseline_rules import BestMetric, GradientDisparity, LabelWave
from gwa_core.estimator import exponential_window, glass_delta
from gwa_core.gradient import gradient_alignment, gradient_norms
from gwa_core.history import EpochSummary, HistorySummary, summarize_history
from gwa_core.moments import Moments
from gwa_core.projection import JLSketch, jl_dimension, project
from gwa_core.residual import residual
from gwa_core.rules import (
    DipThenMax,
    Extremum,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    Rule,
    warmup_steps,
)
from gwa_core.score import Summary, gwa_score, summarize
from gwa_core.sequences import SequenceParts, sequence_parts, sequence_scores
from gwa_core.stopping import EarlyStopper, Selection, rule_for, select_epoch, select_step
from gwa_core.targets import loss_weights, weighted_targets
from gwa_core.ties import near_ties, signal_standard_error
from gwa_core.tracker import GWATracker

__version__ = "0.2.0"

__all__ = [
    "Agreement",
    "BestMetric",
    "DipThenMax",
    "EarlyStopper",
    "EpochAverage",
    "EpochSummary",
    "Extremum",
    "GWATracker",
    "GradientDisparity",
    "HistorySummary",
    "JLSketch",
    "LabelQuality",
    "LabelWave",
    "MaxBimodality",
    "MaxGWA",
    "MaxSeparation",
    "Moments",
    "Rule",
    "Selection",
    "SequenceParts",
    "Summary",
    "alignment_from_logit_gradients",
    "alignment_from_logits",
    "alignment_scores",
    "average_shares",
    "epoch_weights",
    "exponential_window",
    "glass_delta",
    "gradient_alignment",
    "gradient_norms",
    "gwa_score",
    "jl_dimension",
    "label_quality",
    "loss_weights",
    "near_ties",
    "project",
    "rank_samples",
    "residual",
    "rule_for",
    "score_agreement",
    "select_epoch",
    "select_step",
    "sequence_parts",
    "sequence_scores",
    "signal_standard_error",
    "summarize",
    "summarize_history",
    "update_share",
    "warmup_steps",
    "weighted_targets",
]
