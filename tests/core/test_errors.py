"""What bad input gets: one row a mistake. The page of errors in the documentation is made of CASES."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from backends import require

import gwa_core as g

N, C, D = 4, 3, 5
Z = np.random.default_rng(0).normal(size=(N, D))
W = np.random.default_rng(1).normal(size=(C, D))
T = np.asarray([0, 1, 2, 0])
L = Z @ W.T
NORMS = np.linalg.norm(Z, axis=1)
S = np.asarray([0.1, 0.3, -0.2, 0.5])
SOFT = np.full((N, C), 1 / C)


class BadInput(NamedTuple):
    """A mistake: in words, as a call, the argument that the message names, and what it says."""

    name: str
    trigger: Callable[[], object]
    error: type[Exception]
    argument: str
    message: str


def head(**changes):
    """Call alignment_scores on sound arrays but for the changes."""
    return g.alignment_scores(**{"latents": Z, "weight": W, "targets": T, **changes})


def hooked(**changes):
    """Call alignment_from_logits on sound arrays but for the changes."""
    sound = {"logits": L, "latent_norms": NORMS, "weight_norm": 2.0, "targets": T}
    return g.alignment_from_logits(**{**sound, **changes})


def backward(**changes):
    """Call alignment_from_logit_gradients on sound arrays but for the changes."""
    sound = {"logit_gradients": L / 7, "logits": L, "latent_norms": NORMS, "weight_norm": 2.0}
    return g.alignment_from_logit_gradients(**{**sound, **changes})


def agreement(scores=S, **changes):
    """Call score_agreement on sound arrays but for the changes."""
    sound = {"logits": L, "latent_norms": NORMS, "weight_norm": 2.0, "targets": T}
    return g.score_agreement(scores, **{**sound, **changes})


def sequences(**changes):
    """Call sequence_scores on two rows of two tokens, sound but for the changes."""
    sound = {"logits": L.reshape(2, 2, C), "latents": Z.reshape(2, 2, D), "weight_norm": 2.0}
    sound |= {"targets": T.reshape(2, 2), "groups": np.asarray([[0, 0], [1, 1]]), "num_groups": 2}
    return g.sequence_scores(**{**sound, **changes})


def parts(**changes):
    """Call sequence_parts on two rows of two tokens, sound but for the changes."""
    sound = {"residuals": L.reshape(2, 2, C), "activations": L.reshape(2, 2, C)}
    sound |= {"latents": Z.reshape(2, 2, D), "weight_norm": 2.0, "groups": T.reshape(2, 2)}
    return g.sequence_parts(**{**sound, **changes})


def strict(x, device="CPU_DEVICE"):
    """An array of another library, or on another device."""
    xp = require("array_api_strict")
    return xp.asarray(x, device=xp.Device(device))


def strict_head(**devices):
    """Call alignment_scores with arrays on several devices."""
    names = {"latents": Z, "weight": W, "targets": T}
    return g.alignment_scores(
        **{name: strict(x, devices.get(name, "CPU_DEVICE")) for name, x in names.items()}
    )


def tracked(*batches, **options):
    """Run an epoch of (scores, ids) batches."""
    tracker = g.GWATracker(**options)
    for scores, ids in batches:
        tracker.update(np.asarray(scores), ids=None if ids is None else np.asarray(ids))
    tracker.end_epoch()
    return tracker


def merged(one, other):
    """Merge two trackers, one with the options and batch of each argument."""
    trackers = []
    for options, ids in (one, other):
        tracker = g.GWATracker(**options)
        tracker.update(S, ids=ids)
        trackers.append(tracker)
    trackers[0].merge(trackers[1])


def resumed(**changes):
    """Load a tracker's state with changes."""
    g.GWATracker(4).load_state_dict({**g.GWATracker(4).state_dict(), **changes})


def stopped(**changes):
    """Load a stopper's state with changes."""
    stopper = g.EarlyStopper(g.MaxGWA(), total_steps=9)
    stopper.load_state_dict({**stopper.state_dict(), **changes})


def stepped(*steps):
    """Give a stopper these steps."""
    stopper = g.EarlyStopper(g.MaxGWA(warmup=0))
    for step in steps:
        stopper.update(0.5, step=step)


