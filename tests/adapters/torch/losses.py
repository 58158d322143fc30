"""Losses and heads that people train with: each trains by the defaults of the monitor.

The scores must be those of float64 autograd for the loss that was used, or the monitor refuses. The
documentation makes its table from this list.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from models import CLASSES, FEATURES, INPUTS, batch, network
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gwa_torch import GWAMonitor

ROWS, EPOCHS = 24, 2
X, LABELS = batch(ROWS)
ONE_HOT = F.one_hot(LABELS, CLASSES).float()
PRIOR = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
BINARY = "binary_cross_entropy"


class Trained(NamedTuple):
    """What the monitor took, its warnings, and the scores of each epoch beside the true ones."""

    residual: str
    warnings: list[str]
    pairs: list[tuple[torch.Tensor, torch.Tensor]]


class Loss(NamedTuple):
    """A loss or a head."""

    name: str
    about: str
    # "formula" or "gradient": where the scores come from. "refused": `run` raises.
    found: str
    tolerance: float
    run: Callable[[], Trained]


LOSSES: list[Loss] = []


def loss(name: str, found: str, tolerance: float = 1e-5) -> Any:
    """Register a function without arguments that trains."""

    def register(run: Any) -> Any:
        LOSSES.append(Loss(name, " ".join(run.__doc__.split()), found, tolerance, run))
        return run

    return register


def true_scores(latents: torch.Tensor, head: nn.Module, total: Any) -> torch.Tensor:
    """Return the cosines of each row's share of the gradient, in float64; nan where it has none.

    Each row has a copy of the weight, so that the share is right where rows depend on each other.
    """
    weight = head.weight.detach().double().flatten(1)
    bias = 0.0 if head.bias is None else head.bias.detach().double()
    rows = latents.detach().double().flatten(0, -2)
    copies = weight.expand(len(rows), *weight.shape).clone().requires_grad_()
    logits = torch.einsum("ncd,nd->nc", copies, rows) + bias
    value = total(logits.unflatten(0, latents.shape[:-1])).sum()
    (gradient,) = torch.autograd.grad(value, copies)
    scores = F.cosine_similarity(-gradient.flatten(1), weight.flatten()[None], eps=0)
    return torch.where(gradient.flatten(1).any(1), scores, torch.nan)


def trained(
    each: Any,
    *,
    told: torch.Tensor = LABELS,
    extra: torch.Tensor | None = None,
    unit: bool = False,
    spread: float = 1.0,
    **options: Any,
) -> Trained:
    """Train by losses of the samples.

    Parameters
    ----------
    each : callable
        Logits, labels and, where given, rows of `extra` to losses.
    told : tensor
        What `update` is given.
    extra : tensor, optional
        More of each sample that the loss needs.
    unit : bool
        Latents and rows of the weight have length one, and there is no bias.
    spread : float
        Factor on the first weight of the head.
    **options
        Of the monitor.
    """
    model = network(bias=not unit)
    model.body = nn.Sequential(model.body, Unit()) if unit else model.body
    with torch.no_grad():
        model.head.weight.mul_(spread)
        model.head.weight.copy_(F.normalize(model.head.weight) if unit else model.head.weight)
    return epochs(
        model,
        lambda logits, rows: each(logits, LABELS[rows], *([] if extra is None else [extra[rows]])),
        told=told,
        unit=unit,
        **options,
    )


def epochs(
    model: nn.Module,
    each: Any,
    *,
    x: torch.Tensor = X,
    told: torch.Tensor | None = LABELS,
    ids: torch.Tensor | None = None,
    unit: bool = False,
    **options: Any,
) -> Trained:
    """Train for some epochs of two batches. See `trained`; `each` is given logits and rows."""
    ids = torch.arange(len(x)) if ids is None else ids
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pairs = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        monitor = GWAMonitor(model.head, ids.numel(), **options)
        for _ in range(EPOCHS):
            wanted = []
            for rows in torch.arange(len(x)).chunk(2):
                with torch.no_grad():
                    latents = model.body.double()(x[rows].double())
                    model.float()
                last = latents.movedim(1, -1) if latents.ndim == 4 else latents
                wanted.append(true_scores(last, model.head, lambda y, rows=rows: each(y, rows)))
                optimizer.zero_grad()
                (each(model(x[rows]), rows).sum() / len(rows)).backward()
                monitor.update(None if told is None else told[rows], ids[rows])
                optimizer.step()
                if unit:
                    with torch.no_grad():
                        model.head.weight.copy_(F.normalize(model.head.weight))
            monitor.end_epoch()
            pairs.append((monitor.scores, torch.cat(wanted)))
        monitor.close()
    return Trained(monitor.residual, [str(x.message) for x in said], pairs)


class Unit(nn.Module):
    """Rows of length one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Divide by the length."""
        return F.normalize(x, dim=-1)


def ce(logits: torch.Tensor, y: torch.Tensor, **options: Any) -> torch.Tensor:
    """Cross-entropy of each row."""
    return F.cross_entropy(logits, y, reduction="none", **options)


def bce(logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
    """Binary cross-entropy of each output."""
    return F.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), reduction="none", **options
    )


def true_class(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the probability of the label."""
    return logits.softmax(-1).gather(-1, y[..., None])[..., 0]


