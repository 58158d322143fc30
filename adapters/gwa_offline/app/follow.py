"""Watch a run folder while a training writes it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gwa_core import Rule
from gwa_offline.analysis.progress import Progress, progress_of
from gwa_offline.store import FeaturesError, RunFolder

__all__ = ["Look", "watch"]

# Seconds between two looks at the size and the time of the files.
INTERVAL = 0.5


@dataclass(frozen=True, kw_only=True)
class Look:
    """A run at one moment.

    Parameters
    ----------
    path : Path
        Of its folder.
    progress : Progress or None
        What is known of it; None as long as there is no run.
    since : float or None
        When something was last written, in seconds of `time.time`; None without a run.
    quiet : float
        Seconds for which nothing new has been seen.
    """

    path: Path
    progress: Progress | None
    since: float | None
    quiet: float

    @property
    def ended(self) -> bool:
        """Whether the training says that it has ended."""
        return self.progress is not None and self.progress.ended


def watch(
    path: str | os.PathLike[str], *, rule: Rule | None = None, wait: float = 3600.0
) -> Iterator[Look]:
    """Look at a run folder again and again until the run has ended.

    Parameters
    ----------
    path : path
        A run folder. There may be none yet.
    rule : gwa_core.Rule, optional
        The stopping rule, default ``MaxSeparation()``.
    wait : float
        Seconds without anything new after which to end, at least 0, default an hour. A run that was
        killed does not say that it has ended.

    Yields
    ------
    Look
        Every half second, new or not. The last one has ended, or was quiet for too long.

    Raises
    ------
    FeaturesError
        If the path is a file, or the run is damaged.
    ValueError
        If `wait` is negative or nan, or the run lacks the column that the rule reads.

    Notes
    -----
    Nothing is written, and the training notices nothing. Files are read only when their size or time
    changes.
    """
    if not wait >= 0.0:
        raise ValueError(f"`wait` must be at least 0, got {wait}")
    place = Path(path)
    if place.is_file():
        raise FeaturesError(f"{path} is a file; what can be watched is the folder of a run")
    seen: object = ()
    progress, fresh = None, time.monotonic()
    while True:
        times = _times(place)
        if times != seen:
            seen, fresh = times, time.monotonic()
            # The times are older than what is read, so that nothing newer is missed.
            try:
                progress = progress_of(RunFolder.open(place), rule) if times else None
            except FeaturesError:
                # A training that resumes drops files, and one may go while it is read.
                if _times(place) == times:
                    raise
        quiet = time.monotonic() - fresh
        since = max((changed for changed, _ in times), default=None)
        look = Look(path=place, progress=progress, since=since, quiet=quiet)
        yield look
        if look.ended or quiet >= wait:
            return
        time.sleep(min(INTERVAL, wait - quiet))


def _times(run: Path) -> list[tuple[float, int]]:
    """Return time and size of the files that say how a run stands; none without a run."""
    found = []
    for name in ("run.json", "epochs.jsonl"):
        try:
            status = (run / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            if name == "run.json":
                break
        else:
            found.append((status.st_mtime, status.st_size))
    return found
