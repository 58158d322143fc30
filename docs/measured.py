"""Tables of what was measured, from the files of results; called by generate.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
OURS, CLEANLAB = "LabelIssues", "cleanlab, default"
NETWORK = "cleanlab, the network of LabelIssues"
#: A cell of numbers, without the spaces around it.
NUMBERS = re.compile(r"(?<=\| )[-+−]?\d(?:[^|\na-zA-Z]|<br>|AUROC|epoch|runs?)*(?= \|)")
DATA = ("digits", "Fashion-MNIST", "CIFAR-10-N")
SHORT = {
    OURS: "**`LabelIssues`**",
    CLEANLAB: "cleanlab",
    "LabelIssues, LogisticRegression": "**`LabelIssues`**, logistic",
    "cleanlab, LogisticRegression": "cleanlab, logistic",
    NETWORK: "cleanlab, network",
    "cleanlab, in-sample": "cleanlab, in-sample",
    "small loss, last epoch": "small loss, last",
    "small loss, mean over epochs": "small loss, mean",
    "margin, last epoch": "margin, last",
    "margin, mean over epochs": "margin, mean",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def labels_tables() -> dict[str, str]:
    """Return what was measured of label issues: how, means, and each setting."""
    file = _read("labels")
    settings = {
        name: methods
        for name, methods in file.items()
        if name.startswith(DATA) and "no wrong labels" not in name
    }
    head = ["settings", "seeds", "threads", "rows of Fashion-MNIST", "scikit-learn", "cleanlab"]
    how = [
        *(f"{len(settings)} {file['seeds']} {file['threads']}".split()),
        f"{file['rows of Fashion-MNIST']:,}",
        file["scikit-learn"],
        file["cleanlab"],
    ]
    return {
        "how": table(head, [how]),
        "means": _means(settings),
        "ahead": _ahead(settings),
        "time": _time(settings),
        "right labels": _right_labels(file),
        "average precision": _settings(settings, "average precision"),
        "AUROC": _settings(settings, "AUROC"),
    }


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _mean(settings: dict[str, Any], method: str, figure: str, data: str = "") -> float:
    values = [
        methods[method][figure][0] for name, methods in settings.items() if name.startswith(data)
    ]
    return float(sum(values) / len(values))


def _means(settings: dict[str, Any]) -> str:
    rows = []
    for method, name in SHORT.items():
        cells = [name]
        for figure, digits in {"average precision": 3, "AUROC": 3, "F1": 3, "seconds": 2}.items():
            has = all(figure in methods[method] for methods in settings.values())
            cells.append(f"{_mean(settings, method, figure):.{digits}f}" if has else "")
        for data in DATA:
            precision = _mean(settings, method, "average precision", data)
            cells.append(f"{precision:.3f}, {_mean(settings, method, 'seconds', data):.2f}")
        rows.append(cells)
    return table(["", "average precision", "AUROC", "F1", "seconds", *DATA], rows)


def _ahead(settings: dict[str, Any]) -> str:
    """Say in how many settings the default is ahead of cleanlab's, and where it is not."""
    rows = []
    for figure in ("average precision", "AUROC", "F1"):
        behind: dict[str, list[str]] = {}
        for name, methods in settings.items():
            if methods[OURS][figure][0] <= methods[CLEANLAB][figure][0]:
                kind, rate = name.removesuffix(" %").rsplit(" ", 1)
                behind.setdefault(kind, []).append(rate)
        won = len(settings) - sum(map(len, behind.values()))
        lost = "; ".join(f"{kind} {'/'.join(rates)} %" for kind, rates in behind.items())
        rows.append([figure, f"{won} of {len(settings)}", lost or "–"])
    return table(["", "settings in which `LabelIssues` is ahead", "not in"], rows)


def _time(settings: dict[str, Any]) -> str:
    def share(other: str, data: str = "") -> str:
        own, beside = (_mean(settings, method, "seconds", data) for method in (OURS, other))
        return f"{own / beside:.3f}"

    rows = [
        [SHORT[other], share(other), *(share(other, data) for data in DATA)]
        for other in (CLEANLAB, NETWORK)
    ]
    return table(["seconds of `LabelIssues` / of", "all settings", *DATA], rows)


def _right_labels(file: dict[str, Any]) -> str:
    names = [data for data in DATA if f"{data}, no wrong labels" in file]
    rows = []
    for method in (OURS, CLEANLAB):
        of = (file[f"{data}, no wrong labels"][method]["issues"][0] for data in names)
        rows.append([SHORT[method], *(f"{100 * share:.1f} %" for share in of)])
    return table(["called an issue, of right labels alone", *names], rows)


def _settings(settings: dict[str, Any], figure: str) -> str:
    rows = []
    for name, methods in settings.items():
        values = [f"{methods[method][figure][0]:.3f}" for method in SHORT]
        rows.append([name, *(f"**{v}**" if v == max(values) else v for v in values)])
    return table(["", *SHORT.values()], rows)


