"""The average of the weights as the callbacks of trainers hold it."""

import random

import numpy as np
import pytest
from backends import require

from gwa_core import EpochAverage

torch = require("torch")
nn = torch.nn

from gwa_torch import AveragedWeights
from gwa_torch._keep import Average, same_random_numbers

HISTORY = [{"separation": value} for value in (0.3, 0.2, 0.6, 0.5, 0.4, 0.7)]


def network(norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), *([nn.BatchNorm1d(4), nn.BatchNorm1d(4)] if norm else [])]
    return nn.Sequential(*layers, nn.Linear(4, 2))


def move(model):
    """One step of a training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape)


def weights(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def shares(average, records):
    found = []
    for record in records:
        average.update(record)
        found.append(average.values("a/")["a/gwa_share"])
    return found


@pytest.mark.parametrize("epochs", [None, 30])
def test_the_warm_up_is_a_tenth_or_the_first_epoch(epochs):
    average = Average(network(), epochs)
    assert average.values("a/") == {}
    rule = EpochAverage(warmup=1 if epochs is None else 3)
    assert shares(average, HISTORY) == [rule.share(record) for record in HISTORY]


def test_a_run_that_goes_on_for_longer_has_the_warm_up_it_began_with():
    model = network()
    whole, first = Average(model, 20), Average(model, 20)
    expected = shares(whole, HISTORY)
    assert shares(first, HISTORY[:1]) == expected[:1]
    second = Average(model, None)
    second.load_state_dict(first.state_dict())
    assert second.values("") == {"gwa_share": expected[0]}
    assert shares(second, HISTORY[1:]) == expected[1:]


def test_a_state_that_is_saved_later_is_that_of_its_moment():
    model = network(norm=True)
    average = Average(model, None)
    shares(average, HISTORY[:2])
    state = average.state_dict()
    before = {name: x.clone() for name, x in state["weights"]["mean"].items()}
    move(model)
    shares(average, HISTORY[2:])
    assert same(state["weights"]["mean"], before)
    assert not same(average.state_dict()["weights"]["mean"], before)


def test_random_numbers_are_left_as_they_were():
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002, S311

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    with pytest.raises(ZeroDivisionError), same_random_numbers():
        sum(draw()) / 0
    assert draw() == expected


def test_a_pass_that_fails_leaves_the_statistics_and_gives_the_average():
    model = network(norm=True)
    average = Average(model, None)
    for record in HISTORY:
        move(model)
        average.update(record)
    mean, own = average.weights.state_dict()["mean"], weights(model)
    with pytest.warns(
        UserWarning, match="failed: ValueError: `loader` must have a batch, got none"
    ):
        said = average.end(iter(()))
    assert said == "the model has the average of 5 epochs"
    now = weights(model)
    assert same({name: now[name] for name in mean}, mean)
    rest = now.keys() - mean.keys()
    assert same({name: now[name] for name in rest}, {name: own[name] for name in rest})


def test_batch_norm_that_is_frozen_keeps_its_statistics():
    model = network(norm=True)
    model[1].eval()
    averaged = AveragedWeights(model)
    averaged.update(HISTORY[0])
    before = weights(model)
    batches = [torch.randn(8, 3), (torch.randn(8, 3), "label")]
    averaged.update_bn(batches)
    assert same(weights(model), before)
    assert [layer.training for layer in model] == [True, False, True, True]
    averaged.copy_to()
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    z = [model[1](model[0](batch[0] if isinstance(batch, tuple) else batch)) for batch in batches]
    torch.testing.assert_close(model[2].running_mean, torch.cat(z).mean(0))
    assert model[2].momentum == 0.1
    # Of a model in eval mode all of it is computed, and the mode stays.
    model.eval()
    averaged.update_bn(batches)
    averaged.copy_to()
    assert not torch.equal(model[1].running_mean, torch.zeros(4))
    assert not any(layer.training for layer in model)
    with pytest.raises(ValueError, match="`loader` must have a batch"):
        averaged.update_bn([])
