"""One call of every public array function, with its oracle, to be run on every backend case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import oracles

import gwa_core as g
from gwa_core import JLSketch, Moments

N, C, D = 23, 5, 7


@dataclass(frozen=True)
class Scenario:
    """A call of `function` on `arrays`, and what it must give on the arrays as they were rounded."""

    function: str
    variant: str
    arrays: dict[str, np.ndarray]
    run: Callable[[dict[str, Any]], Any]
    oracle: Callable[..., Any]
    dtype: str = "result"  # "result", "accumulator", "index", "count"
    slack: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For the ids of tests."""
        return f"{self.function}-{self.variant}"


def _head(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    latents, weight = rng.normal(size=(N, D)), rng.normal(size=(C, D))
    bias, targets = rng.normal(size=C), rng.integers(0, C, N)
    return {"latents": latents, "weight": weight, "bias": bias, "targets": targets}


def _hooked(seed: int = 1) -> dict[str, np.ndarray]:
    head = _head(seed)
    latents, weight = head.pop("latents"), head.pop("weight")
    return {
        **head,
        "logits": latents @ weight.T + head["bias"],
        "latent_norms": np.linalg.norm(latents, axis=1),
        "weight_norm": np.linalg.norm(weight),
    }


HEAD, HOOKED = _head(), _hooked()
RNG = np.random.default_rng(2)
# Eighths, which half precision holds exactly, so that the rows still sum to one.
SOFT = RNG.multinomial(8, np.ones(C) / C, N) / 8
LABELS = RNG.random((N, C))
MASK = np.arange(N) % 4 != 1
SCORES = np.clip(RNG.normal(0.1, 0.2, 301) - 0.6 * (RNG.random(301) < 0.1), -1.0, 1.0)
SCORES[7] = np.nan
GROUPS = RNG.integers(0, 3, 301)


def make_trajectories(epochs: int, rows: int, peak: int, seed: int = 5) -> np.ndarray:
    """Scores (T, N) of which every fifth sample stands furthest apart in one epoch."""
    rng = np.random.default_rng(seed)
    wrong = np.arange(rows) % 5 == 0
    gap = np.maximum(0.0, 0.5 - 0.2 * np.abs(np.arange(epochs) - peak))
    history = 0.2 - gap[:, None] * wrong + 0.08 * rng.normal(size=(epochs, rows))
    return np.clip(history, -1, 1)


HISTORY = make_trajectories(4, 150, 1)
HISTORY[:, 3], HISTORY[1, 4], HISTORY[2, 5] = np.nan, np.nan, np.inf
# Sample 6 is seen in an epoch of weight 0 alone.
HISTORY[1:, 6], WEIGHTS = np.nan, [0.0, 3.0, 1e39, 2e39]


def _keywords(function: Callable[..., Any], oracle: Callable[..., Any], **options: Any) -> Any:
    return lambda a: function(**a, **options), lambda **a: oracle(**a, **options)


def _head_scenarios() -> list[Scenario]:
    out = []
    soft = {**HEAD, "targets": SOFT}
    labels = {**HEAD, "targets": LABELS}
    no_bias = {key: value for key, value in HEAD.items() if key != "bias"}
    for variant, arrays, options in (
        ("hard", HEAD, {}),
        ("no-bias", no_bias, {}),
        ("soft", soft, {}),
        ("smoothed", HEAD, {"label_smoothing": 0.1}),
        ("masked", {**HEAD, "where": MASK}, {}),
        ("sigmoid", labels, {"loss": "binary_cross_entropy"}),
    ):
        run, oracle = _keywords(g.alignment_scores, oracles.alignment, **options)
        out.append(Scenario("alignment_scores", variant, arrays, run, oracle, slack=3))
    sketch = JLSketch(D, 3, seed=4)
    out.append(
        Scenario(
            "alignment_scores",
            "sketched",
            HEAD,
            lambda a: g.alignment_scores(**a, sketch=sketch),
            lambda latents, weight, targets, bias: oracles.sketched_alignment(
                latents, weight, targets, oracles.sketch_matrix(sketch), bias=bias
            ),
            slack=3,
        )
    )
    for variant, arrays, options in (
        ("hard", HOOKED, {}),
        ("soft", {**HOOKED, "targets": SOFT}, {"label_smoothing": 0.2}),
        ("masked", {**HOOKED, "where": MASK}, {}),
        ("biases", {**HOOKED, "bias": HOOKED["bias"] * np.linspace(0.5, 1.5, N)[:, None]}, {}),
        ("sigmoid", {**HOOKED, "targets": LABELS}, {"loss": "binary_cross_entropy"}),
    ):
        run, oracle = _keywords(g.alignment_from_logits, oracles.alignment_from_logits, **options)
        out.append(Scenario("alignment_from_logits", variant, arrays, run, oracle, slack=3))
    out += _gradient_scenarios()
    out += _sequence_scenarios()
    for variant, targets, options in (
        ("hard", HEAD["targets"], {}),
        ("soft", SOFT, {"label_smoothing": 0.2}),
        ("sigmoid", LABELS, {"loss": "binary_cross_entropy"}),
    ):
        arrays = {"logits": HOOKED["logits"], "targets": targets}
        run, oracle = _keywords(g.residual, oracles.residual, **options)
        out.append(Scenario("residual", variant, arrays, run, oracle))
    for variant, targets, options in (
        ("hard", HEAD["targets"], {"label_smoothing": 0.2}),
        ("soft", SOFT, {}),
    ):
        arrays = {"targets": targets, "class_weights": np.exp(HEAD["bias"])}
        run, oracle = _keywords(g.weighted_targets, oracles.weighted_targets, **options)
        out.append(Scenario("weighted_targets", variant, arrays, run, oracle))
        run, oracle = _keywords(g.loss_weights, oracles.loss_weights, **options)
        out.append(Scenario("loss_weights", variant, arrays, run, oracle))
    return out


def _gradient_scenarios() -> list[Scenario]:
    given = {name: HOOKED[name] for name in ("logits", "latent_norms", "weight_norm", "bias")}
    gradients = RNG.normal(size=(N, C))
    gradients[3] = 0.0
    biases = HOOKED["bias"] + 0.1 * RNG.normal(size=(N, C))
    out = []
    for variant, arrays in (
        ("plain", {**given, "logit_gradients": gradients}),
        ("masked", {**given, "logit_gradients": gradients, "where": MASK}),
        ("biases", {**given, "logit_gradients": gradients, "bias": biases}),
    ):
        run, oracle = _keywords(
            g.alignment_from_logit_gradients, oracles.alignment_from_logit_gradients
        )
        out.append(
            Scenario("alignment_from_logit_gradients", variant, arrays, run, oracle, slack=3)
        )
    # Far from saturation, so that each row can tell in half precision.
    quiet = {**HOOKED, "logits": HOOKED["logits"] / 4}
    closed = oracles.alignment_from_logits(**quiet)
    # Far from the closed form in some rows, and nothing in one.
    scores = closed + 0.5 * (np.arange(N) % 6 == 1)
    scores[4] = np.nan
    # A residual of less than 0.1 is not missed.
    quiet["logits"][4] += 12.0 * (np.arange(C) == HOOKED["targets"][4])
    for variant, arrays in (
        ("plain", {**quiet, "scores": scores}),
        ("masked", {**quiet, "scores": scores, "where": MASK}),
    ):
        run, oracle = _keywords(g.score_agreement, oracles.score_agreement)
        out.append(Scenario("score_agreement", variant, arrays, run, oracle, slack=3))
    return out


def _sequence_scenarios() -> list[Scenario]:
    rng = np.random.default_rng(8)
    rows, tokens, groups = 3, 8, 7
    latents, weight = rng.normal(size=(rows, tokens, D)), rng.normal(size=(C, D))
    bias, targets = rng.normal(size=C), rng.integers(0, C, (rows, tokens))
    # Two to three sequences a row, the last one over two rows, one without tokens, and padding.
    numbers = np.asarray([[0, 0, 0, 1, 1, 1, -1, -1], [2, 3, 2, 3, 2, 2, 6, 6], [6, 6, 4, 4] * 2])
    arrays = {
        "logits": latents @ weight.T + bias,
        "latents": latents,
        "targets": targets,
        "bias": bias,
        "groups": numbers,
        "where": rng.random((rows, tokens)) < 0.8,
        "weight_norm": np.asarray(np.linalg.norm(weight)),
    }
    out = []
    for variant, changes, options in (
        ("gradient", {}, {"label_smoothing": 0.1}),
        ("mean", {}, {"reduce": "mean"}),
        ("min", {}, {"reduce": "min"}),
        ("sigmoid", {"targets": rng.random((rows, tokens, C))}, {"loss": "binary_cross_entropy"}),
    ):
        run, oracle = _keywords(
            g.sequence_scores, oracles.sequence_scores, num_groups=groups, **options
        )
        given = {**arrays, **changes}
        out.append(Scenario("sequence_scores", variant, given, run, oracle, slack=10))
    given = {name: arrays[name] for name in ("latents", "weight_norm", "groups", "where")}
    given["residuals"] = rng.normal(size=(rows, tokens, C))
    given["activations"] = latents @ weight.T
    out.append(
        Scenario(
            "sequence_parts",
            "plain",
            given,
            lambda a: tuple(g.sequence_parts(**a)),
            oracles.sequence_parts,
            slack=10,
        )
    )
    return out


def _vector_scenarios() -> list[Scenario]:
    scores = {"scores": SCORES}
    halves = {"first": SCORES[:100], "second": SCORES[100:]}
    out = [
        Scenario(
            "gradient_alignment",
            "plain",
            {"gradients": RNG.normal(size=(N, 11)), "weights": RNG.normal(size=11)},
            lambda a: g.gradient_alignment(a["gradients"], a["weights"]),
            lambda gradients, weights: oracles.cosine(-gradients, weights),
        ),
        Scenario(
            "gradient_norms",
            "plain",
            {"gradients": RNG.normal(size=(N, 11))},
            lambda a: g.gradient_norms(a["gradients"]),
            lambda gradients: np.linalg.norm(np.asarray(gradients, np.float64), axis=1),
        ),
    ]
    for kind in ("gaussian", "rademacher", "sparse", "hadamard"):
        sketch = JLSketch(13, 5, kind=kind, seed=3)
        out.append(
            Scenario(
                "project",
                kind,
                {"x": RNG.normal(size=(2, 4, 13))},
                lambda a, sketch=sketch: g.project(a["x"], sketch),
                lambda x, sketch=sketch: x @ oracles.sketch_matrix(sketch).T,
            )
        )
    out += [
        Scenario(
            "Moments.from_batch",
            "masked",
            {**scores, "where": np.arange(301) % 5 > 0},
            lambda a: Moments.from_batch(a["scores"], where=a["where"])[:10],
            lambda scores, where: tuple(oracles.moments(scores, where)),
            "accumulator",
        ),
        Scenario(
            "Moments.merge",
            "halves",
            halves,
            lambda a: Moments.from_batch(a["first"]).merge(Moments.from_batch(a["second"]))[:10],
            lambda first, second: tuple(oracles.moments(np.concatenate([first, second]))),
            "accumulator",
        ),
        Scenario(
            "gwa_score", "plain", scores, lambda a: g.gwa_score(a["scores"]), oracles_gwa, slack=20
        ),
        Scenario(
            "summarize",
            "beta",
            scores,
            lambda a: g.summarize(a["scores"], beta=1.5),
            lambda scores: tuple(oracles.summary(scores, 1.5)),
            slack=20,
        ),
        *(
            Scenario(
                "signal_standard_error",
                signal,
                scores,
                lambda a, signal=signal: g.signal_standard_error(a["scores"], signal=signal),
                lambda scores, signal=signal: oracles.signal_standard_error(scores, signal),
                slack=20,
            )
            for signal in ("separation", "bimodality")
        ),
        Scenario(
            "exponential_window",
            "two",
            halves,
            lambda a: g.exponential_window(
                g.exponential_window(Moments.empty(a["first"]), a["first"], decay=0.5),
                a["second"],
                decay=0.5,
            )[:10],
            lambda first, second: tuple(
                oracles.exponential_window([first[np.isfinite(first)], second], 0.5)
            ),
            "accumulator",
        ),
        Scenario(
            "glass_delta",
            "plain",
            {"online": SCORES[10:200], "offline": SCORES[20:]},
            lambda a: g.glass_delta(a["online"], a["offline"]),
            oracles.glass_delta,
            "accumulator",
        ),
        Scenario(
            "rank_samples",
            "highest",
            scores,
            lambda a: g.rank_samples(a["scores"], k=20, order="highest"),
            lambda scores: np.array(oracles.rank(scores, 20, "highest")),
            "index",
        ),
        Scenario(
            "rank_samples(per_class=True)",
            "lowest",
            {**scores, "targets": GROUPS},
            lambda a: g.rank_samples(a["scores"], k=8, targets=a["targets"], per_class=True),
            lambda scores, targets: np.array(
                [oracles.rank(np.where(targets == c, scores, np.nan), 8) for c in range(3)]
            ),
            "index",
        ),
        Scenario(
            "label_quality",
            "separation",
            {"history": HISTORY},
            lambda a: g.label_quality(a["history"]),
            oracles.label_quality,
        ),
        Scenario(
            "label_quality",
            "weights",
            {"history": HISTORY},
            lambda a: g.label_quality(a["history"], weights=WEIGHTS),
            lambda history: oracles.label_quality(history, weights=WEIGHTS),
        ),
        Scenario(
            "LabelQuality",
            "epochs",
            {"history": HISTORY},
            lambda a: label_quality_by_epochs(a["history"]),
            oracles.label_quality,
        ),
        Scenario(
            "update_share",
            "later",
            {"log_total": np.asarray(-8.5), "value": np.asarray(0.4375)},
            lambda a: g.update_share(a["log_total"], a["value"]),
            oracles.update_share,
            slack=20,
        ),
        Scenario(
            "update_share",
            "first",
            {"log_total": np.asarray(-np.inf), "value": np.asarray(0.4375)},
            lambda a: g.update_share(a["log_total"], a["value"], power=2.0),
            lambda log_total, value: oracles.update_share(log_total, value, 2),
            slack=20,
        ),
    ]
    return out


def label_quality_by_epochs(history):
    """Label quality without the stacked history."""
    quality = g.LabelQuality(history.shape[1])
    for t in range(history.shape[0]):
        quality.update(history[t, ...], g.summarize(history[t, ...]))
    return quality.value


def oracles_gwa(scores: np.ndarray) -> float:
    """GWA alone."""
    return oracles.gwa(scores)


SCENARIOS = (*_head_scenarios(), *_vector_scenarios())
