"""The experiments in miniature: loaders on made data, two epochs, a table and a figure."""

import gzip
import io
import pickle
import struct
import time

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import (
    augmentation,
    averages,
    criteria,
    data,
    figures,
    networks,
    plan,
    store,
)
from experiments.__main__ import main
from experiments.engine import Engine
from experiments.networks import build
from experiments.tables import cells, correlations, label_errors, stopping
from experiments.training import Run
from gwa_core import label_quality
from gwa_offline import RunFolder

pa = pytest.importorskip("pyarrow")
N, TESTS, CLASSES = 512, 96, 4
CONFIG = """
priority = 9
network = "tiny"
labels = ["label", "worse"]
percent = [100, 90]
steps = 16
batch_size = 64
learning_rate = 0.01
offline = true
"""


def pictures(count, seed):
    """Blocks of a colour that says the class, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    colours = 255 * np.eye(CLASSES, 3)[labels]
    images = colours[:, None, None] * 0.6 + rng.normal(60, 30, (count, 32, 32, 3))
    return images.clip(0, 255).astype(np.uint8), labels


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module", autouse=True)
def _curves():
    """The miniature is a study whose curves are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "WITH_CURVES", ("mini",))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a Parquet file of the layout of CIFAR-10-N, and a configuration."""
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("data")
    images, labels = zip(pictures(N, 0), pictures(TESTS, 1), strict=True)
    worse = labels[0].copy()
    worse[:100] = (worse[:100] + 1) % CLASSES
    table = pa.table(
        {
            "split": ["train"] * N + ["test"] * TESTS,
            "image": [png(image) for part in images for image in part],
            "label": np.concatenate(labels).astype(np.int8),
            "worse": np.concatenate([worse, -np.ones(TESTS)]).astype(np.int8),
        }
    )
    table = table.replace_schema_metadata({"class_names": "red, green, blue, black"})
    pq.write_table(table, path / "cifar10n.parquet")
    (path / "mini.toml").write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The folder of the results of all four runs."""
    out = tmp_path_factory.mktemp("out")
    main(
        f"run {folder / 'mini.toml'} --data {folder} --device cpu --out {out / 'runs'} "
        f"--results {out / 'results'}".split()
    )
    return out


def named(results, name):
    return next(run for run in store.read(results) if store.name_of(run) == name)


def test_a_study_runs_whole_and_leaves_a_run_folder_and_a_result(folder, finished, capsys):
    main(
        f"status {folder / 'mini.toml'} --out {finished / 'runs'} --results {finished / 'results'}".split()
    )
    assert capsys.readouterr().out.count("done") == 4
    results = store.read(finished / "results")
    assert {r["settings"]["percent"] for r in results} == {100, 90}
    for result in results:
        columns = result["epochs"]
        assert {len(x) for x in columns.values()} == {2}
        assert ("validation_accuracy" in columns) == (result["settings"]["percent"] == 90)
        for name in ("gwa", "test_accuracy", "gradient_disparity", "mir", "offline_gwa"):
            assert np.isfinite(store.column(result, name)).all()
        assert store.column(result, "count").tolist() == [round(N * columns["count"][0] / N)] * 2
    wrong = next(r for r in results if r["settings"]["labels"] == "worse")
    assert set(wrong["detection"]) > {"alignment", "margin", "forgetting_events", *cells.RANKINGS}
    # The folder is one that `gwa analyse` reads, with every signal as a column.
    run = RunFolder.open(finished / "runs" / "mini-worse-100-s0")
    summary, metrics = run.epochs()[-1]
    assert summary.epoch == 1
    assert {"test_accuracy", "margin", "pairwise_alignment"} <= metrics.keys()


def test_detection_is_that_of_scikit_learn(finished):
    from sklearn.metrics import average_precision_score, roc_auc_score

    result = named(finished / "results", "mini-worse-100-s0")
    with np.load(finished / "runs" / "mini-worse-100-s0" / "samples.npz") as file:
        wrong, scores = file["wrong"], file["alignment"].astype(float)
    found = result["detection"]["alignment"]
    # The file has half precision.
    for epoch in range(2):
        assert found["auroc"][epoch] == pytest.approx(
            roc_auc_score(wrong, -scores[epoch]), abs=2e-3
        )
    mean = average_precision_score(wrong, -scores.mean(0))
    assert found["mean"] == found["by_mean"][-1] == pytest.approx(mean, abs=5e-3)
    assert (found["last"], found["last_auroc"]) == (found["by_epoch"][-1], found["auroc"][-1])
    assert found["best_mean"] == max(found["by_mean"])
    quality = average_precision_score(wrong, -label_quality(scores))
    found = result["detection"]["label_quality"]
    assert found["mean"] == pytest.approx(quality, abs=5e-3)


