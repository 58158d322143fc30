"""The average of the stored checkpoints of a run, against the mean of whole arrays."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as in_numpy

from gwa_core import EpochAverage, GWATracker, average_shares
from gwa_offline import FeaturesError, RunFolder, average_checkpoints
from gwa_offline.analysis import averaging

torch = pytest.importorskip("torch")
in_torch = pytest.importorskip("safetensors.torch")

EPOCHS = 6
NAME = "epoch_{epoch:03d}.safetensors"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(averaging, "BLOCK", 7)


def make_run(folder: Path, epochs: int = EPOCHS, **columns) -> RunFolder:
    """A run whose separation rises and falls again."""
    run = RunFolder.create(folder / "run", num_samples=40, num_classes=2, adapter="test")
    tracker, rng = GWATracker(40), np.random.default_rng(0)
    for epoch in range(epochs):
        centre = 0.3 + 0.1 * np.sin(3 * epoch / epochs)
        tracker.update(rng.normal(centre, 0.1, 40), ids=np.arange(40))
        metrics = {name: values[epoch] for name, values in columns.items()}
        run.write_epoch(tracker.end_epoch(step=100 * (epoch + 1)), metrics=metrics)
    return run


def history(run: RunFolder) -> list:
    return [summary for summary, _ in run.epochs()]


def weights(epoch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(epoch)
    return {
        "body.weight": rng.normal(size=(5, 4)).astype(np.float32),
        "head.weight": rng.normal(size=(3, 5)),
        "head.bias": rng.normal(size=3).astype(np.float16),
        "scale": np.asarray(rng.normal(), np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "steps": np.asarray([epoch, 100 + epoch]),
        "mask": rng.random(11) < 0.5,
    }


def save_all(folder: Path, epochs: int = EPOCHS, change=dict) -> str:
    for epoch in range(epochs):
        in_numpy.save_file(change(weights(epoch)), folder / NAME.format(epoch=epoch))
    return str(folder / NAME)


def expected(shares: np.ndarray, name: str) -> np.ndarray:
    return sum(s * weights(t)[name].astype(np.float64) for t, s in enumerate(shares))


def test_it_is_the_mean_by_the_shares_of_the_core(tmp_path):
    run = make_run(tmp_path)
    found = average_checkpoints(run.path, save_all(tmp_path), tmp_path / "new" / "mean.safetensors")
    shares = average_shares(history(run))
    got = in_numpy.load_file(found.path)
    np.testing.assert_allclose(got["body.weight"], expected(shares, "body.weight"), rtol=1e-6)
    np.testing.assert_allclose(got["head.weight"], expected(shares, "head.weight"), rtol=1e-12)
    np.testing.assert_array_equal(
        got["head.bias"], expected(shares, "head.bias").astype(np.float16)
    )
    np.testing.assert_allclose(got["scale"], expected(shares, "scale"), rtol=1e-6)
    last = weights(EPOCHS - 1)
    for name in ("empty", "steps", "mask"):
        np.testing.assert_array_equal(got[name], last[name])
    assert {name: x.dtype for name, x in got.items()} == {n: x.dtype for n, x in last.items()}
    assert found.epochs == tuple(np.flatnonzero(shares))
    np.testing.assert_allclose(found.shares, shares[shares > 0], rtol=1e-15)
    assert [path.name for path in found.path.parent.iterdir()] == ["mean.safetensors"]


def test_it_is_the_running_mean(tmp_path):
    run = make_run(tmp_path)
    average, mean = EpochAverage(5, total_steps=EPOCHS), np.zeros((5, 4))
    for epoch, summary in enumerate(history(run)):
        mean += average.share(summary) * (weights(epoch)["body.weight"] - mean)
    out = tmp_path / "mean.safetensors"
    average_checkpoints(run.path, save_all(tmp_path), out, power=5)
    np.testing.assert_allclose(in_numpy.load_file(out)["body.weight"], mean, rtol=1e-6)


def test_a_run_that_was_stopped_early_has_the_warm_up_of_its_plan(tmp_path):
    run, pattern = make_run(tmp_path / "run"), save_all(tmp_path)
    shares = average_shares(history(run), total_steps=30)
    found = average_checkpoints(run.path, pattern, tmp_path / "mean.safetensors", total_steps=30)
    assert found.epochs == tuple(np.flatnonzero(shares))
    assert found.epochs[0] == 3
    np.testing.assert_allclose(found.shares, shares[shares > 0], rtol=1e-15)


def test_a_model_of_pytorch_in_bfloat16_with_its_metadata(tmp_path):
    run, models = make_run(tmp_path), []
    for epoch in range(EPOCHS):
        torch.manual_seed(epoch)
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5)).bfloat16()
        models.append(model)
        file = tmp_path / f"checkpoint-{100 * (epoch + 1)}" / "model.safetensors"
        file.parent.mkdir()
        in_torch.save_file(model.state_dict(), file, metadata={"format": "pt"})
    out = tmp_path / "mean.safetensors"
    pattern = str(tmp_path / "checkpoint-{step}" / "model.safetensors")
    found = average_checkpoints(run.path, pattern, out)
    assert found.batch_norm
    shares = average_shares(history(run))
    got = in_torch.load_file(out)
    for name in ("0.weight", "1.running_var"):
        stacked = torch.stack([model.state_dict()[name].double() for model in models])
        mean = torch.einsum("t,t...->...", torch.from_numpy(shares), stacked)
        assert got[name].dtype == torch.bfloat16
        assert torch.equal(got[name], mean.bfloat16())
    models[0].load_state_dict(got)
    with safetensors.safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_bfloat16_is_rounded_as_everywhere(tmp_path):
    run = make_run(tmp_path, 2)
    bits = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    known = bits[np.isfinite(bits.astype(np.float32))]
    for epoch, order in enumerate((slice(None), slice(None, None, -1))):
        tensors = {"x": known[order].copy()}
        in_numpy.save_file(tensors, tmp_path / NAME.format(epoch=epoch))
    out = tmp_path / "mean.safetensors"
    averaging.BLOCK = 1000
    average_checkpoints(run.path, tmp_path / NAME, out, power=0)
    mean = (known.astype(np.float64) + known[::-1].astype(np.float64)) / 2
    got = in_torch.load_file(out)["x"].view(torch.uint16).numpy()
    np.testing.assert_array_equal(got, mean.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_only_epochs_that_count_need_a_checkpoint(tmp_path):
    quality = [0.9, 0.5, 0.4, 8e-10, np.nan, -1.0]
    run = make_run(tmp_path, quality=quality)
    pattern, out = save_all(tmp_path), tmp_path / "mean.safetensors"
    for epoch in (0, 3, 4, 5):
        Path(pattern.format(epoch=epoch)).unlink()
    found = average_checkpoints(run.path, pattern, out, signal="quality", power=1, warmup=1)
    assert found.epochs == (1, 2)
    assert found.shares.sum() == pytest.approx(1, rel=1e-15)
    assert found.shares == pytest.approx([5 / 9, 4 / 9])
    np.testing.assert_array_equal(in_numpy.load_file(out)["steps"], weights(2)["steps"])


def test_the_order_of_the_tensors_in_a_file_does_not_matter(tmp_path):
    run = make_run(tmp_path)
    pattern, out = save_all(tmp_path), tmp_path / "mean.safetensors"
    average_checkpoints(run.path, pattern, out)
    # The format sorts by the size of the elements; by hand, any order can be written.
    file, data, entries = Path(pattern.format(epoch=2)), b"", {}
    for name, array in reversed(in_numpy.load_file(file).items()):
        kind = {"f": f"F{8 * array.itemsize}", "i": "I64", "b": "BOOL"}[array.dtype.kind]
        span = [len(data), len(data) + array.nbytes]
        entries[name] = {"dtype": kind, "shape": array.shape, "data_offsets": span}
        data += array.tobytes()
    head = json.dumps(entries).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + data)
    other = tmp_path / "other.safetensors"
    average_checkpoints(run.path, pattern, other)
    assert other.read_bytes() == out.read_bytes()


def expect_refusal(tmp_path, run, pattern, error, message, out="mean.safetensors", **options):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(error, match=message):
        average_checkpoints(run.path, pattern, tmp_path / out, **options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_missing_checkpoint_is_named_with_its_epoch_and_share(tmp_path):
    run, pattern = make_run(tmp_path), save_all(tmp_path)
    file = Path(pattern.format(epoch=3))
    file.unlink()
    share = 100 * average_shares(history(run))[3]
    words = re.escape(
        f"{file}: there is no such file; it is the checkpoint of epoch 3, whose share"
    )
    expect_refusal(
        tmp_path, run, pattern, FeaturesError, f"{words} in the average is {share:.2g} %"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {k: v for k, v in x.items() if k != "scale"}, "lacks 'scale'"),
        (lambda x: {**x, "more": x["mask"]}, "also has 'more'"),
        (
            lambda x: {**x, "head.weight": x["head.weight"].T.copy()},
            r"`head.weight` must be float64 of shape \(3, 5\) as in .*, got float64 of shape \(5, 3\)",
        ),
        (
            lambda x: {**x, "scale": x["scale"].astype(ml_dtypes.bfloat16)},
            "`scale` must be float32 .* got bfloat16",
        ),
        (lambda x: {**x, "head.bias": x["head.bias"] * np.nan}, "`head.bias` has a nan"),
        (lambda x: {**x, "scale": x["scale"].astype(ml_dtypes.float8_e4m3fn)}, "has dtype F8_E4M3"),
    ],
)
def test_a_checkpoint_unlike_the_others_is_refused(change, message, tmp_path):
    run, pattern = make_run(tmp_path), save_all(tmp_path)
    file = Path(pattern.format(epoch=2))
    in_numpy.save_file(change(weights(2)), file)
    expect_refusal(tmp_path, run, pattern, FeaturesError, f"{file.name}.*{message}")


@pytest.mark.parametrize("cut", [1, 60, 200, 10**6])
def test_a_truncated_checkpoint_is_refused(cut, tmp_path):
    run, pattern = make_run(tmp_path), save_all(tmp_path)
    file = Path(pattern.format(epoch=2))
    file.write_bytes(file.read_bytes()[:-cut])
    expect_refusal(tmp_path, run, pattern, FeaturesError, f"{file.name}.*truncated")


def test_bytes_that_belong_to_no_tensor_are_refused(tmp_path):
    run, pattern = make_run(tmp_path), save_all(tmp_path)
    file = Path(pattern.format(epoch=2))
    file.write_bytes(file.read_bytes() + b"1234")
    expect_refusal(tmp_path, run, pattern, FeaturesError, f"{file.name}.*belong to no tensor")


def test_no_file_is_overwritten(tmp_path):
    run, pattern = make_run(tmp_path), save_all(tmp_path)
    # Also not the checkpoint of an epoch that does not count.
    Path(pattern.format(epoch=0)).unlink()
    for epoch in (0, 4):
        out = NAME.format(epoch=epoch)
        expect_refusal(
            tmp_path, run, pattern, FeaturesError, "must not be a checkpoint", out, warmup=1
        )
    (tmp_path / "link.safetensors").symlink_to(pattern.format(epoch=4))
    expect_refusal(
        tmp_path, run, pattern, FeaturesError, "must not be a checkpoint", "link.safetensors"
    )
    (tmp_path / "mine.safetensors").write_text("mine")
    expect_refusal(
        tmp_path, run, pattern, FeaturesError, "exists; delete it first", "mine.safetensors"
    )
    expect_refusal(
        tmp_path, run, pattern, ValueError, "`out` must be a .safetensors file", "mean.pt"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", r"must have \{epoch\}"),
        ("{}.safetensors", r"must have \{epoch\}"),
        ("{epoch", r"must have \{epoch\}"),
        ("{epoch:03q}.safetensors", r"must have \{epoch\}"),
        ("{loss}.safetensors", r"must have \{epoch\}"),
        ("{epoch.real}.safetensors", r"must have \{epoch\}"),
        ("epoch_{epoch}.pt", "must be .safetensors files"),
    ],
)
def test_names_of_checkpoints(name, message, tmp_path):
    expect_refusal(tmp_path, make_run(tmp_path), name, ValueError, f"`checkpoints` {message}")


def test_epochs_that_are_counted_from_one(tmp_path):
    run = make_run(tmp_path)
    for epoch in range(EPOCHS):
        in_numpy.save_file(weights(epoch), tmp_path / f"{epoch + 1}.safetensors")
    pattern = str(tmp_path / "{epoch}.safetensors")
    expect_refusal(tmp_path, run, pattern, ValueError, r"\{number\} counts from 1", warmup=1)
    out = tmp_path / "mean.safetensors"
    average_checkpoints(run.path, tmp_path / "{number}.safetensors", out)
    shares = average_shares(history(run))
    got = in_numpy.load_file(out)["head.weight"]
    np.testing.assert_allclose(got, expected(shares, "head.weight"), rtol=1e-12)


def test_runs_and_options_that_do_not_fit(tmp_path):
    run, pattern = make_run(tmp_path, quality=[-1.0] * EPOCHS), save_all(tmp_path)
    expect_refusal(tmp_path, run, pattern, FeaturesError, "no epoch counts", signal="quality")
    expect_refusal(
        tmp_path, run, pattern, ValueError, "'acc' that EpochAverage watches", signal="acc"
    )
    expect_refusal(tmp_path, run, pattern, ValueError, "`power` must be", power=-1)
    expect_refusal(tmp_path, run, pattern, ValueError, "`warmup` must be", warmup=1.5)
    empty = RunFolder.create(tmp_path / "empty", num_samples=4, num_classes=2, adapter="test")
    expect_refusal(tmp_path, empty, pattern, FeaturesError, "no finished epoch")
    with pytest.raises(FeaturesError, match="is no run folder"):
        average_checkpoints(tmp_path, pattern, tmp_path / "mean.safetensors")


def test_one_step_for_all_epochs_names_one_file(tmp_path):
    run = RunFolder.create(tmp_path / "run", num_samples=4, num_classes=2, adapter="test")
    tracker = GWATracker(4)
    for _ in range(2):
        tracker.update(np.asarray([0.1, 0.2, 0.3, 0.7]), ids=np.arange(4))
        run.write_epoch(tracker.end_epoch(step=5))
    pattern = str(tmp_path / "{step}.safetensors")
    expect_refusal(tmp_path, run, pattern, ValueError, "names 1 for 2 epochs")


def test_memory_does_not_grow_with_tensors_or_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "BLOCK", 2**14)
    run, size = make_run(tmp_path, 30), 2**18
    for epoch in range(30):
        tensors = {"a": np.full((2, size // 2), epoch, np.float32), "b": np.ones(size, np.float32)}
        in_numpy.save_file(tensors, tmp_path / NAME.format(epoch=epoch))
    seen = []
    tracemalloc.start()
    average_checkpoints(
        run.path,
        tmp_path / NAME,
        tmp_path / "mean.safetensors",
        progress=lambda done, total: seen.append((done, total)),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size * 4  # one tensor of one checkpoint
    assert seen[-1] == (2 * size, 2 * size)
