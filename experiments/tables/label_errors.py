"""How well signals find wrong labels: Fig. 4 and 16, and further networks."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from experiments.folds import FOLDS, SCORES, judged
from experiments.store import Result
from experiments.tables.cells import (
    LABELS,
    MISSING,
    NETWORKS,
    RANKINGS,
    TITLES,
    counted,
    markdown,
    parts_of,
    spread,
)
from experiments.tables.runs import newest, runs_of
from gwa_core.signals import SIGNALS

__all__ = ["further_errors", "label_errors"]


def label_errors(results: list[Result]) -> str:
    """Fig. 4 and 16 in numbers: average precision of the human label errors, by signal.

    Of the last epoch, of the mean over all epochs, and of the mean up to the best number of epochs.
    """
    parts = {}
    for study, title in NETWORKS.items():
        cells: dict[str, dict[str, list[tuple[float, float, float]]]] = defaultdict(dict)
        own = [
            r
            for x in LABELS[1:]
            for r in newest(runs_of(results, study=study, labels=x, percent=100))
        ]
        for run in own:
            for name, found in run["detection"].items():
                cells[name].setdefault(run["settings"]["labels"], []).append(_precisions(found))
        if not cells:
            continue
        rows = []
        for name in (*RANKINGS, "alignment", *SIGNALS):
            if name in cells:
                row = []
                for labels in LABELS[1:]:
                    columns = zip(*cells[name].get(labels, []), strict=True)
                    row.append(" / ".join(spread(list(x), 3) for x in columns) or MISSING)
                rows.append([f"`{name}`", *row])
        rows += _cleanlab(results, own)
        parts[title] = markdown(["signal", *list(TITLES.values())[1:]], rows)
    return parts_of(parts)


def _cleanlab(results: list[Result], own: list[Result]) -> list[list[str]]:
    """Return rows of cleanlab's scores: of a study's own runs, and of folds of its network."""
    networks = {r["settings"]["network"] for r in own}
    folds: dict[tuple[Any, ...], dict[int, Any]] = defaultdict(dict)
    for run in results:
        s = run["settings"]
        if "held_out" in run and s["network"] in networks:
            folds[s["labels"], s["study"], s["seed"]][s["fold"]] = run["held_out"]
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in own:
        # What cleanlab calls self-confidence.
        if single := run["detection"].get("label_probability"):
            last = single["last_auroc"], single["last"]
            found["in-sample, `self_confidence`"][run["settings"]["labels"]].append(last)
    for (labels, *_), parts in folds.items():
        if len(parts) == FOLDS:
            for name, both in judged(list(parts.values())).items():
                found[f"cross-validated, `{name}`"][labels].append(both)
    rows = []
    for name in ("in-sample, `self_confidence`", *(f"cross-validated, `{x}`" for x in SCORES)):
        cells = []
        for labels in LABELS[1:]:
            area, precision = ([x[k] for x in found[name][labels]] for k in (0, 1))
            cell = f"{spread(precision, 3)}, AUROC {spread(area, 3)}"
            cells.append(cell if area else MISSING)
        if any(cell != MISSING for cell in cells):
            rows.append([f"cleanlab, {name}", *cells])
    return rows


def _precisions(found: dict[str, float]) -> tuple[float, float, float]:
    nan = float("nan")
    return found.get("last", nan), found["mean"], found.get("best_mean", nan)


def further_errors(results: list[Result]) -> str:
    """Label errors in other networks: average precision by the mean over all epochs."""
    runs = [
        r
        for r in runs_of(results, percent=100, averages=False)
        if r["detection"]
        and not r["settings"]["fold"]
        and r["settings"]["study"] not in NETWORKS
        and r["settings"]["labels"] != "random"
    ]
    parts = []
    for network in dict.fromkeys((r["settings"]["network"], r["settings"]["data"]) for r in runs):
        of = [r for r in runs if (r["settings"]["network"], r["settings"]["data"]) == network]
        labels = sorted({r["settings"]["labels"] for r in of})
        by = {x: newest(runs_of(of, labels=x)) for x in labels}
        rows = []
        for name in (*RANKINGS, "alignment", *SIGNALS):
            row = []
            for some in by.values():
                found = [r["detection"][name]["mean"] for r in some if name in r["detection"]]
                row.append(spread(found, 3))
            if any(cell != MISSING for cell in row):
                rows.append([f"`{name}`", *row])
        head = ["signal", *(f"{x}, {counted(len(some), 'run')}" for x, some in by.items())]
        parts.append(f"**`{network[0]}` on {network[1]}**\n\n{markdown(head, rows)}")
    return "\n".join(parts)
