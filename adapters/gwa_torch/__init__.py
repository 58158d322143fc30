"""Gradient-weight alignment in PyTorch: a monitor for any loop, and what a loop needs beside it.

Adapters to trainers are in `gwa_torch.lightning`, `gwa_torch.transformers` and
`gwa_torch.torchmetrics`, which are imported by name.
"""

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
)
from gwa_torch.averaging import AveragedWeights
from gwa_torch.heads import find_head
from gwa_torch.ids import with_ids
from gwa_torch.layers import layer_alignment, layer_gradient_disparity, layer_gradient_norms
from gwa_torch.linear_loss import linear_cross_entropy
from gwa_torch.loader import alignment_scores
from gwa_torch.monitor import GWAMonitor
from gwa_torch.scoring import frobenius_norm, head_scores
from gwa_torch.sketch import JLHead

__all__ = [
    "AveragedWeights",
    "BestMetric",
    "DipThenMax",
    "EarlyStopper",
    "EpochAverage",
    "GWAMonitor",
    "GradientDisparity",
    "JLHead",
    "LabelWave",
    "MaxBimodality",
    "MaxGWA",
    "MaxSeparation",
    "alignment_scores",
    "average_shares",
    "find_head",
    "frobenius_norm",
    "head_scores",
    "layer_alignment",
    "layer_gradient_disparity",
    "layer_gradient_norms",
    "linear_cross_entropy",
    "rank_samples",
    "select_epoch",
    "with_ids",
]
