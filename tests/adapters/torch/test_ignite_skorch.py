"""The pages about ignite and skorch: their own code, and what it promises."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import pickle
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from backends import require

torch = pytest.importorskip("torch")

from numpy.testing import assert_allclose
from torch import nn

from gwa_core import GWATracker, alignment_scores
from gwa_torch import GWAMonitor

DOCS = Path(__file__).resolve().parents[3] / "docs"
EPOCHS = 60


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def page(name, folder):
    """Run a page of the documentation as a module, in a folder."""
    require("sklearn")
    with warnings.catch_warnings():
        # PyTorch's word on parts of its own that ignite imports.
        warnings.filterwarnings("ignore", "`torch.jit.* is deprecated", DeprecationWarning)
        require(name)
    execute = load(DOCS / "execute.py")
    module = types.ModuleType(f"page_{name}")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        for block in execute.blocks(DOCS / "torch" / f"{name}.md"):
            execute.run(block, vars(module))
        yield module


@pytest.fixture(scope="module")
def ignite_page(tmp_path_factory):
    with page("ignite", tmp_path_factory.mktemp("ignite")) as module:
        yield module


@pytest.fixture(scope="module")
def skorch_page(tmp_path_factory):
    with page("skorch", tmp_path_factory.mktemp("skorch")) as module:
        yield module


def plain_loop(body, head, epochs):
    """Train and score in the plainest way, by the core alone; `epochs` yields batches."""
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=4e-3)
    tracker = GWATracker()
    for batches in epochs:
        for x, y in batches:
            latents = body(x)
            loss = nn.functional.cross_entropy(head(latents), y)
            arrays = {"latents": latents, "weight": head.weight, "bias": head.bias, "targets": y}
            tracker.update(alignment_scores(**{k: a.detach().numpy() for k, a in arrays.items()}))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        tracker.end_epoch()
    return tracker.history


def same_numbers(history, want):
    assert [summary.count for summary in history] == [summary.count for summary in want]
    for ours, theirs in zip(history, want, strict=True):
        assert_allclose(ours[4:-2], theirs[4:-2], rtol=1e-3, atol=1e-5)
        # The tracker, which has no ids, does not know.
        assert (ours.expected, theirs.expected) == (ours.count, None)


def test_ignite_gives_the_numbers_of_a_plain_loop(ignite_page):
    page = ignite_page

    def epochs():
        for epoch in range(1, 4):
            page.order.manual_seed(epoch)
            yield ((x, y) for x, y, _ in page.loader)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    want = plain_loop(model[:2], model[2], epochs())
    trainer, _, _, monitor = page.build()
    trainer.run(page.loader, max_epochs=3)
    same_numbers(monitor.history, want)
    assert [summary.step for summary in monitor.history] == [40, 80, 120]
    last = monitor.history[-1]
    assert trainer.state.metrics == {"gwa": last.gwa, "gwa_separation": last.separation}


def test_an_evaluator_of_ignite_changes_nothing(ignite_page):
    from ignite.engine import Engine, Events

    page, histories = ignite_page, []
    for evaluates in (False, True):
        trainer, model, _, monitor = page.build()

        def evaluate(engine, batch, model=model):
            model.eval()
            return model(batch[0])

        evaluator = Engine(evaluate)
        test = torch.utils.data.DataLoader(page.data, batch_size=600)
        if evaluates:
            for event in (Events.ITERATION_STARTED(every=7), Events.ITERATION_COMPLETED(every=7)):
                trainer.add_event_handler(event, lambda _, run=evaluator.run, test=test: run(test))
        trainer.run(page.loader, max_epochs=2)
        histories.append(monitor.history)
    assert histories[0] == histories[1]


def test_ignite_stops_at_the_largest_gwa_after_the_warm_up(ignite_page):
    page = ignite_page
    trainer, _, _, page.monitor = page.build()
    stopping = page.EarlyStopping(patience=5, score_function=page.score, trainer=trainer)
    trainer.add_event_handler(page.Events.EPOCH_COMPLETED(after=6), stopping)
    trainer.run(page.loader, max_epochs=EPOCHS)
    values = [summary.gwa for summary in page.monitor.history]
    assert len(values) < EPOCHS
    assert stopping.best_score == max(values[6:]) == values[-6]


def test_an_unhealthy_epoch_never_wins_in_ignite(ignite_page, monkeypatch):
    monitor = GWAMonitor(nn.Linear(2, 2))
    monitor.add(torch.tensor([-0.3, 0.3] * 20))
    assert not monitor.end_epoch().healthy
    monkeypatch.setattr(ignite_page, "monitor", monitor)
    assert ignite_page.score(None) == -math.inf


def test_the_rule_keeps_its_epoch_in_ignite(ignite_page):
    page = ignite_page
    stopper = page.whole["stopper"]
    assert stopper.should_stop
    trainer, model, _, _ = page.build()
    trainer.run(page.loader, max_epochs=stopper.best_step + 1)
    for name, value in page.whole["model"].state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def prepare(page):
    """The parts of the page, and ignite's own stopping as one more."""
    parts = page.prepare()
    trainer, monitor = parts["trainer"], parts["monitor"]

    def score(engine):
        return monitor.history[-1].gwa

    parts["stopping"] = page.EarlyStopping(5, score, trainer)
    trainer.add_event_handler(page.Events.EPOCH_COMPLETED(after=6), parts["stopping"])
    return parts


@pytest.fixture(scope="module", params=["DeterministicEngine", "Engine"])
def whole(request, ignite_page, tmp_path_factory):
    """The kind of engine, and a run of it without a break."""
    import ignite.engine

    page = ignite_page
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "DeterministicEngine", getattr(ignite.engine, request.param))
        patch.chdir(tmp_path_factory.mktemp("whole"))
        parts = prepare(page)
        parts["trainer"].run(page.loader, max_epochs=EPOCHS)
        yield request.param, parts


