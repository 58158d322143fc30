"""Whether a loss that is not the closed form's is seen, and the right one never suspected."""

import numpy as np
import oracles
import pytest
from backends import CASE, open_case, require
from scenarios import HOOKED, MASK, C, N

from gwa_core import (
    Agreement,
    alignment_from_logit_gradients,
    alignment_from_logits,
    residual,
    score_agreement,
)
from gwa_core.agreement import SHARE

BINARY = {"loss": "binary_cross_entropy"}


def make_head(scale, dtype="float32", classes=20, *, trained=False, rows=100, seed=0):
    """Logits as a head makes them in a dtype, its norms, and labels that it may have learned."""
    torch = require("torch")
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(classes, 32)) / 32**0.5
    labels = rng.integers(0, classes, rows)
    latents = scale * (rng.normal(size=(rows, 32)) + (3 * weight[labels] if trained else 0.0))
    bias = 0.3 * rng.normal(size=classes)
    to = getattr(torch, dtype)
    return {
        "logits": torch.tensor(latents @ weight.T + bias).to(to),
        "latent_norms": torch.tensor(np.linalg.norm(latents, axis=1)).float(),
        "weight_norm": float(np.linalg.norm(weight)),
        "bias": torch.tensor(bias).to(to),
        "targets": torch.tensor(labels),
    }


def agree(head, train, scale=1.0, **told):
    """Train by a function of logits and targets, and compare with what is told."""
    logits = head["logits"].clone().requires_grad_()
    (scale * train(logits, head["targets"])).backward()
    given = {name: x for name, x in head.items() if name != "targets"}
    scores = alignment_from_logit_gradients(logit_gradients=logits.grad, **given)
    return score_agreement(scores, **{**head, **told})


def cross_entropy(logits, targets, **options):
    return require("torch").nn.functional.cross_entropy(logits, targets, **options)


def by_single_steps(logits, targets):
    """Cross-entropy of which every step is rounded to the dtype of the logits."""
    shifted = logits - logits.max(dim=1, keepdim=True).values.detach()
    return (shifted.exp().sum(dim=1).log() - shifted.gather(1, targets[:, None])[:, 0]).mean()


def binary(logits, targets, **options):
    hot = require("torch").nn.functional.one_hot(targets, logits.shape[1]).to(logits.dtype)
    f = require("torch").nn.functional.binary_cross_entropy_with_logits
    return f(logits, hot, reduction="sum", **options)


