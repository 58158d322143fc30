"""Results: one file a study, one run a line."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from experiments.averages import HORIZONS
from experiments.plan import Settings
from gwa_core import EpochSummary
from gwa_core.score import separation

__all__ = [
    "COLUMNS",
    "RESULTS",
    "WITH_CURVES",
    "Result",
    "append",
    "column",
    "history",
    "name_of",
    "names",
    "read",
    "records",
    "short",
]

RESULTS = Path(__file__).parent / "results"

#: Settings, device, seconds, share of wrong labels, columns by epoch, detection, held-out scores.
Result = dict[str, Any]

#: Of a summary what does not follow from other columns; every epoch here is whole.
SUMMARY = tuple(
    name for name in EpochSummary._fields if name not in ("separation", "expected", "window")
)
ACCURACIES = ("test_accuracy", "validation_accuracy")
#: The columns that a table or a figure reads. The run folder has all that was measured.
COLUMNS = frozenset(
    (
        *SUMMARY,
        *(f"{name}_test_accuracy" for name in HORIZONS),
        "ema_998_validation_accuracy",
        *("test_accuracy", "validation_accuracy", "after_loss", "label_probability"),
        *("prediction_changes", "gradient_disparity", "sample_loss", "gradient_norm"),
        *("pairwise_alignment", "optimum_alignment", "mir", "hdr"),
        *("offline_gwa", "offline_mean", "glass_delta", "sketched_gwa", "sketched_mean"),
        *(f"corrupted_{group}_accuracy" for group in ("blur", "digital", "noise", "weather")),
        *(f"{side}_{at}" for side in ("right", "wrong") for at in ("low", "middle", "high")),
        *(
            f"{part}_{what}"
            for part in ("head", "stage4", "stage3", "stage2", "full")
            for what in ("mean", "deviation", "kurtosis", "gwa", "with_head")
        ),
    )
)
#: Those of a run that keeps averages: what rules on scores watch, and accuracies.
OF_AVERAGES = frozenset(
    (
        *("epoch", "step", "count", "omitted", "mean", "bimodality", "gwa", "denominator"),
        "prediction_changes",
        *(name for name in COLUMNS if name.endswith(ACCURACIES)),
    )
)
#: Those of a run with several records an epoch.
OF_WINDOWS = OF_AVERAGES - {"ema_99_test_accuracy", "ema_99_validation_accuracy", "omitted"} | {
    *("kurtosis", "gwa_standard_error", "test_loss", "sample_loss"),
}
#: Those of a run that is about neighbours.
OF_NEIGHBOURS = frozenset(("epoch", "mean", "bimodality", "test_accuracy"))
#: Studies whose curves of average precision are drawn; of the others the numbers are enough.
WITH_CURVES = ("coarse", "convnext")
CURVES = ("by_epoch", "by_mean")
#: Those of a language model.
OF_LANGUAGE = frozenset(
    (
        *SUMMARY,
        *("test_loss", "test_accuracy", "sample_loss"),
        *("prediction_changes", "gradient_disparity"),
    )
)


def append(folder: Path, result: Mapping[str, Any]) -> None:
    """Add a run to the file of its study.

    Several processes may add runs at the same time: each locks the file while it writes. Settings
    with their default value are left out, and so are columns that no table reads and curves that no
    figure draws. A column with the same value in all epochs becomes that value, where there are
    several, and numbers of epochs and steps become their range.

    Parameters
    ----------
    folder : Path
        The folder of results; made where it does not exist.
    result : mapping
        What ``training.Run.train`` returns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {field.name: field.default for field in fields(Settings)}
    settings = {k: v for k, v in result["settings"].items() if v != defaults[k]}
    read_by_tables = COLUMNS
    if result["settings"].get("loss"):
        read_by_tables = OF_LANGUAGE
    elif result["settings"].get("windows"):
        read_by_tables = OF_WINDOWS
    elif result["settings"].get("averages"):
        read_by_tables = OF_AVERAGES
    elif result["settings"].get("neighbours"):
        read_by_tables = OF_NEIGHBOURS
    columns = {
        name: _packed(values) for name, values in result["epochs"].items() if name in read_by_tables
    }
    parts = {"settings": settings, "epochs": columns}
    if settings["study"] not in WITH_CURVES and (found := result.get("detection")):
        parts["detection"] = {name: _without_curves(values) for name, values in found.items()}
    # NaN is not JSON, but Python reads and writes it.
    line = json.dumps({**result, **parts}, separators=(",", ":"))
    with _path(folder, settings["study"]).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        # A process that was killed while it wrote leaves half a line; the next run begins a new one.
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())


def read(folder: Path) -> list[Result]:
    """Return all results of a folder, by name; of runs that were repeated, the last.

    A line that is not whole is skipped with a warning.
    """
    found = {}
    for path in folder.glob("*.jsonl"):
        for result in _lines(path):
            found[name_of(result)] = result
    return [found[name] for name in sorted(found)]


def names(folder: Path, study: str) -> set[str]:
    """Return the names of the runs of a study that are done."""
    path = _path(folder, study)
    return {name_of(result) for result in _lines(path)} if path.exists() else set()


def name_of(result: Result) -> str:
    """Return the name of a run."""
    return Settings(**result["settings"]).name


def column(result: Result, name: str) -> np.ndarray[Any, Any]:
    """Return a column of a run by epoch."""
    return np.asarray(result["epochs"][name], float)


def history(result: Result) -> list[EpochSummary]:
    """Return the summaries of a run."""
    return [EpochSummary.from_mapping(row) for row in records(result)]


def records(result: Result, *further: str) -> list[dict[str, Any]]:
    """Return a run epoch by epoch: the fields of the summaries that it has, and further columns."""
    names = dict.fromkeys((*EpochSummary._fields, *further))
    columns = {name: result["epochs"][name] for name in names if name in result["epochs"]}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def short(value: Any, digits: int = 6) -> Any:
    """Return a number with some digits; six are more than an epoch's noise leaves."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _without_curves(found: Any) -> Any:
    if not isinstance(found, Mapping):
        return found
    return {name: value for name, value in found.items() if name not in CURVES}


def _packed(values: list[Any]) -> Any:
    if len(values) > 1 and values.count(values[0]) == len(values):
        return values[0]
    steps = {b - a for a, b in itertools.pairwise(values)} if len(values) > 2 else set()
    if len(steps) == 1 and all(type(x) is int for x in values):
        return {"from": values[0], "to": values[-1], "by": steps.pop()}
    return values


def _path(folder: Path, study: str) -> Path:
    return folder / f"{study}.jsonl"


def _lines(path: Path) -> Sequence[Result]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            result = json.loads(line)
        except ValueError:
            warnings.warn(f"{path}: line {number} is not whole and is left out", stacklevel=3)
            continue
        result["settings"] = asdict(Settings(**result["settings"]))
        columns = result["epochs"]
        for name, values in columns.items():
            if isinstance(values, dict):
                columns[name] = list(range(values["from"], values["to"] + 1, values["by"]))
        count = len(columns["epoch"])
        for name, values in columns.items():
            columns[name] = values if isinstance(values, list) else [values] * count
        mean, bimodality = (column(result, name) for name in ("mean", "bimodality"))
        columns["separation"] = separation(np, mean, bimodality).tolist()
        found.append(result)
    return found
