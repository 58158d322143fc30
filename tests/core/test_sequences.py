import functools

import numpy as np
import oracles
import pytest
from backends import require
from hypothesis import given
from hypothesis import strategies as st

from gwa_core import (
    SequenceParts,
    alignment_from_logits,
    residual,
    sequence_parts,
    sequence_scores,
    sequences,
)

B, S, C, D, G = 3, 10, 6, 4, 7
REDUCTIONS = ("mean", "min", "gradient")


def make_batch(seed=0, scale=1.0, groups=None):
    """Rows of tokens, float64: the arguments of `sequence_scores` but for its options."""
    rng = np.random.default_rng(seed)
    latents, weight = scale * rng.normal(size=(B, S, D)), rng.normal(size=(C, D))
    bias = rng.normal(size=C)
    return {
        "logits": latents @ weight.T + bias,
        "latents": latents,
        "weight_norm": np.linalg.norm(weight),
        "targets": rng.integers(0, C, (B, S)),
        "groups": rng.integers(-1, G, (B, S)) if groups is None else groups,
        "num_groups": G,
        "bias": bias,
        "where": rng.random((B, S)) < 0.8,
    }, weight


def layout(kind):
    """The sequence of each token."""
    rows, places = np.arange(B)[:, None], np.arange(S)[None, :]
    return {
        # one row each, padded to the right and to the left
        "padded": np.where(places < 5 + 2 * rows, rows, -1),
        "left": np.where(places >= 2 * rows, rows, -1),
        # two a row, of different lengths
        "packed": 2 * rows + (places >= 3 + rows),
        # tokens of two documents in turn, as of a dialogue
        "mixed": 2 * rows + places % 2,
    }[kind]


def autograd(arrays, weight, num_groups=G, **options):
    """Each sequence's own loss by the head's weight, by float64 automatic differentiation."""
    torch = require("torch")
    w = torch.tensor(weight, requires_grad=True)
    latents, targets = torch.tensor(arrays["latents"]), torch.tensor(arrays["targets"])
    logits = latents @ w.T + torch.tensor(arrays["bias"])
    counted = arrays["where"] & (arrays["groups"] >= 0)
    scores = np.full(num_groups, np.nan)
    for group in range(num_groups):
        own = torch.tensor(counted & (arrays["groups"] == group))
        if own.any():
            loss = torch.nn.functional.cross_entropy(logits[own], targets[own], **options)
            (g,) = torch.autograd.grad(loss, w, retain_graph=True)
            scores[group] = -float((g * w).sum().detach() / g.norm() / w.detach().norm())
    return scores


def cast(arrays, dtype):
    """Floats in another dtype."""
    kinds = {name: getattr(x, "dtype", None) for name, x in arrays.items()}
    return {
        name: x.astype(dtype) if kinds[name] == np.float64 and np.ndim(x) else x
        for name, x in arrays.items()
    }


@pytest.mark.parametrize("kind", ["padded", "left", "packed", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_gradient_is_that_of_the_loss_of_the_sequence(kind, smoothing, scale):
    arrays, weight = make_batch(scale=scale, groups=layout(kind))
    wanted = autograd(arrays, weight, label_smoothing=smoothing)
    assert np.isfinite(wanted).sum() >= 3
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 2e-5)):
        found = sequence_scores(**cast(arrays, dtype), label_smoothing=smoothing)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance / 10)


def test_soft_targets_and_sigmoids():
    arrays, _ = make_batch(groups=layout("packed"))
    soft = np.random.default_rng(1).dirichlet(np.ones(C), (B, S))
    # What does not count is not looked at.
    soft[~arrays["where"]] = np.nan
    known = np.where(arrays["where"][..., None], soft, 1 / C)
    for loss in ("cross_entropy", "binary_cross_entropy"):
        found = sequence_scores(**arrays | {"targets": soft}, loss=loss)
        wanted = oracles.sequence_scores(**arrays | {"targets": known}, loss=loss)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_one_output_is_a_sigmoid():
    arrays, _ = make_batch(groups=layout("packed"))
    arrays |= {"logits": arrays["logits"][..., :1], "bias": arrays["bias"][:1]}
    labels = arrays["targets"] % 2
    options = {"loss": "binary_cross_entropy"}
    wanted = oracles.sequence_scores(**arrays | {"targets": labels[..., None]}, **options)
    for targets in (labels, labels.astype(float), labels.astype(bool), labels[..., None]):
        found = sequence_scores(**arrays | {"targets": targets}, **options)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("reduce", ["mean", "min"])
