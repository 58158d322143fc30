"""The output of the commands: tables on a terminal, plain text in a pipe, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gwa_offline.analysis.averaging import AveragedCheckpoints
from gwa_offline.analysis.comparison import Comparison
from gwa_offline.analysis.export import plain_values
from gwa_offline.analysis.results import Report
from gwa_offline.analysis.view import (
    average_sentence,
    class_of,
    epoch_numbers,
    kept_of,
    lowest_classes,
    percent,
    position,
    pulling_words,
    significant,
    ties_words,
    unit,
)
from gwa_offline.app.demo import DemoResult
from gwa_offline.app.follow import Look
from gwa_offline.app.screen import NewRows, draw_look, sentences
from gwa_offline.app.tables import NAMES, clean, fitting

__all__ = ["Terminal"]

# Epochs in the table of a long run; the files hold all of them.
SHOWN_EPOCHS = 12
# Classes in the list of samples per class; the lowest ones where there are more.
SHOWN_CLASSES = 40


class Terminal:
    """Prints the results of a command.

    Parameters
    ----------
    json : bool
        Print one JSON value and nothing else.
    quiet : bool
        Plain text without progress bars, also on a terminal.
    """

    def __init__(self, *, json: bool, quiet: bool) -> None:
        self._json = json
        self._out = Console(highlight=False, soft_wrap=True)
        self._plain = quiet or not self._out.is_terminal
        self._bars = Console(stderr=True)
        self._show_bars = not (json or quiet) and self._bars.is_terminal

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar on standard error if it is a terminal."""
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeRemainingColumn(),
            console=self._bars,
            transient=True,
            disable=not self._show_bars,
        ) as bar:
            task = bar.add_task(text)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def json(self, value: Any) -> None:
        """Print a value, or a list of JSON texts, as JSON if the command has ``--json``."""
        if self._json:
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                value = [json.loads(item) for item in value]
                value = value[0] if len(value) == 1 else value
            print(json.dumps(plain_values(value)))

    def _line(self, text: str = "") -> None:
        if not self._json:
            self._out.print(clean(text), markup=False)

    def _table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        less: Sequence[str] = (),
        words: Sequence[str] = (),
    ) -> None:
        """Print a table; where it is too wide, the columns in `less` go, the first one first.

        Columns of words may be folded, beside those of names.
        """
        if self._json:
            return
        rows = [[clean(cell) for cell in row] for row in rows]
        columns = [clean(column) for column in columns]
        if self._plain:
            print("\t".join(columns))
            for row in rows:
                print("\t".join(row))
            return
        less, words = [clean(column) for column in less], [*NAMES, *map(clean, words)]
        kept = fitting(columns, rows, self._out.width, less, words)
        table = Table(title=Text(clean(title)), box=box.SIMPLE_HEAD, title_justify="left")
        for i in kept:
            # Names may be cut, numbers never.
            no_wrap = columns[i] not in words
            table.add_column(Text(columns[i]), justify="right", no_wrap=no_wrap, overflow="fold")
        for row in rows:
            table.add_row(*(Text(row[i]) for i in kept))
        self._out.print(table)
        if len(kept) < len(columns):
            gone = [column for i, column in enumerate(columns) if i not in kept]
            self._line(f"Too narrow for {', '.join(gone)}; --quiet has all columns.")

    def report(self, report: Report) -> None:
        """Print epochs, the best one and messages."""
        best = report.best_index
        rows = [
            [
                str(position(record.summary)) + (" *" if i == best else ""),
                significant(record.summary.gwa),
                significant(record.summary.gwa_standard_error, 2),
                significant(record.summary.mean),
                significant(record.summary.kurtosis, 2),
                significant(record.summary.separation),
                percent(record.summary.negative_fraction),
                "yes" if record.summary.healthy else "NO",
            ]
            for i, record in enumerate(report.epochs)
        ]
        columns = [
            unit(report.epochs),
            "GWA",
            "SE",
            "mean",
            "kurtosis",
            "separation",
            "negative",
            "healthy",
        ]
        if not self._plain:
            rows = [rows[i] for i in _spread(len(rows), best)]
        less = ["SE", "kurtosis", "negative", "healthy", "mean", "GWA"]
        self._table(f"{report.name}: {report.num_samples} samples", columns, rows, less=less)
        self._best(report)
        if (words := pulling_words(report)) is not None:
            self._line(f"{words}; gwa samples lists them.")

    def _best(self, report: Report) -> None:
        name = unit(report.epochs)
        if report.best_index is None:
            self._line(f"No {name} to keep ({report.rule}): {report.selection.reason}.")
        else:
            self._line(
                f"Keep {name} {epoch_numbers(report)[report.best_index]}: {report.selection.reason} "
                f"({significant(report.selection.value, 4)})"
                + (f"; {ties}." if (ties := ties_words(report)) is not None else ".")
            )
        if (sentence := average_sentence(report)) is not None:
            self._line(sentence)
        for message in report.messages:
            self._line(message)

    def selection(self, report: Report) -> None:
        """Print the best epoch and why."""
        self._best(report)
        found = report.selection
        best = {"best_epoch": report.best_epoch, "value": found.value, "reason": found.reason}
        records = zip(report.epochs, report.decision.tied, strict=True)
        ties = [record.summary.epoch for record, tied in records if tied]
        known = ties_words(report) is not None
        self.json({"rule": report.rule, **best, "near_ties": ties if known else None})

    def follow(self, looks: Iterable[Look]) -> Look | None:
        """Show a run while it is written, and return how it was last seen; Ctrl-C ends the looking."""
        look, rows = None, NewRows()
        # What is left on the screen is printed at the end, once and whole.
        live = Live(console=self._out, auto_refresh=False, transient=True)
        try:
            with nullcontext() if self._plain else live:
                for look in looks:
                    if self._plain:
                        self._follow_on(look, rows)
                    elif not look.ended:
                        live.update(self._drawn(look), refresh=True)
        finally:
            if look is not None and not self._plain:
                self._out.print(self._drawn(look))
            elif look is not None and look.progress is not None:
                print("\n".join(sentences(look.progress)))
        return look

    def _drawn(self, look: Look) -> Text:
        width, height = self._out.size
        return draw_look(look, width, height)

    def _follow_on(self, look: Look, rows: NewRows) -> None:
        if (note := rows.note(look)) is not None:
            self.note(note)
        for row in rows.take(look):
            print("\t".join(row), flush=True)

    def note(self, text: str) -> None:
        """Print a sentence to standard error."""
        self._bars.print(clean(text), markup=False, highlight=False, soft_wrap=True)

    def averaged(self, found: AveragedCheckpoints) -> None:
        """Print the shares of the epochs, and where their average is."""
        parts = list(zip(found.epochs, found.shares, found.checkpoints, strict=True))
        rows = [[str(epoch), percent(share, 2), str(file)] for epoch, share, file in parts]
        if not self._plain:
            rows = [rows[i] for i in _spread(len(rows), int(found.shares.argmax()))]
        self._table("average of the weights", ["epoch", "share", "checkpoint"], rows)
        if found.batch_norm:
            self._line(
                "Its statistics of batch norm are those of other weights: compute them again with "
                "torch.optim.swa_utils.update_bn."
            )
        self.wrote([found.path])
        names = ("epoch", "share", "checkpoint")
        epochs = [dict(zip(names, [*part[:2], str(part[2])], strict=True)) for part in parts]
        self.json({"out": str(found.path), "batch_norm": found.batch_norm, "epochs": epochs})

    def samples(self, report: Report, *, lowest: int, highest: int, per_class: bool) -> list[int]:
        """Print the samples of lowest and highest label quality, and return their ids."""
        ids: list[int] = []
        few = per_class and not self._json and report.num_classes > SHOWN_CLASSES
        for count, order in ((lowest, "lowest"), (highest, "highest")):
            if count:
                found = report.rank(count, order=order, per_class=per_class)  # type: ignore[arg-type]
                if few:
                    found = found[lowest_classes(report, SHOWN_CLASSES)]
                ids += [int(i) for i in found.ravel() if i >= 0]
        rows = [_sample(report, i) for i in ids]
        kept = list(report.kept)
        columns = ["id", *kept, "label", "model says", "label quality", "alignment"]
        less = ["alignment", *reversed(kept[1:]), "label quality", "model says", *kept[:1]]
        title = f"{report.name}: samples to look at"
        self._table(title, columns, rows, less=less, words=kept)
        if few:
            self._line(
                f"These are of the {SHOWN_CLASSES} classes of lowest mean alignment, of "
                f"{report.num_classes} classes; --json has all."
            )
        names = ["id", "label", "prediction", "label_quality", "alignment", *kept]
        values = [[i, *_facts(report, i), *kept_of(report, i).values()] for i in ids]
        self.json([dict(zip(names, row, strict=True)) for row in values])
        return ids

    def comparison(self, comparison: Comparison) -> None:
        """Print a comparison of runs."""
        metric = comparison.metric or "metric"
        rows = [
            [
                row.name,
                significant(row.max_mean),
                significant(row.max_gwa),
                "-" if row.best_epoch is None else str(row.best_epoch),
                significant(row.metric, 4),
                "yes" if row.memorising else "no",
            ]
            for row in comparison.rows
        ]
        columns = ["run", "max mean", "max GWA", "best epoch", metric, "memorising"]
        less = ["memorising", "max GWA", metric, "max mean"]
        self._table("runs", columns, rows, less=less)
        if comparison.metric is not None:
            if comparison.pearson is None or comparison.spearman is None:
                self._line("A correlation takes at least three runs that differ.")
            else:
                self._line(
                    f"Largest mean alignment against {metric} over {len(rows)} runs: Pearson "
                    f"{significant(comparison.pearson)}, Spearman "
                    f"{significant(comparison.spearman)}."
                )

        for run in dict.fromkeys(row.run for row in comparison.signals):
            shown = [
                [row.signal, *(significant(x, sign="+") for x in (row.pearson, row.spearman))]
                for row in comparison.signals
                if row.run == run
            ]
            self._line("")
            self._table(f"{run}: signals beside {metric}", ["signal", "Pearson", "Spearman"], shown)

    def wrote(self, paths: Sequence[Path]) -> None:
        """Print the paths of written files."""
        for path in paths:
            self._line(f"wrote {path}")

    def demo(self, result: DemoResult, page: Path) -> None:
        """Print the results of the demonstration."""
        report, last = result.report, len(result.report.epochs) - 1
        self._line(
            f"Trained {last + 1} epochs on {report.num_samples} handwritten digits, "
            f"{result.flipped} of them with a wrong label ({result.seconds:.1f} s)."
        )
        share = percent(result.found / result.flipped)
        lines = [
            "",
            f"Best epoch: {report.best_epoch} ({report.selection.reason}).",
            f"  test accuracy there          {percent(result.best_accuracy)}",
            f"  average of the weights       {percent(result.average_accuracy)}",
            f"  highest, at epoch {result.highest_epoch:<11d}{percent(result.highest_accuracy)}",
            f"  last, at epoch {last:<14d}{percent(result.last_accuracy)}",
            "",
            f"Of the {result.flipped} most suspicious labels {result.found} ({share}) are wrong.",
            "",
            *report.messages,
            f"Report: {page}",
            f"Go on with: gwa samples {result.run} --images {result.images}",
        ]
        for line in lines:
            self._line(line)
        values = {name: getattr(result, name) for name in result.__dataclass_fields__}
        del values["report"], values["seconds"]
        best = {"best_epoch": report.best_epoch, "selection": report.selection._asdict()}
        files = {name: str(values.pop(name)) for name in ("run", "images")}
        self.json({**best, **values, **files, "report": str(page)})


def _spread(count: int, best: int | None) -> list[int]:
    """Return at most about a dozen positions, with the first, the last and the best one."""
    step = max(1, -(-count // SHOWN_EPOCHS))
    shown = {*range(0, count, step), count - 1}
    return sorted(shown if best is None else shown | {best})


def _facts(report: Report, sample: int) -> list[Any]:
    return [
        class_of(report, report.targets, sample),
        class_of(report, report.predictions, sample),
        float(report.label_quality[sample]),
        float(report.scores[sample]),
    ]


def _sample(report: Report, sample: int) -> list[str]:
    label, prediction, quality, score = _facts(report, sample)
    numbers = [significant(quality, around=0.5), significant(score, sign="+")]
    kept = ["-" if x is None else str(x) for x in kept_of(report, sample).values()]
    return [str(sample), *kept, label or "-", prediction or "-", *numbers]
