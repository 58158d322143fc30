"""Which signals go with test accuracy over the epochs: Fig. 2 and 12-15."""

from __future__ import annotations

import numpy as np
from scipy.stats import pearsonr, spearmanr

from experiments.criteria import warm
from experiments.store import Result, column
from experiments.tables.cells import LABELS, MISSING, NETWORKS, TITLES, markdown, parts_of, spread
from experiments.tables.runs import runs_of

__all__ = ["correlation", "correlations"]

#: Epoch signals that Fig. 2 and 12-15 set beside test accuracy, with the sign of "better".
BESIDE = {
    "gwa": 1,
    "mean": 1,
    "bimodality": 1,
    "separation": 1,
    "prediction_changes": -1,
    "gradient_disparity": -1,
    "gradient_norm": -1,
    "pairwise_alignment": 1,
    "optimum_alignment": 1,
    "mir": 1,
    "hdr": -1,
    "sample_loss": -1,
}


def correlations(results: list[Result]) -> str:
    """Fig. 2 and 12-15 in numbers: Spearman and Pearson with test accuracy over the epochs."""
    parts = {}
    for study, title in NETWORKS.items():
        runs = {x: runs_of(results, study=study, labels=x, percent=100) for x in LABELS}
        if not any(runs.values()):
            continue
        rows = []
        for name, sign in BESIDE.items():
            cells = []
            for labels in LABELS:
                found = [correlation(r, name, sign) for r in runs[labels]]
                spearman, pearson = zip(*found, strict=True) if found else ((), ())
                cells.append(
                    f"{spread(list(spearman))} / {spread(list(pearson)).partition(' ')[0]}"
                    if found
                    else MISSING
                )
            rows.append([("−" if sign < 0 else "") + f"`{name}`", *cells])
        parts[title] = markdown(["signal", *TITLES.values()], rows)
    return parts_of(parts)


def correlation(run: Result, name: str, sign: int) -> tuple[float, float]:
    """Return Spearman's and Pearson's of a column, times a sign, with test accuracy over the epochs."""
    accuracy, values = column(run, "test_accuracy"), column(run, name)
    usable = np.isfinite(values)
    usable[: warm(len(values))] = False
    x, y = sign * values[usable], accuracy[usable]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    return float(spearmanr(x, y).statistic), float(pearsonr(x, y).statistic)
