"""Label quality with the labels of nearest neighbours, beside label quality alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.neighbours import Form, forms
from experiments.store import Result
from experiments.tables.cells import MISSING, counted, markdown, parts_of
from experiments.tables.runs import SMALL

__all__ = ["AFTERWARDS", "CHOICE", "TRUSTED", "above", "grouped", "neighbours"]

CHOSEN_SEED = 0
CHOICE = "Runs of the choice, small networks"
AFTERWARDS = {True: "Made afterwards, small networks", False: "Large networks"}
KINDS = ("asymmetric", "symmetric", "human")
#: The latents, of these two, whose neighbours agree more with label quality.
CLOSER, OF = "closer", ("last", "average")
PLAIN = ("cosine", "root", "alike", "share")
BY_ANGLE = ("cosine", "root", "trusted in class", "share")
TRUSTED = ("distance", "root", "trusted in class", "share")
MARGIN = ("distance", "root", "trusted in class", "margin")
TITLES = {
    PLAIN: "share, cosine",
    BY_ANGLE: "share, trusted, cosine",
    TRUSTED: "share, trusted",
    MARGIN: "margin, trusted",
}
#: The rows: an opinion, how it goes together with label quality, and whose latents.
ROWS = [
    (PLAIN, "alone", "last"),
    *((PLAIN, "ranks", latents) for latents in OF),
    *((BY_ANGLE, "ranks", latents) for latents in OF),
    (TRUSTED, "alone", "last"),
    *((TRUSTED, "ranks", latents) for latents in (*OF, "separation", "all", CLOSER)),
    *((TRUSTED, combination, "last") for combination in ("standardised", "by modes", "the rest")),
    *((MARGIN, combination, "last") for combination in ("ranks", "for")),
]
WHOSE = {"last": "last epoch", "average": "averaged", "separation": "separated most"}


def neighbours(results: list[Result]) -> str:
    """Average precision less that of `label_quality` alone, by kind of error: mean and worst run.

    Of the runs that a form was chosen on, and of those that were made afterwards.
    """
    return parts_of({title: _table(by) for title, by in grouped(results).items()})


def grouped(results: list[Result]) -> dict[str, dict[str, list[Result]]]:
    """Return the runs by whether a form was chosen on them and by size, and by kind of error."""
    parts: dict[str, dict[str, list[Result]]] = {}
    for title in (CHOICE, *AFTERWARDS.values()):
        own = [r for r in results if r.get("neighbours") and _part(r) == title]
        if own:
            parts[title] = {kind: [r for r in own if _kind(r) == kind] for kind in KINDS}
    return parts


def above(run: Result, name: str, form: Form | None = None) -> float:
    """Return by how much a ranking is ahead of label quality; nan where it was not measured."""
    found = run["neighbours"]
    if name == CLOSER:
        if "correlation" not in found:
            return math.nan
        name = max(OF, key=found["correlation"].__getitem__)
    value = found[name] if form is None else found[name][forms().index(form)]
    return math.nan if value is None else (value - found["label_quality"]) / 1000


def _part(run: Result) -> str:
    s = run["settings"]
    small = s["network"] in SMALL
    return CHOICE if small and s["seed"] == CHOSEN_SEED else AFTERWARDS[small]


def _kind(run: Result) -> str:
    name: str = run["settings"]["labels"].partition("-")[0]
    return name if name in KINDS else KINDS[-1]


def _table(by: Mapping[str, Sequence[Result]]) -> str:
    alone = ([r["neighbours"]["label_quality"] / 1000 for r in some] for some in by.values())
    rows = [["`label_quality`", "", "", *(f"{np.mean(x):.3f}" if x else MISSING for x in alone)]]
    for opinion, combination, latents in ROWS:
        form = Form(*opinion, combination)
        cells = [_cell([above(r, latents, form) for r in some]) for some in by.values()]
        if any(cell != MISSING for cell in cells):
            rows.append([TITLES[opinion], combination, WHOSE.get(latents, latents), *cells])
    for name in ("margin", "el2n"):
        gains = ([above(r, name) for r in some] for some in by.values())
        rows.append([f"`{name}`", "", "", *map(_cell, gains)])
    head = [f"{kind}, {counted(len(some), 'run')}" for kind, some in by.items()]
    return markdown(["ranking by", "with quality", "latents", *head], rows)


def _cell(gains: Sequence[float]) -> str:
    known = [x for x in gains if math.isfinite(x)]
    if not known:
        return MISSING
    of = f"<br>{counted(len(known), 'run')}" if len(known) < len(gains) else ""
    return f"{np.mean(known):+.3f} ({min(known):+.3f}){of}"
