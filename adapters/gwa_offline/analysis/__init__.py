"""A source becomes a report; reports become tables, curves and comparisons of runs."""

from gwa_offline.analysis.analysis import analyse
from gwa_offline.analysis.averaging import AveragedCheckpoints, average_checkpoints
from gwa_offline.analysis.comparison import Comparison, ComparisonRow, SignalRow, compare
from gwa_offline.analysis.curves import (
    SignalCurve,
    SignalCurves,
    signal_curves,
    stored_signals,
)
from gwa_offline.analysis.export import sample_columns, to_json, write_csv, write_parquet
from gwa_offline.analysis.parts import Part, parts_of
from gwa_offline.analysis.results import EpochRecord, Report
from gwa_offline.analysis.scoring import PartScores, score_part

__all__ = [
    "AveragedCheckpoints",
    "Comparison",
    "ComparisonRow",
    "EpochRecord",
    "Part",
    "PartScores",
    "Report",
    "SignalCurve",
    "SignalCurves",
    "SignalRow",
    "analyse",
    "average_checkpoints",
    "compare",
    "parts_of",
    "sample_columns",
    "score_part",
    "signal_curves",
    "stored_signals",
    "to_json",
    "write_csv",
    "write_parquet",
]