def one_hot(y: torch.Tensor) -> torch.Tensor:
    """Return labels as rows, for a product with logits of any dtype."""
    return F.one_hot(y, CLASSES)


# ---- Between the head and the loss.


@loss("temperature", "gradient")
def temperature() -> Trained:
    """`cross_entropy(logits / 0.1, y)`."""
    return trained(lambda logits, y: ce(logits / 0.1, y))


@loss("CLIP's scale", "gradient")
def clip_scale() -> Trained:
    """Features of length one, logits times a factor that is learnt."""
    scale = nn.Parameter(torch.tensor(math.log(14.0)))
    return trained(lambda logits, y: ce(logits * scale.exp(), y), unit=True)


@loss("soft cap", "gradient")
def soft_cap() -> Trained:
    """`cap * tanh(logits / cap)`, as Gemma has it."""
    return trained(lambda logits, y: ce(2.0 * torch.tanh(logits / 2.0), y), spread=3.0)


@loss("Cohere's scale", "gradient")
def cohere() -> Trained:
    """`logits * 0.0625` after the head."""
    return trained(lambda logits, y: ce(logits * 0.0625, y), spread=10.0)


@loss("Granite's scale", "gradient")
def granite() -> Trained:
    """`logits / 8` after the head."""
    return trained(lambda logits, y: ce(logits / 8.0, y), spread=10.0)


@loss("logit adjustment", "gradient")
def logit_adjustment() -> Trained:
    """`logits + log(prior)` in training, for classes of unequal size."""
    return trained(lambda logits, y: ce(logits + PRIOR.log(), y))


@loss("class mask", "gradient")
def class_mask() -> Trained:
    """Logits of classes that a task lacks are -inf."""
    absent = torch.arange(CLASSES) == 4
    labels = LABELS % 4
    return trained(
        lambda logits, _, y: ce(logits.masked_fill(absent, -torch.inf), y),
        told=labels,
        extra=labels,
    )


@loss("LogitNorm", "gradient")
def logit_norm() -> Trained:
    """Logits divided by their own length and a temperature."""
    return trained(lambda logits, y: ce(F.normalize(logits, dim=-1) / 0.2, y))


@loss("sampled softmax", "gradient")
def sampled() -> Trained:
    """Each sample has its label and some other classes."""
    kept = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(0)) < 0.5
    return trained(
        lambda logits, y, kept: ce(logits.masked_fill(~(kept | one_hot(y).bool()), -torch.inf), y),
        extra=kept,
    )


# ---- Margins.


