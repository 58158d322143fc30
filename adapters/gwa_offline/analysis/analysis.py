"""Analysis of saved features and runs: numbers in, a report of numbers out."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwa_core import (
    EpochSummary,
    Rule,
    alignment_scores,
    glass_delta,
    select_epoch,
    summarize,
    summarize_history,
    weighted_targets,
)
from gwa_core.history import expected_samples
from gwa_core.stopping import DEFAULT_RULE
from gwa_offline.analysis.messages import messages_of
from gwa_offline.analysis.results import EpochRecord, Report
from gwa_offline.analysis.statistics import (
    histograms_of,
    moments_of,
    per_class,
    quality_of,
    shares_of,
)
from gwa_offline.analysis.view import observed
from gwa_offline.readers import Block, Epoch, Features, Source, open_features
from gwa_offline.store import FeaturesError

__all__ = ["analyse"]

# Rows read at once: enough for a fast matrix product, little memory for any D in use. With many
# classes the logits of a block are larger than it, and bound it.
BLOCK_ROWS = 2048
BLOCK_LOGITS = 1 << 24


def analyse(
    source: Source | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    rule: Rule | None = None,
    label_smoothing: float = 0.0,
    class_weights: NDArray[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Analyse saved features or a run: which epoch to keep, which labels to check.

    Parameters
    ----------
    source : Source, path or sequence of path
        What `open_features` returned or takes.
    rule : gwa_core.Rule, optional
        The stopping rule, default ``MaxSeparation()``. A message says where the paper's rule,
        ``MaxGWA()``, would keep another epoch.
    label_smoothing : float
        In [0, 1), as in the training; used for scores computed from features.
    class_weights : array of shape (C,), optional
        As in the training, for softmax cross-entropy; used like `label_smoothing`.
    progress : callable, optional
        Called as ``progress(done, total)`` with the number of rows read.

    Returns
    -------
    Report
        Numbers only.

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
        source = open_features(source)
    rule = DEFAULT_RULE if rule is None else rule
    reader = _Reader(source, label_smoothing, class_weights, progress)
    records, scores = [], []
    for epoch in source.epochs:
        record, values = reader.read(epoch)
        records.append(record)
        scores.append(values)

    rows = observed(records)
    selection = select_epoch(rows, rule)
    best = selection.step
    if best is not None:
        selection = selection._replace(step=records[best].summary.epoch)
    shown = len(records) - 1 if best is None else best
    history = [record.summary for record in records]
    edges, histograms = histograms_of(scores)
    class_gwa, class_mean = per_class(scores, source.targets, source.num_classes, source.beta)
    names = source.class_names or tuple(str(label) for label in range(source.num_classes))
    return Report(
        name=source.name,
        num_samples=source.num_samples,
        num_classes=source.num_classes,
        class_names=names,
        beta=source.beta,
        epochs=tuple(records),
        rule=repr(rule),
        selection=selection,
        best_index=best,
        average_shares=shares_of(rows),
        memorising=summarize_history(history).memorising,
        targets=source.targets,
        predictions=reader.predictions(source.epochs[shown]),
        scores=_or_nan(scores[shown], source.num_samples),
        label_quality=quality_of(scores, history, source.num_samples),
        class_gwa=class_gwa,
        class_mean=class_mean,
        histogram_edges=edges,
        histograms=histograms,
        messages=messages_of(records, rows, rule, best),
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
        if class_weights is not None and source.loss != "cross_entropy":
            raise ValueError(
                f"`class_weights` must come with loss='cross_entropy', got {source.loss!r}; a "
                "weighted sigmoid loss has another gradient than the one measured"
            )
        self.source = source
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else np.asarray(class_weights, float)
        if self.class_weights is not None and self.class_weights.shape != (source.num_classes,):
            raise ValueError(
                f"`class_weights` must be (C,) = ({source.num_classes},), got shape "
                f"{self.class_weights.shape}; give one weight for each output of the head"
            )
        self.progress = progress
        self._done = 0
        self._predicted: tuple[int, NDArray[np.int64]] | None = None

    def read(self, epoch: Epoch) -> tuple[EpochRecord, NDArray[np.float32] | None]:
        """Return the record of an epoch and its (N,) scores by id."""
        online, features = epoch.scores, epoch.features
        offline = None if features is None else self._score(epoch.epoch, features)
        values = offline if online is None else online
        summary = epoch.summary
        if values is not None and (summary is None or online is None):
            seen = int(np.isfinite(values).sum()) if features is None else features.num_samples
            moments = moments_of(values)
            expected = None
            if summary is not None and summary.expected is not None:
                # What was saved of an epoch is as much of a whole one as what was trained on.
                came = max(summary.count + summary.omitted, 1)
                expected = expected_samples(seen, rows=came, total=summary.expected)
            summary = EpochSummary.from_summary(
                summarize(moments, beta=self.source.beta),
                epoch=epoch.epoch,
                step=epoch.step,
                omitted=seen - int(moments.count),
                expected=expected,
                window=None if summary is None else summary.window,
            )
        assert summary is not None  # noqa: S101  (an epoch has a summary, scores or features)
        delta = None
        if online is not None and offline is not None:
            delta = float(glass_delta(moments_of(online), moments_of(offline)))
        record = EpochRecord(
            summary=summary,
            source="offline" if online is None and offline is not None else "online",
            glass_delta=delta,
            metrics=epoch.metrics,
        )
        return record, values

    def _score(self, number: int, features: Features) -> NDArray[np.float32]:
        scores = np.full(self.source.num_samples, np.nan, np.float32)
        predicted = np.full(self.source.num_samples, -1, np.int64)
        total = features.num_samples * len(self.source.epochs)
        spare = threading.local()

        def work(block: Block) -> int:
            ids: Any = slice(block.start, block.start + len(block.latents))
            if block.ids is not None:
                ids = block.ids
            # A new array for each product would be cleared by the system each time.
            logits = spare.logits = _logits(block, features, getattr(spare, "logits", None))
            targets, smoothing = block.targets, self.label_smoothing
            if self.class_weights is not None:
                targets = weighted_targets(
                    targets=targets, class_weights=self.class_weights, label_smoothing=smoothing
                )
                smoothing = 0.0
            with _blame_logits(block, features):
                scores[ids] = alignment_scores(
                    latents=block.latents,
                    weight=features.weight,
                    targets=targets,
                    logits=logits,
                    bias=features.bias,
                    loss=self.source.loss,  # type: ignore[arg-type]  # checked by the reader
                    label_smoothing=smoothing,
                )
            predicted[ids] = logits.argmax(axis=1)
            return len(logits)

        waiting: deque[Future[int]] = deque()

        def collect() -> None:
            self._done += waiting.popleft().result()
            if self.progress is not None:
                self.progress(self._done, max(total, self._done))

        with _one_blas_thread_a_worker() as workers, ThreadPoolExecutor(workers) as pool:
            rows = min(BLOCK_ROWS, max(BLOCK_LOGITS // features.num_classes, 1))
            for block in features.blocks(rows):
                waiting.append(pool.submit(work, block))
                if len(waiting) > workers:
                    collect()
            while waiting:
                collect()
        self._predicted = number, predicted
        return scores

    def predictions(self, epoch: Epoch) -> NDArray[np.int64] | None:
        """Return the (N,) classes of largest logit at an epoch, where features are there."""
        features = epoch.features
        if features is None or features.num_classes < 2:
            return None
        if self._predicted is None or self._predicted[0] != epoch.epoch:
            self.progress = None
            self._score(epoch.epoch, features)
        assert self._predicted is not None  # noqa: S101  (set by _score)
        return self._predicted[1]


@contextmanager
def _one_blas_thread_a_worker() -> Iterator[int]:
    """Yield how many workers to have, each with one thread of BLAS while the context lasts.

    Blocks in parallel use the cores better than a product in parallel, which leaves all but one
    idle while its block is scored. Without threadpoolctl BLAS can't be told, and one worker it is.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield 1
        return
    with threadpool_limits(1, user_api="blas"):
        yield os.cpu_count() or 1


