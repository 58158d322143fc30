import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from backends import require

from gwa_core import EpochSummary
from gwa_offline.readers import open_features
from gwa_offline.store import FeaturesError, RunFolder, begin_run, end_run, name_classes

N, C, D = 12, 3, 4
HALF_LINE = "last line is incomplete"


def make_summary(epoch, value=0.25):
    floats = [value + i / 16 for i in range(len(EpochSummary._fields) - 6)]
    return EpochSummary(epoch, 10 * epoch, N, 0, *floats, expected=N + 1)


def make_arrays(epoch):
    rng = np.random.default_rng(epoch)
    return {
        "latents": rng.standard_normal((N, D)).astype(np.float32),
        "weight": rng.standard_normal((C, D)).astype(np.float32),
        "targets": np.arange(N) % C,
    }


def open_header(run):
    return json.loads((run.path / "run.json").read_text())


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", num_samples=N, num_classes=C, adapter="test")


def test_run_json_is_as_documented(tmp_path):
    RunFolder.create(
        tmp_path / "run",
        num_samples=np.int64(N),
        num_classes=C,
        class_names=("a", "b", "c"),
        beta=1.5,
        adapter="torch",
        targets=np.arange(N, dtype=np.uint8) % C,
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {
        "schema": 1,
        "kind": "gwa-run",
        "num_samples": N,
        "num_classes": C,
        "class_names": ["a", "b", "c"],
        "beta": 1.5,
        "adapter": "torch",
        "loss": "cross_entropy",
    }
    run = RunFolder.open(str(tmp_path / "run"))
    assert (run.num_samples, run.num_classes, run.class_names) == (N, C, ("a", "b", "c"))
    assert (run.beta, run.adapter, run.loss) == (1.5, "torch", "cross_entropy")
    np.testing.assert_array_equal(run.targets(), np.arange(N) % C)


def test_epochs_come_back(run):
    scores = np.linspace(-1, 1, N)
    scores[3] = np.nan
    run.write_epoch(make_summary(0), scores=scores, features=make_arrays(0), metrics={"acc": 0.5})
    run.write_epoch(make_summary(3, value=np.nan), metrics={"acc": np.float32(1), "loss": np.inf})

    run = RunFolder.open(run.path)
    (first, metrics), (second, others) = run.epochs()
    assert first == make_summary(0)
    assert metrics == {"acc": 0.5}
    assert (second.epoch, second.step) == (3, 30)
    assert np.isnan(second.mean)
    assert others["acc"] == 1.0
    assert np.isnan(others["loss"])
    assert b"NaN" not in (run.path / "epochs.jsonl").read_bytes()
    np.testing.assert_array_equal(run.scores(0), scores.astype(np.float32))
    assert isinstance(run.scores(0), np.memmap)
    assert run.scores(3) is run.features_path(3) is run.targets() is None
    with np.load(run.features_path(0)) as saved:
        for name, array in make_arrays(0).items():
            np.testing.assert_array_equal(saved[name], array)
    assert sorted(p.name for p in run.path.rglob("*") if p.is_file()) == [
        "000000.npy", "000000.npz", "epochs.jsonl", "run.json",
    ]  # fmt: skip


def test_predictions_come_back_and_are_dropped_with_their_epoch(run):
    classes = np.arange(N, dtype=np.uint8) % C
    run.write_epoch(make_summary(0), scores=np.zeros(N), predictions=classes)
    run.write_epoch(make_summary(1), predictions=np.full(N, -1))
    run.write_epoch(make_summary(2))
    run = RunFolder.open(run.path)
    np.testing.assert_array_equal(run.predictions(0), classes)
    assert run.predictions(0).dtype == np.int32
    np.testing.assert_array_equal(run.predictions(1), np.full(N, -1))
    assert run.predictions(2) is None
    source = open_features(run.path)
    np.testing.assert_array_equal(source.epochs[0].predictions, classes)
    assert source.epochs[2].predictions is None
    run.truncate(1)
    assert [file.name for file in (run.path / "predictions").iterdir()] == ["000000.npy"]


def test_predictions_that_do_not_fit_are_refused(run):
    for message, wrong in {
        "class numbers of shape": np.zeros(N),
        "got int64 of shape": np.zeros(N + 1, np.int64),
        r"-1\.\.2 \(C = 3\), got 0 to 3": np.arange(N) % 4,
        r"got -2 to": np.arange(N) % C - 2,
    }.items():
        with pytest.raises(FeaturesError, match=message):
            run.write_epoch(make_summary(0), predictions=wrong)
    assert not (run.path / "epochs.jsonl").exists()
    run.write_epoch(make_summary(0), predictions=np.zeros(N, np.int64))
    file = run.path / "predictions" / "000000.npy"
    np.save(file, np.full(N, 9, np.int32))
    with pytest.raises(FeaturesError, match=r"000000.npy: `predictions` must be in"):
        run.predictions(0)
    np.save(file, np.zeros(N))
    with pytest.raises(FeaturesError, match="predictions must be int32 of shape"):
        run.predictions(0)


OLD_LINE = (
    '{"epoch": 4, "step": 9, "count": 12, "omitted": 0, "mean": 0.0625, "variance": 0.5, '
    '"skewness": 0.5, "kurtosis": 1.0, "gwa": 0.25, "gwa_standard_error": 0.5, '
    '"denominator": 2.2, "bimodality": 0.5, "negative_fraction": null, "accuracy": 0.75}\n'
)


@pytest.mark.parametrize(("mean", "separation"), [("0.0625", 0.25), ("-1", 0.0), ("null", None)])
def test_a_line_of_the_first_version_is_read(run, mean, separation):
    file = run.path / "epochs.jsonl"
    file.write_text(OLD_LINE.replace("0.0625", mean))
    ((summary, metrics),) = run.epochs()
    assert (summary.epoch, summary.expected) == (4, None)
    assert metrics == {"accuracy": 0.75}
    if separation is None:
        assert np.isnan(summary.separation)
    else:
        assert summary.separation == pytest.approx(separation)
    run.write_epoch(make_summary(5))
    assert [s.epoch for s, _ in RunFolder.open(run.path).epochs()] == [4, 5]
    assert open_features(run.path).epochs[1].summary.expected == N + 1


def test_a_window_comes_back_and_a_line_without_one_is_of_an_epoch(run):
    run.write_epoch(make_summary(0)._replace(window=500))
    file = run.path / "epochs.jsonl"
    line = json.loads(file.read_text())
    assert line.pop("window") == 500
    assert run.epochs()[0][0].window == 500
    file.write_text(json.dumps(line) + "\n")
    ((summary, metrics),) = run.epochs()
    assert (summary.window, summary.expected, metrics) == (None, N + 1, {})
    assert summary == make_summary(0)


@pytest.mark.parametrize("name", ["expected", "separation", "window"])
def test_a_metric_of_the_first_version_may_have_the_name_of_a_field_of_today(run, name):
    line = json.loads(OLD_LINE) | {name: 0.5}
    (run.path / "epochs.jsonl").write_text(json.dumps(line) + "\n")
    ((summary, metrics),) = run.epochs()
    assert metrics == {"accuracy": 0.75, name: 0.5}
    assert summary.expected is None
    assert summary.separation != 0.5


def test_a_line_has_every_field_of_the_summary(run):
    run.write_epoch(make_summary(0))
    run.write_epoch(make_summary(1)._replace(expected=None, separation=np.float32(0.5)))
    lines = [json.loads(line) for line in (run.path / "epochs.jsonl").read_text().splitlines()]
    assert [tuple(line) for line in lines] == [EpochSummary._fields] * 2
    assert [line["expected"] for line in lines] == [N + 1, None]
    assert [summary.expected for summary, _ in run.epochs()] == [N + 1, None]
    assert lines[1]["separation"] == run.epochs()[1][0].separation == 0.5


def test_numpy_numbers_are_numbers(tmp_path):
    run = RunFolder.create(
        tmp_path / "run", num_samples=np.int32(N), num_classes=np.uint8(C), beta=np.float32(1.5),
        adapter="test",
    )  # fmt: skip
    fields = make_summary(0)._asdict()
    fields |= {name: np.int64(fields[name]) for name in ("epoch", "step", "count", "expected")}
    fields |= {name: np.float64(v) for name, v in fields.items() if isinstance(v, float)}
    run.write_epoch(EpochSummary(**fields), scores=np.zeros(N), features=make_arrays(0))
    assert run.epochs()[0][0] == make_summary(0)
    assert RunFolder.open(run.path).beta == 1.5
    assert run.scores(np.int64(0)) is not None
    assert run.features_path(np.uint16(0)).name == "000000.npz"
    blocks = open_features(run.path).epochs[0].features.blocks(rows=np.int64(5))
    assert [len(block.latents) for block in blocks] == [5, 5, 2]
    assert run.truncate(np.int64(0)).epochs() == []
    for wrong in (True, 1.0):
        with pytest.raises(FeaturesError, match="`epoch` must be an integer"):
            run.scores(wrong)
        with pytest.raises(FeaturesError, match="`epoch` must be an integer"):
            run.truncate(wrong)


def test_bfloat16_of_jax_can_be_read_again(run):
    import ml_dtypes

    arrays = make_arrays(0)
    arrays["latents"] = arrays["latents"].astype(ml_dtypes.bfloat16)
    run.write_epoch(make_summary(0), features=arrays)
    with np.load(run.features_path(0)) as saved:
        np.testing.assert_array_equal(saved["latents"], arrays["latents"].astype(np.float32))


def test_tensors_are_written_as_they_are(run):
    torch = require("torch")
    arrays = {name: torch.as_tensor(array) for name, array in make_arrays(0).items()}
    arrays["weight"] = arrays["weight"].to(torch.bfloat16).requires_grad_()
    run.write_epoch(make_summary(0), scores=torch.zeros(N, requires_grad=True), features=arrays)
    np.testing.assert_array_equal(run.scores(0), np.zeros(N))
    with np.load(run.features_path(0)) as saved:
        np.testing.assert_array_equal(saved["weight"], arrays["weight"].detach().float().numpy())
    with pytest.raises(FeaturesError, match="`scores` cannot become a NumPy array"):
        run.write_epoch(make_summary(1), scores=torch.zeros(N).to_sparse())


def test_going_on_from_an_older_checkpoint(run):
    for epoch in range(4):
        run.write_epoch(make_summary(epoch), scores=np.zeros(N), features=make_arrays(epoch))
    run = RunFolder.open(run.path)
    with pytest.raises(FeaturesError, match=r"already at epoch 3.*truncate\(2\)"):
        run.write_epoch(make_summary(2))
    run.truncate(2)
    assert [s.epoch for s, _ in run.epochs()] == [0, 1]
    assert run.scores(1) is not None
    assert run.scores(2) is run.features_path(3) is None
    run.write_epoch(make_summary(2))
    assert [s.epoch for s, _ in run.epochs()] == [0, 1, 2]
    assert RunFolder.open(run.path).truncate(0).epochs() == []


def test_a_run_is_not_started_over_another(run):
    again = {"num_samples": N, "num_classes": C, "adapter": "test"}
    RunFolder.create(run.path, **again, targets=np.zeros(N, int))  # no epoch yet: nothing to lose
    # A trainer that learns its loss from the first batch creates the run once more.
    RunFolder.create(run.path, **again, loss="binary_cross_entropy")
    assert RunFolder.open(run.path).loss == open_header(run)["loss"] == "binary_cross_entropy"
    assert run.targets() is None
    run.write_epoch(make_summary(0))
    with pytest.raises(FeaturesError, match=r"1 epochs; go on.*RunFolder.open.*another name"):
        RunFolder.create(run.path, **again)
    (run.path / "run.json").unlink()
    with pytest.raises(FeaturesError, match="another name"):
        RunFolder.create(run.path, **again)


def test_what_a_killed_epoch_left_is_not_taken_for_the_new_one(run):
    run.write_epoch(make_summary(0), scores=np.zeros(N), features=make_arrays(0))
    (run.path / "features" / "000000.npz").rename(run.path / "features" / "000001.safetensors")
    (run.path / "scores" / "000000.npy").rename(run.path / "scores" / "000001.npy")
    (run.path / "features" / "000001.npz.tmp").write_bytes(b"half")
    run.write_epoch(make_summary(1))
    assert run.scores(1) is run.features_path(1) is None
    assert list((run.path / "features").iterdir()) == []


def test_a_line_cut_anywhere_is_skipped_and_then_replaced(run):
    run.write_epoch(make_summary(0))
    file = run.path / "epochs.jsonl"
    start = file.stat().st_size
    run.write_epoch(make_summary(1))
    whole = file.read_bytes()
    for end in range(start + 1, len(whole) - 1, 3):
        file.write_bytes(whole[:end])
        with pytest.warns(UserWarning, match=HALF_LINE):
            assert len(run.epochs()) == 1
        RunFolder.open(run.path).write_epoch(make_summary(1))
        assert file.read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\0" * 40, b'{"epoch": 2,\n', b"\xff\n\n"])
def test_other_rests_of_a_power_cut_are_skipped_too(run, tail):
    run.write_epoch(make_summary(0))
    file = run.path / "epochs.jsonl"
    file.write_bytes(file.read_bytes() + tail)
    with pytest.warns(UserWarning, match=HALF_LINE):
        assert len(run.epochs()) == 1
    run.write_epoch(make_summary(1))
    assert len(run.epochs()) == 2


def test_a_file_edited_by_hand_goes_on(run):
    run.write_epoch(make_summary(0))
    file = run.path / "epochs.jsonl"
    line = json.loads(file.read_bytes()) | {"note": "warm restart", "lr": 1}
    file.write_text("\n" + json.dumps(line))  # an editor that leaves out the last newline
    run.write_epoch(make_summary(1))
    assert [metrics for _, metrics in run.epochs()] == [{"lr": 1.0}, {}]


def test_unknown_keys_of_run_json_are_ignored(run):
    file = run.path / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"commit": "abc"}))
    assert RunFolder.open(run.path).num_samples == N


