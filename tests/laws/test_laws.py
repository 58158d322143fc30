"""What must hold for all inputs, not only for those somebody thought of."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gwa_core import (
    GWATracker,
    JLSketch,
    Moments,
    alignment_from_logit_gradients,
    alignment_from_logits,
    alignment_scores,
    gradient_alignment,
    gwa_score,
    label_quality,
    project,
    residual,
    score_agreement,
    summarize,
)

LOSSES = ("cross_entropy", "binary_cross_entropy")
SCALES = st.sampled_from([1e-3, 0.3, 1.0, 3.0, 30.0, 300.0])
FACTORS = st.sampled_from([1e-12, 1e-3, 0.7, 2.0, 1e3, 1e12])


@st.composite
def heads(draw):
    """A head and its batch, from hardly trained to far saturated."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows, classes, features = (draw(st.integers(low, 9)) for low in (1, 2, 1))
    weight = rng.normal(size=(classes, features))
    return {
        "latents": rng.normal(size=(rows, features)) * draw(SCALES),
        "weight": weight,
        "targets": rng.integers(0, classes, rows),
        "bias": rng.normal(size=classes) if draw(st.booleans()) else None,
        "label_smoothing": draw(st.sampled_from([0.0, 0.0, 0.1, 0.9])),
        "loss": draw(st.sampled_from(LOSSES)),
    }


@st.composite
def scores(draw, min_size=1):
    """Scores with or without spread, modes and gaps."""
    size = draw(st.integers(min_size, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.normal(draw(st.floats(-0.5, 0.5)), draw(st.sampled_from([1e-4, 0.05, 0.3])), size)
    if draw(st.booleans()):
        x[rng.random(size) < 0.2] -= 0.4
    return np.clip(x, -1, 1)


def same_scores(got, want, tolerance=1e-9):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def same_moments(a, b):
    """Odd moments may vanish, so each is measured in its power of the spread."""
    size = max(float(a.m2), 1e-300) ** 0.5
    np.testing.assert_allclose(a.count + a.low[0], b.count + b.low[0])
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(a.negative_fraction, b.negative_fraction, atol=1e-13)
    for k in range(2, 9):
        np.testing.assert_allclose(a[k], b[k], rtol=1e-9, atol=1e-11 * size**k + 1e-280)


# Alignment


@given(heads())
def test_scores_are_cosines(head):
    gamma = alignment_scores(**head)
    assert np.all(np.abs(gamma) <= 1.0)
    single = {k: v.astype("f4") if np.ndim(v) and v.dtype == float else v for k, v in head.items()}
    assert np.all(np.abs(alignment_scores(**single)) <= 1.0)


@given(heads(), st.randoms(use_true_random=False))
def test_the_order_of_samples_is_theirs_alone(head, random):
    order = list(range(len(head["targets"])))
    random.shuffle(order)
    shuffled = {**head, "latents": head["latents"][order], "targets": head["targets"][order]}
    same_scores(alignment_scores(**shuffled), alignment_scores(**head)[order])


@given(heads(), st.randoms(use_true_random=False))
def test_names_of_classes_do_not_matter(head, random):
    order = list(range(head["weight"].shape[0]))
    random.shuffle(order)
    renamed = {
        **head,
        "weight": head["weight"][order],
        "bias": None if head["bias"] is None else head["bias"][order],
        "targets": np.argsort(order)[head["targets"]],
    }
    same_scores(alignment_scores(**renamed), alignment_scores(**head))


@given(heads(), st.integers(0, 2**16))
def test_rotating_the_features_changes_nothing(head, seed):
    features = head["weight"].shape[1]
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(features, features)))
    rotated = {
        **head,
        "latents": head["latents"] @ rotation,
        "weight": head["weight"] @ rotation,
    }
    same_scores(alignment_scores(**rotated), alignment_scores(**head), 1e-7)


@given(heads(), FACTORS, FACTORS)
def test_length_of_latents_and_weight_does_not_matter(head, for_latents, for_weight):
    # The residual stays the same: the bias takes up what the logits gain.
    for i in range(len(head["targets"])):
        z, one = head["latents"][[i]], {**head, "targets": head["targets"][[i]]}
        one["logits"] = z @ head["weight"].T + (0.0 if head["bias"] is None else head["bias"])
        want = alignment_scores(**{**one, "latents": z})
        longer, wider = z * for_latents, head["weight"] * for_weight
        product = (longer @ wider.T)[0]
        got = alignment_scores(
            **{
                **one,
                "latents": longer,
                "weight": wider,
                "bias": one["logits"][0] - product,
            }
        )
        # What the bias takes up is lost to rounding where the product is much smaller.
        lost = 1e-14 * np.abs(one["logits"]).max() / np.abs(product).max()
        assume(lost < 1e-6)
        same_scores(got, want, 1e-9 + 10 * lost)