SHAPES = (
    BadInput("transposed Flax kernel", lambda: head(weight=W.T), ValueError, "weight",
             r"must be \(C, D\) = \(C, 5\), got \(5, 3\); a Flax kernel must be transposed"),
    BadInput("transposed Flax kernel, C known", lambda: head(weight=W.T, logits=L), ValueError,
             "weight", r"must be \(C, D\) = \(3, 5\), got \(5, 3\); a Flax kernel"),
    BadInput("weight of another layer", lambda: head(weight=W[:, :4]), ValueError, "weight",
             r"got \(3, 4\); `latents` must be the input of this head"),
    BadInput("weight with another number of classes", lambda: head(weight=W[:2], logits=L),
             ValueError, "weight", r"must be \(C, D\) = \(3, 5\), got \(2, 5\)"),
    BadInput("flattened weight", lambda: head(weight=W.ravel()), ValueError, "weight",
             r"got \(15,\); take the weight of the linear head alone"),
    BadInput("latents of tokens", lambda: head(latents=Z[:, None, :]), ValueError, "latents",
             r"must be \(N, D\), got shape \(4, 1, 5\); flatten spatial or token axes"),
    BadInput("logits of other samples", lambda: head(logits=L[:3]), ValueError, "logits",
             r"must be \(N, C\) with N = 4 rows, got shape \(3, 3\)"),
    BadInput("targets of other samples", lambda: head(targets=T[:3]), ValueError, "targets",
             r"must be \(N,\) = \(4,\) integers or \(N, C\) = \(4, 3\) probabilities, got .*\(3,\)"),
    BadInput("soft targets with another number of classes",
             lambda: head(targets=SOFT[:, :2]), ValueError, "targets", r"got float64 of shape \(4, 2\)"),
    BadInput("bias of another head", lambda: head(bias=np.zeros(2)), ValueError, "bias",
             r"must be \(C,\) = \(3,\), got shape \(2,\)"),
    BadInput("mask of other samples", lambda: head(where=np.ones(3, bool)), ValueError, "where",
             r"must be boolean \(N,\) = \(4,\), got bool of shape \(3,\)"),
    BadInput("norms of other samples", lambda: hooked(latent_norms=NORMS[:2]), ValueError,
             "latent_norms", r"must be \(N,\) = \(4,\), got shape \(2,\)"),
    BadInput("bias of other rows", lambda: hooked(bias=np.zeros((2, 3))), ValueError, "bias",
             r"must be \(C,\) = \(3,\) or \(N, C\) = \(4, 3\), got shape \(2, 3\)"),
    BadInput("bias of each row beside latents", lambda: head(bias=np.zeros((4, 3))), ValueError,
             "bias", r"must be \(C,\) = \(3,\), got shape \(4, 3\)"),
    BadInput("gradient of other samples", lambda: backward(logit_gradients=L[:2]), ValueError,
             "logit_gradients", r"must be \(N, C\) with N = 4 rows, got shape \(2, 3\)"),
    BadInput("gradient at another layer", lambda: backward(logit_gradients=Z), ValueError,
             "logit_gradients", r"must be \(N, C\) = \(4, 3\) as the logits, got shape \(4, 5\); "
             r"take the gradient at the output of the head"),
    BadInput("gradient of tokens", lambda: backward(logit_gradients=L[:, None, :]), ValueError,
             "logit_gradients", r"must be \(N, C\), got shape \(4, 1, 3\); flatten"),
    BadInput("gradient and norms of other samples", lambda: backward(latent_norms=NORMS[:2]),
             ValueError, "latent_norms", r"must be \(N,\) = \(4,\), got shape \(2,\)"),
    BadInput("compared scores of other samples", lambda: agreement(S[:2]), ValueError, "scores",
             r"must be \(N,\) = \(4,\), got shape \(2,\)"),
    BadInput("tokens without rows", lambda: parts(residuals=L), ValueError, "residuals",
             r"must be \(B, S, C\) and not empty, got shape \(4, 3\); B rows of S tokens"),
    BadInput("activations of another head", lambda: parts(activations=L.reshape(2, 2, C)[..., :2]),
             ValueError, "activations", r"must be \(B, S, C\) = \(2, 2, 3\), got shape \(2, 2, 2\)"),
    BadInput("latents of other tokens", lambda: parts(latents=Z[None]), ValueError, "latents",
             r"must be \(B, S, D\) = \(2, 2, 5\), got shape \(1, 4, 5\); .* the same tokens"),
    BadInput("one group a row", lambda: parts(groups=np.asarray([0, 1])), ValueError, "groups",
             r"must be integers \(B, S\) = \(2, 2\), got int64 of shape \(2,\)"),
    BadInput("mask of other tokens", lambda: parts(where=np.ones((2, 3), bool)), ValueError, "where",
             r"must be boolean \(B, S\) = \(2, 2\), got bool of shape \(2, 3\)"),
    BadInput("labels that were cut in place of shifted", lambda: sequences(targets=T.reshape(2, 2)[:, 1:]),
             ValueError, "targets", r"must be \(B, S\) = \(2, 2\) class numbers .*, got shape \(2, 1\)"),
    BadInput("one weight norm a class", lambda: hooked(weight_norm=np.ones(3)), ValueError,
             "weight_norm", r"must be \(N,\) = \(4,\), got shape \(3,\)"),
    BadInput("a weight instead of its norm", lambda: hooked(weight_norm=np.ones((3, 2))),
             ValueError, "weight_norm",
             r"must be one number, a float or a 0-D array, got shape \(3, 2\)"),
    BadInput("no weight norm", lambda: hooked(weight_norm=None), ValueError, "weight_norm",
             r"must be one number, a float or a 0-D array, got NoneType"),
    BadInput("one class weight for all",
             lambda: g.weighted_targets(targets=T, class_weights=np.asarray(2.0)), ValueError,
             "class_weights", r"must be \(C,\) = \(1,\), got shape \(\)"),
    BadInput("class weights of another head",
             lambda: g.weighted_targets(targets=SOFT, class_weights=np.ones(2)), ValueError,
             "targets", r"or \(N, C\) = \(4, 2\) probabilities, got float64 of shape \(4, 3\)"),
    BadInput("class weights as integers",
             lambda: g.weighted_targets(targets=T, class_weights=np.ones(3, int)), TypeError,
             "class_weights", r"must be floating point, got int64"),
    BadInput("one target for all",
             lambda: g.weighted_targets(targets=T[0, ...], class_weights=np.ones(3)), ValueError,
             "targets", r"must be \(N,\) = \(1,\) integers .*, got int64 of shape \(\)"),
    BadInput("sketch of another width", lambda: head(sketch=g.JLSketch(7, 2)), ValueError, "sketch",
             r"must have in_features = D = 5, got 7; a sketch belongs to one width"),
    BadInput("features of another width", lambda: g.project(Z, g.JLSketch(7, 2)), ValueError, "x",
             r"must be \(\.\.\., D\) with D = 7, got shape \(4, 5\)"),
    BadInput("gradients of one sample", lambda: g.gradient_alignment(W[0], W[0]), ValueError,
             "gradients", r"must be \(N, P\), got shape \(5,\)"),
    BadInput("gradients of other weights", lambda: g.gradient_alignment(W, W[0, :4]), ValueError,
             "weights", r"must be \(P,\) = \(5,\), got shape \(4,\)"),
    BadInput("scores in a matrix", lambda: g.gwa_score(Z), ValueError, "scores_or_moments",
             r"must be floating point \(N,\), got float64 of shape \(4, 5\)"),
    BadInput("scores of a window in a matrix",
             lambda: g.exponential_window(g.Moments.empty(S), Z), ValueError, "scores",
             r"must be floating point \(N,\), got float64 of shape \(4, 5\)"),
    BadInput("offline scores in a matrix", lambda: g.glass_delta(S, Z), ValueError, "offline",
             r"must be floating point \(N,\), got float64 of shape \(4, 5\)"),
    BadInput("moments of a matrix", lambda: g.Moments.from_batch(Z), ValueError, "x",
             r"must be floating point \(N,\), got float64 of shape \(4, 5\)"),
    BadInput("tracked scores in a matrix", lambda: g.GWATracker().update(Z), ValueError, "scores",
             r"must be \(N,\), got shape \(4, 5\)"),
    BadInput("history of one epoch as a vector", lambda: g.label_quality(S), ValueError, "history",
             r"must be floating point \(T, N\) and not empty, got .*stack the scores of each epoch"),
    BadInput("more ranks than samples", lambda: g.rank_samples(S, k=5), ValueError, "scores",
             r"with N >= k = 5, got float64 of shape \(4,\)"),
    BadInput("ranking per class without classes", lambda: g.rank_samples(S, k=1, per_class=True),
             ValueError, "targets", r"must be \(N,\) = \(4,\) integers with `per_class`, got None"),
)  # fmt: skip

