"""Fine-tuning in miniature: small stand-ins of both networks, through the command line."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shades import write_shades
from torch import nn

from experiments import data, figures, store, windows
from experiments.__main__ import main
from experiments.engine import Engine
from experiments.networks import build
from experiments.optimisation import rate
from experiments.plan import Settings
from experiments.tables import fine_tuning
from gwa_offline import RunFolder

transformers = pytest.importorskip("transformers")
N, TESTS = 80, 24
WORDS = {"corn": "grain harvest wheat", "ships": "vessel port cargo", "money": "bank dollar rate"}
COMMON = "priority = 9\nbatch_size = 20\nsteps = 8\nwarmup = 2\n"
STUDIES = {
    "lite0": 'network = "lite0"\nlabels = "label"\noptimizer = "sgd"\nlearning_rate = 0.1\n',
    "minilm": 'network = "minilm"\ndata = "r8"\nlabels = ["symmetric-20", "label"]\n'
    'learning_rate = 0.01\naugmentation = "none"\n',
    "words": 'network = "words"\ndata = "newsgroups"\nlabels = "label"\n'
    'learning_rate = 0.1\naugmentation = "none"\n',
}


class SmallLite0(nn.Sequential):
    """What timm makes, but small."""

    num_features = 6

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3, stride=8), nn.BatchNorm2d(6), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip


def write_weights(path):
    """Tensors in order under other names, with a head that is left out."""
    torch.manual_seed(3)
    body = SmallLite0()
    nn.init.constant_(body[1].running_mean, 0.25)
    tensors = [*body.state_dict().values(), torch.ones(1000, 6), torch.ones(1000)]
    torch.save({f"their_{k}": x for k, x in enumerate(tensors)}, path)
    return body.eval()


def write_texts(folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part, count in {"train": N, "test": TESTS}.items():
        lines = ["Category\tText", "d\tstring", "class\t", ""]
        for k in range(count):
            label = list(WORDS)[k % 3]
            words = rng.choice([*WORDS[label].split(), "the"], 1 + k % 9)
            lines.append(f"{label}\t{' '.join(words)}{' seldom' * (part == 'train' and k < 4)}")
        for name in ("reuters-r8", "20newsgroups"):
            (folder / f"{name}-{part}.tab").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_encoder(folder):
    words = ["[PAD]", "unused", "[UNK]", "[CLS]", "[SEP]", "seldom", "the"]
    words += " ".join(WORDS.values()).split()
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=160,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)


@pytest.fixture(scope="module", autouse=True)
def _timm():
    with pytest.MonkeyPatch.context() as patch:

        def create_model(name, num_classes):
            assert (name, num_classes) == ("tf_efficientnet_lite0", 0)
            return SmallLite0()

        patch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `--data` names: images, weights, and texts prepared by the command."""
    path = tmp_path_factory.mktemp("data")
    write_weights(path / "efficientnet-lite0-57934424.pth")
    write_shades(path / "cifar10n", {"train": N, "t10k": TESTS}, classes=3, step=70)
    write_texts(path / "tables")
    write_encoder(path / "encoder")
    main(["prepare-text", *(str(path / x) for x in ("tables", "encoder")), str(path)])
    for name, lines in STUDIES.items():
        (path / f"{name}.toml").write_text(COMMON + lines)
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def results(folder, out):
    studies = " ".join(str(folder / f"{name}.toml") for name in STUDIES)
    main(
        f"run {studies} --data {folder} --device cpu --out {out / 'runs'} --results {out / 'found'}".split()
    )
    return store.read(out / "found")


def test_texts_are_numbered_anew_and_rare_pieces_are_one(folder):
    found = data.load(folder / "r8.npz")
    assert found.class_names == ("corn", "money", "ships")
    assert found.train.shape == (N, 128)
    assert found.labels["label"][:4].tolist() == [0, 2, 1, 0]
    # [CLS], words, what is rare, [SEP], and nothing
    first = found.train[0]
    assert first[2] == 1
    assert first[4:].sum() == 0
    assert (found.train[4:] != 1).all()
    # the head of the vocabulary, [CLS], [SEP], "the" and nine words
    assert found.train.max() == 13


def test_a_folder_without_texts_is_refused(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"must be a folder with reuters-r8-train\.tab or 20"
    ):
        main(["prepare-text", str(tmp_path), str(folder / "encoder"), str(tmp_path)])


