import mpmath
import numpy as np
import oracles
import pytest
from backends import CASE, CASES, open_case, require
from scenarios import HEAD, HOOKED, LABELS, MASK, SOFT, C, D, N

from gwa_core import (
    JLSketch,
    alignment_from_logit_gradients,
    alignment_from_logits,
    alignment_scores,
    gradient_alignment,
    residual,
)

BINARY = {"loss": "binary_cross_entropy"}
# name, how targets are made of hard labels, options
LOSSES = (
    ("hard", "hard", {}),
    ("smoothed", "hard", {"label_smoothing": 0.1}),
    ("one-hot", "one-hot", {}),
    ("soft", "soft", {}),
    ("soft-smoothed", "soft", {"label_smoothing": 0.3}),
    ("bce-hard", "hard", BINARY),
    ("bce-labels", "labels", BINARY),
    ("bce-soft-smoothed", "soft-labels", {**BINARY, "label_smoothing": 0.1}),
)
loss_cases = pytest.mark.parametrize(
    ("kind", "options"), [loss[1:] for loss in LOSSES], ids=[loss[0] for loss in LOSSES]
)
SINGLE = [
    case for case in CASES if case.result_dtype == "float32" and case.values and not case.slow
]


def make_targets(kind, labels, classes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "hard": labels,
        "one-hot": np.eye(classes)[labels],
        "soft": rng.dirichlet(np.full(classes, 0.3), len(labels)),
        "labels": (rng.random((len(labels), classes)) < 0.3).astype(float),
        "soft-labels": rng.random((len(labels), classes)),
    }[kind]


def make_saturated(scale, kind, with_bias, seed=0):
    """Latents that lean to their class, so that the logit gap grows with the scale."""
    rng = np.random.default_rng(seed)
    rows, classes, features = 10, 8, 16
    weight = (rng.normal(size=(classes, features)) / 4).astype("f4")
    labels = rng.integers(0, classes, rows)
    latents = ((rng.normal(size=(rows, features)) + weight[labels]) * scale).astype("f4")
    bias = rng.normal(size=classes).astype("f4") if with_bias else None
    logits = latents @ weight.T + (0.0 if bias is None else bias)
    return {
        "logits": logits,
        "latent_norms": np.linalg.norm(latents, axis=1),
        "weight_norm": np.linalg.norm(weight),
        "targets": np.asarray(make_targets(kind, labels, classes, seed)),
        "bias": bias,
    }


@loss_cases
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_textbook_formula_in_float64(kind, options, with_bias, scale):
    head = {**HEAD, "latents": scale * HEAD["latents"]}
    head["targets"] = make_targets(kind, HEAD["targets"], C)
    head["bias"] = head["bias"] if with_bias else None
    got = alignment_scores(**head, **options)
    np.testing.assert_allclose(got, oracles.alignment(**head, **options), rtol=1e-12, atol=1e-14)


@loss_cases
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("scale", [0.3, 1, 3, 10, 30, 100])
def test_float32_is_right_where_softmax_saturates(kind, options, with_bias, scale):
    arrays = make_saturated(scale, kind, with_bias)
    exact = np.array([float(v) for v in oracles.exact_alignment(**arrays, **options)])
    got = alignment_from_logits(**arrays, **options)
    assert got.dtype == np.float32
    assert np.all(got != 0)
    assert np.max(np.abs(got - exact) / np.abs(exact)) <= 1e-4


@pytest.mark.parametrize("case", SINGLE, ids=[case.name for case in SINGLE])
@pytest.mark.parametrize("scale", [10, 100])
def test_float32_is_right_where_softmax_saturates_on_other_backends(case, scale):
    with open_case(case) as backend:
        arrays = backend.arrays(**make_saturated(scale, "hard", True))
        seen = {name: backend.read(array) for name, array in arrays.items()}
        exact = np.array([float(v) for v in oracles.exact_alignment(**seen)])
        got = backend.read(backend.call(lambda a: alignment_from_logits(**a), arrays))
        assert np.all(got != 0)
        np.testing.assert_allclose(got, exact, rtol=1e-4)


