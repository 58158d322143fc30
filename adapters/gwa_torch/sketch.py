"""A frozen sketch between latents and head, for heads of one width (Fig. 8)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gwa_core import JLSketch, project
from gwa_torch._checks import check_count, check_integer

__all__ = ["JLHead"]


class JLHead(nn.Module):
    r"""A linear head behind a frozen random sketch of its latents.

    .. math:: \ell = W S z + b, \qquad S \in \mathbb R^{K \times D}
       \text{ fixed},\; W \in \mathbb R^{C \times K} \text{ trained}

    Models of different widths D get heads of one shape, and their scores can be compared. This
    changes the network that is trained. To measure a model as it is in K dimensions, pass
    ``sketch=`` to `GWAMonitor` instead; that keeps the mean of the scores as it was.

    Parameters
    ----------
    in_features : int
        D.
    num_classes : int
        C.
    sketch_features : int
        K, default 192 as in the paper.
    kind : {"gaussian", "rademacher", "sparse", "hadamard"}
        See `gwa_core.JLSketch`, default Gaussian.
    bias : bool
        Whether the linear layer has a bias, default True.
    seed : int
        The same seed gives the same sketch, default 0.

    Attributes
    ----------
    linear : Linear
        The layer to watch: ``GWAMonitor(model.head.linear)``.
    sketch : tensor of shape (K, D)
        A buffer. It is part of the ``state_dict``, so that a loaded head gets the sketch that it
        was trained behind, whatever the seed.

    Raises
    ------
    ValueError
        On sizes below one, an unknown kind, or a Hadamard sketch with K larger than D rounded up
        to a power of two.

    Notes
    -----
    Cost: O(DK) a sample and 4DK bytes, for every kind: the sketch is kept as a matrix.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. A.2 and Fig. 8.

    Examples
    --------
    >>> import torch
    >>> from gwa_torch import JLHead
    >>> head = JLHead(768, 10)
    >>> head(torch.randn(4, 768)).shape, head.linear
    (torch.Size([4, 10]), Linear(in_features=192, out_features=10, bias=True))
    """

    sketch: torch.Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        sketch_features: int = 192,
        *,
        kind: Literal["gaussian", "rademacher", "sparse", "hadamard"] = "gaussian",
        bias: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        num_classes = check_count("num_classes", num_classes)
        in_features = check_count("in_features", in_features)
        sketch_features = check_count("sketch_features", sketch_features)
        seed = check_integer("seed", seed)
        try:
            self._made = JLSketch(in_features, sketch_features, kind=kind, seed=seed)
        except ValueError as error:
            raise ValueError(str(error).replace("`out_features`", "`sketch_features`")) from error
        self.register_buffer("sketch", torch.empty(sketch_features, in_features))
        #: The trained layer, to be watched.
        self.linear = nn.Linear(sketch_features, num_classes, bias=bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Make the sketch from the seed again, as after ``to_empty``; the linear layer stays."""
        unit = torch.eye(self._made.in_features, dtype=self.sketch.dtype, device="cpu")
        self.sketch.copy_(project(unit, self._made).T)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return logits (..., C) of latents (..., D)."""
        logits: torch.Tensor = self.linear(F.linear(latents, self.sketch))
        return logits

    def extra_repr(self) -> str:
        """Return what the representation of the module says."""
        return f"in_features={self._made.in_features}, kind={self._made.kind!r}, seed={self._made.seed}"
