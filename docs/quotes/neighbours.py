"""Figures of neighbours beside label quality, as sentences say them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from experiments.neighbours import LATENTS, Form, forms
from experiments.store import Result
from experiments.tables import neighbours as table

from .averages import results
from .words import signed, spread

USUAL = Form(*table.TRUSTED, "ranks")


def _gains(runs: Iterable[Result], form: Form, latents: str = "last") -> list[float]:
    found = (table.above(run, latents, form) for run in runs)
    return [gain for gain in found if math.isfinite(gain)]


def neighbours() -> dict[str, str]:
    """What the form that was chosen gains and loses, and the best of all forms in their worst run."""
    parts = table.grouped(results())
    small, large = (parts[title] for title in table.AFTERWARDS.values())
    gains = {
        name: [gain for some in part.values() for gain in _gains(some, USUAL)]
        for name, part in {"choice": parts[table.CHOICE], "small": small, "large": large}.items()
    }
    figures = {"worst": f"{min(gains['large']):+.3f}"}
    for name, values in gains.items():
        figures |= {name: f"{len(values)}", f"{name}_gains": spread(values, 3)}
    figures["losing"] = f"{sum(gain < 0 for gain in gains['large'])}"
    every = [run for part in (small, large) for some in part.values() for run in some]
    # Of the forms that all these runs have.
    worst = [
        min(values)
        for latents in LATENTS
        for form in forms()
        if len(values := _gains(every, form, latents)) == len(every)
    ]
    figures |= {"runs": f"{len(every)}", "nearest": f"{max(worst):+.3f}", "forms": f"{len(worst)}"}
    for name, opinion, latents in (
        ("usual", table.TRUSTED, "last"),
        ("plain", table.PLAIN, "last"),
        ("angle", table.BY_ANGLE, "last"),
        ("averaged", table.BY_ANGLE, "average"),
        ("margin", table.MARGIN, "last"),
    ):
        for kind, some in large.items():
            values = _gains(some, Form(*opinion, "ranks"), latents)
            figures[f"{name}_{kind}"] = f"{np.mean(values):+.3f}"
            figures[f"{name}_{kind}_worst"] = f"{min(values):+.3f}"
    return {name: signed(text) for name, text in figures.items()}
