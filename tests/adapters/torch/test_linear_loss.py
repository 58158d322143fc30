"""Loss, gradients and scores of a head in one pass, beside the plain loss and the core."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gwa_core import alignment_from_logits, alignment_scores
from gwa_torch import _linear_add, _linear_blocks, _linear_memory, head_scores, linear_cross_entropy

ROWS, CLASSES, FEATURES = 23, 11, 5

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # PyTorch's own, of its debug mode.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Six rows of float64 a block, so that the last one is shorter."""
    torch.set_num_threads(1)
    monkeypatch.setattr(_linear_memory, "BLOCK_BYTES", 6 * CLASSES * 8)


def inputs(shape=(ROWS,), *, dtype=torch.float64, bias=True, ignored=0.3, scale=1.0, seed=0):
    """Latents, weight, bias and targets; a share of the rows is ignored."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    z, w, b = scale * normal(*shape, FEATURES), normal(CLASSES, FEATURES), normal(CLASSES)
    t = torch.randint(CLASSES, shape, generator=generator)
    t[torch.rand(shape, generator=generator) < ignored] = -100
    z, w, b = (x.to(dtype).requires_grad_() for x in (z, w, b))
    return z, w, b if bias else None, t


def plain(z, w, t, *, bias=None, **options):
    """The loss as everybody writes it, the whole logits at once."""
    logits = F.linear(z, w, bias).reshape(-1, w.shape[0])
    loss = F.cross_entropy(logits, t.reshape(-1), **options)
    return loss.reshape(t.shape) if options.get("reduction") == "none" else loss


def gradients(loss, leaves, along=None):
    """Gradients of a loss by what there is, given out as new tensors."""
    leaves = [x for x in leaves if x is not None]
    return torch.autograd.grad(loss, leaves, along)


def close(got, wanted, tolerance):
    """Equal up to a share of the largest entry."""
    got, wanted = got.detach().double(), wanted.detach().double()
    size = wanted[wanted.isfinite()].abs()
    atol = tolerance * float(size.max()) if size.numel() else 0.0
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=atol, equal_nan=True)


SHAPES = [(ROWS,), (4, 6)]
REDUCTIONS = ["mean", "sum", "none"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_are_those_of_the_plain_loss(device, shape, reduction, smoothing, bias):
    leaves = inputs(shape, bias=bias)
    z, w, b, t = (None if x is None else x.detach().to(device) for x in leaves)
    for x in (z, w, b):
        if x is not None:
            x.requires_grad_()
    options = {"bias": b, "reduction": reduction, "label_smoothing": smoothing}
    loss, scores = linear_cross_entropy(z, w, t, **options)
    wanted = plain(z, w, t, **options)
    close(loss, wanted, 1e-12)
    assert loss.dtype == scores.dtype == torch.float64
    assert scores.shape == shape
    assert not scores.requires_grad
    along = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype, device=device).reshape(
        loss.shape
    )
    for got, want in zip(
        gradients(loss, (z, w, b), along), gradients(wanted, (z, w, b), along), strict=True
    ):
        close(got, want, 1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_are_those_of_the_core(smoothing, bias, dtype):
    z, w, b, t = inputs(bias=bias, dtype=dtype)
    _, scores = linear_cross_entropy(z, w, t, bias=b, label_smoothing=smoothing)
    z, w, b = (None if x is None else x.detach().double() for x in (z, w, b))
    wanted = alignment_from_logits(
        logits=F.linear(z, w, b),
        latent_norms=z.norm(dim=1),
        weight_norm=w.norm(),
        targets=torch.where(t < 0, 0, t),
        bias=b,
        label_smoothing=smoothing,
        where=t >= 0,
    )
    assert (scores.isnan() == (t < 0)).all()
    close(scores, wanted, 1e-12 if dtype == torch.float64 else 1e-5)
    close(
        head_scores(latents=z, weight=w, bias=b, targets=t, label_smoothing=smoothing),
        wanted,
        1e-12,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction):
    z, w, b, t = inputs(ignored=0.2)

    def loss(z, w, b):
        return linear_cross_entropy(z, w, t, bias=b, reduction=reduction, label_smoothing=0.1)[0]

    assert torch.autograd.gradcheck(loss, (z, w, b))


@pytest.mark.parametrize("kind", ["latents", "weight", "bias"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_frozen_has_no_gradient_and_changes_no_other(kind, reduction):
    z, w, b, t = inputs()
    leaves = {"latents": z, "weight": w, "bias": b}
    leaves[kind].requires_grad_(False)
    loss, _ = linear_cross_entropy(z, w, t, bias=b, reduction=reduction)
    loss.sum().backward()
    left = [x for name, x in leaves.items() if name != kind]
    assert leaves[kind].grad is None
    for x, want in zip(
        left, gradients(plain(z, w, t, bias=b, reduction=reduction).sum(), left), strict=True
    ):
        close(x.grad, want, 1e-12)


def test_without_gradients_the_numbers_are_the_same():
    z, w, b, t = inputs()
    with torch.no_grad():
        loss, scores = linear_cross_entropy(z, w, t, bias=b)
    assert not loss.requires_grad
    again, others = linear_cross_entropy(z, w, t, bias=b)
    assert torch.equal(loss, again.detach())
    torch.testing.assert_close(scores, others, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_second_backward_pass_gives_the_same_gradients(dtype):
    z, w, b, t = inputs(dtype=dtype)
    loss, _ = linear_cross_entropy(z, w, t, bias=b)
    first = torch.autograd.grad(loss, (z, w, b), torch.full_like(loss, 3), retain_graph=True)
    second = torch.autograd.grad(loss, (z, w, b), torch.full_like(loss, 3))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_that_were_given_out_stay():
    z, w, b, t = inputs()
    loss, _ = linear_cross_entropy(z, w, t, bias=b)
    loss.backward(retain_graph=True)
    kept = w.grad.clone()
    (2 * loss).backward()
    close(w.grad, 3 * kept, 1e-12)


def test_a_weight_that_changed_after_the_forward_pass():
    z, w, b, t = inputs()
    (want,) = gradients(plain(z, w, t, bias=b), (w,))
    loss, _ = linear_cross_entropy(z, w, t, bias=b)
    apart, _ = linear_cross_entropy(z, w, t, bias=b, reduction="none")
    with torch.no_grad():
        w.mul_(2)
    # Made at the forward pass, or not to be made any more.
    close(gradients(loss, (w,))[0], want, 1e-12)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(apart.sum(), (w,))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(reduction):
    z, w, b, t = inputs()
    loss, _ = linear_cross_entropy(z, w, t, bias=b, reduction=reduction)
    with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph=True"):
        torch.autograd.grad(loss.sum(), w, create_graph=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_row_that_counts(dtype, rows, reduction, smoothing, device):
    z = torch.randn(rows, FEATURES, requires_grad=True, device=device, dtype=dtype)
    w = torch.randn(CLASSES, FEATURES, requires_grad=True, device=device, dtype=dtype)
    t = torch.full((rows,), -100, device=device)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    loss, scores = linear_cross_entropy(z, w, t, **options)
    wanted = plain(z, w, t, **options)
    torch.testing.assert_close(loss, wanted.float(), equal_nan=True)
    assert scores.shape == (rows,)
    assert scores.isnan().all()
    assert [bool((x == 0).all()) for x in gradients(loss.sum(), (z, w))] == [True, True]


def test_another_number_for_what_is_ignored():
    z, w, b, t = inputs(ignored=0)
    loss, scores = linear_cross_entropy(z, w, t, bias=b, ignore_index=3)
    wanted = plain(z, w, t, bias=b, ignore_index=3)
    close(loss, wanted, 1e-12)
    assert (scores.isnan() == (t == 3)).all()
    for got, want in zip(gradients(loss, (z, w, b)), gradients(wanted, (z, w, b)), strict=True):
        close(got, want, 1e-12)


@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_exact_where_softmax_saturates(scale):
    # Labels that the head agrees with: softmax less one is nothing in float32.
    z, w, b, _ = inputs(scale=scale, dtype=torch.float32)
    t = F.linear(z, w, b).argmax(1)
    _, scores = linear_cross_entropy(z, w, t, bias=b)
    wide = {"latents": z.detach().double(), "weight": w.detach().double(), "targets": t}
    wanted = alignment_scores(**wide, bias=b.detach().double())
    assert (scores > 0).sum() > ROWS / 2
    close(scores, wanted, 2e-5)


def test_classes_that_are_masked_by_their_bias():
    # A padded vocabulary: the plain loss knows no score, but its loss and gradients stay as they are.
    z, w, b, t = inputs()
    b = b.detach().clone()
    b[-2:] = -torch.inf
    t = torch.where(t >= CLASSES - 2, 0, t)
    loss, _ = linear_cross_entropy(z, w, t, bias=b)
    wanted = plain(z, w, t, bias=b)
    close(loss, wanted, 1e-12)
    for got, want in zip(gradients(loss, (z, w)), gradients(wanted, (z, w)), strict=True):
        close(got, want, 1e-12)


@given(
    rows=st.integers(1, 40),
    block=st.integers(1, 50),
    classes=st.integers(2, 9),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30, deadline=None)
def test_blocks_change_nothing(rows, block, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(classes, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.randint(-1, classes, (rows,), generator=generator)
    results = []
    for size in (block, 10**6):
        _linear_memory.BLOCK_BYTES = size * 8 * classes
        loss, scores = linear_cross_entropy(z, w, t, ignore_index=-1)
        results.append((loss.detach(), scores, *gradients(loss, (z, w))))
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-12)


def blocks(rows, classes, features, *, gradients):
    """The tokens of each block, and its logits, of float32 and with or without gradients to lend."""
    like = torch.empty(rows, features)
    held = (like, torch.empty(classes, features)) if gradients else (None, None)
    memory = _linear_memory.Memory(like, rows, classes, *held)
    start = 0
    while start < rows:
        here, block = memory.next(start)
        assert here.start == start
        yield here, block
        start = here.stop


@pytest.mark.parametrize("rows", [0, 1, 127, 600, 2000])
@pytest.mark.parametrize("classes", [2, 1000])
def test_blocks_are_even_and_fit(rows, classes, monkeypatch):
    monkeypatch.setattr(_linear_memory, "BLOCK_BYTES", 512 * 4 * 1000)
    sizes = [len(block.first[0]) for _, block in blocks(rows, classes, 8, gradients=False)]
    assert sum(sizes) == rows
    assert all(size * classes <= 512 * 1000 for size in sizes)
    if rows == 600 and classes == 1000:
        assert sizes == [320, 280]


def test_what_is_not_made_yet_lends_its_memory(monkeypatch):
    # 8192 tokens of a language model, a hundred times smaller.
    monkeypatch.setattr(_linear_memory, "BLOCK_BYTES", 475 * 4 * 1280)
    lent = list(blocks(8192, 1280, 4096, gradients=True))
    sizes = [here.stop - here.start for here, _ in lent]
    assert sizes == [4096, *[512] * 7, 256, 256]
    apart = [here.stop - here.start for here, _ in blocks(8192, 1280, 4096, gradients=False)]
    assert len(apart) == 19
    assert max(apart) == 448


class Split:
    """What the kernels of a GPU do to a block in two parts, by PyTorch's own operations."""

    parts = 0

    def __call__(self, block, *arrays, **options):
        whole = torch.cat(block).T.contiguous().T
        _linear_blocks._tokens(type(block)(whole, block.rest[:0]), *arrays, **options)
        for some, piece in block.pieces():
            piece.copy_(whole[some])
        self.parts = max(self.parts, len(list(block.pieces())))


