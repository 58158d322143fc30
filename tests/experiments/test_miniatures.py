"""Estimator, layers, widths and folds in miniature, through the command line."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from shades import write_shades

from experiments import data, figures, folds, networks, plan, store
from experiments.__main__ import main
from experiments.engine import Engine
from experiments.tables import estimator, label_errors, layers, widths
from experiments.training import Run
from gwa_core import JLSketch
from gwa_offline import RunFolder
from gwa_torch import head_scores

N, TESTS, K = 120, 24, 8
TINY = {"depths": [1, 1], "hidden_sizes": [8, 16], "patch_size": 4, "num_stages": 2}
COMMON = 'priority = 9\nnetwork = "tiny"\nlabels = "symmetric-40"\nbatch_size = 40\nsteps = 6\n'
# Where no weight moves and no image is changed, online and offline are one, and known beforehand.
STILL = 'learning_rate = 1e-12\naugmentation = "none"\n'
STUDIES = {
    "estimator": 'offline = true\noptimizer = "sgd"\nlearning_rate = [0.1, 1e-5]\naugmentation = "none"\n',
    "layers": "offline = true\nlayers = true\nlearning_rate = 0.01\n",
    "widths": STILL + 'network = ["tiny-16", "tiny-16-sketch"]\nsketch = 8\n',
    "folds": STILL + "fold = [1, 2, 3, 4, 5]\n",
}


@pytest.fixture(scope="module", autouse=True)
def _networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "tiny-16", (networks._convnext, TINY))
        sketched = TINY | {"sketch": K}
        patch.setitem(networks.NETWORKS, "tiny-16-sketch", (networks._convnext, sketched))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with IDX files in four shades, and a configuration a study."""
    path = tmp_path_factory.mktemp("data")
    write_shades(path / "cifar10n", {"train": N, "t10k": TESTS}, classes=4, step=50)
    for name, lines in STUDIES.items():
        common = COMMON.replace('network = "tiny"\n', "") if "network" in lines else COMMON
        (path / f"{name}.toml").write_text(common + lines)
    return path


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    """The results of all studies."""
    out = tmp_path_factory.mktemp("out")
    studies = " ".join(str(folder / f"{name}.toml") for name in STUDIES)
    main(f"run {studies} --data {folder} --device cpu --out {out} --results {out / 'r'}".split())
    return out / "r"


@pytest.fixture(scope="module")
def beginning(folder):
    """Labels, and what each network makes of the training images with the weights of its seed."""
    images = data.load(folder / "cifar10n")
    labels = torch.from_numpy(data.with_noise(images, "symmetric-40", 0))

    def of(network):
        engine = Engine(network, 4, "cpu")
        engine.begin(0)
        return engine, *engine.evaluate(torch.from_numpy(images.train))

    return images, labels, of


def named(results, name):
    return next(run for run in store.read(results) if store.name_of(run) == name)


def measured(results, name):
    """Return all columns of a run, as its run folder has them."""
    epochs = RunFolder.open(results.parent / name).epochs()
    rows = [summary._asdict() | metrics for summary, metrics in epochs]
    return {key: [row[key] for row in rows] for key in rows[0]}


def test_runs_that_differ_in_another_field_have_names_of_their_own():
    rates = ["0.1", "0.01", "0.001"]
    names = [settings.name for settings in plan.plan("estimator")]
    assert names == [f"estimator-label-100-s0-learning_rate-{rate}" for rate in rates]
    assert [s.learning_rate for s in plan.plan("estimator", learning_rate="0.01")] == [0.01]
    # The folds of one set of labels come one after another.
    assert [(s.labels, s.fold) for s in plan.plan("folds")][:5] == [
        ("random1", k) for k in range(1, 6)
    ]
    assert {s.name for s in plan.plan("layers")} == {"layers-label-100-s0", "layers-random1-100-s0"}
    for settings in plan.plan("widths"):
        assert settings.network in networks.NETWORKS


