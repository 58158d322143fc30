"""What to keep: a mean of the weights or a single epoch, beside the best epoch by test accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.criteria import LAST, PAPER, SEPARATION, best_epoch
from experiments.store import Result, column
from experiments.tables.cells import MISSING, counted, markdown, parts_of
from experiments.tables.runs import SMALL

__all__ = ["above", "candidates", "claims", "keep", "kind_of", "reported", "size_of"]

#: The seed of the runs that the power and the warm-up were chosen on; other seeds report.
CHOSEN_SEED = 0
#: Networks that take a GPU, by what they see, and networks that a CPU can train; one of these on
#: a task of its own kind.
MANY = "1,000 classes"
SIZES = ("large, images", "large, texts", "small", MANY)
KINDS = ("right", "human", "symmetric", "asymmetric")
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


AVERAGE = "**average**"
#: What a run on all data keeps, by name.
KEPT: dict[str, Kept] = {
    AVERAGE: _mean_of(DEFAULT),
    "plain mean (SWA)": _mean_of("plain, warm-up 0.1"),
    "EMA 0.99, last": lambda run: column(run, "ema_99_test_accuracy")[-1],
    "EMA 0.998, last": lambda run: column(run, "ema_998_test_accuracy")[-1],
    "EMA 0.998, best by test": lambda run: column(run, "ema_998_test_accuracy").max(),
    SEPARATION: _epoch_of(SEPARATION),
    PAPER: _epoch_of(PAPER),
    LAST: lambda run: column(run, "test_accuracy")[-1],
}
#: A training on 90 %, and what its validation set chooses of the exponential mean of the steps.
HELD_OUT, TWINS = "10 % validation, with averaging", "runs with such a set"
#: What the summary of the chapter and the README claim.
CLAIMED = (AVERAGE, "plain mean (SWA)", "EMA 0.998, last", SEPARATION, PAPER, LAST)


def _held_out(run: Result) -> float:
    """Return what a run on 90 % keeps: its exponential mean where the held-out accuracy is best."""
    best = int(column(run, "ema_998_validation_accuracy").argmax())
    return float(column(run, "ema_998_test_accuracy")[best])


def keep(results: list[Result]) -> str:
    """Points above the best epoch by test accuracy, by network, kind of errors and what is kept."""
    runs, twins = reported(results)
    tables = {}
    for size in SIZES:
        columns = {
            f"{kind}, {len(some)}": some
            for kind in (*KINDS, "all")
            if (some := [r for r in runs if size_of(r) == size and kind in (kind_of(r), "all")])
        }
        # Five columns of two digits would be too wide.
        rows = [[name, *_cells(columns, kept, 1)] for name, kept in KEPT.items()]
        rows += _held_rows(columns, twins, 1)
        if columns:
            title = f"{size[0].upper()}{size[1:]}"
            tables[title] = markdown(["what is kept", *columns], rows)
    return parts_of(tables)


def claims(results: list[Result]) -> str:
    """Points above the best epoch by test accuracy on all runs made after the choice, by size of network."""
    runs, twins = reported(results)
    columns = {
        f"{size}, {counted(len(some), 'run')}": some
        for size in SIZES
        if (some := [run for run in runs if size_of(run) == size])
    }
    paired = {title: [run for run in some if _key(run) in twins] for title, some in columns.items()}
    rows = [[name, *_cells(columns, KEPT[name])] for name in CLAIMED]
    rows += _held_rows(columns, twins)
    rows.append([f"{AVERAGE}, in the same runs", *_cells(paired, KEPT[AVERAGE])])
    return markdown(["what is kept", *columns], rows) if columns else ""


def _of_epochs(results: list[Result]) -> list[Result]:
    """Return the runs that keep averages of epochs; those of windows have a table of their own."""
    return [run for run in results if "kept" in run and not run["settings"]["windows"]]


def reported(results: list[Result]) -> tuple[list[Result], dict[Any, Result]]:
    """Return the runs on all data that chose nothing, and by key their twins with a validation set."""
    made_after = [r for r in _of_epochs(results) if r["settings"]["seed"] != CHOSEN_SEED]
    twins = {_key(run): run for run in made_after if run["settings"]["percent"] == 90}
    return [run for run in made_after if run["settings"]["percent"] == 100], twins


def _cells(columns: dict[str, list[Result]], kept: Kept, digits: int = 2) -> list[str]:
    return [_cell([above(run, kept) for run in runs], digits) for runs in columns.values()]


def _held_rows(
    columns: dict[str, list[Result]], twins: dict[Any, Result], digits: int = 2
) -> list[list[str]]:
    """Return what validation keeps in the runs that have a twin, and how many these are."""
    pairs = [
        [(twins[_key(run)], run) for run in runs if _key(run) in twins] for runs in columns.values()
    ]
    cells = [_cell([_gain(_held_out(twin), run) for twin, run in some], digits) for some in pairs]
    return [[HELD_OUT, *cells], [TWINS, *(str(len(some)) for some in pairs)]]


def candidates(results: list[Result]) -> str:
    """Return the same for other signals, powers and warm-ups, on runs of the choice and on others."""
    kept = [run for run in _of_epochs(results) if run["settings"]["percent"] == 100]
    parts = {
        "Runs of the choice": [r for r in kept if r["settings"]["seed"] == CHOSEN_SEED],
        "Runs made afterwards": [r for r in kept if r["settings"]["seed"] != CHOSEN_SEED],
    }
    tables = {}
    for title, runs in parts.items():
        columns = {
            f"{kind}, {counted(len(some), 'run')}": some
            for kind in (*SIZES, "asymmetric")
            if (some := [run for run in runs if _column(run) == kind])
        }
        rows = [[name, *_cells(columns, _mean_of(name))] for name in SHOWN]
        if columns:
            tables[title] = markdown(["mean of the epochs by", *columns], rows)
    return parts_of(tables)


def _key(run: Result) -> tuple[Any, ...]:
    s = run["settings"]
    # One network is trained with several rates.
    names = ("network", "data", "labels", "seed", "schedule", "learning_rate", "batch_size")
    return tuple(s[name] for name in names)


def size_of(run: Result) -> str:
    """Return the column of a run: networks that a CPU can train, and others by what they see."""
    if run["settings"]["data"] == "completion":
        return MANY
    if run["settings"]["network"] in SMALL:
        return "small"
    return "large, texts" if run["settings"]["data"] == "newsgroups" else "large, images"


def kind_of(run: Result) -> str:
    """Return who got the labels of a run wrong."""
    labels = run["settings"]["labels"]
    if labels == "label":
        return "right"
    return labels.partition("-")[0] if "-" in labels else "human"


def _column(run: Result) -> str:
    return "asymmetric" if kind_of(run) == "asymmetric" else size_of(run)


def above(run: Result, kept: Kept) -> float | None:
    """Return how many points what is kept lies above the best epoch; None where nothing is kept."""
    return _gain(kept(run), run)


def _gain(accuracy: float | None, run: Result) -> float | None:
    if accuracy is None:
        return None
    return 100 * (float(accuracy) - float(column(run, "test_accuracy").max()))


def _cell(gains: list[float | None], digits: int) -> str:
    known = [gain for gain in gains if gain is not None]
    return f"{np.mean(known):+.{digits}f} ({min(known):+.{digits}f})" if known else MISSING
