"""Language models: which answers are wrong, and what to keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.criteria import CRITERIA, SEPARATION, best_epoch
from experiments.language_signals import REDUCTIONS, SIGNALS
from experiments.store import Result, column
from experiments.tables.cells import MISSING, markdown, spread

__all__ = ["examples", "stopping"]

#: After how many epochs examples are judged, beside all.
AFTER = (1, 3)
#: Ways to make one number of several epochs.
WAYS = ("by_quality", "by_mean", "by_epoch")
#: Rules that read the scores; the others are the same whatever a monitor reduces by.
OF_SCORES = (SEPARATION, "largest bimodality", "GWA, the paper's rule")
ANSWERS = {"answer": "loss on the answer", "all": "loss on all tokens"}


def examples(results: list[Result]) -> str:
    """Return the average precision of the wrong answers, by signal and number of epochs.

    By the scores weighed as `LabelQuality` does (of GWA alone), by their mean, and by the last epoch.
    """
    rows = []
    for title, runs in _groups(results).items():
        longest = min(len(run["epochs"]["epoch"]) for run in runs)
        for epochs in (*(k for k in AFTER if k < longest), longest):
            cells = [_precisions(runs, name, epochs) for name in (*REDUCTIONS, *SIGNALS)]
            rows.append([f"{title}, {len(runs)} runs", f"{epochs}", *cells])
    head = [*(f'GWA, `reduce="{name}"`' for name in REDUCTIONS), *SIGNALS]
    return markdown(["answers", "epochs", *head], rows) if rows else ""


def _precisions(runs: list[Result], name: str, epochs: int) -> str:
    known = [way for way in WAYS if way in runs[0]["examples"][name]]
    # Of one epoch all ways are the same.
    ways = known if epochs > 1 else known[:1]
    return " / ".join(
        spread([run["examples"][name][way][epochs - 1] for run in runs], 3) for way in ways
    )


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
    titles = [f"{title}, {len(runs)} runs" for title, runs in groups.items()]
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
            kind, _, share = s["labels"].partition("-")
            title = f"{share} % {kind}, {ANSWERS[s['loss']]}{once}"
            found.setdefault(title, []).append(run)
    return dict(sorted(found.items()))


def _best(runs: list[Result]) -> list[float]:
    return [float(column(run, "test_loss").min()) for run in runs]


def _above(run: Result, kept: Kept) -> float | None:
    loss = kept(run)
    return None if loss is None else loss - float(column(run, "test_loss").min())


def _cell(above: list[float | None]) -> str:
    known = [x for x in above if x is not None]
    return f"{np.mean(known):+.3g} ({max(known):+.3g})" if known else MISSING
