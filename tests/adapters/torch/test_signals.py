"""Signals that a monitor follows: of the step's own weights, saved, resumed, refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gwa_core.signals import SIGNALS, TrackedSignals
from gwa_offline.store import RunFolder
from gwa_torch import GWAMonitor

N, C, D, EPOCHS = 40, 4, 6, 3


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, D), torch.nn.Tanh(), torch.nn.Linear(D, C))


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 5, generator=generator)
    return x, torch.randint(C, (N,), generator=generator)


def batches():
    generator = torch.Generator().manual_seed(2)
    for _ in range(EPOCHS):
        yield torch.randperm(N, generator=generator).split(8)


def train(monitor, net, *, see=None, epochs=range(EPOCHS), stop=None):
    """Train, and let `see` look at each batch before its step."""
    x, y = data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for epoch, order in enumerate(batches()):
        if epoch not in epochs:
            continue
        for k, ids in enumerate(order):
            if (epoch, k) == stop:
                return
            if see is not None:
                see(net, x[ids], y[ids], ids)
            loss = torch.nn.functional.cross_entropy(net(x[ids]), y[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.update(y[ids], ids=ids)  # after the step: with the weights before it
        monitor.end_epoch()
        if see is not None:
            see(None, None, None, None)


def test_signals_are_those_of_the_weights_before_the_step():
    net, direct = model(), TrackedSignals(SIGNALS, N)

    def see(net, x, y, ids):
        if net is None:
            direct.end_epoch()
            return
        with torch.no_grad():
            latents = net[1](net[0](x))
            logits = latents @ net[2].weight.T + net[2].bias  # a call would be watched
        direct.update(
            logits=logits.numpy(), latents=latents.numpy(), targets=y.numpy(), ids=ids.numpy()
        )

    monitor = GWAMonitor(net[2], num_samples=N, signals=SIGNALS)
    train(monitor, net, see=see)
    for found, wanted in zip(monitor.signals.history, direct.history, strict=True):
        assert list(found) == list(wanted)
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)
    for name, values in direct.over_epochs.items():
        np.testing.assert_allclose(monitor.signals.over_epochs[name], values, rtol=2e-5, atol=1e-6)


def test_ignored_targets_do_not_count():
    head = torch.nn.Linear(D, C)
    monitor = GWAMonitor(head, signals="margin")
    logits = head(torch.randn(6, D))
    monitor.update(torch.tensor([0, 1, -100, 2, -100, 3]))
    monitor.end_epoch()
    kept = [0, 1, 3, 5]
    wanted = TrackedSignals("margin")
    wanted.update(logits=logits.detach()[kept], targets=torch.tensor([0, 1, 2, 3]))
    assert monitor.signals.history[0] == pytest.approx(wanted.end_epoch())


def test_tokens_are_samples():
    head = torch.nn.Linear(D, C)
    monitor = GWAMonitor(head, signals=["el2n", "gradient_norm"])
    x, y = torch.randn(3, 5, D), torch.randint(C, (3, 5))
    head(x)
    monitor.update(y)
    monitor.end_epoch()
    flat = GWAMonitor(head, signals=["el2n", "gradient_norm"])
    head(x.reshape(15, D))
    flat.update(y.reshape(15))
    flat.end_epoch()
    assert monitor.signals.history[0] == pytest.approx(flat.signals.history[0])


@pytest.mark.parametrize("stop", [(1, 0), (1, 3), (2, 4)])
def test_a_resumed_run_is_the_whole_run(stop):
    whole_net = model()
    whole = GWAMonitor(whole_net[2], num_samples=N, signals=SIGNALS)
    train(whole, whole_net)

    net = model()
    first = GWAMonitor(net[2], num_samples=N, signals=SIGNALS)
    train(first, net, stop=stop)
    file = io.BytesIO()
    torch.save({"monitor": first.state_dict(), "model": net.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    again = model()
    again.load_state_dict(saved["model"])
    second = GWAMonitor(again[2], num_samples=N, signals=SIGNALS)
    second.load_state_dict(saved["monitor"])
    x, y = data()
    optimizer = torch.optim.SGD(again.parameters(), lr=0.5)
    for epoch, order in enumerate(batches()):
        for k, ids in enumerate(order):
            if (epoch, k) < stop:
                continue
            loss = torch.nn.functional.cross_entropy(again(x[ids]), y[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            second.update(y[ids], ids=ids)
        if epoch >= stop[0]:
            second.end_epoch()
    for a, b in zip(second.signals.history, whole.signals.history, strict=True):
        np.testing.assert_array_equal(list(a.values()), list(b.values()))
    for name, values in whole.signals.over_epochs.items():
        np.testing.assert_array_equal(second.signals.over_epochs[name], values)


@pytest.mark.parametrize("size", [N, None])
def test_an_epoch_that_is_left_out_of_a_state_is_left_out_whole(size):
    x, y, ids = torch.randn(8, D), torch.randint(C, (8,)), torch.arange(8)
    monitors = []
    for _ in range(2):
        torch.manual_seed(0)
        monitors.append(GWAMonitor(torch.nn.Linear(D, C), size, signals="margin"))

    def see(monitor, rows):
        monitor.head(x[rows])
        monitor.update(y[rows], None if size is None else ids[rows])

    again, wanted = monitors
    see(again, slice(0, 6))
    # What trainers do where a resumed run begins an epoch anew.
    again.load_state_dict(again.state_dict() | {"epoch": None})
    for monitor in monitors:
        see(monitor, slice(4, 8))
        assert monitor.end_epoch().count == 4
    assert again.signals.history == wanted.signals.history


def test_a_run_folder_has_their_means(tmp_path):
    net = model()
    monitor = GWAMonitor(net[2], num_samples=N, signals=["margin", "prediction_changes"])
    train(monitor, net, epochs=range(1))
    monitor.save(tmp_path / "run", metrics={"test_accuracy": 0.5})
    ((_, metrics),) = RunFolder.open(tmp_path / "run").epochs()
    assert metrics["margin"] == pytest.approx(monitor.signals.history[0]["margin"])
    assert metrics["test_accuracy"] == 0.5
    # There is no epoch before the first.
    assert "prediction_changes" not in metrics or np.isnan(metrics["prediction_changes"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
@pytest.mark.parametrize("column", [False, True])
def test_one_sigmoid_has_the_signals_of_two_classes(dtype, column):
    """Those of the softmax over (-u/2, u/2), whose gradient by u is that of the sigmoid."""
    torch.manual_seed(0)
    head = torch.nn.Linear(D, 1)
    x, y = torch.randn(N, D), torch.arange(N) % 2
    names = [name for name in SIGNALS if "previous epoch" not in SIGNALS[name].needs]
    loss = {"loss": "binary_cross_entropy"}
    monitor = GWAMonitor(head, N, signals=[*names, "prediction_changes"], **loss)
    logits = head(x).detach()
    monitor.update(y.to(dtype)[:, None] if column else y.to(dtype), torch.arange(N))
    monitor.end_epoch()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, 0], y.float(), reduction="none"
    )
    signs = 2.0 * y - 1.0
    residual = torch.sigmoid(logits[:, 0]) - y
    values = monitor.signals.values
    np.testing.assert_allclose(values["sample_loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(values["margin"], logits[:, 0] * signs, rtol=1e-5)
    np.testing.assert_allclose(values["label_probability"], torch.exp(-losses), rtol=1e-5)
    norms = residual.abs() * x.norm(dim=1)
    np.testing.assert_allclose(values["gradient_norm"], norms, rtol=1e-5)


def test_soft_labels_of_one_sigmoid_are_refused():
    head = torch.nn.Linear(D, 1)
    monitor = GWAMonitor(head, signals="margin", loss="binary_cross_entropy")
    head(torch.randn(4, D))
    with pytest.raises(ValueError, match="must be class numbers under `signals=`, got soft ones"):
        monitor.update(torch.tensor([0.0, 1.0, 0.3, 1.0]))
    monitor.update(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert monitor.end_epoch().count == 4


def test_without_signals_there_are_none():
    monitor = GWAMonitor(torch.nn.Linear(D, C))
    assert monitor.signals is None
    assert monitor.state_dict()["signals"] is None


def test_soft_targets_are_refused_and_nothing_is_lost():
    head = torch.nn.Linear(D, C)
    monitor = GWAMonitor(head, signals="margin")
    head(torch.randn(4, D))
    with pytest.raises(ValueError, match="no class is the label"):
        monitor.update(torch.full((4, C), 1 / C))
    monitor.update(torch.tensor([0, 1, 2, 3]))
    assert monitor.end_epoch().count == 4


def test_what_does_not_fit_is_said():
    head = torch.nn.Linear(D, C)
    with pytest.raises(ValueError, match="near: 'margin'"):
        GWAMonitor(head, signals=["margn"])
    with pytest.raises(
        ValueError, match=r"one label a sample, got .* C = 4 outputs; a sample with"
    ):
        GWAMonitor(head, signals="margin", loss="binary_cross_entropy")
    with pytest.raises(ValueError, match="`num_samples` must be given"):
        GWAMonitor(head, signals="forgetting_events")
    with pytest.raises(ValueError, match="where the monitor has them"):
        GWAMonitor(head).load_state_dict(GWAMonitor(head, signals="margin").state_dict())