def test_a_full_disk_leaves_the_run_as_it_was(run):
    run.write_epoch(make_summary(0), scores=np.zeros(N), features=make_arrays(0))
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            run.write_epoch(make_summary(1), features=make_arrays(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


WRITE_ERRORS = [
    ({"scores": np.zeros(N + 1)}, r"`scores` must be floats of shape \(N,\) = \(12,\).*\(13,\)"),
    ({"scores": np.zeros(N, int)}, r"`scores` must be floats.*int64"),
    ({"metrics": {"gwa": 1.0}}, r"may not have a 'gwa'"),
    ({"metrics": {3: 1.0}}, r"may not have a 3"),
    ({"metrics": {"acc": "high"}}, r"metrics\['acc'\]` must be one number, got str: high"),
    ({"metrics": {"acc": np.zeros(2)}}, r"metrics\['acc'\]` must be one number"),
    ({"features": {"feats": np.zeros(3)}}, r"unknown array 'feats'; known are latents, weight"),
    ({"features": {"latents": np.zeros((N, D))}}, r"`features`: `weight` is missing"),
    (
        {"features": make_arrays(0) | {"latents": np.zeros((N - 1, D)), "targets": np.zeros(N - 1, int)}},
        r"`ids` is missing: the file has 11 samples of N = 12",
    ),
    ({"features": make_arrays(0) | {"weight": np.zeros((5, D))}}, r"C = 5 rows.*has 3"),
    ({"features": make_arrays(0) | {"ids": np.arange(1, N + 1)}}, r"`ids` must be in 0..N-1.*12"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRITE_ERRORS)
def test_wrong_epochs_are_refused_and_nothing_is_written(run, arguments, message):
    before = sorted(run.path.rglob("*"))
    with pytest.raises(FeaturesError, match=message):
        run.write_epoch(make_summary(0), **arguments)
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"gwa": 1.0}, "must be a gwa_core.EpochSummary, got dict"),
        (make_summary(0)._replace(epoch=-1), "`epoch` must be from 0"),
        (make_summary(0)._replace(count=1.5), "`count` must be an integer, got float 1.5"),
        (make_summary(0)._replace(mean=None), "`mean` must be one number, got NoneType"),
        (make_summary(0)._replace(expected=0.5), "`expected` must be an integer, got float 0.5"),
        (make_summary(0)._replace(count=True), "`count` must be an integer, got bool True"),
    ],
)
def test_wrong_summaries_are_refused(run, summary, message):
    with pytest.raises(FeaturesError, match=message):
        run.write_epoch(summary)