EMPTY = (
    BadInput("empty batch", lambda: head(latents=Z[:0], targets=T[:0]), ValueError, "latents",
             r"must be \(N, D\) and not empty, got shape \(0, 5\); skip empty batches"),
    BadInput("empty batch of logits",
             lambda: hooked(logits=L[:0], latent_norms=NORMS[:0], targets=T[:0]),
             ValueError, "logits", r"must be \(N, C\) and not empty, got shape \(0, 3\)"),
    BadInput("one class", lambda: head(weight=W[:1], targets=T * 0), ValueError, "loss",
             r"'cross_entropy' needs C >= 2 classes, got C = 1.*loss='binary_cross_entropy'"),
    BadInput("epoch without samples", lambda: g.GWATracker().end_epoch(), ValueError, "end_epoch",
             r"an epoch must have scores, got none"),
    BadInput("epoch ended twice", lambda: tracked((S, None)).end_epoch(), ValueError, "end_epoch",
             r"an epoch must have scores, got none"),
    BadInput("run without epochs", lambda: g.summarize_history([]), ValueError, "history",
             r"must have at least one epoch, got none"),
    BadInput("choice among no epochs", lambda: g.select_epoch([], g.MaxGWA()), ValueError,
             "history", r"must have at least one epoch, got none"),
    BadInput("choice among no values", lambda: g.select_step([], g.MaxGWA()), ValueError, "values",
             r"must be of one length of at least 1, got 0, 0 and 0"),
    BadInput("quality of no epochs", lambda: g.label_quality(Z[:0]), ValueError, "history",
             r"not empty, got float64 of shape \(0, 5\)"),
    BadInput("weights of no epochs", lambda: g.epoch_weights([]), ValueError, "history",
             r"must have at least one epoch, got none"),
)  # fmt: skip

