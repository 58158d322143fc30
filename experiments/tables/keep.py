"""What to keep: a mean of the weights or a single epoch, beside the best epoch by test accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.criteria import SEPARATION, best_epoch
from experiments.store import Result, column
from experiments.tables.cells import MISSING, markdown
from experiments.tables.runs import SMALL

__all__ = ["candidates", "keep"]

#: The seed of the runs that the power and the warm-up were chosen on; other seeds report.
CHOSEN_SEED = 0
#: What `keep="average"` does.
DEFAULT = "separation^10"

#: The means of the table of all candidates; the results have more.
SHOWN = (
    *("separation^10", "separation^5", "separation^20", "separation^10, warm-up 0"),
    *(
        "separation^10, warm-up 0.2",
        "separation^10, within epochs",
        "bimodality^5",
        "bimodality^10",
    ),
    *("deviation^5", "deviation^10", "spread^5", "mean^5", "gwa^5"),
    *("plain, warm-up 0", "plain, warm-up 0.1", "plain, warm-up 0.2"),
)

Kept = Callable[[Result], float | None]


def _mean_of(name: str) -> Kept:
    return lambda run: run["kept"]["test_accuracy"].get(name)


def _epoch_of(criterion: str) -> Kept:
    def kept(run: Result) -> float | None:
        epoch = best_epoch(run, criterion)
        return None if epoch is None else float(column(run, "test_accuracy")[epoch])

    return kept


#: What a run on all data keeps, by name.
KEPT: dict[str, Kept] = {
    "**mean of the epochs by separation^10** (`keep=\"average\"`)": _mean_of(DEFAULT),
    "plain mean after the warm-up (SWA)": _mean_of("plain, warm-up 0.1"),
    "exponential mean of the steps, 0.99, last": lambda run: column(run, "ema_99_test_accuracy")[-1],
    "exponential mean of the steps, 0.998, last": lambda run: column(run, "ema_998_test_accuracy")[-1],
    "the same at its best epoch by test accuracy": lambda run: column(run, "ema_998_test_accuracy").max(),
    "epoch of largest separation (`keep=\"best\"`)": _epoch_of(SEPARATION),
    "epoch of largest GWA": _epoch_of("GWA, the paper's rule"),
    "last epoch": lambda run: column(run, "test_accuracy")[-1],
}  # fmt: skip


def _held_out(run: Result) -> float:
    """Return what a run on 90 % keeps: its exponential mean where the held-out accuracy is best."""
    best = int(column(run, "ema_998_validation_accuracy").argmax())
    return float(column(run, "ema_998_test_accuracy")[best])


def keep(results: list[Result]) -> str:
    """Points above the best epoch by test accuracy, by what is kept, kind of errors and network."""
    groups = _groups([r for r in results if r["settings"]["seed"] != CHOSEN_SEED])
    rows = [
        [name, *(_cell([_above(run, kept) for run, _ in runs]) for runs in groups.values())]
        for name, kept in KEPT.items()
    ]
    held = "10 % validation, trained on 90 %: its exponential mean, 0.998"
    rows.append(
        [held, *(_cell([_gain(twin and _held_out(twin), run) for run, twin in runs])
                 for runs in groups.values())]
    )  # fmt: skip
    heads = [f"{title}, {len(runs)} runs" for title, runs in groups.items()]
    return markdown(["kept", *heads], rows) if groups else ""


def candidates(results: list[Result]) -> str:
    """Return the same for other signals, powers and warm-ups, on runs of the choice and on others."""
    kept = [run for run in results if "kept" in run and run["settings"]["percent"] == 100]
    if not kept:
        return ""
    parts = {
        "chosen on": [r for r in kept if r["settings"]["seed"] == CHOSEN_SEED],
        "reported": [r for r in kept if r["settings"]["seed"] != CHOSEN_SEED],
    }
    columns = {
        f"{title}: {kind}, {len(some)} runs": some
        for title, runs in parts.items()
        for kind in ("large, no asymmetric errors", "small, no asymmetric errors", "asymmetric")
        if (some := [run for run in runs if _coarse_kind(run) == kind])
    }
    rows = [
        [name, *(_cell([_above(run, _mean_of(name)) for run in runs]) for runs in columns.values())]
        for name in SHOWN
    ]
    return markdown(["mean of the epochs by", *columns], rows)


def _groups(results: list[Result]) -> dict[str, list[tuple[Result, Result | None]]]:
    """Return the runs on all data with their twins on 90 %, by network and kind of errors."""
    kept = [run for run in results if "kept" in run]
    twins = {_key(run): run for run in kept if run["settings"]["percent"] == 90}
    found: dict[str, list[tuple[Result, Result | None]]] = {}
    for size in ("large", "small"):
        for kind in ("right", "human", "symmetric", "asymmetric"):
            runs = [
                (run, twins.get(_key(run)))
                for run in kept
                if run["settings"]["percent"] == 100 and (_size(run), _kind(run)) == (size, kind)
            ]
            if runs:
                found[f"{size}, {kind}"] = runs
    return found


def _key(run: Result) -> tuple[Any, ...]:
    s = run["settings"]
    return s["network"], s["data"], s["labels"], s["seed"], s["schedule"]


def _size(run: Result) -> str:
    return "small" if run["settings"]["network"] in SMALL else "large"


def _kind(run: Result) -> str:
    labels = run["settings"]["labels"]
    if labels == "label":
        return "right"
    return labels.partition("-")[0] if "-" in labels else "human"


def _coarse_kind(run: Result) -> str:
    return "asymmetric" if _kind(run) == "asymmetric" else f"{_size(run)}, no asymmetric errors"


def _above(run: Result, kept: Kept) -> float | None:
    return _gain(kept(run), run)


def _gain(accuracy: float | None, run: Result) -> float | None:
    if accuracy is None:
        return None
    return 100 * (float(accuracy) - float(column(run, "test_accuracy").max()))


def _cell(gains: list[float | None]) -> str:
    known = [gain for gain in gains if gain is not None]
    if not known:
        return MISSING
    some = "" if len(known) == len(gains) else f", {len(known)} runs"
    return f"{np.mean(known):+.2f} ({min(known):+.2f}){some}"