CREATE_ERRORS = [
    ({"num_samples": 0}, "`num_samples` must be at least 1"),
    ({"num_samples": 3.0}, "`num_samples` must be an integer, got float 3.0"),
    ({"num_classes": 1}, "C = 1 class with loss='cross_entropy'.*binary_cross_entropy"),
    ({"class_names": ["a"]}, "`class_names` must have C = 3 names, got 1"),
    ({"class_names": [1, 2, 3]}, "`class_names` must be a list of strings"),
    ({"beta": np.inf}, "`beta` must be finite"),
    ({"loss": "mse"}, "`loss` must be one of cross_entropy, binary_cross_entropy, got 'mse'"),
    ({"adapter": None}, "`adapter` must be a string"),
    ({"targets": np.zeros(3, int)}, r"`targets` must be integer labels of shape \(N,\) = \(12,\)"),
    ({"targets": np.full(N, -1)}, r"`targets` must be in 0..2.*got -1 in row 0; leave unlabelled"),
]


@pytest.mark.parametrize(("arguments", "message"), CREATE_ERRORS)
def test_wrong_runs_are_not_created(tmp_path, arguments, message):
    good = {"num_samples": N, "num_classes": C, "adapter": "test"}
    with pytest.raises(FeaturesError, match=message):
        RunFolder.create(tmp_path / "run", **good | arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "run.json is damaged, it is not JSON"),
        ("[]", "run.json: `kind` is not"),
        ('{"kind": "gwa-run", "schema": 2}', "`schema` is 2.*reads version 1.*newer gwa-core"),
        ('{"kind": "gwa-run", "schema": 1, "loss": ""}', "`num_samples` is missing; there are"),
    ],
)
def test_other_run_json_is_refused(run, text, message):
    (run.path / "run.json").write_text(text)
    with pytest.raises(FeaturesError, match=message):
        RunFolder.open(run.path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FeaturesError, match=r"is no run folder: it has no readable run.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, b: b"{nope\n" + b, "line 1 is damaged, it is not JSON"),
        (lambda a, b: b + a, "line 2: epoch 0 comes after epoch 1; did two processes"),
        (lambda a, _: a + a, "line 2: epoch 0 comes after epoch 0"),
        (lambda *_: b"[1, 2]\n", "line 1 must be a table"),
        (lambda *_: b'{"epoch": 0}\n', "line 1: there is no number `step`"),
        (lambda a, _: a.replace(b'"epoch": 0', b'"epoch": -3'), "line 1: `epoch` must be from 0"),
        (lambda a, _: a.replace(b'"step": 0', b'"step": 0.5'), "line 1: `step` must be an integer"),
        (lambda a, _: a.replace(b"0.25", b"1" + b"0" * 400), "line 1: `mean` must be one number"),
    ],
)
def test_damaged_lines_are_named(run, change, message):
    run.write_epoch(make_summary(0))
    run.write_epoch(make_summary(1))
    file = run.path / "epochs.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(change(first, second))
    with pytest.raises(FeaturesError, match=f"epochs.jsonl: {message}"):
        run.epochs()


