"""Slow and obvious NumPy float64: what the fast code must agree with.

Nothing here is clever. Gradients are written out as (N, C, D), moments take two passes, sketches
are explicit matrices, and a tracker is a dictionary.
"""

from __future__ import annotations

import math

import numpy as np


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def sigmoid(logits):
    return 1.0 / (1.0 + np.exp(-np.asarray(logits, np.float64)))


def soft_targets(targets, num_classes, *, loss="cross_entropy", label_smoothing=0.0):
    """The (N, C) probabilities that hard labels, soft labels and smoothing stand for."""
    targets = np.asarray(targets)
    if num_classes == 1:
        soft = targets.reshape(-1, 1).astype(np.float64)
    elif targets.ndim == 1:
        soft = np.eye(num_classes)[targets]
    else:
        soft = targets.astype(np.float64)
    share = 1.0 / num_classes if loss == "cross_entropy" else 0.5
    return (1.0 - label_smoothing) * soft + label_smoothing * share


def residual(logits, targets, *, loss="cross_entropy", label_smoothing=0.0):
    """The textbook difference of targets and predictions."""
    predicted = softmax(logits) if loss == "cross_entropy" else sigmoid(logits)
    classes = predicted.shape[1]
    return soft_targets(targets, classes, loss=loss, label_smoothing=label_smoothing) - predicted


def weighted_targets(targets, class_weights, *, label_smoothing=0.0):
    """Targets times the weight of their class, scaled back to a sum of one."""
    soft = soft_targets(targets, len(class_weights), label_smoothing=label_smoothing)
    return np.array(
        [
            [w * t for w, t in zip(class_weights, row, strict=True)]
            / sum(w * t for w, t in zip(class_weights, row, strict=True))
            for row in soft
        ]
    )


def loss_weights(targets, class_weights, *, label_smoothing=0.0):
    """The weights of the classes, as often as each is the target."""
    soft = soft_targets(targets, len(class_weights), label_smoothing=label_smoothing)
    return np.array([sum(w * t for w, t in zip(class_weights, row, strict=True)) for row in soft])


def alignment(
    latents,
    weight,
    targets,
    *,
    logits=None,
    bias=None,
    loss="cross_entropy",
    label_smoothing=0.0,
    where=None,
):
    """Definition 1 with every sample's (C, D) gradient written out."""
    latents, weight = np.asarray(latents, np.float64), np.asarray(weight, np.float64)
    if logits is None:
        logits = latents @ weight.T + (0.0 if bias is None else np.asarray(bias, np.float64))
    r = residual(logits, targets, loss=loss, label_smoothing=label_smoothing)
    gradients = -r[:, :, None] * latents[:, None, :]
    gamma = cosine(-gradients.reshape(len(latents), -1), weight.ravel())
    return gamma if where is None else np.where(where, gamma, np.nan)


def alignment_from_logits(
    logits,
    latent_norms,
    weight_norm,
    targets,
    *,
    bias=None,
    loss="cross_entropy",
    label_smoothing=0.0,
    where=None,
):
    """The same where only logits and norms are known."""
    r = residual(logits, targets, loss=loss, label_smoothing=label_smoothing)
    product = np.asarray(logits, np.float64) - (0.0 if bias is None else bias)
    size = np.linalg.norm(r, axis=1) * latent_norms * weight_norm
    gamma = (r * product).sum(axis=1) / size
    return gamma if where is None else np.where(where, gamma, np.nan)


def alignment_from_logit_gradients(
    logit_gradients, logits, latent_norms, weight_norm, *, bias=None, where=None
):
    """The cosine of the gradient and the weights, from the gradient at the logits."""
    g = np.asarray(logit_gradients, np.float64)
    product = np.asarray(logits, np.float64) - (0.0 if bias is None else bias)
    with np.errstate(invalid="ignore"):
        cosines = -(g * product).sum(axis=1) / np.linalg.norm(g, axis=1)
    gamma = cosines / (latent_norms * weight_norm)
    return gamma if where is None else np.where(where, gamma, np.nan)


def sequence_parts(residuals, activations, latents, weight_norm, groups, where=None):
    """Each piece's (C, D) gradient written out, token by token."""
    numerators, lengths = np.zeros(groups.shape), np.zeros(groups.shape)
    for b, row in enumerate(groups):
        gradients, first = {}, {}
        for t, group in enumerate(row):
            if group < 0 or (where is not None and not where[b, t]):
                continue
            numerators[b, t] = residuals[b, t] @ activations[b, t] / weight_norm
            first.setdefault(group, t)
            outer = np.outer(residuals[b, t], latents[b, t])
            gradients[group] = gradients.get(group, 0.0) + outer
        for group, gradient in gradients.items():
            lengths[b, first[group]] = np.linalg.norm(gradient)
    return numerators, lengths


