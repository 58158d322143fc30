"""A run in progress as a picture for a terminal, its curve in block characters."""

from __future__ import annotations

import math
import textwrap
import time

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from gwa_core import EpochSummary
from gwa_offline.analysis.progress import Progress
from gwa_offline.analysis.view import (
    average_sentence,
    epoch_numbers,
    percent,
    position,
    significant,
    unit,
)
from gwa_offline.app.follow import Look

__all__ = ["NewRows", "columns_of", "draw_bars", "draw_look", "quiet_sentence", "sentences"]

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDEST = 4  # columns that one value takes at most
HEIGHT = 8  # rows of the curve
LABEL = 9  # columns of a number such as -1.23e-05
QUIET = 60.0  # seconds after which a person may ask what has happened


def columns_of(count: int, width: int) -> NDArray[np.intp]:
    """Return the first column of each of `count` values in a chart, and the end of the last.

    Parameters
    ----------
    count : int
        How many values there will be, at least 1.
    width : int
        Columns of the chart. Few values are up to four columns wide; many values share one.

    Returns
    -------
    array of shape (count + 1,)
        From 0 to at most `width`.
    """
    end = count * min(WIDEST, width // count) if count <= width else width
    return np.arange(count + 1) * end // count


def _means(
    values: NDArray[np.float64], columns: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the mean of the values in each column, nan where there is none, and where there is one."""
    width = int(columns[-1])
    total, count = np.zeros(width), np.zeros(width)
    for value, start, stop in zip(values, columns[:-1], columns[1:], strict=False):
        if math.isfinite(value):
            place = slice(min(start, width - 1), max(stop, start + 1))
            total[place] += value
            count[place] += 1
    with np.errstate(invalid="ignore"):
        return total / count, count > 0


def draw_bars(
    values: NDArray[np.float64], columns: NDArray[np.intp], height: int, *, low: float | None = None
) -> list[str]:
    """Draw values as bars, the largest at full height.

    Parameters
    ----------
    values : array of shape (T,)
        Those that are not finite have no bar. Values that share a column are averaged.
    columns : array of shape (at least T + 1,)
        From `columns_of`.
    height : int
        Rows.
    low : float, optional
        The value of an empty bar, default a little below the smallest value.

    Returns
    -------
    list of str
        The rows from the top.

    Examples
    --------
    >>> draw_bars(np.array([1.0, 2.0, 8.0]), columns_of(4, 8), 1, low=0.0)
    ['▁▁▂▂██  ']
    """
    means, drawn = _means(values, columns)
    heights = np.zeros(len(means), int)
    if drawn.any():
        mean = means[drawn]
        high, steps = mean.max(), height * (len(BLOCKS) - 1)
        bottom = mean.min() if low is None else low
        share = (mean - bottom) / (high - bottom) if high > bottom else np.ones(len(mean))
        # The smallest value is seen too, unless it is an empty bar.
        least = 1 if low is None else 0
        heights[drawn] = np.clip(np.round(share * steps), least, steps)
    full = len(BLOCKS) - 1
    return [
        "".join(BLOCKS[min(max(h - full * row, 0), full)] for h in heights.tolist())
        for row in reversed(range(height))
    ]


def draw_look(look: Look, width: int, height: int) -> Text:
    """Draw a run as it stands: the watched curve, the epoch to keep, the shares, and sentences.

    Parameters
    ----------
    look : Look
        From `gwa_offline.app.follow.watch`.
    width, height : int
        Columns and rows of the terminal.

    Returns
    -------
    rich.text.Text
        Several lines. The curve takes the rows that the rest leaves, at most eight.
    """
    progress = look.progress
    text = Text()
    lines = [] if progress is None else sentences(progress)
    if (quiet := quiet_sentence(look)) is not None:
        lines.append(quiet)
    if progress is not None:
        text.append(_title(progress) + "\n", style="bold")
        if progress.epochs:
            taken = 6 + sum(len(textwrap.wrap(line, max(width, 8))) for line in lines)
            _draw_curve(text, progress, width, max(2, min(HEIGHT, height - taken)))
    # A live display crops what is wider than the terminal.
    wrapped = [textwrap.fill(line, max(width, 8)) for line in lines]
    text.append("\n".join(wrapped))
    return text


def _title(progress: Progress) -> str:
    noun = "epochs" if unit(progress.epochs) == "epoch" else "windows"
    planned = "" if progress.planned is None else f" of {progress.planned}"
    state = "ended" if progress.ended else "running"
    return f"{progress.name}: {len(progress.epochs)}{planned} {noun}, {state}"


def _draw_curve(text: Text, progress: Progress, width: int, height: int) -> None:
    """Append the curve, with the epoch to keep and the shares below it."""
    name = unit(progress.epochs)
    margin = max(LABEL, len(progress.signal), len(name))
    columns = columns_of(
        max(len(progress.epochs), progress.planned or 0), max(width - margin - 4, 8)
    )
    # Where epochs share a column, its bar is their mean, and so are the labels.
    means, _ = _means(progress.values, columns)
    drawn = means[np.isfinite(means)]
    ends = [significant(drawn.max()), significant(drawn.min())] if len(drawn) else ["-", "-"]

    def row(label: str, cells: str, style: str = "") -> None:
        text.append(f"{label:>{margin}} │ ")
        text.append(cells.rstrip() + "\n", style=style)

    row(progress.signal, "")
    bars = draw_bars(progress.values, columns, height)
    for label, cells in zip([ends[0], *[""] * (height - 2), ends[1]], bars, strict=True):
        row(label, cells, "cyan")
    best = progress.selection.step
    row("keep", "" if best is None else " " * int(columns[best]) + "▲", "bold")
    if progress.average_shares.any():
        row("share", draw_bars(progress.average_shares, columns, 1, low=0.0)[0])
    numbers = epoch_numbers(progress)
    first, last = str(numbers[0]), str(numbers[-1])
    place = int(columns[len(numbers) - 1])
    row(name, first if len(numbers) == 1 else first + last.rjust(max(place, len(last) + 1)))


def sentences(progress: Progress) -> list[str]:
    """Say what is kept so far, how the labels stand, and what is unusual."""
    if not progress.epochs:
        return ["No epoch has ended yet."]
    found, name = progress.selection, unit(progress.epochs)
    so_far = "" if progress.ended else " so far"
    if found.step is None:
        lines = [f"Nothing to keep{so_far}: {found.reason}."]
    else:
        number = position(progress.epochs[found.step].summary)
        value = significant(found.value, 4)
        lines = [f"Keep {name} {number}{so_far}: {found.reason} ({value})."]
    if (sentence := average_sentence(progress)) is not None:
        lines.append(sentence)
    if progress.labels:
        share = percent(progress.negative / progress.labels)
        lines.append(
            f"{progress.negative} of {progress.labels} labels pull against the model ({share})."
        )
    return lines + list(progress.messages)


def quiet_sentence(look: Look) -> str | None:
    """Say since when nothing is new, or what is waited for; None where nobody would ask."""
    if look.ended:
        return None
    if look.progress is None or look.since is None:
        return f"Waiting for {look.path}: there is no run yet."
    if max(look.quiet, time.time() - look.since) < QUIET:
        return None
    then = time.localtime(look.since)
    same_day = then[:3] == time.localtime()[:3]
    moment = time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)
    return f"Nothing new since {moment}: a long epoch, or the training was killed."


class NewRows:
    """The rows of a plain table that came since the last look, one for each epoch."""

    def __init__(self) -> None:
        self._shown: list[EpochSummary] = []
        self._said: str | None = None

    def note(self, look: Look) -> str | None:
        """Return what `quiet_sentence` says, unless it said so at the last look."""
        before, self._said = self._said, quiet_sentence(look)
        return None if self._said == before else self._said

    def take(self, look: Look) -> list[list[str]]:
        """Return the new rows, with a header before the first; also rows that a resumed run rewrote."""
        progress = look.progress
        if progress is None or not progress.epochs:
            return []
        rows = []
        if not self._shown:
            rows.append([unit(progress.epochs), progress.signal, "keep", "negative", "healthy"])
        now = [record.summary for record in progress.epochs]
        same = 0
        while same < min(len(now), len(self._shown)) and now[same] == self._shown[same]:
            same += 1
        self._shown = now
        for summary, value, best in zip(
            now[same:], progress.values[same:], progress.kept[same:], strict=True
        ):
            rows.append(
                [
                    str(position(summary)),
                    significant(float(value)),
                    "-" if best is None else str(position(now[best])),
                    percent(summary.negative_fraction),
                    "yes" if summary.healthy else "NO",
                ]
            )
        return rows
