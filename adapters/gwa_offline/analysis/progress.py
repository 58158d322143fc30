"""A run while it is written: what a rule would keep so far, and how the labels stand."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gwa_core import EarlyStopper, Rule, Selection
from gwa_core.stopping import DEFAULT_RULE
from gwa_offline.analysis.findings import EpochRecord
from gwa_offline.analysis.messages import messages_of
from gwa_offline.analysis.statistics import shares_of
from gwa_offline.analysis.view import observed
from gwa_offline.store import RunFolder

__all__ = ["Progress", "progress_of"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The numbers of a run so far.

    Parameters
    ----------
    name : str
        Name of the run: the last part of its path.
    ended : bool
        Whether the training says that it has ended.
    planned : int or None
        How many epochs it is to have, if it says so.
    epochs : tuple of EpochRecord
        T records in order; none before the first epoch has ended.
    signal : str
        The column that the rule watches.
    values : array of shape (T,)
        That column; nan where an epoch lacks it.
    kept : tuple of int or None
        Position of the epoch that the rule kept after each epoch.
    selection : gwa_core.Selection
        What it keeps so far; `step` is a position in `epochs`.
    average_shares : array of shape (T,)
        Share of each epoch in the average of the weights so far.
    negative, labels : int
        How many labels pull against the model, γ < 0, and how many have a score: of the newest scores
        that the run stored, or of its newest summary.
    messages : tuple of str
        Sentences the user should read.
    """

    name: str
    ended: bool
    planned: int | None
    epochs: tuple[EpochRecord, ...]
    signal: str
    values: NDArray[np.float64]
    kept: tuple[int | None, ...]
    selection: Selection
    average_shares: NDArray[np.float64]
    negative: int
    labels: int
    messages: tuple[str, ...]


def progress_of(run: RunFolder, rule: Rule | None = None) -> Progress:
    """Return what is known of a run so far.

    Parameters
    ----------
    run : RunFolder
        A run, finished or not. A line that is being written is left out.
    rule : gwa_core.Rule, optional
        The stopping rule, default ``MaxSeparation()``.

    Returns
    -------
    Progress

    Raises
    ------
    FeaturesError
        If a line or the newest scores are damaged.
    ValueError
        If the run lacks the column that the rule reads.

    Notes
    -----
    Fractions of the epochs, such as the warm-up, are of the planned ones, or of those so far where the
    run does not say how many are planned. Cost: O(T), and O(N) for the newest scores.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from gwa_core import GWATracker
    >>> from gwa_offline.store import begin_run
    >>> folder = tempfile.TemporaryDirectory()
    >>> about = {"num_samples": 3, "num_classes": 2, "adapter": "mine"}
    >>> run, tracker = begin_run(folder.name, planned=4, **about), GWATracker(3)
    >>> for shift in (0.0, 0.2):
    ...     tracker.update(np.array([-0.1, 0.5, 0.9]) + shift, ids=np.arange(3))
    ...     run.write_epoch(tracker.end_epoch(), scores=tracker.scores)
    >>> progress = progress_of(run)
    >>> progress.kept, progress.negative, progress.labels
    ((0, 1), 0, 3)
    >>> folder.cleanup()
    """
    rule = DEFAULT_RULE if rule is None else rule
    with warnings.catch_warnings():
        # The half-written line of a run that is being written is no surprise.
        warnings.simplefilter("ignore", UserWarning)
        lines = run.epochs()
    records = tuple(EpochRecord(summary=s, source="online", metrics=m) for s, m in lines)
    rows = observed(records)
    total = max(run.planned or 0, len(rows), 1)
    stopper = EarlyStopper(rule, total_steps=total)
    waits = run.status == "running" or any(row.get(rule.signal) is not None for row in rows)
    kept = []
    for number, row in enumerate(rows):
        # While a training goes on a metric may come later; it need not come in each epoch.
        if row.get(rule.signal) is not None or not waits:
            stopper.observe(row, step=number)
        kept.append(stopper.best_step)
    selection = Selection(stopper.best_step, stopper.best_value, stopper.reason)
    negative, labels = _pulls(run, records)
    found: tuple[str, ...] = ()
    if records and any(row.get(rule.signal) is not None for row in rows):
        # That no epoch qualifies yet is what the selection says.
        best = len(records) - 1 if selection.step is None else selection.step
        found = messages_of(records, rows, rule, best, total_steps=total)
    values = [np.nan if (value := row.get(rule.signal)) is None else value for row in rows]
    return Progress(
        name=run.path.resolve().name,
        ended=run.status == "ended",
        planned=run.planned,
        epochs=records,
        signal=rule.signal,
        values=np.array(values, dtype=np.float64),
        kept=tuple(kept),
        selection=selection,
        average_shares=shares_of(rows, total_steps=total),
        negative=negative,
        labels=labels,
        messages=found,
    )


def _pulls(run: RunFolder, records: tuple[EpochRecord, ...]) -> tuple[int, int]:
    """Return how many labels pull against the model, and of how many."""
    if not records:
        return 0, 0
    if (run.path / "scores").is_dir():
        for record in reversed(records):
            scores = run.scores(record.summary.epoch)
            if scores is not None:
                return int(np.count_nonzero(scores < 0)), int(np.isfinite(scores).sum())
    newest = records[-1].summary
    negative = np.nan_to_num(newest.negative_fraction * newest.count)
    return round(float(negative)), newest.count
