"""The running mean of a model's weights over the epochs of a training."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from gwa_core import EpochAverage, EpochSummary, Summary
from gwa_torch._distributed import minimum, position, total
from gwa_torch.heads import unwrap

__all__ = ["AveragedWeights"]

STATE_VERSION = 1


class AveragedWeights:
    r"""Average the weights of a model over its epochs, each by its share.

    .. math:: \bar\theta_t = \bar\theta_{t-1} + a_t (\theta_t - \bar\theta_{t-1}),
              \qquad a_t = s_t^p / \sum_{u \le t} s_u^p

    Parameters
    ----------
    model : nn.Module
        The model in training. Its weights are read, and changed by `applied` and `copy_to` alone.
    average : EpochAverage, optional
        What says the share of an epoch; default ``EpochAverage(warmup=1)``, which needs no number of
        epochs.

    Attributes
    ----------
    average : EpochAverage
        Its power, its signal, and the epochs that counted.

    Raises
    ------
    ValueError
        If no floating-point parameter of the model requires a gradient.

    See Also
    --------
    gwa_core.average_shares : The shares of a finished run with stored checkpoints.

    Notes
    -----
    Parameters that require a gradient are averaged: of a model with LoRA, the adapters. Tied weights
    count once. A parameter that is unfrozen later joins with its value at that epoch, and one that is
    frozen later stays in the mean. bfloat16 and float16 are averaged in float32, and rounded once, in
    `applied` and `copy_to`. Sharded parameters (FSDP2, tensor parallelism) are averaged on each rank,
    without communication. All ranks have the same summaries, so they have the same shares.

    Buffers stay those of the model, as in `torch.optim.swa_utils.AveragedModel`. The statistics of
    batch norm belong to the weights of the last epoch: call `update_bn` before you use the average.
    Spectral norm, too, needs a few passes in train mode first.

    Cost: one copy of the averaged parameters, and one pass over it for each call of `update`.
    A training step costs nothing.

    References
    ----------
    Izmailov et al., UAI 2018, for the plain mean. The signal: Hölzl, Rueckert, Kaissis, NeurIPS
    2025, Definition 2 and App. A.4.

    Examples
    --------
    >>> import torch
    >>> from gwa_torch import AveragedWeights, EpochAverage
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> averaged = AveragedWeights(model, EpochAverage(power=1, warmup=0))
    >>> for weight, separation in [(1.0, 0.2), (2.0, 0.6)]:
    ...     _ = torch.nn.init.constant_(model.weight, weight)
    ...     averaged.update({"separation": separation})  # or monitor.end_epoch()
    1.0
    0.75
    >>> with averaged.applied():
    ...     round(model(torch.ones(1)).item(), 3)
    1.75
    >>> model(torch.ones(1)).item()
    2.0
    """

    def __init__(self, model: nn.Module, average: EpochAverage | None = None) -> None:
        self.average = EpochAverage(warmup=1) if average is None else average
        self._given, self._model = model, unwrap(model)
        self._mean: dict[str, torch.Tensor] = {}
        # Statistics of batch norm that belong to the mean, once they were computed.
        self._statistics: dict[str, torch.Tensor] = {}
        self._applied = False
        if not any(map(_is_trained, self._model.parameters())):
            raise ValueError(
                "`model` must have a floating-point parameter that requires a gradient, got none; "
                "usual cause: all of it is frozen"
            )

    @property
    def has_batch_norm(self) -> bool:
        """Whether the model has statistics of batch norm, which `update_bn` computes."""
        return bool(_batch_norm(self._model))

    @torch.no_grad()
    def update(self, record: Summary | EpochSummary | Mapping[str, Any]) -> float:
        """Move the mean to the weights that the model has now; call it at the end of an epoch.

        Parameters
        ----------
        record : Summary, EpochSummary or mapping
            The summary of the epoch, as ``monitor.end_epoch()`` returns it.

        Returns
        -------
        float
            The share of these weights in the mean, in [0, 1].

        Raises
        ------
        RuntimeError
            Inside `applied`.
        ValueError
            If the record lacks the signal of the average, or the model lacks a parameter of the
            mean. Nothing has changed then.
        """
        if self._applied:
            raise RuntimeError(
                "`update` must come outside of `applied`: the model has the mean now"
            )
        own: dict[str, torch.Tensor] = dict(self._model.named_parameters())
        _check_names(self._mean, own)
        # What was frozen since is in the mean with its value, epoch by epoch.
        parameters = {name: p for name, p in own.items() if name in self._mean or _is_trained(p)}
        share = self.average.share(record)
        self._statistics = {}
        for name, new in parameters.items():
            if name not in self._mean:
                self._mean[name] = _exact_copy(new)
            elif self._mean[name].device != new.device:
                # The model was moved since.
                self._mean[name] = self._mean[name].to(new.device)
        pairs = [(_local(self._mean[name]), _local(x)) for name, x in parameters.items()]
        if share == 1.0:
            # Exactly, whatever the mean was.
            for mean, new in pairs:
                mean.copy_(new)
        elif share > 0.0:
            same = [pair for pair in pairs if pair[0].dtype == pair[1].dtype]
            if same:
                # One kernel on a GPU.
                means, news = zip(*same, strict=True)
                torch._foreach_lerp_(means, news, share)
            for mean, new in pairs:
                if mean.dtype != new.dtype:
                    # One at a time, so that no second copy of all is in memory.
                    mean.lerp_(new.to(mean.dtype), share)
        return share

    @contextlib.contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Give the model the mean for a while, such as to evaluate it.

        Yields
        ------
        nn.Module
            The model. After the block it has its own weights again, bit for bit.

        Warns
        -----
        UserWarning
            If the model has batch norm whose statistics were not computed by `update_bn`.

        Notes
        -----
        Before the first `update` the model stays as it is. Cost: a second copy of the parameters
        for that while.
        """
        self._say_batch_norm()
        with self._swapped():
            yield self._given

    @torch.no_grad()
    def copy_to(self, model: nn.Module | None = None) -> None:
        """Write the mean into a model.

        Parameters
        ----------
        model : nn.Module, optional
            A model with parameters of the same names and shapes; default the one in training.

        Raises
        ------
        RuntimeError
            Inside `applied`, for the model in training, which gets its own weights back.
        ValueError
            If the model lacks a parameter or a batch norm of the mean. Nothing has changed then.

        Warns
        -----
        UserWarning
            If the model has batch norm whose statistics were not computed by `update_bn`.
        """
        into = self._model if model is None else unwrap(model)
        if self._applied and into is self._model:
            raise RuntimeError(
                "`copy_to` must come outside of `applied`, after which the model has its own "
                "weights again"
            )
        self._say_batch_norm()
        self._write(into)

    def update_bn(self, loader: Iterable[Any], device: torch.device | None = None) -> None:
        """Compute the statistics of batch norm that belong to the mean, in one pass over data.

        Parameters
        ----------
        loader : iterable
            Batches of inputs, or tuples whose first item is the input, of the training data.
        device : torch.device, optional
            Where batches are moved to.

        Raises
        ------
        ValueError
            If there is no batch. Nothing has changed then.

        Notes
        -----
        As `torch.optim.swa_utils.update_bn`, but batch norm that is in eval mode while the model
        trains keeps its statistics. `applied` and `copy_to` use the statistics until the next
        `update`. The model in training keeps its own. With several ranks each one brings its part
        of the data, all must call it, and all get the mean over the ranks.
        """
        training = self._model.training
        if not training:
            self._model.train()
        try:
            self._measure(_passes(self._model, loader, device))
        finally:
            if not training:
                self._model.eval()

    @torch.no_grad()
    def _measure(self, passes: Iterable[Any]) -> None:
        """Take the statistics from forward passes, which the iterable makes one after the other."""
        with self._swapped():
            _fill(self._model, passes)
            self._statistics = {
                name: buffer.clone() for name, buffer in _batch_norm(self._model).items()
            }

    def state_dict(self) -> dict[str, Any]:
        """Return the mean and the state of its average, with a version; sharded where it is."""
        return {
            "version": STATE_VERSION,
            "average": self.average.state_dict(),
            "mean": dict(self._mean),
            "statistics": dict(self._statistics),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of the same model and the same options.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        ValueError
            If it is of another version, another average or another model. Nothing has changed then.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"`state` must be of version {STATE_VERSION}, got version {state.get('version')!r}"
            )
        own, buffers = dict(self._model.named_parameters()), _batch_norm(self._model)
        _check_names(state["mean"], own)
        _check_names(state["statistics"], buffers)
        self.average.load_state_dict(state["average"])
        self._mean = {name: _exact_copy(own[name]) for name in state["mean"]}
        for name, mean in self._mean.items():
            mean.copy_(state["mean"][name])
        self._statistics = {
            name: value.to(buffers[name].device, copy=True)
            for name, value in state["statistics"].items()
        }

    @contextlib.contextmanager
    def _swapped(self) -> Iterator[None]:
        if self._applied:
            raise RuntimeError("`applied` must not be nested: the model has the mean already")
        parameters = dict(self._model.named_parameters())
        _check_names(self._mean, parameters)
        with torch.no_grad():
            own = {name: _local(parameters[name]).clone() for name in self._mean}
            statistics = {name: x.clone() for name, x in _batch_norm(self._model).items()}
        self._applied = True
        try:
            self._write(self._model)
            yield
        finally:
            self._applied = False
            with torch.no_grad():
                for name, value in own.items():
                    _local(parameters[name]).copy_(value)
                for name, buffer in _batch_norm(self._model).items():
                    buffer.copy_(statistics[name])

    @torch.no_grad()
    def _write(self, model: nn.Module) -> None:
        parameters, buffers = dict(model.named_parameters()), _batch_norm(model)
        _check_names(self._mean, parameters)
        _check_names(self._statistics, buffers)
        for name, mean in self._mean.items():
            _local(parameters[name]).copy_(_local(mean))
        for name, statistic in self._statistics.items():
            buffers[name].copy_(statistic)

    def _say_batch_norm(self) -> None:
        if self._mean and not self._statistics and self.has_batch_norm:
            warnings.warn(
                "the model has batch norm, whose statistics are those of the last epoch and not of "
                "the averaged weights; call `averaged.update_bn(train_loader)` first",
                stacklevel=4,
            )


