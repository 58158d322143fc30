"""The commands of ``gwa``; what they compute is in the modules beside."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from gwa_core import (
    BestMetric,
    DipThenMax,
    GradientDisparity,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    Rule,
    __version__,
)
from gwa_offline.analysis import analyse as run_analysis
from gwa_offline.analysis import average_checkpoints
from gwa_offline.analysis.comparison import compare as run_comparison
from gwa_offline.analysis.results import Report
from gwa_offline.app.demo import run_demo
from gwa_offline.app.follow import watch
from gwa_offline.app.terminal import Terminal
from gwa_offline.readers import Source, open_features

# What a shell expects of a command that Ctrl-C ended.
INTERRUPTED = 130

app = typer.Typer(
    name="gwa",
    help="Which epoch to keep and which labels are wrong, from saved features or a training run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class RuleName(StrEnum):
    """Names of the stopping rules on the command line."""

    separation = "separation"
    bimodality = "bimodality"
    gwa = "gwa"
    dip = "dip"
    labelwave = "labelwave"
    disparity = "disparity"
    metric = "metric"


Paths = Annotated[
    list[Path],
    typer.Argument(help="Run folder, .npz, .safetensors, .parquet, .npy folder or snapshots."),
]
OnePath = Annotated[
    Path, typer.Argument(help="Run folder, .npz, .safetensors, .parquet, .npy folder or snapshots.")
]
RuleOption = Annotated[
    RuleName,
    typer.Option(
        "--rule",
        help="separation: scores are high and in two groups; bimodality: in two groups; "
        "gwa: the paper's rule; dip: fine-tuning; "
        "metric: a stored column (with --metric).",
    ),
]
MetricOption = Annotated[
    str | None, typer.Option(help="A column of epochs.jsonl, such as test_accuracy.")
]
ModeOption = Annotated[str, typer.Option(help="max or min: which end of --metric is better.")]
WeightOption = Annotated[
    Path | None, typer.Option(help="Head weight (C, D) as .npy, for files without it.")
]
TargetsOption = Annotated[Path | None, typer.Option(help="Labels as .npy, for files without them.")]
LossOption = Annotated[
    str | None, typer.Option(help="cross_entropy (default) or binary_cross_entropy.")
]
SmoothingOption = Annotated[float, typer.Option(help="Label smoothing of the training.")]
ImagesOption = Annotated[
    Path | None, typer.Option(help="Pictures by sample id: .npy, .npz or a folder of files.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Plain text, no progress bar.")]


def _version(show: bool) -> None:
    if show:
        print(f"gwa-core {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Which epoch to keep and which labels are wrong, from saved features or a training run."""