def test_a_run_that_a_budget_ended_goes_on_as_if_it_had_not(folder, finished, tmp_path):
    words = (
        f"run {folder / 'mini.toml'} --data {folder} --device cpu --out {tmp_path / 'runs'} "
        f"--results {tmp_path / 'results'} --only labels=worse percent=90"
    ).split()
    first = plan.plan(str(folder / "mini.toml"), labels="worse", percent=90)[0]
    images = data.load(folder / "cifar10n.parquet")
    run = Run(first, images, tmp_path / "runs", Engine("tiny", CLASSES, "cpu"))
    run._epoch()
    run._end_epoch()
    assert run.train(deadline=time.monotonic() - 1) is None
    assert run.checkpoint.exists()
    main(words)
    resumed, whole = (named(path / "results", "mini-worse-90-s0") for path in (tmp_path, finished))
    assert resumed["epochs"] == whole["epochs"]
    assert resumed["detection"] == whole["detection"]
    one, other = (
        RunFolder.open(path / "runs" / "mini-worse-90-s0").epochs() for path in (tmp_path, finished)
    )
    assert one == other
    assert not run.checkpoint.exists()


def test_under_mixup_scores_are_of_the_mixture_and_signals_of_the_label(folder, tmp_path):
    lines = CONFIG.replace('["label", "worse"]', '"worse"').replace("[100, 90]", "100")
    (tmp_path / "mixed.toml").write_text(lines + "mixup = 0.5\nweight_decay = 0.1\n")
    (tmp_path / "plain.toml").write_text(lines)
    end = f"--data {folder} --device cpu --out {tmp_path / 'runs'} --results {tmp_path / 'r'}"
    [settings] = plan.plan(str(tmp_path / "mixed.toml"))
    images = data.load(folder / "cifar10n.parquet")
    run = Run(settings, images, tmp_path / "runs", Engine("tiny", CLASSES, "cpu"))
    run._epoch()
    run._end_epoch()
    [summary], both = run.monitor.history, run.others["labels"]
    own = both.scores.numpy()
    # A mixture is no single class, so that what is trained on pulls less against the head.
    assert summary.mean != pytest.approx(own.mean(), rel=1e-3)
    loss = run.columns[0]["sample_loss"]
    assert loss == pytest.approx(both.signals.values["sample_loss"].mean(), rel=1e-5)
    assert run.train(deadline=time.monotonic() - 1) is None
    main(f"run {tmp_path / 'mixed.toml'} {tmp_path / 'plain.toml'} {end}".split())
    stopped, plain = (named(tmp_path / "r", f"{name}-worse-100-s0") for name in ("mixed", "plain"))
    assert stopped["epochs"]["mean"][0] == pytest.approx(summary.mean, rel=1e-5)
    assert stopped["epochs"].keys() == plain["epochs"].keys()
    assert stopped["detection"].keys() == plain["detection"].keys()
    for name in ("mean", "prediction_changes", "offline_gwa"):
        assert np.isfinite(store.column(stopped, name)[1:]).all()


def test_tables_and_figures_are_drawn_from_what_is_there(finished, tmp_path):
    results = store.read(finished / "results")
    for result in results:
        result["settings"]["study"] = "convnext"
    for make in (stopping.stopping, correlations.correlations, label_errors.label_errors):
        table = make(results)
        assert "worse, 40 %" in table, make
        assert table.count("\n|") > 5
    lines = stopping.stopping(results).splitlines()
    row = next(line for line in lines if line.startswith("| validation"))
    shown = [cell.strip() for cell in row.strip("|").split("|")]
    # clean, aggre and random1 missing, worse: the runs that there are
    assert [cell == cells.MISSING for cell in shown[1:5]] == [False, True, True, False]
    for name in figures.OF_STUDY:
        path = tmp_path / f"{name}.png"
        assert figures.draw(name, results, "convnext", path)
        with Image.open(path) as image:
            assert image.width > 300
        assert not figures.draw(name, results, "vit", path)


