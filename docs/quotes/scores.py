"""Figures of what the scores depend on, as sentences of the results chapter say them."""

from __future__ import annotations

import numpy as np

from experiments.criteria import CRITERIA, SEPARATION, VALIDATION, best_epoch, regret, warm
from experiments.data import GROUPS
from experiments.store import Result, column
from experiments.tables.correlations import correlation
from experiments.tables.estimator import PAPER as OF_PAPER
from experiments.tables.estimator import paired
from experiments.tables.layers import PARTS
from experiments.tables.rules import twins
from experiments.tables.runs import runs_of
from experiments.tables.two_modes import unhealthy
from experiments.tables.widths import widths_of

from .averages import results
from .benchmarks import STEP, read
from .epochs import mean_lost, of
from .rules import DISPARITY, LAST, PAPER, lost
from .words import listed, number, signed, spread

WRONG = ("aggre", "random1", "worse")
CORRUPTED = ("convnext", "vit")
COARSE = "convnext-coarse"


def _with_accuracy(study: str, labels: str, signal: str, sign: int = 1) -> float:
    """Return Spearman's correlation with test accuracy over the epochs, mean over seeds."""
    runs = of(study=study, labels=labels, percent=100)
    return float(np.mean([correlation(run, signal, sign)[0] for run in runs]))


def accuracy() -> dict[str, str]:
    """What goes with test accuracy."""
    forty, runs = (of(study="convnext", labels=x, percent=100) for x in ("worse", "random1"))
    spearman, pearson = zip(*(correlation(run, "gwa", 1) for run in runs), strict=True)
    peaks = [int(column(run, "epoch")[best_epoch(run, PAPER)]) for run in runs]
    vit = [_with_accuracy("vit", x, "gwa") for x in ("label", "random1", "worse")]
    wide = [_with_accuracy("convnext", x, "separation") for x in ("label", *WRONG)]
    wrong = [
        _with_accuracy(study, labels, "separation")
        for study in ("convnext", "vit", "coarse")
        for labels in WRONG
        if of(study=study, labels=labels, percent=100)
    ]
    (others,) = {
        f"{_with_accuracy('convnext', 'worse', name, sign):.2f}"
        for name, sign in {"mean": 1, "sample_loss": -1}.items()
    }
    return {
        "forty": f"{_with_accuracy('convnext', 'worse', 'gwa'):.2f}",
        "early": f"{_with_accuracy('coarse', 'random1', 'gwa'):.2f}",
        "least": f"{min(wrong):.2f}",
        "falls": f"{mean_lost(forty, LAST):.0f}",
        "others": others,
        "seventeen": f"{np.mean(spearman):.2f}",
        "seeds": spread(spearman, 2),
        "pearson": f"{np.mean(pearson):.2f}",
        "peaks": spread(peaks, 0),
        "rises": spread(lost(runs, PAPER), 1),
        "separation": f"{_with_accuracy('convnext', 'random1', 'separation'):.2f}",
        "vit": spread(vit, 2),
        "coarse": listed([_with_accuracy("coarse", x, "gwa") for x in ("random1", "worse")], 2),
        "bimodality": f"{_with_accuracy('coarse', 'worse', 'bimodality'):.2f}",
        "disparity": f"{_with_accuracy('coarse', 'worse', 'gradient_disparity', -1):.2f}",
        "coarse_separation": listed(
            [_with_accuracy("coarse", x, "separation") for x in ("random1", "worse")], 2
        ),
        "wide": spread(wide, 2),
        "optimum": f"{_with_accuracy('coarse', 'worse', 'optimum_alignment'):.2f}",
    }


def _corrupted(run: Result, name: str, group: str) -> float:
    return 100 * float(column(run, f"corrupted_{group}_accuracy")[best_epoch(run, name)])


def corruptions() -> dict[str, str]:
    """Accuracy under corruptions."""
    runs = [
        run
        for study in CORRUPTED
        for run in of(study=study)
        if "corrupted_noise_accuracy" in run["epochs"]
    ]
    names = [name for name in CRITERIA if name != DISPARITY]
    cells = [
        np.asarray([[_corrupted(run, name, group) for run in some] for name in names])
        for study in CORRUPTED
        for group in GROUPS
        if (some := runs_of(runs, study=study, percent=100))
    ]
    pairs = twins(runs)
    found = {
        "means": f"{max(np.ptp(cell.mean(1)) for cell in cells):.1f}",
        "single": f"{max(np.ptp(cell, axis=0).max() for cell in cells):.0f}",
        "pairs": number(len(pairs)).capitalize(),
    }
    for short, name in {"paper": PAPER, "rule": SEPARATION, "last": LAST}.items():
        for group in sorted(GROUPS):
            gains = [
                _corrupted(whole, name, group) - _corrupted(part, VALIDATION, group)
                for whole, part in pairs
            ]
            found[f"{short}_{group}"] = signed(f"{np.mean(gains):.1f}")
    return found


