"""The report as one page of HTML that needs no network."""

from __future__ import annotations

import json
import math
import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gwa_core.signals import SIGNALS
from gwa_offline.analysis.curves import default_metric, signal_curves, stored_signals
from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.view import (
    average_words,
    chosen_metric,
    class_ends,
    class_of,
    class_rows,
    epoch_numbers,
    format_number,
    healthy_epochs,
    kept_of,
    metric_names,
    percent,
    pulling,
    pulling_words,
    ties_words,
    unit,
)
from gwa_offline.app.links import data_uri, shown
from gwa_offline.figures.images import Images, ImageSource, match_images
from gwa_offline.figures.interactive import BARS, TITLES, make_figures
from gwa_offline.files.rows import NAME

try:
    import jinja2
    from plotly.offline import get_plotlyjs
except ImportError as error:
    raise ImportError(
        "the HTML report needs jinja2 and plotly: pip install 'gwa-core[report]'"
    ) from error

__all__ = ["write_html"]

_SUSPICIOUS = 200  # rows of the table of labels: what a person may look through
_SAMPLES = 8  # images at each end of a class
_CLASSES = 20  # classes with images; the lowest ones where there are more
_PRINTED_IMAGES, _PRINTED_ROWS = 70, 30  # suspicious labels on paper
_ROWS, _FOUND = 100, 10_000  # classes of the table, and those that its search finds: the lowest

_SOURCES = {"online": "from the training pass", "offline": "measured after each epoch"}

_MEANINGS = {
    "separation": "The score of a sample says whether its label agrees with what the model has learnt. "
    "Separation is large where the scores are high and fall into two groups: right and wrong labels.",
    "bimodality": "The score of a sample says whether its label agrees with what the model has learnt. "
    "Bimodality is large where the scores fall into two groups: right and wrong labels.",
    "gwa": "GWA is the mean of the scores, divided by their kurtosis and a constant.",
}


def write_html(
    report: Findings,
    path: str | os.PathLike[str],
    *,
    images: ImageSource | None = None,
    metric: str | None = None,
    mode: Literal["max", "min"] = "max",
) -> Path:
    """Write a report as one self-contained HTML file.

    Parameters
    ----------
    report : Report
        What `analyse` returned, T >= 1 epochs.
    path : str or path
        The file to write. A missing folder is created.
    images : str, path, array, Images or None
        The N images by sample id, as `gwa_offline.figures.images.open_images` takes them.
    metric : str or None
        A column of the run, drawn beside the curve that decided and the signals. Default: the first
        column that is no signal, or none.
    mode : {"max", "min"}
        Which end of `metric` is better.

    Returns
    -------
    pathlib.Path
        The written file.

    Raises
    ------
    FeaturesError
        The images cannot be read or are not N.
    ValueError
        The report has no epochs, or no such metric.

    Notes
    -----
    What the report carries along of each sample is in the table of labels: a web address (``http`` or
    ``https``) and the relative path of an image as links. Paths count from the folder of the page, and an
    image that lies under it is shown.

    The page contains plotly.js (4.6 MB) and loads nothing from the network. The same report gives
    the same bytes. The file is written whole or not at all. It lists at most 200 suspicious labels,
    with their images, images of at most 20 classes, and numbers of at most 10,000: the size grows
    with T alone.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from gwa_core import EpochSummary, Selection
    >>> from gwa_offline.analysis.findings import Decision
    >>> from gwa_offline.analysis.results import EpochRecord, Report
    >>> seen = Decision(signal="gwa", values=np.array([0.14]), standard_errors=np.array([0.02]),
    ...                 tied=np.array([True]))
    >>> summary = EpochSummary(0, 0, 3, 0, 0.1, 0.04, 0.0, -0.5, 0.14, 0.02, 0.7, 0.4, 0.33, 0.22)
    >>> report = Report(
    ...     name="run", num_samples=3, num_classes=2, class_names=("cat", "dog"), beta=1.2,
    ...     epochs=(EpochRecord(summary=summary, source="offline"),), rule="MaxGWA()",
    ...     selection=Selection(0, 0.14, "the only epoch"), decision=seen, best_index=0,
    ...     average_shares=np.ones(1), memorising=False, targets=np.array([0, 1, 1]),
    ...     predictions=None, scores=np.float32([-0.2, 0.1, 0.4]),
    ...     label_quality=np.array([0.2, 0.5, 0.8]), class_gwa=np.full((1, 2), np.nan),
    ...     class_mean=np.array([[-0.2, 0.25]]), histogram_edges=np.linspace(-1, 1, 5),
    ...     histograms=np.array([[0, 1, 2, 0]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_html(report, folder + "/report.html").name
    'report.html'
    """
    if not report.epochs:
        raise ValueError("`report` must have at least one epoch, got none; the run may be empty")
    found = None if images is None else match_images(images, report.num_samples)
    chosen_metric(report, metric)  # refuses what the run does not have
    path = Path(path)
    page = _render(report, found, metric, mode, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _render(
    report: Findings,
    images: Images | None,
    metric: str | None,
    mode: Literal["max", "min"],
    folder: Path,
) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "percent": percent, "thumbnail": data_uri}
    template = resources.files("gwa_offline.app").joinpath("report.html.jinja")
    shown = report.shown
    several = len(report.epochs) > 1
    curves = None
    if several and stored_signals(report):
        curves = signal_curves(report, metric=metric, mode=mode)
    figures = make_figures(report, curves)
    summaries = [record.summary for record in report.epochs]
    signal = report.decision.signal
    drawn = default_metric(report) if metric is None else metric
    error = float(report.decision.standard_errors[shown])
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        report=report,
        images=images,
        several=several,
        shown=summaries[shown],
        summaries=summaries,
        gwa=_measure(summaries[shown].gwa, summaries[shown].gwa_standard_error),
        measure=_measure,
        value=_measure(report.selection.value, error),
        certain=math.isfinite(error),
        average=average_words(report),
        ties=ties_words(report),
        pulls=pulling_words(report),
        pulling=int(pulling(report).sum()),
        metrics=metric_names(report),
        drawn=drawn,
        beside=None if drawn == signal else _beside(report, drawn),
        healthy=int(healthy_epochs(report).sum()),
        sources=" and ".join(dict.fromkeys(_SOURCES[x.source] for x in report.epochs)),
        curves=curves,
        references={name: signal.reference for name, signal in SIGNALS.items()},
        numbers=epoch_numbers(report),
        unit=unit(report.epochs),
        figures={name: json.loads(figure.to_json()) for name, figure in figures.items()},
        bars=BARS,
        classes=[] if images is None else _class_samples(report),
        title=TITLES.get(signal, signal),
        meaning=_MEANINGS.get(signal, f"The rule reads the column {signal} of the run."),
        rule_name=report.rule.partition("(")[0],
        compared=[name for name in metric_names(report) if name != signal],
        printed_images=_PRINTED_IMAGES,
        printed_rows=_PRINTED_ROWS,
        class_rows=[[row.name, *map(format_number, row[1:])] for row in class_rows(report, _FOUND)],
        most_rows=_ROWS,
        most_found=_FOUND,
        suspicious=_suspicious(report, folder),
        kept={
            name: "number" if x.dtype.kind in "iuf" else "text" for name, x in report.kept.items()
        },
        plotly_js=get_plotlyjs(),
    )


