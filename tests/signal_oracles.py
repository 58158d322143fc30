"""Slow and obvious NumPy float64 for the signals: explicit gradients, Hessians and loops."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations, product

import numpy as np
from oracles import residual, softmax


def gradients(latents, logits, targets, **options):
    """Each sample's (C, D) gradient of its loss by the head's weight."""
    r = residual(logits, targets, **options)
    return -r[:, :, None] * np.asarray(latents, np.float64)[:, None, :]


def margin(logits, targets):
    """Logit of the label less the largest of the others."""
    return np.array(
        [row[y] - np.delete(row, y).max() for row, y in zip(logits, targets, strict=True)]
    )


def label_probability(logits, targets):
    return np.array([p[y] for p, y in zip(softmax(logits), targets, strict=True)])


def sample_loss(logits, targets):
    return -np.log(label_probability(logits, targets))


def el2n(logits, targets, **options):
    return np.linalg.norm(residual(logits, targets, **options), axis=1)


def gradient_norm(latents, logits, targets, **options):
    g = gradients(latents, logits, targets, **options)
    return np.linalg.norm(g.reshape(len(g), -1), axis=1)


def self_influence(latents, logits, targets, **options):
    return gradient_norm(latents, logits, targets, **options) ** 2


def head_hessian_trace(latents, logits):
    """The trace of (diag(p) - p p') ⊗ z z', written out."""
    out = []
    for z, p in zip(np.asarray(latents, np.float64), softmax(logits), strict=True):
        hessian = np.kron(np.diag(p) - np.outer(p, p), np.outer(z, z))
        out.append(np.trace(hessian))
    return np.array(out)


def prediction_changes(previous, current):
    both = [(a, b) for a, b in zip(previous, current, strict=True) if a >= 0 and b >= 0]
    return np.mean([a != b for a, b in both])


def rescaled_loss(losses):
    return np.mean(losses) / np.std(losses, ddof=1)


def over_epochs(label_probability, correct, prediction):
    """What each sample's epochs say, from the list of those in which it was seen."""
    mean, deviation, forgotten = [], [], []
    for p, c in zip(label_probability.T, correct.T, strict=True):
        p, c = p[np.isfinite(p)], c[np.isfinite(c)]
        mean.append(p.mean() if len(p) else np.nan)
        deviation.append(p.std() if len(p) else np.nan)
        falls = sum(a > b for a, b in pairwise(c)) if c.any() else len(c)
        forgotten.append(falls if len(c) else np.nan)
    known = np.isfinite(prediction[:-1]).any(axis=0) & np.isfinite(prediction[-1])
    before = [x[np.isfinite(x)][-1] for x in prediction[:-1, known].T]
    # `prediction_changes` divides in float32.
    share = np.float32(np.mean(before != prediction[-1, known]))
    return np.array(mean), np.array(deviation), np.array(forgotten), share


def cartography(probabilities):
    return np.nanmean(probabilities, axis=0), np.nanstd(probabilities, axis=0)


def forgetting_events(correct):
    out = []
    for sample in np.asarray(correct).T:
        lost = sum(bool(a and not b) for a, b in pairwise(sample))
        out.append(lost if sample.any() else len(sample))
    return np.array(out, np.float64)


# Needs: from itertools import combinations, pairwise, permutations, product


# Pairs of samples, mini-batches, two runs, matrices


def pairwise_alignment(latents, logits, targets, **options):
    g = gradients(latents, logits, targets, **options).reshape(len(latents), -1)
    g = g / np.linalg.norm(g, axis=1, keepdims=True)
    return g @ g.T


def mean_pairwise_alignment(latents, logits, targets, **options):
    pairs = pairwise_alignment(latents, logits, targets, **options)
    return np.mean([pairs[i, j] for i, j in combinations(range(len(pairs)), 2)])


def class_alignment(pairs, targets, num_classes):
    out = np.full((num_classes, num_classes), np.nan)
    for a, b in product(range(num_classes), repeat=2):
        values = [
            pairs[i, j]
            for i, j in permutations(range(len(pairs)), 2)
            if targets[i] == a and targets[j] == b and np.isfinite(pairs[i, j])
        ]
        if values:
            out[a, b] = np.mean(values)
    return out


def gradient_disparity(gradients):
    return np.mean([np.linalg.norm(a - b) for a, b in combinations(gradients, 2)])


def head_gradient_disparity(latents, logits, targets):
    """Gradients of mean over standard deviation of each mini-batch's losses."""
    steps = []
    for z, logit, y in zip(latents, logits, targets, strict=True):
        losses, n = sample_loss(logit, y), len(y)
        m, s = losses.mean(), losses.std(ddof=1)
        parts = 1 / (n * s) - m * (losses - m) / ((n - 1) * s**3)
        steps.append((parts[:, None, None] * gradients(z, logit, y)).sum(axis=0).ravel())
    return gradient_disparity(steps)


def optimum_alignment(gradient, weights, optimum):
    g, way = np.ravel(gradient), np.ravel(optimum - weights)
    return -g @ way / np.linalg.norm(g) / np.linalg.norm(way)


def _matrix_entropies(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    for gram in (a @ a.T, b @ b.T, (a @ a.T) * (b @ b.T)):
        values = np.linalg.eigvalsh(gram / len(gram))
        yield -sum(x * np.log(x) for x in values if x > 1e-14)


def matrix_mutual_information_ratio(a, b):
    first, second, both = _matrix_entropies(a, b)
    return (first + second - both) / min(first, second)


def matrix_entropy_difference_ratio(a, b):
    first, second, _ = _matrix_entropies(a, b)
    return abs(first - second) / max(first, second)


def centred_class_means(latents, targets, num_classes):
    means = [latents[targets == c].mean(axis=0) for c in range(num_classes)]
    return np.array(means) - latents.mean(axis=0)
