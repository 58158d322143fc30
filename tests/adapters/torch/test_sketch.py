"""The frozen sketch layer: the core's map, kept, and never trained."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models import CLASSES, FEATURES, INPUTS, batch, oracle
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gwa_core import JLSketch, project
from gwa_torch import GWAMonitor, JLHead, find_head

KINDS = ["gaussian", "rademacher", "sparse", "hadamard"]
KINDS_AND_WIDTHS = [(kind, width) for kind in KINDS for width in (16, 21)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def latents(rows=6, width=16, dtype=torch.float32):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(("kind", "width"), KINDS_AND_WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_a_linear_layer_on_the_projected_latents(kind, width, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        head = JLHead(width, 3, 12, kind=kind, seed=5)
    finally:
        torch.set_default_dtype(before)
    z = latents(width=width, dtype=dtype)
    expected = project(z, JLSketch(width, 12, kind=kind, seed=5))
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-13}
    assert_allclose(F.linear(z, head.sketch), expected, **tolerance)
    assert_allclose(head(z).detach(), head.linear(expected).detach(), **tolerance)
    tokens = z.reshape(2, 3, width)
    assert torch.equal(head(tokens).reshape(6, 3), head(z))


def test_the_seed_alone_decides():
    one, two = JLHead(16, 3, 8, seed=1), JLHead(16, 3, 8, seed=1)
    assert torch.equal(one.sketch, two.sketch)
    assert not torch.equal(one.sketch, JLHead(16, 3, 8, seed=2).sketch)
    torch.manual_seed(0)
    linear = nn.Linear(8, 3)
    torch.manual_seed(0)
    # It draws no number of PyTorch's generator.
    assert torch.equal(JLHead(16, 3, 8).linear.weight, linear.weight)


def test_it_is_not_trained_and_lets_the_gradient_through():
    head = JLHead(16, 3, 8)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    assert not head.sketch.requires_grad
    before = head.sketch.clone()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, weight_decay=0.1)
    z = latents().requires_grad_()
    head(z).square().sum().backward()
    optimizer.step()
    assert torch.equal(head.sketch, before)
    whole = nn.Linear(16, 3)
    fresh = JLHead(16, 3, 8)
    whole.weight.data = fresh.linear.weight.data @ fresh.sketch
    whole.bias.data = fresh.linear.bias.data
    (expected,) = torch.autograd.grad(whole(z).square().sum(), z)
    (got,) = torch.autograd.grad(fresh(z).square().sum(), z)
    assert got.norm() > 0
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_head_has_its_own_sketch_back(kind):
    head = JLHead(20, 3, 8, kind=kind, seed=3)
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    # Of another seed: the weights were trained behind the saved sketch.
    other = JLHead(20, 3, 8, kind=kind, seed=4)
    other.load_state_dict(torch.load(file, weights_only=True))
    z = latents(width=20)
    assert torch.equal(other(z), head(z))
    assert torch.equal(copy.deepcopy(head)(z), head(z))
    with pytest.raises(RuntimeError, match="sketch"):
        JLHead(20, 3, 4).load_state_dict(head.state_dict())


def test_it_can_be_built_without_memory():
    with torch.device("meta"):
        empty = JLHead(20, 3, 8, kind="hadamard", seed=3)
    assert empty.sketch.is_meta
    head = JLHead(20, 3, 8, kind="hadamard", seed=3)
    z = latents(width=20)
    loaded = copy.deepcopy(empty)
    loaded.load_state_dict(head.state_dict(), assign=True)
    assert torch.equal(loaded(z), head(z))
    filled = empty.to_empty(device="cpu")
    filled.reset_parameters()
    assert torch.equal(filled.sketch, head.sketch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    head = JLHead(16, 3, 12)
    z = latents()
    expected = head(z).detach()
    with torch.autocast("cpu", dtype):
        assert head(z).dtype == dtype
        assert_allclose(head(z).detach().float(), expected, rtol=0, atol=3e-2)
    half = copy.deepcopy(head).to(dtype)
    assert half.sketch.dtype == dtype
    assert_allclose(half(z.to(dtype)).detach().float(), expected, rtol=0, atol=3e-2)


@pytest.mark.parametrize("kind", ["gaussian", "hadamard"])
def test_it_compiles_as_one_graph(kind):
    torch._dynamo.reset()
    head = JLHead(16, 3, 8, kind=kind)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    z = latents().requires_grad_()
    assert torch.allclose(compiled(z), head(z), atol=1e-6)
    (got,) = torch.autograd.grad(compiled(z).sum(), z)
    (expected,) = torch.autograd.grad(head(z).sum(), z)
    assert torch.allclose(got, expected, atol=1e-6)


def test_the_monitor_measures_its_linear_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.Tanh(), JLHead(FEATURES, CLASSES, 8))
    assert find_head(model) is model[2].linear
    x, y = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GWAMonitor(model[2].linear, num_samples=len(y)) as monitor:
        weight, bias = model[2].linear.weight.clone(), model[2].linear.bias.clone()
        sketched = F.linear(model[:2](x), model[2].sketch)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        monitor.update(y, ids=torch.arange(len(y)))
        assert_allclose(monitor.scores, oracle(sketched, weight, bias, y), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="got JLHead"):
        GWAMonitor(model[2])


def test_measuring_in_fewer_dimensions_keeps_the_mean_and_adds_noise():
    # The other use of a sketch: the network stays, and the layer is not needed.
    torch.manual_seed(0)
    rows, width = 2000, 256
    head = nn.Linear(width, CLASSES, bias=False)
    y = torch.arange(rows) % CLASSES
    z = 40 * head.weight.detach()[y] + torch.randn(rows, width)
    means, errors = [], []
    exact = monitored(head, z, y)
    for seed in range(8):
        scores = monitored(head, z, y, sketch=JLSketch(width, 64, seed=seed))
        means.append(scores.mean())
        errors.append((scores - exact).std())
    means = torch.stack(means)
    spread = float(means.std()) / len(means) ** 0.5
    assert abs(float(means.mean() - exact.mean())) < 4 * spread
    assert float(exact.mean()) > 10 * spread
    assert 0.02 < float(torch.stack(errors).mean()) < 0.2


def monitored(head, z, y, **options):
    with GWAMonitor(head, num_samples=len(y), **options) as monitor:
        head(z)
        monitor.update(y, ids=torch.arange(len(y)))
        return monitor.scores


def test_heads_of_models_of_different_widths_have_one_shape():
    heads = [JLHead(width, 10, 32) for width in (64, 128, 512)]
    assert {tuple(head.linear.weight.shape) for head in heads} == {(10, 32)}
    assert "in_features=512, kind='gaussian', seed=0" in repr(heads[2])


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((0, 3), {}, "`in_features` must be an integer of at least 1, got 0"),
        ((16, 0), {}, "`num_classes` must be an integer of at least 1, got 0"),
        ((16, 3, 0), {}, "`sketch_features` must be an integer of at least 1, got 0"),
        ((16, 3, 17), {"kind": "hadamard"}, "`sketch_features` must be at most 16"),
        ((16, 3), {"kind": "normal"}, "`kind` must be one of"),
        ((16, 3), {"seed": -1}, "`seed` must be an integer of at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        JLHead(*arguments, **options)


def test_sizes_may_be_those_of_numpy():
    head = JLHead(np.int64(16), np.int32(3), np.uint8(8), seed=np.int64(5))
    assert torch.equal(head.sketch, JLHead(16, 3, 8, seed=5).sketch)
    assert head(torch.randn(2, 16)).shape == (2, 3)
    for name in ("in_features", "num_classes", "sketch_features"):
        sizes = {"in_features": 16, "num_classes": 3, "sketch_features": 8}
        with pytest.raises(ValueError, match=f"`{name}` must be an integer .* got True"):
            JLHead(**(sizes | {name: True}))