def test_an_epoch_that_a_criterion_keeps_is_judged_by_its_regret():
    columns = {
        "test_accuracy": [0.5, 0.8, 0.7],
        "validation_accuracy": [0.1, 0.2, 0.3],
        "epoch": [0, 1, 2],
    }
    result = {"epochs": columns}
    assert criteria.best_epoch(result, criteria.VALIDATION) == 2
    assert criteria.best_epoch(result, criteria.FEW) == 2
    assert [criteria.share_of(x) for x in (criteria.FEW, criteria.VALIDATION, "LabelWave")] == [
        99, 90, 100,
    ]  # fmt: skip
    assert criteria.best_epoch(result, "last epoch") == 2
    assert criteria.regret(result, [2, 1, None])[:2] == pytest.approx([10.0, 0.0])


def test_a_wrong_name_lists_the_right_ones(tmp_path):
    for words, known in (
        ("table nope", "rules"),
        (f"figure nope --png {tmp_path / 'a.png'}", "models"),
    ):
        with pytest.raises(SystemExit, match=f"must be one of .*{known}.*, got 'nope'"):
            main(words.split())


def test_the_original_files_of_cifar_and_its_labels(tmp_path):
    images, labels = pictures(50, 0)
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    flat = images.transpose(0, 3, 1, 2).reshape(50, -1)

    def write(name, content):
        (batches / name).write_bytes(pickle.dumps(content))

    for k in range(5):
        rows = slice(10 * k, 10 * k + 10)
        write(f"data_batch_{k + 1}", {b"data": flat[rows], b"labels": labels[rows].tolist()})
    write("test_batch", {b"data": flat[:7], b"labels": labels[:7].tolist()})
    write("batches.meta", {b"label_names": [b"a", b"b", b"c", b"d"]})
    found = data.load(tmp_path)
    assert set(found.labels) == {"label"}
    human = {theirs: labels if ours == "label" else (labels + 1) % CLASSES
             for ours, theirs in data.HUMAN_LABELS.items()}  # fmt: skip
    torch.save(human, tmp_path / "CIFAR-10_human.pt")
    found = data.load(tmp_path)
    np.testing.assert_array_equal(found.train, images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found.labels["worse"], (labels + 1) % CLASSES)
    assert (found.class_names, len(found.test)) == (("a", "b", "c", "d"), 7)
    torch.save(human | {"clean_label": labels[::-1].copy()}, tmp_path / "CIFAR-10_human.pt")
    with pytest.raises(ValueError, match="in the order of the images"):
        data.load(tmp_path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()

    class Evil:
        def __reduce__(self):
            return print, ("run",)

    (batches / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(pickle.UnpicklingError, match="print is not of a CIFAR-10 file"):
        data.load(tmp_path)


def test_parquet_and_packed_files_are_the_same(folder, tmp_path):
    main(["pack", str(folder / "cifar10n.parquet"), str(tmp_path / "cifar10n.npz")])
    one, other = data.load(folder / "cifar10n.parquet"), data.load(tmp_path / "cifar10n.npz")
    np.testing.assert_array_equal(one.train, other.train)
    np.testing.assert_array_equal(one.test_labels, other.test_labels)
    np.testing.assert_array_equal(one.labels["worse"], other.labels["worse"])
    assert one.class_names == other.class_names == ("red", "green", "blue", "black")
    np.testing.assert_array_equal(one.test, pictures(TESTS, 1)[0].transpose(0, 3, 1, 2))


def test_idx_files_and_folders_of_images(tmp_path):
    rng = np.random.default_rng(0)
    grey, labels = rng.integers(0, 256, (6, 28, 28)), np.asarray([0, 1, 2, 0, 1, 2])
    for part in ("train", "t10k"):
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, 6, 28, 28)
        raw = head + grey.astype(np.uint8).tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(raw))
        raw = struct.pack(">BBBBI", 0, 0, 8, 1, 6) + labels.astype(np.uint8).tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(raw)
    found = data.load(tmp_path)
    assert found.train.shape == (6, 3, 32, 32)
    np.testing.assert_array_equal(found.train[:, 1, 2:-2, 2:-2], grey)
    np.testing.assert_array_equal(found.test_labels, labels)

    images = pictures(4, 2)[0]
    for part in ("train", "test"):
        for k, image in enumerate(images):
            place = tmp_path / "tree" / part / ("cat" if k < 3 else "dog")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{k}.png")
    found = data.load(tmp_path / "tree")
    np.testing.assert_array_equal(found.train, images.transpose(0, 3, 1, 2))
    assert found.labels["label"].tolist() == [0, 0, 0, 1]
    assert found.class_names == ("cat", "dog")
    with pytest.raises(FileNotFoundError, match=r"`--data` must be a \.parquet"):
        data.load(tmp_path / "nowhere")