@pytest.mark.parametrize("offset", [-1e4, -100, -45, -38, 38, 45, 88, 100, 1e4])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_common_offset_of_float32_logits_costs_no_digits(offset, with_bias):
    arrays = make_saturated(3, "hard", with_bias)
    arrays["logits"] = arrays["logits"] + np.float32(offset)
    if with_bias:
        arrays["bias"] = arrays["bias"] + np.float32(offset)
    exact = np.array([float(v) for v in oracles.exact_alignment(**arrays)])
    np.testing.assert_allclose(alignment_from_logits(**arrays), exact, rtol=1e-4)


def test_float32_keeps_its_digits_where_products_cancel():
    # γ is the small difference of large terms; NumPy sums such rows again in float64.
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 10)).astype("f4") * 30
    labels = rng.integers(0, 10, 400)
    q = np.exp(logits.astype(float))
    q[np.arange(400), labels] = 0
    away = (q * logits).sum(axis=1) / q.sum(axis=1)
    logits[np.arange(400), labels] = away * (1 + 1e-4 * rng.normal(size=400))
    arrays = {
        "logits": logits,
        "latent_norms": np.ones(400, "f4"),
        "weight_norm": 100.0,
        "targets": labels,
    }
    exact = np.array([float(v) for v in oracles.exact_alignment(**arrays)])
    assert np.median(np.abs(exact)) < 1e-4
    np.testing.assert_allclose(alignment_from_logits(**arrays), exact, rtol=1e-4)


def _torch_loss(torch, logits, targets, loss="cross_entropy", label_smoothing=0.0):
    f = torch.nn.functional
    if loss == "cross_entropy":
        return f.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if targets.ndim == 1:
        targets = f.one_hot(targets, logits.shape[1])
    targets = (1 - label_smoothing) * targets.double() + label_smoothing * 0.5
    return f.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


@loss_cases
def test_definition_is_the_gradient_of_the_real_loss(kind, options):
    torch = require("torch")
    latents, bias = torch.tensor(HEAD["latents"]), torch.tensor(HEAD["bias"])
    targets = torch.tensor(make_targets(kind, HEAD["targets"], C))
    weight = torch.tensor(HEAD["weight"], requires_grad=True)
    gradients = []
    for i in range(N):
        loss = _torch_loss(
            torch, latents[i : i + 1] @ weight.T + bias, targets[i : i + 1], **options
        )
        gradients.append(torch.autograd.grad(loss, weight)[0].ravel())
    want = gradient_alignment(torch.stack(gradients), weight.detach().ravel())
    got = alignment_scores(
        latents=latents, weight=weight.detach(), targets=targets, bias=bias, **options
    )
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


