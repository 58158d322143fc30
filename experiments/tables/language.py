"""Language models: which answers are wrong, and what to keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.criteria import CRITERIA, SEPARATION, best_epoch
from experiments.language_signals import REDUCTIONS, SIGNALS
from experiments.store import Result, column
from experiments.tables.cells import MISSING, markdown, spread

__all__ = ["examples", "examples_all", "stopping"]

#: After how many epochs examples are judged, beside all.
AFTER = (3,)
#: Ways to make one number of several epochs.
WAYS = ("by_quality", "by_mean", "by_epoch")
HOW = {"by_quality": "label quality", "by_mean": "mean", "by_epoch": "last epoch"}
#: Rules that read the scores; the others are the same whatever a monitor reduces by.
OF_SCORES = (SEPARATION, "largest bimodality", "GWA, the paper's rule")
ANSWERS = {"answer": "loss on the answer", "all": "loss on all tokens"}


def examples(results: list[Result]) -> str:
    """Return the average precision of the wrong answers where the loss is that of the answer.

    A column is a kind of errors and a number of epochs; a run of a single epoch has its own learning
    rate. Of several epochs GWA has three rows: weighed as `LabelQuality` does, their mean, and the
    last one. The others have the last two.
    """
    return _examples(results, "answer")


def examples_all(results: list[Result]) -> str:
    """Return the same where the loss is that of all tokens."""
    return _examples(results, "all")


def _examples(results: list[Result], loss: str) -> str:
    columns = [
        (f"{_errors(runs[0])}, {_lasting(runs, epochs)}", runs, epochs)
        for runs in _groups([run for run in results if run["settings"]["loss"] == loss]).values()
        for epochs in _judged(runs)
    ]
    rows = []
    for name in (*REDUCTIONS, *SIGNALS):
        title = f"GWA, {name}" if name in REDUCTIONS else name
        ways = WAYS if name in REDUCTIONS else WAYS[1:]
        for way in ways:
            cells = [_precision(runs, name, way, epochs) for _, runs, epochs in columns]
            # Forgetting is not known of one epoch.
            if set(cells) != {MISSING}:
                rows.append([f"{title}: {HOW[way]}", *cells])
    return markdown(["signal", *(title for title, *_ in columns)], rows) if columns else ""


def _judged(runs: list[Result]) -> list[int]:
    longest = min(len(run["epochs"]["epoch"]) for run in runs)
    return [*(k for k in AFTER if k < longest), longest]


def _lasting(runs: list[Result], epochs: int) -> str:
    of = max(len(run["epochs"]["epoch"]) for run in runs)
    return f"{epochs} of {of}" if of > 1 else "one epoch"


def _precision(runs: list[Result], name: str, way: str, epochs: int) -> str:
    found = [run["examples"][name] for run in runs]
    if way not in found[0]:
        return MISSING
    return spread([x[way][epochs - 1] for x in found])


def stopping(results: list[Result]) -> str:
    """Return the test loss above that of the best epoch, by what is kept: mean, worst in brackets."""
    # Of a single epoch there is nothing to choose.
    groups = {
        title: several
        for title, runs in _groups(results).items()
        if (several := [run for run in runs if len(run["epochs"]["epoch"]) > 1])
    }
    if not groups:
        return ""
    rows = [["best epoch: test loss", *(spread(_best(runs), 3) for runs in groups.values())]]
    for name, kept in KEPT.items():
        rows.append(
            [name, *(_cell([_above(run, kept) for run in runs]) for runs in groups.values())]
        )
    titles = list(groups)
    return markdown(["what is kept", *titles], rows)


Kept = Callable[[Result], float | None]


def _average(name: str) -> Kept:
    return lambda run: run["averages"][name]["test_loss"]


def _epoch(criterion: str, reduction: str = "mean") -> Kept:
    def kept(run: Result) -> float | None:
        columns: dict[str, Any] = run["epochs"] | run["reductions"].get(reduction, {})
        epoch = best_epoch(run | {"epochs": columns}, criterion)
        return None if epoch is None else float(column(run, "test_loss")[epoch])

    return kept


#: What a run keeps, by name.
KEPT: dict[str, Kept] = {
    **{f"average (separation^10), {name}": _average(name) for name in REDUCTIONS},
    "plain mean (SWA)": _average("plain"),
    "EMA 0.998, last": _average("ema_998"),
    **{f"{rule}, {name}": _epoch(rule, name) for rule in OF_SCORES for name in REDUCTIONS},
    **{rule: _epoch(rule) for rule in CRITERIA if rule not in OF_SCORES},
}


def _groups(results: list[Result]) -> dict[str, list[Result]]:
    """Return the runs of language models by study, kind of errors and loss."""
    found: dict[str, list[Result]] = {}
    for run in results:
        s = run["settings"]
        if s["loss"]:
            once = ", one epoch" if len(run["epochs"]["epoch"]) == 1 else ""
            title = f"{_errors(run)}, {ANSWERS[s['loss']]}{once}"
            found.setdefault(title, []).append(run)
    return dict(sorted(found.items()))


def _errors(run: Result) -> str:
    kind: str = run["settings"]["labels"]
    return kind.partition("-")[0]


def _best(runs: list[Result]) -> list[float]:
    return [float(column(run, "test_loss").min()) for run in runs]


def _above(run: Result, kept: Kept) -> float | None:
    loss = kept(run)
    return None if loss is None else loss - float(column(run, "test_loss").min())


def _cell(above: list[float | None]) -> str:
    known = [x for x in above if x is not None]
    return f"{np.mean(known):+.3f} ({max(known):+.3f})" if known else MISSING