def test_corrupted_test_sets(tmp_path):
    images, labels = pictures(10, 0)
    np.save(tmp_path / "labels.npy", labels[:5])
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "snow.npy", images[:5])
    np.save(tmp_path / "other.npy", images[5:])
    sets = data.corrupted(tmp_path)
    assert list(sets) == ["weather", "other"]
    assert len(sets["weather"][0]) == len(sets["weather"][1]) == 15
    found, given = (x[:10] for x in sets["weather"])
    np.testing.assert_array_equal(found, images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(given, np.concatenate([labels[:5], labels[:5]]))


def test_noise_that_is_made(folder):
    images = data.load(folder / "cifar10n.parquet")
    true = images.labels["label"]
    symmetric = data.with_noise(images, "symmetric-40", 0)
    assert (symmetric != true).mean() == pytest.approx(0.4, abs=0.002)
    asymmetric = data.with_noise(images, "asymmetric-20", 0)
    moved = asymmetric != true
    assert moved.mean() == pytest.approx(0.2, abs=0.002)
    np.testing.assert_array_equal(asymmetric[moved], (true[moved] + 1) % CLASSES)
    assert (data.with_noise(images, "random", 0) == true).mean() < 0.4
    with pytest.raises(ValueError, match="symmetric-PERCENT"):
        data.with_noise(images, "wrose", 0)


def test_augmented_images_are_images(folder):
    images = torch.from_numpy(data.load(folder / "cifar10n.parquet").train[:128])
    plain = images.float() / 255
    torch.manual_seed(0)
    same = augmentation.crop_and_flip(images, pad=0)
    mirrored = (same == plain.flip(3)).all(3).all(2).all(1)
    kept = (same == plain).all(3).all(2).all(1)
    assert (mirrored | kept).all()
    assert 30 < mirrored.sum() < 98
    moved = augmentation.crop_and_flip(images)
    assert moved.shape == plain.shape
    assert (moved != plain).any()
    for magnitude in (0.0, 1.0, 10.0):
        x = augmentation.rand_augment(images, magnitude)
        assert x.isfinite().all()
        assert 0 <= x.min() <= x.max() <= 1
    soft = torch.eye(CLASSES)[torch.arange(128) % CLASSES]
    x, targets = augmentation.mixed(plain, soft, 0.2)
    assert x.shape == plain.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(128))


