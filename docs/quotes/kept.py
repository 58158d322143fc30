"""Figures of what an average or an epoch loses, by network and kind of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from experiments.criteria import LAST, PAPER, SEPARATION, best_epoch, regret, warm
from experiments.store import Result, column
from experiments.tables import fine_tuning as tuning
from experiments.tables import keep
from experiments.tables.runs import runs_of

from .averages import claims, results
from .words import number, spread

IMAGES, TEXTS, SMALL, _ = keep.SIZES
STEPS, STEPS_BEST = "EMA 0.998, last", "EMA 0.998, best by test"
#: What a reader can keep without a look at the test accuracy.
CLAIMED = (keep.AVERAGE, "plain mean (SWA)", STEPS, SEPARATION, PAPER, LAST)
#: Means that differ from the default in one setting.
NEAR = (
    "separation^20",
    "separation^10, warm-up 0",
    "separation^10, warm-up 0.2",
    "separation^10, within epochs",
)
DEFAULT, AT_ONCE, WITHIN = "separation^10", NEAR[1], NEAR[3]


def _runs(size: str, *kinds: str) -> list[Result]:
    """Return the runs that report, by size of the network and kinds of errors, all where none is given."""
    return [
        run
        for run in keep.reported(results())[0]
        if keep.size_of(run) == size and keep.kind_of(run) in (kinds or keep.KINDS)
    ]


def _gains(runs: Iterable[Result], name: str) -> list[float]:
    return _gains_of(runs, keep.KEPT[name])


def _gains_of(runs: Iterable[Result], kept: Callable[[Result], float | None]) -> list[float]:
    found = (keep.above(run, kept) for run in runs)
    return [gain for gain in found if gain is not None]


def _mean_of(name: str) -> Callable[[Result], float]:
    return lambda run: float(run["kept"]["test_accuracy"][name])


def _lost(runs: Iterable[Result], name: str) -> list[float]:
    return [-gain for gain in _gains(runs, name)]


def twins() -> dict[str, str]:
    """What the average has above a validation set, in the runs that have one."""
    counts = [int(count) for count in claims()[keep.TWINS]]
    found = {"all": number(sum(counts)), "small": number(counts[2])}
    runs, held = keep.reported(results())
    for size, short, digits in ((IMAGES, "images", 1), (TEXTS, "texts", 0), (SMALL, "small", 1)):
        ahead = [
            100 * (average - _held_out(held[keep._key(run)]))
            for run in runs
            if keep.size_of(run) == size
            and keep._key(run) in held
            and (average := keep.KEPT[keep.AVERAGE](run)) is not None
        ]
        mean = float(np.mean(ahead))
        assert (mean < 0) == (size == TEXTS)
        found[f"above_{short}"] = f"{abs(mean):.{digits}f}"
    return found


def _held_out(run: Result) -> float:
    return float(keep._held_out(run))


def encoder() -> dict[str, str]:
    """An encoder on texts that memorises within two epochs."""
    symmetric, wrong = _runs(TEXTS, "symmetric"), _runs(TEXTS, "symmetric", "asymmetric")
    lost = [x for name in CLAIMED for x in _lost(symmetric, name)]
    best = {int(column(run, "test_accuracy").argmax()) for run in wrong}
    assert best == {1, 2}
    (held, *_) = claims()[keep.HELD_OUT][1].split()
    return {
        "symmetric": spread(lost, 0),
        "validation": f"{-float(held):.1f}",
        "fifth": spread([regret(run, [4])[0] for run in wrong], 0),
        "at_once": spread([-x for x in _gains_of(wrong, _mean_of(AT_ONCE))], 0),
        "steps": spread(_lost(wrong, STEPS_BEST), 0),
    }


def asymmetric() -> dict[str, str]:
    """Errors from one class to another."""
    small, texts = (_runs(size, "asymmetric") for size in (SMALL, TEXTS))
    assert {run["settings"]["labels"] for run in small} == {"asymmetric-40"}
    assert {run["settings"]["labels"] for run in texts} == {"asymmetric-20"}
    assert {best_epoch(run, SEPARATION) for run in small} == {warm(40)} == {4}
    large = [run for size in (IMAGES, TEXTS) for run in _runs(size, "asymmetric")]
    epochs = [1 + k for run in large if (k := best_epoch(run, SEPARATION)) is not None]
    return {
        "first": f"{min(epochs)}th",
        "last": f"{max(epochs)}th",
        "epochs": f"{min(len(column(run, 'epoch')) for run in large)}",
        "small": f"{max(_lost(small, keep.AVERAGE)):.0f}",
        "small_rule": f"{max(_lost(small, SEPARATION)):.0f}",
        "encoder": f"{max(_lost(texts, keep.AVERAGE)):.0f}",
        "encoder_rule": f"{max(_lost(texts, SEPARATION)):.0f}",
        "mean_large": f"{np.mean(_gains(_runs(IMAGES, 'asymmetric'), keep.AVERAGE)):.1f}",
        "mean_small": f"{np.mean(_lost(small, keep.AVERAGE)):.1f}",
    }


def small() -> dict[str, str]:
    """Small networks: a perceptron that memorises, and convolutions that learn to the end."""
    runs = _runs(SMALL)
    assert np.mean(_lost(runs, SEPARATION)) > np.mean(_lost(runs, LAST))
    of = {name: [r for r in runs if r["settings"]["network"] == name] for name in ("mlp", "conv")}
    even = [run for run in of["mlp"] if keep.kind_of(run) != "asymmetric"]
    right = [column(run, "separation") for run in of["conv"] if keep.kind_of(run) == "right"]
    return {
        "rule_worst": f"{max(_lost(runs, SEPARATION)):.1f}",
        "average_worst": f"{max(_lost(runs, keep.AVERAGE)):.1f}",
        "perceptron": f"{np.mean(_gains(even, keep.AVERAGE)):.1f}",
        "separation": spread(np.concatenate(right).tolist(), 2),
    }


def pole() -> dict[str, str]:
    """What the paper's rule loses in large networks on images."""
    runs = _runs(IMAGES)
    worst = max(runs, key=lambda run: _lost([run], PAPER)[0])
    assert worst["settings"]["labels"] == "symmetric-40"
    return {"worst": f"{_lost([worst], PAPER)[0]:.1f}"}