def estimator() -> dict[str, str]:
    """Scores in passing beside those at the end of an epoch."""
    runs = [of(study="estimator", learning_rate=rate)[0] for rate in (0.001, 0.01)]
    gwa, mean = zip(*map(paired, runs), strict=True)
    (of_means,) = {f"{x:.2f}" for x in mean}
    delta = [float(np.nanmean(abs(column(run, "glass_delta")))) for run in runs]
    times = [
        x / OF_PAPER[run["settings"]["learning_rate"]][0]
        for x, run in zip(delta, runs, strict=True)
    ]
    return {
        "gwa": listed(gwa, 2),
        "mean": of_means,
        "least": f"{min(*gwa, *mean):.2f}",
        "times": listed(sorted(times)),
        "ours": f"{delta[1]:.3f}",
        "paper": f"{OF_PAPER[0.1][0]}",
    }


def layers() -> dict[str, str]:
    """The head, and more of the network with it."""
    runs = of(study="layers")
    best = [int(column(run, "test_accuracy").argmax()) for run in runs]

    def at_best(name: str) -> list[float]:
        return [float(column(run, name)[k]) for run, k in zip(runs, best, strict=True)]

    def with_accuracy(part: str) -> str:
        return listed([correlation(run, f"{part}_gwa", 1)[0] for run in runs], 2)

    first, *_, last = PARTS
    return {
        "head": spread(at_best(f"{first}_mean"), 2),
        "all": spread(at_best(f"{last}_mean"), 3),
        "stage": spread(at_best("stage4_with_head"), 1),
        "all_accuracy": with_accuracy(last),
        "head_accuracy": with_accuracy(first),
    }


def widths() -> dict[str, str]:
    """Networks behind a frozen sketch beside bare ones."""
    apart = [
        abs(full[0][2] - frozen[0][2])
        for kinds in widths_of(results()).values()
        for full, frozen in [(kinds["full"], kinds["frozen"])]
    ]
    return {"apart": f"{max(apart):.1f}"}


def two_modes() -> dict[str, str]:
    """Runs of the coarse network with unhealthy epochs."""
    runs = [
        run
        for run in of(network=COARSE, neighbours=False)
        if unhealthy(run) and run["settings"]["labels"] != "random"
    ]
    assert {run["settings"]["labels"] for run in runs} == {"symmetric-40"}
    return {
        "runs": number(len(runs)),
        "with": spread(lost(runs, SEPARATION), 1),
        "without": spread([regret(run, [_healthy(run)])[0] for run in runs], 1),
        "gwa": f"{max(np.nanmax(abs(column(run, 'gwa'))) for run in runs):.0f}",
    }


def _healthy(run: Result) -> int:
    """Return the healthy epoch of largest separation."""
    values = np.where(column(run, "denominator") > 0, column(run, "separation"), -np.inf)
    first = warm(len(values))
    return first + int(values[first:].argmax())


def random_labels() -> dict[str, str]:
    """A network that learns labels drawn at random."""
    (run,) = of(study="random")
    given, gwa = column(run, "label_probability"), column(run, "gwa")
    one_way = [
        r for r in of(study="small") if r["settings"]["labels"].startswith("asymmetric")
    ]  # fmt: skip

    def largest(some: Result, name: str) -> float:
        values = column(some, name)
        return float(np.nanmax(values[warm(len(values)) :]))

    assert column(run, "mean").argmax() == len(gwa) - 1
    return {
        "before": f"{given[0]:.2f}",
        "after": f"{given[-1]:.2f}",
        "highest": f"{np.nanmax(gwa):.3f}",
        "end": f"{gwa[-1]:.3f}",
        "gwa": f"{largest(run, 'gwa'):.3f}",
        "separation": f"{largest(run, 'separation'):.2f}",
        "one_way_gwa": f"{max(largest(r, 'gwa') for r in one_way):.3f}",
        "one_way": spread([largest(r, "separation") for r in one_way], 2),
    }


def cost() -> dict[str, str]:
    """A training step with the monitor."""
    found = read("training")
    memory = [
        f"{found[f'{STEP}: peak MB in a step, {way}']:,.0f}"
        for way in ("with the monitor", "alone")
    ]
    return {
        "gpu": found["device"].removeprefix("NVIDIA "),
        "speed": f"{found[f'{STEP}: images/s, with the monitor / alone']:.4f}",
        "error": f"{found[f'{STEP}: standard error of that, with the monitor']:.4f}",
        "memory": " and ".join(dict.fromkeys(memory)),
        "pass": f"{found[f'{STEP}: images/s of an epoch with a 1 % validation pass / alone']:.3f}",
    }