def test_scores_of_another_run_are_refused(run):
    run.write_epoch(make_summary(0), scores=np.zeros(N))
    file = run.path / "scores" / "000000.npy"
    for wrong in (np.zeros(N - 1, np.float32), np.zeros(N), np.zeros((N, 1), np.float32)):
        np.save(file, wrong)
        with pytest.raises(FeaturesError, match=r"000000.npy: scores must be float32 of shape"):
            run.scores(0)


ABOUT = {"num_samples": N, "num_classes": C, "adapter": "test"}


def test_a_run_says_whether_its_training_goes_on(tmp_path):
    path = tmp_path / "run"
    run = begin_run(path, planned=np.int64(3), targets=np.arange(N) % C, **ABOUT)
    assert (run.status, run.planned, run.epochs()) == ("running", 3, [])
    # The loss may be found later.
    again = begin_run(path, planned=3, loss="binary_cross_entropy", **ABOUT)
    assert (again.loss, again.status) == ("binary_cross_entropy", "running")
    run.write_epoch(make_summary(0), scores=np.zeros(N))
    assert RunFolder.open(path).status == "running"
    header = open_header(run) | {"commit": "abc"}
    (path / "run.json").write_text(json.dumps(header))
    ended = end_run(path)
    assert (ended.status, ended.planned) == ("ended", 3)
    assert open_header(run) == header | {"status": "ended"}
    with pytest.raises(FeaturesError, match="already holds a run of 1 epochs"):
        begin_run(path, **ABOUT)
    assert RunFolder.open(path).status == "ended"
    resumed = begin_run(path, planned=5, resumed=True, **ABOUT)
    assert (resumed.status, resumed.planned, len(resumed.epochs())) == ("running", 5, 1)
    assert open_header(run)["commit"] == "abc"
    assert begin_run(tmp_path / "new", resumed=True, **ABOUT).planned is None
    assert sorted(p.name for p in path.rglob("*.tmp")) == []


