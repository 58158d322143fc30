"""The average of the weights at the end of an epoch, beside PyTorch's own; on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.pairs import best_of, report
from gwa_torch import AveragedWeights, EpochAverage

WIDTH, LAYERS = 1024, 10  # 10.5 million parameters
RECORD = {"separation": 0.3}


def averaging_rows() -> dict[str, Any]:
    """Time `update` and count the memory, in turn with an exponential mean of `swa_utils`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))).to(device)
    count = sum(p.numel() for p in model.parameters())
    averaged = AveragedWeights(model, EpochAverage(warmup=0))
    for _ in range(2):
        averaged.update(RECORD)
    other = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(2):
        other.update_parameters(model)

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def ours() -> None:
        averaged.update(RECORD)
        synchronize()

    def theirs() -> None:
        other.update_parameters(model)
        synchronize()

    best = best_of({"ours": ours, "theirs": theirs}, 50)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    rows: dict[str, Any] = {"device": name, "torch": torch.__version__, "parameters": count}
    rows["update, ms"] = 1e3 * best["ours"]
    rows["update, ms for 10 M parameters"] = 1e3 * best["ours"] * 1e7 / count
    rows["update / AveragedModel.update_parameters"] = best["ours"] / best["theirs"]
    kept = sum(x.numel() * x.element_size() for x in averaged.state_dict()["mean"].values())
    rows["bytes kept / bytes of the weights"] = kept / (4 * count)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ours()
        rows["further bytes while it runs"] = torch.cuda.max_memory_allocated() - before
    return rows


def main() -> None:
    """Measure and report."""
    on = "gpu" if torch.cuda.is_available() else "cpu"
    report(f"averaging_{on}", averaging_rows())


if __name__ == "__main__":
    main()
