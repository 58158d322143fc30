"""γ on a GPU beside what a user would use instead; see README.md for the rows.

Needs PyTorch with Triton on an NVIDIA GPU, torchmetrics, and aum.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.pairs import report
from gwa_core import alignment_from_logits
from gwa_torch import frobenius_norm, head_scores
from gwa_torch.scoring import gradient_scores

SIZES = {"N=4096 C=21841 D=768": (4096, 21841, 768), "N=1024 C=1000 D=384": (1024, 1000, 384)}


def paper_formula(logits: Any, latents: Any, weight: Any, targets: Any) -> Any:
    """Algorithm 1 as one writes it down; the (N, C, D) gradient is already spared."""
    probabilities = torch.softmax(logits, dim=1)
    onehot = F.one_hot(targets, logits.shape[1])
    residual = onehot - probabilities
    inner = (residual * logits).sum(dim=1)
    return inner / (residual.norm(dim=1) * latents.norm(dim=1) * weight.norm())


def eager_core(logits: Any, latents: Any, weight: Any, targets: Any) -> Any:
    """Run the core on PyTorch tensors, operation by operation."""
    return alignment_from_logits(
        logits=logits,
        latent_norms=latents.norm(dim=1),
        weight_norm=frobenius_norm(weight),
        targets=targets,
    )


def vmap_grad(latents: Any, weight: Any, targets: Any, chunk: int) -> Any:
    """Per-sample gradients of the head by torch.func, in pieces that fit the memory."""

    def loss(w: Any, z: Any, t: Any) -> Any:
        return F.cross_entropy((z @ w.T)[None], t[None])

    def score(w: Any, z: Any, t: Any) -> Any:
        return -F.cosine_similarity(torch.func.grad(loss)(w, z, t).ravel(), w.ravel(), dim=0)

    return torch.func.vmap(score, (None, 0, 0), chunk_size=chunk)(weight, latents, targets)


def milliseconds(function: Any, repeats: int = 300) -> float:
    """Return the median time of a call on the device; the caches are flushed in between."""
    import triton

    return float(triton.testing.do_bench(function, warmup=25, rep=repeats, return_mode="median"))


def on_device(function: Any) -> float:
    """Return the median time of a call without the time Python needs to launch it.

    In a training loop the launches of a step are hidden behind the work of the one before.
    """
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return milliseconds(graph.replay)


def copy_bandwidth() -> float:
    """Return the TB/s, read and written, of a large copy on the device."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) / 1e9


def extra_mb(function: Any) -> float:
    """Return the peak memory that a call adds."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def launches(function: Any) -> int:
    """Return the number of kernels that a call launches."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    return sum(
        event.count
        for event in profiler.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA and "Mem" not in event.key
    )


def once(function: Any) -> float:
    """Return the milliseconds of one call, for what is too slow to repeat."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e3


def scores_rows(bandwidth: float) -> dict[str, Any]:
    """Time γ of a batch whose logits are there."""
    from torchmetrics.classification import MulticlassAccuracy

    rows: dict[str, Any] = {}
    for name, (n, c, d) in SIZES.items():
        torch.manual_seed(0)
        weight = torch.randn(c, d, device="cuda") / d**0.5
        latents = torch.randn(n, d, device="cuda")
        targets = torch.randint(c, (n,), device="cuda")
        logits = latents @ weight.T
        norm = frobenius_norm(weight)
        accuracy = MulticlassAccuracy(c, average="micro", validate_args=False).cuda()
        ours = partial(
            head_scores, logits=logits, latents=latents, weight_norm=norm, targets=targets
        )
        paper = partial(paper_formula, logits, latents, weight, targets)
        gradients = torch.randn_like(logits) / n
        ways = {
            "ours": ours,
            "ours, from the gradient": partial(
                gradient_scores, gradients, logits, latents, norm, None
            ),
            "paper's formula": paper,
            "paper's formula, torch.compile": partial(
                torch.compile(paper_formula), logits, latents, weight, targets
            ),
            "the core, eager": partial(eager_core, logits, latents, weight, targets),
            "torchmetrics accuracy": partial(accuracy.update, logits, targets),
        }
        floor = (logits.nbytes + latents.nbytes) / bandwidth / 1e9
        times = {way: on_device(call) for way, call in ways.items()}
        rows |= {f"{name}: ms, {way}": value for way, value in times.items()}
        rows |= {
            f"{name}: ms with its launch, {way}": milliseconds(call) for way, call in ways.items()
        }
        rows |= {
            f"{name}: ms, vmap(grad) on the head": once(
                partial(vmap_grad, latents, weight, targets, max(1, (1 << 32) // (c * d)))
            ),
            f"{name}: ms, bytes / copy bandwidth": floor,
            f"{name}: ours / floor": times["ours"] / floor,
            f"{name}: from the gradient / floor": times["ours, from the gradient"]
            / (floor + gradients.nbytes / bandwidth / 1e9),
            f"{name}: times faster than the paper's formula": times["paper's formula"]
            / times["ours"],
            f"{name}: kernels, ours": launches(ours),
            f"{name}: kernels, paper's formula": launches(paper),
        }
        rows |= {f"{name}: extra MB, {way}": extra_mb(call) for way, call in ways.items()}
        rows[f"{name}: largest difference to the paper's formula"] = float(
            (ours() - paper()).abs().max()
        )
        if n == 1024 and importlib.util.find_spec("aum"):
            rows[f"{name}: ms, aum"] = aum_time(logits, targets)
    return rows


def aum_time(logits: Any, targets: Any) -> float:
    """Time what the area-under-margin package does for a batch."""
    from aum import AUMCalculator

    ids = list(range(len(targets)))
    call = partial(AUMCalculator("/tmp", compressed=True).update, logits, targets, ids)  # noqa: S108
    once(call)
    return once(call)


def language_rows() -> dict[str, Any]:
    """Time γ of a language-model head without its logits."""
    n, c, d = 8192, 128_000, 4096
    torch.manual_seed(0)
    weight = (torch.randn(c, d, device="cuda") / d**0.5).bfloat16()
    latents = torch.randn(n, d, device="cuda").bfloat16()
    targets = torch.randint(c, (n,), device="cuda")
    ours = partial(head_scores, latents=latents, weight=weight, targets=targets)

    def with_logits() -> Any:
        return paper_formula((latents @ weight.T).float(), latents.float(), weight, targets)

    name = f"head of a language model, {n} tokens, D={d}, C={c}, bfloat16"
    rows = {
        f"{name}: extra MB, ours": extra_mb(ours),
        f"{name}: extra MB, logits and the paper's formula": extra_mb(with_logits),
        f"{name}: ms, ours": milliseconds(ours, 600),
        f"{name}: ms, logits and the paper's formula": milliseconds(with_logits, 600),
        f"{name}: ms, the product with the weight alone": milliseconds(
            lambda: latents @ weight.T, 600
        ),
        f"{name}: largest difference": float((ours() - with_logits()).abs().max()),
    }
    rows[f"{name}: ours / product"] = (
        rows[f"{name}: ms, ours"] / rows[f"{name}: ms, the product with the weight alone"]
    )
    return rows


def main() -> None:
    """Measure and report."""
    warnings.filterwarnings("ignore")
    rows: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    bandwidth = rows["copy bandwidth, TB/s"] = copy_bandwidth()
    for part in (partial(scores_rows, bandwidth), language_rows):
        rows |= part()
        torch.cuda.empty_cache()
        report("gpu", rows)


if __name__ == "__main__":
    main()