@given(
    rows=st.integers(1, 400),
    classes=st.integers(2, 300),
    features=st.integers(1, 150),
    room=st.integers(1, 200),
    frozen=st.sampled_from([None, "latents", "weight"]),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(rows=400, classes=300, features=130, room=70, frozen=None, bias=True, seed=0)
@settings(max_examples=60, deadline=None)
def test_no_memory_has_two_uses_at_a_time(rows, classes, features, room, frozen, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, features, generator=generator)
    w = torch.randn(classes, features, generator=generator) / features**0.5
    b = torch.randn(classes, generator=generator) if bias else None
    t = torch.randint(-1, classes, (rows,), generator=generator)
    leaves = [x.requires_grad_(name != frozen) for x, name in ((z, "latents"), (w, "weight"))]
    leaves = [x for x in leaves if x.requires_grad]
    take = Split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_linear_memory, "BLOCK_BYTES", room * classes * 4)
        patch.setattr(_linear_blocks, "has_triton", lambda _: True)
        kernels = SimpleNamespace(fused_tokens=take)
        patch.setitem(sys.modules, "gwa_torch._triton_linear_loss", kernels)
        loss, scores = linear_cross_entropy(z, w, t, bias=b, ignore_index=-1)
        got = gradients(loss, leaves)
    wanted = plain(z, w, t, bias=b, ignore_index=-1)
    close(loss, wanted, 1e-5)
    _, others = linear_cross_entropy(z, w, t, bias=b, ignore_index=-1)
    close(scores, others, 1e-4)
    for x, y in zip(got, gradients(wanted, leaves), strict=True):
        close(x, y, 1e-4) if (t >= 0).any() else None
    if (rows, room) == (400, 70):
        assert take.parts == 2


