"""Tables and figures over all runs, on results that are made up and known."""

import re
from dataclasses import asdict

import numpy as np
from numpy.testing import assert_allclose
from PIL import Image

from experiments import criteria, figures, store
from experiments.plan import Settings
from experiments.tables import (
    fluctuation,
    keep,
    knowing,
    label_errors,
    missing,
    published,
    rules,
    two_modes,
)
from experiments.tables.cells import MISSING


def made(study="coarse", percent=100, seed=0, epochs=50, **columns):
    settings = asdict(Settings(study=study, percent=percent, seed=seed, labels="worse"))
    given = {name: np.resize(x, epochs).tolist() for name, x in columns.items()}
    given["epoch"] = list(range(epochs))
    for name in store.SUMMARY:
        given.setdefault(name, [1.0] * epochs)
    for name in ("prediction_changes", "gradient_disparity", "sample_loss"):
        given.setdefault(name, np.linspace(1, 0, epochs).tolist())
    found = {"settings": settings, "epochs": given}
    given["separation"] = [summary.separation for summary in store.history(found)]
    return found


def tables_of(text):
    """Return the rows of each table by its title."""
    parts = re.split(r"^\*\*(.+)\*\*$", text, flags=re.MULTILINE)[1:]
    return {title: rows_of(table) for title, table in zip(parts[::2], parts[1::2], strict=True)}


