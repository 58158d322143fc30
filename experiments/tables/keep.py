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
#: Networks that take a GPU, by what they see, and networks that a CPU can train.
SIZES = ("large, images", "large, texts", "small")
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
    *("deviation^5", "deviation^10", "spread^5", "mean^5", "gwa^5", "both^5", "modes^10"),
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
    "**average** (separation^10)": _mean_of(DEFAULT),
    "plain mean (SWA)": _mean_of("plain, warm-up 0.1"),
    "EMA 0.99, last": lambda run: column(run, "ema_99_test_accuracy")[-1],
    "EMA 0.998, last": lambda run: column(run, "ema_998_test_accuracy")[-1],
    "EMA 0.998, best by test": lambda run: column(run, "ema_998_test_accuracy").max(),
    "largest separation": _epoch_of(SEPARATION),
    "largest GWA": _epoch_of("GWA, the paper's rule"),
    "last epoch": lambda run: column(run, "test_accuracy")[-1],
}
HELD_OUT = "10 % validation"


def _held_out(run: Result) -> float:
    """Return what a run on 90 % keeps: its exponential mean where the held-out accuracy is best."""
    best = int(column(run, "ema_998_validation_accuracy").argmax())
    return float(column(run, "ema_998_test_accuracy")[best])


def keep(results: list[Result]) -> str:
    """Points above the best epoch by test accuracy, by network, kind of errors and what is kept."""
    reported = [r for r in results if "kept" in r and r["settings"]["seed"] != CHOSEN_SEED]
    twins = {_key(run): run for run in reported if run["settings"]["percent"] == 90}
    groups = _groups([run for run in reported if run["settings"]["percent"] == 100])
    rows = []
    for title, runs in groups.items():
        cells = [_cell([_above(run, kept) for run in runs]) for kept in KEPT.values()]
        found = [twins.get(_key(run)) for run in runs]
        pairs = [(twin, run) for twin, run in zip(found, runs, strict=True) if twin]
        held = [_gain(_held_out(twin), run) for twin, run in pairs]
        some = f", {len(held)} of them" if len(held) < len(runs) else ""
        rows.append([f"{title}, {len(runs)}", *cells, _cell(held) + (some if held else "")])
    return markdown(["runs", *KEPT, HELD_OUT], rows) if groups else ""


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
        for kind in (*(f"{size}, no asymmetric errors" for size in SIZES), "asymmetric")
        if (some := [run for run in runs if _coarse_kind(run) == kind])
    }
    rows = [
        [name, *(_cell([_above(run, _mean_of(name)) for run in runs]) for runs in columns.values())]
        for name in SHOWN
    ]
    return markdown(["mean of the epochs by", *columns], rows)


def _groups(runs: list[Result]) -> dict[str, list[Result]]:
    """Return runs by network and kind of errors, and all of a network."""
    found: dict[str, list[Result]] = {}
    for size in SIZES:
        for kind in ("right", "human", "symmetric", "asymmetric", "all"):
            some = [run for run in runs if _size(run) == size and kind in (_kind(run), "all")]
            if some:
                found[f"{size}: {kind}"] = some
    return found


def _key(run: Result) -> tuple[Any, ...]:
    s = run["settings"]
    return s["network"], s["data"], s["labels"], s["seed"], s["schedule"]


def _size(run: Result) -> str:
    if run["settings"]["network"] in SMALL:
        return "small"
    return "large, texts" if run["settings"]["data"] == "newsgroups" else "large, images"


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
    return f"{np.mean(known):+.2f} ({min(known):+.2f})" if known else MISSING
