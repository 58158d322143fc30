"""A run with as many classes as a vocabulary has tokens, and scores as small as those are."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest

from gwa_core import GWATracker, Moments, alignment_scores, summarize
from gwa_offline import RunFolder, analyse, open_features
from gwa_offline.analysis import scoring
from gwa_offline.analysis.statistics import per_class

for library in ("typer", "plotly", "jinja2", "matplotlib", "sklearn"):
    pytest.importorskip(library)

from adapters.offline.test_cli import gwa

C, N, T = 50_000, 60_000, 4
LARGEST = np.sqrt(2 / C)  # of |γ| of a hard label
ZERO = re.compile(r"(?<![\d.])[+-]?0\.0+(?: %)?(?![\d.])")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, C, N)
    path = tmp_path_factory.mktemp("vocabulary") / "run"
    names = [f"token {label}" for label in range(C)]
    about = {"num_samples": N, "num_classes": C, "class_names": names, "adapter": "test"}
    run = RunFolder.create(path, **about, targets=targets)
    tracker = GWATracker(N)
    for epoch in range(T):
        scores = rng.normal(0.05 * (epoch + 1) * LARGEST, 0.2 * LARGEST, N)
        scores[:60] -= 0.8 * LARGEST
        tracker.update(scores, ids=np.arange(N))
        run.write_epoch(
            tracker.end_epoch(), scores=tracker.scores, metrics={"loss": 1.0 / (1 + epoch)}
        )
    return run


def test_classes_are_summarised_as_the_core_does():
    rng = np.random.default_rng(1)
    targets = rng.integers(-1, 12, 300)
    targets[targets == 7] = 6  # a class without samples
    targets[:3], targets[3:][targets[3:] == 5] = 5, 4  # one of three samples
    scores = rng.normal(0.3, 0.1, 300).astype(np.float32)
    scores[targets == 2] = np.where(rng.random((targets == 2).sum()) < 0.5, -0.5, 0.5)
    scores[10] = np.nan
    scores[targets == 11] = 0.25
    gwa, mean = per_class([scores, None], targets, 12, 1.2)
    assert np.isnan(gwa[1]).all()
    assert np.isnan(mean[1]).all()
    for label in range(12):
        want = summarize(Moments.from_batch(scores[targets == label]))
        np.testing.assert_allclose(mean[0, label], want.mean, rtol=1e-12)
        np.testing.assert_allclose(gwa[0, label], want.gwa if want.healthy else np.nan, rtol=1e-9)
    assert np.isnan(mean[0, 7])
    assert np.isnan(gwa[0, [2, 7, 11]]).all()


def test_the_report_stays_small_and_fast(run, tmp_path):
    begin = time.process_time()
    report = analyse(run.path)
    page = report.to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    text = report.to_json()
    # Minutes if each class had its own call.
    assert time.process_time() - begin < 20
    assert report.class_mean.shape == (T, C)
    assert len(page) < 6e6, "plotly.js alone is 4.6 MB"
    assert "The 20 classes of lowest mean, of 50,000 classes." in page
    assert "Numbers of the 10,000 classes of lowest mean" in page
    table = page[page.index('<table id="class-table">') :]
    assert table[: table.index("</table>")].count("<tr>") == 101
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert ZERO.findall(re.sub(r"<[^>]*>", " ", shown)) == []
    value = json.loads(text)
    assert len(value["classes"]) == 1000
    assert np.shape(value["class_mean"]) == (T, 1000)
    lowest = np.argsort(report.class_mean[report.shown], kind="stable")[:1000]
    assert value["classes"] == sorted(lowest.tolist())
    got = np.array(value["class_mean"], float)
    np.testing.assert_array_equal(got, report.class_mean[:, value["classes"]])
    assert len(report.to_figures(tmp_path / "figures")) == 5


def test_few_classes_are_all_in_the_json(tmp_path):
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 3
    np.savez(
        tmp_path / "f.npz", latents=rng.normal(size=(60, 5)), weight=np.eye(3, 5), targets=targets
    )
    value = json.loads(analyse(tmp_path / "f.npz").to_json())
    assert value["classes"] == [0, 1, 2]
    assert np.shape(value["class_gwa"]) == (1, 3)


def test_classes_are_ranked_at_once(run):
    report = analyse(run.path)
    begin = time.process_time()
    table = report.rank(2, per_class=True)
    assert time.process_time() - begin < 5
    assert table.shape == (C, 2)
    for label in (0, 17, int(report.targets[5]), C - 1):
        members = np.flatnonzero(report.targets == label)
        want = members[np.argsort(report.label_quality[members], kind="stable")][:2].tolist()
        assert table[label].tolist() == want + [-1] * (2 - len(want))


def test_no_number_of_a_command_is_a_zero_that_is_none(run):
    lowest = analyse(run.path).rank(5)
    assert set(lowest) < set(range(60))
    commands = [
        ("analyse", run.path),
        ("stop", run.path),
        ("samples", run.path, "--lowest", 5, "--highest", 5),
        ("compare", run.path, "--metric", "loss"),
        ("follow", run.path, "--wait", 0),
    ]
    for command in commands:
        done = gwa(*command)
        assert done.returncode == 0, done.stderr
        assert ZERO.findall(done.stdout) == [], command[0]
    rows = [line.split("\t") for line in gwa(*commands[2]).stdout.splitlines()[1:]]
    alignment = analyse(run.path).scores
    for sample, _, _, quality, score in rows:
        assert float(score) == pytest.approx(float(alignment[int(sample)]), rel=6e-3)
        assert 0 < abs(float(quality) - 0.5) < LARGEST


def test_a_list_per_class_shows_the_worst_and_json_has_all(run):
    done = gwa("samples", run.path, "--lowest", 1, "--per-class")
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 40 + 1
    assert lines[-1] == (
        "These are of the 40 classes of lowest mean alignment, of 50000 classes; --json has all."
    )
    value = json.loads(gwa("samples", run.path, "--lowest", 1, "--per-class", "--json").stdout)
    assert len(value) == len(np.unique(run.targets()))


def test_blocks_of_logits_are_bounded(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {"latents": rng.normal(size=(90, 4)), "weight": rng.normal(size=(30, 4))}
    arrays["targets"] = rng.integers(0, 30, 90)
    np.savez(tmp_path / "f.npz", **arrays)
    done = []
    monkeypatch.setattr(scoring, "BLOCK_LOGITS", 600)
    report = analyse(open_features(tmp_path / "f.npz"), progress=lambda part, _: done.append(part))
    assert done == [20, 40, 60, 80, 90]
    np.testing.assert_allclose(report.scores, alignment_scores(**arrays), rtol=1e-5)
