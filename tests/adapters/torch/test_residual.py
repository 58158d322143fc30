"""Where scores come from: the closed form, or the gradient where the loss is another one."""

from __future__ import annotations

import gc
import io
import sys
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch")

from models import CLASSES, batch, network
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gwa_core import select_epoch
from gwa_torch import GWAMonitor, MaxGWA, head_scores
from gwa_torch._epoch import MOST_ROWS

ROWS, PART = 24, 6
OTHER = "the closed form of loss='cross_entropy' is not the gradient of your loss"


def plain(logits, y):
    return F.cross_entropy(logits, y)


def cold(logits, y):
    return F.cross_entropy(logits / 0.3, y)


def true_scores(model, x, y, loss):
    """One backward pass a sample in float64."""
    double = network().double()
    double.load_state_dict(model.state_dict())
    weight, found = double.head.weight, []
    for i in range(len(y)):
        (g,) = torch.autograd.grad(loss(double(x[i : i + 1].double()), y[i : i + 1]), weight)
        found.append(-(g * weight).sum() / g.norm() / weight.norm())
    return torch.stack(found).detach()


def epoch(model, monitor, loss, *, before=False, parts=None, backward=True, forward=None):
    """Train an epoch by small batches; return the true scores at the weights of each step."""
    x, y = batch(ROWS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    want = torch.full((ROWS,), torch.nan, dtype=torch.float64)
    for part in parts or torch.arange(ROWS).split(PART):
        want[part] = true_scores(model, x[part], y[part], loss)
        logits = (model if forward is None else forward)(x[part])
        ids = None if monitor.num_samples is None else part
        if before:
            monitor.update(y[part], ids)
        optimizer.zero_grad()
        if backward:
            loss(logits, y[part]).backward()
            optimizer.step()
        if not before:
            monitor.update(y[part], ids)
    return want


@pytest.mark.parametrize("before", [False, True], ids=["after the step", "before backward"])
def test_another_loss_is_noticed_and_the_whole_epoch_is_right(before):
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    with pytest.warns(UserWarning, match=OTHER) as said:  # noqa: PT031
        want = epoch(model, monitor, cold, before=before)
        summary = monitor.end_epoch()
        assert_allclose(monitor.scores, want, atol=1e-6)
        want = epoch(model, monitor, cold, before=before)
        monitor.end_epoch()
    assert len(said) == 1
    assert said[0].filename == __file__
    assert (monitor.residual, summary.count, summary.omitted) == ("backward", ROWS, 0)
    assert summary.expected in (None, ROWS)
    assert_allclose(monitor.scores, want, atol=1e-6)


def test_another_loss_is_noticed_where_moments_alone_are_kept():
    model, twin = network(), network()
    monitor, told = GWAMonitor(model.head), GWAMonitor(twin.head, residual="backward")
    with pytest.warns(UserWarning, match=OTHER):
        epoch(model, monitor, cold)
    epoch(twin, told, cold)
    got, want = monitor.end_epoch(), told.end_epoch()
    assert (got.count, got.expected) == (ROWS, want.expected)
    assert_allclose(got[3:9], want[3:9], rtol=1e-6)


def test_a_loss_that_changes_in_training_is_noticed_and_what_came_before_is_left_out():
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    epoch(model, monitor, plain)
    monitor.end_epoch()
    parts = torch.arange(ROWS).split(1)
    epoch(model, monitor, plain, parts=parts[:12])
    with pytest.warns(UserWarning, match="what this epoch had before is left out"):
        epoch(model, monitor, cold, parts=parts[12:])
    monitor.end_epoch()
    short = monitor.history[1]
    assert short.count < ROWS
    assert short.count / short.expected < 0.9
    assert select_epoch(monitor.history, MaxGWA(warmup=0)).step == 0
    want = epoch(model, monitor, cold)
    monitor.end_epoch()
    assert_allclose(monitor.scores, want, atol=1e-6)


def test_the_loss_that_was_named_stays_the_closed_form():
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    for _ in range(2):
        want = epoch(model, monitor, plain)
        monitor.end_epoch()
        assert_allclose(monitor.scores, want, atol=1e-6)
    assert monitor.residual == "formula"


def test_a_saturated_model_is_no_other_loss():
    model = network()
    with torch.no_grad():
        model.head.weight *= 400
    monitor = GWAMonitor(model.head, ROWS)
    for _ in range(2):
        epoch(model, monitor, plain)
        assert monitor.end_epoch().omitted == 0
    assert monitor.residual == "formula"


def test_gradients_need_no_targets():
    model = network()
    monitor = GWAMonitor(model.head, ROWS, residual="backward")
    x, y = batch(ROWS)
    want = true_scores(model, x, y, cold)
    cold(model(x), y).backward()
    monitor.update(None, torch.arange(ROWS))
    monitor.end_epoch()
    assert_allclose(monitor.scores, want, atol=1e-6)
    with pytest.raises(RuntimeError, match="must follow a forward pass"):
        monitor.update(None, torch.arange(ROWS))
    with pytest.raises(TypeError, match="only residual='backward'"):
        GWAMonitor(model.head).update(None)


def test_one_backward_pass_of_many_small_batches():
    model = network()
    monitor = GWAMonitor(model.head, ROWS, residual="backward")
    x, y = batch(ROWS)
    want, losses = true_scores(model, x, y, cold), []
    for part in torch.arange(ROWS).split(4):
        losses.append(cold(model(x[part]), y[part]))
        monitor.update(y[part], part)
    sum(losses).backward()
    assert monitor.end_epoch().count == ROWS
    assert_allclose(monitor.scores, want, atol=1e-6)


def test_ids_may_be_written_over_before_the_gradient_comes():
    model = network()
    monitor = GWAMonitor(model.head, 4, residual="backward")
    x, y = batch(4)
    ids = torch.arange(4)
    loss = plain(model(x), y)
    monitor.update(y, ids)
    ids.fill_(0)
    loss.backward()
    assert monitor.end_epoch().count == 4


def test_a_batch_without_a_backward_pass_has_no_score():
    model = network()
    monitor = GWAMonitor(model.head, ROWS, residual="backward")
    x, y = batch(ROWS)
    first, second, third = torch.arange(ROWS).split(8)
    plain(model(x[first]), y[first]).backward()
    monitor.update(y[first], first)
    model(x[second])
    monitor.update(y[second], second)
    plain(model(x[third]), y[third]).backward()
    monitor.update(y[third], third)
    with pytest.warns(UserWarning, match="1 batches had no gradient"):
        summary = monitor.end_epoch()
    assert (summary.count, summary.omitted) == (16, 8)
    assert monitor.scores[second].isnan().all()


def test_two_backward_passes_through_one_output_have_no_score():
    model = network()
    monitor = GWAMonitor(model.head, 4, residual="backward")
    x, y = batch(4)
    logits = model(x)
    plain(logits, y).backward(retain_graph=True)
    logits.square().mean().backward()
    monitor.update(y, torch.arange(4))
    with pytest.warns(UserWarning, match="or two through one output"):
        assert monitor.end_epoch().omitted == 4


def test_samples_that_the_loss_does_not_see_have_no_score():
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    x, y = batch(ROWS)

    def hardest(logits, y):
        return F.cross_entropy(logits, y, reduction="none").topk(ROWS // 2).values.mean()

    with pytest.warns(UserWarning, match=OTHER):  # noqa: PT031
        hardest(model(x), y).backward()
        monitor.update(y, torch.arange(ROWS))
        summary = monitor.end_epoch()
    assert (summary.count, summary.omitted) == (ROWS // 2, ROWS // 2)


def test_what_could_not_be_checked_is_said_once():
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    with pytest.warns(UserWarning, match="no gradient arrived") as said:  # noqa: PT031
        for _ in range(2):
            epoch(model, monitor, plain, backward=False)
            monitor.end_epoch()
    assert len(said) == 1
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = GWAMonitor(model.head, ROWS, residual="formula")
        epoch(model, silent, plain, backward=False)
        silent.end_epoch()


def test_an_error_in_scoring_leaves_the_backward_pass_alone(monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("gwa_torch._gradients.gradient_scores", fail)
    model = network()
    monitor = GWAMonitor(model.head, 4, residual="backward")
    x, y = batch(4)
    plain(model(x), y).backward()
    assert model.head.weight.grad is not None
    monitor.update(y, torch.arange(4))
    with pytest.warns(UserWarning, match="had no gradient"):
        monitor.end_epoch()


@pytest.mark.parametrize("residual", ["auto", "formula", "backward"])
def test_training_is_the_same_bit_for_bit(residual):
    def weights(residual):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU())
        model.add_module("head", nn.Linear(8, CLASSES))
        monitor = None if residual is None else GWAMonitor(model.head, ROWS, residual=residual)
        x, y = torch.randn(ROWS, 6), torch.arange(ROWS) % CLASSES
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            for part in torch.arange(ROWS).split(PART):
                optimizer.zero_grad()
                cold(model(x[part]), y[part]).backward()
                if monitor:
                    monitor.update(y[part], part)
                optimizer.step()
            if monitor:
                monitor.end_epoch()
        return torch.cat([p.detach().ravel() for p in model.parameters()])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", OTHER)
        assert torch.equal(weights(residual), weights(None))


def test_a_pass_is_let_go_when_its_gradient_has_come():
    model = network()
    monitor = GWAMonitor(model.head, 4, residual="backward")
    x, y = batch(4)
    logits = model(x)
    kept = weakref.ref(monitor._capture.waiting[0].logits)
    loss = plain(logits, y)
    monitor.update(y, torch.arange(4))
    assert kept() is not None
    loss.backward()
    gc.collect()
    assert kept() is None


def test_a_sketch_is_checked_without_it():
    model, twin = network(), network()
    auto = GWAMonitor(model.head, ROWS, sketch=4)
    epoch(model, auto, plain)
    auto.end_epoch()
    told = GWAMonitor(twin.head, ROWS, sketch=4, residual="backward")
    epoch(twin, told, plain)
    told.end_epoch()
    assert auto.residual == "formula"
    assert_allclose(auto.scores, told.scores, atol=1e-6)


def test_a_part_of_a_large_batch_is_checked(monkeypatch):
    monkeypatch.setattr("gwa_torch._evidence.CHECKED_ROWS", 4)
    for loss, used in ((plain, "formula"), (cold, "backward")):
        model = network()
        monitor = GWAMonitor(model.head, ROWS)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", OTHER)
            epoch(model, monitor, loss)
        assert monitor.residual == used


def test_a_resumed_run_goes_on_with_the_gradient():
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    parts = torch.arange(ROWS).split(PART)
    with pytest.warns(UserWarning, match=OTHER):
        want = epoch(model, monitor, cold, parts=parts[:2])
    file = io.BytesIO()
    torch.save(monitor.state_dict(), file)
    monitor.close()
    resumed = GWAMonitor(model.head, ROWS)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.residual == "backward"
    want = torch.where(want.isnan(), epoch(model, resumed, cold, parts=parts[2:]), want)
    assert resumed.end_epoch().count == ROWS
    assert_allclose(resumed.scores, want, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("residual", ["auto", "backward"])
def test_a_compiled_model_brings_its_gradients(residual, before):
    torch._dynamo.reset()
    model = network()
    monitor = GWAMonitor(model.head, ROWS, residual=residual)
    forward = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", OTHER)
        for _ in range(2):
            want = epoch(model, monitor, cold, before=before, forward=forward)
            assert monitor.end_epoch().count == ROWS
            assert_allclose(monitor.scores, want, atol=1e-6)
    assert monitor.residual == "backward"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_with_too_many_rows_is_not_checked(monkeypatch):
    monkeypatch.setattr("gwa_torch._gradients.LARGEST", 4)
    torch._dynamo.reset()
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    forward = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.warns(UserWarning, match="no gradient arrived"):  # noqa: PT031
        epoch(model, monitor, plain, forward=forward)
        monitor.end_epoch()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_soft_targets_of_another_precision_are_checked(dtype):
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    x, y = batch(ROWS)
    soft = (0.75 * F.one_hot(y, CLASSES) + 0.25 * F.one_hot((y + 1) % CLASSES, CLASSES)).to(dtype)
    where = torch.arange(ROWS) < ROWS - 2
    for _ in range(2):
        logits = model(x)
        F.cross_entropy(logits[where], soft[where].float()).backward()
        monitor.update(soft, torch.arange(ROWS), where)
    assert monitor.end_epoch().count == ROWS - 2
    assert monitor.residual == "formula"
    assert where.untyped_storage().resizable()


class TestStage:
    def test_small_batches_are_scored_together_at_the_weights_of_each(self):
        model = network()
        monitor = GWAMonitor(model.head, ROWS, residual="formula")
        want = epoch(model, monitor, plain)
        assert monitor._residuals._stage.rows == ROWS
        assert_allclose(monitor.scores, want, atol=1e-6)
        assert monitor._residuals._stage.rows == 0
        assert monitor.end_epoch().count == ROWS

    def test_what_a_batch_left_may_be_written_over(self):
        model = network()
        monitor = GWAMonitor(model.head, 4, residual="formula")
        x, y = batch(4)
        want, ids = true_scores(model, x, y, plain), torch.arange(4)
        latents = model.body(x).detach()
        logits = model.head(latents)
        monitor.update(y, ids)
        for changed in (logits.detach(), latents, ids, y):
            changed.zero_()
        assert_allclose(monitor.scores, want, atol=1e-6)

    def test_the_memory_of_what_a_batch_left_can_be_resized(self):
        # FSDP and offloading do so; memory that NumPy shares cannot be.
        model = network()
        monitor = GWAMonitor(model.head, 4, residual="formula")
        x, y = batch(4)
        latents, ids = model.body(x), torch.arange(4)
        logits = model.head(latents)
        monitor.update(y, ids)
        assert monitor.end_epoch().count == 4
        for tensor in (latents, logits, model.head.weight, model.head.bias, y, ids):
            assert tensor.untyped_storage().resizable()

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("room", [11 * CLASSES * 4, 1 << 20])
    def test_each_batch_has_its_own_size_weight_and_bias(self, bias, room, monkeypatch):
        monkeypatch.setattr("gwa_torch._stage.BYTES", room)
        torch.manual_seed(0)
        head = nn.Linear(7, CLASSES, bias=bias)
        first, again = (GWAMonitor(head, ROWS, residual="formula") for _ in range(2))
        x, y = torch.randn(ROWS, 7), batch(ROWS)[1]
        want = torch.empty(ROWS)
        for number, part in enumerate(torch.arange(ROWS).split(5)):
            with torch.no_grad():
                for parameter in head.parameters():
                    parameter.mul_(1.5)
            head(x[part])
            options = {} if head.bias is None else {"bias": head.bias.detach()}
            weight, targets = head.weight.detach(), y[part]
            want[part] = head_scores(latents=x[part], weight=weight, targets=targets, **options)
            first.update(targets, part)
            if number == 2:
                # With a batch that the other one has not seen.
                again.load_state_dict(first.state_dict())
            else:
                again.update(targets, part)
        assert_allclose(first.scores, want, atol=1e-6)
        assert torch.equal(again.scores, first.scores)

    @pytest.mark.parametrize("name", ["weight", "bias"])
    def test_a_parameter_that_is_made_of_another(self, name):
        torch.manual_seed(0)
        head = nn.Linear(7, CLASSES)
        nn.utils.parametrize.register_parametrization(head, name, nn.Softplus())
        monitor = GWAMonitor(head, ROWS, residual="formula")
        x, y = torch.randn(ROWS, 7), batch(ROWS)[1]
        head(x)
        monitor.update(y, torch.arange(ROWS))
        weight, bias = head.weight.detach(), head.bias.detach()
        want = head_scores(latents=x, weight=weight, bias=bias, targets=y)
        assert_allclose(monitor.scores, want, atol=1e-6)

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_head_in_half_precision_with_wide_logits(self, dtype, bias):
        torch.manual_seed(0)
        head = nn.Linear(7, CLASSES, bias=bias, dtype=dtype)
        monitor = GWAMonitor(head, ROWS, residual="formula")
        head.register_forward_hook(lambda _, __, output: output.float(), prepend=True)
        x, y = (9000 * torch.randn(ROWS, 7)).to(dtype), batch(ROWS)[1]
        logits = head(x)
        monitor.update(y, torch.arange(ROWS))
        options = {} if head.bias is None else {"bias": head.bias.detach().float()}
        given = {"latents": x.float(), "weight": head.weight.detach().float(), "targets": y}
        want = head_scores(**given, logits=logits.detach(), **options)
        assert_allclose(monitor.scores, want, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_pytorchs_defaults_change_nothing(self, dtype):
        model, (x, y), ids = network(), batch(ROWS), torch.arange(ROWS)
        first, again = (GWAMonitor(model.head, ROWS, residual="formula") for _ in range(2))
        torch.set_default_dtype(dtype)
        try:
            with torch.device("meta"):
                for part in range(0, ROWS, PART):
                    rows = slice(part, part + PART)
                    model(x[rows])
                    first.update(y[rows], ids[rows])
                again.load_state_dict(first.state_dict())
        finally:
            torch.set_default_dtype(torch.float32)
        assert_allclose(first.scores, true_scores(model, x, y, plain), atol=1e-6)
        assert torch.equal(again.scores, first.scores)

    def test_in_inference_mode_and_out_of_it(self):
        model = network()
        monitor = GWAMonitor(model.head, ROWS, residual="formula")
        x, y = batch(ROWS)
        for number, part in enumerate(torch.arange(ROWS).split(PART)):
            logits = model(x[part])
            with torch.inference_mode(number % 2 == 0):
                monitor.update(y[part], part)
            del logits
        with torch.inference_mode():
            again = GWAMonitor(model.head, ROWS, residual="formula")
            again.load_state_dict(monitor.state_dict())
        model(x)
        again.update(y, torch.arange(ROWS))
        assert_allclose(monitor.scores, true_scores(model, x, y, plain), atol=1e-6)
        assert torch.equal(again.scores, monitor.scores)

    def test_many_batches_of_one_row_are_scored_in_between(self, monkeypatch):
        monkeypatch.setattr("gwa_torch._stage.MOST_BATCHES", 3)
        model = network()
        monitor = GWAMonitor(model.head, ROWS, residual="formula")
        x, y = batch(ROWS)
        for row in torch.arange(ROWS).split(1):
            model(x[row])
            monitor.update(y[row], row)
            assert monitor._residuals._stage.rows <= 3
        assert_allclose(monitor.scores, true_scores(model, x, y, plain), atol=1e-6)

    def test_a_state_may_be_written_over_once_it_is_loaded(self):
        model = network()
        first, again = (GWAMonitor(model.head, ROWS, residual="formula") for _ in range(2))
        epoch(model, first, plain)
        state = first.state_dict()
        again.load_state_dict(state)
        for kept in state["residual"]["stage"].values():
            kept.zero_()
        assert torch.equal(again.scores, first.scores)

    def test_batches_of_another_kind_follow_in_order(self):
        model = network()
        monitor = GWAMonitor(model.head, ROWS, residual="formula")
        x, y = batch(ROWS)
        soft = F.one_hot(y, CLASSES).float()
        want = true_scores(model, x, y, plain)
        first, second, third = torch.arange(ROWS).split(8)
        for part, targets, where in (
            (first, y[first], None),
            (second, soft[second], None),
            (third, y[third], torch.arange(8) < 6),
        ):
            model(x[part])
            monitor.update(targets, part, where)
        # Seen again, a sample keeps its first score.
        model(-x[first])
        monitor.update(y[first], first)
        want[22:] = torch.nan
        assert monitor.end_epoch().count == ROWS - 2
        assert_allclose(monitor.scores, want, atol=1e-6)


def test_a_saved_model_loads_without_this_package(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3))
    monitor = GWAMonitor(model[0])
    file = io.BytesIO()
    torch.save(model, file)
    for name in [name for name in sys.modules if name.split(".")[0] in ("gwa_torch", "gwa_core")]:
        monkeypatch.setitem(sys.modules, name, None)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = torch.randn(2, 4)
    assert torch.equal(loaded(x), model(x))
    monitor.close()


def test_more_rows_than_an_integer_counts_keep_the_first_score():
    model = network()
    monitor = GWAMonitor(model.head, 8)
    x, y = batch(8)

    def see(part, sign):
        model(sign * x[part])
        monitor.update(y[part], part)
        monitor.scores  # noqa: B018

    see(torch.arange(4), 1)
    monitor._keeper.epoch.rows = MOST_ROWS - 6
    see(torch.arange(2, 6), 1)
    want = monitor.scores.clone()
    for part in torch.arange(8).split(4):
        see(part, -1)
    assert torch.equal(monitor.scores[:6], want[:6])
    see(torch.arange(8), 1)
    assert monitor.scores.isfinite().all()
    assert torch.equal(monitor.scores[:6], want[:6])


def test_what_residual_may_be():
    with pytest.raises(ValueError, match="`residual` must be one of 'auto', 'formula', 'backward'"):
        GWAMonitor(nn.Linear(4, 3), residual="gradient")


def test_a_hook_that_was_there_before_may_change_the_output():
    model, x, y = network(), *batch(ROWS)

    def scaled(logits, y):
        return F.cross_entropy(logits / 0.1, y)

    want = true_scores(model, x, y, scaled)
    model.head.register_forward_hook(lambda *call: call[-1] / 0.1)
    monitor = GWAMonitor(model.head, ROWS)
    plain(model(x), y).backward()
    with pytest.warns(UserWarning, match=OTHER):
        monitor.update(y, torch.arange(ROWS))
    monitor.end_epoch()
    assert_allclose(monitor.scores, want, atol=1e-6)


@pytest.mark.parametrize("before", [False, True])
def test_the_last_batch_of_an_epoch_may_be_the_one_that_differs(before):
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    first, *_, last = parts = torch.arange(ROWS).split(8)
    epoch(model, monitor, plain, before=before, parts=parts[:-1])
    monitor._capture.tapping = True  # as in one batch of 64
    with pytest.warns(UserWarning, match="what this epoch had before is left out"):  # noqa: PT031
        want = epoch(model, monitor, cold, before=before, parts=[last])
        summary = monitor.end_epoch()
    assert (summary.count, summary.omitted, summary.expected) == (8, 0, ROWS)
    assert monitor.scores[first].isnan().all()
    assert_allclose(monitor.scores[last], want[last], atol=1e-6)


def test_the_pass_that_ran_before_the_change_is_left_out_without_another_word():
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    parts = torch.arange(ROWS).split(4)
    epoch(model, monitor, plain, before=True, parts=parts[:2])
    monitor._capture.tapping = True
    with pytest.warns(UserWarning, match=OTHER) as said:  # noqa: PT031
        epoch(model, monitor, cold, before=True, parts=parts[2:])
        summary = monitor.end_epoch()
    assert len(said) == 1
    assert (summary.count, summary.omitted) == (12, 0)


def test_mixed_precision_around_update_is_no_other_loss():
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    x, y = batch(ROWS)
    for part in torch.arange(ROWS).split(PART):
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.body(x[part])
            with torch.autocast("cpu", enabled=False):
                loss = plain(model.head(latents.float()), y[part])
            loss.backward()
            monitor.update(y[part], part)
    monitor.end_epoch()
    assert monitor.residual == "formula"


def test_a_class_without_a_weight_is_no_other_loss():
    model = network()
    weights = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.5])
    monitor = GWAMonitor(model.head, ROWS, class_weights=weights)
    epoch(
        model,
        monitor,
        lambda logits, y: F.cross_entropy(logits, y, weight=weights.to(logits), reduction="sum"),
    )
    monitor.end_epoch()
    assert monitor.residual == "formula"


def test_logits_that_are_changed_in_place_before_backward_have_no_score():
    model = network()
    monitor = GWAMonitor(model.head, 4, residual="backward")
    x, y = batch(4)
    logits = model(x)
    monitor.update(y, torch.arange(4))
    logits /= 0.1
    plain(logits, y).backward()
    with pytest.warns(UserWarning, match="had no gradient .* changed in place"):
        assert monitor.end_epoch().omitted == 4


def test_passes_do_not_pile_up_where_no_gradient_ever_comes():
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    kept = []
    for part in torch.arange(ROWS).split(1):
        epoch(model, monitor, plain, parts=[part], backward=False)
        kept = [tap for one in monitor._residuals._waiting for tap in one.taps]
    assert len(kept) <= 8


def test_a_saved_model_compiles_in_one_graph():
    model = nn.Sequential(nn.Linear(4, 3))
    monitor = GWAMonitor(model[0])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch._dynamo.reset()
    x = torch.randn(2, 4)
    assert torch.equal(torch.compile(loaded, fullgraph=True, backend="eager")(x), model(x))
    monitor.close()


def test_an_epoch_of_both_kinds_is_said():
    model = network()
    monitor = GWAMonitor(model.head, ROWS)
    epoch(model, monitor, plain, parts=torch.arange(ROWS).split(PART)[:2])
    resumed = GWAMonitor(model.head, ROWS, residual="backward")
    with pytest.warns(UserWarning, match="its summary has both"):
        resumed.load_state_dict(monitor.state_dict())
