"""Neighbours among the latents: the search, the votes, and a run in miniature."""

import math
import time

import numpy as np
import pytest
import torch
from shades import write_shades

from experiments import data, neighbours, plan, store
from experiments.__main__ import main
from experiments.engine import Engine
from experiments.neighbours import Form
from experiments.tables import neighbours as table
from experiments.training import Run
from gwa_core import label_quality
from gwa_offline import RunFolder

N, CLASSES = 120, 4
CONFIG = """
priority = 9
network = "tiny"
labels = ["symmetric-40", "label"]
batch_size = 40
steps = 12
learning_rate = 0.01
neighbours = true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_shades(path / "cifar10n", {"train": N, "t10k": 24}, classes=CLASSES, step=50)
    (path / "near.toml").write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    study = folder / "near.toml"
    main(f"run {study} --data {folder} --device cpu --out {out} --results {out / 'r'}".split())
    return out / "r"


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_the_nearest_are_those_of_all_distances(metric, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    x = np.random.default_rng(0).normal(size=(40, 5))
    indices, distances = neighbours.nearest(torch.from_numpy(x), 6, metric)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    every = np.linalg.norm(x[:, None] - x, axis=2)
    np.fill_diagonal(every, np.inf)
    np.testing.assert_array_equal(indices, every.argsort(1)[:, :6])
    np.testing.assert_allclose(distances, np.sort(every, 1)[:, :6], rtol=1e-9)


def test_an_opinion_counts_votes_by_their_weight():
    labels, votes = torch.tensor([0, 2]), torch.tensor([[0, 1, 1], [0, 1, 1]])
    weights = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]])
    found = neighbours.opinion(labels, votes, weights, 3)
    assert found["share"].tolist() == [0.5, 0.0]
    assert found["margin"].tolist() == [0.0, -0.75]


def test_combinations_are_of_ranks_and_of_standard_deviations():
    said = torch.tensor([0.2, -0.4, 0.2, 0.9], dtype=torch.float64)
    quality = torch.tensor([0.5, 0.625, 0.375, math.nan])
    found = neighbours.combined(said, quality)
    # Ties have the mean of their ranks, and what is unknown the rank of the mean.
    first, second = np.asarray([2.5, 1, 2.5, 4]) / 4, np.asarray([2.5, 4, 1, 2.5]) / 4
    np.testing.assert_allclose(found["ranks"], first + second)
    np.testing.assert_allclose(found["product"], first * second)
    np.testing.assert_allclose(found["smaller"], np.minimum(first, second))
    np.testing.assert_allclose(found["against"], second + np.asarray([0, -0.4, 0, 0]))
    np.testing.assert_allclose(found["for"], second + np.asarray([0.2, 0, 0.2, 0.9]))
    a, b = said.numpy(), np.asarray([0.5, 0.625, 0.375, 0.5])
    wanted = sum((x - x.mean()) / x.std() for x in (a, b))
    np.testing.assert_allclose(found["standardised"], wanted)
    values = torch.from_numpy(np.random.default_rng(0).normal(size=100_000))
    assert float(neighbours._modes(values)) == pytest.approx(1 / 3, abs=0.01)
    assert float(neighbours._modes((values > 1).double())) == pytest.approx(1)
    m, n = (float(neighbours._modes(x)) for x in (said, quality))
    np.testing.assert_allclose(found["by modes"], m * first + n * second)
    np.testing.assert_allclose(found["the rest"], (1 - n) * first + n * second)
    assert found.keys() == set(neighbours.COMBINATIONS)
    from scipy.stats import spearmanr

    assert neighbours._correlation(said, quality) == pytest.approx(spearmanr(first, second)[0])


def test_numbers_of_neighbours_come_from_the_data_and_are_fewer_than_it():
    wanted = {"10": 10, "100": 100, "300": 300, "class root": 71, "root": 224}
    assert neighbours.counts(50_000, 10) == wanted
    assert max(neighbours.counts(50, 10).values()) == 49


def test_neighbours_who_are_right_find_an_error_that_quality_does_not(folder):
    images = data.load(folder / "cifar10n")
    engine = Engine("tiny", CLASSES, "cpu")
    kept = neighbours.Neighbours(engine, 3)
    wrong = np.zeros(N, bool)
    wrong[:12] = True
    true = images.labels["label"]
    labels = torch.from_numpy(np.where(wrong, (true + 1) % CLASSES, true))
    latents = torch.nn.functional.one_hot(torch.from_numpy(true), CLASSES).float()
    latents += 0.01 * torch.from_numpy(np.random.default_rng(0).normal(size=latents.shape))
    said = kept._opinions(
        latents, labels, torch.rand(N, generator=torch.Generator().manual_seed(0))
    )
    form = Form("distance", "10", "trusted in class", "margin", "alone")
    assert said[form[:-1]][wrong].max() < 0 < said[form[:-1]][~wrong].min()


def test_a_run_judges_every_form_and_is_short(folder, results):
    noisy, clean = (
        next(r for r in store.read(results) if r["settings"]["labels"] == labels)
        for labels in ("symmetric-40", "label")
    )
    assert clean["neighbours"] == {}
    assert noisy["detection"] == {}
    found = noisy["neighbours"]
    assert found.keys() == {*neighbours.BASELINES, "modes", "correlation", *neighbours.LATENTS}
    assert found["correlation"].keys() == set(neighbours.LATENTS)
    assert all(-1000 <= x <= 1000 for x in found["correlation"].values())
    for name in neighbours.LATENTS:
        assert len(found[name]) == len(neighbours.forms())
        assert all(0 < x <= 1000 for x in found[name])
    assert max(map(len, (results / "near.jsonl").read_text().splitlines())) < 2500
    scores = np.stack(
        [RunFolder.open(results.parent / store.name_of(noisy)).scores(t) for t in range(4)]
    )
    images = data.load(folder / "cifar10n")
    labels = data.with_noise(images, "symmetric-40", 0)
    wrong = labels != images.labels["label"]
    from sklearn.metrics import average_precision_score

    wanted = average_precision_score(wrong, -label_quality(scores))
    assert found["label_quality"] == pytest.approx(1000 * wanted, abs=1)


def test_the_table_has_the_mean_and_the_worst_run_of_each_kind_of_error(results):
    noisy = next(r for r in store.read(results) if r["settings"]["labels"] == "symmetric-40")
    clean = next(r for r in store.read(results) if r["settings"]["labels"] == "label")
    runs = []
    for labels, gain, network in (
        ("asymmetric-20", 100, "mlp"),
        ("asymmetric-40", -50, "mlp"),
        ("worse", 0, "vit"),
    ):
        found = {"label_quality": 500, "margin": 510, "el2n": 490}
        found |= {
            name: [500 + gain * (name == "average")] * len(neighbours.forms())
            for name in neighbours.LATENTS
        }
        found["correlation"] = {"last": 1, "average": 2}
        settings = noisy["settings"] | {"labels": labels, "network": network, "percent": 40}
        runs.append(noisy | {"settings": settings, "neighbours": found})
    chosen, made = table.neighbours([*runs, clean]).split("**Large networks**")
    head = "| ranking by | with quality | latents | asymmetric, 2 runs | symmetric, 0 runs |"
    assert head in chosen
    assert "human, 1 run |" in made
    for latents in ("averaged", "closer"):
        assert f"| share, trusted | ranks | {latents} | +0.025 (-0.050) | – | – |" in chosen
    assert "| share, trusted | ranks | last epoch | +0.000 (+0.000) | – | – |" in chosen
    assert "| `margin` |  |  | – | – | +0.010 (+0.010) |" in made
    assert table.neighbours([clean]) == ""


def test_a_run_goes_on_with_the_weights_that_it_has_kept(folder, results, tmp_path):
    settings = plan.plan(str(folder / "near.toml"), labels="symmetric-40")[0]
    images, engine = data.load(folder / "cifar10n"), Engine("tiny", CLASSES, "cpu")
    run = Run(settings, images, tmp_path, engine)
    for _ in range(2):
        run._epoch()
        run._end_epoch()
    assert run.train(deadline=time.monotonic() - 1) is None
    found = Run(settings, images, tmp_path, engine).train()
    whole = next(r for r in store.read(results) if r["settings"]["labels"] == "symmetric-40")
    for name in neighbours.LATENTS:
        assert found["neighbours"][name] == pytest.approx(whole["neighbours"][name], abs=5)


def test_studies_are_of_networks_that_there_are():
    for study in plan.studies():
        if study.startswith("neighbours"):
            assert all(s.neighbours for s in plan.plan(study))
