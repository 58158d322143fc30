"""Tables of what was measured, from the files in `benchmarks/results`; called by generate.py."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
OURS, CLEANLAB = "LabelIssues", "cleanlab, default"
NETWORK = "cleanlab, the network of LabelIssues"
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

LABELS_HEAD = """\
{settings} settings: digits (1,797 rows of 64 pixels) and {fashion:,} rows of Fashion-MNIST (784 pixels), each with 10, 20
and 40 % wrong labels of three kinds, and the five sets of labels that people gave in CIFAR-10-N (50,000 rows), 9 to
40 % of them wrong. Symmetric: any other class. Asymmetric: the next class. Feature-dependent: the class that a
`LogisticRegression`, fitted on a twentieth of the right labels, takes for the likeliest other one. The features of
CIFAR-10-N are those of an EfficientNet-Lite0 that was trained on ImageNet, on JPEG copies of the images at 128 × 128,
averaged over space, reduced to 128 columns by PCA.

{seeds} seeds, of the wrong labels and the training; where people gave the labels, of the training alone. One process,
{threads} thread, scikit-learn {sklearn}, cleanlab {cleanlab}; "cleanlab, logistic" was timed in a run of its own. The
ranges over the seeds are in `benchmarks/results/labels.json`, and `benchmarks/bench_labels.py` measures anew. The
defaults of `LabelIssues` were chosen on digits, on some of these rows of Fashion-MNIST and on other sets, with these
kinds of noise. CIFAR-10-N had no part in that, but other networks on it had in the choice to weight the epochs.

In digits, and in Fashion-MNIST but for feature-dependent errors, `LabelIssues` was ranked anew with weighted epochs; its
times are those of before. In the other eight settings its row, not the logistic one, is from before: features and errors
could not be made the same again. On what could be made, weights change its average precision by -0.003 to +0.030.

- `LabelIssues`: the default, a network. "Logistic": standardised columns and `LogisticRegression`, for both.
- cleanlab: `CleanLearning()`, its default, five folds of `LogisticRegression` on the columns as they are. "Network": five
  folds of what `LabelIssues` trains. "In-sample": `LogisticRegression` fitted once, on the rows that it then judges.
- Small loss and margin (the logit of the label less the largest other one): from the training of `LabelIssues`, by its
  last epoch or by the mean over all 20.

Means over the settings. F1 is that of the issues, which a ranking alone does not have. By data set: average precision
and seconds.

"""

VERDICT = """\
**Ranking.** The default of `LabelIssues` is ahead of cleanlab's in average precision in {precision}, in AUROC in {auroc}.
The margin averaged over the same training ranks as well as the alignment: most of what is gained over the last epoch
comes from the mean over epochs.

**Time.** All settings together, {share} of that of cleanlab's default. That is the doing of Fashion-MNIST, whose columns
are many: {shares}. With the same network in both it is {same}. The logistic way takes hardly less than
cleanlab's, as it fits five strengths.

**Which are issues.** F1 is higher in {f1}. Where 40 % are wrong the fixed threshold finds too few, and cleanlab estimates
the number. Of right labels alone, `LabelIssues` calls {none} an issue, cleanlab {none_cleanlab}.

**One fit, in-sample,** takes the least time on average, and with this model ranks no worse than five folds.
"""

SETTINGS = """
{figure} by setting, the largest of a row in bold:

"""


def labels_section() -> str:
    """Return what was measured of label issues: the methods, means, and each setting."""
    file = json.loads((RESULTS / "labels.json").read_text(encoding="utf-8"))
    settings = {
        name: methods
        for name, methods in file.items()
        if name.startswith(DATA) and "no wrong labels" not in name
    }
    text = LABELS_HEAD.format(
        settings=len(settings),
        fashion=file["rows of Fashion-MNIST"],
        seeds=file["seeds"],
        threads=file["threads"],
        sklearn=file["scikit-learn"],
        cleanlab=file["cleanlab"],
    )
    text += _means(settings) + _verdict(settings, file)
    for figure in ("average precision", "AUROC"):
        text += SETTINGS.format(figure=figure[0].upper() + figure[1:])
        text += _settings(settings, figure)
    return text


def _mean(settings: dict[str, Any], method: str, figure: str, data: str = "") -> float:
    values = [
        methods[method][figure][0] for name, methods in settings.items() if name.startswith(data)
    ]
    return float(sum(values) / len(values))


def _means(settings: dict[str, Any]) -> str:
    head = ["", "average precision", "AUROC", "F1", "seconds", *DATA]
    text = _row(head) + _row(["---"] * len(head))
    for method, name in SHORT.items():
        cells = [name]
        for figure, digits in {"average precision": 3, "AUROC": 3, "F1": 3, "seconds": 2}.items():
            has = all(figure in methods[method] for methods in settings.values())
            cells.append(f"{_mean(settings, method, figure):.{digits}f}" if has else "")
        for data in DATA:
            precision = _mean(settings, method, "average precision", data)
            cells.append(f"{precision:.3f}, {_mean(settings, method, 'seconds', data):.2f}")
        text += _row(cells)
    return text


def _verdict(settings: dict[str, Any], file: dict[str, Any]) -> str:
    """Say where the default is ahead of cleanlab's and where not, and what it takes."""

    def ahead(figure: str) -> str:
        lost: dict[str, list[str]] = {}
        for name, methods in settings.items():
            if methods[OURS][figure][0] <= methods[CLEANLAB][figure][0]:
                kind, rate = name.removesuffix(" %").rsplit(" ", 1)
                lost.setdefault(kind, []).append(rate)
        won = len(settings) - sum(len(rates) for rates in lost.values())
        behind = "; ".join(
            f"{kind} {'/'.join(rates)}\N{NO-BREAK SPACE}%" for kind, rates in lost.items()
        )
        text = f"{won} of {len(settings)} settings"
        return f"{text} (not in {behind})" if lost else text

    def share(data: str = "", other: str = CLEANLAB) -> str:
        own, beside = (_mean(settings, method, "seconds", data) for method in (OURS, other))
        return f"{own / beside:.3f}"

    def of_right_ones(method: str) -> str:
        names = [data for data in DATA if f"{data}, no wrong labels" in file]
        shares = (100 * file[f"{data}, no wrong labels"][method]["issues"][0] for data in names)
        return " and ".join(
            f"{share:.1f} % of {data}" for data, share in zip(names, shares, strict=True)
        )

    text = VERDICT.format(
        precision=ahead("average precision"),
        auroc=ahead("AUROC"),
        f1=ahead("F1"),
        share=share(),
        shares=", ".join(f"{share(data)} on {data}" for data in DATA),
        same=share(other=NETWORK),
        none=of_right_ones(OURS),
        none_cleanlab=of_right_ones(CLEANLAB),
    )
    points = (
        fill(
            f"- {point}",
            118,
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        for point in text.split("\n\n")
    )
    return "\n" + "\n".join(points) + "\n"


def _settings(settings: dict[str, Any], figure: str) -> str:
    text = _row(["", *SHORT.values()]) + _row(["---"] * (len(SHORT) + 1))
    for name, methods in settings.items():
        values = [f"{methods[method][figure][0]:.3f}" for method in SHORT]
        text += _row([name, *(f"**{v}**" if v == max(values) else v for v in values)])
    return text


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
