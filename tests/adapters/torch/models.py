"""Small models, and the scores of their head by float64 autograd: slow and obvious."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

CLASSES, FEATURES, INPUTS = 5, 16, 8


def network(dtype=torch.float32, *, bias=True, seed=0):
    """Two layers; the head is called `head`."""
    torch.manual_seed(seed)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.Tanh())
            self.head = nn.Linear(FEATURES, CLASSES, bias=bias)

        def forward(self, x):
            return self.head(self.body(x))

    return Network().to(dtype)


def batch(rows=12, seed=1):
    """Inputs and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, INPUTS, generator=generator)
    return x, torch.randint(CLASSES, (rows,), generator=generator)


def oracle(
    latents, weight, bias, targets, *, loss="cross_entropy", class_weights=None, label_smoothing=0.0
):
    """One backward pass a sample, in float64, and the cosine of its negative with the weight.

    Weight and bias must be copies from the moment of the forward pass.
    """
    weight = weight.detach().double().flatten(1).clone().requires_grad_()
    bias = None if bias is None else bias.detach().double()
    class_weights = None if class_weights is None else class_weights.double()
    scores = []
    for z, t in zip(latents.detach().double(), targets, strict=True):
        logits = F.linear(z, weight, bias)
        t = t.double() if t.is_floating_point() else t
        if loss == "cross_entropy":
            value = F.cross_entropy(
                logits[None],
                t[None],
                weight=class_weights,
                label_smoothing=label_smoothing,
                reduction="sum",
            )
        else:
            value = F.binary_cross_entropy_with_logits(logits, t.double().expand_as(logits))
        (gradient,) = torch.autograd.grad(value, weight)
        scores.append(F.cosine_similarity(-gradient.flatten(), weight.flatten(), dim=0, eps=0))
    return torch.stack(scores).detach()


def head_oracle(model, x, targets, **options):
    """The oracle for the head of `network`, at the weights that it has now."""
    with torch.no_grad():
        latents = copy.deepcopy(model.body).double()(x.double())
    bias = None if model.head.bias is None else model.head.bias.clone()
    return oracle(latents, model.head.weight.clone(), bias, targets, **options)
