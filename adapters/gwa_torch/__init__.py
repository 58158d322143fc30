"""Gradient-weight alignment in PyTorch: a monitor for any loop, and what it is made of.

Adapters to trainers stand in `gwa_torch.lightning`, `gwa_torch.transformers` and
`gwa_torch.torchmetrics`, which are imported by name.
"""

from gwa_torch.heads import find_head
from gwa_torch.layers import layer_alignment, layer_gradient_disparity, layer_gradient_norms
from gwa_torch.loader import alignment_scores
from gwa_torch.monitor import GWAMonitor
from gwa_torch.scoring import frobenius_norm, head_scores
from gwa_torch.sketch import JLHead

__all__ = [
    "GWAMonitor",
    "JLHead",
    "alignment_scores",
    "find_head",
    "frobenius_norm",
    "head_scores",
    "layer_alignment",
    "layer_gradient_disparity",
    "layer_gradient_norms",
]