def sequence_scores(
    logits,
    latents,
    weight_norm,
    targets,
    groups,
    num_groups,
    *,
    bias=None,
    loss="cross_entropy",
    label_smoothing=0.0,
    where=None,
    reduce="gradient",
):
    """A list of what belongs to each sequence, token by token or piece by piece."""
    rows, tokens, classes = logits.shape
    flat = logits.reshape(-1, classes)
    soft = targets.reshape(-1, *targets.shape[2:])
    options = {"loss": loss, "label_smoothing": label_smoothing}
    product = logits - (0.0 if bias is None else bias)
    r = residual(flat, soft, **options).reshape(logits.shape)
    norms = np.linalg.norm(latents.reshape(rows * tokens, -1), axis=1)
    of_tokens = alignment_from_logits(flat, norms, weight_norm, soft, bias=bias, **options)
    numerators, lengths = sequence_parts(r, product, latents, weight_norm, groups, where)
    counted = (groups >= 0) if where is None else (groups >= 0) & where
    scores = np.full(num_groups, np.nan)
    for group in range(num_groups):
        own = counted & (groups == group)
        if own.any() and reduce == "gradient":
            scores[group] = numerators[own].sum() / lengths[own].sum()
        elif own.any():
            scores[group] = getattr(np, reduce)(of_tokens.reshape(groups.shape)[own])
    return scores


def score_agreement(scores, *, where=None, **head):
    """Rows, rows that differ, and the largest difference, where no rounding is to be thought of."""
    difference = np.abs(scores - alignment_from_logits(**head))
    kept = np.isfinite(scores) if where is None else np.isfinite(scores) & where
    return kept.sum(), (difference[kept] > 0.05).sum(), difference[kept].max()


def sketched_alignment(latents, weight, targets, matrix, *, bias=None):
    """Definition 1 with latents and rows of the weight mapped by an explicit (K, D) matrix."""
    logits = latents @ weight.T + (0.0 if bias is None else bias)
    r = residual(logits, targets)
    gradients = r[:, :, None] * (latents @ matrix.T)[:, None, :]
    return cosine(gradients.reshape(len(latents), -1), (weight @ matrix.T).ravel())


def cosine(rows, vector):
    rows, vector = np.asarray(rows, np.float64), np.asarray(vector, np.float64)
    return rows @ vector / (np.linalg.norm(rows, axis=1) * np.linalg.norm(vector))


def exact_alignment(
    logits,
    latent_norms,
    weight_norm,
    targets,
    *,
    bias=None,
    loss="cross_entropy",
    label_smoothing=0.0,
    digits=50,
):
    """γ of the given floating-point numbers, taken as exact, in `digits` decimal digits.

    One minus a probability is computed as the sum of the other probabilities: the difference loses
    all 50 digits as well once the logit gap passes 115.
    """
    import mpmath

    with mpmath.workdps(digits):
        classes = logits.shape[1]
        smoothing = mpmath.mpf(label_smoothing)
        share = mpmath.mpf(1) / classes if loss == "cross_entropy" else mpmath.mpf(1) / 2
        out = []
        for i, numbers in enumerate(logits):
            row = [mpmath.mpf(float(v)) for v in numbers]
            if np.ndim(targets) == 1 and classes > 1:
                t = [mpmath.mpf(int(j == targets[i])) for j in range(classes)]
            else:
                t = [mpmath.mpf(float(v)) for v in np.reshape(targets[i], -1)]
            t = [(1 - smoothing) * v + smoothing * share for v in t]
            if loss == "cross_entropy":
                e = [mpmath.exp(v) for v in row]
                total = mpmath.fsum(e)
                rest = [mpmath.fsum(e[:j] + e[j + 1 :]) / total for j in range(classes)]
                own = [v / total for v in e]
            else:
                own = [1 / (1 + mpmath.exp(-v)) for v in row]
                rest = [1 / (1 + mpmath.exp(v)) for v in row]
            # t - p = t (1 - p) - (1 - t) p, which cancels nothing for t = 0 and t = 1.
            r = [v * q - (1 - v) * p for v, p, q in zip(t, own, rest, strict=True)]
            offset = [0.0] * classes if bias is None else bias
            a = [v - mpmath.mpf(float(b)) for v, b in zip(row, offset, strict=True)]
            dot = mpmath.fsum(x * y for x, y in zip(r, a, strict=True))
            size = mpmath.sqrt(mpmath.fsum(x * x for x in r))
            size *= mpmath.mpf(float(latent_norms[i])) * mpmath.mpf(float(weight_norm))
            out.append(dot / size)
        return out