DTYPES = (
    BadInput("integer latents", lambda: head(latents=Z.astype(int)), TypeError, "latents",
             r"must be floating point, got int64; cast it first, and check that .* swapped"),
    BadInput("integer weight", lambda: head(weight=W.astype(int)), TypeError, "weight",
             r"must be floating point, got int64"),
    BadInput("integer bias", lambda: head(bias=np.zeros(3, int)), TypeError, "bias",
             r"must be floating point, got int64"),
    BadInput("integer gradient", lambda: backward(logit_gradients=L.astype(int)), TypeError,
             "logit_gradients", r"must be floating point, got int64"),
    BadInput("integer residuals", lambda: parts(residuals=T.reshape(2, 2, 1)), TypeError,
             "residuals", r"must be floating point, got int64; cast it first"),
    BadInput("sequences as floats", lambda: parts(groups=S.reshape(2, 2)), ValueError, "groups",
             r"must be integers \(B, S\) = \(2, 2\), got float64"),
    BadInput("integer scores compared", lambda: agreement(T), TypeError, "scores",
             r"must be floating point, got int64"),
    BadInput("class numbers as floats", lambda: head(targets=T.astype(float)), ValueError,
             "targets", r"got float64 of shape \(4,\); cast class numbers to an integer dtype"),
    BadInput("mask of integers", lambda: head(where=np.ones(4, int)), ValueError, "where",
             r"must be boolean \(N,\) = \(4,\), got int64"),
    BadInput("integer features", lambda: g.project(T, g.JLSketch(4, 2)), TypeError, "x",
             r"must be floating point, got int64"),
    BadInput("integer scores", lambda: g.summarize(T), ValueError, "scores_or_moments",
             r"must be floating point \(N,\), got int64"),
    BadInput("boolean scores", lambda: g.GWATracker().update(S > 0), TypeError, "scores",
             r"must be floating point, got bool"),
    BadInput("classes as floats", lambda: g.rank_samples(S, k=1, targets=S, per_class=True),
             ValueError, "targets", r"integers with `per_class`, got float64 of shape \(4,\)"),
    BadInput("ids as floats", lambda: tracked((S, S), num_samples=4), ValueError, "ids",
             r"must be integers, got float64"),
    BadInput("a list in place of an array", lambda: head(latents=[[0.1] * 5] * 4), TypeError,
             "latents", r"must be an array .*, got list; convert lists with `numpy.asarray`"),
    BadInput("a number in place of scores", lambda: g.gwa_score(0.3), TypeError,
             "scores_or_moments", r"must be an array .*, got float"),
    BadInput("tracked list", lambda: g.GWATracker().update([0.1]), TypeError, "scores",
             r"must be an array .*, got list"),
    BadInput("ids in a list", lambda: g.GWATracker(4).update(S, ids=[0, 1, 2, 3]), TypeError,
             "ids", r"must be an array .*, got list"),
)  # fmt: skip