@contextmanager
def _blame_logits(block: Block, features: Features) -> Iterator[None]:
    """Name the file whose logits do not match its head, and the likely cause."""
    try:
        yield
    except ValueError as error:
        if block.logits is None or "`logits` must be latents" not in str(error):
            raise
        saved = np.asarray(block.logits, np.float32)
        what = "or probabilities, saved as logits"
        if ((saved >= 0) & (saved <= 1)).all():
            what = "these are all in [0, 1]: save what comes before the softmax or the sigmoid"
        raise FeaturesError(f"{features.path}: {error}; {what}") from error


def _logits(block: Block, features: Features, out: NDArray[Any] | None) -> NDArray[Any]:
    """Return the saved logits of a block, or the product, into `out` where it fits."""
    if block.logits is not None:
        saved: NDArray[Any] = block.logits
        return saved
    latents = block.latents.astype(np.result_type(block.latents, np.float32), copy=False)
    weight = features.weight.astype(latents.dtype, copy=False)
    if out is None or out.dtype != latents.dtype or len(out) < len(latents):
        out = np.empty((len(latents), len(weight)), latents.dtype)
    product = np.matmul(latents, weight.T, out=out[: len(latents)])
    if features.bias is not None:
        product += features.bias.astype(product.dtype, copy=False)
    return product


def _or_nan(scores: NDArray[np.float32] | None, num_samples: int) -> NDArray[np.float32]:
    return np.full(num_samples, np.nan, np.float32) if scores is None else np.array(scores)