def test_words_to_complete(tmp_path):
    texts = {"train": "xx yy bread butter zz", "test": "zz butter and butter bread"}
    for part, text in texts.items():
        lines = ["Category\tText", "d\tstring", "class\t", "", f"a\t{text}", f"b\t{text}"]
        (tmp_path / f"20newsgroups-{part}.tab").write_text("\n".join(lines) + "\n")
    main(["prepare-completion", str(tmp_path), str(tmp_path)])
    found = data.load(tmp_path / "completion.npz")
    assert found.class_names == ("bread", "butter")
    assert np.bincount(found.labels["label"]).tolist() == [2, 2]
    # Nothing of another text, the neighbours, and at the end "br" or "bu".
    of = {
        found.class_names[k]: row.tolist()
        for k, row in zip(found.labels["label"], found.train, strict=True)
    }
    bread, butter, xx, yy, zz, br, bu = range(2, 9)
    assert of["bread"] == [0] * 6 + [xx, yy, butter, zz] + [0] * 6 + [br]
    assert of["butter"] == [0] * 5 + [xx, yy, bread, zz] + [0] * 7 + [bu]
    tests = {tuple(row[:-1]) for row in found.test[found.test_labels == 1].tolist()}
    # The word itself is hidden wherever it is, and "and" is too rare to be a word.
    assert tests == {
        (*[0] * 7, zz, 1, 1, bread, *[0] * 5), (*[0] * 5, zz, 1, 1, bread, *[0] * 7),
    }  # fmt: skip


def test_the_encoder_that_was_cut_is_the_whole_ones_mean_over_tokens(folder):
    network = build("minilm", 3, 0, folder).train()
    whole = transformers.BertModel.from_pretrained(folder / "encoder").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "encoder")
    line = (folder / "tables" / "reuters-r8-test.tab").read_text().splitlines()[4 + 8]
    given = tokenizer(line.split("\t")[1], return_tensors="pt")
    tokens = torch.from_numpy(data.load(folder / "r8.npz").test[8:9])
    with torch.no_grad():
        found, expected = network.latents(tokens), whole(**given).last_hidden_state.mean(1)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)


def test_lite0_has_the_given_weights_and_keeps_its_statistics(folder, tmp_path):
    body = write_weights(tmp_path / "weights.pth")
    engine = Engine("lite0", 3, "cpu", folder=folder)
    engine.begin(1)
    images = torch.full((4, 3, 32, 32), 191, dtype=torch.uint8)
    expected = body(torch.full((4, 3, 96, 96), 0.5))
    torch.testing.assert_close(engine.evaluate(images)[0], expected.detach())
    engine.forward(images).sum().backward()
    assert all(p.grad is not None for p in engine.model.parameters())
    torch.testing.assert_close(engine.evaluate(images)[0], expected.detach())
    other = build("lite0", 3, 2, folder)
    assert not torch.equal(engine.model.head.weight, other.head.weight)
    with pytest.raises(FileNotFoundError, match=r"`--data` must be a folder with minilm\.npz"):
        build("minilm", 3, 0, tmp_path)


def test_words_are_averaged_whatever_fills_up(folder):
    network = build("words", 3, 0)
    tokens = torch.from_numpy(data.load(folder / "newsgroups.npz").train[:8])
    found = network.latents(tokens)
    for row, latents in zip(tokens, found, strict=True):
        mean = network.body.embedding.weight[row[row != 0]].mean(0)
        torch.testing.assert_close(torch.relu(network.body.layer(mean)), latents)


def test_all_studies_run_and_learn(results, out):
    assert len(results) == 4
    for result in results:
        assert {"gwa", "gradient_disparity", "test_accuracy"} <= result["epochs"].keys()
        run = RunFolder.open(out / "runs" / store.name_of(result))
        loss = [metrics["test_loss"] for _, metrics in run.epochs()]
        assert loss[1] < min(loss[0], np.log(3))
    assert {r["wrong"] > 0 for r in results if r["settings"]["study"] == "minilm"} == {True, False}


def test_windows_are_parts_of_an_epoch(folder, tmp_path):
    (tmp_path / "tenths.toml").write_text(
        COMMON + STUDIES["minilm"].replace(', "label"', "") + "averages = true\nwindows = 3\n"
    )
    main(
        f"run {tmp_path / 'tenths.toml'} --data {folder} --device cpu --out {tmp_path / 'runs'} "
        f"--results {tmp_path / 'found'}".split()
    )
    [result] = store.read(tmp_path / "found")
    # Four steps an epoch of 20 texts.
    assert store.column(result, "step").tolist() == [1, 3, 4, 5, 7, 8]
    assert store.column(result, "count").tolist() == [20, 40, 20] * 2
    assert np.isfinite(store.column(result, "test_loss")).all()
    assert np.isnan(store.column(result, "prediction_changes")[:3]).all()
    assert set(result["detection"]) == {"label_quality", "alignment", "margin", "sample_loss"}
    assert set(result["kept"]["test_accuracy"]) == set(windows.KEPT)
    history = [
        summary for summary, _ in RunFolder.open(tmp_path / "runs" / store.name_of(result)).epochs()
    ]
    assert [summary.window for summary in history] == [1, 2, 1] * 2
    assert [summary.expected for summary in history] == [20, 40, 20] * 2
    assert windows.ends(172, 10)[172] == 17
    assert sum(windows.ends(172, 10).values()) == 172


