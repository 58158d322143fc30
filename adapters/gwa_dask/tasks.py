"""What runs on a worker: a part is scored, and moments merge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gwa_core import Moments, __version__
from gwa_dask.staging import PartFile
from gwa_offline.analysis.parts import Part
from gwa_offline.analysis.scoring import score_part
from gwa_offline.store import FeaturesError

__all__ = ["Task", "merge_moments", "run_task"]


# How often a task is begun again where its end may be another: a disk that is full for a moment.
RETRIES = 2


class Task(NamedTuple):
    """A part to be scored, as places in files: some kilobytes, whatever its rows.

    Parameters
    ----------
    part : Part
        Its rows.
    file : PartFile
        Where its scores go.
    token : path
        A file that is there if the worker sees the folder of the run.
    label_smoothing : float
        As in the training.
    class_weights : path or None
        A file of (C,) numbers, as in the training.
    version : str
        Of gwa-core where the task was made.
    """

    part: Part
    file: PartFile
    token: Path
    label_smoothing: float
    class_weights: Path | None
    version: str


def run_task(task: Task) -> Moments:
    """Score a part, leave its scores in a file, and return their moments.

    Parameters
    ----------
    task : Task
        What to do. If its file is there already, nothing is done.

    Returns
    -------
    gwa_core.Moments
        Some numbers, whatever the rows.

    Raises
    ------
    FeaturesError
        If a file is damaged, or is not seen from here.
    ImportError
        If another gwa-core is installed here.

    Notes
    -----
    What is wrong with the source or with the worker is raised at once. All else is tried three times.
    """
    for _ in range(RETRIES):
        try:
            return _score(task)
        except (ValueError, ImportError):
            raise
        except Exception:  # noqa: S112  (the last one is raised)
            continue
    return _score(task)


def _score(task: Task) -> Moments:
    if task.version != __version__:
        raise ImportError(
            f"{_worker()} has gwa-core {__version__}, the analysis was begun by {task.version}; "
            f"pip install 'gwa-core[dask]=={task.version}' there"
        )
    if not task.token.exists():
        raise FeaturesError(
            f"{task.token.parent.parent}: {_worker()} cannot see it; `folder` must be on a file system "
            "that all workers and this process share"
        )
    known = task.file.moments()
    if known is not None:
        return known
    try:
        features = task.part.open()
    except FeaturesError as error:
        raise FeaturesError(f"{error}; on {_worker()}") from error
    weights = None if task.class_weights is None else np.load(task.class_weights)
    # Dask runs as many tasks as the worker has threads.
    found = score_part(
        features, label_smoothing=task.label_smoothing, class_weights=weights, threads=1
    )
    task.file.write(found)
    return found.moments


def merge_moments(moments: Sequence[Moments]) -> Moments:
    """Return the moments of several parts together, in their order."""
    return reduce(Moments.merge, moments)


def _worker() -> str:
    from distributed import get_worker

    try:
        return f"worker {get_worker().address}"
    except ValueError:
        return "this process"