def _beside(report: Findings, name: str | None) -> str | None:
    """Say what a metric is at the shown epoch, and between which values it lies in the run."""
    values = chosen_metric(report, name)
    if values is None or not np.isfinite(values[report.shown]):
        return None
    here, low, high = (
        format_number(float(x), 4)
        for x in (values[report.shown], np.nanmin(values), np.nanmax(values))
    )
    return f"{name} is {here} there, and {low} to {high} in the run."


def _measure(value: float, error: float) -> str:
    """Format a value with as many decimals as two digits of its standard error have."""
    if not (math.isfinite(error) and error > 0.0 and math.isfinite(value)):
        return format_number(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if value:  # nothing but 0 looks like it
        decimals = max(decimals, -math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _sample(report: Findings, sample: int) -> dict[str, Any]:
    """Describe one sample to the template."""
    given, predicted = (
        class_of(report, classes, sample) for classes in (report.targets, report.predictions)
    )
    numbers = [x for x in (report.targets, report.predictions) if x is not None]
    return {
        "id": sample,
        "name": kept_of(report, sample).get(NAME),
        "given": given,
        "predicted": predicted,
        # By number: two classes may have one name.
        "disagrees": None not in (given, predicted) and len({int(x[sample]) for x in numbers}) == 2,
        "quality": float(report.label_quality[sample]),
        "score": float(str(report.scores[sample])),  # the shortest text of a float32
    }


def _suspicious(report: Findings, folder: Path) -> list[dict[str, Any]]:
    order = np.argsort(report.label_quality, kind="stable")  # puts nan last
    known = order[~np.isnan(report.label_quality[order])]
    found = [_sample(report, int(sample)) for sample in known[:_SUSPICIOUS]]
    for sample in found:
        sample["kept"] = [shown(x, folder) for x in kept_of(report, sample["id"]).values()]
    return found


def _class_samples(report: Findings) -> list[dict[str, Any]]:
    return [
        {
            "name": ends.name,
            "size": ends.size,
            "least": [_sample(report, int(i)) for i in ends.least],
            "most": [_sample(report, int(i)) for i in ends.most],
        }
        for ends in class_ends(report, limit=_CLASSES, k=_SAMPLES)
    ]