def test_single_output_is_trained_with_zeros_and_ones():
    rng = np.random.default_rng(0)
    latents, weight = rng.normal(size=(9, 4)), rng.normal(size=(1, 4))
    labels = rng.integers(0, 2, 9)
    want = oracles.alignment(latents, weight, labels, loss="binary_cross_entropy")
    for targets in (labels, labels.astype(float), labels[:, None], labels.astype(bool)):
        got = alignment_scores(latents=latents, weight=weight, targets=targets, **BINARY)
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("sketch", [None, JLSketch(D, 3)], ids=["plain", "sketched"])
def test_blocks_of_rows_change_nothing(sketch):
    rng = np.random.default_rng(0)
    rows, classes = 3000, 400
    arrays = {
        "latents": rng.normal(size=(rows, D)),
        "weight": rng.normal(size=(classes, D)),
        "targets": rng.integers(0, classes, rows),
        "bias": rng.normal(size=classes),
    }
    assert rows * classes * 4 > 1 << 22
    whole = alignment_scores(**arrays, sketch=sketch)
    for i in (0, 1, rows // 2, rows - 1):
        one = {**arrays, "latents": arrays["latents"][[i]], "targets": arrays["targets"][[i]]}
        np.testing.assert_allclose(alignment_scores(**one, sketch=sketch), whole[[i]], rtol=1e-9)


def test_hook_and_offline_paths_agree():
    latents, weight, bias = HEAD["latents"], HEAD["weight"], HEAD["bias"]
    logits = latents @ weight.T + bias
    offline = alignment_scores(**HEAD)
    with_logits = alignment_scores(**HEAD, logits=logits)
    for norm in (np.linalg.norm(weight), np.asarray(np.linalg.norm(weight))):
        hooked = alignment_from_logits(
            logits=logits,
            latent_norms=np.linalg.norm(latents, axis=1),
            weight_norm=norm,
            targets=HEAD["targets"],
            bias=bias,
        )
        np.testing.assert_allclose(hooked, offline, rtol=1e-12)
    np.testing.assert_allclose(with_logits, offline, rtol=1e-12)
    single = alignment_from_logits(
        **{k: np.float32(v) if k != "targets" else v for k, v in HOOKED.items()}
    )
    assert single.dtype == np.float32


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_logits_of_something_else_are_refused(loss):
    logits = HEAD["latents"] @ HEAD["weight"].T + HEAD["bias"]
    head = {**HEAD, "loss": loss}
    if loss == "binary_cross_entropy":
        head["targets"] = LABELS
    without = {name: x for name, x in head.items() if name != "bias"}
    with pytest.raises(ValueError, match=r"latents @ weight\.T.*has a bias"):
        alignment_scores(**without, logits=logits)
    with pytest.raises(ValueError, match="scaled or capped"):
        alignment_scores(**head, logits=logits / 0.07)
    with pytest.raises(ValueError, match="another head"):
        alignment_scores(**{**head, "weight": HEAD["weight"][::-1]}, logits=logits)
    # A row that does not count may hold anything, and bfloat16 rounds.
    where = np.arange(N) > 0
    odd = np.concatenate([logits[:1] + np.arange(C), logits[1:]])
    np.testing.assert_allclose(
        alignment_scores(**head, logits=odd, where=where)[1:],
        alignment_scores(**head)[1:],
        rtol=1e-12,
    )
    # Rows that are not finite say nothing of the others, whichever array they spoil.
    for name, column in (("latents", 0), ("logits", 0), ("logits", -1)):
        spoilt = {**head, "logits": logits / 0.07}
        spoilt[name] = spoilt[name].copy()
        spoilt[name][:3, column] = np.nan
        with pytest.raises(ValueError, match="got row 3 that differs"):
            alignment_scores(**spoilt)
    rounded = (logits.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.isfinite(alignment_scores(**head, logits=rounded)).all()


@pytest.mark.parametrize("kind", ["hard", "soft", "bce"])
def test_singular_points(backend, kind):
    options = BINARY if kind == "bce" else {}
    targets = {"hard": HEAD["targets"], "soft": SOFT, "bce": LABELS}[kind]
    latents = HEAD["latents"].copy()
    latents[2], latents[4, 1], latents[6, 0] = 0.0, np.nan, np.inf
    head = {"latents": latents, "weight": HEAD["weight"], "targets": targets}
    clean = {**head, "latents": HEAD["latents"]}

    def run(arrays):
        return alignment_scores(**arrays, **options)

    got = backend.read(backend.call(run, backend.arrays(**head)))
    want = backend.read(backend.call(run, backend.arrays(**clean)))
    assert got[2] == 0.0
    assert np.isnan(got[[4, 6]]).all()
    others = [i for i in range(N) if i not in (2, 4, 6)]
    np.testing.assert_allclose(got[others], want[others], rtol=1e-5)
    nothing = {**clean, "weight": np.zeros((C, D))}
    assert np.all(backend.read(backend.call(run, backend.arrays(**nothing))) == 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_input_is_nan_for_its_sample_alone(bad):
    base = {**HOOKED, "targets": SOFT}
    want = alignment_from_logits(**base)
    for name in ("logits", "targets"):
        for column in range(C):
            broken = {**base, name: base[name].copy()}
            broken[name][3, column] = bad
            # NumPy refuses infinite targets by their value.
            with open_case(CASE["strict"]) as strict:
                got = strict.read(alignment_from_logits(**strict.arrays(**broken)))
            assert np.isnan(got[3]), (name, column)
            np.testing.assert_allclose(np.delete(got, 3), np.delete(want, 3), rtol=1e-12)
    norms = HOOKED["latent_norms"].copy()
    norms[5] = bad
    got = alignment_from_logits(**{**HOOKED, "latent_norms": norms})
    assert np.isnan(got).tolist() == [i == 5 for i in range(N)]
    assert np.isnan(alignment_from_logits(**{**HOOKED, "weight_norm": bad})).all()
    weight = HEAD["weight"].copy()
    weight[1, 1] = bad
    assert np.isnan(alignment_scores(**{**HEAD, "weight": weight})).all()


def test_masked_samples_may_hold_anything(backend):
    rubbish = {**HEAD, "latents": HEAD["latents"].copy(), "targets": HEAD["targets"].copy()}
    rubbish["latents"][~MASK] = np.inf
    rubbish["targets"][~MASK] = -100

    def run(arrays):
        return alignment_scores(**arrays)

    got = backend.read(backend.call(run, backend.arrays(**rubbish, where=MASK)))
    want = backend.read(backend.call(run, backend.arrays(**HEAD)))
    assert np.isnan(got[~MASK]).all()
    np.testing.assert_allclose(got[MASK], want[MASK], rtol=1e-5)


@pytest.mark.parametrize("name", ["strict", "strict-no_x64", "torch-f32", "jax-x32-jit"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, BINARY])
def test_unknown_class_numbers_are_nan_where_values_are_not_looked_at(name, options):
    labels = HEAD["targets"].copy()
    labels[0], labels[1] = C, -1
    with open_case(CASE[name]) as backend:
        arrays = backend.arrays(**{**HEAD, "targets": labels})
        got = backend.read(backend.call(lambda a: alignment_scores(**a, **options), arrays))
    assert np.isnan(got).tolist() == [i < 2 for i in range(N)]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32"])
def test_narrow_integers_may_number_many_classes(backend, dtype):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 300)), rng.integers(0, 100, 6)
    arrays = backend.arrays(logits=logits, latent_norms=np.ones(6), weight_norm=np.asarray(1.0))
    numbers = backend.array(labels)

    def run(arrays):
        return alignment_from_logits(**arrays)

    narrow = backend.xp.astype(numbers, getattr(backend.xp, dtype))
    got = backend.call(run, {**arrays, "targets": narrow})
    want = backend.call(run, {**arrays, "targets": numbers})
    np.testing.assert_array_equal(backend.read(got), backend.read(want))


def test_extreme_magnitudes_neither_overflow_nor_vanish():
    latents, weight = HEAD["latents"].astype("f4"), HEAD["weight"].astype("f4")
    logits, want = latents @ weight.T, alignment_scores(**{**HEAD, "bias": None})
    for scale in (1e-25, 1e25):
        norms = [np.float32(scale), np.float32(1 / scale)]
        got = alignment_from_logits(
            logits=logits,
            latent_norms=np.linalg.norm(latents, axis=1) * norms[0],
            weight_norm=float(np.linalg.norm(weight)) / scale,
            targets=HEAD["targets"],
        )
        np.testing.assert_allclose(got, want, rtol=1e-4)
        got = gradient_alignment(latents * np.float32(scale), weight[0] * norms[1])
        np.testing.assert_allclose(got, -oracles.cosine(latents, weight[0]), rtol=1e-4)


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("kind", ["hard", "soft", "bce"])
@pytest.mark.parametrize("where", ["latents", "weight", "saturated"])
def test_gradients_are_finite_at_singular_points(library, kind, where):
    options = BINARY if kind == "bce" else {}
    targets = {"hard": HEAD["targets"], "soft": SOFT, "bce": LABELS}[kind]
    latents = (HEAD["latents"] * (200 if where == "saturated" else 1)).astype("f4")
    weight = (HEAD["weight"] * (where != "weight")).astype("f4")
    latents[1] *= where != "latents"

    def total(latents, weight, targets):
        return alignment_scores(latents=latents, weight=weight, targets=targets, **options).sum()

    if library == "torch":
        torch = require("torch")
        leaves = [torch.tensor(x, requires_grad=True) for x in (latents, weight)]
        gradients = torch.autograd.grad(total(*leaves, torch.tensor(targets)), leaves)
    else:
        jax = require("jax")
        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(
            latents, weight, jax.numpy.asarray(targets)
        )
    for gradient in gradients:
        assert np.isfinite(np.asarray(gradient)).all()


def test_vmap_gives_the_scores_of_each_batch():
    jax = require("jax")
    latents = np.stack([HEAD["latents"], HEAD["latents"][::-1]]).astype("f4")
    labels = np.stack([HEAD["targets"], HEAD["targets"][::-1]]).astype("i4")
    weight = jax.numpy.asarray(HEAD["weight"], dtype="float32")
    got = jax.vmap(lambda z, t: alignment_scores(latents=z, weight=weight, targets=t))(
        latents, labels
    )
    np.testing.assert_allclose(got[0], got[1][::-1], rtol=1e-5)
    want = oracles.alignment(HEAD["latents"], HEAD["weight"], HEAD["targets"])
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-6)