def _is_trained(parameter: torch.Tensor) -> bool:
    return parameter.requires_grad and parameter.is_floating_point()


def _batch_norm(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the statistics of batch norm."""
    return {
        f"{place}.{name}".lstrip("."): buffer
        for place, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    }


def _passes(model: nn.Module, loader: Iterable[Any], device: Any) -> Iterator[Any]:
    """Yield the outputs of a model for the batches of a loader."""
    for batch in loader:
        x = batch[0] if isinstance(batch, (list, tuple)) else batch
        yield model(x if device is None else x.to(device))


def _fill(model: nn.Module, passes: Iterable[Any]) -> None:
    """Fill the statistics of batch norm in train mode with the mean over passes and ranks."""
    momenta = {
        module: module.momentum
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.track_running_stats
    }
    if not momenta:
        return
    count, failure = 0, None
    for module in momenta:
        module.reset_running_stats()
        module.momentum = None  # each batch counts alike
    try:
        count = sum(1 for _ in passes)
    except Exception as error:  # a rank that fails must not let the others wait
        failure = error
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum
    done = torch.tensor(0 if failure else count)
    if not minimum(done):
        raise failure or ValueError("`loader` must have a batch, got none on this rank or another")
    ranks = position()[1]
    if ranks > 1:
        for module in momenta:
            for buffer in (module.running_mean, module.running_var):
                assert buffer is not None  # noqa: S101  # it tracks them
                buffer.copy_(total(buffer) / ranks)


def _local(x: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor, without communication."""
    to_local = getattr(x, "to_local", None)
    own: torch.Tensor = x.detach() if to_local is None else to_local().detach()
    return own


def _exact_copy(x: torch.Tensor) -> torch.Tensor:
    """Copy a parameter, half precision as float32, where it lies."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return x.detach().to(torch.float32 if half else x.dtype, copy=True)


def _check_names(mean: Mapping[str, Any], parameters: Mapping[str, torch.Tensor]) -> None:
    lacking = [
        f"{name} {tuple(value.shape)}"
        for name, value in mean.items()
        if name not in parameters or parameters[name].shape != value.shape
    ]
    if lacking:
        raise ValueError(
            f"`model` must have the parameters and buffers of the mean, got none for {', '.join(lacking[:3])}; "
            "usual cause: another model, or a wrapper that changes names"
        )
