"""The monitor itself: ids, states, files, and what a mistake is answered with."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models import CLASSES, FEATURES, INPUTS, batch, head_oracle, network, oracle
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gwa_core import (
    EarlyStopper,
    EpochSummary,
    GWATracker,
    JLSketch,
    MaxGWA,
    MaxSeparation,
    label_quality,
    rank_samples,
    select_epoch,
)
from gwa_offline import analyse, open_features
from gwa_offline.store import FeaturesError, RunFolder
from gwa_torch import GWAMonitor, head_scores


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def run(monitor, model, *, epochs=1, stop_at=None, start=0, rows=40, size=8, loop=None):
    """Train from step `start` on in a fixed order, and stop before step `stop_at`."""
    x, y = batch(rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    steps = rows // size
    for step in range(start, epochs * steps):
        if step == stop_at:
            return
        generator = torch.Generator().manual_seed(step // steps)
        ids = torch.randperm(rows, generator=generator)[step % steps * size :][:size]
        F.cross_entropy(model(x[ids]), y[ids]).backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.update(y[ids], ids if monitor.num_samples else None)
        if step % steps == steps - 1:
            monitor.end_epoch()


class TestNumbers:
    def test_a_summary_is_the_one_of_the_core(self):
        model = network()
        for num_samples in (40, None):
            monitor = GWAMonitor(model.head, num_samples)
            x, y = batch(40)
            tracker = GWATracker()
            for part in torch.arange(40).split(16):
                tracker.update(head_oracle(model, x[part], y[part]))
                model(x[part])
                monitor.update(y[part], part if num_samples else None)
            got, want = monitor.end_epoch(step=7), tracker.end_epoch(step=7)
            assert got[:4] == want[:4]
            assert_allclose(got[4:-2], want[4:-2], rtol=1e-5)
            assert got.expected == num_samples
            monitor.close()

    def test_scores_equal_the_authors_formula_where_that_is_well_conditioned(self):
        model = network(bias=False)
        x, y = batch(40)
        monitor = GWAMonitor(model.head, 40)
        latents, logits = model.body(x), model(x)
        residual = F.one_hot(y, CLASSES) - logits.softmax(1)
        gradients = (residual[:, :, None] * latents[:, None, :]).flatten(1)
        monitor.update(y, torch.arange(40))
        want = F.cosine_similarity(gradients, model.head.weight.flatten()[None])
        assert_allclose(monitor.scores, want.detach(), rtol=1e-4, atol=1e-6)

    def test_a_sample_seen_twice_counts_once_with_its_first_score(self):
        model = network()
        x, y = batch(6)
        monitor = GWAMonitor(model.head, 6)
        first = head_oracle(model, x, y)
        model(x)
        monitor.update(y, torch.tensor([0, 1, 2, 3, 4, 4]))
        with torch.no_grad():
            model.head.weight.neg_()
        model(x)
        monitor.update(y, torch.tensor([5, 0, 1, 2, 3, 5]))
        assert monitor.end_epoch().count == 6
        assert_allclose(monitor.scores[:5], first[:5], atol=1e-6)
        assert_allclose(monitor.scores[5], head_oracle(model, x, y)[0], atol=1e-6)

    def test_a_masked_sample_counts_nowhere_and_an_unseen_one_is_nan(self):
        model = network()
        x, y = batch(6)
        for num_samples in (8, None):
            monitor = GWAMonitor(model.head, num_samples)
            model(x)
            where = torch.tensor([True, False, True, True, True, True])
            monitor.update(y, torch.arange(6) if num_samples else None, where)
            summary = monitor.end_epoch()
            assert (summary.count, summary.omitted) == (5, 0)
            if num_samples:
                assert monitor.scores.isnan().nonzero().flatten().tolist() == [1, 6, 7]
            monitor.close()

    def test_scores_that_are_not_finite_are_omitted_and_counted(self):
        model = network()
        x, y = batch(6)
        x[2, 0], y[3] = torch.nan, CLASSES
        for num_samples in (6, None):
            monitor = GWAMonitor(model.head, num_samples)
            model(x)
            monitor.update(y, torch.arange(6) if num_samples else None)
            summary = monitor.end_epoch()
            assert (summary.count, summary.omitted) == (4, 2)
            assert np.isfinite(summary.gwa)
            monitor.close()

    def test_every_scores_each_second_update(self):
        model = network()
        monitor = GWAMonitor(model.head, 40, every=2)
        run(monitor, model)
        assert monitor.history[0].count == 24

    def test_a_sketch_keeps_the_mean(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, CLASSES))
        x, y = batch(400)
        means = []
        for sketch in (None, 128, JLSketch(256, 128, seed=1)):
            monitor = GWAMonitor(model[-1], 400, sketch=sketch)
            model(x)
            with torch.no_grad():  # the step must not reach what the monitor kept
                before = copy.deepcopy(model.state_dict())
                model[-1].weight.mul_(-1)
            monitor.update(y, torch.arange(400))
            model.load_state_dict(before)
            means.append(monitor.end_epoch().mean)
            monitor.close()
        assert abs(means[0] - means[1]) < 0.01
        assert abs(means[0] - means[2]) < 0.01
        assert means[1] != means[2]

    def test_scores_made_by_hand_are_added(self):
        model = network()
        x, y = batch(12)
        monitor = GWAMonitor(model.head, 12)
        latents = model.body(x)
        scores = head_scores(
            latents=latents, weight=model.head.weight, bias=model.head.bias, targets=y
        )
        monitor.add(scores, torch.arange(12))
        assert monitor.end_epoch().count == 12
        assert_allclose(monitor.scores, head_oracle(model, x, y), atol=1e-6)


class TestLabelQuality:
    def test_it_is_the_one_of_the_whole_history(self):
        model = network()
        monitor = GWAMonitor(model.head, 41)
        scores = []
        for _ in range(5):
            run(monitor, model, rows=40)
            scores.append(monitor.scores)
        want = label_quality(torch.stack(scores).double())
        assert monitor.label_quality.dtype == torch.float32
        assert monitor.label_quality[-1].isnan()
        assert_allclose(monitor.label_quality, want, rtol=1e-6)
        suspicious = rank_samples(monitor.label_quality, k=np.int64(5))
        assert set(suspicious.tolist()) == set(want[:40].argsort()[:5].tolist())

    def test_an_epoch_in_progress_does_not_count(self):
        model = network()
        monitor = GWAMonitor(model.head, 40)
        run(monitor, model)
        before = monitor.label_quality.clone()
        run(monitor, model, stop_at=3)
        assert torch.equal(monitor.label_quality, before)


def expected_of(part_of_an_epoch, num_samples=40, batches=None, **options):
    """How many samples the monitor says that a whole epoch has."""
    model = network()
    monitor = GWAMonitor(model.head, num_samples, **options)
    x, y = batch(40)
    for ids in part_of_an_epoch:
        targets = y[ids]
        if "ignore_index" in options:
            targets = targets.where(ids % 2 == 0, options["ignore_index"])
        model(x[ids])
        monitor.update(targets, ids if num_samples else None)
    summary = monitor.end_epoch(batches=batches)
    return summary.count, summary.expected


class TestWhole:
    """What a whole epoch is: rows count, not samples."""

    every = torch.arange(40)

    def test_a_whole_epoch_and_half_of_one(self):
        assert expected_of(self.every.split(8)) == (40, 40)
        assert expected_of(self.every.split(4)[:5]) == (20, 40)
        assert expected_of(self.every.split(8)[:1]) == (8, 40)

    def test_without_ids_nobody_knows(self):
        assert expected_of(self.every.split(8), None) == (40, None)

    def test_the_loop_may_say_how_many_batches_there_are(self):
        assert expected_of(self.every.split(8)[:2], None, batches=5) == (16, 40)
        assert expected_of(self.every.split(8)[:2], batches=np.int64(2)) == (16, 16)
        # A rank may have none.
        assert expected_of(self.every.split(8), batches=0) == (40, 40)
        with pytest.raises(ValueError, match="`batches` must be an integer of at least 0, got -1"):
            expected_of(self.every.split(8), batches=-1)

    def test_samples_drawn_with_replacement(self):
        drawn = torch.randint(40, (40,), generator=torch.Generator().manual_seed(0))
        count, expected = expected_of(drawn.split(8))
        assert count == len(drawn.unique()) == expected < 0.9 * 40

    def test_ignored_labels(self):
        assert expected_of(self.every.split(8), ignore_index=-100) == (20, 20)
        assert expected_of(self.every.split(8)[:2], ignore_index=-100) == (8, 20)

    def test_a_loader_that_drops_its_last_batch(self):
        # 28 of 40, and no batch that was left out.
        assert expected_of(self.every.split(28)[:1]) == (28, 28)

    def test_a_loop_over_a_part_of_the_samples(self):
        model = network()
        monitor = GWAMonitor(model.head, 40)
        x, y = batch(40)
        stopper, expected = EarlyStopper(MaxSeparation(warmup=0)), []
        for rows in (24, 24, 8, 24):
            for ids in self.every[:rows].split(4):
                model(x[ids])
                monitor.update(y[ids], ids)
            stopper.observe(monitor.end_epoch())
            expected.append(monitor.history[-1].expected)
            state = monitor.state_dict()
            monitor.load_state_dict(state)
        # The first epoch may have been cut short; the others are as long as it was.
        assert expected == [40, 24, 24, 24]
        assert stopper.best_step == 1
        assert "2 cut short left out" in stopper.reason

    def test_every_second_batch(self):
        assert expected_of(self.every.split(4), every=2) == (20, 20)
        assert expected_of(self.every.split(4)[:4], every=np.int64(2)) == (8, 20)

    def test_scores_made_by_hand_are_rows(self):
        monitor = GWAMonitor(network().head, 40)
        for ids in self.every.split(5)[:2]:
            monitor.add(torch.rand(5), ids)
        assert monitor.end_epoch().expected == 40
        monitor.add(torch.rand(5), self.every[:5])
        assert monitor.end_epoch(batches=2).expected == 10

    def test_a_resumed_epoch_without_its_beginning_was_cut_short(self):
        model = network()
        monitor = GWAMonitor(model.head, 40)
        run(monitor, model, stop_at=3)
        monitor.load_state_dict(monitor.state_dict() | {"epoch": None})
        run(monitor, model, start=3)
        assert (monitor.history[0].count, monitor.history[0].expected) == (16, 40)


@pytest.mark.parametrize("num_samples", [200, None])
def test_an_epoch_cut_short_is_not_the_best_one(num_samples):
    kept_by_value = 0
    for seed in range(4):
        torch.manual_seed(seed)
        model = network()
        x, y = batch(200)
        monitor = GWAMonitor(model.head, num_samples)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        stopper = EarlyStopper(MaxSeparation(), total_steps=9)
        for epoch in range(9):
            # The data end, or the time is up, in the last one.
            for ids in torch.randperm(200).split(8)[: 25 if epoch < 8 else 1]:
                F.cross_entropy(model(x[ids]), y[ids]).backward()
                optimizer.step()
                optimizer.zero_grad()
                monitor.update(y[ids], ids if num_samples else None)
            stopper.observe(monitor.end_epoch())
        assert stopper.best_step < 8
        assert "1 cut short left out" in stopper.reason
        assert select_epoch(monitor.history).step == stopper.best_step
        values = [summary.separation for summary in monitor.history]
        kept_by_value += values.index(max(values)) == 8
    # By its value alone it would have been.
    assert kept_by_value > 0


class TestMemory:
    def test_nothing_of_a_step_is_kept(self):
        model = network()
        monitor = GWAMonitor(model.head, 12)
        x, y = batch(12)
        logits = model(x)
        kept = weakref.ref(logits)
        monitor.update(y, torch.arange(12))
        del logits
        gc.collect()
        assert kept() is None
        assert monitor._capture.waiting == []

    def test_a_loop_that_never_updates_is_told(self):
        model = network()
        monitor = GWAMonitor(model.head)
        x, _ = batch(2)
        for _ in range(256):
            model(x)
        with pytest.raises(RuntimeError, match=r"`update` must follow .* 256 passes"):
            model(x)
        monitor.close()
        model(x)
        assert monitor._capture.waiting == []

    def test_a_stream_keeps_moments_only(self, monkeypatch):
        monkeypatch.setattr("gwa_torch._epoch.FOLD", 16)
        monkeypatch.setattr("gwa_torch._stage.BYTES", 0)
        model = network()
        folded, whole = GWAMonitor(model.head), GWAMonitor(model.head, 40)
        x, y = batch(40)
        for part in torch.arange(40).split(8):
            model(x[part])
            folded.update(y[part])
            whole.update(y[part], part)
        assert len(folded._keeper.epoch._pending) <= 1
        got, want = folded.end_epoch(), whole.end_epoch()
        assert folded.scores is None
        assert_allclose(got[:-2], want[:-2], rtol=1e-6)

    def test_closing_removes_the_hooks(self):
        model, loss = network(), nn.CrossEntropyLoss()
        with GWAMonitor(model.head, criterion=loss):
            assert model.head._forward_hooks
            assert loss._forward_hooks
        assert not model.head._forward_hooks
        assert not loss._forward_hooks

    def test_the_model_is_left_as_it_is(self):
        model = network()
        names = list(model.state_dict())
        monitor = GWAMonitor(model.head, 40)
        run(monitor, model)
        twin = network()
        run(GWAMonitor(twin.head, 40, every=100), twin)
        assert list(model.state_dict()) == names
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_a_copy_of_the_model_is_not_watched(self):
        model, loss = network(), nn.CrossEntropyLoss()
        x, y = batch(6)
        monitor = GWAMonitor(model.head, criterion=loss)
        teacher, its_loss = copy.deepcopy(model), copy.deepcopy(loss)
        file = io.BytesIO()
        torch.save(loss, file)
        file.seek(0)
        torch.load(file, weights_only=False)(teacher(x), y)
        for _ in range(100):
            its_loss(teacher(x), y)
        loss(model(x), y)
        assert monitor.end_epoch().count == 6


def test_a_monitor_that_is_left_behind_does_not_stop_the_next_training():
    """A notebook's cell that runs again, on the same model."""
    head = nn.Linear(4, 3)
    x, y = torch.randn(5, 4), torch.arange(5) % 3
    gc.disable()
    try:
        for _ in range(3):
            monitor = GWAMonitor(head, num_samples=5)
            for _ in range(300):
                head(x)
                monitor.update(y, torch.arange(5))
                monitor.end_epoch()
    finally:
        gc.enable()
    assert len(monitor.history) == 300
    left = weakref.ref(monitor)
    del monitor
    gc.collect()
    assert left() is None
    assert not head._forward_hooks


