"""What the processes of the distributed tests do; also run in one process, to compare with."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from models import batch, head_oracle, network
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from gwa_core import EarlyStopper, EpochAverage, MaxSeparation, average_shares
from gwa_core.signals import SIGNALS, margin
from gwa_torch import AveragedWeights, GWAMonitor, head_scores

SAMPLES, BATCH, EPOCHS = 53, 8, 4
STREAMED = [name for name, signal in SIGNALS.items() if "ids" not in signal.needs]


def begin(rank: int, world: int, folder: str, work: str, backend: str = "gloo") -> None:
    """Join the group, do the named work, and leave the result in a file."""
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    try:
        torch.save(globals()[work](rank, world), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def begin_each(rank: int, world: int, folder: str, works: list[str]) -> None:
    """Do several works one after the other, each in a group and a folder of its own."""
    for work in works:
        begin(rank, world, f"{folder}/{work}", work)


def shards(world: int, epoch: int, *, padded: bool) -> list[list[list[int]]]:
    """The batches of each rank: padded by PyTorch's sampler, or with one sample less on one."""
    data = range(SAMPLES)
    if padded:
        samplers = [DistributedSampler(data, world, rank, seed=3) for rank in range(world)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        drawn = [list(sampler) for sampler in samplers]
    else:
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch)).tolist()
        drawn = [order[rank::world] for rank in range(world)]
    return [[ids[i : i + BATCH] for i in range(0, len(ids), BATCH)] for ids in drawn]