def test_networks_have_the_sizes_of_the_paper_and_the_weights_of_their_seed():
    for name in ("convnext", "vit"):
        network = build(name, 10, 0)
        assert 8e6 < sum(p.numel() for p in network.parameters()) < 11e6
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert 11e6 < sum(p.numel() for p in build("resnet", 10, 0).parameters()) < 12e6
    assert 7e6 < sum(p.numel() for p in build("bert", 20, 0).parameters()) < 9e6
    for name in ("mlp", "conv"):
        network, image = build(name, 10, 0), torch.rand(2, 3, 32, 32)
        found = network.latents(image)
        assert found.shape == (2, 128)
        assert not torch.equal(found, network.latents(image.flip(3)))
    one, same, other = (build("tiny", 3, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    with pytest.raises(ValueError, match="`network` must be one of"):
        build("alexnet", 10, 0)


def test_products_are_the_librarys_own_network():
    for options in ({"patch_size": 1, "kernel": 3}, {"patch_size": 2}):
        network = networks._convnext(3, depths=[1, 1], hidden_sizes=[4, 8], num_stages=2, **options)
        network = network.double()
        torch.manual_seed(0)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
        fast = networks.ConvNextByProducts(network.body, 16)
        found = [network.latents(images), fast(images)]
        torch.testing.assert_close(*found)
        gradients = [
            torch.autograd.grad(x.square().sum(), network.body.parameters()) for x in found
        ]
        torch.testing.assert_close(*gradients)
        # Channels that are zero everywhere, as GELU makes them in low precision.
        block = network.body.encoder.stages[0].layers[0]
        torch.nn.init.constant_(block.pwconv1.bias, -1e4)
        fast(images).sum().backward()
        assert all(p.grad.isfinite().all() for p in network.body.parameters())


def test_plans_name_their_runs_once():
    for study in plan.studies():
        names = [settings.name for settings in plan.plan(study)]
        assert len(names) == len(set(names)) >= 1
    assert [s.seed for s in plan.plan("convnext", labels="worse", percent=90)] == [0, 1, 2]
    with pytest.raises(ValueError, match="`study` must be one of"):
        plan.plan("convnxet")


def begin(folder, tmp_path, network, kept=True):
    """A run of two epochs that keeps the weights of each, or one that does not."""
    tmp_path.mkdir(exist_ok=True)
    lines = CONFIG.replace('["label", "worse"]', '"worse"').replace("[100, 90]", "90")
    lines = lines.replace('"tiny"', f'"{network}"') + "averages = true\n" * kept
    (tmp_path / f"kept{kept}.toml").write_text(lines)
    [settings] = plan.plan(str(tmp_path / f"kept{kept}.toml"))
    images = data.load(folder / "cifar10n.parquet")
    return Run(settings, images, tmp_path / "runs", Engine(network, CLASSES, "cpu"))


def test_means_are_those_of_the_ends_and_the_run_is_the_same(folder, tmp_path):
    run = begin(folder, tmp_path, "tiny")
    result = run.train()
    plain = begin(folder, tmp_path, "tiny", kept=False)
    other = plain.train()
    assert [x.tolist() for x in plain.engine.model.state_dict().values()] == [
        x.tolist() for x in run.engine.model.state_dict().values()
    ]
    for name in ("mean", "separation", "test_accuracy", "validation_loss", "margin"):
        assert result["epochs"][name] == other["epochs"][name], name
    ends = run.averages.ends
    assert len(ends) == len(run.averages.means) == 2
    for parameter, end in zip(run.engine.model.parameters(), ends[-1], strict=True):
        assert torch.equal(parameter, end)
    kept = result["kept"]
    assert kept.keys() == {"test_accuracy", "validation_accuracy"}
    assert kept["test_accuracy"].keys() == averages.names().keys()
    mean = [(a + b) / 2 for a, b in zip(*ends, strict=True)]
    wanted = run.averages._accuracies(mean, run.tests)
    for test, accuracy in wanted.items():
        assert kept[test]["plain, warm-up 0"] == pytest.approx(accuracy, abs=1e-4)
    for name in averages.HORIZONS:
        assert len(result["epochs"][f"{name}_validation_accuracy"]) == 2


def test_statistics_of_batch_norm_belong_to_the_mean(folder, tmp_path):
    run = begin(folder, tmp_path, "tiny-resnet")
    norm = run.averages._norms[0]
    before = norm.running_mean.clone()
    doubled = [2 * x for x in run.averages.own]
    with run.averages._applied(doubled):
        assert not torch.allclose(norm.running_mean, before)
        assert torch.equal(next(run.engine.model.parameters()), doubled[0])
    assert torch.equal(norm.running_mean, before)


def test_a_run_that_stopped_has_the_same_means(folder, tmp_path):
    whole = begin(folder, tmp_path / "whole", "tiny").train()
    first = begin(folder, tmp_path / "parts", "tiny")
    first._epoch()
    first._end_epoch()
    assert first.train(deadline=0.0) is None
    assert begin(folder, tmp_path / "parts", "tiny").train()["kept"] == whole["kept"]


def test_a_network_of_texts_takes_tokens():
    engine = Engine("tiny-bert", CLASSES, "cpu")
    tokens = torch.tensor([[3, 4, 0, 0], [5, 6, 7, 8]], dtype=torch.int32)
    full = torch.tensor([[3, 4, 9, 9], [5, 6, 7, 8]], dtype=torch.int32)
    latents, _ = engine.evaluate(tokens)
    assert latents.shape == (2, 64)
    # What fills a text up does not count.
    alone, _ = engine.evaluate(tokens[:1, :2])
    torch.testing.assert_close(alone[0], latents[0])
    assert not torch.allclose(engine.evaluate(full)[0][0], latents[0])


def test_results_keep_what_the_table_reads(folder, tmp_path):
    text = CONFIG.replace('["label", "worse"]', '"worse"').replace("[100, 90]", "100")
    (tmp_path / "kept.toml").write_text(text + "averages = true\n")
    main(
        f"run {tmp_path / 'kept.toml'} --data {folder} --device cpu --out {tmp_path / 'runs'} "
        f"--results {tmp_path / 'results'}".split()
    )
    result = named(tmp_path / "results", "kept-worse-100-s0")
    assert set(result["kept"]["test_accuracy"]) == set(averages.names())
    assert len(store.column(result, "ema_998_test_accuracy")) == 2