def test_layout_in_memory_does_not_matter():
    wide = np.random.default_rng(0).normal(size=(D, 2 * N))
    head = {**HEAD, "latents": wide[:, ::2].T[::-1], "weight": np.asfortranarray(HEAD["weight"])}
    copied = {**head, "latents": np.ascontiguousarray(head["latents"]), "weight": HEAD["weight"]}
    np.testing.assert_allclose(alignment_scores(**head), alignment_scores(**copied), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_rounding_never_leaves_the_range_of_a_cosine(dtype):
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(300):
        weights = rng.normal(size=5).astype(dtype)
        scores += [*gradient_alignment(np.stack([-3 * weights, 7 * weights]), weights)]
        head = {"latents": np.stack([weights * 1.7] * 2), "weight": np.stack([weights, -weights])}
        scores += [*alignment_scores(**head, targets=np.asarray([0, 1]))]
    assert np.abs(scores).max() <= 1.0
    np.testing.assert_allclose(scores, np.tile([1.0, -1.0], 600), rtol=1e-5)


def test_no_warning_escapes_numpy():
    with np.errstate(all="raise"):
        scores = alignment_scores(
            latents=np.asarray([[np.inf, 0.0], [1e-300, 0.0]]),
            weight=np.eye(2),
            targets=np.asarray([0, 1]),
        )
    assert np.isnan(scores[0])
    assert np.isfinite(scores[1])


# From the gradient at the logits

GIVEN = {name: HOOKED[name] for name in ("logits", "latent_norms", "weight_norm", "bias")}


def exact_from_gradients(gradients, logits, latent_norms, weight_norm, bias):
    """The score of floating-point numbers that are taken as exact."""
    out = []
    with mpmath.workdps(60):
        for row, numbers, size in zip(gradients, logits, latent_norms, strict=True):
            g = [mpmath.mpf(float(v)) for v in row]
            a = [mpmath.mpf(float(v)) - float(b) for v, b in zip(numbers, bias, strict=True)]
            dot = -mpmath.fsum(x * y for x, y in zip(g, a, strict=True))
            length = mpmath.sqrt(mpmath.fsum(x * x for x in g))
            out.append(float(dot / length / float(size) / float(weight_norm)))
    return np.array(out)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("f8", 1e-300), ("f8", 1e300), ("f4", 1e-30), ("f4", 1e30), ("f2", 1.0), ("f2", 1e-6)],
)
def test_gradients_of_any_size_and_dtype(dtype, size):
    rng = np.random.default_rng(0)
    gradients = (size * rng.normal(size=(N, C))).astype(dtype)
    rest = {k: v if dtype == "f8" or np.ndim(v) == 0 else v.astype("f4") for k, v in GIVEN.items()}
    got = alignment_from_logit_gradients(logit_gradients=gradients, **rest)
    assert got.dtype == ("f8" if dtype == "f8" else "f4")
    tolerance = 1e-12 if dtype == "f8" else 1e-5
    np.testing.assert_allclose(got, exact_from_gradients(gradients, **rest), rtol=tolerance)


