"""A report as JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.view import lowest_classes
from gwa_offline.store import FeaturesError

# Classes whose numbers at every epoch go into the JSON text.
MAX_CLASSES = 1000

__all__ = ["sample_columns", "to_frame", "to_json", "write_csv", "write_parquet"]


def to_json(report: Findings) -> str:
    """Return the whole report as JSON text.

    Parameters
    ----------
    report : Report
        What `analyse` returned.

    Returns
    -------
    str
        One object with the fields of `Report` and `best_epoch`, arrays as lists, nan as null.
        `classes` has the class number of each column of `class_gwa` and `class_mean`:
        all of them, or the 1,000 of lowest mean at the shown epoch where there are more.

    Notes
    -----
    Cost: O(N + T + C). For many samples CSV and Parquet are smaller.
    """
    record = {
        name: getattr(report, name) for name in report.__dataclass_fields__ if name != "epochs"
    }
    classes = np.arange(report.num_classes)
    if report.num_classes > MAX_CLASSES:
        classes = np.sort(lowest_classes(report, MAX_CLASSES))
    record["classes"] = classes
    record |= {name: record[name][:, classes] for name in ("class_gwa", "class_mean")}
    record |= {"best_epoch": report.best_epoch, "selection": report.selection._asdict()}
    record["decision"] = asdict(report.decision)
    return json.dumps(plain_values({**record, "epochs": epoch_rows(report)}), allow_nan=False)


def epoch_rows(report: Findings) -> list[dict[str, Any]]:
    """Return one mapping an epoch: summary, source, Glass's delta and metrics."""
    return [
        {
            **record.summary._asdict(),
            "healthy": record.summary.healthy,
            "source": record.source,
            "glass_delta": record.glass_delta,
            **record.metrics,
        }
        for record in report.epochs
    ]


def sample_columns(report: Findings) -> dict[str, Any]:
    """Return the per-sample columns by name, each of length N."""
    columns: dict[str, Any] = {"id": np.arange(report.num_samples)}
    if report.targets is not None:
        columns["target"] = report.targets
    if report.predictions is not None:
        columns["prediction"] = report.predictions
    columns |= {"alignment": report.scores, "label_quality": report.label_quality}
    return {**columns, **report.kept}


def write_csv(report: Findings, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``epochs.csv`` and ``samples.csv`` into a folder, which is created if missing."""
    target = _made(folder)
    rows = epoch_rows(report)
    names = list(dict.fromkeys(name for row in rows for name in row))
    epochs, samples = target / "epochs.csv", target / "samples.csv"
    with epochs.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(_cell(name) for name in names)
        table.writerows([_cell(row.get(name, "")) for name in names] for row in rows)
    columns = sample_columns(report)
    with samples.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(_cell(name) for name in columns)
        cells = [values.tolist() for values in columns.values()]
        for name, at in zip(columns, range(len(cells)), strict=True):
            if name in report.kept:
                cells[at] = [_cell(value) for value in cells[at]]
        table.writerows(zip(*cells, strict=True))
    return [epochs, samples]


def _cell(value: Any) -> Any:
    """Return a cell that a spreadsheet takes for text where it is text, and not for a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def to_frame(report: Findings) -> Any:
    """Return the samples as a data frame of pandas; see `Report.to_frame`."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "a data frame needs pandas: pip install pandas; `to_csv` and `to_parquet` do not"
        ) from error
    columns: dict[str, Any] = {"id": np.arange(report.num_samples)}
    classes = pd.CategoricalDtype(_distinct(report.class_names))
    for name, labels in {"label": report.targets, "prediction": report.predictions}.items():
        if labels is not None:
            columns[name] = pd.Categorical.from_codes(labels, dtype=classes)
    columns |= {"alignment": report.scores, "label_quality": report.label_quality}
    return pd.DataFrame({**columns, **report.kept})


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names that are all different: those that come again have their class number."""
    often = Counter(names)
    return [f"{name} ({i})" if often[name] > 1 else name for i, name in enumerate(names)]


def write_parquet(report: Findings, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``epochs.parquet`` and ``samples.parquet`` into a folder."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise FeaturesError("Parquet needs pyarrow: pip install 'gwa-core[formats]'") from error
    target = _made(folder)
    tables = {
        "epochs": pa.Table.from_pylist(epoch_rows(report)),
        "samples": pa.table(sample_columns(report)),
    }
    paths = []
    for name, table in tables.items():
        paths.append(target / f"{name}.parquet")
        parquet.write_table(table, paths[-1])
    return paths


def _made(folder: str | os.PathLike[str]) -> Path:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    return target


def plain_values(value: Any) -> Any:
    """Return plain Python values; numbers that are not finite become None."""
    if isinstance(value, np.ndarray | np.generic):
        return plain_values(value.tolist())
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