def moments(x, where=None):
    """Count, mean, central moments 2 to 8 and the share of negatives, in two passes."""
    x = np.asarray(x, np.float64)
    x = x[np.isfinite(x) if where is None else np.isfinite(x) & where]
    if x.size == 0:
        return np.zeros(10)
    centred = x - x.mean()
    return np.array([x.size, x.mean(), *((centred**k).mean() for k in range(2, 9)), (x < 0).mean()])


def summary(x, beta=1.2):
    """The fields of Summary, in order."""
    x = np.asarray(x, np.float64)
    x = x[np.isfinite(x)]
    count, mean, m2, m3, m4 = moments(x)[:5]
    skewness, kurtosis = m3 / m2**1.5, m4 / m2**2 - 3.0
    return np.array(
        [
            count,
            mean,
            m2,
            skewness,
            kurtosis,
            mean / (kurtosis + beta),
            gwa_standard_error(x, beta),
            kurtosis + beta,
            (skewness**2 + 1.0) / (kurtosis + 3.0),
            (x < 0).mean(),
            max(mean, 0.0) ** 0.25 * (skewness**2 + 1.0) / (kurtosis + 3.0),
        ]
    )


def gwa(x, beta=1.2):
    return summary(x, beta)[5]


def gwa_standard_error(x, beta=1.2):
    """Delta method: the influence of each score on GWA, written out score by score."""
    x = np.asarray(x, np.float64)
    mean, variance = x.mean(), x.var()
    third, fourth = ((x - mean) ** 3).mean(), ((x - mean) ** 4).mean()
    on_mean = x - mean
    on_variance = (x - mean) ** 2 - variance
    on_fourth = (x - mean) ** 4 - fourth - 4.0 * third * (x - mean)
    on_kurtosis = on_fourth / variance**2 - 2.0 * fourth / variance**3 * on_variance
    denominator = fourth / variance**2 - 3.0 + beta
    influence = on_mean / denominator - mean / denominator**2 * on_kurtosis
    return math.sqrt((influence**2).mean() / x.size)


def signal_standard_error(x, signal="separation"):
    """Delta method: the influence of each score on bimodality or separation, moment by moment."""
    x = np.asarray(x, np.float64)
    x = x[np.isfinite(x)]
    mean, c = x.mean(), x - x.mean()
    m2, m3, m4 = ((c**k).mean() for k in (2, 3, 4))
    on_m2, on_m3, on_m4 = c**2 - m2, c**3 - m3 - 3.0 * m2 * c, c**4 - m4 - 4.0 * m3 * c
    # Sarle's coefficient is (m3^2 / m2^3 + 1) m2^2 / m4 = (m3^2 / m2 + m2^2) / m4.
    top = m3**2 / m2 + m2**2
    influence = (2.0 * m3 / m2 * on_m3 + (2.0 * m2 - m3**2 / m2**2) * on_m2) / m4
    influence -= top / m4**2 * on_m4
    if signal == "separation":
        if mean <= 0:
            return math.nan
        influence = mean**0.25 * influence + top / m4 * 0.25 * mean**-0.75 * c
    return math.sqrt((influence**2).mean() / x.size)


def bootstrap_standard_error(x, beta=1.2, *, draws=1000, seed=0):
    """Spread of GWA over samples drawn with replacement."""
    rng = np.random.default_rng(seed)
    return np.std([gwa(rng.choice(x, x.size), beta) for _ in range(draws)])


def separation(x):
    """Sarle's coefficient times the fourth root of the mean of the scores, which counts from 0."""
    mean, bimodality = summary(x)[1], summary(x)[8]
    return 0.0 if mean < 0 else bimodality * math.sqrt(math.sqrt(mean))


def exponential_window(batches, decay):
    """Moments of all batches together, each sample weighted by its age."""
    last = len(batches) - 1
    weights = np.concatenate([np.full(len(b), decay ** (last - i)) for i, b in enumerate(batches)])
    x = np.concatenate(batches)
    mean = np.average(x, weights=weights)
    central = [np.average((x - mean) ** k, weights=weights) for k in range(2, 9)]
    return np.array([weights.sum(), mean, *central, np.average(x < 0, weights=weights)])


def glass_delta(online, offline):
    return (np.mean(online) - np.mean(offline)) / np.std(offline, ddof=1)


