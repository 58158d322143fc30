"""Analysis of saved features and runs: numbers in, a report of numbers out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwa_core import (
    EpochSummary,
    Moments,
    Rule,
    glass_delta,
    near_ties,
    select_epoch,
    summarize,
    summarize_history,
    warmup_steps,
)
from gwa_core.history import expected_samples
from gwa_core.stopping import DEFAULT_RULE
from gwa_offline.analysis.findings import Decision
from gwa_offline.analysis.messages import messages_of
from gwa_offline.analysis.results import EpochRecord, Report
from gwa_offline.analysis.scoring import PartScores, check_class_weights, score_part
from gwa_offline.analysis.statistics import (
    histograms_of,
    moments_of,
    per_class,
    quality_of,
    shares_of,
    standard_errors_of,
)
from gwa_offline.analysis.view import observed
from gwa_offline.readers import Epoch, Features, Source, open_features

__all__ = ["analyse", "conclude", "record_of"]


def analyse(
    source: Any,
    *,
    rule: Rule | None = None,
    label_smoothing: float = 0.0,
    class_weights: NDArray[Any] | None = None,
    keep: Sequence[str] = (),
    index: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Analyse saved features or a run: which epoch to keep, which labels to check.

    Parameters
    ----------
    source : Source, or what `open_features` takes
        What `open_features` returned or takes.
    rule : gwa_core.Rule, optional
        The stopping rule, default ``MaxSeparation()``. A message says where the paper's rule,
        ``MaxGWA()``, would keep another epoch.
    label_smoothing : float
        In [0, 1), as in the training; used for scores computed from features.
    class_weights : array of shape (C,), optional
        As in the training, for softmax cross-entropy; used like `label_smoothing`.
    keep, index
        See `open_features`; a source that is open has them already.
    progress : callable, optional
        Called as ``progress(done, total)`` with the number of rows read.

    Returns
    -------
    Report
        Numbers, and what is kept of each sample.

    Raises
    ------
    FeaturesError
        If the source is damaged, or its logits do not match its head.
    ValueError
        If the source lacks the column that the rule reads, or the class weights do not fit.

    Notes
    -----
    Scores saved during training come first. Scores computed from the features saved at the end of an
    epoch then only check them (Glass's delta). Features are read in blocks: memory is O(N T) for
    the scores, whatever D and C. Cost: one matrix product of the latents with the weight per epoch.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> rng = np.random.default_rng(0)
    >>> latents, targets = rng.normal(size=(50, 3)), np.arange(50) % 2
    >>> latents[:, 0] += 2 * targets - 1
    >>> file = folder.name + "/features.npz"
    >>> np.savez(file, latents=latents, weight=np.asarray([[-1.0, 0, 0], [1, 0, 0]]), targets=targets)
    >>> report = analyse(file)
    >>> report.epochs[0].summary.count, report.rank(2).shape
    (50, (2,))
    >>> folder.cleanup()
    """
    if not isinstance(source, Source):
        source = open_features(source, keep=keep, index=index)
    elif keep or index is not None:
        raise ValueError("`keep` and `index` must go to `open_features`, got a source that is open")
    reader = _Reader(source, label_smoothing, class_weights, progress)
    records, scores = [], []
    for epoch in source.epochs:
        record, values = reader.read(epoch)
        records.append(record)
        scores.append(values)
    return conclude(source, records, scores, reader.predictions, rule=rule)


def record_of(
    epoch: Epoch, *, beta: float, moments: Moments | None = None, rows: int | None = None
) -> EpochRecord:
    """Return the record of an epoch.

    Parameters
    ----------
    epoch : Epoch
        Of the source.
    beta : float
        The constant of Eq. 2.
    moments : gwa_core.Moments, optional
        Of the scores computed from its features, where it has some.
    rows : int, optional
        Of its features.

    Returns
    -------
    EpochRecord
        Scores and summaries of the training come first; `moments` then gives Glass's delta only.

    Notes
    -----
    Cost: O(N) where the moments of saved scores are needed.
    """
    online, summary = epoch.scores, epoch.summary
    found = moments
    if online is not None and (summary is None or moments is not None):
        found = moments_of(online)
    if found is not None and (summary is None or online is None):
        seen = int(found.count) if rows is None else rows
        expected = None
        if summary is not None and summary.expected is not None:
            # What was saved of an epoch is as much of a whole one as what was trained on.
            came = max(summary.count + summary.omitted, 1)
            expected = expected_samples(seen, rows=came, total=summary.expected)
        summary = EpochSummary.from_summary(
            summarize(found, beta=beta),
            epoch=epoch.epoch,
            step=epoch.step,
            omitted=seen - int(found.count),
            expected=expected,
            window=None if summary is None else summary.window,
        )
    assert summary is not None  # noqa: S101  (an epoch has a summary, scores or features)
    delta = None
    if online is not None and found is not None and moments is not None:
        delta = float(glass_delta(found, moments))
    return EpochRecord(
        summary=summary,
        source="online" if online is not None or moments is None else "offline",
        glass_delta=delta,
        metrics=epoch.metrics,
    )