def test_a_run_that_says_nothing_has_no_status(run):
    assert (run.status, run.planned) == (None, None)
    assert not {"status", "planned"} & open_header(run).keys()
    # As gwa-core 0.1.0 reads them: keys that it does not know.
    assert end_run(run.path).status == "ended"


@pytest.mark.parametrize("planned", [0, -1, 2.5, True])
def test_a_plan_of_no_epochs_is_refused(tmp_path, planned):
    with pytest.raises(FeaturesError, match="`planned` must be"):
        begin_run(tmp_path / "run", planned=planned, **ABOUT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "paused"}, "`status` must be one of running, ended, got 'paused'"),
        ({"planned": 0}, "`planned` must be at least 1, got 0"),
        ({"planned": "many"}, "`planned` must be an integer, got str 'many'"),
    ],
)
def test_another_status_is_refused(run, change, message):
    (run.path / "run.json").write_text(json.dumps(open_header(run) | change))
    for use in (RunFolder.open, end_run):
        with pytest.raises(FeaturesError, match=message):
            use(run.path)


def test_there_must_be_a_run_to_end(tmp_path):
    with pytest.raises(FeaturesError, match="is no run folder"):
        end_run(tmp_path)


WRITER = textwrap.dedent(
    """
    import os, sys
    sys.path[:0] = sys.argv[2:]
    import numpy as np
    from gwa_core import EpochSummary
    from gwa_offline.store import RunFolder
    N, C, D = 500, 5, 40
    path = sys.argv[1]
    if os.path.exists(path):
        run = RunFolder.open(path)
        # The warning is for those who read; a resumed run goes on in silence.
        import warnings
        warnings.simplefilter("ignore")
        first = len(run.epochs())
        warnings.simplefilter("error")
    else:
        run, first = RunFolder.create(path, num_samples=N, num_classes=C, adapter="test"), 0
    for epoch in range(first, 100_000):
        summary = EpochSummary(epoch, epoch, N, 0, *[epoch / 7] * (len(EpochSummary._fields) - 6))
        run.write_epoch(
            summary,
            scores=np.full(N, epoch / 1e6),
            features={
                "latents": np.full((N, D), epoch, np.float32),
                "weight": np.ones((C, D), np.float32),
                "targets": np.arange(N) % C,
            },
        )
        os.write(1, b"%d\\n" % epoch)
    """
)


