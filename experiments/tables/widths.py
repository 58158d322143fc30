"""Largest mean alignment and GWA by the width of the latents: Fig. 8."""

from __future__ import annotations

import numpy as np

from experiments.store import Result, column
from experiments.tables.cells import spread, transposed
from experiments.tables.runs import runs_of

__all__ = ["widths", "widths_of"]


def widths_of(results: list[Result]) -> dict[int, dict[str, list[tuple[float, float, float]]]]:
    """Return by width: largest mean, largest GWA and best test accuracy (%) of each run.

    Under "full", "measured" (behind a sketch in measuring alone) and "frozen" (in training too).
    """
    found: dict[int, dict[str, list[tuple[float, float, float]]]] = {}
    for run in runs_of(results, study="widths"):
        _, width, *frozen = run["settings"]["network"].split("-")
        kinds = {"frozen" if frozen else "full": ""}
        if "sketched_gwa" in run["epochs"]:
            kinds["measured"] = "sketched_"
        for kind, prefix in kinds.items():
            names = f"{prefix}mean", f"{prefix}gwa"
            mean, gwa = (float(np.nanmax(column(run, name))) for name in names)
            best = 100 * float(column(run, "test_accuracy").max())
            found.setdefault(int(width), {}).setdefault(kind, []).append((mean, gwa, best))
    return dict(sorted(found.items()))


def widths(results: list[Result]) -> str:
    """Fig. 8 in numbers: largest mean alignment and GWA by the width of the latents."""
    rows = []
    for width, kinds in widths_of(results).items():
        columns = {
            kind: [list(x) for x in zip(*kinds[kind], strict=True)] if kind in kinds else [[]] * 3
            for kind in ("full", "measured", "frozen")
        }
        cells = [spread(columns[kind][k], 3) for k in (0, 1) for kind in columns]
        accuracy = [spread(columns[kind][2]) for kind in ("full", "frozen")]
        rows.append([str(width), *cells, *accuracy])
    how = ["", ", sketch measured only", ", frozen sketch"]
    head = [f"{name}{x}" for name in ("mean", "GWA") for x in how]
    accuracy = ["best test accuracy, %", "with frozen sketch, %"]
    return transposed(["width", *head, *accuracy], rows) if rows else ""
