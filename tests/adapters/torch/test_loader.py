"""The offline estimator: every sample at the weights of now, and nothing else changed."""

from __future__ import annotations

import copy
from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models import CLASSES, INPUTS, batch, head_oracle, network, oracle
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset
from zoo import library

from gwa_core import JLSketch, glass_delta, gwa_score
from gwa_torch import GWAMonitor, alignment_scores

ROWS = 50


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def data(rows=ROWS):
    x, y = batch(rows)
    return TensorDataset(x, y, torch.arange(rows))


def loader(rows=ROWS, **options):
    return DataLoader(data(rows), batch_size=8, **options)


def shuffled():
    return loader(shuffle=True, generator=torch.Generator().manual_seed(0))


def close(got, expected, atol=1e-5):
    assert got.dtype == torch.float32
    assert got.device.type == "cpu"
    assert_allclose(got.double(), expected, rtol=0, atol=atol)


def test_scores_equal_float64_autograd_in_the_order_of_the_loader():
    model = network()
    x, y, _ = data().tensors
    close(alignment_scores(model, loader(), "head"), head_oracle(model, x, y))


@pytest.mark.parametrize("head", [None, "head", "module"])
def test_ids_say_which_sample_is_which(head):
    model = network()
    x, y, _ = data().tensors
    head = model.head if head == "module" else head
    scores = alignment_scores(model, shuffled(), head, num_samples=ROWS)
    close(scores, head_oracle(model, x, y))


@pytest.mark.parametrize(
    ("smoothing", "weights"),
    [(0.1, None), (0.2, torch.arange(1.0, CLASSES + 1))],
    ids=["smoothed", "weighted"],
)
def test_the_options_of_the_loss(smoothing, weights):
    model = network()
    x, y, _ = data().tensors
    options = {"label_smoothing": smoothing, "class_weights": weights}
    close(alignment_scores(model, loader(), **options), head_oracle(model, x, y, **options))


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_soft_targets(loss):
    model = network()
    x, _ = batch(ROWS)
    soft = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))
    soft = soft.softmax(1) if loss == "cross_entropy" else (soft > 0.5).long()
    scores = alignment_scores(model, [(x, soft)], loss=loss)
    close(scores, head_oracle(model, x, soft.double(), loss=loss))


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
def test_one_output(shape):
    torch.manual_seed(0)
    model = nn.Linear(INPUTS, 1)
    x, y = batch(ROWS)
    y = (y > 2).long()
    wanted = oracle(x, model.weight, model.bias, y.double(), loss="binary_cross_entropy")
    for targets in (y, y.float()):
        scores = alignment_scores(model, [(x, targets.reshape(shape))], loss="binary_cross_entropy")
        close(scores, wanted)


