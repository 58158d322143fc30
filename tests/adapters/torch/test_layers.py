"""What parts of a network give, against a loop of autograd in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models import batch, network
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gwa_core.signals import head_gradient_disparity, self_influence
from gwa_torch import (
    GWAMonitor,
    head_scores,
    layer_alignment,
    layer_gradient_disparity,
    layer_gradient_norms,
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def gradient(model, members, loss_of):
    """The gradient in float64 by the parameters of these names, and those parameters."""
    model = copy.deepcopy(model).double()
    parameters = [x for name, x in model.named_parameters() if name in members]
    found = torch.autograd.grad(loss_of(model), parameters)
    flat = lambda many: torch.cat([x.detach().flatten() for x in many])  # noqa: E731
    return flat(found), flat(parameters)


def gradients(model, loss_fn, inputs, targets, members):
    """One backward pass a sample."""
    for x, t in zip(inputs, targets, strict=True):
        x = x.double() if x.is_floating_point() else x
        yield gradient(model, members, lambda net, x=x, t=t: loss_fn(net(x[None]), t[None]))


def by_loop(model, loss_fn, inputs, targets, members):
    return torch.stack(
        [
            F.cosine_similarity(-found, weights, dim=0, eps=0)
            for found, weights in gradients(model, loss_fn, inputs, targets, members)
        ]
    )


def close(got, expected, atol=2e-6):
    assert_allclose(got.double(), expected, rtol=0, atol=atol)


class Convolutional(nn.Module):
    """Two stages, batch norm, and a head with a bias."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.stages = nn.Sequential(first, second)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.drop(self.stages(x).mean((2, 3))))


def images(rows=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 3, 8, 8, generator=generator), torch.arange(rows) % 5


def convolutional(**options):
    """In eval mode, with running statistics of some training."""
    model = Convolutional(**options)
    for _ in range(3):
        model(images()[0])
    return model.eval()


STAGES = {
    "head": ["head.weight"],
    "last": ["stages.1", "head"],
    "first convolution": "stages.0.0",
    "full": "",
}