def test_a_writer_killed_at_any_time_loses_only_the_epoch_in_flight(tmp_path):
    path, dice = tmp_path / "run", np.random.default_rng(7)
    finished = -1
    for _ in range(10):
        command = [sys.executable, "-c", WRITER, str(path), *sys.path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            lines = [writer.stdout.readline()]  # it is running; now kill it somewhere in a cycle
            try:
                writer.wait(dice.uniform(0, 0.03))
            except subprocess.TimeoutExpired:
                writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
            assert writer.wait() == -signal.SIGKILL
        assert int(lines[0]) == finished + 1  # it went on where the last one was killed
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*{HALF_LINE}")
            source = open_features(path)
        assert [e.epoch for e in source.epochs] == list(range(len(source.epochs)))
        assert len(source.epochs) - 1 - int(lines[-1]) in (0, 1)
        finished = len(source.epochs) - 1
        for epoch in source.epochs[-3:]:
            assert epoch.summary.mean == epoch.epoch / 7
            assert (epoch.scores == np.float32(epoch.epoch / 1e6)).all()
            blocks = list(epoch.features.blocks(rows=300))
            assert [len(b.latents) for b in blocks] == [300, 200]
            assert all((b.latents == epoch.epoch).all() for b in blocks)


def test_the_store_needs_no_more_than_numpy():
    code = (
        "import sys; import gwa_offline.store; "
        "bad = {'torch', 'jax', 'pyarrow', 'safetensors', 'typer', 'rich'} & set(sys.modules); "
        "sys.exit(', '.join(bad) or 0)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_classes_get_other_names_and_epochs_stay(run):
    run.write_epoch(make_summary(0))
    before = open_header(run)
    for names in (["a", "b", "c"], None):
        assert name_classes(run.path, names).class_names == (names and tuple(names))
        assert open_header(run) == before | {"class_names": names}
        assert len(RunFolder.open(run.path).epochs()) == 1
    with pytest.raises(FeaturesError, match="class_names"):
        name_classes(run.path, ["a"])
    assert open_header(run) == before