def test_online_and_offline_differ_as_far_as_the_weights_move(results):
    still = measured(results, "estimator-symmetric-40-100-s0-learning_rate-1e-05")
    moved = named(results, "estimator-symmetric-40-100-s0-learning_rate-0.1")["epochs"]
    assert still["gwa"] == pytest.approx(still["offline_gwa"], rel=1e-2)
    # All images are scored after the epoch.
    assert still["after_mean"] == still["offline_mean"]
    assert still["after_bimodality"] == pytest.approx(still["bimodality"], rel=1e-2)
    assert still["after_loss"] == pytest.approx(still["sample_loss"], rel=1e-2)
    assert np.abs(still["glass_delta"]).max() < 2e-3 < np.abs(moved["glass_delta"]).max() / 10
    table = estimator.estimator(store.read(results))
    row = next(line for line in table.splitlines() if line.startswith("| 0.1 | "))
    deltas = np.abs(moved["glass_delta"])
    assert f"| {deltas.mean():.3f} | {deltas.max():.3f} | 0.04 / 0.12 |" in row


def test_the_part_that_is_the_head_has_the_scores_of_the_head(results):
    columns = named(results, "layers-symmetric-40-100-s0")["epochs"]
    assert columns["head_mean"] == pytest.approx(columns["offline_mean"], rel=1e-3)
    assert columns["head_gwa"] == pytest.approx(columns["offline_gwa"], rel=1e-3)
    assert columns["head_with_head"] == pytest.approx([1] * 2)
    for part in ("stage2", "full"):
        assert np.isfinite(
            [columns[f"{part}_{x}"] for x in ("mean", "deviation", "kurtosis")]
        ).all()
        assert max(columns[f"{part}_with_head"]) < 0.999
    rows = layers.layers(store.read(results)).splitlines()
    assert [row.split(" | ")[0] for row in rows if row.startswith("| ")][2:] == [
        "| head", "| stages 2 to 4 and head", "| all",
    ]  # fmt: skip


def test_a_sketch_that_only_measures_and_one_that_is_trained_behind(results, beginning):
    _, labels, of = beginning
    engine, latents, logits = of("tiny-16")
    scores = head_scores(
        latents=latents, logits=logits, targets=labels, weight=engine.model.head.weight,
        bias=engine.model.head.bias, sketch=JLSketch(16, K),
    )  # fmt: skip
    full = named(results, "widths-symmetric-40-100-s0-network-tiny-16")["epochs"]
    assert full["sketched_mean"] == pytest.approx([scores.mean().item()] * 2, rel=1e-3)
    assert full["sketched_mean"] != pytest.approx(full["mean"], rel=1e-2)
    frozen = named(results, "widths-symmetric-40-100-s0-network-tiny-16-sketch")["epochs"]
    assert "sketched_mean" not in frozen
    assert of("tiny-16-sketch")[0].model.head.in_features == K
    head, _, *rows = widths.widths(store.read(results)).splitlines()
    assert head == "| width | 16 |"
    cells = [f"{max(x):.3f}" for x in (full["mean"], full["sketched_mean"], frozen["mean"])]
    assert [row.strip("| ").split(" | ")[1] for row in rows[:3]] == cells


def test_products_end_in_the_frozen_sketch():
    network = networks._convnext(3, sketch=5, **TINY).double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    fast = networks.ConvNextByProducts(network.body, 16, network.sketch)
    assert network.latents(images).shape == (3, 5)
    torch.testing.assert_close(fast(images), network.latents(images))
    assert all(parameter.shape != (5, 16) for parameter in network.parameters())


