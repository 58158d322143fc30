"""Gradient-weight alignment in scikit-learn: scores, signals, early stopping, and which labels are wrong."""

from gwa_sklearn.callbacks import GWAStopping
from gwa_sklearn.displays import AlignmentDisplay, GWACurveDisplay, LabelIssuesDisplay
from gwa_sklearn.early_stopping import GWAEarlyStoppingClassifier
from gwa_sklearn.heads import Head, latents_and_head
from gwa_sklearn.label_issues import LabelIssues, find_label_issues, get_label_quality_scores
from gwa_sklearn.scores import alignment_scores, gwa_score, gwa_scorer
from gwa_sklearn.signals import sample_signals

__all__ = [
    "AlignmentDisplay",
    "GWACurveDisplay",
    "GWAEarlyStoppingClassifier",
    "GWAStopping",
    "Head",
    "LabelIssues",
    "LabelIssuesDisplay",
    "alignment_scores",
    "find_label_issues",
    "get_label_quality_scores",
    "gwa_score",
    "gwa_scorer",
    "latents_and_head",
    "sample_signals",
]
