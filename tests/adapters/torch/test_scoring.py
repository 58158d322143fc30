"""γ of tensors: every path, also those of a GPU, against the core and float64 autograd."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
from models import oracle
from numpy.testing import assert_allclose
from torch import nn

import gwa_core
from gwa_core import JLSketch, weighted_targets
from gwa_torch import frobenius_norm, head_scores, scoring

ROWS, CLASSES, FEATURES = 40, 7, 12

# Loss, kind of targets, options.
CASES = {
    "hard": ("cross_entropy", "hard", {}),
    "soft": ("cross_entropy", "soft", {}),
    "smoothed": ("cross_entropy", "hard", {"label_smoothing": 0.1}),
    "soft and smoothed": ("cross_entropy", "soft", {"label_smoothing": 0.1}),
    "weighted": ("cross_entropy", "hard", {"class_weights": True}),
    "weighted and smoothed": (
        "cross_entropy",
        "hard",
        {"class_weights": True, "label_smoothing": 0.1},
    ),
    "weighted and soft": ("cross_entropy", "soft", {"class_weights": True}),
    "sigmoid": ("binary_cross_entropy", "many", {}),
    "one output": ("binary_cross_entropy", "one", {}),
    "one output, soft": ("binary_cross_entropy", "soft one", {}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def inputs(kind="hard", *, dtype=torch.float64, bias=True, rows=ROWS, seed=0):
    """Latents, head and targets of a kind."""
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if "one" in kind else CLASSES
    z = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    w = torch.randn(classes, FEATURES, generator=generator, dtype=torch.float64)
    b = torch.randn(classes, generator=generator, dtype=torch.float64)
    share = torch.rand(rows, classes, generator=generator, dtype=torch.float64)
    targets = {
        "hard": torch.randint(CLASSES, (rows,), generator=generator),
        "soft": (share / share.sum(1, keepdim=True)).to(dtype),
        "many": (share > 0.5).to(dtype),
        "one": (share > 0.5).long().squeeze(1),
        "soft one": share.to(dtype),
    }[kind]
    return z.to(dtype), w.to(dtype), b.to(dtype) if bias else None, targets


def class_weights(options, dtype=torch.float64):
    """The options with weights for classes in place of a mark."""
    if "class_weights" not in options:
        return options
    return options | {"class_weights": torch.linspace(0.2, 3.0, CLASSES, dtype=dtype)}


def expected(kind, loss, options, *, bias=True, seed=0):
    z, w, b, t = inputs(kind, bias=bias, seed=seed)
    t = t.double() if kind == "one" else t
    return oracle(z, w, b, t, loss=loss, **class_weights(options))


def on_a_device(z, w, b, t, logits, loss, options):
    """Both paths of a device that is not the CPU, as `head_scores` calls them."""
    options = dict(options)
    weights = options.pop("class_weights", None)
    if weights is not None and (t.ndim == 2 or options.get("label_smoothing")):
        smoothing = options.pop("label_smoothing", 0.0)
        t = weighted_targets(targets=t, class_weights=weights, label_smoothing=smoothing)
    options = {"loss": loss, "label_smoothing": 0.0} | options
    norm = frobenius_norm(w)
    yield scoring._on_device(logits, z, t, norm, b, options)
    yield scoring._blockwise(z, t, w, norm, b, options)


def close(got, wanted, atol):
    assert_allclose(got.double(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_every_path_equals_autograd(case, dtype, bias):
    loss, kind, options = CASES[case]
    z, w, b, t = inputs(kind, dtype=dtype, bias=bias)
    wanted = expected(kind, loss, options, bias=bias)
    given = class_weights(options, dtype)
    logits = z @ w.T if b is None else z @ w.T + b
    common = {"latents": z, "targets": t, "bias": b, "loss": loss, **given}
    ways = [
        head_scores(**common, weight=w),
        head_scores(**common, weight=w, logits=logits),
        head_scores(**common, weight_norm=frobenius_norm(w), logits=logits),
        head_scores(**common, weight_norm=frobenius_norm(w), logits=logits, weight=w),
        *on_a_device(z, w, b, t, logits, loss, given),
    ]
    for scores in ways:
        assert scores.dtype == dtype
        assert scores.shape == (ROWS,)
        close(scores, wanted, 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("case", ["hard", "smoothed", "soft", "sigmoid"])
def test_the_core_gives_the_very_same_numbers(case):
    loss, kind, options = CASES[case]
    z, w, b, t = inputs(kind)
    arrays = {"latents": z.numpy(), "weight": w.numpy(), "bias": b.numpy(), "targets": t.numpy()}
    wanted = gwa_core.alignment_scores(**arrays, loss=loss, **options)
    scores = head_scores(latents=z, weight=w, bias=b, targets=t, loss=loss, **options)
    assert np.array_equal(scores.numpy(), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_half_precision_is_raised(dtype, kind):
    z, w, b, t = inputs(kind, dtype=dtype)
    wanted = oracle(z, w, b, t.double() if kind == "soft" else t)
    exact = head_scores(latents=z, weight=w, bias=b, targets=t)
    assert exact.dtype == torch.float32
    # Soft targets in half precision sum to one within their rounding alone.
    close(exact, wanted, 1e-5 if kind == "hard" else 5e-3)
    logits = (z @ w.T + b).to(dtype)
    rounded = [
        head_scores(latents=z, logits=logits, weight_norm=frobenius_norm(w), bias=b, targets=t),
        *on_a_device(z, w, b, t, logits, "cross_entropy", {}),
    ]
    for scores in rounded:
        assert scores.dtype == torch.float32
        close(scores, wanted, 2e-2)


def test_latents_of_autocast_and_a_head_in_float32():
    z, w, b, t = inputs(dtype=torch.float32)
    wanted = oracle(z.bfloat16(), w, b, t)
    options = {"loss": "cross_entropy", "label_smoothing": 0.0}
    norm = frobenius_norm(w)
    close(head_scores(latents=z.bfloat16(), weight=w, bias=b, targets=t), wanted, 1e-5)
    close(scoring._blockwise(z.bfloat16(), t, w, norm, b, options), wanted, 1e-5)
    logits = z.bfloat16().float() @ w.T + b
    close(scoring._on_device(logits, z.bfloat16(), t, norm, b, options), wanted, 1e-5)
    scores = head_scores(latents=z.bfloat16(), logits=logits, weight_norm=norm, bias=b, targets=t)
    close(scores, wanted, 1e-5)


def test_autocast_does_not_round_it():
    z, w, b, t = inputs(dtype=torch.float32)
    plain = head_scores(latents=z, weight=w, bias=b, targets=t)
    projected = head_scores(latents=z, weight=w, targets=t, sketch=JLSketch(FEATURES, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head_scores(latents=z, weight=w, bias=b, targets=t), plain)
        again = head_scores(latents=z, weight=w, targets=t, sketch=JLSketch(FEATURES, 8))
        assert torch.equal(again, projected)


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_saturated_softmax_keeps_the_direction(scale):
    z, w, b, t = inputs()
    z = z * scale
    wanted = head_scores(latents=z, weight=w, bias=b, targets=t)
    exact = gwa_core.alignment_scores(
        latents=z.numpy(), weight=w.numpy(), bias=b.numpy(), targets=t.numpy()
    )
    assert_allclose(wanted, exact, rtol=1e-12)
    assert (wanted != 0).all()
    z, w, b = z.float(), w.float(), b.float()
    logits = z @ w.T + b
    for scores in on_a_device(z, w, b, t, logits, "cross_entropy", {}):
        close(scores, wanted, 1e-5)
    close(head_scores(latents=z, weight=w, bias=b, targets=t), wanted, 1e-5)


def test_blocks_of_rows_share_a_buffer(monkeypatch):
    seen = []
    whole = scoring._on_device

    def spy(logits, *args):
        seen.append((logits.data_ptr(), logits.shape[0]))
        return whole(logits, *args)

    monkeypatch.setattr(scoring, "_on_device", spy)
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 16 * CLASSES * 4)
    options = {"loss": "cross_entropy", "label_smoothing": 0.1}
    for kind in ("hard", "soft"):
        z, w, b, t = inputs(kind, dtype=torch.float32)
        scores = scoring._blockwise(z, t, w, frobenius_norm(w), b, options)
        close(scores, expected(kind, "cross_entropy", {"label_smoothing": 0.1}), 1e-5)
    assert [rows for _, rows in seen] == [16, 16, 8] * 2
    assert len({place for place, _ in seen[:3]}) == 1
    # A vocabulary so large that not one row fits.
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 1)
    scores = scoring._blockwise(z, t, w, frobenius_norm(w), b, options)
    close(scores, expected("soft", "cross_entropy", {"label_smoothing": 0.1}), 1e-5)


def test_samples_that_do_not_count_are_nan():
    z, w, b, t = inputs()
    where = torch.arange(ROWS) % 3 > 0
    logits = z @ w.T + b
    wanted = torch.where(where, expected("hard", "cross_entropy", {}), torch.nan)
    t = torch.where(where, t, 10**6)
    for options in ({"weight": w}, {"logits": logits, "weight_norm": frobenius_norm(w)}):
        close(head_scores(latents=z, targets=t, bias=b, where=where, **options), wanted, 1e-12)
    # Masked probabilities need not be any.
    soft = nn.functional.one_hot(t.clamp(max=CLASSES - 1), CLASSES).double()
    soft[~where] = -1.0
    scores = head_scores(latents=z, targets=soft, weight=w, bias=b, where=where)
    close(scores, wanted, 1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_unknown_labels_are_nan_and_the_others_right(dtype):
    z, w, b, t = inputs()
    t[0], t[1], t[2] = -100, CLASSES, -1
    known = (t >= 0) & (t < CLASSES)
    wanted = torch.where(known, expected("hard", "cross_entropy", {}), torch.nan)
    t = t.to(dtype)
    logits = z @ w.T + b
    scores = [
        head_scores(latents=z, weight=w, bias=b, targets=t),
        head_scores(latents=z, logits=logits, weight_norm=frobenius_norm(w), bias=b, targets=t),
        *on_a_device(z, w, b, t, logits, "cross_entropy", {}),
    ]
    for one in scores:
        close(one, wanted, 1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unknown_labels_under_class_weights(smoothing):
    z, w, b, t = inputs()
    t[0] = -100
    options = class_weights({"class_weights": True, "label_smoothing": smoothing})
    scores = head_scores(latents=z, weight=w, bias=b, targets=t, **options)
    assert scores.isnan().nonzero().flatten().tolist() == [0]
    wanted = expected("hard", "cross_entropy", options)
    close(scores[1:], wanted[1:], 1e-12)


def test_class_weights_of_integers_and_of_zero():
    z, w, b, _ = inputs(rows=4)
    t = torch.tensor([0, 1, 2, 0])
    weights = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    options = {"class_weights": weights, "label_smoothing": 0.1}
    scores = head_scores(latents=z, weight=w, bias=b, targets=t, **options)
    wanted = oracle(z, w, b, t, class_weights=weights, label_smoothing=0.1)
    close(scores, wanted, 1e-6)
    alone = nn.functional.one_hot(t, CLASSES).double()
    scores = head_scores(latents=z, weight=w, bias=b, targets=alone, class_weights=weights)
    # A sample whose classes have no weight has no part in the loss.
    assert scores.isnan().tolist() == [True, False, False, True]


def test_nan_of_one_sample_stays_with_it():
    z, w, b, t = inputs()
    z[3, 0] = torch.inf
    z[5] = torch.nan
    z[7] = 0.0
    logits = z @ w.T + b
    scores = [
        head_scores(latents=z, weight=w, bias=b, targets=t),
        *on_a_device(z, w, b, t, logits, "cross_entropy", {}),
    ]
    for one in scores:
        assert one.isnan().nonzero().flatten().tolist() == [3, 5]
        assert one[7] == 0.0


@pytest.mark.parametrize("kind", ["gaussian", "hadamard"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_sketch_is_the_cores_sketch(kind, dtype):
    z, w, b, t = inputs(dtype=dtype)
    sketch = JLSketch(FEATURES, 8, kind=kind)
    arrays = {"latents": z, "weight": w, "bias": b}
    numpy = {name: x.double().numpy() for name, x in arrays.items()}
    wanted = gwa_core.alignment_scores(**numpy, targets=t.numpy(), sketch=sketch)
    scores = head_scores(**arrays, targets=t, sketch=sketch)
    close(scores, wanted, 1e-12 if dtype == torch.float64 else 1e-5)
    # The norm of the weight is that of all D features, and not used here.
    scores = head_scores(**arrays, targets=t, sketch=sketch, weight_norm=frobenius_norm(w))
    close(scores, wanted, 1e-12 if dtype == torch.float64 else 1e-5)
    # As on a GPU: the core on tensors.
    options = {"loss": "cross_entropy", "label_smoothing": 0.0}
    on_tensors = gwa_core.alignment_scores(**arrays, targets=t, sketch=sketch, **options)
    close(on_tensors, wanted, 1e-12 if dtype == torch.float64 else 1e-5)


def test_views_gradients_and_inference():
    z, w, b, t = inputs()
    wanted = expected("hard", "cross_entropy", {})
    leaf = w.T.contiguous().T.requires_grad_()
    wide = torch.stack([z, z], dim=2)[:, :, 0].requires_grad_()
    assert not wide.is_contiguous()
    every = torch.stack([t, t], dim=1)[:, 0]
    scores = head_scores(latents=wide, weight=leaf, bias=b.requires_grad_(), targets=every)
    assert not scores.requires_grad
    close(scores, wanted, 1e-12)
    with torch.inference_mode():
        made = head_scores(latents=z * 1, weight=w, logits=z @ w.T + b, bias=b, targets=t)
    close(made, wanted, 1e-12)


def test_the_arguments_stay_as_they_were():
    z, w, b, t = inputs()
    t[0] = -100
    logits = z @ w.T + b
    before = [x.clone() for x in (z, w, b, t, logits)]
    head_scores(latents=z, weight=w, bias=b, targets=t)
    head_scores(latents=z, weight=w, bias=b, targets=t, logits=logits)
    list(on_a_device(z, w, b, t, logits, "cross_entropy", {}))
    for x, y in zip((z, w, b, t, logits), before, strict=True):
        assert torch.equal(x, y)


def test_what_is_missing_is_named():
    z, w, b, t = inputs()
    logits = z @ w.T + b
    sketch = JLSketch(FEATURES, 8)
    incomplete = [
        {},
        {"logits": logits},
        {"weight_norm": frobenius_norm(w)},
        {"logits": logits, "weight_norm": frobenius_norm(w), "sketch": sketch},
    ]
    for options in incomplete:
        with pytest.raises(ValueError, match="`weight` must be given without `logits`"):
            head_scores(latents=z, targets=t, **options)
    options = class_weights({"class_weights": True})
    with pytest.raises(ValueError, match="`class_weights` belong to loss='cross_entropy'"):
        head_scores(
            latents=z,
            weight=w,
            targets=torch.rand(ROWS, CLASSES),
            loss="binary_cross_entropy",
            **options,
        )


WRONG = {
    "one sample": (lambda z, w, b, t: (z[0], w, b, t), "`latents` must be"),
    "tokens": (lambda z, w, b, t: (z[None], w, b, t[None]), "`latents` must be"),
    "no samples": (lambda z, w, b, t: (z[:0], w, b, t[:0]), "`latents` must be .* not empty"),
    "integers": (lambda z, w, b, t: (z.long(), w, b, t), "`latents` must be floating"),
    "a Flax kernel": (lambda z, w, b, t: (z, w.T.contiguous(), b, t), "must be transposed"),
    "another layer": (lambda z, w, b, t: (z[:, :5], w, b, t), "`weight` must be"),
    "too many targets": (lambda z, w, b, t: (z[:30], w, b, t), "`targets` must be"),
    "too few targets": (lambda z, w, b, t: (z, w, b, t[:30]), "`targets` must be"),
    "a bias of another head": (lambda z, w, b, t: (z, w, b[:1], t), "`bias` must be"),
    "floats as classes": (lambda z, w, b, t: (z, w, b, t.double()), "`targets` must be"),
    "one class": (lambda z, w, b, t: (z, w[:1], b[:1], t), "C >= 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes_are_refused_alike_on_every_device(name):
    change, words = WRONG[name]
    z, w, b, t = change(*inputs())
    options = {"loss": "cross_entropy", "label_smoothing": 0.0}
    with pytest.raises((TypeError, ValueError), match=words):
        head_scores(latents=z, weight=w, bias=b, targets=t)
    with pytest.raises((TypeError, ValueError), match=words):
        scoring._blockwise(z, t, w, frobenius_norm(w), b, options)


def test_the_kernel_is_for_a_gpu_alone():
    z, w, b, t = inputs(dtype=torch.float32)
    assert not scoring._fits_the_kernel(z @ w.T, z, t, b, "cross_entropy")


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_the_norm_of_a_weight(dtype, result):
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    norm = frobenius_norm(weight.requires_grad_())
    assert (norm.dtype, norm.shape, norm.requires_grad) == (result, (), False)
    assert float(norm) == pytest.approx(float(weight.detach().double().norm()), rel=1e-6)
    # The sum of squares leaves the range of half precision and the digits of bfloat16.
    assert float(frobenius_norm(torch.full((1000, 1000), 2.0, dtype=dtype))) == 2000.0


def test_the_norm_of_a_sharded_weight(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
        sharded = distribute_tensor(weight, init_device_mesh("cpu", (1,)), [Shard(0)])
        norm = frobenius_norm(sharded)
        assert type(norm) is torch.Tensor
        assert torch.equal(norm, frobenius_norm(weight))
    finally:
        dist.destroy_process_group()
