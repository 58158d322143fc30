"""Figures of neighbours beside label quality, as sentences say them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from experiments.neighbours import LATENTS, Form, forms
from experiments.store import Result
from experiments.tables import neighbours as table

from .averages import results

USUAL = Form(*table.TRUSTED, "ranks")


def _gains(runs: Iterable[Result], form: Form, latents: str = "last") -> list[float]:
    found = (table.above(run, latents, form) for run in runs)
    return [gain for gain in found if math.isfinite(gain)]


def neighbours() -> dict[str, str]:
    """What the form that was chosen gains and loses, and the best of all forms in their worst run."""
    parts = table.grouped(results())
    made, chosen = parts[table.AFTERWARDS], parts[table.CHOICE]
    every = [run for some in made.values() for run in some]
    own = {kind: _gains(some, USUAL) for kind, some in made.items()}
    figures = {"runs": f"{len(every)}", "measured": f"{len(forms())}"}
    for kind, gains in own.items():
        figures |= {f"{kind}": f"{np.mean(gains):+.3f}", f"{kind}_worst": f"{min(gains):+.3f}"}
        figures[f"{kind}_best"] = f"{max(gains):+.3f}"
    gains = [gain for some in chosen.values() for gain in _gains(some, USUAL)]
    figures |= {"least": f"{min(gains):.3f}", "most": f"{max(gains):.3f}"}
    figures["choice"] = f"{len(gains)}"
    # Of the forms that all these runs have.
    worst = [
        min(gains)
        for latents in LATENTS
        for form in forms()
        if len(gains := _gains(every, form, latents)) == len(every)
    ]
    figures["lowest"] = f"{min(gain for gains in own.values() for gain in gains):+.3f}"
    losing = sum(gain < 0 for gains in own.values() for gain in gains)
    figures |= {"nearest": f"{max(worst):+.3f}", "losing": f"{losing}", "forms": f"{len(worst)}"}
    plain = Form(*table.PLAIN, "ranks")
    for name, form, latents in (
        ("plain", plain, "last"),
        ("plain_averaged", plain, "average"),
        ("angle", Form(*table.BY_ANGLE, "ranks"), "last"),
        ("angle_averaged", Form(*table.BY_ANGLE, "ranks"), "average"),
        ("margin", Form(*table.MARGIN, "ranks"), "last"),
    ):
        for kind, some in made.items():
            gains = _gains(some, form, latents)
            figures |= {f"{name}_{kind}": f"{np.mean(gains):+.3f}"}
            figures |= {f"{name}_{kind}_worst": f"{min(gains):+.3f}"}
    return {name: text.replace("-", "−").replace("+−", "−") for name, text in figures.items()}
