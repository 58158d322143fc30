"""Slow and obvious NumPy float64 for the signals: explicit gradients, Hessians and loops."""

from __future__ import annotations

from itertools import pairwise

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


def cartography(probabilities):
    return np.nanmean(probabilities, axis=0), np.nanstd(probabilities, axis=0)


def forgetting_events(correct):
    out = []
    for sample in np.asarray(correct).T:
        lost = sum(bool(a and not b) for a, b in pairwise(sample))
        out.append(lost if sample.any() else len(sample))
    return np.array(out, np.float64)