class TestState:
    @pytest.mark.parametrize("num_samples", [40, None])
    @pytest.mark.parametrize("killed_at", [1, 5, 13, 14, 19])
    def test_resumed_run_equals_the_uninterrupted_one(self, num_samples, killed_at):
        model = network()
        whole = GWAMonitor(model.head, num_samples)
        run(whole, model, epochs=4)

        model = network()
        monitor = GWAMonitor(model.head, num_samples)
        run(monitor, model, epochs=4, stop_at=killed_at)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "gwa": monitor.state_dict()}, file)
        monitor.close()
        file.seek(0)
        state = torch.load(file, weights_only=True)
        model = network(seed=9)
        model.load_state_dict(state["model"])
        resumed = GWAMonitor(model.head, num_samples)
        resumed.load_state_dict(state["gwa"])
        run(resumed, model, epochs=4, start=killed_at)

        assert resumed.history == whole.history
        assert select_epoch(resumed.history, MaxGWA()) == select_epoch(whole.history, MaxGWA())
        if num_samples:
            assert torch.equal(resumed.scores, whole.scores)
            assert torch.equal(resumed.label_quality, whole.label_quality)
        else:
            assert resumed.label_quality is None

    def test_label_quality_is_there_right_after_resuming(self):
        model = network()
        monitor = GWAMonitor(model.head, 40)
        assert monitor.label_quality is None
        run(monitor, model, epochs=2)
        resumed = GWAMonitor(model.head, 40)
        resumed.load_state_dict(monitor.state_dict())
        assert torch.equal(resumed.label_quality, monitor.label_quality)

    def test_a_state_is_a_copy(self):
        model = network()
        monitor = GWAMonitor(model.head, 40)
        run(monitor, model, stop_at=2)
        state = monitor.state_dict()
        before = copy.deepcopy(state)
        x, y = batch(40)
        model(x)
        monitor.update(y, torch.arange(40))
        assert torch.equal(state["epoch"]["first"], before["epoch"]["first"])

    def test_training_on_leaves_a_loaded_state_alone(self):
        model = network()
        monitor = GWAMonitor(model.head, 40)
        run(monitor, model, stop_at=2)
        state = monitor.state_dict()
        before = state["epoch"]["first"].clone()
        monitor.load_state_dict(state)
        run(monitor, model)
        assert torch.equal(state["epoch"]["first"], before)

    def test_a_state_of_something_else_is_refused(self):
        monitor = GWAMonitor(network().head, 40)
        with pytest.raises(ValueError, match=r"`state` must be of version 2 and num_samples=40"):
            monitor.load_state_dict(GWAMonitor(network().head, 41).state_dict())
        assert monitor.history == []