def train(
    rank: int | None,
    world: int,
    *,
    padded: bool,
    by_id: bool,
    interrupted: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train on a shard, or with rank None on all shards in one process."""
    model = network().to(device)
    x, y = (t.to(device) for t in batch(SAMPLES))
    wrapped: Any = model if rank is None else DistributedDataParallel(model)
    options: Any = {"num_samples": SAMPLES if by_id else None}
    options["signals"] = SIGNALS if by_id else STREAMED
    monitor = GWAMonitor(model.head, **options)
    stopper = EarlyStopper(MaxSeparation(warmup=0, patience=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scores, decisions, values, quality, predictions = [], [], [], [], []
    # Predictions are kept for a run folder, from the first that is written.
    folder = tempfile.TemporaryDirectory()
    for epoch in range(EPOCHS):
        every = shards(world, epoch, padded=padded)
        mine = every if rank is None else [every[rank]]
        for step, parts in enumerate(zip(*mine, strict=True)):
            # The mean over the ranks of the mean over their samples: what DDP computes.
            losses = [F.cross_entropy(wrapped(x[part]), y[part]) for part in parts]
            torch.stack(losses).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            # As a distributed sampler deals them out.
            ids = torch.tensor([i for part in parts for i in part])
            monitor.update(y[ids], ids if by_id else None)
            if interrupted and (epoch, step) == (2, 1):
                monitor.synchronize()
                shared: list[Any] = [monitor.state_dict() if rank == 0 else None]
                dist.broadcast_object_list(shared)
                monitor.close()
                monitor = GWAMonitor(model.head, **options)
                monitor.load_state_dict(shared[0])
        summary = monitor.end_epoch()
        stopper.observe(summary)
        scores.append(monitor.scores)
        quality.append(monitor.label_quality)
        decisions.append((stopper.should_stop, stopper.best_step))
        values.append(monitor.signals.values if by_id else {})
        monitor.save(folder.name)
        predictions.append(monitor._keeper.predictions)
    folder.cleanup()
    history = [tuple(summary) for summary in monitor.history]
    signals = [*monitor.signals.history, *values, monitor.signals.over_epochs if by_id else {}]
    signals = [{name: torch.as_tensor(x) for name, x in one.items()} for one in signals]
    return {
        "history": history,
        "scores": scores,
        "quality": quality,
        "decisions": decisions,
        "signals": signals,
        "predictions": predictions,
    }


def padded_ids(rank: int | None, world: int) -> Any:
    """PyTorch's sampler pads; ids make the padding count once."""
    return train(rank, world, padded=True, by_id=True)


def padded_nccl(rank: int, world: int) -> Any:
    """The same on GPUs."""
    return train(rank, world, padded=True, by_id=True, device=f"cuda:{rank}")


def streamed_nccl(rank: int, world: int) -> Any:
    """Moments on GPUs, merged."""
    return train(rank, world, padded=False, by_id=False, device=f"cuda:{rank}")


def uneven_ids(rank: int | None, world: int) -> Any:
    """The last batch of one rank is smaller."""
    return train(rank, world, padded=False, by_id=True)


def uneven_stream(rank: int | None, world: int) -> Any:
    """Without ids, moments are merged."""
    return train(rank, world, padded=False, by_id=False)


def resumed_ids(rank: int, world: int) -> Any:
    """The state of the first rank, taken in the middle of an epoch, serves all ranks."""
    return train(rank, world, padded=True, by_id=True, interrupted=True)


def resumed_stream(rank: int, world: int) -> Any:
    """The same with moments alone."""
    return train(rank, world, padded=False, by_id=False, interrupted=True)


def idle_rank(rank: int, world: int) -> Any:
    """A rank without a single sample takes part in the end of the epoch."""
    model = network()
    x, y = batch()
    out = []
    for num_samples in (12, None):
        monitor = GWAMonitor(model.head, num_samples, signals="margin")
        if rank == 0:
            model(x)
            monitor.update(y, torch.arange(12) if num_samples else None)
        out.append(tuple(monitor.end_epoch()))
        try:
            monitor.end_epoch()
        except ValueError as error:
            out.append(str(error))
        out.append(monitor.signals.history)
        monitor.close()
    return out


def sequences(rank: int | None, world: int) -> Any:
    """Rows of tokens by rank, one of them cut over both; then an epoch in which a rank is idle."""
    model, out = network(torch.float64), []
    x, y = batch(24)
    x, y = x.double().reshape(6, 4, -1), y.reshape(6, 4)
    # The last two are the halves of one row.
    ids = torch.tensor([0, 1, 2, 3, 4, 4])
    for reduce in ("mean", "min", "gradient"):
        monitor = GWAMonitor(model.head, 5, reduce=reduce, residual="formula")
        for epoch in range(2):
            for row in range(6):
                if rank is None or rank == (row % world if epoch == 0 else 0):
                    model(x[row : row + 1])
                    monitor.update(y[row : row + 1], ids[row : row + 1])
                if row == 2:
                    # The state of any rank is then that of all.
                    monitor.synchronize()
                    state = monitor.state_dict()
                    monitor.load_state_dict(state)
            summary = monitor.end_epoch()
            out.append((summary.count, summary.mean, monitor.scores, monitor.label_quality))
        monitor.close()
    return out


def widened(rank: int, world: int) -> Any:
    """One process sees half of the samples, and all ranks go on from its state."""
    model = network()
    x, y = batch()
    alone = [torch.distributed.new_group([one]) for one in range(world)]
    out = []
    for num_samples in (12, None):
        state = None
        for ids, group in (
            (torch.arange(6), alone[rank]),
            (6 + torch.arange(rank, 6, world), None),
        ):
            monitor = GWAMonitor(model.head, num_samples, signals="margin", process_group=group)
            if state is not None:
                monitor.load_state_dict(state)
            for part in ids.split(2):
                model(x[part])
                monitor.update(y[part], part if num_samples else None)
            state = monitor.state_dict()
        out.append((tuple(monitor.end_epoch()), monitor.signals.history[0]["margin"]))
    with torch.no_grad():
        margins = margin(logits=model(x), targets=y)
    return out, float(margins.mean())


def shared_samples(rank: int, world: int) -> Any:
    """Each rank sees all samples, in batches of its own size."""
    model = network(seed=rank)  # so that one can see whose values they are
    x, y = batch()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(rank))
    monitor = GWAMonitor(model.head, 12, signals="margin")
    for ids in order.split(3 + 2 * rank):
        model(x[ids])
        monitor.update(y[ids], ids)
    monitor.end_epoch()
    with torch.no_grad():
        latents = model.body(x)
        logits = model.head(latents)
    head = {"weight": model.head.weight, "bias": model.head.bias}
    own = {
        "scores": head_scores(latents=latents, targets=y, logits=logits, **head),
        "margin": margin(logits=logits, targets=y),
        "order": order,
    }
    return own, {"scores": monitor.scores, "margin": torch.tensor(monitor.signals.values["margin"])}