def speed_tables() -> dict[str, str]:
    """Return what a batch, the head of a language model, and a training step take."""
    gpu, training = _read("gpu"), _read("training")
    sizes = dict.fromkeys(key.partition(":")[0] for key in gpu if key.startswith("N="))
    return {
        "machine": table(["GPU", "PyTorch"], [[gpu["device"], gpu["torch"]]]),
        "batches": "\n".join(_batch(gpu, size) for size in sizes),
        "language model": _language_model(gpu),
        "loss": _loss(_read("linear_loss")),
        "step": _step(training),
        "CPU": _cpu(_read("steps")),
    }


def _batch(gpu: dict[str, Any], size: str) -> str:
    prefix = f"{size}: ms, "
    ways = [key.removeprefix(prefix) for key in gpu if key.startswith(prefix)]
    rows = []
    for way in sorted(ways, key=lambda way: gpu[prefix + way]):
        memory = gpu.get(f"{size}: extra MB, {way}")
        names = {
            "ours": "**`gwa_torch`**, one kernel",
            "ours, from the gradient": "**`gwa_torch`**, from the gradient, one kernel",
        }
        label = names.get(way, way)
        shown = "" if memory is None else f"{memory:,.2f} MB"
        rows.append([label, f"{gpu[prefix + way]:.4g} ms", shown])
    return table([f"{size}, float32", "time", "extra memory"], rows)


def _loss(found: dict[str, Any]) -> str:
    size = next(key for key in found if "tokens" in key).partition(":")[0]
    names = {
        "linear_cross_entropy": "**`linear_cross_entropy`**, loss and scores",
        "plain logits": "`F.cross_entropy` of the logits",
        "plain logits and head_scores": "`F.cross_entropy` and `head_scores` of the logits",
        "F.linear_cross_entropy": "`F.linear_cross_entropy` of PyTorch 2.13",
        "Liger": "Liger's fused loss",
        "the three products alone": "the three products alone",
    }
    rows = []
    for way in sorted(names, key=lambda way: found[f"{size}: ms, {way}"]):
        memory = found.get(f"{size}: extra MB, {way}")
        shown = "" if memory is None else f"{memory:,.0f} MB"
        rows.append([names[way], f"{found[f'{size}: ms, {way}']:.1f} ms", shown])
    return table(["forward and backward", "time", "extra memory"], rows)


def _language_model(gpu: dict[str, Any]) -> str:
    size = next(key for key in gpu if key.startswith("head of")).partition(":")[0]
    ways = {
        "`head_scores(latents=..., weight=...)`": "ours",
        "logits in memory, paper's formula": "logits and the paper's formula",
        "the product with the weight alone": "the product with the weight alone",
    }
    rows = []
    for title, way in ways.items():
        memory = gpu.get(f"{size}: extra MB, {way}")
        shown = "" if memory is None else f"{memory:,.0f} MB"
        rows.append([title, f"{gpu[f'{size}: ms, {way}']:.1f} ms", shown])
    return table([f"{size[0].upper()}{size[1:]}", "time", "extra memory"], rows)


def _step(training: dict[str, Any]) -> str:
    vit = next(key for key in training if key.startswith("ViT")).partition(":")[0]

    def beside(way: str) -> list[str]:
        error = training[f"{vit}: standard error of that, with {way}"]
        return [f"{training[f'{vit}: images/s, with {way} / alone']:.4f}", f"{error:.4f}"]

    added = training[f"{vit}: ms on the device added by hook and update"]
    rows = [
        ["`GWAMonitor` with ids, steps in turn", *beside("the monitor")],
        [
            f"the same from the time its kernels add, {added:.3f} ms",
            f"{training[f'{vit}: images/s by that, with the monitor / alone']:.4f}",
            "",
        ],
        ['`residual="backward"`, steps in turn', *beside("the monitor, residual='backward'")],
        [
            "a pass over 1 % validation data an epoch",
            f"{training[f'{vit}: images/s of an epoch with a 1 % validation pass / alone']:.4f}",
            "",
        ],
    ]
    took = f"{vit}, {training[f'{vit}: ms a step']:.1f} ms a step"
    peak = [
        [f"{training[f'{vit}: peak MB in a step, {way}']:,.1f} MB" for way in ("with the monitor", "alone")]
    ]  # fmt: skip
    return (
        table([took, "images/s beside no monitor", "standard error"], rows)
        + "\n"
        + table(["peak memory, with the monitor", "without"], peak)
    )


def _cpu(found: dict[str, Any]) -> str:
    networks = [key.partition(":")[0] for key in found if key.endswith("microseconds, alone")]
    rows = []
    for network in networks:
        alone = found[f"{network}: microseconds, alone"] / 1e3
        ways = ("with the monitor", "residual='backward'")
        shares = [f"{found[f'{network}: time, {way} / alone']:.3f}" for way in ways]
        rows.append([network, f"{alone:.2f} ms", *shares])
    head = ["inputs-hidden-classes", "a step", "with the monitor", '`residual="backward"`']
    return table(head, rows)


def results_tables(names: Iterable[str]) -> dict[str, str]:
    """Return tables of the experiments by their names."""
    from experiments.catalogue import TABLES
    from experiments.store import RESULTS, read

    results = read(RESULTS)
    return {name: NUMBERS.sub(_tied, TABLES[name](results)) for name in names if name in TABLES}


def _tied(cell: re.Match[str]) -> str:
    """Return a cell of numbers whose line does not break; words beside it do."""
    return cell[0].replace(" ", "\N{NO-BREAK SPACE}")
