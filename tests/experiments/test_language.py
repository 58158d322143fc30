"""The study of language models in miniature: made documents, two epochs, both tables."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import language_data, store
from experiments.__main__ import main
from experiments.engine import Engine
from experiments.language import LanguageRun
from experiments.language_data import IGNORED
from experiments.language_model import Decoder
from experiments.language_signals import REDUCTIONS, SIGNALS, Detection, sequence_signals
from experiments.plan import plan
from experiments.tables import language
from gwa_core import average_shares

pytest.importorskip("tokenizers")
N, TESTS, EPOCHS = 60, 20, 4
WORDS = {"farm.corn": "grain harvest wheat", "sea.ship": "vessel port", "talk.money.bank": "rate"}
CONFIG = f"""
priority = 9
data = "newsgroups-language"
network = "tiny-gpt"
labels = ["swapped-10", "garbled-20"]
loss = ["answer", "all"]
steps = {3 * EPOCHS}
batch_size = 24
warmup = 2
learning_rate = 0.01
augmentation = "none"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `--data` names, prepared by the command, and a configuration."""
    path, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, count in {"train": N, "test": TESTS}.items():
        lines = ["Category\tText", "d\tstring", "class\t"]
        for k in range(count):
            label = list(WORDS)[k % 3]
            words = rng.choice(WORDS[label].split(), 1 + k % 6)
            lines.append(f"{label}\t{' '.join(words)}")
        (path / f"20newsgroups-{part}.tab").write_text("\n".join(lines) + "\n", encoding="utf-8")
    main(["prepare-language", str(path), str(path)])
    (path / "mini.toml").write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def texts(folder):
    return language_data.load(folder / "newsgroups-language.npz")


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    main(
        f"run {folder / 'mini.toml'} --data {folder} --device cpu --out {out} --results {out / 'r'}".split()
    )
    return store.read(out / "r")


def begin(folder, texts, steps=3 * EPOCHS, rate=0.01, **only):
    [settings] = plan(str(folder / "mini.toml"), **only)
    settings = replace(settings, steps=steps, learning_rate=rate)
    return LanguageRun(settings, texts, Engine("tiny-gpt", texts.vocabulary, "cpu"))


def test_documents_and_answers_are_tokens(texts):
    assert (len(texts.train), len(texts.test), len(texts.answers)) == (N, TESTS, 3)
    assert np.bincount(texts.labels).tolist() == [20, 20, 20]
    # A name of three words has more tokens than one of two; none is special.
    lengths = (texts.answers > 0).sum(1)
    assert lengths[2] == texts.answers.shape[1] > 1
    assert texts.answers[texts.answers > 0].min() >= len(language_data.SPECIAL)
    assert max(texts.train.max(), texts.answers.max()) < texts.vocabulary


def test_a_sequence_is_document_answer_and_end():
    documents = np.asarray([[7, 8, 0], [9, 0, 0]])
    answers = np.asarray([[5, 0], [5, 6]])
    tokens, starts = language_data.sequences(documents, answers)
    assert tokens.tolist() == [[7, 8, 1, 5, 2, 0, 0], [9, 1, 5, 6, 2, 0, 0]]
    assert starts.tolist() == [2, 1]
    x = IGNORED
    found = language_data.labels_of(tokens, starts, "answer")
    assert found.tolist() == [[x, x, 5, 2, x, x, x], [x, 5, 6, 2, x, x, x]]
    found = language_data.labels_of(tokens, starts, "all")
    assert found.tolist() == [[8, 1, 5, 2, x, x, x], [1, 5, 6, 2, x, x, x]]
    with pytest.raises(ValueError, match="`loss` must be answer or all, got 'some'"):
        language_data.labels_of(tokens, starts, "some")


def test_wrong_answers_are_those_of_other_classes_or_noise(texts):
    right = texts.answers[texts.labels]
    swapped, wrong = language_data.given_answers(texts, "swapped-10", 0)
    assert wrong.sum() == N // 10
    names = {tuple(row) for row in texts.answers}
    for given, true, moved in zip(swapped, right, wrong, strict=True):
        assert tuple(given) in names
        assert (tuple(given) != tuple(true)) == moved
    garbled, wrong = language_data.given_answers(texts, "garbled-20", 0)
    assert wrong.sum() == N // 5
    np.testing.assert_array_equal(garbled[~wrong], right[~wrong])
    np.testing.assert_array_equal(garbled > 0, right > 0)
    assert (garbled[wrong] != right[wrong]).any(1).all()
    other = language_data.given_answers(texts, "swapped-10", 1)[1]
    assert (other != language_data.given_answers(texts, "swapped-10", 0)[1]).any()
    with pytest.raises(ValueError, match="`labels` must be swapped-PERCENT or"):
        language_data.given_answers(texts, "symmetric-10", 0)


def test_no_token_sees_those_after_it():
    torch.manual_seed(0)
    body = Decoder(vocabulary=30, width=128, layers=2, length=9)
    tokens = torch.randint(30, (2, 9))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 30
    one, other = body(tokens), body(changed)
    torch.testing.assert_close(one[:, :5], other[:, :5])
    assert ((one - other)[:, 5:].abs().amax(2) > 1e-3).all()


def test_signals_of_sequences_are_those_of_a_loop():
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 6, 5, dtype=torch.float64)
    labels = torch.randint(5, (4, 6))
    labels[0, :3] = labels[1, 4:] = labels[2, 1:] = IGNORED
    found = sequence_signals(logits, labels)
    for b in range(4):
        losses, errors, margins = [], [], []
        for row, y in zip(logits[b], labels[b].tolist(), strict=True):
            if y != IGNORED:
                p = row.softmax(0)
                losses.append(-math.log(p[y]))
                errors.append((p - torch.eye(5, dtype=p.dtype)[y]).norm().item())
                margins.append((row[y] - max(row[k] for k in range(5) if k != y)).item())
        count = len(losses)
        assert found["loss"][b].item() == pytest.approx(sum(losses))
        assert found["perplexity"][b].item() == pytest.approx(sum(losses) / count)
        assert found["el2n"][b].item() == pytest.approx(sum(errors) / count)
        assert found["margin"][b].item() == pytest.approx(sum(margins) / count)


def test_detection_is_that_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    wrong = rng.random(200) < 0.2
    detection = Detection(torch.from_numpy(wrong))
    losses, margins, scores = (
        rng.normal(size=(3, 2, 200)) + np.asarray([1, -1, -1])[:, None, None] * wrong
    )
    right = rng.random((2, 200)) < 0.5
    for t in range(2):
        signals = {"loss": losses[t], "margin": margins[t]}
        signals = {name: torch.from_numpy(x) for name, x in signals.items()}
        quality = torch.from_numpy(scores[: t + 1].mean(0))
        given = {"mean": torch.from_numpy(scores[t])}
        detection.epoch(signals, torch.from_numpy(right[t]), given, {"mean": quality})

    def expected(suspicion):
        return pytest.approx(average_precision_score(wrong, suspicion), abs=1e-4)

    found = detection.found
    assert found["loss"]["by_epoch"] == [expected(x) for x in losses]
    assert found["loss"]["by_mean"][1] == expected(losses.sum(0))
    assert found["margin"]["by_mean"][1] == expected(-margins.sum(0))
    assert found["mean"]["by_quality"][1] == found["mean"]["by_mean"][1] == expected(-scores.sum(0))
    events = np.where(right.any(0), right[0] & ~right[1], 2)
    assert found["forgetting"]["by_mean"][1] == expected(events)
    assert found["loss"]["by_mean"][1] > 0.5


def test_a_study_leaves_a_line_a_run(results):
    assert {store.name_of(run) for run in results} == {
        f"mini-{labels}-100-s0-loss-{loss}"
        for labels in ("swapped-10", "garbled-20")
        for loss in ("answer", "all")
    }
    for run in results:
        assert run["wrong"] == pytest.approx(int(run["settings"]["labels"][-2:]) / 100)
        assert run["epochs"].keys() == store.OF_LANGUAGE | {"separation"}
        assert store.column(run, "count").tolist() == [N] * EPOCHS
        assert run["reductions"].keys() == {"min", "gradient"}
        # Each way to score a sequence is another one.
        means = [run["epochs"]["mean"], *(x["mean"] for x in run["reductions"].values())]
        assert len({tuple(x) for x in means}) == 3
        # The lowest token is below the mean of the tokens.
        assert (np.asarray(means[1]) < means[0]).all()
        assert run["examples"].keys() == {*REDUCTIONS, *SIGNALS}
        for ways in run["examples"].values():
            for values in ways.values():
                assert len(values) == EPOCHS
                assert 0 < min(values) <= max(values) <= 1
        assert np.diff(store.column(run, "test_loss")).min() < -0.1
        assert np.isfinite(store.column(run, "prediction_changes")[1:]).all()


@pytest.mark.parametrize("loss", ["answer", "all"])
def test_scores_are_those_of_the_tokens_that_the_loss_counts(folder, texts, loss):
    # No weight moves, so that the scores are of one network.
    run = begin(folder, texts, steps=3, rate=1e-12, labels="swapped-10", loss=loss)
    run._epoch()
    run._end_epoch()
    model, data = run.engine.model, run.train_set
    weight = model.head.weight.detach().double().requires_grad_()

    def alignment(value):
        [gradient] = torch.autograd.grad(value, weight, retain_graph=True)
        return (-(gradient * weight).sum() / (gradient.norm() * weight.norm())).item()

    for i in range(0, N, 9):
        latents = model.latents(data.tokens[i : i + 1])[0].detach().double()
        losses = torch.nn.functional.cross_entropy(
            latents @ weight.T, data.labels[i], ignore_index=IGNORED, reduction="none"
        )
        losses = losses[data.labels[i] != IGNORED]
        tokens = [alignment(x) for x in losses]
        expected = np.mean(tokens), min(tokens), alignment(losses.sum())
        found = [run.monitors[name].scores[i].item() for name in REDUCTIONS]
        assert found == pytest.approx(expected, abs=1e-5)


def test_what_an_average_is_worth_is_the_test_loss_of_its_weights(folder, texts):
    run = begin(folder, texts, labels="swapped-10", loss="answer")
    assert run.epochs == EPOCHS
    ends = []
    for _ in range(EPOCHS):
        run._epoch()
        run._end_epoch()
        ends.append([p.detach().clone() for p in run.engine.model.parameters()])
    separations = {name: [s.separation for s in run.monitors[name].history] for name in REDUCTIONS}
    model, data = run.engine.model, run.test_set
    kept = run._result(0.0)["averages"]
    # After the result the network has its own weights again.
    assert all(map(torch.equal, model.parameters(), ends[-1]))
    for name, power in {"plain": 0, "mean": 10, "gradient": 10}.items():
        rows = [{"separation": x} for x in separations.get(name, separations["mean"])]
        shares = torch.from_numpy(average_shares(rows, power=power)).float()
        with torch.no_grad():
            for p, *x in zip(model.parameters(), *ends, strict=True):
                p.copy_(torch.tensordot(shares, torch.stack(x), 1))
        loss = torch.nn.functional.cross_entropy(
            model(data.tokens).flatten(0, 1), data.labels.flatten(), ignore_index=IGNORED
        )
        assert kept[name]["test_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert len({x["test_loss"] for x in kept.values()}) == 5


def test_a_run_that_would_end_after_its_budget_begins_anew(folder, texts, capsys):
    run = begin(folder, texts, labels="swapped-10", loss="answer")
    assert run.train(deadline=time.monotonic() - 1) is None
    assert (run.step, run.steps) == (0, 3 * EPOCHS)
    run = begin(folder, texts, labels="swapped-10", loss="answer")
    begun, run._end_epoch = run._end_epoch, lambda: (begun(), time.sleep(0.2))
    assert run.train(deadline=time.monotonic() + 0.1) is None
    assert 0 < run.step < run.steps


def test_a_run_of_one_epoch_finds_answers_and_has_nothing_to_choose(folder, texts, tmp_path):
    run = begin(folder, texts, steps=3, labels="swapped-10", loss="answer")
    store.append(tmp_path, run.train())
    found = store.read(tmp_path)
    assert store.column(found[0], "step").tolist() == [3]
    head, _, *rows = language.examples(found).splitlines()
    assert head == "| signal | swapped, one epoch |"
    # Label quality, mean and last epoch of GWA, mean and last epoch of the others.
    assert len(rows) == 3 * 3 + 2 * 5 - 1
    assert language.examples_all(found) == ""
    assert language.stopping(found) == ""


def test_tables_have_a_row_for_each_signal_and_rule(results):
    lines = language.examples_all(results).splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    kinds = [f"{kind}, {k} of {EPOCHS}" for kind in ("garbled", "swapped") for k in (3, EPOCHS)]
    assert head == ["signal", *kinds]
    run = next(r for r in results if store.name_of(r) == "mini-swapped-10-100-s0-loss-all")
    examples = run["examples"]
    for title, name, way in (
        ("margin: mean", "margin", "by_mean"),
        ("GWA, gradient: label quality", "gradient", "by_quality"),
        ("GWA, gradient: last epoch", "gradient", "by_epoch"),
    ):
        row = next(x for x in lines if x.startswith(f"| {title} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[head.index(f"swapped, 3 of {EPOCHS}")] == f"{examples[name][way][2]:.2f}"

    lines = language.stopping(results).splitlines()
    assert len(lines) == 3 + len(language.KEPT)
    row = next(x for x in lines if x.startswith("| last epoch |"))
    losses = store.column(run, "test_loss")
    at = lines[0].split(" | ").index("swapped, loss on all tokens")
    above = losses[-1] - losses.min()
    assert row.split(" | ")[at] == f"{above:+.3f} ({above:+.3f})"
    separation = run["reductions"]["min"]["separation"]
    kept = losses[1:][int(np.argmax(separation[1:]))] - losses.min()
    row = next(x for x in lines if x.startswith("| largest separation, min |"))
    assert row.split(" | ")[at] == f"{kept:+.3f} ({kept:+.3f})"
    for make in (language.examples, language.examples_all, language.stopping):
        assert make([]) == ""