VALUES = (
    BadInput("label too large", lambda: head(targets=T + 1), ValueError, "targets",
             r"must be class numbers in 0\.\.2, got 3; labels are counted from 0"),
    BadInput("ignored label without a mask", lambda: head(targets=T - 100), ValueError, "targets",
             r"must be class numbers in 0\.\.2, got -100; .* left out by `where`"),
    BadInput("logits of another head", lambda: head(logits=L + np.arange(3)), ValueError, "logits",
             r"must be latents @ weight\.T \+ bias, got row 0 that differs by up to .*has a bias"),
    BadInput("ignored token without a mask", lambda: sequences(targets=T.reshape(2, 2) - 100),
             ValueError, "targets", r"must be class numbers in 0\.\.2, got -100; .* left out by `where`"),
    BadInput("more sequences than said", lambda: sequences(num_groups=1), ValueError, "groups",
             r"must be below num_groups = 1, got 1; number the sequences of the call from 0"),
    BadInput("labels of another data set in a comparison", lambda: agreement(targets=T + 1),
             ValueError, "targets", r"must be class numbers in 0\.\.2, got 3"),
    BadInput("several labels as soft targets", lambda: head(targets=np.ones((4, 3))), ValueError,
             "targets", r"must sum to 1, got 3; use `loss='binary_cross_entropy'`"),
    BadInput("percentages", lambda: head(targets=100 * SOFT), ValueError, "targets",
             r"must be in \[0, 1\], got 33\.3"),
    BadInput("negative probabilities",
             lambda: head(targets=np.asarray([[-0.5, 0.5, 1.0]] * 4), loss="binary_cross_entropy"),
             ValueError, "targets", r"must be in \[0, 1\], got -0\.5"),
    BadInput("negative classes only",
             lambda: g.rank_samples(S, k=1, targets=T * 0 - 1, per_class=True), ValueError,
             "targets", r"must hold class numbers from 0, got -1 at most"),
    BadInput("nan under the strict policy",
             lambda: tracked(([0.1, np.nan], None), nan_policy="raise"), ValueError, "scores",
             r"must be finite under nan_policy='raise', got nan or inf"),
    BadInput("id out of range", lambda: tracked((S, [0, 1, 2, 4]), num_samples=4), ValueError,
             "ids", r"must be in 0\.\.3, got 0\.\.4; ids number the whole training set"),
    BadInput("negative id", lambda: tracked((S, [0, 1, 2, -1]), num_samples=4), ValueError, "ids",
             r"must be in 0\.\.3, got -1\.\.2"),
    BadInput("ids of other samples", lambda: tracked((S, [0, 1]), num_samples=4), ValueError, "ids",
             r"must be \(N,\) = \(4,\), got shape \(2,\)"),
    BadInput("ids without a number of samples", lambda: tracked((S, T)), ValueError, "ids",
             r"need `num_samples` and `keep_scores=True`, got num_samples=None"),
    BadInput("ids now and then", lambda: tracked((S, [0, 1, 2, 3]), (S, None), num_samples=4),
             ValueError, "ids", r"every batch of an epoch or with none, got none in an epoch"),
)  # fmt: skip