def members_of(model, prefixes):
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
    return [
        name
        for name, _ in model.named_parameters()
        if any(name == p or not p or name.startswith(f"{p}.") for p in prefixes)
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_stage_of_a_convolutional_network_equals_the_loop(smoothing):
    model, (x, y) = convolutional(), images()
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    scores = layer_alignment(model, loss, x, y, STAGES)
    assert list(scores) == list(STAGES)
    for stage, prefixes in STAGES.items():
        close(scores[stage], by_loop(model, loss, x, y, members_of(model, prefixes)))
    assert not torch.allclose(scores["head"], scores["full"], atol=1e-3)


@pytest.mark.parametrize("size", [None, 4])
def test_gradient_norms_equal_the_loop(size):
    model, (x, y) = convolutional().double(), images()
    norms = layer_gradient_norms(
        model, nn.CrossEntropyLoss(), x.double(), y, STAGES, chunk_size=size
    )
    assert list(norms) == list(STAGES)
    for stage, prefixes in STAGES.items():
        found = gradients(model, nn.CrossEntropyLoss(), x, y, members_of(model, prefixes))
        want = torch.stack([g.norm() for g, _ in found])
        assert_allclose(norms[stage], want, rtol=1e-12)


def test_the_square_of_the_norm_at_the_head_is_the_self_influence():
    model, (x, y) = network(), batch()
    norms = layer_gradient_norms(model, nn.CrossEntropyLoss(), x, y, ["head.weight"])
    with torch.no_grad():
        latents = model.body(x)
        want = self_influence(latents=latents, logits=model.head(latents), targets=y)
    assert norms["head.weight"].dtype == torch.float32
    assert_allclose(norms["head.weight"] ** 2, want, rtol=1e-5)


def test_gradient_disparity_equals_the_loop():
    model = convolutional().double()
    x, y = images(15)
    batches = [(x[i::3].double(), y[i::3]) for i in range(3)]
    got = layer_gradient_disparity(model, nn.CrossEntropyLoss(), iter(batches), STAGES)
    assert list(got) == list(STAGES)

    def rescaled(net, x, y):
        losses = F.cross_entropy(net(x), y, reduction="none")
        return losses.mean() / losses.std()

    for stage, prefixes in STAGES.items():
        members = members_of(model, prefixes)
        found = [
            gradient(model, members, lambda net, some=some: rescaled(net, *some))[0]
            for some in batches
        ]
        pairs = [(found[i] - found[j]).norm() for i in range(3) for j in range(i)]
        assert got[stage].shape == ()
        assert_allclose(got[stage], sum(pairs) / 3, rtol=1e-10)


def test_the_disparity_at_the_head_is_that_in_closed_form():
    model, (x, y) = network(), batch(40)
    batches = [(x[i::5], y[i::5]) for i in range(5)]
    got = layer_gradient_disparity(model, nn.CrossEntropyLoss(), batches, ["head.weight"])
    with torch.no_grad():
        latents = torch.stack([model.body(x) for x, _ in batches])
        given = {"latents": latents, "logits": model.head(latents)}
        want = head_gradient_disparity(**given, targets=torch.stack([y for _, y in batches]))
    assert_allclose(got["head.weight"], want, rtol=1e-4)


def test_mini_batches_that_do_not_fit_are_refused():
    model, (x, y) = network(), batch()
    measure = lambda *batches: layer_gradient_disparity(  # noqa: E731
        model, nn.CrossEntropyLoss(), batches, ["head"]
    )
    with pytest.raises(ValueError, match="`batches` must have S >= 2 mini-batches, got 1"):
        measure((x, y))
    with pytest.raises(ValueError, match=r"must be \(B,\) with B >= 2, got shape \(1,\)"):
        measure((x[:1], y[:1]), (x[1:2], y[1:2]))
    same = x[:1].expand(4, -1), y[:1].expand(4)
    assert measure(same, (x, y))["head"].isnan(), "equal losses have no deviation"


def test_float64_is_exact():
    model, (x, y) = convolutional().double(), images()
    scores = layer_alignment(model, nn.CrossEntropyLoss(), x.double(), y, [""])[""]
    assert scores.dtype == torch.float64
    names = members_of(model, "")
    close(scores, by_loop(model, nn.CrossEntropyLoss(), x, y, names), atol=1e-13)


def test_the_weight_of_the_head_alone_is_what_the_monitor_measures():
    model, (x, y) = network(), batch()
    stages = ["head.weight", "head"]
    scores = layer_alignment(model, nn.CrossEntropyLoss(), x, y, stages)
    with GWAMonitor(model.head, num_samples=len(y)) as monitor:
        model(x)
        monitor.update(y, ids=torch.arange(len(y)))
        close(scores["head.weight"], monitor.scores)
    head = {"weight": model.head.weight.detach(), "bias": model.head.bias.detach()}
    latents = model.body(x).detach()
    close(scores["head.weight"], head_scores(latents=latents, targets=y, **head))
    assert not torch.allclose(scores["head.weight"], scores["head"], atol=1e-4), "bias has no part"


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_chunks_give_the_same_numbers(size):
    model, (x, y) = convolutional(), images()
    whole = layer_alignment(model, nn.CrossEntropyLoss(), x, y, STAGES)
    pieces = layer_alignment(model, nn.CrossEntropyLoss(), x, y, STAGES, chunk_size=size)
    for stage, scores in whole.items():
        close(pieces[stage], scores.double(), atol=1e-6)


def test_a_prefix_is_a_whole_name():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(11)))
    x, y = torch.randn(3, 4), torch.arange(3)
    scores = layer_alignment(model, nn.CrossEntropyLoss(), x, y, ["1", "10"])
    close(scores["1"], by_loop(model, nn.CrossEntropyLoss(), x, y, ["1.weight", "1.bias"]))


def test_the_model_stays_as_it_was():
    model, (x, y) = convolutional(), images()
    before = copy.deepcopy(model.state_dict())
    x.requires_grad_()
    with GWAMonitor(model.head) as monitor:
        scores = layer_alignment(model, nn.CrossEntropyLoss(), x, y, [""])
        assert not monitor._capture.waiting
    assert not scores[""].requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert x.grad is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_dropout_draws_for_each_sample():
    model, (x, _) = convolutional(dropout=0.5), images()
    model.drop.train()
    same = x[:1].expand(8, -1, -1, -1)
    torch.manual_seed(0)
    scores = layer_alignment(
        model, nn.CrossEntropyLoss(), same, torch.zeros(8, dtype=int), ["head"]
    )
    assert scores["head"].unique().numel() > 1


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_several_inputs(kind):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 5)

        def forward(self, a, b):
            return self.head(a * b)

    torch.manual_seed(0)
    model, (x, y) = Two(), batch()
    other = torch.rand_like(x)
    inputs = {"b": other, "a": x} if kind is dict else kind((x, other))
    scores = layer_alignment(model, nn.CrossEntropyLoss(), inputs, y, ["head.weight"])
    head = {"weight": model.head.weight.detach(), "bias": model.head.bias.detach()}
    close(scores["head.weight"], head_scores(latents=x * other, targets=y, **head))


