"""A training step on a GPU with the monitor, beside one without.

Needs PyTorch with Triton on an NVIDIA GPU, and timm.
"""

from __future__ import annotations

import copy
import statistics
import warnings
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.bench_gpu import extra_mb, launches, milliseconds, on_device
from benchmarks.pairs import report
from gwa_torch import GWAMonitor


class Training:
    """A ViT-S/16 on images that are on the device already: bf16, compiled, AdamW."""

    def __init__(self, model: Any, images: Any, labels: Any, each_step: Any = None) -> None:
        self.model = model
        self.compiled = torch.compile(model)
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        self.images, self.labels, self.each_step = images, labels, each_step

    def step(self) -> None:
        """Train on the batch once."""
        with torch.autocast("cuda", torch.bfloat16):
            logits = self.compiled(self.images)
            loss = F.cross_entropy(logits, self.labels)
        loss.backward()
        if self.each_step is not None:
            self.each_step(logits.detach())
        self.optimizer.step()
        self.optimizer.zero_grad()


def in_turn(runs: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each step of each run, taken in turn without waiting."""
    marks: dict[str, list[Any]] = {way: [] for way in runs}
    for turn in range(rounds):
        # Each goes first equally often: a step after another's is not like one after its own.
        for way in sorted(runs, reverse=bool(turn % 2)):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            runs[way].step()
            end.record()
            marks[way].append((begin, end))
    torch.cuda.synchronize()
    return {way: [a.elapsed_time(b) for a, b in pairs] for way, pairs in marks.items()}


def added_by_the_monitor(head: Any, monitor: Any, labels: Any, ids: Any) -> float:
    """Return the milliseconds on the device that hook and update add to a pass of the head."""
    latents = torch.randn(len(labels), head.in_features, device="cuda")

    def watched() -> None:
        head(latents)
        monitor.update(labels, ids)

    def alone() -> None:
        with monitor.pause():
            head(latents)

    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        return on_device(watched) - on_device(alone)


def ratio(alone: list[float], other: list[float]) -> tuple[float, float]:
    """Return the median of paired ratios of speed and its standard error."""
    ratios = sorted(a / b for a, b in zip(alone, other, strict=True))
    n = len(ratios)
    spread = ratios[int(0.84 * n)] - ratios[int(0.16 * n)]
    return statistics.median(ratios), 1.25 * spread / 2 / n**0.5


def training_rows(rounds: int = 400, batch: int = 512) -> dict[str, Any]:
    """Time training steps in turn: alone, and with each way to the residual."""
    import timm

    torch.set_float32_matmul_precision("high")
    # Copies of one model in one process, of which only some have a hook.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 224, 224, device="cuda").bfloat16()
    labels = torch.randint(1000, (batch,), device="cuda")
    ids = torch.arange(batch, device="cuda")
    model = timm.create_model("vit_small_patch16_224").cuda()
    watched, differentiated = (copy.deepcopy(model) for _ in range(2))
    monitor = GWAMonitor(watched.head, 1_281_167)
    backward = GWAMonitor(differentiated.head, 1_281_167, residual="backward")
    runs = {
        "alone": Training(model, images, labels),
        "with the monitor": Training(
            watched, images, labels, lambda _: monitor.update(labels, ids)
        ),
        "with the monitor, residual='backward'": Training(
            differentiated, images, labels, lambda _: backward.update(labels, ids)
        ),
    }
    name = f"ViT-S/16, batch {batch}, bf16, compiled"
    rows: dict[str, Any] = {}
    for way, run in runs.items():
        for _ in range(4):
            run.step()
        rows[f"{name}: peak MB in a step, {way}"] = extra_mb(run.step)
    rows[f"{name}: kernels more with the monitor"] = launches(
        runs["with the monitor"].step
    ) - launches(runs["alone"].step)
    for way in list(runs)[1:]:
        times = in_turn({"alone": runs["alone"], way: runs[way]}, rounds)
        speed, error = ratio(times["alone"], times[way])
        step = statistics.median(times["alone"])
        rows[f"{name}: images/s, alone"] = 1e3 * batch / step
        rows[f"{name}: images/s, {way} / alone"] = speed
        rows[f"{name}: standard error of that, {way}"] = error
    added = added_by_the_monitor(watched.head, monitor, labels, ids)
    rows[f"{name}: ms a step"] = step
    rows[f"{name}: ms on the device added by hook and update"] = added
    rows[f"{name}: images/s by that, with the monitor / alone"] = step / (step + added)
    model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        forward = milliseconds(lambda: runs["alone"].compiled(images), 1000)
    rows[f"{name}: images/s of an epoch with a 1 % validation pass / alone"] = step / (
        step + 0.01 * forward
    )
    for way, one in {"with the monitor": monitor, "residual='backward'": backward}.items():
        summary = one.end_epoch()
        rows[f"{name}: scores of {batch}, {way}"] = [summary.count, summary.omitted, one.residual]
    return rows


def main() -> None:
    """Measure and report."""
    warnings.filterwarnings("ignore")
    rows = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    report("training", rows | training_rows())


if __name__ == "__main__":
    main()
