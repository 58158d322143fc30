"""The fused kernels on a real GPU, against the core in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

torch = pytest.importorskip("torch")

from models import batch, head_oracle, network
from torch.nn import functional as F  # noqa: N812

from gwa_core import (
    alignment_from_logit_gradients,
    alignment_from_logits,
    alignment_scores,
    label_quality,
    weighted_targets,
)
from gwa_torch import GWAMonitor, frobenius_norm, head_scores
from gwa_torch._epoch import BySample
from gwa_torch.scoring import gradient_scores

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # Of PyTorch itself: of its debug mode, of what Inductor imports, of threads of DataParallel.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*no current CUDA context:UserWarning"),
]


def _case(rows, classes, features, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(classes, features)) / features**0.5).astype(np.float32)
    targets = rng.integers(0, classes, rows)
    latents = (rng.normal(size=(rows, features)) + 2 * weight[targets]).astype(np.float32) * scale
    bias = rng.normal(size=classes).astype(np.float32)
    return latents, weight, bias, targets


def _fused(latents, weight, logits, targets, **options):
    device = {
        name: torch.as_tensor(x).cuda() if isinstance(x, np.ndarray) else x
        for name, x in options.items()
    }
    return (
        head_scores(
            logits=torch.as_tensor(logits).cuda(),
            latents=torch.as_tensor(latents).cuda(),
            weight_norm=frobenius_norm(torch.as_tensor(weight).cuda()),
            targets=torch.as_tensor(targets).cuda(),
            **device,
        )
        .cpu()
        .numpy()
    )


SIZES = [(7, 2, 3), (33, 10, 64), (64, 1000, 384), (16, 4097, 100), (8, 21841, 768)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", ["hard", "smooth", "soft", "weighted"])
def test_equals_the_core(size, with_bias, kind):
    latents, weight, bias, targets = _case(*size)
    bias = bias if with_bias else None
    logits = latents @ weight.T + (0 if bias is None else bias)
    options = {"bias": bias}
    want_targets = targets
    if kind == "smooth":
        options["label_smoothing"] = 0.1
    elif kind == "soft":
        targets = want_targets = (
            np.random.default_rng(1).dirichlet(np.ones(size[1]), size[0]).astype(np.float32)
        )
    elif kind == "weighted":
        weights = np.random.default_rng(2).uniform(0.5, 2, size[1]).astype(np.float32)
        options |= {"class_weights": weights, "label_smoothing": 0.1}
        want_targets = weighted_targets(
            targets=targets, class_weights=weights.astype(np.float64), label_smoothing=0.1
        )
    got = _fused(latents, weight, logits, targets, **options)
    # float64 from the very same float32 logits
    product = logits.astype(np.float64) - (0 if bias is None else bias)
    want = alignment_scores(
        latents=latents.astype(np.float64),
        weight=weight.astype(np.float64),
        targets=want_targets,
        logits=logits.astype(np.float64),
        bias=None if bias is None else bias.astype(np.float64),
        label_smoothing=0.1 if kind == "smooth" else 0.0,
    )
    size_of_terms = np.abs(product).max(1) / np.linalg.norm(latents, axis=1)
    assert_allclose(got, want, rtol=2e-5, atol=2e-6 * size_of_terms.max())


@pytest.mark.parametrize("scale", [0.3, 3, 10, 30, 100])
def test_exact_where_softmax_saturates(scale):
    latents, weight, _, targets = _case(512, 100, 64, scale)
    logits = latents @ weight.T
    for chosen in (targets, np.eye(100, dtype=np.float32)[targets]):
        got = _fused(latents, weight, logits, chosen)
        want = alignment_scores(
            latents=latents.astype(np.float64),
            weight=weight.astype(np.float64),
            targets=targets,
            logits=logits.astype(np.float64),
        )
        assert np.isfinite(got).all()
        assert (got != 0).all()
        assert_allclose(got, want, rtol=1e-4, atol=2e-6)


SHIFTS = {
    "rising": np.linspace(0, 400, 3000),
    "falling": np.linspace(400, 0, 3000),
    "a far offset": np.full(3000, 1e4),
    "one far above": np.where(np.arange(3000) == 2500, 100.0, 0.0),
    "the first block far below": np.where(np.arange(3000) < 1024, -500.0, 0.0),
    "hidden classes": np.where(np.arange(3000) < 1500, np.finfo(np.float32).min, 0.0),
}


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", SHIFTS)
def test_logits_of_any_size_anywhere_in_the_row(name, with_bias):
    latents, weight, _, targets = _case(64, 3000, 32)
    targets = np.maximum(targets, 1600)
    shift = SHIFTS[name].astype(np.float32)
    logits = latents @ weight.T + shift
    bias = shift if with_bias and name != "hidden classes" else None
    got = _fused(latents, weight, logits, targets, bias=bias)
    want = alignment_from_logits(
        logits=logits.astype(np.float64),
        latent_norms=np.linalg.norm(latents.astype(np.float64), axis=1),
        weight_norm=np.linalg.norm(weight.astype(np.float64)),
        targets=targets,
        bias=None if bias is None else bias.astype(np.float64),
    )
    assert_allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_gradients_equal_the_core(size, scale, dtype):
    latents, weight, bias, _ = _case(*size)
    rng = np.random.default_rng(3)
    gradients = torch.as_tensor(rng.normal(size=(size[0], size[1])) * scale).to(dtype).cuda()
    z, w, b = (torch.as_tensor(x).to(dtype).cuda() for x in (latents, weight, bias))
    for offset in (None, b):
        logits = z @ w.T + (0 if offset is None else offset)
        gradients[0] = 0
        got = gradient_scores(gradients, logits, z, frobenius_norm(w), offset)
        want = alignment_from_logit_gradients(
            logit_gradients=gradients.double(),
            logits=logits.double(),
            latent_norms=z.double().norm(dim=1),
            weight_norm=frobenius_norm(w).double(),
            bias=None if offset is None else offset.double(),
        )
        assert got.isnan().tolist() == [True] + [False] * (size[0] - 1)
        assert_allclose(got.cpu(), want.cpu(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_strides(dtype):
    latents, weight, _, targets = _case(64, 1000, 384)
    z = torch.as_tensor(latents).cuda().to(dtype)
    w = torch.as_tensor(weight).cuda().to(dtype)
    logits = z @ w.T
    wide = torch.empty(64, 1500, dtype=dtype, device="cuda")
    wide[:, 100:1100] = logits
    turned = z.T.contiguous().T
    got = head_scores(
        logits=wide[:, 100:1100],
        latents=turned,
        weight_norm=frobenius_norm(w),
        targets=torch.as_tensor(targets).cuda(),
    )
    want = alignment_scores(
        latents=z.double().cpu().numpy(),
        weight=w.double().cpu().numpy(),
        targets=targets,
        logits=logits.double().cpu().numpy(),
    )
    assert_allclose(got.cpu().numpy(), want, rtol=2e-5, atol=1e-6)


def test_bad_rows_are_nan_alone_and_zero_is_zero():
    latents, weight, _, targets = _case(8, 10, 16)
    logits = latents @ weight.T
    logits[1, 3], latents[2, 0], targets[3], targets[4] = np.nan, np.inf, 10, -100
    latents[5] = 0.0
    where = np.ones(8, bool)
    where[6] = False
    for options in ({}, {"label_smoothing": 0.1}):
        got = _fused(latents, weight, logits, targets, where=where, **options)
        assert np.isnan(got[[1, 2, 3, 4, 6]]).all()
        assert got[5] == 0
        assert np.isfinite(got[[0, 5, 7]]).all()


@pytest.fixture
def no_waiting():
    """Whatever waits for the device raises, between `on()` and `off()`."""

    class Waiting:
        on = staticmethod(lambda: torch.cuda.set_sync_debug_mode("error"))
        off = staticmethod(lambda: torch.cuda.set_sync_debug_mode("default"))

    yield Waiting
    Waiting.off()


OPTIONS = {
    "ids": {},
    "stream": {"stream": True},
    "smoothing": {"label_smoothing": 0.1},
    "class weights": {"label_smoothing": 0.1, "class_weights": torch.linspace(0.5, 2.0, 5)},
    "sigmoid": {"loss": "binary_cross_entropy"},
    "accumulated": {"parts": 2},
    "predictions": {"predicts": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_epoch_never_waits_for_the_device(name, no_waiting, monkeypatch):
    # Small, so that a stream is folded several times.
    monkeypatch.setattr("gwa_torch._epoch.FOLD", 64)
    options = dict(OPTIONS[name])
    stream, parts = options.pop("stream", False), options.pop("parts", 1)
    model = network().cuda()
    options["residual"] = "formula"
    predicts = options.pop("predicts", False)
    monitor = GWAMonitor(model.head, None if stream else 240, **options)
    monitor._keeper.predicts = predicts  # as where a run folder is written
    x, y = (t.cuda() for t in batch(240))
    targets = y
    if options.get("loss"):
        targets = F.one_hot(y, 5).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # From a loader, ids are on the host.
    ids = torch.arange(240)
    for epoch in range(2):
        if epoch:
            no_waiting.on()
        for step in range(10):
            rows = slice(step * 24, step * 24 + 24)
            for part in x[rows].chunk(parts):
                F.cross_entropy(model(part), y[: len(part)]).backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.update(targets[rows], None if stream else ids[rows])
        no_waiting.off()
        assert monitor.end_epoch().count == 240
        assert (monitor._keeper.predictions is not None) == predicts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_are_the_classes_of_largest_logit(dtype):
    classes = 1001
    model = torch.nn.Linear(16, classes).cuda().to(dtype)
    monitor = GWAMonitor(model, 400, residual="formula")
    monitor._keeper.predicts = True
    rng = np.random.default_rng(0)
    want = torch.full((400,), -1)
    for _ in range(2):
        ids = torch.as_tensor(rng.permutation(380)[:300])
        x = torch.as_tensor(rng.normal(size=(300, 16))).to("cuda", dtype)
        found = model(x).argmax(1).cpu()
        monitor.update(torch.zeros(300, dtype=torch.long, device="cuda"), ids)
        for i, label in zip(ids.tolist(), found.tolist(), strict=True):
            want[i] = label if want[i] < 0 else want[i]
    monitor.end_epoch()
    # Class numbers are denormal as floats, and no kernel may make zeros of them.
    assert want.max() > 900
    assert torch.equal(monitor._keeper.predictions.long(), want)


OTHER = "ignore:the closed form of:UserWarning"


@pytest.mark.filterwarnings(OTHER)
@pytest.mark.parametrize("residual", ["auto", "backward"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("stream", [False, True])
def test_gradients_are_scored_without_waiting(no_waiting, residual, temperature, stream):
    model = network().cuda()
    monitor = GWAMonitor(model.head, None if stream else 240, residual=residual)
    x, y = (t.cuda() for t in batch(240))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        if epoch:
            no_waiting.on()
        for rows in torch.arange(240).chunk(10):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            F.cross_entropy(model(x[part]) / temperature, y[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.update(y[part], None if stream else rows)
        no_waiting.off()
        summary = monitor.end_epoch()
        assert (summary.count, summary.omitted) == (240, 0)
    assert monitor.residual == (
        "backward" if temperature < 1 else residual.replace("auto", "formula")
    )


def test_label_quality_is_kept_on_the_device():
    model = network().cuda()
    monitor, resumed = GWAMonitor(model.head, 40), GWAMonitor(model.head, 40)
    x, y = (t.cuda() for t in batch(40))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scores = []
    for epoch in range(4):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        for one in (monitor, resumed):
            one.update(y, torch.arange(40))
            one.end_epoch()
        scores.append(monitor.scores)
        assert monitor._keeper.quality.value.device.type == "cuda"
        want = label_quality(torch.stack(scores).double())
        assert_allclose(monitor.label_quality, want, rtol=1e-5)
        assert torch.equal(resumed.label_quality, monitor.label_quality)
        if epoch == 1:
            # A state is on the host, and goes to the device with the next scores.
            resumed.load_state_dict(monitor.state_dict())
            assert torch.equal(resumed.label_quality, monitor.label_quality)


def test_waiting_would_be_noticed(no_waiting):
    no_waiting.on()
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1, device="cuda").item()


# Inductor advises float32 settings, and makes its pool of memory by an empty graph with a warning.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("residual", ["auto", "backward"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_static_buffers_of_cuda_graphs(mode, residual):
    torch._dynamo.reset()
    model = network().cuda()
    monitor = GWAMonitor(model.head, 12, residual=residual)
    compiled = torch.compile(model, mode=mode, fullgraph=True)
    x, y = (t.cuda() for t in batch())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        want = head_oracle(model, x, y)
        F.cross_entropy(compiled(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.update(y, torch.arange(12))
        monitor.end_epoch()
        assert_allclose(monitor.scores, want.cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_language_model_head_never_has_its_logits(bias):
    torch.manual_seed(0)
    n, c, d = 4096, 50_000, 256
    weight = (torch.randn(c, d, device="cuda") / d**0.5).bfloat16()
    latents = torch.randn(n, d, device="cuda").bfloat16()
    targets = torch.randint(c, (n,), device="cuda")
    targets[5] = -100
    offset = torch.randn(c, device="cuda").bfloat16() if bias else None
    where = targets != -100
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = head_scores(latents=latents, weight=weight, bias=offset, targets=targets, where=where)
    assert torch.cuda.max_memory_allocated() - before < 256e6
    logits = latents @ weight.T
    logits = logits if offset is None else logits + offset
    some = slice(0, 64)
    want = alignment_scores(
        latents=latents[some].double().cpu().numpy(),
        weight=weight.double().cpu().numpy(),
        targets=np.maximum(targets[some].cpu().numpy(), 0),
        bias=None if offset is None else offset.double().cpu().numpy(),
    )
    want[5] = np.nan
    # The logits are rounded to bfloat16, as the model's own would be.
    assert_allclose(got[some].cpu(), want, atol=2e-2)
    assert torch.isnan(got).sum() == 1


def test_a_kernel_is_not_asked_for_what_it_cannot_read():
    z, w = torch.randn(8, 4, device="cuda"), torch.randn(3, 4, device="cuda")
    logits, norm = z @ w.T, frobenius_norm(w)
    for targets in (torch.zeros(7, dtype=torch.int64), torch.zeros(8, 4), torch.zeros(8)):
        with pytest.raises((TypeError, ValueError), match="`targets`"):
            head_scores(logits=logits, latents=z, weight_norm=norm, targets=targets.cuda())


@pytest.mark.parametrize(
    ("work", "single"), [("padded_nccl", "padded_ids"), ("streamed_nccl", "uneven_stream")]
)
def test_nccl_merges_on_the_device(work, single, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    import ranks
    import torch.multiprocessing as multiprocessing

    multiprocessing.spawn(ranks.begin, (2, str(tmp_path), work, "nccl"), nprocs=2)
    got = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    want = getattr(ranks, single)(None, 2)
    assert got[0]["history"] == got[1]["history"]
    for one in got:
        assert one["decisions"] == want["decisions"]
        for ours, theirs in zip(one["history"], want["history"], strict=True):
            assert (*ours[:4], ours[-1]) == (*theirs[:4], theirs[-1])
            assert_allclose(ours[4:-2], theirs[4:-2], rtol=1e-3, atol=1e-5)
        for ours, theirs in zip(one["scores"], want["scores"], strict=True):
            if ours is not None:
                assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_data_parallel_on_two_devices():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    model = network().cuda()
    wrapped = torch.nn.DataParallel(model)
    monitor = GWAMonitor(model.head, 13)
    x, y = (t.cuda() for t in batch(13))
    want = head_oracle(model, x, y)
    for _ in range(3):
        F.cross_entropy(wrapped(x), y).backward()
        monitor.update(y, torch.arange(13))
        monitor.end_epoch()
        assert_allclose(monitor.scores, want.cpu(), rtol=1e-5, atol=1e-5)


def test_the_first_score_of_a_sample_stays_on_the_device_too():
    rng = np.random.default_rng(0)
    batches = [
        (
            torch.as_tensor(rng.normal(size=700), dtype=torch.float32).clamp(-1, 1),
            torch.as_tensor(rng.integers(-3, 900, 700)),
            torch.as_tensor(rng.random(700) < 0.8),
        )
        for _ in range(3)
    ]
    results = []
    for device in ("cpu", "cuda"):
        epoch = BySample(890, torch.device(device))
        for scores, ids, where in batches:
            epoch.add(scores.to(device), ids.to(device), where.to(device))
        epoch.add(batches[0][0].to(device), batches[1][1].to(device), None)
        results.append((epoch.first[:-1].cpu(), int(epoch.strays)))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] > 0
