"""The signals that gradient-weight alignment is compared with, in closed form for the head.

Signals of a sample rank labels; signals of an epoch or of a batch choose between epochs.
"""

from gwa_core.signals.catalogue import SIGNALS, Signal
from gwa_core.signals.disparity import (
    gradient_disparity,
    head_gradient_disparity,
    rescaled_loss,
)
from gwa_core.signals.dynamics import (
    Cartography,
    cartography,
    forgetting_events,
    label_probability,
)
from gwa_core.signals.el2n import el2n
from gwa_core.signals.gradient_norm import gradient_norm, self_influence
from gwa_core.signals.hessian import head_hessian_trace
from gwa_core.signals.information import (
    centred_class_means,
    matrix_entropy_difference_ratio,
    matrix_mutual_information_ratio,
)
from gwa_core.signals.margin import margin
from gwa_core.signals.optimum import optimum_alignment
from gwa_core.signals.over_epochs import OverEpochs
from gwa_core.signals.pairwise import class_alignment, mean_pairwise_alignment, pairwise_alignment
from gwa_core.signals.prediction_changes import prediction_changes
from gwa_core.signals.sample_loss import sample_loss
from gwa_core.signals.together import sample_signals
from gwa_core.signals.tracked import TrackedSignals

__all__ = [
    "SIGNALS",
    "Cartography",
    "OverEpochs",
    "Signal",
    "TrackedSignals",
    "cartography",
    "centred_class_means",
    "class_alignment",
    "el2n",
    "forgetting_events",
    "gradient_disparity",
    "gradient_norm",
    "head_gradient_disparity",
    "head_hessian_trace",
    "label_probability",
    "margin",
    "matrix_entropy_difference_ratio",
    "matrix_mutual_information_ratio",
    "mean_pairwise_alignment",
    "optimum_alignment",
    "pairwise_alignment",
    "prediction_changes",
    "rescaled_loss",
    "sample_loss",
    "sample_signals",
    "self_influence",
]