@given(st.integers(0, 2**16), FACTORS, FACTORS)
def test_length_of_gradients_and_weights_does_not_matter(seed, for_gradients, for_weights):
    rng = np.random.default_rng(seed)
    gradients, weights = rng.normal(size=(5, 8)), rng.normal(size=8)
    want = gradient_alignment(gradients, weights)
    same_scores(gradient_alignment(gradients * for_gradients, weights * for_weights), want)
    same_scores(gradient_alignment(-gradients, weights), -want)


@given(heads())
def test_hard_labels_are_one_hot_probabilities(head):
    one_hot = np.eye(head["weight"].shape[0])[head["targets"]]
    same_scores(alignment_scores(**{**head, "targets": one_hot}), alignment_scores(**head))
    same_scores(
        alignment_scores(**{**head, "targets": one_hot.astype(int)}), alignment_scores(**head)
    )


@given(heads())
def test_smoothing_is_a_soft_target(head):
    classes, amount = head["weight"].shape[0], head["label_smoothing"]
    share = 1 / classes if head["loss"] == "cross_entropy" else 1 / 2
    soft = (1 - amount) * np.eye(classes)[head["targets"]] + amount * share
    softened = {**head, "targets": soft, "label_smoothing": 0.0}
    same_scores(alignment_scores(**softened), alignment_scores(**head))


@given(heads(), st.sampled_from([-50.0, -1.0, 3.0, 1e4]))
def test_a_shift_of_all_logits_that_the_bias_takes_up_changes_nothing(head, shift):
    head["loss"] = "cross_entropy"
    bias = np.zeros(head["weight"].shape[0]) if head["bias"] is None else head["bias"]
    logits = head["latents"] @ head["weight"].T + bias
    rest = {key: value for key, value in head.items() if key not in ("bias",)}
    want = alignment_scores(**rest, bias=bias, logits=logits)
    tolerance = 1e-8 if abs(shift) < 100 else 1e-6
    size = np.abs(logits - bias).max()
    assume(size > 1e-2)
    same_scores(alignment_scores(**rest, bias=bias + shift, logits=logits + shift), want, tolerance)
    # The residual of a softmax sums to zero, so the bias need not even know of it.
    same_scores(alignment_scores(**rest, bias=bias, logits=logits + shift), want, tolerance)


@given(heads(), st.integers(0, 2**16))
def test_masked_is_removed(head, seed):
    rows = len(head["targets"])
    where = np.random.default_rng(seed).random(rows) < 0.6
    gamma = alignment_scores(**head, where=where)
    assert np.array_equal(np.isnan(gamma), ~where)
    assume(where.any())
    kept = {**head, "latents": head["latents"][where], "targets": head["targets"][where]}
    same_scores(gamma[where], alignment_scores(**kept))


@given(heads())
def test_one_sigmoid_output_is_two_softmax_outputs(head):
    # A head (w) and a head (-w/2, w/2) have the same probabilities and the same cosine.
    w, labels = head["weight"][:1], head["targets"] % 2
    one = alignment_scores(
        latents=head["latents"], weight=w, targets=labels, loss="binary_cross_entropy"
    )
    two = alignment_scores(
        latents=head["latents"], weight=np.concatenate([-w / 2, w / 2]), targets=labels
    )
    same_scores(one, two)


@given(heads())
def test_residual_and_score_tell_the_same_story(head):
    latents, weight = head["latents"], head["weight"]
    logits = latents @ weight.T + (0.0 if head["bias"] is None else head["bias"])
    options = {key: head[key] for key in ("targets", "loss", "label_smoothing")}
    r = residual(logits=logits, **options)
    # A gap of 745 takes the residual itself below float64, though not its direction.
    assume(np.abs(r).max(axis=1).min() > 1e-290)
    gradients = -(r[:, :, None] * latents[:, None, :]).reshape(len(r), -1)
    want = gradient_alignment(gradients, weight.ravel())
    same_scores(alignment_scores(**head), want, 1e-6)
    norms = np.linalg.norm(latents, axis=1)
    got = alignment_from_logits(
        logits=logits,
        latent_norms=norms,
        weight_norm=np.linalg.norm(weight),
        bias=head["bias"],
        **options,
    )
    same_scores(got, want, 1e-6)


# From the gradient at the logits