def fine_tuned() -> dict[str, str]:
    """What separation loses in MiniLM under 40 % errors, of 20 epochs and of windows of four."""
    of = {"labels": "symmetric-40", "percent": 100}
    (run,) = runs_of(results(), study="minilm", **of)
    windows = [
        100 * float(column(some, "test_accuracy").max()) - accuracy
        for some in runs_of(results(), study="minilm-windows", **of)
        if (accuracy := tuning.accuracy(some, SEPARATION)) is not None
    ]
    lost = regret(run, [best_epoch(run, SEPARATION)])[0]
    return {"whole": f"{lost:.1f}", "windows": f"{max(windows):.1f}"}


def steps() -> dict[str, str]:
    """The exponential mean of the steps in large networks on images."""
    runs, right = _runs(IMAGES), _runs(IMAGES, "right")
    last = _gains(runs, STEPS)
    ahead = np.mean(_gains(right, STEPS)) - np.mean(_gains(right, keep.AVERAGE))
    return {
        "mean": f"{np.mean(last):.1f}",
        "worst": f"{-min(last):.1f}",
        "best": f"{np.mean(_gains(runs, STEPS_BEST)):.1f}",
        "right": f"{ahead:.2f}",
    }


def others() -> dict[str, str]:
    """Other means of the epochs beside the default."""
    even = ("right", "human", "symmetric")
    images = _runs(IMAGES, *even)

    def mean(name: str, runs: list[Result] = images) -> float:
        return float(np.mean(_gains_of(runs, _mean_of(name))))

    # Columns as the table has them: asymmetric errors apart.
    columns = [_runs(size, *even) for size in keep.SIZES]
    columns.append([run for size in keep.SIZES for run in _runs(size, "asymmetric")])
    names = images[0]["kept"]["test_accuracy"]
    gwa = [
        x
        for name in names
        if name.startswith("gwa^")
        for x in _gains_of(_runs(IMAGES), _mean_of(name))
    ]
    other = {n: mean(n) for n in names if not n.startswith(("separation", "plain"))}
    nearest = max(other, key=other.__getitem__)
    assert nearest == "spread^10"
    assert f"{other[nearest]:.2f}" == f"{mean(DEFAULT):.2f}"
    chose = [
        run
        for run in keep._of_epochs(results())
        if run["settings"]["seed"] == keep.CHOSEN_SEED
        and run["settings"]["percent"] == 100
        and keep.size_of(run) == IMAGES
        and keep.kind_of(run) in even
    ]
    return {
        "level": f"{max(abs(mean(name) - mean(DEFAULT)) for name in NEAR):.2f}",
        "spread": f"{other[nearest]:.2f}",
        "chose": number(len(chose)),
        "better": f"{max(mean(name, chose) for name in names) - mean(DEFAULT, chose):.1f}",
        "within": f"{max(abs(mean(WITHIN, runs) - mean(DEFAULT, runs)) for runs in columns):.1f}",
        "gwa": f"{-min(gwa):.1f}",
    }