MIXED = (
    BadInput("arrays of two libraries", lambda: head(weight=strict(W)), TypeError, "weight",
             r"all arrays must come from one library, got `latents`: numpy, "
             r"`weight`: array_api_strict.*convert them to one library first"),
    BadInput("targets of another library", lambda: head(targets=strict(T)), TypeError, "targets",
             r"all arrays must come from one library, got"),
    BadInput("weight norm of another library",
             lambda: hooked(weight_norm=strict(2.0)), TypeError, "weight_norm",
             r"all arrays must come from one library, got"),
    BadInput("gradient of another library", lambda: backward(logit_gradients=strict(L)), TypeError,
             "logit_gradients", r"all arrays must come from one library, got"),
    BadInput("compared scores of another library", lambda: agreement(strict(S)), TypeError,
             "scores", r"all arrays must come from one library, got"),
    BadInput("arrays on two devices", lambda: strict_head(weight="device1"), ValueError, "weight",
             r"all arrays must be on one device, got `latents` on .*`weight` on .*device1"),
    BadInput("moments of two libraries",
             lambda: g.Moments.from_batch(S).merge(g.Moments.from_batch(strict(S))), TypeError,
             "other", r"all arrays must come from one library, got"),
)  # fmt: skip

OPTIONS = (
    BadInput("unknown loss", lambda: head(loss="mse"), ValueError, "loss",
             r"must be one of 'cross_entropy', 'binary_cross_entropy', got 'mse'"),
    BadInput("comparison with an unknown loss", lambda: agreement(loss="focal"), ValueError, "loss",
             r"must be one of 'cross_entropy', 'binary_cross_entropy', got 'focal'"),
    BadInput("unknown reduction", lambda: sequences(reduce="sum"), ValueError, "reduce",
             r"must be one of 'mean', 'min', 'gradient', got 'sum'"),
    BadInput("no sequence", lambda: sequences(num_groups=0), ValueError, "num_groups",
             r"must be an integer of at least 1, got 0"),
    BadInput("smoothing of one", lambda: head(label_smoothing=1.0), ValueError, "label_smoothing",
             r"must be in \[0, 1\), got 1\.0"),
    BadInput("smoothing of nan", lambda: head(label_smoothing=float("nan")), ValueError,
             "label_smoothing", r"must be in \[0, 1\), got nan"),
    BadInput("infinite beta", lambda: g.gwa_score(S, beta=np.inf), ValueError, "beta",
             r"must be finite, got inf"),
    BadInput("tracker with beta nan", lambda: g.GWATracker(beta=np.nan), ValueError, "beta",
             r"must be finite, got nan"),
    BadInput("tracker of no samples", lambda: g.GWATracker(0), ValueError, "num_samples",
             r"must be an integer of at least 1, got 0"),
    BadInput("unknown nan policy", lambda: g.GWATracker(nan_policy="skip"), ValueError,
             "nan_policy", r"must be one of 'omit', 'raise', got 'skip'"),
    BadInput("window that never forgets",
             lambda: g.exponential_window(g.Moments.empty(S), S, decay=1.0), ValueError, "decay",
             r"must be in \(0, 1\), got 1\.0"),
    BadInput("sketch without features", lambda: g.JLSketch(0, 4), ValueError, "in_features",
             r"must be an integer of at least 1, got 0"),
    BadInput("sketch of a fraction", lambda: g.JLSketch(8, 2.5), ValueError, "out_features",
             r"must be an integer of at least 1, got 2\.5"),
    BadInput("unknown sketch", lambda: g.JLSketch(8, 2, kind="fourier"), ValueError, "kind",
             r"must be one of 'gaussian', .*, got 'fourier'"),
    BadInput("Hadamard sketch that is too wide", lambda: g.JLSketch(5, 9, kind="hadamard"),
             ValueError, "out_features", r"must be at most 8, .* got 9"),
    BadInput("negative seed", lambda: g.JLSketch(8, 2, seed=-1), ValueError, "seed",
             r"must be an integer of at least 0, got -1"),
    BadInput("dimension for one point", lambda: g.jl_dimension(1, 0.1), ValueError, "n_samples",
             r"must be an integer of at least 2, got 1"),
    BadInput("dimension without distortion", lambda: g.jl_dimension(9, 0.0), ValueError,
             "distortion", r"must be in \(0, 1\), got 0\.0"),
    BadInput("no ranks", lambda: g.rank_samples(S, k=0), ValueError, "k",
             r"must be an integer of at least 1, got 0"),
    BadInput("unknown order", lambda: g.rank_samples(S, k=1, order="ascending"), ValueError,
             "order", r"must be one of 'lowest', 'highest', got 'ascending'"),
    BadInput("unknown method", lambda: g.label_quality(Z, method="median"), ValueError, "method",
             r"must be one of 'separation', 'mean', got 'median'"),
    BadInput("quality of the first zero epochs", lambda: g.label_quality(Z, until=0), ValueError,
             "until", r"must be an integer of at least 1, got 0"),
    BadInput("weights of other epochs", lambda: g.label_quality(Z, weights=[1.0] * 3), ValueError,
             "weights", r"must be T = 4 finite numbers .* one for each row of `history`, got 3"),
    BadInput("negative weight of an epoch", lambda: g.label_quality(Z, weights=[1, 1, -0.5, 1]),
             ValueError, "weights", r"must be .* of at least 0, .* got -0\.5 among 4"),
    BadInput("weight of nan", lambda: g.label_quality(Z, weights=[1, np.nan, 1, 1]), ValueError,
             "weights", r"must be T = 4 finite numbers .* got nan among 4"),
    BadInput("infinite weight", lambda: g.label_quality(Z, weights=[1, np.inf, 1, 1]), ValueError,
             "weights", r"must be T = 4 finite numbers .* got inf among 4"),
    BadInput("weights of the first epochs",
             lambda: g.label_quality(Z, until=2, weights=[1.0] * 4), ValueError, "weights",
             r"must not be given with `until`, got both \(until=2\)"),
)  # fmt: skip