@st.composite
def batches(draw):
    """Gradients of no loss in particular, and what is beside them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows, classes, features = (draw(st.integers(low, 9)) for low in (1, 2, 1))
    weight, latents = rng.normal(size=(classes, features)), rng.normal(size=(rows, features))
    bias = rng.normal(size=(classes, rows) if draw(st.booleans()) else (classes, 1)).T
    return {
        "logit_gradients": rng.normal(size=(rows, classes)) * draw(FACTORS),
        "logits": latents @ weight.T + bias,
        "latent_norms": np.linalg.norm(latents, axis=1),
        "weight_norm": np.linalg.norm(weight),
        "bias": bias if len(bias) > 1 else bias[0],
    }


def rows_of(batch, rows):
    """Some rows of a batch."""
    out = dict(batch)
    for name in ("logit_gradients", "logits", "latent_norms"):
        out[name] = batch[name][rows]
    out["bias"] = batch["bias"] if batch["bias"].ndim == 1 else batch["bias"][rows]
    return out


@settings(max_examples=20)
@given(batches(), FACTORS)
def test_the_size_of_a_gradient_does_not_matter_and_its_sign_does(batch, factor):
    want = alignment_from_logit_gradients(**batch)
    assert np.all(np.abs(want) <= 1.0)
    longer = {**batch, "logit_gradients": factor * batch["logit_gradients"]}
    same_scores(alignment_from_logit_gradients(**longer), want)
    turned = {**batch, "logit_gradients": -batch["logit_gradients"]}
    same_scores(alignment_from_logit_gradients(**turned), -want)


@settings(max_examples=20)
@given(batches(), st.randoms(use_true_random=False), st.integers(0, 2**16))
def test_rows_and_classes_of_gradients_have_no_order(batch, random, seed):
    want = alignment_from_logit_gradients(**batch)
    order = list(range(want.size))
    random.shuffle(order)
    same_scores(alignment_from_logit_gradients(**rows_of(batch, order)), want[order])
    names = list(range(batch["logits"].shape[1]))
    random.shuffle(names)
    renamed = {
        name: x[..., names] if name in ("logit_gradients", "logits", "bias") else x
        for name, x in batch.items()
    }
    same_scores(alignment_from_logit_gradients(**renamed), want)
    where = np.random.default_rng(seed).random(want.size) < 0.6
    masked = alignment_from_logit_gradients(**batch, where=where)
    assert np.array_equal(np.isnan(masked), ~where)
    same_scores(masked[where], want[where])


@settings(max_examples=30)
@given(heads(), FACTORS)
def test_the_gradient_of_the_closed_forms_loss_gives_the_closed_form(head, factor):
    latents, weight = head.pop("latents"), head.pop("weight")
    bias = head.pop("bias")
    logits = latents @ weight.T + (0.0 if bias is None else bias)
    g = -residual(logits=logits, **head)
    # A gap of 745 takes the residual itself below float64, though not its direction.
    assume(np.abs(g).max(axis=1).min() > 1e-290)
    rest = {
        "logits": logits,
        "latent_norms": np.linalg.norm(latents, axis=1),
        "weight_norm": np.linalg.norm(weight),
        "bias": bias,
    }
    scores = alignment_from_logit_gradients(logit_gradients=factor * g, **rest)
    same_scores(scores, alignment_from_logits(**rest, **head), 1e-6)
    assert score_agreement(scores, **rest, **head).differing == 0


@given(st.integers(0, 2**16), st.sampled_from(["gaussian", "rademacher", "sparse", "hadamard"]))
def test_sketches_are_linear(seed, kind):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 20))
    sketch = JLSketch(d, int(rng.integers(1, d + 1)), kind=kind, seed=seed)
    x, y = rng.normal(size=(2, 3, d))
    want = 2.0 * project(x, sketch) - project(y, sketch)
    same_scores(project(2.0 * x - y, sketch), want)


# Moments


@given(scores(), scores(), scores())
def test_merge_is_associative_and_commutative(x, y, z):
    a, b, c = map(Moments.from_batch, (x, y, z))
    same_moments(a.merge(b).merge(c), a.merge(b.merge(c)))
    same_moments(a.merge(b), b.merge(a))
    same_moments(a.merge(b).merge(c), Moments.from_batch(np.concatenate([x, y, z])))


@given(scores())
def test_nothing_is_the_identity_of_merge(x):
    a, nothing = Moments.from_batch(x), Moments.empty(x)
    same_moments(a.merge(nothing), a)
    same_moments(nothing.merge(a), a)
    same_moments(a.merge(Moments.from_batch(np.full(3, np.nan))), a)


@given(scores(2), st.data())
def test_any_split_and_order_is_the_whole(x, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, x.size), max_size=6)))
    order = data.draw(st.permutations(range(x.size)))
    parts = [Moments.from_batch(part) for part in np.split(x[list(order)], cuts)]
    while len(parts) > 1:
        other = parts.pop(data.draw(st.integers(1, len(parts) - 1)))
        parts[0] = parts[0].merge(other)
    same_moments(parts[0], Moments.from_batch(x))


@given(scores(), st.integers(0, 2**16))
def test_masked_scores_are_removed_scores(x, seed):
    where = np.random.default_rng(seed).random(x.size) < 0.5
    same_moments(Moments.from_batch(x, where=where), Moments.from_batch(x[where]))


# GWA


@given(scores(5), st.sampled_from([1e-3, 0.5, 7.0]))
def test_gwa_scales_with_the_scores_and_changes_sign_with_them(x, factor):
    one, scaled, turned = summarize(x), summarize(factor * x), summarize(-x)
    assume(abs(one.denominator) > 1e-3)
    assert scaled.gwa == pytest.approx(factor * one.gwa, rel=1e-8)
    assert scaled.gwa_standard_error == pytest.approx(factor * one.gwa_standard_error, rel=1e-6)
    assert scaled.kurtosis == pytest.approx(one.kurtosis, rel=1e-8, abs=1e-8)
    assert turned.gwa == pytest.approx(-one.gwa, rel=1e-8)
    assert turned.skewness == pytest.approx(-one.skewness, rel=1e-8, abs=1e-8)


@given(scores(5), st.integers(2, 5))
def test_repeating_the_scores_only_sharpens_the_standard_error(x, times):
    one, many = summarize(x), summarize(np.tile(x, times))
    assume(abs(one.denominator) > 1e-3)
    assert many.gwa == pytest.approx(one.gwa, rel=1e-8)
    assert many.gwa_standard_error * times**0.5 == pytest.approx(one.gwa_standard_error, rel=1e-6)


@given(scores(2))
def test_ranges_of_a_summary(x):
    s = summarize(x)
    assume(s.variance > 0)
    assert s.kurtosis >= s.skewness**2 - 2.0 - 1e-9
    assert 0.0 < s.bimodality <= 1.0 + 1e-9
    assert 0.0 <= s.negative_fraction <= 1.0
    assert s.gwa_standard_error >= 0.0 or np.isnan(s.gwa)
    assert s.healthy == (s.denominator > 0)
    assert x.min() - 1e-12 <= s.mean <= x.max() + 1e-12
    assert np.isnan(s.gwa) or s.gwa == pytest.approx(s.mean / s.denominator)


@given(scores(4))
def test_a_better_mean_at_the_same_shape_is_a_better_gwa(x):
    assume(summarize(x).denominator > 1e-3)
    assert gwa_score(x + 0.1) > gwa_score(x)


# Trackers and quality


@given(scores(3), st.data())
def test_the_order_of_batches_does_not_matter_to_an_epoch(x, data):
    order = np.asarray(data.draw(st.permutations(range(x.size))))
    cuts = sorted(data.draw(st.lists(st.integers(0, x.size), max_size=4)))
    plain, shuffled = GWATracker(x.size), GWATracker(x.size)
    plain.update(x, ids=np.arange(x.size))
    for ids in np.split(order, cuts):
        shuffled.update(x[ids], ids=ids)
    assert plain.end_epoch() == shuffled.end_epoch()
    np.testing.assert_array_equal(plain.scores, shuffled.scores)


@given(st.integers(0, 2**16), st.data())
def test_the_order_of_epochs_does_not_matter_to_quality(seed, data):
    rng = np.random.default_rng(seed)
    epochs = data.draw(st.integers(1, 6))
    history = rng.uniform(-1, 1, (epochs, 12))
    history[rng.random(history.shape) < 0.2] = np.nan
    order = list(data.draw(st.permutations(range(epochs))))
    same_scores(label_quality(history[order]), label_quality(history), 1e-12)
    same_scores(
        label_quality(history[order], weights=np.arange(epochs)[order]),
        label_quality(history, weights=np.arange(epochs)),
        1e-12,
    )


@given(st.integers(0, 2**16), st.data())
def test_quality_belongs_to_the_sample_and_rises_with_its_scores(seed, data):
    rng = np.random.default_rng(seed)
    history = rng.uniform(-1, 0.9, (data.draw(st.integers(1, 6)), 12))
    order = data.draw(st.permutations(range(12)))
    same_scores(label_quality(history[:, order]), label_quality(history)[list(order)], 1e-12)
    better = history.copy()
    better[0, 5] += 0.1
    rise = label_quality(better, method="mean") - label_quality(history, method="mean")
    assert rise[5] > 0
    assert np.all(np.delete(rise, 5) == 0)