@pytest.mark.parametrize("name", ["strict-no_float64", "torch-f32", "jax-x32-jit"])
def test_single_precision_gradients_of_any_size(name):
    gradients = np.random.default_rng(0).normal(size=(N, C))
    with open_case(CASE[name]) as backend:
        for size in (1e-30, 1e30):
            arrays = backend.arrays(**GIVEN, logit_gradients=size * gradients)
            got = backend.call(lambda a: alignment_from_logit_gradients(**a), arrays)
            want = exact_from_gradients(gradients, **GIVEN)
            np.testing.assert_allclose(backend.read(got), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("scale", [1, 3, 10])
def test_exact_gradients_give_exact_scores_where_softmax_saturates(kind, scale):
    arrays = make_saturated(scale, kind, with_bias=True)
    exact = np.array([float(v) for v in oracles.exact_alignment(**arrays)])
    targets = arrays.pop("targets")
    gradients = -residual(logits=arrays["logits"], targets=targets)
    assert gradients.dtype == np.float32
    got = alignment_from_logit_gradients(logit_gradients=gradients, **arrays)
    np.testing.assert_allclose(got, exact, rtol=1e-4)


@pytest.mark.parametrize("loss", ["temperature", "soft cap", "prior", "two losses"])
def test_any_loss_beside_autograd_at_the_weight(loss):
    torch = require("torch")
    f = torch.nn.functional
    latents, bias = torch.tensor(HEAD["latents"]), torch.tensor(HEAD["bias"])
    weight = torch.tensor(HEAD["weight"], requires_grad=True)
    labels = torch.tensor(HEAD["targets"])
    function = {
        "temperature": lambda x: f.cross_entropy(x / 0.07, labels, reduction="none"),
        "soft cap": lambda x: f.cross_entropy(3 * torch.tanh(x / 3), labels, reduction="none"),
        "prior": lambda x: f.cross_entropy(x + 3 * bias, labels, reduction="none"),
        "two losses": lambda x: f.cross_entropy(x, labels, reduction="none") + x.square().sum(1),
    }[loss]
    logits = latents @ weight.T + bias
    losses = function(logits)
    rows = [torch.autograd.grad(losses[i], weight, retain_graph=True)[0].ravel() for i in range(N)]
    (gradients,) = torch.autograd.grad(losses.mean(), logits)
    got = alignment_from_logit_gradients(
        logit_gradients=gradients,
        logits=logits.detach(),
        latent_norms=torch.linalg.vector_norm(latents, dim=1),
        weight_norm=torch.linalg.vector_norm(weight.detach()),
        bias=bias,
    )
    want = gradient_alignment(torch.stack(rows), weight.detach().ravel())
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_no_gradient_is_nan_and_no_score(backend):
    gradients = np.random.default_rng(0).normal(size=(N, C))
    gradients[2], gradients[4, 1], gradients[6, 0] = 0.0, np.nan, np.inf
    norms = GIVEN["latent_norms"].copy()
    norms[8] = 0.0
    arrays = backend.arrays(**{**GIVEN, "latent_norms": norms}, logit_gradients=gradients)
    got = backend.call(lambda a: alignment_from_logit_gradients(**a), arrays)
    got = backend.read(got)
    assert np.isnan(got).tolist() == [i in (2, 4, 6) for i in range(N)]
    assert got[8] == 0.0
    with np.errstate(all="raise"):
        alignment_from_logit_gradients(logit_gradients=gradients, **GIVEN)


def test_float32_gradients_keep_their_digits_where_products_cancel():
    # NumPy sums such rows again in float64.
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 10)).astype("f4") * 30
    gradients = rng.normal(size=(200, 10))
    along = (gradients * logits).sum(1, keepdims=True) / (logits.astype(float) ** 2).sum(1)[:, None]
    gradients = (gradients - (1 - 1e-4) * along * logits).astype("f4")
    rest = {"logits": logits, "latent_norms": np.ones(200, "f4"), "weight_norm": 100.0}
    exact = exact_from_gradients(gradients, **rest, bias=np.zeros(10))
    got = alignment_from_logit_gradients(logit_gradients=gradients, **rest)
    assert np.median(np.abs(exact)) < 1e-4
    np.testing.assert_allclose(got, exact, rtol=1e-4)