# What trains, how its gradient is scaled, and what the check is told.
RIGHT = {
    "in its dtype": (cross_entropy, 1.0, {}),
    "in float32": (lambda x, y: cross_entropy(x.float(), y), 1.0, {}),
    "step by step": (by_single_steps, 1.0, {}),
    "with a loss scale": (cross_entropy, 1024.0, {}),
    "a mean over many": (cross_entropy, 1 / 32, {}),
    "smoothed": (lambda x, y: cross_entropy(x, y, label_smoothing=0.1), 1.0, {"label_smoothing": 0.1}),
    "sigmoid": (binary, 1.0, BINARY),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_right_loss_is_never_suspected(name, dtype):
    train, factor, told = RIGHT[name]
    one_hot = require("torch").nn.functional.one_hot
    told_by_rows = 0
    for classes, rows in ((2, 100), (20, 100), (1000, 20)):
        for trained in (False, True):
            for scale in (0.1, 1, 3, 10, 50):
                head = make_head(scale, dtype, classes, trained=trained, rows=rows)
                if told == BINARY:
                    hot = one_hot(head["targets"], classes).to(head["logits"].dtype)
                    found = agree(head, train, factor, **told, targets=hot)
                else:
                    found = agree(head, train, factor, **told)
                assert found.differing == 0, (classes, trained, scale, found)
                told_by_rows += int(found.rows)
    # Of 2200 rows: those that are saturated say nothing.
    assert told_by_rows > 900


def prior(logits):
    """Log-probabilities of classes of unequal size."""
    torch = require("torch")
    return torch.linspace(-2, 2, logits.shape[1]).to(logits.dtype)


WRONG = {
    "a temperature": lambda x, y: cross_entropy(x / 0.5, y),
    "CLIP's temperature": lambda x, y: cross_entropy(x / 0.07, y),
    "a scale": lambda x, y: cross_entropy(x * 0.0625, y),
    "a class prior": lambda x, y: cross_entropy(x + prior(x), y),
    "labels that are not shifted": lambda x, y: cross_entropy(x, y.roll(1)),
    "smoothing that is not told": lambda x, y: cross_entropy(x, y, label_smoothing=0.1),
    "a soft cap": lambda x, y: cross_entropy(3 * (x / 3).tanh(), y),
    "a sigmoid": binary,
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(
    ("dtype", "trained", "scale"),
    [("float32", False, 1), ("float32", True, 2), ("float16", False, 2), ("bfloat16", True, 1)],
)
def test_a_wrong_loss_is_found(name, dtype, trained, scale):
    found = agree(make_head(scale, dtype, trained=trained), WRONG[name])
    assert not found.holds
    assert found.rows >= 90
    assert found.differing >= 5


def test_pos_weight_is_found():
    head, torch = make_head(1), require("torch")
    hot = torch.nn.functional.one_hot(head["targets"], 20).float()
    weighted = {"pos_weight": torch.full((20,), 3.0)}
    assert not agree(head, lambda x, y: binary(x, y, **weighted), **BINARY, targets=hot).holds
    assert agree(head, binary, **BINARY, targets=hot).holds


@pytest.mark.parametrize("name", ["a temperature", "labels that are not shifted", "a soft cap"])
def test_many_classes_hide_nothing_in_bfloat16(name):
    # A score of many classes is a small part of what ‖logits‖ would allow.
    head = make_head(1, "bfloat16", 8000, trained=True, rows=40)
    assert agree(head, cross_entropy).differing == 0
    assert not agree(head, WRONG[name]).holds


def test_a_loss_in_float32_of_logits_in_float64():
    head = make_head(10, "float64", trained=True)
    found = agree(head, lambda x, y: cross_entropy(x.float(), y))
    assert found.rows > 20
    assert found.holds


def scores_of(gradients, **changes):
    arrays = {**HOOKED, **changes}
    given = {name: x for name, x in arrays.items() if name not in ("targets", "where")}
    return alignment_from_logit_gradients(logit_gradients=gradients, **given)


def test_numbers_are_those_of_the_definition():
    gradients = -residual(logits=HOOKED["logits"] * 2, targets=HOOKED["targets"])
    scores = scores_of(gradients)
    found = score_agreement(scores, **HOOKED)
    difference = np.abs(scores - oracles.alignment_from_logits(**HOOKED))
    assert found.rows == N
    assert found.largest == pytest.approx(difference.max(), rel=1e-12)
    assert found.differing > N / 2


def test_rows_that_do_not_count_may_hold_anything():
    gradients = -residual(logits=HOOKED["logits"], targets=HOOKED["targets"])
    gradients[~MASK] = gradients[~MASK][:, ::-1]
    targets = HOOKED["targets"].copy()
    targets[~MASK] = -100
    masked = {**HOOKED, "targets": targets, "where": MASK}
    logits = HOOKED["logits"].copy()
    logits[1] = np.nan
    scores = scores_of(gradients)
    found = score_agreement(scores, **{**masked, "logits": logits})
    assert (found.rows, found.differing) == (MASK.sum(), 0)
    assert score_agreement(scores, **HOOKED).differing > 0
    soft = np.eye(C)[HOOKED["targets"]]
    soft[~MASK] = 7.0
    assert score_agreement(scores, **{**masked, "targets": soft}).holds


def test_unknown_labels_say_nothing_where_values_are_not_looked_at():
    gradients = -residual(logits=HOOKED["logits"], targets=HOOKED["targets"])
    scores, targets = scores_of(gradients), HOOKED["targets"].copy()
    targets[0] = -100
    with open_case(CASE["strict"]) as strict:
        arrays = strict.arrays(**{**HOOKED, "targets": targets}, scores=scores)
        found = score_agreement(**arrays)
        assert (int(found.rows), int(found.differing)) == (N - 1, 0)


def test_rows_without_a_gradient_differ_where_others_have_one():
    gradients = -residual(logits=HOOKED["logits"], targets=HOOKED["targets"])
    gradients[::2] = 0.0
    found = score_agreement(scores_of(gradients), **HOOKED)
    assert found.rows == N
    assert 0 < found.differing <= (N + 1) // 2
    # The others agree.
    assert found.largest < 1e-12
    # Nothing at all is no finding: the backward pass may have been of something else.
    nothing = score_agreement(scores_of(0 * gradients), **HOOKED)
    assert (nothing.rows, nothing.differing, nothing.largest) == (0, 0, 0)
    assert nothing.holds


def test_a_gradient_that_is_small_by_right_may_vanish():
    logits = HOOKED["logits"].copy()
    logits[::2] += 9.0 * np.eye(C)[HOOKED["targets"][::2]]
    changed = {**HOOKED, "logits": logits}
    gradients = -residual(logits=logits, targets=HOOKED["targets"])
    vanished = np.linalg.norm(gradients, axis=1) < 0.1
    assert 0 < vanished.sum() < N
    gradients[vanished] = 0.0
    found = score_agreement(scores_of(gradients, logits=logits), **changed)
    assert (found.rows, found.differing) == (N - vanished.sum(), 0)


def test_gradients_beyond_the_range_of_float16_are_not_missed():
    # The first loss scale of PyTorch, and a sum over the rows.
    def train(x, y):
        return cross_entropy(x.float(), y, reduction="sum")

    head = make_head(20, "float16", 3)
    logits = head["logits"].clone().requires_grad_()
    (65536 * train(logits, head["targets"])).backward()
    assert logits.grad.isinf().any()
    found = agree(head, train, 65536.0)
    assert found.rows > 20
    assert found.differing == 0
    # What is missing though a larger one arrived is missing.
    torch = require("torch")
    counts = torch.arange(100) % 3 > 0

    def masked(x, y):
        return (cross_entropy(x.float(), y, reduction="none") * counts).mean()

    found = agree(make_head(1, "float16"), masked, 1024.0)
    assert 10 < found.differing <= 34


def test_rows_without_latents_or_weights_say_nothing():
    scores = np.full(N, 0.5)
    norms = HOOKED["latent_norms"].copy()
    norms[:3] = 0.0
    assert score_agreement(scores, **{**HOOKED, "latent_norms": norms}).rows == N - 3
    assert score_agreement(scores, **{**HOOKED, "weight_norm": 0.0}).rows == 0


def test_one_row_in_a_hundred_may_differ():
    for differing, holds in ((0, True), (1, True), (2, False)):
        numbers = map(np.asarray, (100.0, float(differing), 0.3))
        assert bool(Agreement(*numbers).holds) is holds
    assert SHARE == 0.01


@pytest.mark.parametrize("case", ["numpy-f64", "torch-f32"])
def test_each_row_may_have_its_own_bias(case):
    rng = np.random.default_rng(0)
    biases = HOOKED["bias"] + rng.normal(size=(N, C))
    arrays = {**HOOKED, "bias": biases}
    scores = alignment_from_logits(**arrays)
    with open_case(CASE[case]) as backend:
        given = backend.arrays(**arrays, scores=scores)
        found = backend.call(lambda a: score_agreement(**a), given)
        assert backend.read(found.rows) > N - 3
        assert backend.read(found.differing) == 0
        given["bias"] = backend.array(HOOKED["bias"])
        found = backend.call(lambda a: score_agreement(**a), given)
        assert backend.read(found.differing) > N / 2
