"""Command line of the experiments."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.plan import Settings, plan, studies
from experiments.store import RESULTS, append, names, read


def main(arguments: list[str] | None = None) -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is missing; goes on where it stopped")
    run.add_argument("study", nargs="+", help=f"of {', '.join(studies())}, or a .toml file")
    run.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    run.add_argument("--out", type=Path, default=Path("runs"), help="where run folders go")
    run.add_argument("--budget-minutes", type=float, default=math.inf)
    run.add_argument("--device", help="default cuda where there is one")
    run.add_argument("--share", default="1/1", help="K/N: of N processes the K-th")
    status = commands.add_parser("status", help="what is done and what is missing")
    status.add_argument("study", nargs="*", default=studies())
    status.add_argument("--out", type=Path, default=Path("runs"))
    for command in (run, status):
        command.add_argument("--results", type=Path, default=RESULTS)
        command.add_argument(
            "--only", nargs="*", default=[], help="labels=worse seed=0 percent=100"
        )
    table = commands.add_parser("table", help="print a table, drawn from the results")
    figure = commands.add_parser("figure", help="draw a figure from the results")
    for command in (table, figure):
        command.add_argument("name", help="a wrong name lists them")
    figure.add_argument("--study", default="convnext", help="where the figure is of one study")
    figure.add_argument("--png", type=Path, required=True)
    for command in (table, figure):
        command.add_argument("--results", type=Path, default=RESULTS)
    pack = commands.add_parser("pack", help="write the images of a .parquet file to one .npz")
    pack.add_argument("parquet", type=Path)
    pack.add_argument("npz", type=Path)
    corrupt = commands.add_parser(
        "corrupt", help="write corrupted test sets in CIFAR-10-C's layout"
    )
    corrupt.add_argument("source", type=Path, help="a data set, as in the folder of --data")
    corrupt.add_argument("folder", type=Path)
    corrupt.add_argument("--count", type=int, help="of test images, default all")
    prepare = commands.add_parser(
        "prepare-text", help="write Reuters R8 as tokens, and a sentence encoder cut down to them"
    )
    prepare.add_argument("tables", type=Path, help="folder with reuters-r8-train.tab and -test.tab")
    prepare.add_argument("model", type=Path, help="folder of MiniLM, as Transformers saves it")
    prepare.add_argument("folder", type=Path, help="of --data")
    answers = commands.add_parser(
        "prepare-language", help="write 20 newsgroups with their names as answers, as tokens"
    )
    answers.add_argument(
        "tables", type=Path, help="folder with 20newsgroups-train.tab and -test.tab"
    )
    answers.add_argument("folder", type=Path, help="of --data")
    completion = commands.add_parser(
        "prepare-completion", help="write 20 newsgroups as words to complete, a thousand classes"
    )
    completion.add_argument("tables", type=Path, help="the same folder")
    completion.add_argument("folder", type=Path, help="of --data")
    given = parser.parse_args(arguments)
    commanded = {
        "run": _run,
        "status": _status,
        "table": _table,
        "figure": _figure,
        "pack": _pack,
        "corrupt": _corrupt,
        "prepare-text": _prepare_text,
        "prepare-language": _prepare_language,
        "prepare-completion": _prepare_completion,
    }
    commanded[given.command](given)


def _chosen(given: Any) -> list[Settings]:
    only = dict(x.split("=", 1) for x in given.only)
    return [run for study in given.study for run in plan(study, **only)]


def _run(given: Any) -> None:
    import torch

    from experiments import language_data
    from experiments.data import corrupted, load
    from experiments.engine import Engine
    from experiments.language import LanguageRun
    from experiments.training import Run

    deadline = time.monotonic() + 60 * given.budget_minutes
    place, processes = map(int, given.share.split("/"))
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded: dict[str, Any] = {}
    engine = None
    for settings in _chosen(given)[place - 1 :: processes]:
        if settings.name in names(given.results, settings.study):
            continue
        if settings.data not in loaded:
            reader = language_data.load if settings.loss else load
            loaded[settings.data] = reader(_find(given.data, settings.data))
        data = loaded[settings.data]
        # The classes of a language model are its tokens.
        kind = settings.network, data.vocabulary if settings.loss else len(data.class_names)
        if engine is None or (engine.network, engine.classes) != kind:
            engine = Engine(*kind, device, folder=given.data)
        begin = time.monotonic()
        if settings.corrupted and settings.corrupted not in loaded:
            loaded[settings.corrupted] = corrupted(_find(given.data, settings.corrupted))
        run: Run | LanguageRun
        if settings.loss:
            run = LanguageRun(settings, data, engine)
        else:
            run = Run(settings, data, given.out, engine, loaded.get(settings.corrupted))
        result = run.train(deadline)
        took = f"{time.monotonic() - begin:.0f} s"
        if result is None:
            print(f"{settings.name}: {run.step} of {run.steps} steps, {took}; goes on", flush=True)
            return
        append(given.results, result)
        best = max(result["epochs"]["test_accuracy"])
        print(f"{settings.name}: done in {took}, best test accuracy {best:.2%}", flush=True)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.parquet", folder / f"{name}.npz", folder / name):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"`--data` must be a folder with {name}.parquet, {name}.npz or {name}/, got {folder}"
    )


def _status(given: Any) -> None:
    chosen = _chosen(given)
    done = {study: names(given.results, study) for study in {s.study for s in chosen}}
    for settings in chosen:
        here = given.out / settings.name
        state = "missing"
        if settings.name in done[settings.study]:
            state = "done"
        elif (here / "checkpoint.pt").exists():
            state = "stopped, goes on"
        print(f"{settings.name:40} {state}")


def _table(given: Any) -> None:
    from experiments.catalogue import TABLES

    _check_name("table", given.name, TABLES)
    print(TABLES[given.name](read(given.results)))


def _figure(given: Any) -> None:
    from experiments.figures import ACROSS, OF_STUDY, draw

    _check_name("figure", given.name, OF_STUDY | ACROSS)
    if not draw(given.name, read(given.results), given.study, given.png):
        raise SystemExit(f"{given.results} has no results that {given.name} of {given.study} needs")


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise SystemExit(f"`{kind}` must be one of {', '.join(known)}, got {name!r}")


def _corrupt(given: Any) -> None:
    from experiments.corruptions import corrupt
    from experiments.data import load

    corrupt(load(given.source), given.folder, given.count)


def _prepare_text(given: Any) -> None:
    from experiments.texts import prepare

    prepare(given.tables, given.model, given.folder)


def _prepare_language(given: Any) -> None:
    from experiments.language_data import prepare

    prepare(given.tables, given.folder)


def _prepare_completion(given: Any) -> None:
    from experiments.completion import prepare

    prepare(given.tables, given.folder)


def _pack(given: Any) -> None:
    from experiments.data import pack

    pack(given.parquet, given.npz)


if __name__ == "__main__":
    main()
