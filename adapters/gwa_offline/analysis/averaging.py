"""The average of the stored weights of a run, computed block by block from its checkpoints."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gwa_core import EpochSummary
from gwa_offline.analysis.findings import EpochRecord
from gwa_offline.analysis.statistics import shares_of
from gwa_offline.analysis.view import observed
from gwa_offline.files.arrays import Packed
from gwa_offline.files.records import write_whole
from gwa_offline.files.tensors import open_all
from gwa_offline.store import FeaturesError, RunFolder

__all__ = ["AveragedCheckpoints", "average_checkpoints"]

# With a smaller share an epoch changes less than float32 can say, and needs no checkpoint.
LEAST = 1e-9
# Elements in memory at once: they and their sum stay in the cache.
BLOCK = 1 << 18
FIELDS = ("epoch", "number", "step")
STATISTICS = ("running_mean", "running_var")

Tensors = Mapping[str, Packed]


@dataclass(frozen=True, kw_only=True)
class AveragedCheckpoints:
    """What was averaged, and where it is.

    Parameters
    ----------
    path : Path
        The written file.
    epochs : tuple of int
        Numbers of the epochs that count.
    shares : array of shape (len(epochs),)
        Their shares, which sum to one.
    checkpoints : tuple of Path
        Their files.
    batch_norm : bool
        Whether a tensor is named as a statistic of batch norm (``running_mean``, ``running_var``).
    """

    path: Path
    epochs: tuple[int, ...]
    shares: NDArray[np.float64]
    checkpoints: tuple[Path, ...]
    batch_norm: bool


def average_checkpoints(
    run: str | os.PathLike[str],
    checkpoints: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    power: float = 10.0,
    warmup: float = 0.1,
    signal: str = "separation",
    total_steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AveragedCheckpoints:
    r"""Write the mean of the checkpoints of a finished run, each epoch with its share.

    .. math:: \bar\theta = \sum_t a_t \theta_t, \qquad a_t = s_t^p / \sum_u s_u^p

    Parameters
    ----------
    run : path
        A run folder; only its ``epochs.jsonl`` is read.
    checkpoints : str or path
        The ``.safetensors`` file of an epoch, with ``{epoch}``, counted from 0 as in the run folder,
        ``{number}``, counted from 1, or ``{step}``, the step of the summary. A format may follow:
        ``{epoch:03d}``.
    out : path
        The file to write. There must be none yet. A missing folder is created.
    power : float
        The exponent p, at least 0, default 10.
    warmup : float or int
        A fraction of all epochs in [0, 1), default 0.1, or a number of epochs, which do not count.
    signal : str
        The column of the run that is s, default "separation"; larger is better.
    total_steps : int, optional
        Planned number of epochs, of which the warm-up is a fraction; default the number of epochs in
        the run. Give it for a run that was stopped early.
    progress : callable, optional
        Called as ``progress(done, total)`` with the number of elements written.

    Returns
    -------
    AveragedCheckpoints
        The epochs, their shares and their files.

    Raises
    ------
    FeaturesError
        If a checkpoint is missing, damaged or unlike the others, has a nan, or no epoch counts.
        Nothing is written then.
    ValueError
        If the run lacks the column, or `checkpoints` or an option is out of range.

    See Also
    --------
    gwa_core.average_shares : The shares.

    Notes
    -----
    An epoch with a share of at most 1e-9 is left out: it changes less than rounding to float32 does.
    The other shares are scaled to sum to one.

    Floating-point tensors are summed in float64 and rounded once, to the dtype of the checkpoints.
    Integer and boolean tensors, and the metadata, come from the last epoch that counts.
    Means and variances of batch norm are averaged too, but do not belong to the averaged weights:
    compute them again with ``torch.optim.swa_utils.update_bn``.

    Cost: each checkpoint that counts is read once, in blocks of 2**18 elements. Memory does not
    depend on the size of a tensor or on the number of checkpoints.

    References
    ----------
    Izmailov et al., UAI 2018, for the plain mean. The signal: Hölzl, Rueckert, Kaissis, NeurIPS
    2025, Definition 2 and App. A.4.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from gwa_core import GWATracker
    >>> from gwa_offline import RunFolder, average_checkpoints
    >>> folder = tempfile.TemporaryDirectory()
    >>> run = RunFolder.create(folder.name, num_samples=3, num_classes=2, adapter="mine")
    >>> tracker = GWATracker(3)
    >>> head = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    >>> for epoch, weight in enumerate([1.0, 2.0]):
    ...     tracker.update(np.array([0.1, 0.5, 0.9]), ids=np.arange(3))
    ...     run.write_epoch(tracker.end_epoch())
    ...     file = Path(folder.name) / f"epoch_{epoch}.safetensors"
    ...     _ = file.write_bytes(len(head).to_bytes(8, "little") + head + np.float32(weight).tobytes())
    >>> mean = average_checkpoints(
    ...     run.path, folder.name + "/epoch_{epoch}.safetensors", folder.name + "/mean.safetensors")
    >>> mean.epochs, mean.shares.round(3).tolist()
    ((0, 1), [0.5, 0.5])
    >>> np.frombuffer(mean.path.read_bytes()[-4:], np.float32).item()
    1.5
    >>> folder.cleanup()
    """
    rows = RunFolder.open(run).epochs()
    if not rows:
        raise FeaturesError(f"{run}: the run has no finished epoch yet")
    files = _files(checkpoints, [summary for summary, _ in rows])
    records = [EpochRecord(summary=s, source="online", metrics=m) for s, m in rows]
    shares = shares_of(
        observed(records), power=power, warmup=warmup, signal=signal, total_steps=total_steps
    )
    if not shares.any():
        raise FeaturesError(
            f"{run}: no epoch counts: {signal} is above 0 in none of the {len(rows)} epochs after "
            f"the warm-up (warmup={warmup}) that were not cut short"
        )
    place = Path(out)
    if place.suffix != ".safetensors":
        raise ValueError(f"`out` must be a .safetensors file, got {os.fspath(out)!r}")
    if place.resolve() in {file.resolve() for file in files}:
        raise FeaturesError(f"`out` must not be a checkpoint of the run, got {out}")
    if place.exists():
        raise FeaturesError(f"`out` must be a new file, {out} exists; delete it first")

    kept = np.flatnonzero(shares > LEAST)
    counted = shares[kept] / shares[kept].sum()
    chosen = [files[i] for i in kept]
    for file, i in zip(chosen, kept, strict=True):
        if not file.is_file():
            raise FeaturesError(
                f"{file}: there is no such file; it is the checkpoint of epoch "
                f"{rows[i][0].epoch}, whose share in the average is {100 * shares[i]:.2g} %. "
                "Was it deleted during training, or does `checkpoints` name another place?"
            )
    head, last = open_all(chosen[-1])
    opened = [_alike(file, last, chosen[-1]) for file in chosen[:-1]] + [last]

    def write(stream: IO[bytes]) -> None:
        stream.write(head)
        total, done = sum(tensor.size for tensor in last.values()), 0
        for name, tensor in last.items():
            for start in range(0, tensor.size, BLOCK):
                stop = min(start + BLOCK, tensor.size)
                parts = [
                    (file, tensors[name]) for file, tensors in zip(chosen, opened, strict=True)
                ]
                block = _mean(name, parts, counted, start, stop)
                stream.write(tensor.encode(block).data)
                done += stop - start
                if progress is not None:
                    progress(done, total)

    write_whole(place, write)
    return AveragedCheckpoints(
        path=place,
        epochs=tuple(rows[i][0].epoch for i in kept),
        shares=counted,
        checkpoints=tuple(chosen),
        batch_norm=any(name.endswith(STATISTICS) for name in last),
    )


def _files(checkpoints: str | os.PathLike[str], history: Sequence[EpochSummary]) -> list[Path]:
    """Return the checkpoint of each epoch, there or not."""
    pattern = os.fspath(checkpoints)
    try:
        names = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
        if not names or names - set(FIELDS):
            raise ValueError  # noqa: TRY301  (said below, as for what format refuses)
        files = [
            Path(pattern.format(epoch=s.epoch, number=s.epoch + 1, step=s.step)) for s in history
        ]
    except ValueError:
        raise ValueError(
            "`checkpoints` must have {epoch}, {number} or {step}, perhaps with a format as in "
            f"{{epoch:03d}}, got {pattern!r}"
        ) from None
    if files[0].suffix != ".safetensors":
        raise ValueError(
            f"`checkpoints` must be .safetensors files, got {pattern!r}; other files are pickled: "
            "save a state dict with safetensors.torch.save_file"
        )
    if len(set(files)) < len(files):
        raise ValueError(
            f"`checkpoints` must name a file for each epoch, got {pattern!r}, which names "
            f"{len(set(files))} for {len(files)} epochs; use {{epoch}}"
        )
    if names == {"epoch"} and not files[0].exists():
        beyond = Path(pattern.format(epoch=history[-1].epoch + 1))
        if beyond.exists():
            raise ValueError(
                f"`checkpoints` must count epochs from 0 with {{epoch}}, but there is no {files[0]}, "
                f"and a {beyond.name} after the last epoch; {{number}} counts from 1"
            )
    return files


def _alike(file: Path, wanted: Tensors, model: Path) -> Tensors:
    """Open a checkpoint that must have the tensors of another one."""
    _, tensors = open_all(file)
    if tensors.keys() != wanted.keys():
        lacking = [name for name in wanted if name not in tensors]
        found = [name for name in tensors if name not in wanted]
        raise FeaturesError(
            f"{file} must have the tensors of {model}, "
            + (f"lacks {lacking[0]!r}" if lacking else f"also has {found[0]!r}")
            + "; are they of one model?"
        )
    for name, tensor in wanted.items():
        other = tensors[name]
        if (other.shape, other.kind) != (tensor.shape, tensor.kind):
            raise FeaturesError(
                f"{file}: `{name}` must be {tensor.kind} of shape {tensor.shape} as in {model}, "
                f"got {other.kind} of shape {other.shape}; are they of one model?"
            )
    return tensors


def _mean(
    name: str,
    parts: Sequence[tuple[Path, Packed]],
    shares: NDArray[np.float64],
    start: int,
    stop: int,
) -> NDArray[Any]:
    """Return elements start..stop of the mean of a tensor; integers come from the last part."""
    last = parts[-1][1]
    if last.dtype.kind != "f":
        return last.part(start, stop)
    total, product = np.zeros(stop - start), np.empty(stop - start)
    for (file, tensor), share in zip(parts, shares, strict=True):
        block = tensor.part(start, stop)
        if np.isnan(block).any():
            raise FeaturesError(f"{file}: `{name}` has a nan; did the training diverge?")
        total += np.multiply(block, share, out=product)
    return total