def test_mean_and_minimum_equal_a_loop_over_tokens(reduce):
    arrays, weight = make_batch()
    found = sequence_scores(**arrays, reduce=reduce)
    for group in range(G):
        scores = [
            oracles.alignment(
                arrays["latents"][b, [t]], weight, arrays["targets"][b, [t]], bias=arrays["bias"]
            )[0]
            for b in range(B)
            for t in range(S)
            if arrays["groups"][b, t] == group and arrays["where"][b, t]
        ]
        wanted = getattr(np, reduce)(scores) if scores else np.nan
        np.testing.assert_allclose(found[group], wanted, rtol=1e-12)
    assert np.isfinite(found).sum() >= 5


def test_a_sequence_cut_over_rows_is_the_mean_of_its_pieces_by_their_lengths():
    arrays, weight = make_batch(groups=np.zeros((B, S), int))
    rows = autograd({**arrays, "groups": arrays["groups"] + np.arange(B)[:, None]}, weight)[:B]
    r = residual(logits=arrays["logits"].reshape(-1, C), targets=arrays["targets"].ravel())
    r = r.reshape(B, S, C) * arrays["where"][..., None]
    lengths = np.linalg.norm(np.einsum("bsc,bsd->bcd", r, arrays["latents"]), axis=(1, 2))
    found = sequence_scores(**arrays)
    np.testing.assert_allclose(found[0], (rows * lengths).sum() / lengths.sum(), rtol=1e-12)
    assert np.isnan(found[1:]).all()
    # In one row it is exact.
    one = {
        name: x.reshape(1, B * S, *x.shape[2:]) if np.ndim(x) > 1 else x
        for name, x in arrays.items()
    }
    wanted = autograd(one, weight)
    np.testing.assert_allclose(sequence_scores(**one)[0], wanted[0], rtol=1e-12)
    flat = {name: x[0] if np.ndim(x) > 1 else x for name, x in one.items()}
    np.testing.assert_array_equal(sequence_scores(**flat), sequence_scores(**one))


def given_parts(arrays):
    """The arguments of `sequence_parts` of a batch."""
    names = ("latents", "weight_norm", "groups", "where")
    r = residual(logits=arrays["logits"].reshape(-1, C), targets=arrays["targets"].ravel())
    return {name: arrays[name] for name in names} | {
        "residuals": r.reshape(B, S, C),
        "activations": arrays["logits"] - arrays["bias"],
    }


def test_parts_of_batches_add_up():
    arrays, weight = make_batch(groups=layout("packed"))
    given_whole = given_parts(arrays)
    parts = [
        sequence_parts(**{n: x[b : b + 1] if np.ndim(x) else x for n, x in given_whole.items()})
        for b in range(B)
    ]
    sums = [np.zeros(G), np.zeros(G)]
    for b, part in enumerate(parts):
        for total, x in zip(sums, part, strict=True):
            np.add.at(total, arrays["groups"][b], x[0])
    found = SequenceParts(*sums).scores
    np.testing.assert_allclose(found, autograd(arrays, weight), rtol=1e-9)
    for one, other in zip(
        SequenceParts(*map(np.concatenate, zip(*parts, strict=True))),
        sequence_parts(**given_whole),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_blocks_change_nothing(library, monkeypatch):
    arrays, _ = make_batch()
    if library == "torch":
        torch = require("torch")
        arrays = {n: torch.tensor(x) if np.ndim(x) else x for n, x in arrays.items()}
    call = {reduce: functools.partial(sequence_scores, reduce=reduce) for reduce in REDUCTIONS}
    whole = {reduce: np.asarray(run(**arrays)) for reduce, run in call.items()}
    # One row at a time, three tokens with ten, two classes; three groups.
    monkeypatch.setattr(sequences, "BLOCK", 3 * S)
    monkeypatch.setattr(sequences, "CLASSES", 2)
    monkeypatch.setattr("gwa_core._lib.groups.COMPARED", 3 * B * S)
    for reduce, run in call.items():
        np.testing.assert_allclose(np.asarray(run(**arrays)), whole[reduce], rtol=1e-12)


@pytest.mark.parametrize("scale", [1, 10, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sequence_of_one_token_is_the_token(scale, dtype):
    # Every token in a row of its own, with softmax saturated up to p = 1 - 1e-30.
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(C, D)) / 4).astype(dtype)
    labels = rng.integers(0, C, 12)
    latents = ((rng.normal(size=(12, D)) + weight[labels]) * scale).astype(dtype)
    logits = latents @ weight.T
    gap = np.sort(logits, axis=1)[:, -1] - np.sort(logits, axis=1)[:, -2]
    labels = np.where((gap > 80) & (logits.argmax(axis=1) == labels), (labels + 1) % C, labels)
    head = {"logits": logits, "weight_norm": float(np.linalg.norm(weight)), "targets": labels}
    wanted = alignment_from_logits(**head, latent_norms=np.linalg.norm(latents, axis=1))
    found = sequence_scores(**head, latents=latents, groups=np.arange(12), num_groups=12)
    np.testing.assert_allclose(found, wanted, rtol=1e-4 if dtype == np.float32 else 1e-10)
    for reduce in ("mean", "min"):
        found = sequence_scores(
            **head, latents=latents, groups=np.arange(12), num_groups=12, reduce=reduce
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-25, 1e-12, 1e12, 1e25])
def test_the_scale_of_a_loss_and_of_latents_changes_nothing(factor):
    arrays = given_parts(cast(make_batch(groups=layout("packed"))[0], np.float32))
    factor = np.float32(factor)
    wanted = sequence_parts(**arrays)
    louder = sequence_parts(**arrays | {"residuals": arrays["residuals"] * factor})
    np.testing.assert_allclose(louder.lengths, factor * wanted.lengths, rtol=1e-5)
    np.testing.assert_allclose(louder.numerators, factor * wanted.numerators, rtol=1e-5)
    wider = sequence_parts(**arrays | {"latents": arrays["latents"] * factor})
    np.testing.assert_allclose(wider.lengths, factor * wanted.lengths, rtol=1e-5)