def test_a_model_in_half_precision():
    model = network()
    x, y, _ = data().tensors
    expected = head_oracle(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        close(alignment_scores(model, loader()), expected, atol=2e-2)
    rounded = model.bfloat16()
    batches = [(x.bfloat16(), y)]
    close(alignment_scores(rounded, batches), expected, atol=2e-2)


def test_a_convolution_as_the_head():
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(pool, nn.Conv2d(6, CLASSES, 1), nn.Flatten())
    x, y = torch.randn(9, 6, 4, 4), torch.arange(9) % CLASSES
    linear = nn.Sequential(nn.Linear(6, CLASSES))
    linear[0].load_state_dict({k: v.squeeze() for k, v in model[1].state_dict().items()})
    expected = alignment_scores(linear, [(pool(x).flatten(1), y)])
    close(alignment_scores(model, [(x, y)], "1"), expected.double(), atol=1e-6)


def test_online_with_a_learning_rate_of_zero_is_the_same():
    # Fig. 6 at its limit. The network has neither dropout nor batch norm.
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with GWAMonitor(model.head, num_samples=ROWS) as monitor:
        for x, y, ids in shuffled():
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.update(y, ids=ids)
        summary = monitor.end_epoch()
        offline = alignment_scores(model, loader(), "head", num_samples=ROWS)
    close(offline, monitor.scores.double(), atol=1e-6)
    assert float(gwa_score(offline)) == pytest.approx(summary.gwa, abs=1e-5)


def test_online_follows_offline_while_weights_move():
    # App. A.1: an effect size of at most 0.12 at the paper's learning rates.
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GWAMonitor(model.head, num_samples=ROWS) as monitor:
        for _ in range(5):
            for x, y, ids in shuffled():
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.update(y, ids=ids)
            monitor.end_epoch()
            offline = alignment_scores(model, loader(), num_samples=ROWS)
            assert 0 < abs(float(glass_delta(monitor.scores, offline))) < 0.12


class Busy(nn.Module):
    """All that differs between the modes: dropout, batch norm, a frozen part."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(INPUTS, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
        self.frozen = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.frozen(self.body(x)))


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_has_its_own_mode_back(fails):
    model = Busy()
    model.frozen.eval()
    model.body[2].eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    batches = [*loader(), (torch.zeros(2, 3), torch.zeros(2, dtype=int), torch.arange(2))]
    if fails:
        with pytest.raises(RuntimeError, match="shapes"):
            alignment_scores(model, batches, "head")
    else:
        first = alignment_scores(model, batches[:-1], "head")
        assert torch.equal(first, alignment_scores(model, batches[:-1], "head")), "eval mode"
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not model.head._forward_hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_a_module_does_on_a_change_of_mode_is_undone():
    # As the layers of low-rank adaptation, which merge their weights in eval mode.
    class Merging(nn.Linear):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    # And one that will not be trained, but begins as every module does.
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    model = nn.Sequential(Merging(INPUTS, 16), Merging(16, 16), Frozen(16), nn.Linear(16, CLASSES))
    model[1].eval()
    before = [module.training for module in model.modules()]
    assert before == [True, True, False, True, True]
    alignment_scores(model, loader())
    assert (model[0].merged, model[1].merged) == (False, True)
    assert [module.training for module in model.modules()] == before


def test_a_monitor_does_not_see_it():
    model = network()
    x, y, ids = data().tensors
    expected = head_oracle(model, x, y)
    with GWAMonitor(model.head, num_samples=ROWS) as monitor:
        model(x)
        alignment_scores(model, loader())
        monitor.update(y, ids=ids)
        assert monitor.end_epoch().count == ROWS
        close(monitor.scores, expected)


class Named(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor
    number: torch.Tensor


def test_every_kind_of_batch():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x["x"] if isinstance(x, UserDict) else x)

    model = ByName()
    x, y, ids = data().tensors
    expected = head_oracle(model.inner, x, y)
    cases = [
        ([x, y, ids], {}),
        ({"x": x, "labels": y, "idx": ids}, {}),
        (UserDict(x=x, target=y, ids=ids), {}),
        ({"x": x, "kind": y, "place": ids}, {"targets": "kind", "ids": "place"}),
        (({"x": x}, y, ids), {}),
        ((ids, x, y), {"targets": 2, "ids": 0}),
        (Named(x, y, ids), {"targets": lambda b: b.label, "ids": lambda b: b.number}),
    ]
    for one, options in cases:
        close(alignment_scores(model, [one], num_samples=ROWS, **options), expected)
    # Without ids they are not asked for, nor given to the model.
    close(alignment_scores(model, [cases[1][0]]), expected)
    close(alignment_scores(model, [(x, y)]), expected)


def test_anything_else_goes_to_the_model_as_it_is():
    class Graph:
        def __init__(self, x, y):
            self.x, self.y = x, y

        def to(self, device, non_blocking=False):
            return Graph(self.x.to(device), self.y.to(device))

    class OnGraphs(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, graph):
            return self.inner(graph.x)

    model = OnGraphs()
    x, y = batch(ROWS)
    scores = alignment_scores(model, [Graph(x, y)], targets=lambda graph: graph.y)
    close(scores, head_oracle(model.inner, x, y))


def test_what_does_not_count_or_was_not_seen_is_nan():
    model = network()
    x, y = batch(6)
    y[2], y[4] = -100, 7
    scores = alignment_scores(model, [(x, y)])
    assert scores.isnan().tolist() == [False, False, True, False, True, False]
    ids = torch.tensor([0, 1, 2, 3, 4, 8])
    by_id = alignment_scores(model, [(x, y, ids.to(torch.int32))], num_samples=10)
    assert by_id.isfinite().nonzero().flatten().tolist() == [0, 1, 3, 8]
    assert by_id[8] == scores[5]
    other = alignment_scores(model, [(x, y)], ignore_index=int(y[0]))
    assert other[0].isnan()


def test_a_sample_seen_twice_keeps_its_first_score():
    model = network()
    x, y = batch(3)
    scores = alignment_scores(model, [(x, y)])
    twice = [(x, y, torch.tensor([0, 1, 2])), (x.flip(0), y.flip(0), torch.tensor([0, 1, 2]))]
    assert torch.equal(alignment_scores(model, twice, num_samples=3), scores)


@pytest.mark.parametrize("sketch", [8, JLSketch(16, 8)], ids=["size", "sketch"])
def test_a_sketch(sketch):
    model = network()
    x, y, ids = data().tensors
    scores = alignment_scores(model, loader(), sketch=sketch)
    with GWAMonitor(model.head, num_samples=ROWS, sketch=sketch) as monitor:
        model(x)
        monitor.update(y, ids=ids)
        close(scores, monitor.scores.double(), atol=1e-6)
    assert not torch.allclose(scores, alignment_scores(model, loader()), atol=1e-3)


@pytest.mark.parametrize("how", ["compiled", "compiled in place", "parallel", "head compiled"])
def test_wrapped_models(how):
    torch._dynamo.reset()
    model = network()
    expected = head_oracle(model, *batch(ROWS))
    wrapped = model
    if how == "compiled":
        wrapped = torch.compile(model, backend="eager")
    elif how == "parallel":
        wrapped = nn.DataParallel(model)
    elif how == "head compiled":
        model.head.compile(backend="eager")
    else:
        model.compile(backend="eager")
    wrapped.eval()(batch(8)[0])
    close(alignment_scores(wrapped, loader(), "head"), expected)
    # And it is compiled again afterwards, and still right.
    assert torch.equal(wrapped(batch(8)[0]), model.head(model.body(batch(8)[0])))


def test_logits_changed_in_place_after_the_head():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x).div_(3.0)

    model = Tempered()
    close(alignment_scores(model, loader()), head_oracle(model.inner, *batch(ROWS)))


def test_a_head_that_is_called_never_or_twice():
    class Odd(nn.Module):
        def __init__(self, calls):
            super().__init__()
            self.calls = calls
            self.head = nn.Linear(INPUTS, CLASSES)

        def forward(self, x):
            for _ in range(self.calls):
                self.head(x)
            return F.linear(x, self.head.weight)

    for calls in (0, 2):
        with pytest.raises(RuntimeError, match=f"called once a batch, got {calls} calls"):
            alignment_scores(Odd(calls), loader())


def test_tokens_and_pixels_are_not_samples():
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    x = torch.randn(4, 6, INPUTS)
    for y in (torch.zeros(4, dtype=int), torch.zeros(4, 6, dtype=int)):
        with pytest.raises(ValueError, match=r"one for each sample .*got \d+ targets.*GWAMonitor"):
            alignment_scores(model, [(x, y)])


def test_what_does_not_fit_is_refused():
    model = network()
    x, y = batch(4)
    cases = [
        ([], {}, "`loader` must have batches"),
        ([(x, y)], {"num_samples": 4}, "`ids` must be found in the batch"),
        ([(x,)], {}, "`targets` must be found in the batch"),
        ([(x, y, torch.arange(4) + 1)], {"num_samples": 4}, r"`ids` must be in 0..3, got 1..4"),
        ([(x, y, torch.arange(4.0))], {"num_samples": 4}, "`ids` must be a tensor of integers"),
        ([(x, y)], {"num_samples": 4, "ids": lambda _: [0, 1, 2, 3]}, "integers, got list"),
        ([(x, y, torch.arange(3))], {"num_samples": 4}, "`ids` must have one entry a sample"),
        ([(x, y[:3])], {}, "got 3 targets and an output of shape"),
        ([(x, y)], {"num_samples": 0}, "`num_samples` must be an integer of at least 1"),
        ([(x, y)], {"head": nn.Linear(16, 5)}, "`head` must be a module of `model`"),
        ([(x, y)], {"head": "haed"}, "`head` must be the name of a module"),
        ([(x, y)], {"loss": "hinge"}, "`loss` must be"),
        ([(x, y)], {"sketch": JLSketch(9, 4)}, "`sketch` must be made for D = 16"),
        ([(x, y)], {"class_weights": torch.ones(3)}, r"`class_weights` must be \(C,\) = \(5,\)"),
        ([(x, y.double())], {}, "`targets` must have the classes last"),
    ]
    for batches, options, words in cases:
        with pytest.raises(ValueError, match=words):
            alignment_scores(model, batches, **options)
    with pytest.raises(ValueError, match=r"`num_samples` must be an integer .* got True"):
        alignment_scores(model, loader(), num_samples=True)
    assert len(alignment_scores(model, loader(), num_samples=np.int64(ROWS))) == ROWS
    spent = iter(loader(8))
    alignment_scores(model, spent)
    with pytest.raises(ValueError, match="a generator is used up"):
        alignment_scores(model, spent)


def test_a_transformer_for_sequences():
    transformers = library("transformers")
    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_labels": 3}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**size, **layers))
    tokens, y = torch.randint(50, (6, 5)), torch.arange(6) % 3
    mask = torch.ones_like(tokens)
    inputs = {"input_ids": tokens, "attention_mask": mask, "labels": y, "idx": torch.arange(6)}
    scores = alignment_scores(model, [inputs], num_samples=6)
    assert model.training
    model.eval()
    weight, bias = model.classifier.weight, model.classifier.bias
    with torch.no_grad():
        latents = model.bert(tokens, mask).pooler_output
    close(scores, oracle(latents, weight, bias, y))
