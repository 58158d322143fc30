"""Scores of sequences in PyTorch: one for all tokens with one id, as autograd has it."""

from __future__ import annotations

import itertools
import warnings

import pytest

torch = pytest.importorskip("torch")

from models import CLASSES, FEATURES, INPUTS, network, oracle
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gwa_torch import GWAMonitor, _sequences

ROWS, LENGTH = 6, 5
REDUCED = {
    "mean": lambda scores: scores.mean(),
    "min": lambda scores: scores.min(),
}


def tokens(seed=0, rows=ROWS):
    """Inputs and labels by token, some of which do not count; the last row has none that does."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, LENGTH, INPUTS, generator=generator)
    y = torch.randint(CLASSES, (rows, LENGTH), generator=generator)
    y[torch.rand(rows, LENGTH, generator=generator) < 0.3] = -100
    y[:, 0] = 1
    y[-1] = -100
    return x, y


def of_tokens(model, x, y):
    """The score of each token, nan where it does not count."""
    found = torch.full(y.shape, torch.nan, dtype=torch.float64)
    latents = model.body(x.flatten(0, -2)).reshape(*y.shape, FEATURES)
    counted = y >= 0
    found[counted] = oracle(latents[counted], model.head.weight, model.head.bias, y[counted])
    return found


def of_gradient(model, x, y, **options):
    """Autograd of the loss of all these tokens together, by the weight of the head."""
    weight = model.head.weight.detach().double().requires_grad_()
    bias = None if model.head.bias is None else model.head.bias.detach().double()
    with torch.no_grad():
        latents = model.body(x).double()
    logits = F.linear(latents, weight, bias).flatten(0, -2)
    loss = F.cross_entropy(logits, y.flatten(), reduction="sum", **options)
    (gradient,) = torch.autograd.grad(loss, weight)
    return F.cosine_similarity(-gradient.flatten(), weight.flatten(), dim=0, eps=0).detach()


def wanted(model, x, y, reduce, **options):
    """One score a row by loops; nan where nothing counts."""
    found = []
    for row in range(len(x)):
        if not (y[row] >= 0).any():
            found.append(torch.tensor(torch.nan, dtype=torch.float64))
        elif reduce == "gradient":
            found.append(of_gradient(model, x[row], y[row], **options))
        else:
            scores = of_tokens(model, x[row], y[row])
            found.append(REDUCED[reduce](scores[scores.isfinite()]))
    return torch.stack(found)


def assert_near(got, want, tolerance=1e-6):
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("residual", ["auto", "formula", "backward"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduce", ["mean", "min", "gradient"])
def test_a_row_has_one_score(reduce, bias, residual):
    model = network(torch.float64, bias=bias)
    x, y = (tokens()[0].double(), tokens()[1])
    want = wanted(model, x, y, reduce)
    with GWAMonitor(model.head, ROWS, reduce=reduce, residual=residual) as monitor:
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        monitor.update(y, ids=torch.arange(ROWS))
        summary = monitor.end_epoch()
    assert_near(monitor.scores, want)
    assert summary.count == ROWS - 1
    assert monitor.residual == ("backward" if residual == "backward" else "formula")


@pytest.mark.parametrize("residual", ["formula", "backward"])
@pytest.mark.parametrize("at_a_time", [1, 4])
def test_rows_at_a_time_change_nothing(at_a_time, residual, monkeypatch):
    found = []
    for size in (_sequences.ROW_BYTES, at_a_time * 4 * LENGTH * CLASSES):
        monkeypatch.setattr(_sequences, "ROW_BYTES", size)
        model, (x, y) = network(), tokens()
        with GWAMonitor(model.head, ROWS, reduce="gradient", residual=residual) as monitor:
            F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            monitor.update(y, ids=torch.arange(ROWS))
            monitor.end_epoch()
            found.append(monitor.scores)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("reduce", ["mean", "min", "gradient"])
def test_packed_rows_are_those_of_a_padded_batch(reduce):
    model, (x, y) = network(torch.float64), tokens()
    x, kept = x.double(), y.flatten() != -100
    # What is not there cannot be ignored: ragged rows one behind the other.
    ids = torch.arange(ROWS).repeat_interleave(LENGTH)[kept]
    with GWAMonitor(model.head, ROWS, reduce=reduce) as monitor:
        logits = model(x.flatten(0, 1)[kept][None])
        F.cross_entropy(logits[0], y.flatten()[kept]).backward()
        monitor.update(y.flatten()[kept][None], ids=ids[None])
        monitor.end_epoch()
    assert_near(monitor.scores, wanted(model, x, y, reduce))


@pytest.mark.parametrize("reduce", ["mean", "min", "gradient"])
def test_a_sequence_that_is_cut_adds_up_over_batches(reduce):
    model, (x, y) = network(torch.float64), tokens()
    x, y = x.double(), y.clamp(min=0)
    parts = [slice(0, 2), slice(2, LENGTH)]
    if reduce == "gradient":
        lengths = []
        for row, part in itertools.product(range(ROWS), parts):
            model.zero_grad()
            F.cross_entropy(model(x[row, part]), y[row, part], reduction="sum").backward()
            lengths.append(model.head.weight.grad.norm())
        lengths = torch.stack(lengths).reshape(ROWS, 2)
        scores = torch.stack([wanted(model, x[:, p], y[:, p], reduce) for p in parts], dim=1)
        want = (scores * lengths).sum(1) / lengths.sum(1)
    else:
        want = wanted(model, x, y, reduce)
    with GWAMonitor(model.head, ROWS, reduce=reduce) as monitor:
        for part in parts:
            F.cross_entropy(model(x[:, part]).flatten(0, 1), y[:, part].flatten()).backward()
            monitor.update(y[:, part], ids=torch.arange(ROWS))
        monitor.end_epoch()
    assert_near(monitor.scores, want)


def test_the_gradient_knows_smoothing_and_class_weights():
    model, (x, y) = network(torch.float64), tokens()
    x, weights = x.double(), torch.linspace(0.2, 3.0, CLASSES, dtype=torch.float64)
    options = {"label_smoothing": 0.1, "weight": weights}
    told = {"label_smoothing": 0.1, "class_weights": weights}
    for names in ([], ["label_smoothing"], ["weight"], ["label_smoothing", "weight"]):
        chosen = {name: options[name] for name in names}
        own = {k: v for k, v in told.items() if k.replace("class_weights", "weight") in names}
        with GWAMonitor(model.head, ROWS, reduce="gradient", residual="formula", **own) as monitor:
            model(x)
            monitor.update(y, ids=torch.arange(ROWS))
            monitor.end_epoch()
        assert_near(monitor.scores, wanted(model, x, y, "gradient", **chosen))


@pytest.mark.parametrize("reduce", ["mean", "min", "gradient"])
def test_a_loss_that_the_closed_form_is_not_is_measured_by_its_gradient(reduce):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = network(torch.float64)

        def forward(self, x):
            return self.inside(x) / 0.2

    model, (x, y) = Scaled(), tokens()
    x = x.double()
    with GWAMonitor(model.inside.head, ROWS, reduce=reduce) as monitor:
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        with pytest.warns(UserWarning, match="temperature"):
            monitor.update(y, ids=torch.arange(ROWS))
        monitor.end_epoch()
    assert monitor.residual == "backward"
    head = model.inside.head
    for row in range(ROWS - 1):
        weight = head.weight.detach().clone().requires_grad_()
        logits = F.linear(model.inside.body(x[row]).detach(), weight, head.bias.detach()) / 0.2
        losses = F.cross_entropy(logits, y[row], reduction="none")

        def score(loss, weight=weight):
            (g,) = torch.autograd.grad(loss, weight, retain_graph=True)
            return F.cosine_similarity(-g.flatten(), weight.flatten(), dim=0).detach()

        single = torch.stack([score(loss) for loss, t in zip(losses, y[row]) if t >= 0])  # noqa: B905
        want = score(losses.sum()) if reduce == "gradient" else REDUCED[reduce](single)
        assert_near(monitor.scores[row], want)


@pytest.mark.parametrize("reduce", ["mean", "min", "gradient"])
def test_a_killed_run_goes_on_with_the_same_bits(reduce):
    def parts(model, monitor, seeds):
        for seed in seeds:
            x, y = tokens(seed)
            F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            monitor.update(y, ids=torch.randperm(ROWS, generator=torch.Generator().manual_seed(7)))

    model = network()
    whole = GWAMonitor(model.head, ROWS, reduce=reduce)
    parts(model, whole, (0, 1, 2))
    summary = whole.end_epoch()
    whole.close()
    first = GWAMonitor(model.head, ROWS, reduce=reduce)
    parts(model, first, (0, 1))
    state = first.state_dict()
    first.close()
    with GWAMonitor(model.head, ROWS, reduce=reduce) as second:
        second.load_state_dict(state)
        parts(model, second, (2,))
        assert second.end_epoch() == summary
        assert torch.equal(second.scores.nan_to_num(9), whole.scores.nan_to_num(9))
        assert torch.equal(second.label_quality.nan_to_num(9), whole.label_quality.nan_to_num(9))
    other = "min" if reduce == "mean" else "mean"
    with (
        GWAMonitor(model.head, ROWS, reduce=other) as third,
        pytest.raises(ValueError, match=f"`reduce` must be the one of the state, '{reduce}'"),
    ):
        third.load_state_dict(state)


def test_a_token_that_is_not_finite_takes_its_sequence_alone():
    model, (x, y) = network(), tokens()
    x[2, 0, 0] = torch.inf
    for reduce in ("mean", "min", "gradient"):
        with GWAMonitor(model.head, ROWS, reduce=reduce, residual="formula") as monitor:
            # The body would make 1 of infinity.
            model.head(x @ torch.ones(INPUTS, FEATURES))
            monitor.update(y, ids=torch.arange(ROWS))
            summary = monitor.end_epoch()
        assert monitor.scores.isnan().tolist() == [False, False, True, False, False, True]
        assert (summary.count, summary.omitted) == (ROWS - 2, 1)


def test_what_does_not_fit_is_told():
    model, (x, y) = network(), tokens()
    with pytest.raises(ValueError, match="`reduce` must be one of 'mean', 'min', 'gradient', got"):
        GWAMonitor(model.head, ROWS, reduce="max")
    with pytest.raises(ValueError, match="`reduce` must come with `num_samples`, got 'min'"):
        GWAMonitor(model.head, reduce="min")
    with pytest.raises(ValueError, match="`sketch` must be left out with reduce='gradient'"):
        GWAMonitor(model.head, ROWS, reduce="gradient", sketch=4)
    with GWAMonitor(model.head, ROWS) as monitor:
        model(x)
        with pytest.raises(ValueError, match=r"one a row, \(6,\), got shape \(5,\)"):
            monitor.update(y, ids=torch.arange(LENGTH))
        monitor.update(y, ids=torch.arange(ROWS))
        model(x[:, 0])
        monitor.update(y[:, 0], ids=torch.arange(ROWS))
        monitor.end_epoch()
        model(x[:, 0])
        monitor.update(y[:, 0].clamp(min=0), ids=torch.arange(ROWS))


@pytest.mark.parametrize("flattened", [True, False])
def test_tokens_that_were_flattened_are_told(flattened):
    model, (x, y) = network(), tokens()
    rows = torch.arange(ROWS)[:, None].expand(y.shape)
    with GWAMonitor(model.head, ROWS, residual="formula") as monitor, warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        if not flattened:
            monitor.update(y, ids=rows)
            monitor.end_epoch()
            return
        monitor.update(y.flatten(), ids=rows.flatten())
        with pytest.warns(UserWarning, match="rows with 5 different ids in this epoch; the first"):
            monitor.end_epoch()
        # Said once.
        model(x)
        monitor.update(y.flatten(), ids=rows.flatten())
        assert monitor.end_epoch().count == ROWS - 1


def dft(logits, y):
    """The cross-entropy of each token times its probability, as a loss of fine-tuning has it."""
    shares = logits.softmax(-1).gather(-1, y.clamp(min=0)[..., None])[..., 0].detach()
    losses = F.cross_entropy(logits.movedim(-1, 1), y, reduction="none")
    return (shares * losses).sum()


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_of_tokens_are_noticed(compiled):
    model, (x, y) = network(torch.float64), tokens()
    x = 3 * x.double()
    y[-1] = 2
    with GWAMonitor(model.head, ROWS, reduce="gradient") as monitor:
        made = torch.compile(model, backend="aot_eager") if compiled else model
        if compiled:
            # The gradient of a compiled pass is not kept: that is said, and nothing is raised.
            (5 * F.cross_entropy(made(x).flatten(0, 1) / 0.2, y.flatten())).backward()
            monitor.update(y, ids=torch.arange(ROWS))
            with pytest.warns(UserWarning, match="reduce='gradient' has no other way in a comp"):
                monitor.end_epoch()
            return
        dft(made(x), y).backward()
        with pytest.warns(UserWarning, match="weights of classes or tokens"):
            monitor.update(y, ids=torch.arange(ROWS))
        monitor.end_epoch()
        assert monitor.residual == "backward"
    for row in range(ROWS):
        weight = model.head.weight.detach().clone().requires_grad_()
        latents = model.body(x[row]).detach()
        logits = F.linear(latents, weight, model.head.bias.detach())
        (g,) = torch.autograd.grad(dft(logits[None], y[row][None]), weight)
        want = F.cosine_similarity(-g.flatten(), weight.flatten(), dim=0).detach()
        assert_near(monitor.scores[row], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_other_loss(dtype):
    model, (x, y) = network(), tokens()
    with GWAMonitor(model.head, ROWS, reduce="gradient") as monitor, warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            with torch.autocast("cpu", dtype):
                loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            (1024 * loss).backward()
            monitor.update(y, ids=torch.arange(ROWS))
        monitor.end_epoch()
    assert monitor.residual == "formula"


def test_labels_of_one_sigmoid_are_both_counted():
    model = nn.Linear(8, 1)
    x, y = torch.randn(4, 6, 8), torch.randint(0, 2, (4, 6))
    found = []
    for labels in (y, y.float()):
        with GWAMonitor(
            model, 4, loss="binary_cross_entropy", reduce="gradient", residual="formula"
        ) as monitor:
            model(x)
            monitor.update(labels, ids=torch.arange(4))
            monitor.end_epoch()
            found.append(monitor.scores)
    torch.testing.assert_close(*found)


def test_one_target_a_row_is_a_sample():
    model = nn.Linear(8, 1)
    x, y = torch.randn(4, 8), torch.randint(0, 2, (4, 1)).float()
    with GWAMonitor(model, 6, loss="binary_cross_entropy", residual="formula") as monitor:
        model(x)
        monitor.update(y, ids=torch.arange(4))
        first = monitor.scores.clone()
        model(-x)
        monitor.update(y, ids=torch.arange(4))
        summary = monitor.end_epoch()
    assert torch.equal(monitor.scores.nan_to_num(9), first.nan_to_num(9))
    assert (summary.count, summary.expected) == (4, 4)


def test_ids_of_padding_do_not_matter_and_widths_may_differ():
    model, (x, y) = network(), tokens()
    ids = torch.arange(ROWS)[:, None].expand(y.shape).clone()
    ids[y == -100] = -1
    with GWAMonitor(model.head, ROWS, residual="formula") as monitor:
        # A batch of one token a row comes first.
        model(x[:, :1])
        monitor.update(y[:, :1].clamp(min=0), ids=torch.arange(ROWS))
        model(x[:, 1:])
        monitor.update(y[:, 1:], ids=ids[:, 1:])
        summary = monitor.end_epoch()
    want = of_tokens(model, x, torch.cat([y[:, :1].clamp(min=0), y[:, 1:]], dim=1))
    torch.testing.assert_close(monitor.scores.double(), want.nanmean(1), rtol=1e-5, atol=1e-6)
    assert summary.count == ROWS
