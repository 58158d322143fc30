"""Which epoch or window each rule keeps in fine-tuning, and whether GWA dips: Table 3 and Fig. 5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from experiments.criteria import (
    BEST,
    BIMODALITY,
    LABELWAVE,
    LAST,
    PAPER,
    SEPARATION,
    VALIDATION,
    best_epoch,
    outcome,
    share_of,
)
from experiments.store import Result, column, records
from experiments.tables.cells import MISSING, TITLES, accuracy_cell, markdown, parts_of, spread
from experiments.tables.runs import runs_of
from gwa_core import DipThenMax, MaxSeparation, select_epoch

__all__ = [
    "AVERAGES",
    "CLEAR",
    "LAST_WINDOW",
    "RULE",
    "STUDIES",
    "WINDOWS",
    "accuracy",
    "after_dip",
    "dip",
    "fine_tuning",
    "lowest",
    "windows",
]

#: Studies of pretrained networks, by what they are called.
STUDIES = {"lite0": "EfficientNet-Lite0 on CIFAR-10-N", "minilm": "MiniLM on Reuters R8"}
#: The same with several records an epoch.
WINDOWS = {
    "lite0-windows": "EfficientNet-Lite0 on CIFAR-10-N",
    "minilm-windows": "MiniLM on Reuters R8",
}
RULE = "GWA, the fine-tuning rule"
ROWS = (BEST, RULE, SEPARATION, BIMODALITY, PAPER, LABELWAVE, VALIDATION, LAST)
BEST_WINDOW, LAST_WINDOW = "best window", "last window"
#: The default without its warm-up; a small warm-up would leave out less than a window.
AT_ONCE = "largest separation, no warm-up"
#: What ``keep="average"`` makes of the windows, and the same without its warm-up.
AVERAGES = {
    "average of the windows": "separation^10",
    "average, no warm-up": "separation^10, warm-up 0",
}
BY_WINDOW = (
    BEST_WINDOW, *AVERAGES, SEPARATION, AT_ONCE, BIMODALITY, RULE, PAPER, LABELWAVE, VALIDATION,
    LAST_WINDOW,
)  # fmt: skip
Cell = Callable[[list[Result]], str]

#: A dip of GWA is clear where it is as many standard errors deep.
CLEAR = 3
#: Table 3 of the paper, test accuracy in per cent: of what network, on which data, by what it keeps.
THEIR_NETWORK = "The paper's ViT-B/16"
THEIR_DATA = ("ImageNet", "iNat18", "Places365")
THEIRS = {VALIDATION: (84.04, 72.87, 58.66), RULE: (84.15, 73.73, 58.78)}


def fine_tuning(results: list[Result]) -> str:
    """Table 3: test accuracy, regret and epoch by rule; mean over seeds (max - min); who dips."""
    parts = _by_study(
        results,
        STUDIES,
        "rule",
        {name: partial(_epoch_cell, name=name) for name in ROWS},
        {"runs whose GWA dips": _dips},
    )
    if parts:
        theirs = [[name, *(f"{x:.2f}" for x in values)] for name, values in THEIRS.items()]
        theirs.append(["runs whose GWA dips", *["all"] * len(THEIR_DATA)])
        parts[THEIR_NETWORK] = markdown(["rule", *THEIR_DATA], theirs)
    return parts_of(parts)


def after_dip(run: Result) -> int | None:
    """Return the position of the epoch that the fine-tuning rule keeps; None where GWA only falls."""
    return select_epoch(records(run), DipThenMax()).step


def lowest(run: Result) -> int | None:
    """Return the position of the lowest GWA of a healthy epoch before that: 0 if it only rises."""
    k = after_dip(run)
    if k is None:
        return None
    healthy = column(run, "denominator") > 0
    return int(np.nanargmin(np.where(healthy, column(run, "gwa"), np.nan)[: k + 1]))


def windows(results: list[Result]) -> str:
    """Test accuracy by what is kept of windows, points to the best window, after how many epochs."""
    parts = _by_study(
        results,
        WINDOWS,
        "what is kept",
        {name: partial(_window_cell, name=name) for name in BY_WINDOW},
        {"runs whose GWA dips clearly": _clear_dips, "runs": lambda runs: str(len(runs))},
    )
    return parts_of(parts)


def _by_study(
    results: list[Result],
    studies: Mapping[str, str],
    head: str,
    kept: Mapping[str, Cell],
    whole: Mapping[str, Cell],
) -> dict[str, str]:
    """Return a table of each study: what is kept by labels, and rows of the runs on all data."""
    parts = {}
    for study, title in studies.items():
        of_study = runs_of(results, study=study)
        found = {r["settings"]["labels"] for r in of_study}
        sets = [x for x in TITLES if x in found] + sorted(found - TITLES.keys())
        rows = []
        for name, cell in kept.items():
            cells = [cell(runs_of(of_study, labels=x, percent=share_of(name))) for x in sets]
            if set(cells) != {MISSING}:
                rows.append([name, *cells])
        for name, cell in whole.items():
            rows.append([name, *(cell(runs_of(of_study, labels=x, percent=100)) for x in sets)])
        if sets:
            parts[title] = markdown([head, *(TITLES.get(x, x) for x in sets)], rows)
    return parts


def dip(run: Result) -> float:
    """Return how many standard errors the lowest GWA lies below the first; 0 where it only rises."""
    k = lowest(run)
    if not k:
        return 0.0
    gwa, error = column(run, "gwa"), column(run, "gwa_standard_error")
    return float((gwa[0] - gwa[k]) / np.hypot(error[0], error[k]))


def accuracy(run: Result, name: str) -> float | None:
    """Return the test accuracy in per cent of what is kept of windows; None where a rule keeps none."""
    if name in AVERAGES:
        return 100 * float(run["kept"]["test_accuracy"][AVERAGES[name]])
    k = _epoch(run, name)
    return None if k is None else outcome(run, k)[0]


def _epoch_cell(runs: list[Result], name: str) -> str:
    return accuracy_cell([outcome(run, _epoch(run, name)) for run in runs], epoch=True)


def _window_cell(runs: list[Result], name: str) -> str:
    if not runs:
        return MISSING
    if name in AVERAGES:
        best = [100 * float(column(run, "test_accuracy").max()) for run in runs]
        kept = [x for run in runs if (x := accuracy(run, name)) is not None]
        return f"{spread(kept)}, {np.mean(kept) - np.mean(best):+.1f}".replace("-", "−")
    places = [_epoch(run, name) for run in runs]
    known = [(run, k) for run, k in zip(runs, places, strict=True) if k is not None]
    if not known:
        return "keeps none"
    kept = [outcome(run, k)[0] for run, k in known]
    lost = np.mean([outcome(run, k)[1] for run, k in known])
    after = np.mean([(k + 1) / run["settings"]["windows"] for run, k in known])
    below = f", −{lost:.1f}" if name != BEST_WINDOW else ""
    some = f" ({len(known)} of {len(runs)})" if len(known) < len(runs) else ""
    return f"{spread(kept)}{below}<br>after {after:.1f}{some}"


def _clear_dips(runs: list[Result]) -> str:
    at = [(lowest(run) or 0) + 1 for run in runs if dip(run) > CLEAR]
    if not at:
        return f"0 of {len(runs)}" if runs else MISSING
    return f"{len(at)} of {len(runs)}, after {np.mean(at) / runs[0]['settings']['windows']:.1f}"


def _epoch(run: Result, name: str) -> int | None:
    if name == RULE:
        return after_dip(run)
    if name == AT_ONCE:
        return select_epoch(records(run), MaxSeparation(warmup=0)).step
    return best_epoch(run, {BEST_WINDOW: BEST, LAST_WINDOW: LAST}.get(name, name))


def _dips(runs: list[Result]) -> str:
    at = [lowest(r) for r in runs]
    dips = [k for k in at if k]
    if not dips:
        return f"0 of {len(runs)}" if runs else MISSING
    return f"{len(dips)} of {len(runs)}, to epoch {np.mean(dips):.1f}"
