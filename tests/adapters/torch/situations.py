"""Where the monitor must be right: each situation trains, and returns its scores and the oracle's.

Each is run by the defaults of the monitor and with `residual="backward"`. The documentation makes its table from this list.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from models import CLASSES, FEATURES, INPUTS, batch, head_oracle, network, oracle
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from gwa_torch import GWAMonitor

STEPS = 3


class Situation(NamedTuple):
    """A way to train."""

    name: str
    about: str
    tolerance: float
    run: Callable[[str, str], list[tuple[torch.Tensor, torch.Tensor]]]
    # Why there are no scores with `residual="backward"`.
    without: str


SITUATIONS: list[Situation] = []


def situation(name: str, tolerance: float = 1e-5, *, without: str = "") -> Any:
    """Register a function of device and residual that returns pairs of scores and oracle."""

    def register(run: Any) -> Any:
        about = " ".join(run.__doc__.split())
        SITUATIONS.append(Situation(name, about, tolerance, run, without))
        return run

    return register


def steps(model: nn.Module, x: Any, train: Any, monitor: GWAMonitor, want: Any) -> list[Any]:
    """Train for some steps and compare each at its own weights; an epoch a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    pairs = []
    for _ in range(STEPS):
        expected = want()
        optimizer.zero_grad()
        train(optimizer)
        monitor.end_epoch()
        pairs.append((monitor.scores, expected.cpu()))
    monitor.close()
    return pairs


def made(device: str, rows: int = 12, **options: Any) -> tuple[Any, ...]:
    """A network, a batch and ids on a device."""
    model = network(**options).to(device)
    x, y = (t.to(device) for t in batch(rows))
    return model, x, y, torch.arange(rows, device=device)


def plain(
    device: str, residual: str, *, after: bool, call: Any = None, **options: Any
) -> list[Any]:
    """The loop that everybody writes."""
    model, x, y, ids = made(device)
    monitor = GWAMonitor(model.head, len(y), residual=residual, **options)
    forward = call(model) if call else model
    weight, smoothing = options.get("class_weights"), options.get("label_smoothing", 0.0)

    def train(optimizer: Any) -> None:
        F.cross_entropy(forward(x), y, weight=weight, label_smoothing=smoothing).backward()
        if not after:
            monitor.update(y, ids)
        optimizer.step()
        if after:
            monitor.update(y, ids)

    return steps(model, x, train, monitor, lambda: head_oracle(model, x, y, **options))


@situation("update before the step")
def before_step(device: str, residual: str) -> Any:
    """`update` between the forward pass and `optimizer.step()`."""
    return plain(device, residual, after=False)


@situation("update after the step")
def after_step(device: str, residual: str) -> Any:
    """`update` after `optimizer.step()`: logits, latents and ‖W‖ are from the forward pass."""
    return plain(device, residual, after=True)


@situation("label smoothing")
def smoothing(device: str, residual: str) -> Any:
    """`label_smoothing=` as in the loss."""
    return plain(device, residual, after=True, label_smoothing=0.1)


@situation("class weights")
def class_weights(device: str, residual: str) -> Any:
    """`class_weights=` as `weight` of the loss, with label smoothing, where they matter."""
    weights = torch.linspace(0.5, 2.0, CLASSES).to(device)
    return plain(device, residual, after=True, label_smoothing=0.1, class_weights=weights)


@situation("soft targets")
def soft_targets(device: str, residual: str) -> Any:
    """Probabilities of mixup or distillation, passed to `update` as they went into the loss."""
    model, x, y, ids = made(device)
    other = F.one_hot(y.roll(1), CLASSES)
    soft = 0.7 * F.one_hot(y, CLASSES) + 0.3 * other
    monitor = GWAMonitor(model.head, len(y), residual=residual)

    def train(optimizer: Any) -> None:
        F.cross_entropy(model(x), soft).backward()
        optimizer.step()
        monitor.update(soft, ids)

    return steps(model, x, train, monitor, lambda: head_oracle(model, x, soft))


