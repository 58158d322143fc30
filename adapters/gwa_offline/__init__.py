"""Saved features and runs: read them in blocks, analyse them, report what was found."""

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
from gwa_offline.analysis import analyse, average_checkpoints
from gwa_offline.analysis.results import EpochRecord, Report
from gwa_offline.readers import Epoch, Features, Source, open_features
from gwa_offline.store import FeaturesError, RunFolder, begin_run, end_run

__all__ = [
    "BestMetric",
    "DipThenMax",
    "EarlyStopper",
    "Epoch",
    "EpochAverage",
    "EpochRecord",
    "Features",
    "FeaturesError",
    "GradientDisparity",
    "LabelWave",
    "MaxBimodality",
    "MaxGWA",
    "MaxSeparation",
    "Report",
    "RunFolder",
    "Source",
    "analyse",
    "average_checkpoints",
    "average_shares",
    "begin_run",
    "end_run",
    "open_features",
    "rank_samples",
    "select_epoch",
]
