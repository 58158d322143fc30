"""Saved features and runs: read them in blocks, analyse them, report what was found."""

from gwa_offline.analysis import analyse
from gwa_offline.analysis.results import EpochRecord, Report
from gwa_offline.readers import Epoch, Features, Source, open_features
from gwa_offline.store import FeaturesError, RunFolder

__all__ = [
    "Epoch",
    "EpochRecord",
    "Features",
    "FeaturesError",
    "Report",
    "RunFolder",
    "Source",
    "analyse",
    "open_features",
]