def test_blocks_of_rows_of_gradients_change_nothing():
    rng = np.random.default_rng(0)
    gradients, logits, biases = rng.normal(size=(3, 700, 800)).astype("f4")
    norms = np.linspace(1, 2, 700, dtype="f4")
    arrays = {"logit_gradients": gradients, "logits": logits, "latent_norms": norms}
    assert gradients.nbytes > 2 << 20
    for bias in (None, biases[0], biases):
        whole = alignment_from_logit_gradients(**arrays, weight_norm=30.0, bias=bias)
        for i in (0, 350, 699):
            row = {name: x[[i]] for name, x in arrays.items()}
            own = bias[[i]] if bias is biases else bias
            got = alignment_from_logit_gradients(**row, weight_norm=30.0, bias=own)
            np.testing.assert_allclose(got, whole[[i]], rtol=1e-5)


def test_each_row_may_have_its_own_bias():
    biases = HOOKED["bias"] * np.linspace(0.5, 2.0, N)[:, None]
    gradients = np.random.default_rng(0).normal(size=(N, C))
    together = alignment_from_logits(**{**HOOKED, "bias": biases})
    backward = alignment_from_logit_gradients(
        logit_gradients=gradients, **{**GIVEN, "bias": biases}
    )
    for i in range(N):
        rest = {"weight_norm": HOOKED["weight_norm"], "bias": biases[i]}
        row = {name: HOOKED[name][[i]] for name in ("logits", "latent_norms")}
        one = alignment_from_logits(**row, **rest, targets=HOOKED["targets"][[i]])
        assert one[0] == pytest.approx(together[i], rel=1e-9)
        one = alignment_from_logit_gradients(**row, **rest, logit_gradients=gradients[[i]])
        assert one[0] == pytest.approx(backward[i], rel=1e-9)