@loss("ArcFace", "gradient")
def arc_face() -> Trained:
    """`cos(angle + 0.3)` for the label, times 16. Features and weight rows have length one."""

    def each(cosines: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        moved = torch.cos(torch.acos(cosines) + 0.3)
        return ce(16.0 * torch.where(one_hot(y).bool(), moved, cosines), y)

    return trained(each, unit=True)


@loss("CosFace", "gradient")
def cos_face() -> Trained:
    """`cos(angle) - 0.2` for the label, times 16."""
    return trained(lambda cosines, y: ce(16.0 * (cosines - 0.2 * one_hot(y)), y), unit=True)


@loss("LDAM", "formula")
def ldam() -> Trained:
    """A margin for the label, larger for rare classes: its own logit changes no direction."""
    margins = 0.5 * (PRIOR.min() / PRIOR) ** 0.25
    return trained(lambda logits, y: ce(logits - margins * one_hot(y), y))


@loss("margin loss", "gradient")
def multi_margin() -> Trained:
    """`nn.MultiMarginLoss`; a sample beyond the margin has no gradient, and no score."""
    return trained(
        lambda logits, y: F.multi_margin_loss(logits, y, reduction="none", margin=0.4), spread=3.0
    )


@loss("hinge to the best other class", "gradient")
def crammer_singer() -> Trained:
    """The margin of Crammer and Singer."""

    def each(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        own = logits.gather(1, y[:, None])[:, 0]
        other = logits.masked_fill(one_hot(y).bool(), -torch.inf).amax(1)
        return (1.0 + other - own).relu()

    return trained(each)


# ---- Functions of the probability of the label. Their gradient is that of the cross-entropy times
# a number, so that the closed form is right.


@loss("focal, softmax", "formula")
def focal() -> Trained:
    """`(1 - p)**2 * -log(p)` of the label: the gradient of cross-entropy times a number."""
    return trained(lambda logits, y: (1 - true_class(logits, y)) ** 2 * ce(logits, y))


@loss("GCE", "formula")
def generalised() -> Trained:
    """`(1 - p**0.7) / 0.7` of the label: the gradient of cross-entropy times a number."""
    return trained(lambda logits, y: (1 - true_class(logits, y) ** 0.7) / 0.7)


@loss("Poly-1", "formula")
def poly() -> Trained:
    """`-log(p) + 2 * (1 - p)` of the label: the gradient of cross-entropy times a number."""
    return trained(lambda logits, y: ce(logits, y) + 2.0 * (1 - true_class(logits, y)))


@loss("symmetric cross-entropy", "formula")
def symmetric() -> Trained:
    """Both directions, with log 0 = -4: the gradient of cross-entropy times a number."""

    def each(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logs = torch.where(one_hot(y).bool(), 0.0, -4.0)
        return 0.1 * ce(logits, y) - (logits.softmax(1) * logs).sum(1)

    return trained(each)


@loss("mean absolute error", "formula")
def absolute() -> Trained:
    """`sum(abs(onehot - softmax))`: the gradient of cross-entropy times a number."""
    return trained(lambda logits, y: (logits.softmax(1) - one_hot(y)).abs().sum(1))


@loss("weights of the samples", "formula")
def weighted() -> Trained:
    """A positive factor on each loss changes no cosine."""
    return trained(lambda logits, y, w: w * ce(logits, y), extra=torch.linspace(0.1, 3.0, ROWS))


@loss("class weights that are not told", "formula")
def class_weights() -> Trained:
    """`cross_entropy(weight=)` on class numbers without smoothing is a factor on each loss."""
    return trained(lambda logits, y: ce(logits, y, weight=(1 / PRIOR).to(logits.dtype)))


@loss("NLL of log-probabilities", "formula")
def nll() -> Trained:
    """`nll_loss(log_softmax(logits), y)`."""
    return trained(lambda logits, y: F.nll_loss(logits.log_softmax(1), y, reduction="none"))


# ---- Other losses of the softmax.


@loss("label smoothing that is not told", "gradient")
def smoothing() -> Trained:
    """`cross_entropy(label_smoothing=0.1)` without `label_smoothing=` of the monitor."""
    return trained(lambda logits, y: ce(logits, y, label_smoothing=0.1))


@loss("z-loss, 0.01", "gradient")
def z_loss() -> Trained:
    """Cross-entropy and `0.01 * logsumexp(logits)**2`."""
    return trained(lambda logits, y: ce(logits, y) + 0.01 * logits.logsumexp(1) ** 2)


@loss("z-loss, 0.0001", "formula", tolerance=1e-4)
def small_z_loss() -> Trained:
    """Less than a thousandth of the score is not seen. `residual="backward"` is exact."""
    return trained(lambda logits, y: ce(logits, y) + 1e-4 * logits.logsumexp(1) ** 2)


@loss("confidence penalty", "gradient")
def confidence_penalty() -> Trained:
    """Cross-entropy and 0.3 times the negative entropy."""

    def each(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logs = logits.log_softmax(1)
        return ce(logits, y) + 0.3 * (logs.exp() * logs).sum(1)

    return trained(each)


@loss("Brier score", "gradient")
def brier() -> Trained:
    """Squared error of the probabilities."""
    return trained(lambda logits, y: (logits.softmax(1) - one_hot(y)).square().sum(1))


@loss("squared error of logits", "gradient")
def squares() -> Trained:
    """Regression to one-hot rows."""
    return trained(lambda logits, y: (logits - one_hot(y)).square().sum(1))


@loss("distillation", "gradient")
def distillation() -> Trained:
    """KL to a teacher at temperature 4, and cross-entropy; `update` is given the labels."""
    teacher = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0)) * 3

    def each(logits: torch.Tensor, y: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        soft = (teacher.to(logits.dtype) / 4).log_softmax(1)
        own = (logits / 4).log_softmax(1)
        return 8.0 * F.kl_div(own, soft, reduction="none", log_target=True).sum(1) + ce(logits, y)

    return trained(each, extra=teacher)


def mixed() -> torch.Tensor:
    """Soft targets of mixup at 0.7."""
    return 0.7 * ONE_HOT + 0.3 * ONE_HOT.roll(1, 0)


@loss("mixup with hard labels", "gradient")
def mixup() -> Trained:
    """The loss has both labels, `update` the first one."""
    return trained(
        lambda logits, y, other: 0.7 * ce(logits, y) + 0.3 * ce(logits, other),
        extra=LABELS.roll(1),
    )


@loss("soft-target cross-entropy", "formula")
def soft_target() -> Trained:
    """`-sum(targets * log_softmax)` of mixup, whose targets `update` is given."""

    def each(logits: torch.Tensor, _: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        return -(soft.to(logits.dtype) * logits.log_softmax(1)).sum(1)

    return trained(each, told=mixed(), extra=mixed())


@loss("two losses summed", "gradient")
def summed() -> Trained:
    """Cross-entropy and binary cross-entropy of the same logits."""
    return trained(lambda logits, y: ce(logits, y) + bce(logits, one_hot(y)).sum(1))


@loss("hard samples only", "gradient")
def hard_samples() -> Trained:
    """The largest half of the losses of a batch; the other samples have no score."""

    def each(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ce(logits, y).topk(len(logits) // 2).values

    return trained(each)


# ---- Sigmoids.


@loss("`pos_weight`", "gradient")
def pos_weight() -> Trained:
    """`BCEWithLogitsLoss(pos_weight=)` with several labels a sample."""
    labels = (torch.arange(CLASSES)[None] <= LABELS[:, None]).float()
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    return trained(
        lambda logits, _, t: bce(logits, t, pos_weight=weights.to(logits.dtype)).mean(1),
        told=labels,
        extra=labels,
        loss=BINARY,
    )


@loss("several labels", "formula")
def multi_label() -> Trained:
    """`nn.MultiLabelSoftMarginLoss` is the mean of binary cross-entropies."""
    labels = (torch.arange(CLASSES)[None] <= LABELS[:, None]).float()
    return trained(
        lambda logits, _, t: F.multilabel_soft_margin_loss(
            logits, t.to(logits.dtype), reduction="none"
        ),
        told=labels,
        extra=labels,
        loss=BINARY,
    )


@loss("focal, sigmoid", "gradient")
def focal_sigmoid() -> Trained:
    """As in RetinaNet, with its weights 0.25 and 0.75."""

    def each(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        t = one_hot(y)
        p = logits.sigmoid()
        off = torch.where(t.bool(), 1 - p, p)
        return (torch.where(t.bool(), 0.25, 0.75) * off**2 * bce(logits, t)).sum(1)

    return trained(each, told=ONE_HOT, loss=BINARY)


@loss("asymmetric loss", "gradient")
def asymmetric() -> Trained:
    """Absent labels have an exponent of 4 and are clipped at 0.05."""

    def each(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p, t = logits.sigmoid(), one_hot(y)
        low = (p - 0.05).clamp(min=0)
        return -(t * p.log() + (1 - t) * low**4 * (1 - low).log()).sum(1)

    return trained(each, told=ONE_HOT, loss=BINARY)


@loss("BCE of class numbers, smoothed", "gradient")
def timm_smoothing() -> Trained:
    """As `timm.loss.BinaryCrossEntropy()`: smoothing 0.1, `update` is given the labels."""
    return trained(lambda logits, y: bce(logits, one_hot(y) * 0.9 + 0.1 / CLASSES).mean(1))


@loss("BCE with a target threshold", "gradient")
def timm_threshold() -> Trained:
    """Targets of mixup above 0.2 become 1; `update` is given those before."""
    return trained(
        lambda logits, _, soft: bce(logits, soft > 0.2).mean(1),
        told=mixed(),
        extra=mixed(),
        loss=BINARY,
    )


@loss("BCE summed over classes", "formula")
def timm_sum() -> Trained:
    """`sum_classes=True` is a factor; `loss="binary_cross_entropy"`, one-hot targets."""
    return trained(lambda logits, y: bce(logits, one_hot(y)).sum(1), told=ONE_HOT, loss=BINARY)


@loss("sigmoids under the default", "gradient")
def sigmoid_default() -> Trained:
    """Binary cross-entropy, with a monitor that was not told so."""
    return trained(lambda logits, y: bce(logits, one_hot(y)).sum(1))


# ---- Tokens and pixels.


def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, labels and ids of eight sequences of three tokens."""
    return (
        X.unflatten(0, (8, 3)),
        LABELS.unflatten(0, (8, 3)),
        torch.arange(ROWS).unflatten(0, (8, 3)),
    )


@loss("labels that are not shifted", "gradient")
def unshifted() -> Trained:
    """Token t is trained on label t + 1, `update` is given the labels as they are."""
    x, y, ids = tokens()
    return epochs(
        network(),
        lambda logits, rows: ce(logits[:, :-1].transpose(1, 2), y[rows][:, 1:]),
        x=x,
        told=y,
        ids=ids,
    )


@loss("pooled logits of tokens", "refused")
def pooled() -> Trained:
    """Mean of the logits over the tokens, one label a sequence."""
    x, y, _ = tokens()
    return epochs(
        network(),
        lambda logits, rows: ce(logits.mean(1), y[rows][:, 0]),
        x=x,
        told=y[:, 0],
        ids=torch.arange(len(y)),
    )


@loss("pooled logits of tokens, by their gradient", "gradient")
def pooled_backward() -> Trained:
    """`residual="backward"` and `update(None, ids)`: one score a token."""
    x, y, ids = tokens()
    return epochs(
        network(),
        lambda logits, rows: ce(logits.mean(1), y[rows][:, 0]),
        x=x,
        told=None,
        ids=ids,
        residual="backward",
    )


def segmentation() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network with a 1×1 convolution as head, its input, and labels of twice the resolution."""
    generator = torch.Generator().manual_seed(0)
    model = network()
    model.body = nn.Sequential(nn.Conv2d(INPUTS, FEATURES, 1), nn.Tanh())
    model.head = nn.Conv2d(FEATURES, CLASSES, 1)
    x = torch.randn(4, INPUTS, 2, 3, generator=generator)
    return model, x, torch.randint(CLASSES, (4, 4, 6), generator=generator)


def upsampled_loss(y: torch.Tensor) -> Any:
    """Cross-entropy of logits at twice the resolution."""

    def each(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        # The oracle has the classes last.
        logits = logits if logits.shape[1] == CLASSES else logits.movedim(-1, 1)
        return ce(F.interpolate(logits, scale_factor=2, mode="bilinear"), y[rows])

    return each


@loss("segmentation, logits made larger", "refused")
def upsampled() -> Trained:
    """`interpolate(logits)` and labels of the larger size."""
    model, x, y = segmentation()
    ids = torch.arange(y.numel()).reshape(y.shape)
    return epochs(model, upsampled_loss(y), x=x, told=y, ids=ids)


@loss("segmentation, logits made larger, by their gradient", "gradient")
def upsampled_backward() -> Trained:
    """`residual="backward"` and `update(None, ids)`: one score a pixel of the head."""
    model, x, y = segmentation()
    ids = torch.arange(24).reshape(4, 2, 3)
    return epochs(model, upsampled_loss(y), x=x, told=None, ids=ids, residual="backward")


# ---- One output, for which there are no classes: only a sigmoid has one, so that is said.


def one_output() -> nn.Module:
    """A network whose head has one output."""
    model = network()
    model.head = nn.Linear(FEATURES, 1)
    return model


@loss("regression, by its gradient", "gradient")
def regression() -> Trained:
    """Squared error of one output; `residual="backward"` and `update(None, ids)`."""
    return epochs(
        one_output(),
        lambda logits, rows: (logits[:, 0] - LABELS[rows]).square(),
        told=None,
        residual="backward",
        loss=BINARY,
    )


@loss("pairs of preferences, by their gradient", "gradient")
def preferences() -> Trained:
    """A reward model; `residual="backward"` and `update(None, ids)`: one score an answer."""
    return epochs(
        one_output(),
        lambda logits, _: -F.logsigmoid(logits[::2, 0] - logits[1::2, 0]),
        told=None,
        residual="backward",
        loss=BINARY,
    )


# ---- Heads.


class Cosine(nn.Linear):
    """A cosine classifier."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute cosines."""
        return F.linear(F.normalize(x), F.normalize(self.weight))


class Adapted(nn.Module):
    """A layer with LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(FEATURES, CLASSES)
        self.lora_A, self.lora_B = nn.Linear(FEATURES, 2), nn.Linear(2, CLASSES)


def holding(**heads: nn.Module) -> nn.Module:
    """A model with these after its body."""
    model = nn.Module()
    model.body = nn.Linear(INPUTS, FEATURES)
    for name, head in heads.items():
        setattr(model, name, head)
    return model


@loss("cosine classifier", "refused")
def cosine_head() -> Any:
    """A subclass of `nn.Linear` with a forward of its own."""
    return GWAMonitor(Cosine(FEATURES, CLASSES))


@loss("LoRA on the head", "refused")
def lora_head() -> Any:
    """The head is one of the `target_modules`."""
    return GWAMonitor(model=holding(head=Adapted()))


@loss("two heads", "refused")
def two_heads() -> Any:
    """A distilled model, with a head for the labels and one for the teacher."""
    heads = {name: nn.Linear(FEATURES, CLASSES) for name in ("head", "head_dist")}
    return GWAMonitor(model=holding(**heads))


@loss("hierarchical softmax", "refused")
def hierarchical() -> Any:
    """A root, and a leaf for each group of classes."""
    leaves = nn.ModuleList([nn.Linear(FEATURES, CLASSES) for _ in range(3)])
    return GWAMonitor(model=holding(root=nn.Linear(FEATURES, 3), leaves=leaves))


@loss("adaptive softmax", "refused")
def adaptive() -> Any:
    """`nn.AdaptiveLogSoftmaxWithLoss`."""
    softmax = nn.AdaptiveLogSoftmaxWithLoss(FEATURES, 20, [5, 10], div_value=2.0)
    return GWAMonitor(model=holding(loss=softmax))


@loss("quantised head", "refused")
def quantised() -> Any:
    """A weight of integers."""
    head = nn.Linear(FEATURES, CLASSES)
    weight = torch.ones(CLASSES, FEATURES, dtype=torch.int8)
    head.weight = nn.Parameter(weight, requires_grad=False)
    return GWAMonitor(model=holding(head=head))