@app.command()
def analyse(
    paths: Paths,
    rule: RuleOption = RuleName.separation,
    metric: MetricOption = None,
    mode: ModeOption = "max",
    weight: WeightOption = None,
    targets: TargetsOption = None,
    loss: LossOption = None,
    label_smoothing: SmoothingOption = 0.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json, epochs.csv, samples.csv (and Parquet)."),
    ] = None,
    parquet: Annotated[bool, typer.Option(help="Write Parquet beside CSV into --out.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Summarise each epoch, find the best one, and rank the labels."""
    terminal = Terminal(json=json, quiet=quiet)
    reports = []
    for path in paths:
        source = _open(path, weight, targets, loss)
        report = _report(source, _rule(rule, metric, mode), terminal, label_smoothing)
        reports.append(report)
        terminal.report(report)
        if out is not None:
            folder = out if len(paths) == 1 else out / report.name
            written = report.to_csv(folder) + (report.to_parquet(folder) if parquet else [])
            (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
            terminal.wrote([folder / "report.json", *written])
    terminal.json([report.to_json() for report in reports])


@app.command()
def stop(
    run: OnePath,
    rule: RuleOption = RuleName.separation,
    metric: MetricOption = None,
    mode: ModeOption = "max",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say which epoch a rule keeps, and why."""
    terminal = Terminal(json=json, quiet=quiet)
    report = _report(open_features(run), _rule(rule, metric, mode), terminal)
    terminal.selection(report)


@app.command()
def follow(
    run: Annotated[Path, typer.Argument(help="Run folder; there may be none yet.")],
    rule: RuleOption = RuleName.separation,
    metric: MetricOption = None,
    mode: ModeOption = "max",
    wait: Annotated[
        float,
        typer.Option(min=0, help="Minutes without anything new after which to end; 0 looks once."),
    ] = 60.0,
    quiet: QuietOption = False,
) -> None:
    """Watch a run while it is trained, until it has ended."""
    terminal = Terminal(json=False, quiet=quiet)
    looks = watch(run, rule=_rule(rule, metric, mode), wait=60.0 * wait)
    try:
        last = terminal.follow(looks)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if wait and last is not None and not last.ended:
        what = f"gwa: {run}: nothing new for {wait:g} minutes, and the run does not say that it has ended"
        if last.progress is None:
            what = f"gwa: {run}: there is no run after {wait:g} minutes"
        terminal.note(f"{what}; --wait MINUTES waits longer")
        raise typer.Exit(1)


@app.command()
def average(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    checkpoints: Annotated[
        str,
        typer.Option(
            help="The .safetensors file of an epoch, such as 'ckpt/epoch_{epoch:03d}.safetensors'; "
            "{number} counts from 1, {step} is the training step."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The new .safetensors file.")],
    power: Annotated[float, typer.Option(help="Of the signal; 0 is the plain mean.")] = 10.0,
    warmup: Annotated[
        float, typer.Option(help="Fraction or number of first epochs that do not count.")
    ] = 0.1,
    signal: Annotated[str, typer.Option(help="A column of epochs.jsonl, larger is better.")] = (
        "separation"
    ),
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Planned epochs of a run that was stopped early, for the warm-up."
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Average the checkpoints of a run, each epoch with its share."""
    terminal = Terminal(json=json, quiet=quiet)
    options: dict[str, Any] = {"power": power, "warmup": warmup, "signal": signal}
    options["total_steps"] = epochs
    with terminal.progress(f"averaging into {out}") as progress:
        found = average_checkpoints(run, checkpoints, out, progress=progress, **options)
    terminal.averaged(found)


@app.command()
def samples(
    run: OnePath,
    lowest: Annotated[int, typer.Option(min=0, help="How many of the most suspicious.")] = 20,
    highest: Annotated[int, typer.Option(min=0, help="How many of the best aligned.")] = 0,
    per_class: Annotated[bool, typer.Option(help="That many of each class.")] = False,
    images: ImagesOption = None,
    figure: Annotated[Path, typer.Option(help="Where the contact sheet of --images goes.")] = Path(
        "samples.png"
    ),
    rule: RuleOption = RuleName.separation,
    metric: MetricOption = None,
    mode: ModeOption = "max",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the samples whose labels deserve a look."""
    terminal = Terminal(json=json, quiet=quiet)
    report = _report(open_features(run), _rule(rule, metric, mode), terminal)
    if images is not None:
        from gwa_offline.figures.displays import SamplesDisplay

        display = SamplesDisplay.from_report(report, images=images).plot()
        display.figure_.savefig(figure, bbox_inches="tight")
    terminal.samples(report, lowest=lowest, highest=highest, per_class=per_class)
    if images is not None:
        terminal.wrote([figure])


@app.command()
def compare(
    runs: Paths,
    metric: MetricOption = None,
    mode: ModeOption = "max",
    rule: RuleOption = RuleName.separation,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put runs beside each other, and alignment beside a metric."""
    terminal = Terminal(json=json, quiet=quiet)
    reports = [_report(open_features(run), _rule(rule, metric, mode), terminal) for run in runs]
    comparison = run_comparison(reports, metric=metric)
    terminal.comparison(comparison)
    terminal.json(asdict(comparison))


@app.command()
def report(
    run: OnePath,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    images: ImagesOption = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for PNG figures.")] = None,
    rule: RuleOption = RuleName.separation,
    metric: MetricOption = None,
    mode: ModeOption = "max",
    weight: WeightOption = None,
    targets: TargetsOption = None,
    loss: LossOption = None,
    label_smoothing: SmoothingOption = 0.0,
    quiet: QuietOption = False,
) -> None:
    """Write one self-contained HTML file."""
    terminal = Terminal(json=False, quiet=quiet)
    source = _open(run, weight, targets, loss)
    found = _report(source, _rule(rule, metric, mode), terminal, label_smoothing)
    shown: dict[str, Any] = {"images": images, "metric": metric, "mode": mode}
    written = [found.to_html(out, **shown)]
    if figures is not None:
        written += found.to_figures(figures, **shown)
    terminal.wrote(written)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run and its report.")] = Path(
        "gwa-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the noise and the training.")] = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train on digits with wrong labels and see what GWA finds (about ten seconds)."""
    terminal = Terminal(json=json, quiet=quiet)
    with terminal.progress("training on handwritten digits") as progress:
        result = run_demo(out, seed=seed, progress=progress)
    page = result.report.to_html(out / "report.html", images=result.images)
    terminal.demo(result, page)


def _open(path: Path, weight: Path | None, targets: Path | None, loss: str | None) -> Source:
    given: dict[str, Any] = {
        name: np.load(file, allow_pickle=False)
        for name, file in {"weight": weight, "targets": targets}.items()
        if file is not None
    }
    return open_features(path, loss=loss, **given)


def _report(source: Source, rule: Rule, terminal: Terminal, label_smoothing: float = 0.0) -> Report:
    with terminal.progress(f"reading {source.name}") as progress:
        return run_analysis(source, rule=rule, label_smoothing=label_smoothing, progress=progress)


def _rule(name: RuleName, metric: str | None, mode: str) -> Rule:
    if name is RuleName.metric:
        if metric is None:
            raise ValueError("`--rule metric` needs `--metric COLUMN`, such as test_accuracy")
        return BestMetric(metric=metric, mode=mode)  # type: ignore[arg-type]  # checked by the rule
    rules: dict[RuleName, Rule] = {
        RuleName.separation: MaxSeparation(),
        RuleName.bimodality: MaxBimodality(),
        RuleName.gwa: MaxGWA(),
        RuleName.dip: DipThenMax(),
        RuleName.labelwave: LabelWave(),
        RuleName.disparity: GradientDisparity(),
    }
    return rules[name]