@pytest.mark.parametrize("last", [163, 200, 333])
def test_ignite_resumes_as_if_nothing_had_happened(ignite_page, whole, tmp_path, monkeypatch, last):
    from ignite.engine import Events

    page, (name, whole) = ignite_page, whole
    monkeypatch.chdir(tmp_path)
    dying = prepare(page)
    trainer, checkpoint = dying["trainer"], page.Checkpoint(dying, "checkpoints", n_saved=1)
    # A plain engine does not find its place in the data again.
    when = page.when if name == "DeterministicEngine" else Events.EPOCH_COMPLETED
    trainer.add_event_handler(when, checkpoint)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=last), lambda: trainer.terminate())
    trainer.run(page.loader, max_epochs=EPOCHS)
    assert len(dying["monitor"].history) < len(whole["monitor"].history)

    resumed = prepare(page)
    states = torch.load(checkpoint.last_checkpoint, weights_only=False)
    page.Checkpoint.load_objects(resumed, states)
    assert resumed["trainer"].state.iteration in (160, 300, 320)
    resumed["trainer"].run(page.loader, max_epochs=EPOCHS)
    assert resumed["monitor"].history == whole["monitor"].history
    assert torch.equal(resumed["monitor"].scores, whole["monitor"].scores)
    for part in ("stopper", "stopping"):
        assert resumed[part].state_dict() == whole[part].state_dict()


def test_skorch_gives_the_numbers_of_a_plain_loop(skorch_page):
    page = skorch_page
    x, y = torch.tensor(page.x), torch.tensor(page.y)
    torch.manual_seed(0)
    model = page.Network()
    batches = list(zip(x.split(45), y.split(45), strict=True))
    want = plain_loop(model.body, model.head, [batches] * 6)
    net = page.build(("gwa", page.GWA()))
    net.set_params(iterator_train__shuffle=False, max_epochs=6)
    net.fit(page.data, page.y)
    gwa = dict(net.callbacks_)["gwa"]
    same_numbers(gwa.monitor_.history, want)
    assert net.history[:, "train_gwa"] == [summary.gwa for summary in gwa.monitor_.history]


def fitted(net, page):
    net.fit(page.data, page.y)
    return dict(net.callbacks_)


def weights_after(page, epochs):
    """The weights of a run of so many epochs, without any callback."""
    net = page.build()
    net.set_params(max_epochs=epochs)
    net.fit(page.data, page.y)
    return net.module_.state_dict()


def same_weights(net, want):
    for name, value in net.module_.state_dict().items():
        assert torch.equal(value, want[name])


def test_skorch_stops_at_the_largest_gwa_and_goes_back_to_it(skorch_page):
    page = skorch_page
    net = page.build(("gwa", page.GWA()), ("stopping", page.EarlyStopping(**STOPPING)))
    callbacks = fitted(net, page)
    values = net.history[:, "train_gwa"]
    assert len(values) < net.max_epochs
    # A tenth of 40 epochs is the warm-up.
    assert [math.isnan(value) for value in values] == [True] * 4 + [False] * (len(values) - 4)
    best = int(np.nanargmax(values))
    assert callbacks["stopping"].best_epoch_ == best + 1 == len(values) - STOPPING["patience"]
    same_weights(net, weights_after(page, best + 1))


STOPPING = {"monitor": "train_gwa", "lower_is_better": False, "patience": 6, "load_best": True}


def test_skorch_keeps_the_epoch_of_the_rule(skorch_page):
    page = skorch_page
    # What the page itself has trained last.
    stopper = page.gwa.stopper_
    assert stopper.should_stop
    flags = page.net.history[:, "train_gwa_best"]
    assert max(epoch for epoch, flag in enumerate(flags) if flag) == stopper.best_step
    same_weights(page.net, weights_after(page, stopper.best_step + 1))


def test_validation_batches_of_skorch_do_not_count(skorch_page):
    from skorch.dataset import ValidSplit

    page = skorch_page
    net = page.build(("gwa", page.GWA()))
    net.set_params(train_split=ValidSplit(5), max_epochs=2)
    gwa = fitted(net, page)["gwa"]
    train, valid = net.get_split_datasets(page.data, page.y)
    assert len(valid) > 300
    assert [summary.count for summary in gwa.monitor_.history] == [len(train)] * 2
    assert int(gwa.monitor_.scores.isnan().sum()) == len(valid)
    assert int(gwa.monitor_.label_quality.isnan().sum()) == len(valid)
    # An epoch is one of the training data.
    assert [summary.expected for summary in gwa.monitor_.history] == [len(train)] * 2


def test_a_net_of_skorch_is_trained_again_cloned_and_pickled(skorch_page):
    from sklearn.base import clone

    page = skorch_page
    net = page.build(("gwa", page.GWA()))
    net.set_params(max_epochs=2)

    def numbers(net):
        return list(dict(net.callbacks_)["gwa"].monitor_.history)

    fitted(net, page)
    first = numbers(net)
    assert not net.module_.head._forward_hooks
    for other in (net, clone(net)):
        torch.manual_seed(0)
        fitted(other, page)
        assert numbers(other) == first
    copy = pickle.loads(pickle.dumps(net))  # noqa: S301
    assert numbers(copy) == first
    # Goes on with the same weights and the same optimiser.
    for one in (net, copy):
        torch.manual_seed(1)
        one.partial_fit(page.data, page.y)
    assert numbers(copy) == numbers(net) != first
    assert len(net.history) == 4
