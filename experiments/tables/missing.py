"""Runs that are planned and not made yet, by study."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from experiments.plan import Settings, plan, studies
from experiments.store import Result, name_of
from experiments.tables.cells import MISSING, markdown

__all__ = ["missing"]


def missing(results: list[Result]) -> str:
    """Count and name the missing runs of each study, and say how long one takes."""
    done = {name_of(run) for run in results}
    rows = []
    for study in studies():
        planned = plan(study)
        left = [run for run in planned if run.name not in done]
        if left:
            made = [run for run in results if run["settings"]["study"] == study]
            rows.append([f"`{study}`", f"{len(left)} of {len(planned)}", _named(left), _long(made)])
    rows.sort()
    return markdown(["study", "missing", "which", "a run took"], rows) if rows else ""


def _named(runs: list[Settings]) -> str:
    """Return labels by share of the data and seed; alike groups once, variants as a number."""
    found: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    for run in runs:
        group = found[run.percent, run.seed]
        group[run.labels] = group.get(run.labels, 0) + 1
    alike: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for key, labels in found.items():
        words = (f"{name} ({n})" if n > 1 else name for name, n in labels.items())
        alike[", ".join(words)].append(key)
    return "; ".join(f"{_where(keys)}: {labels}" for labels, keys in alike.items())


def _where(keys: list[tuple[int, int]]) -> str:
    seeds: dict[int, list[str]] = defaultdict(list)
    for percent, seed in sorted(keys, reverse=True):
        seeds[percent].insert(0, str(seed))
    return " and ".join(
        f"{percent} %, seed{'s' * (len(some) > 1)} {', '.join(some)}"
        for percent, some in seeds.items()
    )


def _long(made: list[Result]) -> str:
    """Return the usual minutes of a run, and where."""
    if not made:
        return MISSING
    where = "CPU" if made[0]["device"] == "cpu" else "GPU"
    return f"{np.median([run['seconds'] for run in made]) / 60:.0f} min, {where}"