@situation("torch.compile")
def compiled(device: str, residual: str) -> Any:
    """The monitor is made before `torch.compile`, whose graph then holds the hook."""
    torch._dynamo.reset()
    return plain(device, residual, after=True, call=torch.compile)


@situation("torch.compile, fullgraph")
def fullgraph(device: str, residual: str) -> Any:
    """`fullgraph=True`: the hook breaks no graph, and no step compiles again."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        return plain(
            device, residual, after=True, call=lambda model: torch.compile(model, fullgraph=True)
        )


@situation("torch.compile, monitor made later")
def compiled_first(device: str, residual: str) -> Any:
    """After `torch.compile(model)` but before the first call; later than that is an error."""
    torch._dynamo.reset()
    model, x, y, ids = made(device)
    forward = torch.compile(model)
    monitor = GWAMonitor(None, len(y), residual=residual, model=forward)

    def train(optimizer: Any) -> None:
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()
        monitor.update(y, ids)

    return steps(model, x, train, monitor, lambda: head_oracle(model, x, y))


@situation("torch.compile of the whole step")
def compiled_step(device: str, residual: str) -> Any:
    """`update`, or the loss of `criterion=`, inside the compiled function breaks its graph."""
    torch._dynamo.reset()
    model, x, y, ids = made(device)
    monitor = GWAMonitor(model.head, len(y), residual=residual)

    @torch.compile
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(x), y)
        monitor.update(y, ids)
        return loss

    def train(optimizer: Any) -> None:
        step(x, y).backward()
        optimizer.step()

    return steps(model, x, train, monitor, lambda: head_oracle(model, x, y))


@situation("mixed precision, bfloat16", tolerance=2e-2)
def bfloat16(device: str, residual: str) -> Any:
    """`torch.autocast`: the logits are taken from the pass, rounded as the model rounds them."""

    def call(model: Any) -> Any:
        return torch.autocast(device, torch.bfloat16)(model)

    return plain(device, residual, after=True, call=call)


@situation("mixed precision, float16 with GradScaler", tolerance=2e-3)
def float16(device: str, residual: str) -> Any:
    """Scaled losses: a factor on the gradient changes no cosine."""
    model, x, y, ids = made(device)
    scaler = torch.amp.GradScaler(device)
    monitor = GWAMonitor(model.head, len(y), residual=residual)

    def train(optimizer: Any) -> None:
        with torch.autocast(device, torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        monitor.update(y, ids)

    return steps(model, x, train, monitor, lambda: head_oracle(model, x, y))


@situation("gradient accumulation")
def accumulation(device: str, residual: str) -> Any:
    """One `update` for each small batch, or one for all of them together."""
    out = []
    for together in (False, True):
        model, x, y, ids = made(device)
        monitor = GWAMonitor(model.head, len(y), residual=residual)

        def train(optimizer: Any, model=model, monitor=monitor, together=together) -> None:
            for part in (slice(0, 5), slice(5, 12)):
                (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
                if not together:
                    monitor.update(y[part], ids[part])
            optimizer.step()
            if together:
                monitor.update(y, ids)

        out += steps(model, x, train, monitor, lambda model=model: head_oracle(model, x, y))
    return out


def checkpointed(device: str, residual: str, *, reentrant: bool) -> list[Any]:
    """The loop that everybody writes, with the whole model in a checkpoint."""
    return plain(
        device,
        residual,
        after=True,
        call=lambda model: (
            lambda x: checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)
        ),
    )


@situation("activation checkpointing")
def checkpointing(device: str, residual: str) -> Any:
    """The forward pass that backward runs again is not counted."""
    return checkpointed(device, residual, reentrant=False)


@situation(
    "activation checkpointing, reentrant",
    without="none, with a warning: the output of the head has no graph",
)
def reentrant_checkpointing(device: str, residual: str) -> Any:
    """`use_reentrant=True` around the head. The default says that it could not be checked."""
    return checkpointed(device, residual, reentrant=True)


@situation("evaluation between")
def evaluation(device: str, residual: str) -> Any:
    """Passes in eval mode are ignored, also between the forward pass and `update`."""
    model, x, y, ids = made(device)
    monitor = GWAMonitor(model.head, len(y), residual=residual)

    def train(optimizer: Any) -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(x[:7])
        model.train()
        monitor.update(y, ids)

    return steps(model, x, train, monitor, lambda: head_oracle(model, x, y))


@situation("several forward passes a step")
def several_passes(device: str, residual: str) -> Any:
    """`logits=` says which pass the targets belong to, or `monitor.pause()` hides the others."""
    model, x, y, ids = made(device)
    monitor = GWAMonitor(model.head, len(y), residual=residual)

    def train(optimizer: Any) -> None:
        with monitor.pause():
            model(x + 1.0)
        logits, other = model(x), model(x - 1.0)
        (F.cross_entropy(logits, y) + other.square().mean()).backward()
        optimizer.step()
        monitor.update(y, ids, logits=logits)

    return steps(model, x, train, monitor, lambda: head_oracle(model, x, y))


@situation("frozen head")
def frozen(device: str, residual: str) -> Any:
    """A head that is not trained has scores all the same."""

    def call(model: Any) -> Any:
        model.head.requires_grad_(requires_grad=False)
        return model

    return plain(device, residual, after=True, call=call)


@situation("weight-tied head")
def tied(device: str, residual: str) -> Any:
    """A head that shares its weight with an embedding; the gradient is the head's own."""
    torch.manual_seed(0)
    embedding, body = nn.Embedding(CLASSES, FEATURES), nn.Linear(FEATURES, FEATURES)
    head = nn.Linear(FEATURES, CLASSES, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, body, nn.Tanh(), head).to(device)
    x, y = torch.arange(12, device=device) % CLASSES, torch.arange(12, device=device) % 3
    monitor = GWAMonitor(head, len(y), residual=residual)

    def train(optimizer: Any) -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        monitor.update(y, torch.arange(12, device=device))

    def want() -> torch.Tensor:
        with torch.no_grad():
            latents = copy.deepcopy(model[:3]).double()(x)
        return oracle(latents, head.weight, None, y)

    return steps(model, x, train, monitor, want)


