"""The metric is the monitor's number, in all that torchmetrics does with a metric."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchmetrics = pytest.importorskip("torchmetrics")

from models import CLASSES, FEATURES, batch, head_oracle, network
from numpy.testing import assert_allclose
from torchmetrics import MetricCollection, MetricTracker
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from gwa_core import MaxSeparation, gwa_score, select_epoch
from gwa_torch import GWAMonitor
from gwa_torch.torchmetrics import GradientWeightAlignment

ROOT = Path(__file__).resolve().parents[3]
PATHS = [str(ROOT / name) for name in ("", "adapters", "tests", "tests/adapters/torch")]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(rows=12, seed=1, **options):
    """A batch as the metric takes it, from the network of the tests."""
    model = network(**options)
    x, target = batch(rows, seed)
    latents = model.body(x.to(model.head.weight.dtype))
    head = {"weight": model.head.weight, "bias": model.head.bias}
    return (model.head(latents), target), {"latents": latents, **head}


def feed(metric, seeds=(1, 2, 3)):
    """Batches of uneven sizes."""
    for seed in seeds:
        preds, given = inputs(4 + 5 * seed, seed)
        metric.update(*preds, **given)
    return metric


def fed(seeds=(1, 2, 3), **options):
    return feed(GradientWeightAlignment(**options), seeds)


def numbers(summary):
    """All but which epoch it is, and what a metric cannot know: how many samples an epoch has."""
    assert summary.expected is None
    return summary[2:-2]


def same(metric, other):
    assert_allclose(numbers(metric.summary()), numbers(other.summary()), rtol=1e-12)
    assert_allclose(float(metric.compute()), float(other.compute()), rtol=1e-12)


WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])
TARGETS = {
    "classes": lambda rows: torch.arange(rows) % CLASSES,
    "soft": lambda rows: torch.softmax(torch.randn(rows, CLASSES), dim=1),
    "labels": lambda rows: (torch.randn(rows, CLASSES) > 0).long(),
    "some ignored": lambda rows: torch.arange(rows) % (CLASSES + 1) - 1,
}
CASES = {
    "softmax": ({}, "classes"),
    "beta": ({"beta": 2.0}, "classes"),
    "smoothing": ({"label_smoothing": 0.1}, "classes"),
    "class weights": ({"class_weights": WEIGHTS, "label_smoothing": 0.1}, "classes"),
    "soft targets": ({"class_weights": WEIGHTS}, "soft"),
    "sigmoid": ({"loss": "binary_cross_entropy"}, "labels"),
    "ignored": ({"ignore_index": -1}, "some ignored"),
    "ignored class": ({"ignore_index": 4}, "classes"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens", [False, True], ids=["samples", "tokens"])
def test_it_is_the_number_of_the_monitor(name, tokens):
    torch.manual_seed(0)
    options, kind = CASES[name]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    metric = GradientWeightAlignment(**options)
    with GWAMonitor(model.head, **options, residual="formula") as monitor:
        for rows in (12, 6, 20):
            x, target = torch.randn(rows, 8), TARGETS[kind](rows)
            if tokens:
                x, target = (a.reshape(2, rows // 2, *a.shape[1:]) for a in (x, target))
            latents = model.body(x)
            preds = model.head(latents)
            head = {"weight": model.head.weight, "bias": model.head.bias}
            metric.update(preds, target, latents=latents, **head)
            optimizer.zero_grad()
            preds.square().mean().backward()
            optimizer.step()
            monitor.update(target)
        want = monitor.end_epoch()
    # On a CPU the monitor scores the rows of several small batches together.
    assert want.count == (31 if "ignored" in name else 38)
    assert_allclose(numbers(metric.summary()), numbers(want), rtol=1e-5)
    assert metric.summary()[:2] == want[:2]
    assert_allclose(float(metric.compute()), want.gwa, rtol=1e-5)
    assert metric.compute().shape == ()


def test_options_may_be_those_of_numpy():
    ours = fed(label_smoothing=np.float32(0.25), beta=np.float64(1.5), ignore_index=np.int64(-7))
    same(ours, fed(label_smoothing=0.25, beta=1.5, ignore_index=-7))
    assert ours.summary(np.int64(3)).epoch == 3
    with pytest.raises(ValueError, match="`beta` must be a finite number, got True"):
        GradientWeightAlignment(beta=True)
    with pytest.raises(TypeError, match="`epoch` must be an integer, got True"):
        ours.summary(True)


def test_one_output_without_bias_is_the_number_of_the_monitor():
    head = torch.nn.Linear(FEATURES, 1, bias=False)
    latents, target = torch.randn(9, FEATURES), torch.arange(9) % 2
    metric = GradientWeightAlignment(loss="binary_cross_entropy")
    with GWAMonitor(head, loss="binary_cross_entropy", residual="formula") as monitor:
        metric.update(head(latents), target, latents=latents, weight=head.weight)
        monitor.update(target)
        want = monitor.end_epoch()
    assert_allclose(numbers(metric.summary()), numbers(want), rtol=1e-5)
    assert metric.summary()[:2] == want[:2]


def test_it_is_the_number_of_autograd():
    (preds, target), given = inputs(dtype=torch.float64)
    metric = GradientWeightAlignment()
    metric.update(preds, target, **given)
    want = gwa_score(head_oracle(network(torch.float64), batch()[0].double(), target))
    assert_allclose(float(metric.compute()), float(want), rtol=1e-10)


def test_forward_gives_the_value_of_the_batch_and_keeps_the_epoch():
    metric = GradientWeightAlignment()
    for seed in (1, 2, 3):
        preds, given = inputs(4 + 5 * seed, seed)
        value = metric(*preds, **given)
        assert value == fed([seed]).compute()
        assert not value.requires_grad
    same(metric, fed())


def test_states_are_merged():
    metric, other = fed([1]), fed([2, 3])
    # The value from before must not be given again.
    assert metric.compute() != fed().compute()
    metric.merge_state(other)
    same(metric, fed())
    again = fed([1])
    again.merge_state(other.metric_state)
    same(again, fed())


def test_reset_forgets():
    metric = fed([1])
    metric.reset()
    same(feed(metric, [2]), fed([2]))


def test_copies_go_on_by_themselves():
    options = {"class_weights": WEIGHTS, "label_smoothing": 0.1}
    metric = fed([1], **options)
    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric))):  # noqa: S301
        same(feed(copy, [2, 3]), fed(**options))
    same(metric, fed([1], **options))


def test_a_collection_gives_each_metric_its_own():
    metrics = MetricCollection(
        {
            "gwa": GradientWeightAlignment(),
            "wider": GradientWeightAlignment(beta=2.0),
            "accuracy": MulticlassAccuracy(CLASSES, average="micro"),
        }
    )
    feed(metrics)
    found = metrics.compute()
    assert found["gwa"] == fed().compute()
    assert found["wider"] == fed(beta=2.0).compute() != found["gwa"]
    accuracy = MulticlassAccuracy(CLASSES, average="micro")
    for seed in (1, 2, 3):
        accuracy.update(*inputs(4 + 5 * seed, seed)[0])
    assert found["accuracy"] == accuracy.compute()
    same(metrics["gwa"], fed())


def test_other_options_are_another_group_of_a_collection():
    smooth = {"label_smoothing": 0.1}
    metrics = MetricCollection(
        {"plain": GradientWeightAlignment(), "smooth": GradientWeightAlignment(**smooth)}
    )
    found = feed(metrics).compute()
    assert found == {"plain": fed().compute(), "smooth": fed(**smooth).compute()}


def test_a_tracker_finds_the_largest():
    tracker = MetricTracker(GradientWeightAlignment())
    values = []
    for seed in (1, 2, 3):
        tracker.increment()
        feed(tracker, [seed])
        values.append(float(tracker.compute()))
    best, step = tracker.best_metric(return_step=True)
    assert (best, step) == (max(values), values.index(max(values)))


def test_arithmetic_of_metrics():
    assert feed(2 * GradientWeightAlignment()).compute() == 2 * fed().compute()


def test_rules_watch_the_summaries():
    history = [fed([seed]).summary(epoch) for epoch, seed in enumerate((1, 2, 3))]
    assert [summary.epoch for summary in history] == [0, 1, 2]
    largest = max(history, key=lambda summary: summary.separation)
    assert select_epoch(history, MaxSeparation(warmup=0)).step == largest.epoch


def test_it_can_be_plotted(monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    metric = fed()
    _, axes = metric.plot()
    assert axes.lines[0].get_ydata() == pytest.approx([float(metric.compute())])
    _, axes = metric.plot([fed([seed]).compute() for seed in (1, 2, 3)])
    assert len(axes.lines[0].get_ydata()) == 3
    sys.modules["matplotlib.pyplot"].close("all")


def test_the_state_is_saved_when_asked_for(tmp_path):
    options = {"class_weights": WEIGHTS, "label_smoothing": 0.1}
    metric = fed([1], **options)
    assert metric.state_dict() == {}
    metric.persistent(True)
    torch.save(metric.state_dict(), tmp_path / "metric.pt")
    resumed = fed([3], **options)
    # The value from before must not be given again.
    assert resumed.compute() == fed([3], **options).compute()
    resumed.load_state_dict(torch.load(tmp_path / "metric.pt"))
    same(resumed, fed([1], **options))
    same(feed(resumed, [2, 3]), fed(**options))


def test_nothing_yet_is_a_warning_and_nan():
    metric = GradientWeightAlignment()
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        value = metric.compute()
    assert torch.isnan(value)
    assert metric.summary().count == 0
    assert not metric.summary().healthy


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half()])
def test_a_model_in_half_precision_leaves_the_sums_alone(cast):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.metric, self.mean = fed([1]), MeanMetric()

    metric = cast(Model()).metric
    assert metric.moments.dtype == torch.float64
    same(feed(metric, [2, 3]), fed())
    metric.reset()
    assert metric.moments.dtype == torch.float64


def test_half_precision_inputs_are_raised():
    (preds, target), given = inputs(dtype=torch.bfloat16)
    metric, wide = GradientWeightAlignment(), GradientWeightAlignment()
    metric.update(preds, target, **given)
    wide.update(preds.float(), target, **{name: x.float() for name, x in given.items()})
    assert_allclose(numbers(metric.summary())[2:], numbers(wide.summary())[2:], rtol=1e-5)


def test_scores_that_are_not_finite_are_counted():
    (preds, target), given = inputs()
    latents = given.pop("latents").detach().clone()
    latents[:2] = torch.nan
    # One of them does not count anyway.
    target[0] = -100
    metric = GradientWeightAlignment()
    metric.update(preds, target, latents=latents, **given)
    metric.merge_state(fed([1]))
    assert metric.summary()[2:4] == (10 + 9, 1)


@pytest.mark.parametrize("change", ["probabilities", "temperature", "bias", "kernel"])
def test_logits_of_something_else_are_refused(change):
    """Probabilities, what torchmetrics is used to, would have got a number and no word."""
    (preds, target), given = inputs()
    if change == "bias":
        given["bias"] = None
    elif change == "kernel":
        given["weight"] = given["weight"].flip(0)
    else:
        preds = preds.softmax(1) if change == "probabilities" else preds / 0.07
    metric = GradientWeightAlignment()
    with pytest.raises(ValueError, match=r"`preds` must be latents @ weight.T \+ bias.*probabilit"):
        metric.update(preds, target, **given)
    assert metric.moments[0] == 0


BAD = {
    "no classes": ({"preds": torch.zeros(12)}, r"`preds` must be \(N, C\)"),
    "other rows": ({"latents": torch.zeros(11, FEATURES)}, r"got shapes \(12, 5\) and \(11, 16\)"),
    "a kernel": ({"weight": torch.zeros(FEATURES, CLASSES)}, r"must be \(C, D\) = \(5, 16\)"),
    "few targets": ({"target": torch.zeros(11, dtype=torch.int64)}, "one entry a sample"),
    "one-hot": ({"target": torch.zeros(12, CLASSES, dtype=torch.int64)}, "one entry a sample"),
    "bias": ({"bias": torch.zeros(4)}, r"`bias` must be"),
    "device": (
        {"latents": torch.zeros(12, FEATURES, device="meta")},
        r"on the device of the metric, cpu, got meta; call metric.to\('meta'\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
    changed, message = BAD[name]
    (preds, target), given = inputs()
    metric = fed([1])
    with pytest.raises(ValueError, match=message):
        metric.update(**{"preds": preds, "target": target, **given, **changed})
    same(metric, fed([1]))


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "hinge"},
        {"label_smoothing": 1.0},
        {"class_weights": torch.ones(2, 2)},
        {"unknown": 1},
    ],
)
def test_bad_options_are_refused_at_once(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GradientWeightAlignment(**options)


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}


# The batches of the two processes, and what one of them alone would see.
SHARES = [(1, 3), (2,)]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    subprocess.run(command, env=environment(), timeout=120, check=True)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_allclose(first.pop("mine"), numbers(fed(SHARES[0]).summary()), rtol=1e-12)
    assert_allclose(second.pop("mine"), numbers(fed(SHARES[1]).summary()), rtol=1e-12)
    # Between the ranks nothing differs at all.
    assert first == second
    expected = {"whole": (1, 3, 2), "synced": (1, 3, 2), "step": (1, 2), "idle": (1, 3)}
    for name, seeds in expected.items():
        value, *summary = first[name]
        assert_allclose(summary, numbers(fed(seeds).summary()), rtol=1e-12)
        assert_allclose(value, float(fed(seeds).compute()), rtol=1e-12)


def work(rank):
    metric = fed(SHARES[rank])
    out = {"whole": [float(metric.compute()), *numbers(metric.summary())]}
    with metric.sync_context():
        together = metric.moments
        out["synced"] = [float(metric.compute()), *numbers(metric.summary())]
        assert torch.equal(metric.moments, together)
    alone = GradientWeightAlignment(sync_on_compute=False)
    alone.merge_state(metric)
    out["mine"] = numbers(alone.summary())
    # The value of a step over all processes.
    metric = GradientWeightAlignment(dist_sync_on_step=True)
    preds, given = inputs(4 + 5 * (rank + 1), rank + 1)
    value = metric(*preds, **given)
    out["step"] = [float(value), *numbers(metric.summary())]
    # A process without samples.
    metric = feed(GradientWeightAlignment(), SHARES[0] if rank == 0 else ())
    out["idle"] = [float(metric.compute()), *numbers(metric.summary())]
    return out


def main(folder):
    torch.set_num_threads(1)
    # Two processes of one import.
    other = os.fork()
    rank = 0 if other else 1
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(work(rank), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
    if other:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))


if __name__ == "__main__":
    main(sys.argv[1])