class Largest(TorchDispatchMode):
    """The largest tensor that any operation gives back."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_more_than_a_block_of_logits_is_there(reduction):
    z, w, b, t = inputs()
    with Largest() as ours:
        linear_cross_entropy(z, w, t, bias=b, reduction=reduction)[0].sum().backward()
    with Largest() as usual:
        plain(z, w, t, bias=b, reduction=reduction).sum().backward()
    assert ours.numel == ROWS * FEATURES > 6 * CLASSES
    assert usual.numel == ROWS * CLASSES


HALF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision(dtype, monkeypatch):
    monkeypatch.setattr(_linear_memory, "BLOCK_BYTES", 300 * CLASSES * 2)
    z, w, b, t = inputs((2000,), dtype=dtype)
    loss, scores = linear_cross_entropy(z, w, t, bias=b)
    assert loss.dtype == scores.dtype == torch.float32
    leaves = [x.detach().double().requires_grad_() for x in (z, w, b)]
    wanted = plain(*leaves[:2], t, bias=leaves[2])
    close(loss, wanted, HALF[dtype])
    for x, got, want in zip(
        (z, w, b), gradients(loss, (z, w, b)), gradients(wanted, leaves), strict=True
    ):
        assert got.dtype == x.dtype
        assert float((got.double() - want).norm() / want.norm()) < 3 * HALF[dtype]


def test_shares_of_a_mean_that_float16_cannot_hold(monkeypatch):
    # 1 / 4096 of a probability of 1e-4 is below the least float16.
    monkeypatch.setattr(_linear_memory, "BLOCK_BYTES", 2048 * 2000 * 2)
    torch.manual_seed(0)
    z = torch.randn(4096, 4).half().requires_grad_()
    w = (0.1 * torch.randn(2000, 4)).half().requires_grad_()
    t = torch.zeros(4096, dtype=torch.int64)
    loss, _ = linear_cross_entropy(z, w, t)
    (got,) = torch.autograd.grad(loss, w, torch.tensor(1024.0))
    wide = w.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(1024 * plain(z.detach().double(), wide, t), wide)
    assert float((got.double() - want)[1:].norm() / want[1:].norm()) < 5e-3


def test_sums_of_many_rows_that_float16_cannot_hold():
    # 32,768 rows of one direction: their sum is above the largest float16, their mean is not.
    torch.manual_seed(0)
    z = (torch.rand(32_768, 8) + 4).half()
    w = (0.01 * torch.randn(4, 8)).half().requires_grad_()
    t = torch.zeros(len(z), dtype=torch.int64)
    (got,) = torch.autograd.grad(linear_cross_entropy(z, w, t)[0], w)
    wide = w.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(plain(z.double(), wide, t), wide)
    # A product of so many rows rounds that much in float16 on a CPU.
    assert float((got.double() - want).norm() / want.norm()) < 3e-2


def test_autocast_is_that_of_the_plain_loss():
    z, w, b, t = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, scores = linear_cross_entropy(z, w, t, bias=b)
        wanted = plain(z, w, t, bias=b)
    assert loss.dtype == wanted.dtype == scores.dtype == torch.float32
    close(loss, wanted, 1e-6)
    for got, want in zip(gradients(loss, (z, w, b)), gradients(wanted, (z, w, b)), strict=True):
        assert got.dtype == torch.float32
        close(got, want, 2e-2)
    outside = linear_cross_entropy(*(x.detach().bfloat16() for x in (z, w)), t, bias=b.bfloat16())
    torch.testing.assert_close(scores, outside[1], rtol=0, atol=0, equal_nan=True)


def test_rows_and_columns_of_larger_arrays():
    z, w, b, t = inputs((5, 7))
    wide = torch.randn(5, 8, 2 * FEATURES, dtype=torch.float64)
    wide[:, 1:, ::2] = z.detach()
    turned = w.detach().T.contiguous().T.requires_grad_()
    sliced = wide.requires_grad_()[:, 1:, ::2]
    loss, scores = linear_cross_entropy(sliced, turned, t.int(), bias=b)
    straight, others = linear_cross_entropy(z, w, t, bias=b)
    close(loss, straight, 1e-12)
    close(scores, others, 1e-12)
    close(gradients(loss, (turned,))[0], gradients(straight, (w,))[0], 1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_of_a_column_on_a_gpu(smoothing):
    (z, w), t, _ = on_gpu(40, 63, 64, torch.float32, False)
    column = torch.stack([t, (t + 1) % 63], dim=1)[:, 0]
    assert column.stride() == (2,)
    for got, want in zip(
        linear_cross_entropy(z, w, column, label_smoothing=smoothing),
        linear_cross_entropy(z, w, t, label_smoothing=smoothing),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.slow
def test_under_compile():
    z, w, b, t = inputs()

    def step(z, w, b, t):
        loss, scores = linear_cross_entropy(2 * z, w, t, bias=b)
        return loss + w.sum(), scores

    got = torch.compile(step, backend="aot_eager")(z, w, b, t)
    wanted = step(z, w, b, t)
    close(got[0], wanted[0], 1e-12)
    close(got[1], wanted[1], 1e-12)
    for a, c in zip(gradients(got[0], (z, w)), gradients(wanted[0], (z, w)), strict=True):
        close(a, c, 1e-12)


def on_gpu(rows, classes, features, dtype, bias, seed=0):
    """Leaves and targets on a GPU, and the logits that a product in their dtype gives, in float64."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, features, generator=generator)
    w = torch.randn(classes, features, generator=generator) / features**0.5
    b = torch.randn(classes, generator=generator)
    t = torch.randint(classes, (rows,), generator=generator)
    # Half of the labels are those that the head agrees with.
    t[::2] = F.linear(z, w).argmax(1)[::2]
    t[1::5] = -100
    leaves = [x.to("cuda", dtype).requires_grad_() for x in (z, w, b)[: 3 if bias else 2]]
    with torch.no_grad():
        logits = F.linear(*leaves).double().requires_grad_()
    return leaves, t.cuda(), logits