@situation("DataParallel")
def data_parallel(device: str, residual: str) -> Any:
    """The pieces of the replicas are put together in the order of the batch."""
    return plain(device, residual, after=True, call=nn.DataParallel)


@situation("tokens")
def tokens(device: str, residual: str) -> Any:
    """Targets (B, S); those with `ignore_index` do not count."""
    torch.manual_seed(0)
    model = network().to(device)
    x = torch.randn(3, 4, INPUTS, device=device)
    y = torch.randint(CLASSES, (3, 4), device=device)
    ids = torch.arange(12, device=device).reshape(3, 4)
    ignored = y.clone()
    ignored[1, 2:] = ignored[0, 0] = -100
    monitor = GWAMonitor(model.head, 12, residual=residual)

    def train(optimizer: Any) -> None:
        F.cross_entropy(model(x).flatten(0, 1), ignored.flatten()).backward()
        optimizer.step()
        monitor.update(ignored, ids)

    def want() -> torch.Tensor:
        scores = head_oracle(model, x.flatten(0, 1), y.flatten())
        return torch.where(ignored.flatten() == -100, torch.nan, scores)

    return steps(model, x, train, monitor, want)


@situation("pixels")
def pixels(device: str, residual: str) -> Any:
    """A 1×1 convolution as head, targets (B, H, W)."""
    torch.manual_seed(0)
    body, head = nn.Conv2d(3, FEATURES, 3, padding=1), nn.Conv2d(FEATURES, CLASSES, 1)
    model = nn.Sequential(body, nn.Tanh(), head).to(device)
    x = torch.randn(2, 3, 4, 5, device=device)
    y = torch.randint(CLASSES, (2, 4, 5), device=device)
    monitor = GWAMonitor("2", 40, model=model, residual=residual)

    def train(optimizer: Any) -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        monitor.update(y, torch.arange(40, device=device).reshape(y.shape))

    def want() -> torch.Tensor:
        with torch.no_grad():
            latents = copy.deepcopy(model[:2]).double()(x.double())
        rows = latents.movedim(1, -1).flatten(0, -2)
        return oracle(rows, head.weight, head.bias, y.flatten())

    return steps(model, x, train, monitor, want)


