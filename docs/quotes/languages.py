"""Figures of language models, as sentences say them."""

from __future__ import annotations

from functools import cache

import numpy as np

from experiments.store import Result, column
from experiments.tables import language as table

from .averages import results
from .words import number, signed, spread

Cells = dict[str, dict[str, float]]
ANSWER, ALL = table.ANSWERS["answer"], table.ANSWERS["all"]
ONCE, THIRD, END = "one epoch", "3 of 20", "20 of 20"


def _runs() -> list[Result]:
    return [run for run in results() if run["settings"]["loss"]]


@cache
def _cells(draw: object) -> Cells:
    """Return the first number of each cell of a table, by column and row."""
    assert callable(draw)
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in draw(results()).splitlines()
    )
    return {
        title: {name: float(of[k].split()[0]) for name, *of in lines}
        for k, title in enumerate(head[1:])
    }


def _best(cells: dict[str, float], *, gwa: bool) -> float:
    return max(x for name, x in cells.items() if name.startswith("GWA") == gwa)


def setting() -> dict[str, str]:
    """The size of the decoder, and how many answers are wrong."""
    (weights,) = {run["parameters"] for run in _runs()}
    (wrong,) = {round(run["wrong"], 3) for run in _runs()}
    # No answer is left out.
    (count,) = {int(x) for run in _runs() for x in column(run, "count")}
    steps = {
        len(column(run, "epoch")): run["settings"]["steps"] // len(column(run, "epoch"))
        for run in _runs()
    }
    seeds = {run["settings"]["seed"] for run in _runs()}
    return {
        "weights": f"{weights / 1e6:.1f}",
        "wrong": f"{100 * wrong:.0f}",
        "random": f"{wrong:.2f}",
        "answers": f"{count:,}",
        "steps": f"{steps[20]}",
        "once": f"{steps[1]}",
        "seeds": number(len(seeds)),
    }


def answers() -> dict[str, str]:
    """How well swapped answers are found after three epochs and after all, the loss on the answer."""
    cells = _cells(table.examples)
    third, end = cells[f"swapped, {THIRD}"], cells[f"swapped, {END}"]
    assert third["GWA, min: mean"] == third["loss: last epoch"] == max(third.values())
    assert end["el2n: mean"] == max(end.values())
    once = cells[f"swapped, {ONCE}"]
    # A sentence gives one number for both.
    assert once["GWA, min: mean"] == once["GWA, gradient: mean"] == max(once.values())
    assert once["loss: mean"] == _best(once, gwa=False)
    return {
        "third": f"{max(third.values()):.2f}",
        "last": f"{max(end.values()):.2f}",
        "last_gwa": f"{_best(end, gwa=True):.2f}",
    }


def all_tokens() -> dict[str, str]:
    """How well wrong answers are found where the loss counts all tokens."""
    cells = _cells(table.examples_all)
    garbled, swapped = cells[f"garbled, {ONCE}"], cells[f"swapped, {THIRD}"]
    assert garbled["GWA, min: mean"] == max(garbled.values())
    assert swapped["forgetting: mean"] == max(x for of in _swapped(cells) for x in of.values())
    return {
        "garbled": f"{max(garbled.values()):.2f}",
        "garbled_other": f"{_best(garbled, gwa=False):.2f}",
        "swapped": f"{max(swapped.values()):.2f}",
    }


def _swapped(cells: Cells) -> list[dict[str, float]]:
    return [of for title, of in cells.items() if title.startswith("swapped")]


def kept() -> dict[str, str]:
    """The test loss above that of the best epoch, by what is kept."""
    groups = {
        title: of for title, of in table._groups(results()).items() if not title.endswith(ONCE)
    }
    # Not the cells of the table, which are rounded.
    cells = {
        title: {
            name: float(np.mean([x for run in of if (x := table._above(run, way)) is not None]))
            for name, way in table.KEPT.items()
        }
        for title, of in groups.items()
    }
    garbled, swapped = (cells[f"{kind}, {ANSWER}"] for kind in ("garbled", "swapped"))
    long = [cells[f"{kind}, {ALL}"] for kind in ("garbled", "swapped")]
    average, rule = "average (separation^10), mean", "largest separation, mean"
    nearest, plain = "largest separation, min", "plain mean (SWA)"
    for of in long:
        assert of[nearest] == min(of.values())
    (best,) = {
        int(column(run, "test_loss").argmin()) + 1
        for title, runs in groups.items()
        for run in runs
        if title.endswith(ALL)
    }
    found = {
        "garbled_average": f"{garbled[average]:+.3f}",
        "swapped_average": f"{swapped[average]:.2f}",
        "garbled_separation": f"{garbled[rule]:+.2f}",
        "swapped_separation": f"{swapped[rule]:+.2f}",
        "best": number(best),
        "nearest": " to ".join(dict.fromkeys(f"{of[nearest]:+.2f}" for of in long)),
        "far": " to ".join(f"{x:+.1f}" for x in sorted(of[rule] for of in long)),
        "end": " to ".join(dict.fromkeys(f"{of['last epoch']:+.1f}" for of in long)),
        "average": spread([of[average] for of in long], 1),
        "plain": f"{max(garbled[plain], swapped[plain]):.2f}",
        "plain_all": spread([of[plain] for of in long], 1),
    }
    return {name: signed(text) for name, text in found.items()}