def test_a_sketch_that_measures_goes_on_with_its_run(folder, results, beginning, tmp_path):
    settings = plan.plan(str(folder / "widths.toml"), network="tiny-16")[0]
    engine = Engine("tiny-16", 4, "cpu")
    run = Run(settings, beginning[0], tmp_path, engine)
    run._epoch()
    run._end_epoch()
    assert run.train(deadline=time.monotonic() - 1) is None
    found = Run(settings, beginning[0], tmp_path, engine).train()
    whole = named(results, settings.name)
    for name in ("mean", "sketched_mean", "sketched_gwa"):
        assert found["epochs"][name] == whole["epochs"][name]
    loss = measured(results, settings.name)["test_loss"]
    assert found["epochs"]["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_five_folds_score_every_label_once_with_a_network_that_has_not_seen_it(results, beginning):
    images, labels, of = beginning
    logits = of("tiny")[2].double()
    everything = logits.softmax(1)[torch.arange(N), labels]
    parts = [r["held_out"]["self_confidence"] for r in store.read(results) if "held_out" in r]
    values, wrong = zip(*map(folds.unpacked, parts), strict=True)
    assert [len(x) for x in values] == [N // 5] * 5
    found = np.concatenate(values)
    np.testing.assert_allclose(np.sort(found), everything.sort()[0].numpy(), atol=1e-3)
    truth = labels.numpy() != images.labels["label"]
    assert found[np.concatenate(wrong)].mean() == pytest.approx(
        everything.numpy()[truth].mean(), abs=1e-3
    )
    for fold in (1, 5):
        rows, held = folds.split(23, percent=100, fold=fold, seed=0)
        assert sorted([*rows, *held]) == list(range(23))
    with pytest.raises(ValueError, match=r"`fold` must be in 1\.\.5"):
        folds.split(23, percent=90, fold=1, seed=0)


def test_scores_are_those_of_cleanlab():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(400, 3)) * 2, rng.integers(0, 3, 400)
    wrong = rng.random(400) < 0.3
    logits[np.arange(400), labels] += np.where(wrong, -2.0, 2.0)
    scores = folds.scores(logits, labels)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = p[np.arange(400), labels]
    p[np.arange(400), labels] = 0
    expected = {"self_confidence": own, "normalized_margin": (own - p.max(1) + 1) / 2}
    p[np.arange(400), labels] = own
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        pass
    else:
        expected = {name: get_label_quality_scores(labels, p, method=name) for name in folds.SCORES}
    from sklearn.metrics import average_precision_score, roc_auc_score

    halves = [
        folds.packed({name: x[k::2] for name, x in scores.items()}, wrong[k::2]) for k in (0, 1)
    ]
    for name in folds.SCORES:
        np.testing.assert_allclose(scores[name], expected[name], 1e-3, 1e-6)
        # Packed are the values with their labels, and nothing else.
        values, of = folds.unpacked(halves[0][name])
        order = np.lexsort([wrong[::2], scores[name][::2]])
        np.testing.assert_array_equal(values, scores[name][::2][order])
        np.testing.assert_array_equal(of, wrong[::2][order])
        area, precision = folds.judged(halves)[name]
        assert area == pytest.approx(roc_auc_score(wrong, -expected[name]), abs=1e-3)
        assert precision == pytest.approx(average_precision_score(wrong, -expected[name]), abs=1e-3)


def test_cleanlab_has_rows_in_the_table_of_label_errors(results):
    found = store.read(results)
    for result in found:
        result["settings"]["labels"] = "worse"
        if result["settings"]["study"] == "layers":
            result["settings"]["study"] = "coarse"
    lines = [x for x in label_errors.label_errors(found).splitlines() if x.startswith("| cleanlab")]
    assert [line.split("`")[1] for line in lines] == ["self_confidence", *folds.SCORES]
    assert all("AUROC 0." in line.split(" | ")[3] for line in lines)
    # Four of five folds are not a cross-validation.
    part = [r for r in found if r["settings"]["fold"] != 3]
    lines = label_errors.label_errors(part).splitlines()
    assert sum(x.startswith("| cleanlab") for x in lines) == 1


def test_figures(results, tmp_path):
    others = [r for r in store.read(results) if r["settings"]["study"] == "folds"]
    for name in ("estimator", "layers", "widths"):
        main(f"figure {name} --results {results} --png {tmp_path / name}.png".split())
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 300
        assert not figures.draw(name, others, name, tmp_path / "none.png")
