"""A ResNet-18 under made errors beside what other papers publish for the same share of errors."""

from __future__ import annotations

from experiments.criteria import BEST, LABELWAVE, LAST, SEPARATION, best_epoch
from experiments.store import Result, column
from experiments.tables.cells import MISSING, counted, markdown, spread
from experiments.tables.runs import runs_of

__all__ = ["COLUMNS", "PUBLISHED", "STUDY", "published"]

STUDY = "published"
COLUMNS = ("symmetric-20", "symmetric-40", "symmetric-60", "asymmetric-40")
#: Columns of a run and how tables call what they give; the first have a rule of their own.
RULES = (LABELWAVE, SEPARATION, LAST)
AVERAGE, EMA = "separation^10", "ema_998_test_accuracy"
#: Test accuracy by paper and way. Sources: the README files of bhanML/Co-teaching and of shengliu66/ELR
#: (ELR/README.md). What is given of LabelWave, and of its best epoch and last epoch, is quoted from
#: its paper at second hand.
PUBLISHED = {
    "cross-entropy, last epoch (LabelWave's paper)": {"symmetric-40": "73.0"},
    "cross-entropy, best epoch (LabelWave's paper)": {"symmetric-40": "80.45"},
    "LabelWave, its paper": {"symmetric-40": "80.15"},
    "Co-teaching, its authors": {"symmetric-20": "82.18"},
    "ELR, its authors": {
        "symmetric-20": "91.16",
        "symmetric-40": "89.15",
        "symmetric-60": "86.12",
        "asymmetric-40": "90.12",
    },
}


def published(results: list[Result]) -> str:
    """Test accuracy by what is kept, and below it what other papers publish."""
    runs = {
        labels: some for labels in COLUMNS if (some := runs_of(results, study=STUDY, labels=labels))
    }
    if not runs:
        return ""
    ways = [f"**average**, `{AVERAGE}`", *RULES, "EMA 0.998, best by test", f"{BEST}, by test"]
    rows = [[way, *(spread(_kept(some, way)) for some in runs.values())] for way in ways]
    head = [f"{labels}, {counted(len(some), 'run')}" for labels, some in runs.items()]
    beside = [
        [f"*{way}*", *(numbers.get(labels, MISSING) for labels in runs)]
        for way, numbers in PUBLISHED.items()
    ]
    return markdown(["what is kept", *head], [*rows, *beside])


def _kept(runs: list[Result], way: str) -> list[float]:
    """Return the test accuracies in per cent."""
    found = []
    for run in runs:
        accuracy = column(run, "test_accuracy")
        if way.startswith("**average"):
            value = run["kept"]["test_accuracy"][AVERAGE]
        elif way.startswith("EMA"):
            value = column(run, EMA).max()
        else:
            epoch = best_epoch(run, BEST if way.startswith(BEST) else way)
            value = float("nan") if epoch is None else accuracy[epoch]
        found.append(100 * float(value))
    return found
