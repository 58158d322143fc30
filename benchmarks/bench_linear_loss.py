"""Loss, gradients and scores of a language model's head beside what a user would use instead.

Forward and backward pass in bfloat16 on an NVIDIA GPU, a miniature in float32 on a CPU. The others
make no scores. Those that are not installed are left out: `F.linear_cross_entropy` came with
PyTorch 2.13, Liger is the package liger-kernel.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
import warnings
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.pairs import report
from gwa_torch import _linear_memory, head_scores, linear_cross_entropy

GPU = torch.cuda.is_available()

# A miniature does not take the place of what was measured.
RESULT = "linear_loss" if GPU else "linear_loss_miniature"

# N, D, C; dtype; repeats.
SIZE = (8192, 4096, 128_000) if GPU else (1024, 256, 8000)
DTYPE = torch.bfloat16 if GPU else torch.float32
REPEATS = 25 if GPU else 5

OURS = "linear_cross_entropy"
BLOCKS_MIB = (32, 64, 96, 128, 256, 512) if GPU else (4, 32)


def plain(latents: Any, weight: Any, targets: Any) -> Any:
    """Keep the whole logits, as everybody writes it."""
    return F.cross_entropy(F.linear(latents, weight), targets)


def plain_and_scores(latents: Any, weight: Any, targets: Any) -> Any:
    """Do the same, and score the logits that are there."""
    logits = F.linear(latents, weight)
    head_scores(latents=latents, logits=logits, weight=weight, targets=targets)
    return F.cross_entropy(logits, targets)


def ours(latents: Any, weight: Any, targets: Any) -> Any:
    """Make loss, gradients and scores in one pass."""
    return linear_cross_entropy(latents, weight, targets)[0]


def others() -> dict[str, Any]:
    """Return the fused losses that are installed."""
    ways: dict[str, Any] = {}
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        ways["F.linear_cross_entropy"] = partial(F.linear_cross_entropy, options=options)
    if GPU and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction,
        )

        def liger(latents: Any, weight: Any, targets: Any) -> Any:
            made = LigerFusedLinearCrossEntropyFunction.apply(latents, weight, targets)
            return made[0] if isinstance(made, tuple) else made

        ways["Liger"] = liger
    return ways


def head() -> tuple[Any, Any, Any]:
    """Return latents, weight and targets."""
    n, d, c = SIZE
    device = "cuda" if GPU else "cpu"
    torch.manual_seed(0)
    latents = torch.randn(n, d, device=device).to(DTYPE).requires_grad_()
    weight = (torch.randn(c, d, device=device) / d**0.5).to(DTYPE).requires_grad_()
    return latents, weight, torch.randint(c, (n,), device=device)


def step(loss: Any, latents: Any, weight: Any, targets: Any) -> None:
    """Run a forward and a backward pass; the gradients go away."""
    loss(latents, weight, targets).backward()
    latents.grad = weight.grad = None


def products(latents: Any, weight: Any, made: Any) -> None:
    """Multiply what any of them multiplies; the logits stand for their gradient."""
    torch.mm(latents, weight.T, out=made)
    torch.mm(made, weight)
    torch.mm(made.T, latents)


def milliseconds(call: Any) -> float:
    """Return the time of one call."""
    if not GPU:
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def in_turn(calls: dict[str, Any], repeats: int) -> dict[str, float]:
    """Return the median time of each call, made in turn so that all meet the same weather."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    return {name: statistics.median(some) for name, some in times.items()}


def extra_mb(call: Any) -> float:
    """Return the peak memory of the device that a call adds, gradients included.

    Not counted is the workspace of the products, which whoever comes first allocates for all.
    """
    call()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def errors(losses: dict[str, Any], latents: Any, weight: Any, targets: Any) -> dict[str, float]:
    """Return how far the gradient of the weight is from that of the plain loss in wider numbers."""
    wide = torch.float32 if GPU else torch.float64
    z, w = (x.detach().to(wide).requires_grad_() for x in (latents, weight))
    (wanted,) = torch.autograd.grad(plain(z, w, targets), w)
    del z, w
    found = {}
    for name, loss in losses.items():
        (got,) = torch.autograd.grad(loss(latents, weight, targets), weight)
        found[name] = float((got.to(wide) - wanted).norm() / wanted.norm())
    return found


def main() -> None:
    """Measure and report."""
    warnings.filterwarnings("ignore")
    latents, weight, targets = head()
    losses = {
        OURS: ours,
        "plain logits": plain,
        "plain logits and head_scores": plain_and_scores,
        **others(),
    }
    calls = {way: partial(step, loss, latents, weight, targets) for way, loss in losses.items()}
    n, d, c = SIZE
    name = f"{n} tokens, D={d}, C={c}, {str(DTYPE).removeprefix('torch.')}"
    rows: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if GPU else "cpu",
        "torch": torch.__version__,
    }
    memory = {way: extra_mb(call) for way, call in calls.items()} if GPU else {}
    made = torch.empty(n, c, dtype=DTYPE, device=latents.device)
    z, w = latents.detach(), weight.detach()
    times = in_turn({**calls, "the three products alone": partial(products, z, w, made)}, REPEATS)
    del made
    rows |= {f"{name}: ms, {way}": value for way, value in times.items()}
    rows |= {f"{name}: extra MB, {way}": value for way, value in memory.items()}
    beside = [way for way in losses if way not in (OURS, "plain logits and head_scores")]
    rows[f"{name}: time / the fastest other"] = times[OURS] / min(times[way] for way in beside)
    if GPU:
        rows[f"{name}: memory / the smallest other"] = memory[OURS] / min(
            memory[way] for way in beside
        )
    report(RESULT, rows)
    chosen = _linear_memory.BLOCK_BYTES
    for mib in BLOCKS_MIB:
        _linear_memory.BLOCK_BYTES = mib * 2**20
        rows[f"{name}: ms, blocks of {mib} MiB"] = in_turn({OURS: calls[OURS]}, REPEATS)[OURS]
        if GPU:
            rows[f"{name}: extra MB, blocks of {mib} MiB"] = extra_mb(calls[OURS])
    _linear_memory.BLOCK_BYTES = chosen
    with torch.no_grad():
        forward = {
            OURS: partial(ours, z, w, targets),
            "plain logits": partial(plain, z, w, targets),
        }
        times = in_turn(forward, REPEATS)
    rows |= {f"{name}: ms, forward alone, {way}": value for way, value in times.items()}
    rows |= {
        f"{name}: relative error of the weight's gradient, {way}": value
        for way, value in errors(losses, latents, weight, targets).items()
    }
    report(RESULT, rows)


if __name__ == "__main__":
    main()
