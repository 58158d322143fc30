"""One call of every signal that takes arrays, with its oracle, for every backend case."""

from __future__ import annotations

from typing import Any

import numpy as np
import signal_oracles as oracles
from scenarios import HEAD, HOOKED, LABELS, SOFT, C, D, N, Scenario

from gwa_core import signals

LOGITS, TARGETS, LATENTS = HOOKED["logits"], HOOKED["targets"], HEAD["latents"]
RNG = np.random.default_rng(3)
PROBABILITIES = RNG.random((4, N))
PROBABILITIES[1, 2] = np.nan
CORRECT = RNG.random((5, N)) < 0.6
CORRECT[:, 4] = False
# A sample that is never seen, one that is never right, and others that are absent at times.
SEEN, HITS = RNG.random((4, N)), (RNG.random((4, N)) < 0.6).astype(float)
CLASSES = RNG.integers(0, C, (4, N)).astype(float)
HITS[:, 3] = 0.0
for epochs in (SEEN, HITS, CLASSES):
    epochs[:, 2] = np.nan
    epochs[RNG.random((4, N)) < 0.2] = np.nan
BEFORE, AFTER = RNG.integers(-1, C, N), RNG.integers(-1, C, N)


def _signal(name: str, variant: str, arrays: dict[str, np.ndarray], **options: object) -> Scenario:
    function, oracle = getattr(signals, name), getattr(oracles, name)
    return Scenario(
        f"signals.{name}",
        variant,
        arrays,
        lambda a: function(**a, **options),
        lambda **a: oracle(**a, **options),
        slack=3,
    )


def _scenarios() -> list[Scenario]:
    of_logits = {"logits": LOGITS, "targets": TARGETS}
    of_both = {"latents": LATENTS, **of_logits}
    names = ("margin", "sample_loss", "label_probability", "el2n")
    out = [_signal(name, "hard", of_logits) for name in names]
    out += [_signal(name, "hard", of_both) for name in ("gradient_norm", "self_influence")]
    out += [
        _signal("el2n", "smoothed", of_logits, label_smoothing=0.1),
        _signal("el2n", "soft", {"logits": LOGITS, "targets": SOFT}),
        _signal(
            "el2n", "sigmoid", {"logits": LOGITS, "targets": LABELS}, loss="binary_cross_entropy"
        ),
        _signal("head_hessian_trace", "any", {"latents": LATENTS, "logits": LOGITS}),
        Scenario(
            "signals.sample_signals",
            "all",
            of_both,
            lambda a: tuple(signals.sample_signals(TOGETHER, **a).values()),
            lambda latents, logits, targets: (
                oracles.margin(logits, targets),
                oracles.el2n(logits, targets),
                oracles.gradient_norm(latents, logits, targets),
                (oracles.margin(logits, targets) > 0).astype(float),
                logits.argmax(axis=1).astype(float),
            ),
            slack=3,
        ),
        Scenario(
            "signals.cartography",
            "gaps",
            {"probabilities": PROBABILITIES},
            lambda a: tuple(signals.cartography(a["probabilities"])),
            lambda probabilities: oracles.cartography(probabilities),
        ),
        Scenario(
            "signals.forgetting_events",
            "never learnt",
            {"correct": CORRECT},
            lambda a: signals.forgetting_events(a["correct"]),
            oracles.forgetting_events,
            "count",
        ),
        Scenario(
            "signals.prediction_changes",
            "gaps",
            {"previous": BEFORE, "current": AFTER},
            lambda a: signals.prediction_changes(a["previous"], a["current"]),
            oracles.prediction_changes,
            "count",
        ),
        Scenario(
            "signals.OverEpochs",
            "gaps",
            {"label_probability": SEEN, "correct": HITS, "prediction": CLASSES},
            _over_epochs,
            oracles.over_epochs,
            slack=3,
        ),
    ]
    return out


def _over_epochs(arrays: dict[str, Any]) -> tuple[Any, ...]:
    names = ("label_probability", "variability", "forgetting_events", "prediction_changes")
    run = signals.OverEpochs.begin(names, arrays["correct"][0, :])
    for epoch in range(SEEN.shape[0]):
        run = run.add({name: x[epoch, :] for name, x in arrays.items()})
    return *run.by_sample().values(), run.means()["prediction_changes"]


PAIRS = RNG.uniform(-1.0, 1.0, (N, N))
PAIRS[3], PAIRS[:, 3] = np.nan, np.nan
BATCHES = {
    "latents": RNG.normal(size=(4, 5, D)),
    "logits": RNG.normal(size=(4, 5, C)),
    "targets": RNG.integers(0, C, (4, 5)),
}
WIDE = {**BATCHES, "latents": RNG.normal(size=(4, 5, 50)), "logits": RNG.normal(size=(4, 5, 60))}
MATRICES = {"a": RNG.normal(size=(9, D)), "b": RNG.normal(size=(9, 12))}
RUNS = {name: RNG.normal(size=(C, D)) for name in ("gradient", "weights", "optimum")}


def _positional(
    name: str, variant: str, arrays: dict[str, np.ndarray], *options: object
) -> Scenario:
    function, oracle = getattr(signals, name), getattr(oracles, name)
    return Scenario(
        f"signals.{name}",
        variant,
        arrays,
        lambda a: function(*a.values(), *options),
        lambda **a: oracle(*a.values(), *options),
        slack=10,
    )


def _batch_scenarios() -> list[Scenario]:
    of_both = {"latents": LATENTS, "logits": LOGITS, "targets": TARGETS}
    out = []
    for name in ("pairwise_alignment", "mean_pairwise_alignment"):
        out += [
            _signal(name, "hard", of_both),
            _signal(name, "smoothed", of_both, label_smoothing=0.1),
            _signal(name, "soft", {**of_both, "targets": SOFT}),
            _signal(name, "sigmoid", {**of_both, "targets": LABELS}, loss="binary_cross_entropy"),
        ]
    return [
        *out,
        _positional("class_alignment", "gaps", {"pairs": PAIRS, "targets": TARGETS}, C),
        _positional("centred_class_means", "any", {"latents": LATENTS, "targets": TARGETS}, C),
        _positional("gradient_disparity", "any", {"gradients": RNG.normal(size=(5, 11))}),
        _positional("rescaled_loss", "any", {"losses": RNG.random(9)}),
        _signal("head_gradient_disparity", "gradients", BATCHES),
        _signal("head_gradient_disparity", "gram", WIDE),
        _signal("optimum_alignment", "matrix", RUNS),
        _positional("matrix_mutual_information_ratio", "any", MATRICES),
        _positional("matrix_entropy_difference_ratio", "any", MATRICES),
    ]


TOGETHER = ("margin", "el2n", "gradient_norm", "correct", "prediction")
SIGNAL_SCENARIOS = (*_scenarios(), *_batch_scenarios())
