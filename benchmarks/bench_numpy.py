"""γ in NumPy from logits, N = 50,000, C = 1,000, beside the paper's formula."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np

from benchmarks.pairs import best_of, report
from gwa_core import alignment_from_logits

N, C = 50_000, 1_000
WEIGHT_NORM = 1000.0  # such that no cosine of these made-up logits leaves [-1, 1]


def paper_formula(
    logits: Any, latent_norms: Any, weight_norm: float, targets: Any, dtype: Any = None
) -> Any:
    """Algorithm 1 as one writes it down: softmax less one-hot, then the cosine.

    The (N, C, D) gradient is already spared here, as in ours.
    """
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    residual = np.eye(logits.shape[1], dtype=dtype)[targets] - probabilities
    inner = (residual * logits).sum(axis=1)
    return inner / (np.linalg.norm(residual, axis=1) * latent_norms * weight_norm)


def main() -> None:
    """Measure and report."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((N, C), dtype=np.float32)
    latent_norms = (1 + rng.random(N)).astype(np.float32)
    targets = rng.integers(0, C, N)

    def ours() -> Any:
        return alignment_from_logits(
            logits=logits, latent_norms=latent_norms, weight_norm=WEIGHT_NORM, targets=targets
        )

    def paper() -> Any:
        return paper_formula(logits, latent_norms, WEIGHT_NORM, targets)

    def paper_float32() -> Any:
        return paper_formula(logits, latent_norms, np.float32(WEIGHT_NORM), targets, np.float32)

    times = best_of({"ours": ours, "paper": paper, "paper float32": paper_float32}, 7)
    memory = {}
    for name, function in {"ours": ours, "paper": paper}.items():
        tracemalloc.start()
        function()
        memory[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    report(
        "numpy",
        {
            "seconds, ours": times["ours"],
            "seconds, paper's formula": times["paper"],
            "seconds, paper's formula kept in float32 by hand": times["paper float32"],
            "times faster (must be 8 or more)": times["paper"] / times["ours"],
            "times faster than float32 by hand": times["paper float32"] / times["ours"],
            "peak extra MB, ours (must be 64 or less)": memory["ours"] / 1e6,
            "peak extra MB, paper's formula": memory["paper"] / 1e6,
            "largest difference": float(np.abs(ours() - paper()).max()),
        },
    )