@given(st.integers(0, 10_000), st.sampled_from(REDUCTIONS), st.sampled_from([0.1, 1.0, 30.0]))
def test_order_does_not_matter_and_scores_are_bounded(seed, reduce, scale):
    arrays, _ = make_batch(seed, scale)
    whole = sequence_scores(**arrays, reduce=reduce)
    assert np.nanmax(np.abs(whole)) <= 1.0
    rng = np.random.default_rng(seed)
    rows, places, names = rng.permutation(B), rng.permutation(S), rng.permutation(G)
    moved = {name: x[rows][:, places] if np.ndim(x) > 1 else x for name, x in arrays.items()}
    moved["groups"] = np.where(moved["groups"] < 0, -5, names[moved["groups"]])
    found = sequence_scores(**moved, reduce=reduce)
    np.testing.assert_allclose(found[names], whole, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 10_000))
def test_a_sequence_said_twice_points_the_same_way(seed):
    # The gradient of a document that comes twice in its row is twice its gradient.
    arrays, weight = make_batch(seed, groups=layout("padded"))
    twice = {
        name: np.concatenate([x, x], axis=1) if np.ndim(x) > 1 else x for name, x in arrays.items()
    }
    wanted = sequence_scores(**arrays)
    np.testing.assert_allclose(sequence_scores(**twice), wanted, rtol=1e-9, atol=1e-12)
    parallel = np.zeros((1, 1, D)) + weight[0]
    # All tokens pull the row of one class: γ is 1 where W has no other row.
    score = sequence_parts(
        residuals=np.asarray([[[2.0]]]),
        activations=parallel @ weight[:1].T,
        latents=parallel,
        weight_norm=np.linalg.norm(weight[0]),
        groups=np.zeros((1, 1), int),
    )
    assert score.numerators.sum() / score.lengths.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_what_does_not_count_has_no_part(reduce):
    arrays, _ = make_batch(groups=layout("packed"))
    wanted = sequence_scores(**arrays, reduce=reduce)
    masked = ~arrays["where"]
    assert masked.any()
    other = {name: np.array(x) if np.ndim(x) > 1 else x for name, x in arrays.items()}
    other["logits"][masked], other["latents"][masked] = np.nan, np.inf
    other["targets"][masked] = -100
    np.testing.assert_array_equal(sequence_scores(**other, reduce=reduce), wanted)
    # By their numbers alone.
    outside = {**other, "groups": np.where(masked, -1, other["groups"]), "where": None}
    np.testing.assert_array_equal(sequence_scores(**outside, reduce=reduce), wanted)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", ["logits", "latents"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_token_that_is_not_finite_harms_its_sequence_alone(reduce, name, value):
    arrays, _ = make_batch(groups=layout("mixed"))
    arrays["where"][:] = True
    wanted = sequence_scores(**arrays, reduce=reduce)
    broken = {**arrays, name: arrays[name].copy()}
    broken[name][1, 2, 1] = value
    hit = arrays["groups"][1, 2]
    found = sequence_scores(**broken, reduce=reduce)
    assert np.isnan(found[hit])
    others = np.arange(G) != hit
    np.testing.assert_allclose(found[others], wanted[others], rtol=1e-12)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_an_unknown_label_of_another_library_is_nan(reduce):
    torch = require("torch")
    arrays, _ = make_batch(groups=layout("padded"))
    arrays["where"][:] = True
    arrays["targets"][0, 1] = C
    given_torch = {n: torch.tensor(x) if np.ndim(x) else x for n, x in arrays.items()}
    found = sequence_scores(**given_torch, reduce=reduce).numpy()
    assert np.isnan(found[0])
    assert np.isfinite(found[1:3]).all()


