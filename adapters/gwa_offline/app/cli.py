"""The commands of ``gwa``; what they compute is in the modules beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gwa_core import Rule, __version__
from gwa_offline.analysis import analyse as run_analysis
from gwa_offline.analysis import average_checkpoints
from gwa_offline.analysis.comparison import compare as run_comparison
from gwa_offline.analysis.results import Report
from gwa_offline.app.clusters import ClusterOptions
from gwa_offline.app.demo import run_demo
from gwa_offline.app.follow import watch
from gwa_offline.app.options import (
    FileArgument,
    FileOption,
    OnePath,
    Paths,
    RuleOptions,
    SourceOptions,
    expand,
)
from gwa_offline.app.terminal import Terminal
from gwa_offline.files.places import distinct_names, gather, name_of
from gwa_offline.readers import Source

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


ImagesOption = Annotated[
    Path | None, FileOption("Pictures by sample id: .npy, .npz or a folder of files.")
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
@expand
def analyse(
    paths: Paths,
    rules: RuleOptions,
    options: SourceOptions,
    clusters: ClusterOptions,
    out: Annotated[
        Path | None,
        FileOption("Folder for report.json, epochs.csv, samples.csv (and Parquet)."),
    ] = None,
    parquet: Annotated[bool, typer.Option(help="Write Parquet beside CSV into --out.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Summarise each epoch, find the best one, and rank the labels."""
    terminal = Terminal(json=json, quiet=quiet)
    reports = []
    rule = rules.make()
    with clusters.connect() as analysis_in:
        for source in _open(clusters.places(paths), options):
            folder = out if out is None or len(paths) == 1 else out / source.name
            report = _report(source, rule, terminal, options, analysis_in(folder))
            reports.append(report)
            terminal.report(report)
            if folder is not None:
                written = report.to_csv(folder) + (report.to_parquet(folder) if parquet else [])
                (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
                terminal.wrote([folder / "report.json", *written])
    terminal.json([report.to_json() for report in reports])


@app.command()
@expand
def stop(
    run: OnePath,
    rules: RuleOptions,
    options: SourceOptions,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say which epoch a rule keeps, and why."""
    terminal = Terminal(json=json, quiet=quiet)
    report = _report(options.open(run), rules.make(), terminal, options)
    terminal.selection(report)


@app.command()
@expand
def follow(
    run: Annotated[Path, FileArgument("Run folder; there may be none yet.")],
    rules: RuleOptions,
    wait: Annotated[
        float,
        typer.Option(min=0, help="Minutes without anything new after which to end; 0 looks once."),
    ] = 60.0,
    quiet: QuietOption = False,
) -> None:
    """Watch a run while it is trained, until it has ended."""
    terminal = Terminal(json=False, quiet=quiet)
    looks = watch(run, rule=rules.make(), wait=60.0 * wait)
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
    run: Annotated[Path, FileArgument("Run folder.")],
    checkpoints: Annotated[
        str,
        typer.Option(
            help="The .safetensors file of an epoch, such as 'ckpt/epoch_{epoch:03d}.safetensors'; "
            "{number} counts from 1, {step} is the training step."
        ),
    ],
    out: Annotated[Path, FileOption("The new .safetensors file.")],
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
@expand
def samples(
    run: OnePath,
    rules: RuleOptions,
    options: SourceOptions,
    lowest: Annotated[int, typer.Option(min=0, help="How many of the most suspicious.")] = 20,
    highest: Annotated[int, typer.Option(min=0, help="How many of the best aligned.")] = 0,
    per_class: Annotated[bool, typer.Option(help="That many of each class.")] = False,
    images: ImagesOption = None,
    figure: Annotated[Path, FileOption("Where the contact sheet of --images goes.")] = Path(
        "samples.png"
    ),
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the samples whose labels deserve a look."""
    terminal = Terminal(json=json, quiet=quiet)
    report = _report(options.open(run), rules.make(), terminal, options)
    if images is not None:
        from gwa_offline.figures.images import match_images

        # Pictures that do not fit are an error before anything is printed.
        match_images(images, report.num_samples)
    ids = terminal.samples(report, lowest=lowest, highest=highest, per_class=per_class)
    if images is not None and ids:
        from gwa_offline.figures.displays import SamplesDisplay

        display = SamplesDisplay.from_report(report, images, ids).plot()
        display.figure_.savefig(figure, bbox_inches="tight")
        terminal.wrote([figure])


@app.command()
@expand
def compare(
    runs: Paths,
    rules: RuleOptions,
    options: SourceOptions,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put runs beside each other, and alignment beside a metric."""
    terminal = Terminal(json=json, quiet=quiet)
    rule = rules.make(shown=True)
    reports = [_report(source, rule, terminal, options) for source in _open(runs, options)]
    comparison = run_comparison(reports, metric=rules.metric)
    terminal.comparison(comparison)
    terminal.json(asdict(comparison))


@app.command()
@expand
def report(
    run: OnePath,
    rules: RuleOptions,
    options: SourceOptions,
    out: Annotated[Path, FileOption("The HTML file.")] = Path("report.html"),
    images: ImagesOption = None,
    figures: Annotated[Path | None, FileOption("Folder for PNG figures.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Write one self-contained HTML file."""
    terminal = Terminal(json=False, quiet=quiet)
    found = _report(options.open(run), rules.make(shown=True), terminal, options)
    shown: dict[str, Any] = {"images": images, "metric": rules.metric, "mode": rules.mode}
    written = [found.to_html(out, **shown)]
    if figures is not None:
        written += found.to_figures(figures, **shown)
    terminal.wrote(written)


@app.command()
def demo(
    out: Annotated[Path, FileOption("Folder for the run and its report.")] = Path("gwa-demo"),
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


def _open(paths: Sequence[Path], options: SourceOptions) -> Iterator[Source]:
    """Yield the sources of a command, under names that tell them apart."""
    sources = gather(paths)
    names = distinct_names([name_of(parts) for parts in sources])
    for parts, name in zip(sources, names, strict=True):
        yield replace(options.open(parts if len(parts) > 1 else parts[0]), name=name)


def _report(
    source: Source,
    rule: Rule,
    terminal: Terminal,
    options: SourceOptions,
    analysis: Callable[..., Report] = run_analysis,
) -> Report:
    smoothing = options.label_smoothing
    with terminal.progress(f"reading {source.name}") as progress:
        return analysis(source, rule=rule, label_smoothing=smoothing, progress=progress)
