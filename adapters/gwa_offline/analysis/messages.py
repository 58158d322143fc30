"""Sentences that a person should read beside the numbers of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gwa_core import MaxGWA, Rule, select_epoch, summarize_history, warmup_steps
from gwa_core.history import epochs_cut_short
from gwa_offline.analysis.findings import EpochRecord
from gwa_offline.analysis.view import position, unit

__all__ = ["messages_of"]

# Records after the warm-up that make a curve; in fewer a first place says nothing.
CURVE = 5


def messages_of(
    records: Sequence[EpochRecord],
    rows: Sequence[Mapping[str, Any]],
    rule: Rule,
    best: int | None,
    *,
    total_steps: int | None = None,
) -> tuple[str, ...]:
    """Say what is unusual in a history.

    Parameters
    ----------
    records : sequence of EpochRecord
        T epochs in order.
    rows : sequence of mapping
        What a rule observes of each (`gwa_offline.analysis.view.observed`).
    rule : gwa_core.Rule
        The rule that was asked.
    best : int or None
        Position of the epoch that it keeps.
    total_steps : int, optional
        Planned number of epochs; default T.

    Returns
    -------
    tuple of str
        An epoch at the edge of the warm-up, unhealthy epochs, epochs cut short, memorisation, omitted
        scores, and where the paper's rule would keep another epoch.

    Notes
    -----
    Cost: O(T).
    """
    found = []
    name = unit(records)
    # A window ends at a step, but there are as many windows as records.
    noun, one = ("epoch", "an epoch") if name == "epoch" else ("window", "a window")
    if best is None:
        found.append(f"No {noun} qualifies under the rule; the last one is shown instead.")
    if best is not None and _at_the_edge(rows, rule, best, total_steps or len(records)):
        found.append(
            f"{name.capitalize()} {position(records[best].summary)} is the first after the warm-up, "
            f"and no later {noun} has a better {rule.signal}: this is no peak. Compare it with the "
            f"last {noun} and with the average of the weights."
        )
    unhealthy = [record for record in records if not record.summary.healthy]
    if unhealthy:
        found.append(
            f"GWA means nothing at {len(unhealthy)} of {len(records)} {noun}s "
            f"({_listed(unhealthy, name)}): the scores are so bimodal, or so constant, that the "
            f"denominator is not positive. Rules on GWA skip these {noun}s; other rules do not."
        )
    short = [records[i] for i in epochs_cut_short(rows)]
    if short:
        found.append(
            f"{len(short)} of {len(records)} {noun}s {'was' if len(short) == 1 else 'were'} cut "
            f"short ({_listed(short, name)}): too few of the samples came. No rule keeps such {one}."
        )
    if summarize_history([record.summary for record in records]).memorising:
        found.append(
            "The run is memorising: the negative scores of wrong labels have vanished. "
            f"GWA then climbs a second time; {one} before the climb generalises better."
        )
    omitted = sum(record.summary.omitted for record in records)
    if omitted:
        words = "score was" if omitted == 1 else "scores were"
        found.append(f"{omitted} {words} not finite and left out.")
    if not isinstance(rule, MaxGWA) and len(records) > 1:
        paper = select_epoch(rows, MaxGWA(), total_steps=total_steps)
        if paper.step is not None and paper.step != best:
            found.append(
                f"The paper's rule, largest GWA, would keep {name} "
                f"{position(records[paper.step].summary)}."
            )
    return tuple(found)


def _at_the_edge(
    rows: Sequence[Mapping[str, Any]], rule: Rule, best: int, total_steps: int
) -> bool:
    """Tell whether a record is the first after the warm-up, with no better one in a curve after it."""
    first = warmup_steps(getattr(rule, "warmup", 0), total_steps)
    if not 0 < first == best <= len(rows) - CURVE:
        return False
    # Patience or a margin may have kept a record that a later one exceeds.
    values = np.array([row[rule.signal] for row in rows[best:]], dtype=np.float64)
    return not (getattr(rule, "sign", 1) * (values[1:] - values[0]) > 0).any()


def _listed(records: Sequence[EpochRecord], name: str, most: int = 8) -> str:
    text = "" if name == "epoch" else "steps " if len(records) > 1 else "step "
    text += ", ".join(str(position(record.summary)) for record in records[:most])
    return text + (", ..." if len(records) > most else "")
