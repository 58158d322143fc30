"""Gradient-weight alignment in scikit-learn: scores, signals, early stopping, and which labels are wrong."""

from gwa_core import (
    BestMetric,
    DipThenMax,
    EarlyStopper,
    GradientDisparity,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    rank_samples,
    select_epoch,
)
from gwa_sklearn.callbacks import GWAStopping
from gwa_sklearn.displays import AlignmentDisplay, GWACurveDisplay, LabelIssuesDisplay
from gwa_sklearn.early_stopping import GWAEarlyStoppingClassifier
from gwa_sklearn.heads import Head, latents_and_head
from gwa_sklearn.label_issues import LabelIssues, find_label_issues, get_label_quality_scores
from gwa_sklearn.scores import alignment_scores, gwa_score, gwa_scorer
from gwa_sklearn.signals import sample_signals

__all__ = [
    "AlignmentDisplay",
    "BestMetric",
    "DipThenMax",
    "EarlyStopper",
    "GWACurveDisplay",
    "GWAEarlyStoppingClassifier",
    "GWAStopping",
    "GradientDisparity",
    "Head",
    "LabelIssues",
    "LabelIssuesDisplay",
    "LabelWave",
    "MaxBimodality",
    "MaxGWA",
    "MaxSeparation",
    "alignment_scores",
    "find_label_issues",
    "get_label_quality_scores",
    "gwa_score",
    "gwa_scorer",
    "latents_and_head",
    "rank_samples",
    "sample_signals",
    "select_epoch",
]