def disagreeing(rank: int, world: int) -> Any:
    """Ranks that give the size of their own part are told so, and nobody waits for nobody."""
    monitor = GWAMonitor(network().head, 12 + rank)
    try:
        monitor.end_epoch()
    except ValueError as error:
        return str(error)


def fsdp(rank: int, world: int) -> Any:
    """`fully_shard` before or after the monitor, with or without a group of the head's own."""
    from torch.distributed.fsdp import fully_shard

    out = []
    for first, shard_head in itertools.product((True, False), (True, False)):
        model = network()
        x, y = batch()
        reference = network()
        monitor = GWAMonitor(model.head, 12) if first else None
        if shard_head:
            fully_shard(model.head)
        fully_shard(model)
        monitor = monitor or GWAMonitor(model.head, 12)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(2):
            state = {k: v.full_tensor() for k, v in model.state_dict().items()}
            reference.load_state_dict(state)
            want = head_oracle(reference, x, y)
            part = slice(rank * 6, rank * 6 + 6)
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.update(y[part], torch.arange(12)[part])
            monitor.end_epoch()
            out.append((monitor.scores, want))
        monitor.close()
    return out


def averaged_weights(rank: int, world: int) -> Any:
    """The average of the weights, replicated by DDP and where shards of FSDP2 lie."""
    from torch.distributed.fsdp import fully_shard

    history = [{"separation": value} for value in (0.3, 0.5, 0.4)]
    found = []
    for shard in (False, True):
        model = network()
        x, y = batch()
        wrapped: Any = fully_shard(model) if shard else DistributedDataParallel(model)
        averaged, kept = AveragedWeights(wrapped, EpochAverage(warmup=0)), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        part = slice(rank * 6, rank * 6 + 6)
        for record in history:
            F.cross_entropy(wrapped(x[part]), y[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
            averaged.update(record)
            kept.append({name: _whole(p) for name, p in model.named_parameters()})
        resumed = AveragedWeights(wrapped, EpochAverage(warmup=0))
        resumed.load_state_dict(averaged.state_dict())
        shares = average_shares(history, warmup=0)
        want = {
            name: sum(share * one[name] for share, one in zip(shares, kept, strict=True))
            for name in kept[0]
        }
        for one in (averaged, resumed):
            with one.applied():
                got = {name: _whole(p) for name, p in model.named_parameters()}
            found.append((got, want))
        back = {name: _whole(p) for name, p in model.named_parameters()}
        found.append((back, kept[-1]))
    return found


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    full = getattr(parameter, "full_tensor", lambda: parameter)()
    return full.detach().clone()


# For the page of what is right under what.
WORKS = {
    "DDP with a padding sampler": padded_ids,
    "DDP, uneven last batches": uneven_ids,
    "DDP without ids": uneven_stream,
    "resumed in mid-epoch": resumed_ids,
    "resumed in mid-epoch, without ids": resumed_stream,
    "a state of one process": widened,
    "an idle rank": idle_rank,
    "scores of sequences": sequences,
    "samples on several ranks": shared_samples,
    "ranks that disagree in `num_samples`": disagreeing,
    "FSDP2": fsdp,
    "average of the weights, DDP and FSDP2": averaged_weights,
}
