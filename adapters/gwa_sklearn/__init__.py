"""Gradient-weight alignment in scikit-learn: scores of fitted classifiers, and a scorer."""

from gwa_sklearn.callbacks import GWAStopping
from gwa_sklearn.displays import AlignmentDisplay, GWACurveDisplay, LabelIssuesDisplay
from gwa_sklearn.early_stopping import GWAEarlyStoppingClassifier
from gwa_sklearn.heads import Head, latents_and_head
from gwa_sklearn.scores import alignment_scores, gwa_score, gwa_scorer

__all__ = [
    "AlignmentDisplay",
    "GWACurveDisplay",
    "GWAEarlyStoppingClassifier",
    "GWAStopping",
    "Head",
    "LabelIssuesDisplay",
    "alignment_scores",
    "gwa_score",
    "gwa_scorer",
    "latents_and_head",
]
