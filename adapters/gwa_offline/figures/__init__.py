"""Figures of a report: for Matplotlib here, for the HTML page in `interactive`, pictures in `images`."""

from gwa_offline.figures.decision_display import DecisionDisplay
from gwa_offline.figures.displays import (
    GWACurveDisplay,
    MomentsDisplay,
    SignalsDisplay,
    save_figures,
)
from gwa_offline.figures.sample_displays import DistributionDisplay, SamplesDisplay

__all__ = [
    "DecisionDisplay",
    "DistributionDisplay",
    "GWACurveDisplay",
    "MomentsDisplay",
    "SamplesDisplay",
    "SignalsDisplay",
    "save_figures",
]
