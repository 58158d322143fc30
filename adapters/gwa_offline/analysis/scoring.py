"""The scores of the rows of one part of an epoch."""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gwa_core import Moments, alignment_scores, weighted_targets
from gwa_offline.analysis.statistics import moments_of
from gwa_offline.readers import Block, Features
from gwa_offline.store import FeaturesError

__all__ = ["PartScores", "block_rows", "check_class_weights", "pieces_of", "score_part"]

# Rows read at once: enough for a fast matrix product, little memory for any D in use. With many
# classes the logits of a block are larger than it, and bound it.
BLOCK_ROWS = 2048
BLOCK_LOGITS = 1 << 24


class PartScores(NamedTuple):
    """The scores of the n rows of a part; parts of one epoch merge.

    Parameters
    ----------
    ids : array of shape (n,)
        Sample ids as int64, each once.
    scores : array of shape (n,)
        Alignment as float32; nan where the features are not finite.
    predictions : array of shape (n,)
        Class of the largest logit as int32; of one output with a sigmoid, 1 where it is positive.
    moments : gwa_core.Moments
        Of the scores.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    predictions: NDArray[np.int32]
    moments: Moments

    def merge(self, other: PartScores) -> PartScores:
        """Return the rows of both parts after each other.

        Parameters
        ----------
        other : PartScores
            Of other samples of the same epoch.

        Returns
        -------
        PartScores
            Its moments are those of all rows, whatever the parts: to 1e-12 in float64.
        """
        return PartScores(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.predictions, other.predictions]),
            self.moments.merge(other.moments),
        )


def block_rows(num_classes: int) -> int:
    """Return how many rows are scored at once; parts that begin at a multiple give the same scores."""
    return min(BLOCK_ROWS, max(BLOCK_LOGITS // num_classes, 1))


def pieces_of(features: Features, start: int, stop: int) -> Iterator[tuple[str, int, slice]]:
    """Yield the files in which rows lie: the name and first row of each, and its rows among these."""
    begins = features.begins
    for i in range(max(bisect_right(begins, start, key=itemgetter(1)) - 1, 0), len(begins)):
        name, first = begins[i]
        end = begins[i + 1][1] if i + 1 < len(begins) else features.num_samples
        if first >= stop:
            return
        if end > first:
            yield name, first, slice(max(first, start), min(end, stop))


def check_class_weights(
    class_weights: NDArray[Any] | None, *, loss: str, num_classes: int
) -> NDArray[np.float64] | None:
    """Return class weights as float64 (C,), or None where there are none.

    Raises
    ------
    ValueError
        If they come with another loss than softmax cross-entropy, or are not one for each class.
    """
    if class_weights is None:
        return None
    if loss != "cross_entropy":
        raise ValueError(
            f"`class_weights` must come with loss='cross_entropy', got {loss!r}; a "
            "weighted sigmoid loss has another gradient than the one measured"
        )
    weights = np.asarray(class_weights, np.float64)
    if weights.shape != (num_classes,):
        raise ValueError(
            f"`class_weights` must be (C,) = ({num_classes},), got shape "
            f"{weights.shape}; give one weight for each output of the head"
        )
    return weights


def score_part(
    part: Features,
    *,
    label_smoothing: float = 0.0,
    class_weights: NDArray[Any] | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> PartScores:
    """Return the alignment scores of the rows of an epoch, or of a part of it.

    Parameters
    ----------
    part : Features
        The rows: of a whole epoch, or what `Part.open` returns.
    label_smoothing : float
        In [0, 1), as in the training.
    class_weights : array of shape (C,), optional
        As in the training, for softmax cross-entropy.
    threads : int, optional
        How many blocks are scored at a time. Default one for each core, each with one thread of BLAS;
        1 leaves BLAS as it is.
    progress : callable, optional
        Called with the number of rows of each block that is done.

    Returns
    -------
    PartScores
        In the order of the rows.

    Raises
    ------
    FeaturesError
        If the files are found to be damaged, or the saved logits do not match the head.
    ValueError
        If the class weights do not fit.

    Notes
    -----
    Cost: one matrix product of the latents with the weight where no logits are saved. Memory: 16 bytes
    a row, and O(block (D + C)) for each thread, whatever n.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from gwa_offline.readers import open_features
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = folder.name + "/features.npz"
    >>> np.savez(file, latents=np.eye(3), weight=np.eye(2, 3), targets=[0, 1, 0], ids=[2, 0, 1])
    >>> found = score_part(open_features(file).epochs[0].features)
    >>> found.ids, found.scores.round(2), found.predictions
    (array([2, 0, 1]), array([0.5, 0.5, 0. ], dtype=float32), array([0, 1, 0], dtype=int32))
    >>> folder.cleanup()
    """
    class_weights = check_class_weights(class_weights, loss=part.loss, num_classes=part.num_classes)
    n = part.num_samples
    scores = np.full(n, np.nan, np.float32)
    predicted = np.full(n, -1, np.int32)
    spare = threading.local()

    def work(block: Block) -> int:
        rows = slice(block.start, block.start + len(block.latents))
        # A new array for each product would be cleared by the system each time.
        logits = spare.logits = _logits(block, part, getattr(spare, "logits", None))
        targets, smoothing = block.targets, label_smoothing
        if class_weights is not None:
            targets = weighted_targets(
                targets=targets, class_weights=class_weights, label_smoothing=smoothing
            )
            smoothing = 0.0
        # The core looks at one row of the logits; each file has logits that may be others.
        pieces = [(str(part.path), 0, rows)]
        if block.logits is not None:
            pieces = list(pieces_of(part, rows.start, rows.stop))
        for name, first, piece in pieces:
            inside = slice(piece.start - rows.start, piece.stop - rows.start)
            with _blame_logits(name, piece.start - first, block, inside):
                scores[piece] = alignment_scores(
                    latents=block.latents[inside],
                    weight=part.weight,
                    targets=targets[inside],
                    logits=logits[inside],
                    bias=part.bias,
                    loss=part.loss,  # type: ignore[arg-type]  # checked by the reader
                    label_smoothing=smoothing,
                )
        one = logits.shape[1] == 1
        predicted[rows] = logits[:, 0] > 0 if one else logits.argmax(axis=1)
        return len(logits)

    def report(rows: int) -> None:
        if progress is not None:
            progress(rows)

    with _workers(threads) as (workers, pool):
        waiting: deque[Future[int]] = deque()
        for block in part.blocks(block_rows(part.num_classes)):
            if pool is None:
                report(work(block))
                continue
            waiting.append(pool.submit(work, block))
            if len(waiting) > workers:
                report(waiting.popleft().result())
        while waiting:
            report(waiting.popleft().result())
    ids = np.arange(n) if part.ids is None else part.ids
    return PartScores(ids, scores, predicted, moments_of(scores))


@contextmanager
def _workers(threads: int | None) -> Iterator[tuple[int, Executor | None]]:
    """Yield how many threads there are and what runs them; one needs nothing that does."""
    with _one_blas_thread_a_worker() if threads is None else nullcontext(threads) as workers:
        if threads == 1:
            yield 1, None
            return
        with ThreadPoolExecutor(workers) as pool:
            yield workers, pool


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
def _blame_logits(name: str, skipped: int, block: Block, inside: slice) -> Iterator[None]:
    """Name the file whose logits do not match its head, the row in it, and the likely cause."""
    try:
        yield
    except ValueError as error:
        if block.logits is None or "`logits` must be latents" not in str(error):
            raise
        # The core counts from the first row that it was given.
        told = re.sub(r"(?<=got row )\d+", lambda row: str(int(row[0]) + skipped), str(error))
        saved = np.asarray(block.logits[inside], np.float32)
        what = "or probabilities, saved as logits"
        if ((saved >= 0) & (saved <= 1)).all():
            what = "these are all in [0, 1]: save what comes before the softmax or the sigmoid"
        raise FeaturesError(f"{name}: {told}; {what}") from error


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