WEIGHTS = tuple(
    BadInput(name, lambda w=w: g.weighted_targets(targets=T, class_weights=np.asarray(w)), ValueError,
             "class_weights", r"must be finite, at least 0 and not all 0, got \[")
    for name, w in (("negative class weight", [1.0, 2.0, -3.0]), ("class weight of nan", [1, np.nan, 1]),
                    ("class weights of zero", [0.0, 0.0, 0.0]))
)  # fmt: skip

RULES = (
    BadInput("negative warm-up", lambda: g.MaxGWA(warmup=-1), ValueError, "warmup",
             r"must be a fraction of all steps in \[0, 1\) or a whole number of steps, got -1"),
    BadInput("warm-up of one and a half steps", lambda: g.MaxGWA(warmup=1.5), ValueError, "warmup",
             r"must be a fraction of all steps in \[0, 1\).*got 1\.5"),
    BadInput("warm-up of nan", lambda: g.DipThenMax(warmup=float("nan")), ValueError, "warmup",
             r"must be a fraction of all steps in \[0, 1\).*got nan"),
    BadInput("no patience", lambda: g.BestMetric(patience=0), ValueError, "patience",
             r"must be an integer of at least 1, got 0"),
    BadInput("negative margin", lambda: g.MaxBimodality(min_delta=-0.1), ValueError, "min_delta",
             r"must be at least 0, got -0\.1"),
    BadInput("mean of nothing", lambda: g.MaxGWA(smoothing=0), ValueError, "smoothing",
             r"must be an integer of at least 1, got 0"),
    BadInput("unknown direction", lambda: g.BestMetric(mode="down"), ValueError, "mode",
             r"must be one of 'max', 'min', got 'down'"),
    BadInput("window of nothing", lambda: g.LabelWave(window=0), ValueError, "window",
             r"must be an integer of at least 1, got 0"),
    BadInput("unknown criterion", lambda: g.GradientDisparity(criterion="third"), ValueError,
             "criterion", r"must be one of 'fifth_increase', 'five_consecutive', got 'third'"),
    BadInput("run of no steps", lambda: g.EarlyStopper(g.MaxGWA(), total_steps=0), ValueError,
             "total_steps", r"must be an integer of at least 1, got 0"),
    BadInput("fraction of an unknown number of steps",
             lambda: g.EarlyStopper(g.MaxGWA()), ValueError, "total_steps",
             r"must be given where `warmup` is a fraction \(0\.1\), got None"),
    BadInput("a step twice", lambda: stepped(3, 3), ValueError, "step",
             r"must be larger than the last one, 3, got 3; a resumed run must load the state"),
    BadInput("values and steps of two lengths",
             lambda: g.select_step([0.1, 0.2], g.MaxGWA(), steps=[0]), ValueError, "steps",
             r"must be of one length of at least 1, got 2, 1 and 2"),
    BadInput("history without the column",
             lambda: g.select_epoch([{"loss": 0.1}], g.MaxGWA()), ValueError, "history[0]",
             r"must have the column 'gwa' that MaxGWA watches, got loss; give it beside the summary"),
    BadInput("record without the column",
             lambda: g.EarlyStopper(g.LabelWave()).observe({"gwa": 0.5, "mean": 0.1}), ValueError,
             "record", r"must have the column 'prediction_changes' that LabelWave watches, got gwa, "
             r"mean; give it beside the summary: \{\*\*summary._asdict\(\), 'prediction_changes'"),
    BadInput("scores of some samples",
             lambda: g.LabelQuality(9).update(S, g.summarize(S)), ValueError, "scores",
             r"must be floating point \(N,\) = \(9,\), got float64 of shape \(4,\); .* by id"),
    BadInput("label quality of two training sets",
             lambda: g.LabelQuality(9).merge(g.LabelQuality(4)), ValueError, "other",
             r"must have num_samples=9, got 4"),
)  # fmt: skip