@pytest.mark.parametrize(("dtype", "stated"), [("bfloat16", 4e-3), ("float16", 5e-4)])
def test_half_precision_gradients_change_a_score_by_what_is_stated(dtype, stated):
    torch = require("torch")
    rng = np.random.default_rng(0)
    largest = 0.0
    for classes in (2, 10, 1000):
        gradients = rng.normal(size=(20000 // classes + 50, classes))
        # Within the range of float16, as with a loss scale.
        gradients += np.copysign(1e-3, gradients)
        rounded = torch.tensor(gradients).to(getattr(torch, dtype))
        logits = torch.tensor(rng.normal(size=gradients.shape))
        rest = {"logits": logits, "latent_norms": torch.linalg.vector_norm(logits, dim=1)}
        exact, got = (
            alignment_from_logit_gradients(logit_gradients=g, weight_norm=1.0, **rest)
            for g in (torch.tensor(gradients), rounded.double())
        )
        largest = max(largest, float((got - exact).abs().max()))
    assert stated / 3 < largest <= stated


def test_each_row_may_have_its_own_weight_norm():
    hooked = {**HOOKED, "weight_norm": np.linspace(0.5, 2.0, N)}
    want = [
        alignment_from_logits(
            **{
                name: x[i : i + 1] if np.ndim(x) and name != "bias" else x
                for name, x in one.items()
            }
        )
        for i, one in enumerate({**hooked, "weight_norm": w} for w in hooked["weight_norm"])
    ]
    np.testing.assert_array_equal(alignment_from_logits(**hooked), np.concatenate(want))
    with pytest.raises(ValueError, match="`weight_norm` must be"):
        alignment_from_logits(**{**hooked, "weight_norm": np.ones(N + 1)})