def test_tied_parameters_have_both_names_and_one_gradient():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    def next_token(logits, tokens):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    torch.manual_seed(0)
    model = Tied()
    tokens = torch.randint(7, (5, 6))
    scores = layer_alignment(model, next_token, tokens, tokens, ["head", "embedding", ""])
    expected = by_loop(model, next_token, tokens, tokens, ["embedding.weight"])
    for stage in scores:
        close(scores[stage], expected)


def test_attention_is_measured_without_a_warning():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(24, 3)
    ).eval()
    x, y = torch.randn(4, 3, 8), torch.arange(4) % 3
    scores = layer_alignment(model, nn.CrossEntropyLoss(), x, y, ["0"])
    # Eval mode without gradients takes another, fused path.
    names = members_of(model, "0")
    close(scores["0"], by_loop(model, nn.CrossEntropyLoss(), x, y, names))


@pytest.mark.parametrize("inner", [False, True])
def test_a_compiled_model_is_measured_by_the_model_inside(inner):
    torch._dynamo.reset()
    model, (x, y) = network(), batch()
    plain = layer_alignment(model, nn.CrossEntropyLoss(), x, y, ["body"])
    if inner:
        model.compile(backend="eager")
        model.body.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    model(x)
    scores = layer_alignment(model, nn.CrossEntropyLoss(), x, y, ["body"])
    assert torch.equal(scores["body"], plain["body"])


def call(model=None, loss=None, x=None, y=None, stages=("",), **options):
    given, (one, two) = model or network(), batch()
    return layer_alignment(
        given,
        loss or nn.CrossEntropyLoss(),
        one if x is None else x,
        two if y is None else y,
        stages,
        **options,
    )


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (["haed"], r"`stages` must name modules or parameters .* got 'haed'.* has head"),
        ({"all": ["head", "zzz"]}, r"got 'zzz' in stage 'all'; it has body, head"),
        (["body.1"], r"`stages` must have parameters, got stage 'body.1'"),
        ({"none": []}, r"`stages` must have parameters, got stage 'none'"),
        ([], r"`stages` must name at least one part"),
        ("hea", r"`stages` must name .* got 'hea' .* it has head"),
    ],
)
def test_a_wrong_stage_is_named(stages, words):
    with pytest.raises(ValueError, match=words):
        call(stages=stages)


def test_what_does_not_fit_is_refused():
    x, y = batch()
    with pytest.raises(ValueError, match=r"`loss_fn` must return one number, .* got \(1,\)"):
        call(loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(ValueError, match=r"`loss_fn` must return one number, .* got float"):
        call(loss=lambda *_: 1.0)
    with pytest.raises(ValueError, match="same number of samples, at least one, got 12, 5"):
        call(y=y[:5])
    with pytest.raises(ValueError, match="same number of samples, at least one, got 0, 0"):
        call(x=x[:0], y=y[:0])
    with pytest.raises(TypeError, match=r"`inputs` must be a tensor, .* got ndarray"):
        call(x=x.numpy())
    with pytest.raises(TypeError, match="must be tensors with the samples first, got Tensor, list"):
        call(y=y.tolist())
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="`chunk_size` must be an integer of at least 1"):
            call(chunk_size=size)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3, track_running_stats=False).eval(),
        nn.InstanceNorm2d(3, track_running_stats=True),
    ],
    ids=["train mode", "no running statistics", "instance norm"],
)
def test_statistics_of_a_batch_are_refused(norm):
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(192, 5))
    x, y = images()
    cure = r"call model\.eval" if norm.track_running_stats else "take another norm"
    with pytest.raises(ValueError, match=f"must not take statistics of a batch.* at '0' .*{cure}"):
        call(model, x=x, y=y)
    if norm.track_running_stats:
        assert call(model.eval(), x=x, y=y)[""].isfinite().all()


def test_norms_of_a_sample_work_in_train_mode():
    model = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.Flatten(), nn.Linear(192, 5))
    x, y = images()
    names = members_of(model, "")
    close(call(model, x=x, y=y)[""], by_loop(model, nn.CrossEntropyLoss(), x, y, names))


def test_a_chunk_size_may_be_one_of_numpy():
    x, y = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    close(call(model, x=x, y=y, chunk_size=np.int64(2))[""], call(model, x=x, y=y)[""])


def test_norms_of_large_and_small_gradients_do_not_overflow():
    model = nn.Linear(4, 3, bias=False)
    x, y = torch.eye(4)[:2], torch.tensor([0, 1])
    for scale in (1e30, 1e-30):
        norms = layer_gradient_norms(
            model, lambda out, target, s=scale: s * F.cross_entropy(out, target), x, y, [""]
        )[""]
        plain = layer_gradient_norms(model, F.cross_entropy, x, y, [""])[""]
        torch.testing.assert_close(norms / scale, plain)
