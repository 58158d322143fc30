"""Epochs of a training in a run folder, for the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gwa_core import EpochSummary
from gwa_jax.scoring import Array, Loss
from gwa_jax.summaries import fetch
from gwa_offline.store import RunFolder

__all__ = ["save"]


def save(
    run_folder: str | os.PathLike[str],
    summary: EpochSummary,
    *,
    num_classes: int,
    scores: Array | None = None,
    predictions: Array | None = None,
    beta: float = 1.2,
    loss: Loss = "cross_entropy",
    metrics: Mapping[str, Any] | None = None,
    targets: Array | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write an epoch to a run folder, for ``gwa analyse``.

    Epoch 0 starts the run. A later epoch is appended, and epochs from it on, which a run resumed
    from a checkpoint makes again, are dropped.

    Parameters
    ----------
    run_folder : path
        The folder; made where it does not exist.
    summary : EpochSummary
        From `end_epoch`, on the device or fetched.
    num_classes : int
        C.
    scores : array of shape (N,), optional
        `scores` of the state before `end_epoch`.
    predictions : integer array of shape (N,), optional
        `state.predictions` before `end_epoch`, of a state from ``init(N, predictions=True)``.
    beta : float
        The one given to `end_epoch`, default 1.2.
    loss : {"cross_entropy", "binary_cross_entropy"}
        The loss of the head, default softmax.
    metrics : mapping of str to float, optional
        Numbers to keep beside the summary, such as the means of `gwa_jax.signals.end_epoch`.
    targets : integer array of shape (N,), optional
        Given labels by sample id.
    class_names : sequence of str, optional
        C names.

    Raises
    ------
    ValueError
        If the epoch has no scores, if `scores` or `predictions` are not those that the summary is of,
        if the folder belongs to a run of another size, loss or beta, or if epoch 0 comes to a folder
        that holds epochs. Nothing is written then.

    Notes
    -----
    Waits for the device. Of several processes the first one writes. The labels, the names and the
    options are written by the first epoch. N is the size of `scores`, or without them the number
    of samples in the first epoch.

    Examples
    --------
    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> import gwa_jax
    >>> from gwa_offline.store import RunFolder
    >>> state = gwa_jax.init(3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for epoch in ([0.1, 0.2, 0.6], [0.2, 0.4, 0.7]):
    ...         state = gwa_jax.add(state, jnp.asarray(epoch), ids=jnp.arange(3))
    ...         scores = gwa_jax.scores(state)
    ...         state, summary = gwa_jax.end_epoch(state)
    ...         gwa_jax.save(folder, summary, scores=scores, num_classes=10)
    ...     [summary.count for summary, _ in RunFolder.open(folder).epochs()]
    [3, 3]
    """
    summary = fetch(summary)
    if jax.process_index() > 0:
        return
    scores, predictions, targets = jax.device_get((scores, predictions, targets))
    _check_epoch(summary, scores, predictions)
    size = summary.count + summary.omitted if scores is None else len(scores)
    given = {"num_classes": num_classes, "beta": beta, "loss": loss}
    if summary.epoch > 0 and (Path(run_folder) / "run.json").exists():
        run = RunFolder.open(run_folder)
        wanted = given if scores is None else {"num_samples": size, **given}
        found = {name: getattr(run, name) for name in wanted}
        if found != wanted:
            raise ValueError(
                f"`run_folder` must hold a run with {wanted}, got one with {found}; use another "
                "folder for another training"
            )
        run.truncate(summary.epoch)
    else:
        run = RunFolder.create(
            run_folder,
            num_samples=size,
            **given,  # type: ignore[arg-type]
            class_names=class_names,
            adapter="jax",
            targets=targets,
        )
    numbers = {name: float(value) for name, value in (metrics or {}).items()}
    run.write_epoch(summary, scores=scores, predictions=predictions, metrics=numbers)


def _check_epoch(summary: EpochSummary, scores: Any, predictions: Any) -> None:
    """Refuse what was taken from the state when `end_epoch` had emptied it."""
    cause = "which `end_epoch` empties: take `scores` and `predictions` before it"
    if scores is not None:
        found = int(np.isfinite(scores).sum())
        # float32, in which JAX counts, does not have all whole numbers beyond 2**24.
        if abs(found - summary.count) > 1e-6 * summary.count:
            raise ValueError(
                f"`scores` must be those of the epoch, {summary.count} of them finite, got {found} "
                f"finite ones; they are of another state, {cause}"
            )
    if predictions is not None and summary.count and not (np.asarray(predictions) >= 0).any():
        raise ValueError(
            f"`predictions` must be those of the epoch, which has {summary.count} scores, got -1 "
            f"everywhere; they are of another state, {cause}"
        )