@situation("sigmoid outputs")
def sigmoid(device: str, residual: str) -> Any:
    """`loss="binary_cross_entropy"` with several labels a sample, or a single output."""
    model, x, y, ids = made(device)
    labels = (torch.arange(CLASSES, device=device)[None] <= y[:, None]).float()
    monitor = GWAMonitor(model.head, len(y), residual=residual, loss="binary_cross_entropy")

    def train(optimizer: Any) -> None:
        F.binary_cross_entropy_with_logits(model(x), labels).backward()
        optimizer.step()
        monitor.update(labels, ids)

    def want() -> torch.Tensor:
        return head_oracle(model, x, labels, loss="binary_cross_entropy")

    pairs = steps(model, x, train, monitor, want)
    single, binary = copy.deepcopy(model), (y % 2).float()
    single.head = nn.Linear(FEATURES, 1).to(device)
    one = GWAMonitor(single.head, len(y), residual=residual, loss="binary_cross_entropy")

    def train_one(optimizer: Any) -> None:
        F.binary_cross_entropy_with_logits(single(x).squeeze(1), binary).backward()
        optimizer.step()
        one.update(binary, ids)

    return pairs + steps(
        single,
        x,
        train_one,
        one,
        lambda: head_oracle(single, x, binary, loss="binary_cross_entropy"),
    )


@situation("features of inference mode")
def inference_features(device: str, residual: str) -> Any:
    """A linear probe on features made under `torch.inference_mode()`."""
    model, x, y, ids = made(device)
    with torch.inference_mode():
        latents = model.body(x)
    monitor = GWAMonitor(model.head, len(y), residual=residual)

    def train(optimizer: Any) -> None:
        F.cross_entropy(model.head(latents.clone()), y).backward()
        optimizer.step()
        monitor.update(y, ids)

    return steps(model.head, x, train, monitor, lambda: head_oracle(model, x, y))


@situation("criterion instead of update")
def criterion(device: str, residual: str) -> Any:
    """`criterion=` hooks the loss module, reads its options and needs no `update`."""
    model, x, y, _ = made(device)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=4)
    auxiliary = nn.Linear(INPUTS, CLASSES).to(device)
    monitor = GWAMonitor(model.head, criterion=loss, residual=residual)

    pairs = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(STEPS):
        scores = head_oracle(model, x, y, label_smoothing=0.1)[y != 4].cpu()
        (loss(auxiliary(x), y) + loss(model(x), y)).backward()
        optimizer.step()
        summary = monitor.end_epoch()
        got = torch.tensor([summary.count, summary.mean, summary.variance], dtype=torch.float64)
        want = torch.stack(
            [torch.tensor(float(len(scores))), scores.mean(), scores.var(correction=0)]
        )
        pairs.append((got, want))
    return pairs


@situation("head without bias")
def no_bias(device: str, residual: str) -> Any:
    """The gradient of the bias is not part of the measure; a head without one needs no care."""
    model, x, y, ids = made(device, bias=False)
    monitor = GWAMonitor(model.head, len(y), residual=residual)

    def train(optimizer: Any) -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        monitor.update(y, ids)

    return steps(model, x, train, monitor, lambda: head_oracle(model, x, y))