def test_the_rate_rises_and_then_keeps_to_its_schedule():
    settings = Settings(
        study="x", network="tiny", steps=12, batch_size=20, learning_rate=1.0, warmup=4
    )
    rates = [rate(settings, step, 12) for step in range(12)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rates[8] == pytest.approx(0.5)
    assert np.all(np.diff(rates[4:]) < 0)


def test_table_and_figure_say_which_run_dips(results, tmp_path):
    gwa = {"symmetric-20": [0.9, 0.3, 0.2, 0.5, 0.6, 0.4], "label": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]}
    accuracy = [0.1, 0.2, 0.3, 0.4, 0.7, 0.8]
    for result in results:
        s, columns = result["settings"], result["epochs"]
        for name, values in columns.items():
            columns[name] = (values * 6)[:6]
        columns["test_accuracy"], columns["epoch"] = accuracy, list(range(6))
        if s["study"] == "minilm":
            columns["gwa"] = gwa[s["labels"]]
    results = [r for r in results if r["settings"]["study"] != "words"]
    held = json.loads(json.dumps(results[-1]))
    held["settings"]["percent"], held["epochs"]["validation_accuracy"] = 90, accuracy[::-1]
    results = [*results, held]
    table = fine_tuning.fine_tuning(results)
    assert "EfficientNet-Lite0" in table
    ours, _, theirs = table.split("MiniLM")[1].partition("**The paper's ViT-B/16**")
    rows = [line.strip("| ").split(" | ") for line in ours.splitlines() if line.startswith("|")]
    rows = {row[0]: row[1:] for row in rows}
    assert "| GWA, the fine-tuning rule | 84.15 | 73.73 | 58.78 |" in theirs
    assert rows["rule"] == ["clean", "symmetric-20"]
    assert rows["GWA, the fine-tuning rule"] == ["keeps none", "70.00, −10.0, epoch 4"]
    assert rows["GWA, the paper's rule"] == ["10.00, −70.0, epoch 0"] * 2
    assert rows["validation 10 %"] == ["–", "10.00, −70.0, epoch 0"]
    assert rows["last epoch"] == ["80.00, epoch 5"] * 2
    assert rows["runs whose GWA dips"] == ["0 of 1", "1 of 1, to epoch 2.0"]
    assert figures.draw("fine-tuning", results, "", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert fine_tuning.fine_tuning([]) == ""


def test_table_of_windows(results, tmp_path):
    run = next(r for r in results if r["settings"]["study"] == "minilm")
    made = []
    for seed, best in enumerate((0.9, 0.8)):
        columns = {
            "epoch": list(range(6)), "count": [20] * 6,
            "gwa": [0.9, 0.2, 0.5, 0.6, 0.4, 0.3], "gwa_standard_error": [0.1, 0.1 + seed, *[0.1] * 4],
            "denominator": [1.0] * 6, "mean": [0.1] * 6, "bimodality": [0.9, 0.4, 0.5, 0.6, 0.4, 0.3],
            "prediction_changes": [float("nan")] * 6,
            "test_accuracy": [0.5, best, 0.7, 0.6, 0.6, 0.6],
        }  # fmt: skip
        # Twelve windows, so that the warm-up leaves out one.
        columns = {name: values + values[-1:] * 6 for name, values in columns.items()}
        columns["epoch"], columns["separation"] = list(range(12)), columns["bimodality"]
        kept = {"separation^10": best + 0.01, "separation^10, warm-up 0": best - 0.02}
        settings = run["settings"] | {
            "study": "minilm-windows", "seed": seed, "windows": 2, "labels": "label", "percent": 100,
        }  # fmt: skip
        made.append(
            run | {"settings": settings, "epochs": columns, "kept": {"test_accuracy": kept}}
        )
    table = fine_tuning.windows(made)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    rows = {row[0]: row[1:] for row in rows}
    assert rows["best window"] == ["85.00 (10.00)<br>after 1.0"]
    assert rows["average of the windows"] == ["86.00 (10.00), +1.0"]
    assert rows["average, no warm-up"] == ["83.00 (10.00), −2.0"]
    assert rows["largest separation"] == ["60.00 (0.00), −25.0<br>after 2.0"]
    assert rows["largest separation, no warm-up"] == ["50.00 (0.00), −35.0<br>after 0.5"]
    assert rows["GWA, the fine-tuning rule"] == rows["largest separation"]
    assert rows["LabelWave"] == ["keeps none"]
    assert rows["last window"] == ["60.00 (0.00), −25.0<br>after 6.0"]
    # A dip of seven tenths, and one within its error.
    assert rows["runs whose GWA dips clearly"] == ["1 of 2, after 1.0"]
    assert figures.draw("fine-tuning-windows", made, "", tmp_path / "a.png")
    assert fine_tuning.windows([]) == ""