def rows_of(table):
    """Return the cells of a table by the name of their row."""
    rows = [[cell.strip() for cell in x.strip("|").split("|")] for x in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_rules_are_judged_on_the_runs_that_they_were_not_chosen_on():
    rising = np.linspace(0.4, 0.6, 50)
    falling = np.where(np.arange(50) < 20, rising, rising - 0.1)
    results = [
        made(test_accuracy=rising),
        made(seed=1, test_accuracy=falling),
        made(seed=1, percent=90, test_accuracy=rising - 0.05, validation_accuracy=rising),
        made(test_accuracy=rising),
        # Of folds, too short for a rule to be wrong, and with nothing to learn: not judged.
        made(seed=2, test_accuracy=falling) | {"settings": {"fold": 1}},
        made(seed=3, epochs=20, test_accuracy=falling),
        made(seed=4, test_accuracy=falling),
    ]
    results[0]["settings"]["labels"] = "label"  # coarse-label-100-s0
    results[3]["settings"] |= {"data": "newsgroups", "network": "words", "study": "small"}
    results[6]["settings"]["labels"] = "random"
    both = tables_of(rules.rules(results))
    cells, small = both["Large networks"], both["Small networks"]
    assert cells["rule"] == [
        "CIFAR-10-N, 2 runs", "1 of these, made after it became the default",
        "the 1 run that separation was chosen on",
    ]  # fmt: skip
    assert small["rule"] == ["20 newsgroups, 1 run"]
    smooth_cells = rows_of(rules.smooth_rules(results))
    assert smooth_cells["rule"] == ["CIFAR-10-N, 2 runs", "five-epoch means"]
    best = 100 * falling.max()
    # The last epoch of the falling run has 50 %; on the rising runs it is the best one.
    lost = best - 50
    nothing = "0.00 (0.00)"
    slow = fluctuation.smoothed(falling)
    smooth = 100 * (slow.max() - slow[-1])
    whole = f"{lost / 2:.2f} ({lost:.2f})"
    assert cells["last epoch"] == [whole, nothing, nothing]
    assert small["last epoch"] == [nothing]
    assert smooth_cells["last epoch"] == [whole, f"{smooth / 2:.2f} ({smooth:.2f})"]
    # The maximum of a constant is the first after the warm-up.
    early = [100 * (x.max() - x[5]) for x in (rising, falling)]
    ours = cells["largest separation"]
    assert ours[0] == f"{sum(early) / 2:.2f} ({max(early):.2f})"
    assert [*ours[1:], *small["largest separation"]] == [f"{early[0]:.2f} ({early[0]:.2f})"] * 3
    assert cells[criteria.VALIDATION] == [nothing, nothing, MISSING]
    assert cells[rules.TWINS] == ["1", "1", "0"]
    assert criteria.VALIDATION not in smooth_cells
    gain = f"{100 * (falling[5] - rising[-1]) + 5:+.2f}"
    above = rows_of(rules.above_validation(results))
    assert above["rule"] == ["CIFAR-10-N, 1 pair"]
    assert above["largest separation"] == [f"{gain} ({gain})"]
    assert above["last epoch"] == ["-5.00 (-5.00)"]
    assert rules.above_validation(results[:2]) == rules.smooth_rules(results[:1]) == ""


def test_leads_are_counted_run_by_run():
    top = 0.6 - 0.01 * abs(np.arange(50) - 20)
    # Largest separation keeps epoch 20; the last one is 29 points lower, or the best there is.
    falling = made(seed=1, test_accuracy=top, mean=top)
    rising = made(seed=7, test_accuracy=np.linspace(0.1, 0.59, 50), mean=top)
    results = [falling, rising, made(test_accuracy=top, mean=top)]
    results[2]["settings"]["labels"] = "label"  # coarse-label-100-s0, which it was chosen on
    (cells,) = tables_of(rules.leads(results)).values()
    assert cells["rule"] == [
        "CIFAR-10-N, 2 runs", "1 of these, made after it became the default",
    ]  # fmt: skip
    assert "largest separation" not in cells
    # Of two runs the interval is that of their mean, from one twice to the other twice.
    assert cells["last epoch"] == [
        "+0.00, 1/1/0<br>-29.00 to +29.00", "-29.00, 0/1/0<br>-29.00 to -29.00",
    ]  # fmt: skip
    assert rules.leads(results[2:]) == ""


def test_what_those_lose_who_know_the_wrong_labels_or_the_accuracy():
    # Best at 20; apart at 30, but for right labels, of which nothing is known; one lucky epoch.
    accuracy = 0.6 - 0.01 * abs(np.arange(50) - 20)
    accuracy[40] = 0.65
    area = (-abs(np.arange(50) - 30.0)).tolist()
    known = {"detection": {"alignment": {"auroc": area}}}
    results = [
        made(seed=1, test_accuracy=accuracy, mean=[0.5]) | known,
        made(seed=2, test_accuracy=accuracy, mean=[0.5]) | {"detection": {}},
    ]
    cells = rows_of(knowing.knowing(results))
    row = cells["CIFAR-10-N, `convnext`, 1 run"]
    assert row[2:] == ["15.00 (15.00)", "5.00 (5.00)"]
    # The maximum of a constant is the first after the warm-up.
    assert row[0] == "20.00 (20.00)"
    assert knowing.knowing(results[1:]) == ""


def test_label_errors_of_further_networks_are_those_of_all_data():
    runs = [made("perceptron", seed=k) for k in range(4)]
    for run, value in zip(runs, (0.2, 0.4, 0.9, 0.9), strict=True):
        run["detection"] = {"margin": {"mean": value, "last": 0.0}, "label_quality": {"mean": 0.5}}
        run["settings"]["network"] = "mlp"
    runs[2]["settings"]["percent"] = 90
    runs[3]["settings"] |= {"study": "coarse", "network": "convnext-coarse"}
    table = label_errors.further_errors(runs)
    assert "**`mlp` on cifar10n**" in table
    cells = rows_of(table)
    assert cells["signal"] == ["worse, 2 runs"]
    assert cells["`margin`"] == ["0.300 (0.200)"]
    assert cells["`label_quality`"] == ["0.500 (0.000)"]
    assert label_errors.further_errors(runs[3:]) == ""


def test_what_fluctuates_and_what_follows_it():
    values = np.random.default_rng(0).normal(size=12)
    slow = [np.mean(values[max(0, k - 2) : k + 3]) for k in range(12)]
    assert_allclose(fluctuation.smoothed(values), slow)
    # Up to epoch 29 and down again; every other epoch, also that one, two points lower.
    hill = 0.6 - 0.002 * abs(np.arange(50) - 29)
    tooth = np.where(np.arange(50) % 2, -0.02, 0)
    followed = made(
        test_accuracy=hill + tooth, mean=[0.5], bimodality=hill - tooth, after_loss=1 - tooth,
        gwa=hill - tooth,
    )  # fmt: skip
    cells = {name: cell for name, (cell,) in rows_of(fluctuation.fluctuation([followed])).items()}
    assert cells["network"].endswith(", 1 run")
    assert cells["lost by largest separation"] == "1.80 (1.80)"
    assert cells["lost by the best five-epoch mean"] == "0.00 (0.00)"
    # Of a zigzag two groups are left, within which the order is nothing: three quarters.
    assert float(cells["separation, Spearman"]) < -0.7
    assert cells["validation, Spearman"] == MISSING
    assert float(cells["loss after, turned, Spearman"]) > 0.7


def test_epochs_of_two_modes_and_unhealthy_ones_are_counted():
    bimodality = np.where(np.arange(50) < 10, 0.7, 0.4)
    denominator = np.where(np.arange(50) < 4, -0.2, 1.0)
    plain = made(seed=1, bimodality=[0.4], test_accuracy=[0.5])
    run = made(
        bimodality=bimodality, denominator=denominator, mean=np.linspace(0, 1, 50),
        test_accuracy=np.linspace(0.4, 0.9, 50),
    )  # fmt: skip
    # Rules on GWA keep no epoch of this one.
    ill = made(
        seed=2, bimodality=[0.7], denominator=[-0.1], mean=np.linspace(0, 1, 50),
        test_accuracy=np.linspace(0.4, 0.9, 50),
    )  # fmt: skip
    language = made(seed=3, bimodality=[0.7], test_accuracy=[0.5])
    language["settings"]["loss"] = "answer"
    rows = two_modes.two_modes([run, plain, ill, language]).splitlines()
    # Seven tenths at a mean of 9/49 are more than four tenths at one of 1.
    (row,) = rows[2:]
    assert row.strip("| ").split(" | ") == [
        "convnext, worse, 2", "60 / 54 / 100", "-0.20", "1.00", "20.4 (40.8)",
        "44.9<br>1 run", "0.0 (0.0)",
    ]  # fmt: skip


def test_figures_of_unhealthy_epochs_and_of_random_labels(tmp_path):
    columns = {"test_accuracy": [0.5], "label_probability": [0.4]}
    bands = {"right_low": [-1.0], "right_middle": [0.0], "right_high": [1.0]}
    unhealthy = made(study="small", denominator=[-0.1, 0.2], **columns, **bands)
    learnt = made(study="random", **columns)
    for name, run in (("health", unhealthy), ("random-labels", learnt)):
        assert not figures.draw(name, [made(**columns)], "", tmp_path / "none.png")
        assert figures.draw(name, [run], "", tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 300


def kept(labels, accuracies, *, network="resnet", seed=1, percent=100, mean=0.6, **columns):
    """A run of `averages.py`, whose mean by separation^10 has this accuracy."""
    fading = {
        f"ema_{x}_{t}_accuracy": accuracies for x in (99, 998) for t in ("test", "validation")
    }
    run = made(test_accuracy=accuracies, epochs=len(accuracies), **(fading | columns))
    run["settings"] |= {"study": f"keep-{network}", "network": network, "averages": True}
    run["settings"] |= {"labels": labels, "seed": seed, "percent": percent}
    means = {"separation^10": mean, "plain, warm-up 0.1": 0.5}
    return run | {"kept": {"test_accuracy": means}}


def test_what_is_kept_is_compared_with_the_best_epoch_on_runs_of_no_choice():
    falling = [0.3, 0.58, 0.55, 0.5]
    results = [
        kept("worse", falling, mean=0.6),
        kept("random1", falling, mean=0.57),
        # A twin on nine tenths, whose validation is best in the epoch before the last.
        kept(
            "worse",
            [0.2, 0.3, 0.56, 0.4],
            percent=90,
            ema_998_validation_accuracy=[0, 0.1, 0.5, 0.2],
        ),
        kept("asymmetric-40", falling, network="mlp", mean=0.4),
        # What was chosen on is not reported, nor are runs without means.
        kept("worse", falling, seed=0, mean=0.1),
        made(test_accuracy=falling, epochs=4),
    ]
    tables = tables_of(keep.keep(results))
    large, small = tables["Large, images"], tables["Small"]
    assert len(tables) == 2
    assert large["what is kept"] == ["human, 2", "all, 2"]
    assert small["what is kept"] == ["asymmetric, 1", "all, 1"]
    assert large["**average**"] == ["+0.5 (-1.0)"] * 2
    assert large["last epoch"] == ["-8.0 (-8.0)"] * 2
    assert large[keep.HELD_OUT] == ["-2.0 (-2.0)"] * 2
    assert large[keep.TWINS] == ["1", "1"]
    assert small["**average**"] == ["-18.0 (-18.0)"] * 2
    assert small[keep.HELD_OUT] == [MISSING] * 2
    claimed = rows_of(keep.claims(results))
    assert claimed["what is kept"] == ["large, images, 2 runs", "small, 1 run"]
    assert claimed["**average**"] == ["+0.50 (-1.00)", "-18.00 (-18.00)"]
    assert claimed[keep.HELD_OUT] == ["-2.00 (-2.00)", MISSING]
    assert claimed[keep.TWINS] == ["1", "0"]
    # Of the run that has a twin: 60 % where the best epoch has 58.
    assert claimed["**average**, in the same runs"] == ["+2.00 (+2.00)", MISSING]
    chosen, reported = tables_of(keep.candidates(results)).values()
    assert chosen["mean of the epochs by"] == ["large, images, 1 run"]
    assert chosen["separation^10"] == ["-48.00 (-48.00)"]
    assert reported["mean of the epochs by"] == ["large, images, 2 runs", "asymmetric, 1 run"]
    assert reported["separation^10"] == ["+0.50 (-1.00)", "-18.00 (-18.00)"]
    assert keep.keep([]) == keep.candidates([]) == keep.claims([]) == ""


def test_the_table_of_missing_runs_names_each_once(monkeypatch):
    small = [
        Settings(study="made", labels=labels, percent=percent, seed=seed, variant=variant)
        for percent, seed in ((100, 0), (100, 1), (90, 0))
        for labels in ("worse", "aggre")
        for variant in ("-a", "-b")
    ]
    monkeypatch.setattr(missing, "studies", lambda: ["made"])
    monkeypatch.setattr(missing, "plan", {"made": small}.get)
    done = [{"settings": asdict(small[0]), "seconds": 90.0, "device": "cpu"}]
    row = missing.missing(done).splitlines()[2]
    assert row == (
        "| `made` | 11 of 12 | 100 %, seed 0: worse, aggre (2); "
        "100 %, seed 1 and 90 %, seed 0: worse (2), aggre (2) | 2 min, CPU |"
    )
    every = [{**done[0], "settings": asdict(run)} for run in small]
    assert missing.missing(every) == ""


def test_published_numbers_are_beside_what_is_kept():
    run = made(study="published", epochs=3, test_accuracy=[0.5, 0.7, 0.6], mean=[0.1, 0.2, 0.3])
    run["settings"] |= {"labels": "symmetric-40", "averages": True}
    run["epochs"]["ema_998_test_accuracy"] = [0.5, 0.6, 0.65]
    run["kept"] = {"test_accuracy": {"separation^10": 0.72}}
    head, _, *rows = published.published([run]).splitlines()
    assert head == "| what is kept | symmetric-40, 1 run |"
    cells = dict(row.strip("| ").split(" | ") for row in rows)
    assert cells["**average**, `separation^10`"] == "72.00"
    assert cells["EMA 0.998, best by test"] == "65.00"
    assert cells["best epoch, by test"] == "70.00"
    assert cells["last epoch"] == "60.00"
    assert cells["*LabelWave, its paper*"] == "80.15"
    assert cells["*Co-teaching, its authors*"] == MISSING