def sketch_matrix(sketch):
    """The (K, D) matrix of a sketch, entry by entry from the raw words of the generator."""
    k, d = sketch.out_features, sketch.in_features
    if sketch.kind == "hadamard":
        return _hadamard_matrix(sketch)
    if sketch.kind == "gaussian":
        pairs = (k * d + 1) // 2
        uniform = [
            (int(w) >> 11) / 2**53 for w in np.random.Philox(sketch.seed).random_raw(2 * pairs)
        ]
        radius = [math.sqrt(-2.0 * math.log1p(-u)) for u in uniform[:pairs]]
        angle = [2.0 * math.pi * u for u in uniform[pairs:]]
        entries = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
        entries += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
        return np.array(entries[: k * d]).reshape(k, d) / math.sqrt(k)
    words = [int(w) for w in np.random.Philox(sketch.seed).random_raw(k * d)]
    sparsity = math.isqrt(d) if sketch.kind == "sparse" else 1
    signs = [(1 if w % 2 == 0 else -1) * ((w // 2) % sparsity == 0) for w in words]
    return np.array(signs, float).reshape(k, d) * math.sqrt(sparsity / k)


def _hadamard_matrix(sketch):
    d, size = sketch.in_features, 1
    transform = np.ones((1, 1))
    while size < d:
        transform, size = np.block([[transform, transform], [transform, -transform]]), 2 * size
    words = [int(w) for w in np.random.Philox(sketch.seed).random_raw(2 * size)]
    signs = np.array([1 if w % 2 == 0 else -1 for w in words[:d]], float)
    chosen = sorted(sorted(range(size), key=lambda i: words[size + i])[: sketch.out_features])
    return transform[chosen, :d] * signs / math.sqrt(sketch.out_features)


def rank(scores, k, order="lowest"):
    """Indices of the k lowest or highest, ties by index, nan never; padded with -1."""
    sign = 1 if order == "lowest" else -1
    ranked = [i for i, s in enumerate(scores) if not math.isnan(s)]
    ranked.sort(key=lambda i: (sign * scores[i], i))
    return (ranked + [-1] * k)[:k]


def epoch_weights(history):
    """How far one over (kurtosis less squared skewness) lies above one third, squared, and a floor."""
    weights = []
    for row in history:
        skewness, excess_kurtosis = summary(row)[3:5]
        apart = excess_kurtosis + 3 - skewness**2
        excess = max(1 / max(apart, 1.0) - 1 / 3, 0.0)
        weights.append(excess**2 + 0.02**2 if math.isfinite(apart) else 0.0)
    return weights


def update_share(log_total, value, power=10):
    """The share of a power in its sum, and the logarithm of the sum."""
    own = float(value) ** power
    total = math.exp(log_total) + own
    return own / total, math.log(total)


def label_quality(history, until=None, weights=None):
    """The weighted mean of the finite scores, from [-1, 1] to [0, 1]; the plain one of `until`."""
    history = np.asarray(history, np.float64)[:until]
    if weights is None:
        weights = [1.0] * len(history) if until else epoch_weights(history)
    out = []
    for column in history.T:
        seen = [(w, s) for w, s in zip(weights, column, strict=True) if math.isfinite(s)]
        if sum(w for w, _ in seen) == 0:
            seen = [(1.0, s) for _, s in seen]
        total = sum(w for w, _ in seen)
        out.append((1 + sum(w * s for w, s in seen) / total) / 2 if seen else math.nan)
    return np.array(out)


def tracked_scores(num_samples, batches):
    """Scores by sample from (scores, ids, where) batches: the first one that counts wins."""
    seen = {}
    for scores, ids, where in batches:
        for score, i, counts in zip(scores, ids, where, strict=True):
            if counts:
                seen.setdefault(int(i), float(score))
    return np.array([seen.get(i, np.nan) for i in range(num_samples)])


def distributed_shares(order, ranks):
    """What torch's DistributedSampler gives each rank: padded with the first samples, then dealt."""
    order = list(order)
    padded = order + (order * ranks)[: -len(order) % ranks]
    return [padded[rank::ranks] for rank in range(ranks)]


def best_step(values, usable, *, first=0, sign=1):
    """The first step of the best usable value from `first` on, or None."""
    steps = [i for i in range(first, len(values)) if usable[i]]
    return min(steps, key=lambda i: (-sign * values[i], i)) if steps else None


def patient_step(values, usable, patience, *, first=0, sign=1, margin=0.0):
    """Replay a patient rule: the step kept, and the step at which it stopped or None."""
    kept, waited = None, 0
    for i in range(first, len(values)):
        if usable[i] and (kept is None or sign * (values[i] - values[kept]) > margin):
            kept, waited = i, 0
        elif kept is not None:
            waited += 1
            if waited == patience:
                return kept, i
    return kept, None