def on_gpu_wanted(leaves, t, logits, **options):
    """Loss, scores and gradients from the logits that were rounded, in float64."""
    z, w, b = (x.detach().double() for x in [*leaves, leaves[0]][:3])
    b = b if len(leaves) == 3 else None
    loss = F.cross_entropy(logits, t, **options)
    (r,) = torch.autograd.grad(loss.sum(), logits)
    scores = alignment_from_logits(
        logits=logits.detach(),
        latent_norms=z.norm(dim=1),
        weight_norm=w.norm(),
        targets=torch.where(t < 0, 0, t),
        bias=b,
        label_smoothing=options["label_smoothing"],
        where=t >= 0,
    )
    return loss, scores, [r @ w, r.T @ z, r.sum(0)][: len(leaves)]


# Blocks of 140 tokens: one alone; the first in the gradient of the weight; later ones in two parts.
SIZES = [(16, 2, 3), (40, 63, 64), (300, 5000, 100), (260, 21841, 768), (900, 5000, 256)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_kernels_of_a_gpu(size, dtype, smoothing, bias, reduction, monkeypatch):
    monkeypatch.setattr(_linear_memory, "BLOCK_BYTES", 140 * size[1] * dtype.itemsize)
    leaves, t, logits = on_gpu(*size, dtype, bias)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    b = leaves[2] if bias else None
    loss, scores = linear_cross_entropy(*leaves[:2], t, bias=b, **options)
    wanted, core, slopes = on_gpu_wanted(leaves, t, logits, **options)
    assert loss.dtype == scores.dtype == torch.float32
    rounding = {torch.float32: 2e-5}.get(dtype, 4 * HALF.get(dtype, 0))
    close(loss, wanted, rounding)
    # A product of other blocks rounds some logits to the next number.
    close(scores, core, rounding)
    for x, got, want in zip(leaves, gradients(loss.sum(), leaves), slopes, strict=True):
        assert got.dtype == x.dtype
        assert float((got.double() - want).norm() / want.norm()) < rounding


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", HALF)
# One tile and less, many a processor, edges in each direction; rows that do not begin at 16 bytes.
@pytest.mark.parametrize(
    "size",
    [
        (8, 8, 8),
        (128, 64, 128),
        (3000, 512, 2048),
        (5001, 200, 1000),
        (9728, 1000, 264),
        (65, 33, 7),
        (9000, 64, 2048),
        (9000, 128, 2048),
    ],
)
def test_a_product_is_added(size, dtype):
    rows, depth, columns = size
    generator = torch.Generator("cuda").manual_seed(0)
    out, a, b = (
        torch.randn(*shape, generator=generator, device="cuda").to(dtype)
        for shape in ((rows, columns), (rows, depth), (depth, columns))
    )
    wanted = out.double() + a.double() @ b.double()
    around = torch.full((rows + 2, columns), 7.0, device="cuda", dtype=dtype)
    around[1:-1] = out
    _linear_add.add_product(around[1:-1], a, b)
    assert (around[[0, -1]] == 7).all()
    error = (around[1:-1].double() - wanted).abs()
    # The sum is rounded, by cuBLAS the product before it, and both are summed in float32.
    unit = torch.finfo(dtype).eps / 2
    assert (error <= 1.01 * unit * (2 * wanted.abs() + out.abs()) + 2e-4).all()


def test_rows_that_the_kernel_of_hopper_cannot_copy():
    wide = torch.zeros(4, 24, dtype=torch.bfloat16)
    assert all(map(_linear_add._aligned, (wide, wide[1:], wide[:, 8:], wide[:, :5])))
    odd = (wide[:, 1:], torch.zeros(4, 9, dtype=torch.bfloat16), wide[:, ::2], wide.T)
    assert not any(map(_linear_add._aligned, (*odd, wide[:1].expand(4, 24))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_hopper_has_a_kernel_of_its_own():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs Hopper")
    assert _linear_add._kernel(torch.device("cuda", 0), torch.bfloat16) is not None
    assert _linear_add._kernel(torch.device("cuda", 0), torch.float16) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_waits_for_a_gpu(reduction):
    (z, w, b), t, _ = on_gpu(300, 5000, 64, torch.bfloat16, True)
    for mode in ("default", "error"):
        # The kernels are compiled in the first pass.
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss, scores = linear_cross_entropy(z, w, t, bias=b, reduction=reduction)
            (2 * loss).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert scores.isfinite().sum() == (t >= 0).sum()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_class_that_is_not_there_is_nan_on_a_gpu(dtype):
    (z, w), t, _ = on_gpu(8, 20, 4, dtype, False)
    t[0] = 20
    loss, scores = linear_cross_entropy(z, w, t, reduction="none")
    assert loss.isnan().tolist() == [True] + [False] * 7
    assert scores[0].isnan()
    for got in gradients(linear_cross_entropy(z, w, t)[0], (z, w)):
        assert got.isnan().any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu_is_a_block_and_the_gradients(monkeypatch):
    monkeypatch.setattr(_linear_memory, "BLOCK_BYTES", 2**24)
    (z, w), t, _ = on_gpu(4096, 32000, 256, torch.bfloat16, False)
    linear_cross_entropy(z, w, t)[0].backward()
    z.grad = w.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(z, w, t)[0].backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 1.1 * (2**24 + w.nbytes + z.nbytes)


Z, W, T = torch.ones(4, 3), torch.ones(5, 3), torch.zeros(4, dtype=torch.int64)
MISTAKES = {
    "one dimension": ((Z[0], W, T), {}, ValueError, r"`latents` must be .*\(N, D\).*\(3,\)"),
    "integer latents": ((Z.long(), W, T), {}, ValueError, "`latents` must be floating.*int64"),
    "a kernel": ((Z, W.T, T), {}, ValueError, r"\(C, 3\), got \(3, 5\); it must be transposed"),
    "one class": ((Z, W[:1], T), {}, ValueError, r"`weight` must be .* got \(1, 3\); pass"),
    "probabilities": ((Z, W, Z), {}, ValueError, r"`targets` must be .*\(4,\).*\(4, 3\)"),
    "targets that are not shifted": (
        (Z, W, T[1:]),
        {},
        ValueError,
        r"`targets` .* got shape \(3,\)",
    ),
    "a list of targets": (
        (Z, W, [0, 1, 2, 3]),
        {},
        TypeError,
        "`targets` must be a tensor, got list",
    ),
    "a smoothing that is no number": (
        (Z, W, T),
        {"label_smoothing": "x"},
        ValueError,
        "`label_smoothing` must be a finite number",
    ),
    "no features": ((Z[:, :0], W[:, :0], T), {}, ValueError, r"`latents` must be .*\(4, 0\)"),
    "floating targets": ((Z, W, T.float()), {}, TypeError, "`targets` must be integers.*float32"),
    "a bias of another size": ((Z, W, T), {"bias": Z[0]}, ValueError, r"`bias` must be .*\(5,\)"),
    "another dtype": ((Z, W.half(), T), {}, TypeError, "`weight` must have the dtype.*autocast"),
    "another device": ((Z, W.to("meta"), T), {}, ValueError, "`weight` must be on the device"),
    "smoothing of one": ((Z, W, T), {"label_smoothing": 1.0}, ValueError, r"in \[0, 1\), got 1"),
    "another reduction": ((Z, W, T), {"reduction": "max"}, ValueError, "`reduction` must be"),
    "a class that is not there": ((Z, W, T + 5), {}, IndexError, r"in 0\.\.4 or ignore.*got 5"),
    "a negative class": ((Z, W, T - 1), {}, IndexError, r"in 0\.\.4 or ignore_index=-100, got -1"),
    "no number for what is ignored": (
        (Z, W, T),
        {"ignore_index": None},
        TypeError,
        "`ignore_index`",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    arguments, options, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        linear_cross_entropy(*arguments, **options)


def test_a_shard_of_the_weight_is_refused():
    class Shard(torch.Tensor):
        def full_tensor(self):
            return self

    with pytest.raises(TypeError, match="`weight` must be a plain tensor, got a DTensor"):
        linear_cross_entropy(Z, W.as_subclass(Shard), T)