def conclude(
    source: Source,
    records: Sequence[EpochRecord],
    scores: Sequence[NDArray[np.float32] | None],
    predictions: Callable[[Epoch], NDArray[np.integer[Any]] | None],
    *,
    rule: Rule | None = None,
) -> Report:
    """Make the report of a source whose epochs have been measured.

    Parameters
    ----------
    source : Source
        What was measured.
    records : sequence of EpochRecord
        Of its T epochs.
    scores : sequence of array of shape (N,) or None
        Their scores by sample id; mapped files are read an epoch at a time.
    predictions : callable
        Returns the (N,) classes of largest logit at an epoch, or None where they are unknown.
    rule : gwa_core.Rule, optional
        The stopping rule, default ``MaxSeparation()``.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        If the source lacks the column that the rule reads.

    Notes
    -----
    Cost: O(N T), and O(N) memory beside the scores.
    """
    rule = DEFAULT_RULE if rule is None else rule
    rows = observed(records)
    selection = select_epoch(rows, rule)
    best = selection.step
    if best is not None:
        selection = selection._replace(step=records[best].summary.epoch)
    shown = len(records) - 1 if best is None else best
    history = [record.summary for record in records]
    edges, histograms = histograms_of(scores)
    # One output with a sigmoid has two classes.
    num_classes = max(source.num_classes, 2)
    class_gwa, class_mean = per_class(scores, source.targets, num_classes, source.beta)
    names = source.class_names or ()
    if len(names) != num_classes:
        names = tuple(str(label) for label in range(num_classes))
    return Report(
        name=source.name,
        num_samples=source.num_samples,
        num_classes=num_classes,
        class_names=names,
        beta=source.beta,
        epochs=tuple(records),
        rule=repr(rule),
        selection=selection,
        decision=_decide(rows, history, scores, rule),
        best_index=best,
        average_shares=shares_of(rows),
        memorising=summarize_history(history).memorising,
        targets=source.targets,
        predictions=_as_labels(predictions(source.epochs[shown])),
        scores=_or_nan(scores[shown], source.num_samples),
        label_quality=quality_of(scores, history, source.num_samples),
        class_gwa=class_gwa,
        class_mean=class_mean,
        histogram_edges=edges,
        histograms=histograms,
        messages=messages_of(records, rows, rule, best),
        kept=source.kept,
    )


def _decide(
    rows: Sequence[Mapping[str, Any]],
    history: Sequence[EpochSummary],
    scores: Sequence[NDArray[np.float32] | None],
    rule: Rule,
) -> Decision:
    errors = standard_errors_of(rule.signal, history, scores)
    if getattr(rule, "smoothing", 1) > 1:  # its values are not those of one epoch
        errors = np.full(len(rows), np.nan)
    values = [np.nan if (value := row[rule.signal]) is None else value for row in rows]
    return Decision(
        signal=rule.signal,
        values=np.array(values, np.float64),
        standard_errors=errors,
        tied=near_ties(rows, errors, rule),
        warmup=warmup_steps(getattr(rule, "warmup", 0), len(rows)),
    )


class _Reader:
    """Read the epochs of a source, computing scores where only features are there."""

    def __init__(
        self,
        source: Source,
        label_smoothing: float,
        class_weights: NDArray[Any] | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        check_class_weights(class_weights, loss=source.loss, num_classes=source.num_classes)
        self._score = partial(
            score_part, label_smoothing=label_smoothing, class_weights=class_weights
        )
        self.source = source
        self.progress = progress
        self._done = 0
        self._predicted: tuple[int, NDArray[np.int32]] | None = None

    def read(self, epoch: Epoch) -> tuple[EpochRecord, NDArray[np.float32] | None]:
        """Return the record of an epoch and its (N,) scores by id."""
        features, beta = epoch.features, self.source.beta
        if features is None:
            return record_of(epoch, beta=beta), epoch.scores
        part = self._score(features, progress=partial(self._report, features))
        self._predicted = epoch.epoch, self._by_id(part.predictions, part, -1)
        online = epoch.scores
        scores = self._by_id(part.scores, part, np.nan) if online is None else online
        rows = features.num_samples
        return record_of(epoch, beta=beta, moments=part.moments, rows=rows), scores

    def _report(self, features: Features, rows: int) -> None:
        self._done += rows
        if self.progress is not None:
            total = features.num_samples * len(self.source.epochs)
            self.progress(self._done, max(total, self._done))

    def _by_id(self, values: NDArray[Any], part: PartScores, unknown: float) -> NDArray[Any]:
        found = np.full(self.source.num_samples, unknown, values.dtype)
        found[part.ids] = values
        return found

    def predictions(self, epoch: Epoch) -> NDArray[np.int32] | None:
        """Return the (N,) classes of largest logit at an epoch, saved or of its features."""
        saved, features = epoch.predictions, epoch.features
        if saved is not None or features is None:
            return saved
        if self._predicted is None or self._predicted[0] != epoch.epoch:
            part = self._score(features)
            self._predicted = epoch.epoch, self._by_id(part.predictions, part, -1)
        return self._predicted[1]


def _as_labels(classes: NDArray[np.integer[Any]] | None) -> NDArray[np.int64] | None:
    return None if classes is None else classes.astype(np.int64)


def _or_nan(scores: NDArray[np.float32] | None, num_samples: int) -> NDArray[np.float32]:
    return np.full(num_samples, np.nan, np.float32) if scores is None else np.array(scores)
