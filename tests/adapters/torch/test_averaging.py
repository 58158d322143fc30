"""The average of the weights of a model in training."""

import copy
import io

import pytest
from backends import require

from gwa_core import average_shares

torch = require("torch")
nn = torch.nn

from gwa_torch import AveragedWeights, EpochAverage

SEPARATIONS = [0.3, 0.21, 0.55, 0.6, 0.58, 0.4]
HISTORY = [{"separation": value} for value in SEPARATIONS]


def network(norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5), nn.BatchNorm1d(5)] if norm else [nn.Linear(6, 5)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(5, 3))


def train(model, update, history=HISTORY):
    """Train for a while, update with each epoch, and return the weights at their ends."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    kept = []
    for record in history:
        for _ in range(3):
            device = next(model.parameters()).device
            x, y = torch.randn(8, 6, device=device), torch.randint(3, (8,), device=device)
            loss = nn.functional.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        update(record)
        kept.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return kept


def mean_of(kept, power=10.0, warmup=1, history=HISTORY):
    """The mean of stored checkpoints, by the shares of the finished run, in float64."""
    shares = average_shares(history, power, warmup)
    return {
        name: sum(share * epoch[name].double() for share, epoch in zip(shares, kept, strict=True))
        for name in kept[0]
    }


def close(model, wanted, rtol=1e-6):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), wanted[name], rtol=rtol, atol=rtol * 1e-1)


def weights(model):
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("average", [None, EpochAverage(3, 2), EpochAverage(0, 0)])
def test_the_streamed_mean_is_that_of_stored_checkpoints(average):
    model = network()
    averaged = AveragedWeights(model, average)
    kept = train(model, averaged.update)
    wanted = mean_of(kept, averaged.average.power, averaged.average.warmup)
    own = weights(model)
    with averaged.applied() as given:
        assert given is model
        close(model, wanted)
    assert same(weights(model), own)
    other = network()
    averaged.copy_to(other)
    close(other, wanted)
    assert same(weights(model), own)
    averaged.copy_to()
    close(model, wanted)


def test_the_training_is_not_touched():
    plain, watched = network(norm=True), network(norm=True)
    averaged = AveragedWeights(watched)

    def update(record):
        averaged.update(record)
        averaged.update_bn([torch.ones(2, 6), torch.zeros(2, 6)])
        with averaged.applied():
            watched.eval()
            watched(torch.ones(2, 6))
            watched.train()

    train(watched, update)
    train(plain, print)
    assert same(weights(plain), weights(watched))


def test_own_weights_come_back_after_an_error():
    model = network()
    averaged = AveragedWeights(model)
    train(model, averaged.update)
    own = weights(model)
    with pytest.raises(ZeroDivisionError), averaged.applied():
        1 / 0  # noqa: B018
    assert same(weights(model), own)
    with averaged.applied():
        with pytest.raises(RuntimeError, match="outside of `applied`"):
            averaged.update(HISTORY[0])
        with pytest.raises(RuntimeError, match="must not be nested"), averaged.applied():
            pass
        with pytest.raises(RuntimeError, match="`copy_to` must come outside of `applied`"):
            averaged.copy_to()
        averaged.copy_to(network())
    assert averaged.average.step == len(HISTORY)
    assert same(weights(model), own)


def test_before_the_first_epoch_the_model_stays_as_it_is():
    model = network(norm=True)
    averaged, own = AveragedWeights(model), weights(model)
    with averaged.applied():
        assert same(weights(model), own)
    averaged.copy_to()
    assert same(weights(model), own)


def test_in_the_warm_up_the_mean_is_the_newest_weights():
    model = network()
    averaged = AveragedWeights(model, EpochAverage(warmup=9))
    train(model, averaged.update)
    own = weights(model)
    with averaged.applied():
        assert same(weights(model), own)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_averaged_in_float32(dtype):
    model = network().to(getattr(torch, dtype))
    averaged = AveragedWeights(model)
    kept = train(model, averaged.update)
    wanted = mean_of(kept)
    assert all(mean.dtype == torch.float32 for mean in averaged.state_dict()["mean"].values())
    with averaged.applied():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, wanted[name].float().to(parameter.dtype))


def test_tied_and_frozen_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
            self.head.weight = self.body.weight
            self.frozen = nn.Linear(6, 3).requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.head(self.body(x).tanh()))

    model = Tied()
    averaged = AveragedWeights(model)
    kept = train(model, averaged.update)
    assert list(averaged.state_dict()["mean"]) == ["body.weight", "body.bias"]
    close(model, {**mean_of(kept), "x": None}, rtol=1e3)
    with averaged.applied():
        assert model.head.weight is model.body.weight
        close(model, mean_of(kept))
    # Unfrozen, it joins with what it is then.
    model.frozen.requires_grad_(True)
    before = model.frozen.weight.detach().clone()
    averaged.update(HISTORY[0])
    assert torch.equal(averaged.state_dict()["mean"]["frozen.weight"], before)


def test_what_is_frozen_later_stays_in_the_mean():
    model = network()
    averaged = AveragedWeights(model)
    kept = train(model, averaged.update, HISTORY[:3])
    model[0].requires_grad_(False)
    kept += train(model, averaged.update, HISTORY[3:5])
    # All of it, as where only a head outside of the model goes on.
    model.requires_grad_(False)
    averaged.update(HISTORY[5])
    kept.append({name: p.detach().clone() for name, p in model.named_parameters()})
    with averaged.applied():
        close(model, mean_of(kept))


def test_of_a_model_with_lora_the_adapters_are_averaged():
    peft = require("peft")
    base = network()
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"], r=2))
    averaged = AveragedWeights(model)
    kept = train(model, averaged.update)
    names = list(averaged.state_dict()["mean"])
    assert len(names) == 2
    assert all("lora_" in name for name in names)
    averaged.copy_to()
    close(model, mean_of(kept))


@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_killed_and_resumed_equals_uninterrupted(at):
    whole = network()
    wanted = AveragedWeights(whole)
    kept = train(whole, wanted.update)
    model = network()
    first = AveragedWeights(model)
    for record, epoch in zip(HISTORY[:at], kept, strict=False):
        model.load_state_dict(epoch)
        first.update(record)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    model = network()
    second = AveragedWeights(model)
    second.load_state_dict(torch.load(file, weights_only=True))
    for record, epoch in zip(HISTORY[at:], kept[at:], strict=True):
        model.load_state_dict(epoch)
        second.update(record)
    assert same(second.state_dict()["mean"], wanted.state_dict()["mean"])
    assert second.average.state_dict() == wanted.average.state_dict()


def test_a_state_is_no_view_of_the_one_that_was_saved():
    model = network()
    averaged = AveragedWeights(model)
    averaged.update(HISTORY[0])
    state = averaged.state_dict()
    copied = copy.deepcopy(state)
    other = AveragedWeights(network())
    other.load_state_dict(state)
    train(other._model, other.update)
    assert same(state["mean"], copied["mean"])


def test_wrappers_do_not_change_names():
    model = network()
    averaged = AveragedWeights(nn.DataParallel(torch.compile(model, backend="eager")))
    averaged.update(HISTORY[0])
    assert list(averaged.state_dict()["mean"]) == [name for name, _ in model.named_parameters()]
    other = network()
    averaged.copy_to(nn.DataParallel(other))
    assert same(weights(other), weights(model))


def test_statistics_of_batch_norm_are_those_of_the_averaged_weights():
    model = network(norm=True)
    averaged = AveragedWeights(model)
    train(model, averaged.update)
    own = weights(model)
    with pytest.warns(UserWarning, match=r"call `averaged.update_bn\(train_loader\)` first"):
        averaged.copy_to(network(norm=True))
    batches = [(torch.randn(16, 6), None) for _ in range(5)]
    averaged.update_bn(batches)
    assert same(weights(model), own)
    with averaged.applied():
        inputs = torch.cat([x for x, _ in batches])
        wanted = model[0](inputs).mean(dim=0)
        torch.testing.assert_close(model[1].running_mean, wanted)
    assert same(weights(model), own)
    restored = AveragedWeights(network(norm=True))
    restored.load_state_dict(averaged.state_dict())
    restored.copy_to()
    torch.testing.assert_close(restored._model[1].running_mean, wanted)
    averaged.update(HISTORY[0])
    with pytest.warns(UserWarning, match="update_bn"), averaged.applied():
        pass


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match="usual cause: all of it is frozen"):
        AveragedWeights(network().requires_grad_(False))
    averaged = AveragedWeights(network())
    averaged.update(HISTORY[0])
    with pytest.raises(ValueError, match=r"got none for 2.weight \(3, 5\), 2.bias \(3,\)"):
        averaged.copy_to(nn.Sequential(nn.Linear(6, 5)))
    other = nn.Sequential(nn.Linear(6, 5), nn.Identity(), nn.Tanh(), nn.Linear(5, 3))
    before = weights(other)
    normed = AveragedWeights(network(norm=True))
    normed.update(HISTORY[0])
    normed.update_bn([torch.randn(4, 6)])
    with pytest.raises(ValueError, match=r"got none for 1\.weight"):
        normed.copy_to(other)
    other[1] = nn.LayerNorm(5)
    with pytest.raises(ValueError, match=r"got none for 1\.running_mean"):
        normed.copy_to(other)
    assert all(torch.equal(weights(other)[name], x) for name, x in before.items())
    plain = AveragedWeights(network())
    lacking = {**plain.state_dict(), "statistics": normed.state_dict()["statistics"]}
    with pytest.raises(ValueError, match=r"got none for 1\.running_mean"):
        plain.load_state_dict(lacking)
    with pytest.raises(ValueError, match="of version 1, got version None"):
        averaged.load_state_dict({})
    other = AveragedWeights(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="must have the parameters and buffers of the mean"):
        other.load_state_dict(averaged.state_dict())
    assert other.average.step == 0


def test_a_parameter_that_changed_its_name_is_refused():
    model = network()
    averaged = AveragedWeights(model)
    averaged.update(HISTORY[0])
    nn.utils.parametrizations.weight_norm(model[0])
    for call in (
        averaged.copy_to,
        lambda: averaged.update(HISTORY[1]),
        averaged.applied().__enter__,
    ):
        with pytest.raises(ValueError, match=r"got none for 0\.weight"):
            call()
    assert averaged.average.step == 1


def test_a_record_without_the_signal_changes_nothing():
    model = network()
    averaged = AveragedWeights(model)
    train(model, averaged.update)
    before = {name: mean.clone() for name, mean in averaged.state_dict()["mean"].items()}
    with pytest.raises(ValueError, match="'separation' that EpochAverage watches"):
        averaged.update({"gwa": 0.1})
    assert same(averaged.state_dict()["mean"], before)