STATES = (
    BadInput("tracker's state of another version", lambda: resumed(version=0), ValueError, "state",
             r"must be of version \d+ and 4 samples, got 0 and 4; it is of another gwa-core"),
    BadInput("state of another training set", lambda: resumed(num_samples=9), ValueError, "state",
             r"and 4 samples, got \d+ and 9; it is of another gwa-core or another training set"),
    BadInput("stopper's state of another version", lambda: stopped(version=0), ValueError, "state",
             r"must be of version \d+ and rule MaxGWA\(.*\), got version 0"),
    BadInput("state of another rule", lambda: stopped(rule="LabelWave()"), ValueError, "state",
             r"got version \d+ and rule LabelWave\(\); make the stopper with the rule"),
    BadInput("trackers of two training sets",
             lambda: merged(({"num_samples": 4}, T), ({"num_samples": 5}, T)), ValueError,
             "other", r"must agree in num_samples, beta: \(4, 1\.2\), got \(5, 1\.2\)"),
    BadInput("trackers with and without ids",
             lambda: merged(({"num_samples": 4}, T), ({"num_samples": 4}, None)), ValueError,
             "other", r"must have ids if this tracker has them, got one without them"),
)  # fmt: skip

CASES = (*SHAPES, *EMPTY, *DTYPES, *VALUES, *MIXED, *OPTIONS, *WEIGHTS, *RULES, *STATES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_refused_in_words(case):
    with pytest.raises(case.error, match=case.message) as caught:
        case.trigger()
    assert type(caught.value) is case.error
    message = str(caught.value)
    assert f"`{case.argument}`" in message
    assert re.search(r"\bgot\b", message), "the message must say what came"
    assert len(message) > len(case.argument) + 20


def test_every_mistake_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", ["strict", "torch-f32", "jax-x32-jit"])
def test_shapes_are_checked_on_every_library_and_under_jit(name):
    from backends import CASE, open_case

    with open_case(CASE[name]) as backend:
        arrays = backend.arrays(latents=Z, weight=W.T, targets=T)
        with pytest.raises(ValueError, match="a Flax kernel must be transposed"):
            backend.call(lambda a: g.alignment_scores(**a), arrays)
        arrays = backend.arrays(latents=Z, weight=W[:1], targets=T)
        with pytest.raises(ValueError, match="needs C >= 2 classes"):
            backend.call(lambda a: g.alignment_scores(**a), arrays)


def test_a_refused_batch_leaves_the_tracker_as_it_was():
    tracker = g.GWATracker(4)
    tracker.update(S[:2], ids=np.asarray([0, 1]))
    for bad in (np.asarray([2, 9]), np.asarray([2.0, 3.0]), np.asarray([2])):
        with pytest.raises(ValueError, match="`ids`"):
            tracker.update(S[2:], ids=bad)
    assert tracker.end_epoch().count == 2