class TestRunFolder:
    def test_gwa_analyse_reads_what_save_wrote(self, tmp_path):
        model = network()
        monitor = GWAMonitor(model.head, 40)
        _, y = batch(40)
        for epoch in range(3):
            run(monitor, model)
            monitor.save(tmp_path / "run", metrics={"accuracy": epoch / 3}, targets=y)
        report = analyse(open_features(tmp_path / "run"))
        assert [record.summary.epoch for record in report.epochs] == [0, 1, 2]
        folder = RunFolder.open(tmp_path / "run")
        assert (folder.adapter, folder.num_classes) == ("torch", CLASSES)
        assert_allclose(folder.scores(2), monitor.scores)
        assert folder.epochs()[1][1] == {"accuracy": pytest.approx(1 / 3)}

    @pytest.mark.parametrize("residual", ["auto", "backward"])
    @pytest.mark.parametrize("rows", [8, 512])
    def test_predictions_are_those_of_the_pass_of_the_score(self, residual, rows, tmp_path):
        # Small batches wait on the host, large ones do not.
        n = 5 * rows
        model, twin = network(), network()
        monitor = GWAMonitor(model.head, n, residual=residual)
        run(monitor, model, rows=n, size=rows)
        monitor.save(tmp_path / "run")
        x, y = batch(n)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        want = torch.full((n,), -1)
        # A sample that comes again keeps what was first; the last ones do not come.
        for ids in (torch.arange(n - 3).split(rows), torch.arange(2 * rows).split(rows)):
            for part in ids:
                logits, fresh = model(x[part]), want[part] < 0
                want[part[fresh]] = logits.argmax(1)[fresh]
                F.cross_entropy(logits, y[part]).backward()
                monitor.update(y[part], part)
                optimizer.step()
                optimizer.zero_grad()
        monitor.end_epoch()
        monitor.save(tmp_path / "run")
        folder = RunFolder.open(tmp_path / "run")
        assert folder.predictions(0) is None
        assert_array_equal(folder.predictions(1), want)
        assert (folder.predictions(1) == -1).sum() == 3
        assert_array_equal(open_features(folder.path).epochs[1].predictions, want)
        # And the training is the same as without.
        run(GWAMonitor(twin.head), twin, rows=n, size=rows)
        other = network()
        watched = GWAMonitor(other.head, n, residual=residual)
        watched._keeper.predicts = True
        run(watched, other, rows=n, size=rows)
        for ours, theirs in zip(other.parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_predictions_survive_a_kill_in_the_middle_of_an_epoch(self, tmp_path):
        folders = []
        for killed_at in (None, 7):
            model = network()
            monitor = GWAMonitor(model.head, 40)
            run(monitor, model)
            monitor.save(tmp_path / str(killed_at))
            run(monitor, model, epochs=2, start=5, stop_at=killed_at)
            if killed_at:
                state = monitor.state_dict()
                monitor.close()
                monitor = GWAMonitor(model.head, 40)
                monitor.load_state_dict(state)
                run(monitor, model, epochs=2, start=killed_at)
            monitor.save(tmp_path / str(killed_at))
            folders.append(RunFolder.open(tmp_path / str(killed_at)))
        whole, resumed = (folder.predictions(1) for folder in folders)
        assert whole.min() >= 0
        assert_array_equal(resumed, whole)

    def test_tokens_and_several_labels_have_no_prediction(self, tmp_path):
        for loss in ("cross_entropy", "binary_cross_entropy"):
            model = network()
            monitor = GWAMonitor(model.head, 6, loss=loss, residual="formula")
            x, _ = batch(12)
            targets = torch.zeros(6, 2, dtype=torch.long)
            for _ in range(2):
                if loss == "cross_entropy":
                    model(x.reshape(6, 2, -1))
                    monitor.update(targets, torch.arange(6))
                else:
                    model(x[:6])
                    monitor.update(torch.zeros(6, CLASSES), torch.arange(6))
                monitor.end_epoch()
                monitor.save(tmp_path / loss)
            folder = RunFolder.open(tmp_path / loss)
            assert folder.scores(1) is not None
            assert folder.predictions(1) is None

    def test_one_sigmoid_predicts_one_of_two_classes(self, tmp_path):
        model = nn.Linear(4, 1)
        monitor = GWAMonitor(model, 20, loss="binary_cross_entropy", residual="formula")
        monitor._keeper.predicts = True
        x = batch(20)[0][:, :4]
        logits = model(x)
        monitor.update((x[:, :1] > 0).float(), torch.arange(20))
        monitor.end_epoch()
        monitor.save(tmp_path, targets=(x[:, 0] > 0).long())
        assert_array_equal(RunFolder.open(tmp_path).predictions(0), logits[:, 0] > 0)
        assert_array_equal(analyse(tmp_path).predictions, logits[:, 0] > 0)

    def test_a_resumed_run_goes_on_in_its_folder(self, tmp_path):
        model = network()
        monitor = GWAMonitor(model.head, 40)
        run(monitor, model)
        monitor.save(tmp_path)
        state = monitor.state_dict()
        for _ in range(2):
            run(monitor, model)
            monitor.save(tmp_path)
        resumed = GWAMonitor(model.head, 40)
        resumed.load_state_dict(state)
        run(resumed, model)
        resumed.save(tmp_path)
        assert [summary for summary, _ in RunFolder.open(tmp_path).epochs()] == resumed.history

    def test_saving_again_loses_no_scores(self, tmp_path):
        model = network()
        monitor = GWAMonitor(model.head, 40)
        run(monitor, model)
        monitor.save(tmp_path)
        before = np.array(RunFolder.open(tmp_path).scores(0))
        resumed = GWAMonitor(model.head, 40)
        resumed.load_state_dict(monitor.state_dict())
        run(monitor, model, stop_at=1)
        for one in (monitor, resumed):
            one.save(tmp_path)
            assert_allclose(RunFolder.open(tmp_path).scores(0), before)

    def test_another_run_is_not_overwritten(self, tmp_path):
        model = network()
        first, second = GWAMonitor(model.head, 40), GWAMonitor(model.head, 40)
        run(first, model)
        first.save(tmp_path)
        second.skip()
        run(second, model)
        with pytest.raises(FeaturesError, match="already holds a run"):
            second.save(tmp_path)
        assert [summary for summary, _ in RunFolder.open(tmp_path).epochs()] == first.history


def monitored(num_samples=None, rows=6, **options):
    """A monitor whose head was called once."""
    model = network()
    monitor = GWAMonitor(model.head, num_samples, **options)
    model(batch(rows)[0])
    return monitor


LABELS = torch.zeros(6, dtype=torch.int64)


def changed_in_place():
    model = network()
    monitor = GWAMonitor(model.head)
    logits = model(batch(6)[0])
    logits /= 2.0
    monitor.update(LABELS)


def eval_mode():
    model = network().eval()
    monitor = GWAMonitor(model.head)
    model(batch(6)[0])
    monitor.update(LABELS)


def compiled_before():
    torch._dynamo.reset()
    model = network()
    compiled = torch.compile(model, backend="eager")
    compiled(batch(6)[0])
    monitor = GWAMonitor(model.head)
    compiled(batch(6)[0])
    monitor.update(LABELS)


def two_passes():
    model = network()
    monitor = GWAMonitor(model.head)
    model(batch(6)[0])
    model(batch(6)[0])
    monitor.update(LABELS)


def strays():
    monitor = monitored(6)
    # As on a GPU, where looking at the ids would wait.
    with mock.patch("gwa_torch._targets.check_ids"):
        monitor.update(LABELS, torch.tensor([0, 1, 2, 3, 4, 6]))
    monitor.end_epoch()


def flattened():
    head = nn.Linear(4, 3)
    head.weight = nn.Parameter(head.weight.detach().flatten())
    GWAMonitor(head)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def mixup_in_two_calls():
    model, loss = network(), nn.CrossEntropyLoss()
    with GWAMonitor(model.head, criterion=loss):
        logits = model(batch(6)[0])
        0.3 * loss(logits, LABELS) + 0.7 * loss(logits, LABELS + 1)


def part_of_the_classes():
    model, loss = network(), nn.CrossEntropyLoss()
    with GWAMonitor(model.head, criterion=loss):
        loss(model(batch(6)[0])[:, :2], LABELS)


def rescaled_criterion():
    model, loss = network(), nn.CrossEntropyLoss()
    monitor = GWAMonitor(model.head, criterion=loss)
    loss(model(batch(6)[0]) / 2, LABELS)
    monitor.end_epoch()


def turned_tokens():
    model = network()
    monitor = GWAMonitor(model.head)
    model(batch(6)[0].reshape(3, 2, INPUTS))
    monitor.update(LABELS.reshape(2, 3))


def other_logits():
    monitor = monitored()
    monitor.update(LABELS, logits=torch.zeros(6, CLASSES))


def state_of_another_rank():
    monitor = monitored(6)
    monitor.update(LABELS, torch.arange(6))
    state = monitor.state_dict() | {"rank": 1, "world": 2, "whole": False}
    GWAMonitor(network().head, 6).load_state_dict(state)


# What was done, and what raises.
CASES = [
    ("a head that is not linear", lambda: GWAMonitor(nn.ReLU())),
    ("a head with a forward of its own", lambda: GWAMonitor(Scaled(4, 3))),
    ("a 3×3 convolution as head", lambda: GWAMonitor(nn.Conv2d(4, 3, 3))),
    ("a lazy head that was never called", lambda: GWAMonitor(nn.LazyLinear(3))),
    ("a head that FSDP1 has flattened", flattened),
    ("a name without a model", lambda: GWAMonitor("head")),
    ("an unknown name", lambda: GWAMonitor("fc", model=network())),
    ("a model without a linear layer", lambda: GWAMonitor(None, model=nn.ReLU())),
    ("one output and softmax", lambda: GWAMonitor(nn.Linear(4, 1))),
    ("an unknown loss", lambda: GWAMonitor(nn.Linear(4, 3), loss="hinge")),
    ("label smoothing of 1", lambda: GWAMonitor(nn.Linear(4, 3), label_smoothing=1.0)),
    (
        "class weights of another length",
        lambda: GWAMonitor(nn.Linear(4, 3), class_weights=torch.ones(4)),
    ),
    (
        "a weighted sigmoid loss",
        lambda: GWAMonitor(
            nn.Linear(4, 3), criterion=nn.BCEWithLogitsLoss(pos_weight=torch.ones(3))
        ),
    ),
    ("a sketch of another width", lambda: GWAMonitor(nn.Linear(4, 3), sketch=JLSketch(8, 2))),
    ("`num_samples` of 0", lambda: GWAMonitor(nn.Linear(4, 3), 0)),
    ("`every` of 0", lambda: GWAMonitor(nn.Linear(4, 3), every=0)),
    (
        "a criterion and ids",
        lambda: GWAMonitor(nn.Linear(4, 3), 6, criterion=nn.CrossEntropyLoss()),
    ),
    ("ids without `num_samples`", lambda: monitored().update(LABELS, torch.arange(6))),
    ("`num_samples` without ids", lambda: monitored(6).update(LABELS)),
    ("ids out of range", lambda: monitored(6).update(LABELS, torch.arange(1, 7))),
    ("ids out of range, on a GPU", strays),
    ("floating ids", lambda: monitored(6).update(LABELS, torch.arange(6.0))),
    ("ids of another shape", lambda: monitored(6).update(LABELS, torch.arange(5))),
    ("a mask that is not boolean", lambda: monitored().update(LABELS, where=LABELS)),
    ("targets of another batch", lambda: monitored().update(LABELS[:5])),
    ("soft targets of another width", lambda: monitored().update(torch.ones(6, 4))),
    ("labels as a list", lambda: monitored().update([0] * 6)),
    ("floating class numbers", lambda: monitored().update(LABELS.float())),
    ("the model in eval mode", eval_mode),
    ("a monitor made after the first compiled call", compiled_before),
    ("an update too many", lambda: [(m := monitored()).update(LABELS), m.update(LABELS)]),
    ("several passes and targets for one", two_passes),
    ("logits changed in place", changed_in_place),
    ("logits of no pass", other_logits),
    ("targets of tokens in another order", turned_tokens),
    ("a criterion called twice, as in mixup", mixup_in_two_calls),
    ("a criterion called with some classes only", part_of_the_classes),
    ("a criterion called with rescaled logits", rescaled_criterion),
    ("another loss as criterion", lambda: GWAMonitor(nn.Linear(4, 3), criterion=nn.MSELoss())),
    (
        "label smoothing said twice",
        lambda: GWAMonitor(nn.Linear(4, 3), criterion=nn.CrossEntropyLoss(), label_smoothing=0.1),
    ),
    ("`beta` that is not a number", lambda: GWAMonitor(nn.Linear(4, 3), beta=float("nan"))),
    ("class weights as a list", lambda: GWAMonitor(nn.Linear(4, 3), class_weights=[1, 2, 3])),
    ("scores that are no vector", lambda: GWAMonitor(nn.Linear(4, 3)).add(torch.rand(2, 3, 4))),
    ("a state of another rank in mid-epoch", state_of_another_rank),
    ("an epoch without samples", lambda: GWAMonitor(nn.Linear(4, 3)).end_epoch()),
    ("saved before an epoch ended", lambda: GWAMonitor(nn.Linear(4, 3)).save("run")),
]


@pytest.mark.parametrize(("what", "do"), CASES, ids=[case[0] for case in CASES])
def test_a_mistake_is_explained(what, do):
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        do()
    message = str(caught.value)
    assert "`" in message or "must" in message
    assert "got" in message


def test_a_mistake_loses_only_its_batch():
    model = network()
    monitor = GWAMonitor(model.head, 12)
    x, y = batch(12)
    model(x[:6])
    monitor.update(y[:6], torch.arange(6))
    model(x[6:])
    with pytest.raises(ValueError, match="ids"):
        monitor.update(y[6:], torch.arange(7, 13))
    with pytest.raises(ValueError, match="targets"):
        monitor.update(y[6:11], torch.arange(6, 11))
    monitor.update(y[6:], torch.arange(6, 12))
    assert monitor.end_epoch().count == 12


def test_a_batch_that_failed_is_not_mixed_with_the_next():
    model = network()
    monitor = GWAMonitor(model.head, 12)
    x, y = batch(12)
    model(x[:6])
    with pytest.raises(ValueError, match="ids"):
        monitor.update(y[:6], torch.arange(7, 13))
    want = head_oracle(model, x[6:], y[6:])
    model(x[6:])
    monitor.update(y[6:], torch.arange(6, 12))
    assert monitor.end_epoch().count == 6
    assert_allclose(monitor.scores[6:], want, atol=1e-6)


def test_batches_that_are_skipped_or_empty_do_no_harm():
    model = network()
    monitor = GWAMonitor(model.head, 12)
    x, y = batch(12)
    model(x[:6])
    monitor.skip()
    model(x[:0])
    monitor.update(y[:0], torch.arange(0))
    model(x[6:])
    monitor.update(y[6:], torch.arange(6, 12))
    assert monitor.end_epoch().count == 6


def test_two_passes_are_scored_one_after_the_other_by_their_logits():
    model = network()
    monitor = GWAMonitor(model.head, 12)
    x, y = batch(12)
    for _ in range(3):
        first, second, _ = model(x[:6]), model(x[6:]), model(x[:6] + 1)
        monitor.update(y[:6], torch.arange(6), logits=first)
        monitor.update(y[6:], torch.arange(6, 12), logits=second)
    assert_allclose(monitor.scores, head_oracle(model, x, y), atol=1e-6)
    assert len(monitor._capture.waiting) <= 2


def test_a_criterion_is_heard_for_each_of_two_passes():
    model, loss = network(), nn.CrossEntropyLoss()
    monitor = GWAMonitor(model.head, criterion=loss)
    x, y = batch(12)
    first, second = model(x[:6]), model(x[6:])
    loss(first, y[:6]) + loss(second, y[6:])
    with torch.no_grad():
        loss(second, y[6:])  # to look at it again is no training
    got = monitor.end_epoch()
    assert got.count == 12
    assert_allclose(got.mean, head_oracle(model, x, y).mean(), rtol=1e-5)


@pytest.mark.parametrize("classes", [200, 256, 300])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_class_numbers_and_ids_of_any_integer_dtype(classes, dtype):
    head = nn.Linear(FEATURES, classes)
    monitor = GWAMonitor(head, 6)
    z, y = torch.randn(6, FEATURES), torch.tensor([0, 1, 100, 155, 156, 199])
    head(z)
    monitor.update(y.to(dtype), torch.arange(6).to(dtype))
    got = monitor.end_epoch()
    assert (got.count, got.omitted) == (6, 0)
    assert_allclose(monitor.scores, oracle(z, head.weight, head.bias, y), atol=1e-5)


def pixels_of(classes, loss):
    torch.manual_seed(0)
    head = nn.Conv2d(FEATURES, classes, 1)
    return head, torch.randn(3, FEATURES, 4, classes), GWAMonitor(head, criterion=loss)


@pytest.mark.parametrize("squeezed", [False, True])
def test_masks_of_one_sigmoid_output(squeezed):
    loss = nn.BCEWithLogitsLoss()
    head, z, monitor = pixels_of(1, loss)
    mask = (torch.rand(3, 1, 4, 1) < 0.5).float()
    logits = head(z)
    loss(logits.squeeze(1), mask.squeeze(1)) if squeezed else loss(logits, mask)
    rows = z.movedim(1, -1).flatten(0, -2)
    want = oracle(rows, head.weight, head.bias, mask.flatten(), loss="binary_cross_entropy")
    assert_allclose(monitor.end_epoch().mean, want.mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["cross_entropy", "binary_cross_entropy"])
def test_soft_pixels_of_a_criterion(kind):
    loss = nn.CrossEntropyLoss() if kind == "cross_entropy" else nn.BCEWithLogitsLoss()
    # As many classes as columns, so that a wrong axis would fit, too.
    head, z, monitor = pixels_of(4, loss)
    soft = torch.rand(3, 4, 4, 4)
    soft = soft / soft.sum(1, keepdim=True)
    loss(head(z), soft)
    rows, targets = (x.movedim(1, -1).flatten(0, -2) for x in (z, soft))
    want = oracle(rows, head.weight, head.bias, targets, loss=kind)
    assert_allclose(monitor.end_epoch().mean, want.mean(), rtol=1e-5)


def test_several_labels_a_token():
    loss = nn.BCEWithLogitsLoss()
    torch.manual_seed(0)
    head = nn.Linear(FEATURES, 4)
    monitor = GWAMonitor(head, criterion=loss)
    z, y = torch.randn(3, 4, FEATURES), (torch.rand(3, 4, 4) < 0.5).float()
    loss(head(z), y)
    rows, targets = z.flatten(0, 1), y.flatten(0, 1)
    want = oracle(rows, head.weight, head.bias, targets, loss="binary_cross_entropy")
    assert_allclose(monitor.end_epoch().mean, want.mean(), rtol=1e-5)


def test_flattened_pixels_with_soft_targets():
    torch.manual_seed(0)
    head = nn.Conv2d(FEATURES, CLASSES, 1)
    monitor = GWAMonitor(head, CLASSES)
    z = torch.randn(CLASSES, FEATURES, 1, 1)
    soft = torch.softmax(torch.randn(CLASSES, CLASSES), 1)
    head(z).flatten(1)
    monitor.update(soft, torch.arange(CLASSES))
    want = oracle(z.flatten(1), head.weight, head.bias, soft)
    assert_allclose(monitor.scores, want, atol=1e-6)


def test_spectral_norm_is_left_alone():
    def train(*, watch):
        torch.manual_seed(0)
        head = nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, CLASSES))
        monitor = GWAMonitor(head, 6) if watch else None
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        z, y = torch.randn(6, FEATURES), torch.arange(6) % CLASSES
        for _ in range(3):
            F.cross_entropy(head(z), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if monitor is not None:
                monitor.update(y, torch.arange(6))
                monitor.end_epoch()
        return head.state_dict()

    watched, alone = train(watch=True), train(watch=False)
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


def test_many_small_passes_of_a_compiled_model():
    torch._dynamo.reset()
    model = network()
    monitor = GWAMonitor(model.head, 24)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, y = batch(24)
    with torch._dynamo.config.patch(error_on_recompile=False, recompile_limit=3):
        for _ in range(2):
            for part in x.split(2):
                compiled(part)
            monitor.update(y, torch.arange(24))
            assert monitor.end_epoch().count == 24
    assert_allclose(monitor.scores, head_oracle(model, x, y), atol=1e-6)


def test_counts_may_be_those_of_numpy():
    monitor = GWAMonitor(nn.Linear(4, 3), np.int64(6), every=np.int32(2))
    assert (monitor.num_samples, monitor.every) == (6, 2)
    for name in ("num_samples", "every", "sketch"):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer .* got True"):
            GWAMonitor(nn.Linear(4, 3), **{name: True})


def test_numbers_may_be_those_of_numpy():
    monitor = GWAMonitor(
        nn.Linear(4, 3),
        beta=np.float32(1.5),
        label_smoothing=np.float64(0.25),
        ignore_index=np.int16(-1),
        sketch=np.int64(2),
    )
    monitor.head(torch.randn(6, 4))
    monitor.update(torch.tensor([0, 1, 2, -1, 0, 1]))
    assert monitor.end_epoch(step=np.int32(3))[1:3] == (3, 5)
    assert (monitor.beta, monitor.options.label_smoothing) == (1.5, 0.25)
    assert monitor.sketch.out_features == 2
    file = io.BytesIO()
    torch.save(monitor.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["beta"] == 1.5


@pytest.mark.parametrize("value", [True, np.True_, "1", None, 1.5])
def test_other_things_are_no_numbers(value):
    with pytest.raises(TypeError, match="`ignore_index` must be an integer"):
        GWAMonitor(nn.Linear(4, 3), ignore_index=value)
    monitor = monitored()
    monitor.update(LABELS)
    for name in ("batches", "step"):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 0"):
            monitor.end_epoch(**{name: -1 if value is None else value})
    if value != 1.5:
        for name in ("beta", "label_smoothing"):
            with pytest.raises(ValueError, match=f"`{name}` must be a finite number"):
                GWAMonitor(nn.Linear(4, 3), **{name: value})


def test_scores_alone_have_no_signals():
    monitor = GWAMonitor(nn.Linear(4, 3), signals="margin")
    with pytest.raises(ValueError, match="`add` must come without `signals=`, got margin"):
        monitor.add(torch.tensor([0.1, 0.2]))


def test_ids_out_of_range_on_a_device_are_said_once_and_lose_nothing():
    monitor = monitored(6)
    with mock.patch("gwa_torch._targets.check_ids"):
        monitor.update(LABELS, torch.tensor([0, 1, 2, 3, 4, 99]))
    with pytest.raises(ValueError, match="got 1 outside"):
        monitor.end_epoch()
    assert monitor.end_epoch().count == 5
    assert isinstance(monitor.history[0], EpochSummary)


def test_an_epoch_that_ended_keeps_its_scores_when_the_next_is_empty():
    model = network()
    monitor = GWAMonitor(model.head, 40)
    run(monitor, model)
    before = monitor.scores
    with pytest.raises(ValueError, match="an epoch must have scores"):
        monitor.end_epoch()
    assert torch.equal(monitor.scores, before)
    assert len(monitor.history) == 1


def test_a_criterion_of_tokens_has_the_classes_second():
    model, loss = network(), nn.CrossEntropyLoss()
    monitor = GWAMonitor(model.head, criterion=loss)
    x, _ = batch(12)
    soft = torch.softmax(torch.randn(12, CLASSES), 1)
    logits = model(x.reshape(3, 4, INPUTS))
    loss(logits.movedim(-1, 1), soft.reshape(3, 4, CLASSES).movedim(-1, 1))
    got = monitor.end_epoch()
    want = head_oracle(model, x, soft)
    assert_allclose([got.count, got.mean], [12, want.mean()], rtol=1e-5)


@pytest.mark.parametrize("features", [8, 50, 300])
def test_rows_that_wait_have_the_scores_of_rows_that_do_not(features):
    # Which batches wait depends on where a run was resumed.
    torch.manual_seed(0)
    head = nn.Linear(features, 5)
    x, y = torch.randn(64, features), torch.randint(5, (64,))
    waiting = GWAMonitor(head, 64, residual="formula")
    at_once = GWAMonitor(head, 64, residual="formula", signals="margin")
    for ids in torch.arange(64).split(16):
        head(x[ids])
        waiting.update(y[ids], ids)
        at_once.update(y[ids], ids)
    assert waiting.end_epoch() == at_once.end_epoch()
    assert torch.equal(waiting.scores, at_once.scores)