def test_gradients_that_cancel_have_no_direction():
    # Two tokens of one latent vector that pull equally hard in two directions, and nearly so.
    latents = np.ones((3, 2, 2), np.float32)
    r = np.asarray([[[1.0, -1.0], [-1.0, 1.0]]] * 3, np.float32)
    r[1, 1] *= 1 - 1e-4
    r[2, 1] *= 0.5
    parts = sequence_parts(
        residuals=r,
        activations=np.ones((3, 2, 2), np.float32),
        latents=latents,
        weight_norm=1.0,
        groups=np.zeros((3, 2), int),
    )
    assert np.isnan(parts.lengths[:2, 0]).all(), "no digits left, and no silent wrong number"
    np.testing.assert_allclose(parts.lengths[2], [1.0, 0.0], rtol=1e-6)
    wide = sequence_parts(
        residuals=r.astype(float),
        activations=np.ones((3, 2, 2)),
        latents=latents.astype(float),
        weight_norm=1.0,
        groups=np.zeros((3, 2), int),
    )
    np.testing.assert_allclose(wide.lengths[1:, 0], [2e-4, 1.0], rtol=1e-3)


def test_nothing_to_align():
    arrays, _ = make_batch(groups=layout("padded"))
    arrays["where"][:] = True
    latents = arrays["latents"].copy()
    latents[0] = 0.0
    found = sequence_scores(**{**arrays, "latents": latents})
    assert np.isnan(found[0])
    assert np.isfinite(found[1:3]).all()
    assert np.isnan(found[3:]).all()
    # Without weights there is a gradient, and nothing that it could be aligned with.
    flat = {**arrays, "logits": np.broadcast_to(arrays["bias"], (B, S, C)), "weight_norm": 0.0}
    np.testing.assert_array_equal(sequence_scores(**flat)[:3], 0.0)


def test_scores_of_sums():
    zero, tiny = np.zeros(1), np.full(1, 1e-310)
    assert np.isnan(SequenceParts(zero, zero).scores)
    assert np.isnan(SequenceParts(tiny, tiny).scores), "below the range there are no digits"
    assert np.isnan(SequenceParts(np.full(1, np.nan), zero + 1).scores)
    assert np.isnan(SequenceParts(zero + 1, np.full(1, np.nan)).scores)
    found = SequenceParts(np.asarray([1 + 1e-12, 0.3, -0.6]), np.asarray([1.0, 2.0, 2.0])).scores
    np.testing.assert_array_equal(found, [1.0, 0.15, -0.3])


def test_a_common_offset_of_float32_logits_costs_few_digits():
    arrays, weight = make_batch(groups=layout("packed"))
    wanted = autograd(arrays, weight)
    shifted = cast(arrays, np.float32)
    shifted["logits"] = shifted["logits"] + np.float32(64)
    shifted["bias"] = shifted["bias"] + np.float32(64)
    np.testing.assert_allclose(sequence_scores(**shifted), wanted, rtol=1e-3, atol=1e-5)


def test_many_tokens_in_float32():
    rng = np.random.default_rng(0)
    latents, weight = rng.normal(size=(1, 600, 16)) + 3.0, rng.normal(size=(40, 16)) / 4
    arrays = {
        "logits": latents @ weight.T,
        "latents": latents,
        "weight_norm": np.linalg.norm(weight),
        "targets": rng.integers(0, 40, (1, 600)),
        "groups": np.arange(600)[None] // 150,
        "num_groups": 4,
    }
    wanted = oracles.sequence_scores(**arrays)
    found = sequence_scores(**cast(arrays, np.float32))
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


@pytest.mark.parametrize("name", ["groups", "targets", "latents"])
def test_one_row_of_tokens_is_named_as_it_was_given(name):
    rng = np.random.default_rng(0)
    arrays = {
        "logits": rng.normal(size=(4, 3)),
        "latents": rng.normal(size=(4, 2)),
        "targets": np.zeros(4, int),
        "groups": np.zeros(4, int),
    }
    arrays[name] = arrays[name][:3]
    with pytest.raises(ValueError, match=rf"`{name}` must have .* 4 logits .* got shape \(3"):
        sequence_scores(**arrays, weight_norm=1.0, num_groups=1)
