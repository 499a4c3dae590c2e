"""AnalogSGD: groups, what arrays do not have, and which parameters it leaves to torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rapa_cli.analog.aware import STANDARD_HWA, InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.module import AwareMatrices, PulsedMatrices
from rapa_cli.analog.parameters import IOParameters
from rapa_cli.keyed import draws
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.layers.network import Network
from rapa_cli.tiling.arrays import AnyArrays
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.training.schedule import optimizer, set_rate
from rapa_cli.training.sgd import AnalogSGD
from tests.tolerances import assert_near
from tests.training import tiny

PERFECT = IOParameters(is_perfect=True)
EXACT = Arrays(device=IdealDevice(), forward=PERFECT, backward=PERFECT)


def mixed(arrays: AnyArrays = EXACT) -> nn.Sequential:
    """A convolution on arrays, and a digital layer."""
    return nn.Sequential(TiledConv2d(2, 3, 3, tiles=2, arrays=arrays), nn.Flatten(), nn.Linear(12, 2))


def passed(model: nn.Module, draw: int = 0) -> None:
    """A backward pass."""
    x = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    with draws(model, images=torch.arange(3), draw=draw):
        loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 0]))
    torch.autograd.backward(loss)


def changes(model: nn.Module, sgd: torch.optim.Optimizer, steps: int) -> list[Tensor]:
    """What the steps change of the first layer's weights."""
    first = model.get_submodule("0")
    assert isinstance(first, TiledConv2d)
    found = []
    for _ in range(steps):
        before = first.weight.detach().clone()
        sgd.zero_grad()
        passed(model)
        sgd.step()
        found.append(first.weight.detach() - before)
    return found


def test_arrays_have_neither_momentum_nor_decay_and_digital_layers_do() -> None:
    torch.manual_seed(0)
    model = mixed()
    sgd = AnalogSGD(model, lr=0.1, momentum=0.9, weight_decay=0.5)
    pulses = model.get_submodule("0.matrices").get_parameter("pulses")
    (own,) = [group for group in sgd.param_groups if any(p is pulses for p in group["params"])]
    assert (own["momentum"], own["weight_decay"], own["lr"]) == (0, 0, 0.1)
    (rest,) = [group for group in sgd.param_groups if group is not own]
    assert (rest["momentum"], rest["weight_decay"], len(rest["params"])) == (0.9, 0.5, 2)
    torch.manual_seed(0)
    twin = mixed()
    changed = changes(model, sgd, 1)
    assert_near(changed[0], changes(twin, AnalogSGD(twin, lr=0.1), 1)[0])
    digital, other = model.get_submodule("2"), twin.get_submodule("2")
    assert not torch.equal(digital.get_parameter("weight"), other.get_parameter("weight"))
    changes(model, sgd, 1)
    kept = [p for p in model.parameters() if sgd.state[p].get("momentum_buffer") is not None]
    assert [id(p) for p in kept] == [id(p) for p in digital.parameters()]
    state = sgd.state_dict()
    AnalogSGD(twin, lr=0.3, momentum=0.9, weight_decay=0.5).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "arrays", "without"),
    [
        ({}, EXACT, False),
        ({"momentum": 0.9}, EXACT, True),
        ({"weight_decay": 1e-4}, EXACT, True),
        ({"momentum": 0.9, "weight_decay": 1e-4}, STANDARD_HWA, False),
        ({"momentum": 0.9}, None, False),
    ],
)
def test_it_says_what_was_in_vain(settings: dict[str, Any], arrays: AnyArrays | None, without: bool) -> None:
    model = nn.Sequential(TiledConv2d(2, 3, 3, arrays=arrays), nn.Linear(2, 2))
    assert AnalogSGD(model, lr=0.1, **settings).without == without
    digital = [{"params": list(model[1].parameters()), "momentum": 0.9}, {"params": model[0].parameters()}]
    assert not AnalogSGD(model, digital, lr=0.1).without


def test_each_group_has_its_rate() -> None:
    model = nn.Sequential(TiledConv2d(2, 2, 3, tiles=2, arrays=EXACT), nn.Flatten(), AnalogLinear(8, 2, arrays=EXACT))
    first, last = (model.get_submodule(f"{number}.matrices.pulses".rpartition(".")[0]) for number in (0, 2))
    assert isinstance(first, PulsedMatrices)
    assert isinstance(last, PulsedMatrices)
    sgd = AnalogSGD(model, [{"params": [first.pulses], "lr": 0.3}, {"params": [last.pulses]}], lr=0.1)
    before = first.bank.get_weights(), last.bank.get_weights()
    passed(model)
    sgd.step()
    once = first.bank.get_weights() - before[0], last.bank.get_weights() - before[1]
    for part, weights in zip((first, last), before, strict=True):
        part.bank.set_weights(weights, torch.Generator())
    for group in sgd.param_groups:
        group["lr"] *= 2
    sgd.zero_grad()
    passed(model)
    sgd.step()
    assert_near(first.bank.get_weights() - before[0], 2 * once[0])
    assert_near(last.bank.get_weights() - before[1], 2 * once[1])
    assert float(once[0].abs().max()) > 0


def test_arrays_that_are_in_no_group_stay() -> None:
    model = mixed()
    sgd = AnalogSGD(model, model[2].parameters(), lr=0.1)
    assert not changes(model, sgd, 1)[0].any()


def network(arrays: Any, **more: Any) -> Network:
    built = tiny.network(arrays=arrays, **more)
    assert isinstance(built, Network)
    return built


def test_rates_of_a_recipe_reach_the_arrays() -> None:
    """Tiles multiply the rate of their layer, of pulses as of parameters; an input range has the plain one."""
    recipe = tiny.recipe(lr_scaling="linear", weight_decay=0.1, momentum=0.5)
    for arrays in ("Idealized", "StandardHWATraining"):
        model = network(arrays, scheme="random", tiles=(8, 2))
        sgd = optimizer(model, recipe)
        set_rate(sgd, 0.2)
        rates = {id(p): (g["lr"], g["weight_decay"]) for g in sgd.param_groups for p in g["params"]}
        assert rates.keys() == {id(p) for p in model.parameters()}
        for name, rate in (("conv1", 1.6), ("conv2", 0.4), ("linear1", 0.2)):
            layer = model.get_submodule(name)
            matrices = layer.get_submodule("matrices")
            if isinstance(matrices, PulsedMatrices):
                assert rates[id(matrices.pulses)] == (pytest.approx(rate), 0)
            else:
                assert isinstance(matrices, AwareMatrices)
                assert rates[id(layer.get_parameter("weight"))] == (pytest.approx(rate), 0.1)
                assert rates[id(matrices.input_range)] == (pytest.approx(0.2), 0)
        assert sgd.without == (arrays == "Idealized")


def test_inference_arrays_learn_with_any_optimizer() -> None:
    """Only what follows a step needs AnalogSGD."""
    torch.manual_seed(0)
    model = mixed(InferenceArrays(forward=PERFECT))
    torch.manual_seed(0)
    twin = mixed(InferenceArrays(forward=PERFECT))
    found = changes(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 3)
    for one, other in zip(found, changes(twin, AnalogSGD(twin, lr=0.1, momentum=0.9), 3), strict=True):
        assert_near(one, other)
        assert other.any()


def test_devices_decay_once_for_each_step_that_pulses_come_with() -> None:
    torch.manual_seed(0)
    model = mixed(Arrays(device=IdealDevice(lifetime=4.0), forward=PERFECT, backward=PERFECT))
    torch.manual_seed(0)
    steady = mixed()
    sgd, plain = AnalogSGD(model, lr=0.1), AnalogSGD(steady, lr=0.1)
    layer, other = (each.get_submodule("0") for each in (model, steady))
    assert isinstance(layer, TiledConv2d)
    assert isinstance(other, TiledConv2d)
    before = layer.weight
    sgd.step()
    assert torch.equal(layer.weight, before)
    for each in (model, steady):
        passed(each)
        passed(each, draw=1)
    sgd.step()
    plain.step()
    assert_near(layer.weight, 0.75 * other.weight)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([list(nn.Linear(2, 2).parameters())], TypeError, r"^network: got list, .*AnalogSGD\(network, parameters, lr"),
        ([nn.Linear(2, 2).parameters()], TypeError, r"^network: got generator, "),
        ([nn.ReLU()], ValueError, r"^network: there are no parameters to train$"),
        ([nn.Linear(2, 2), []], ValueError, r"^groups: there are no parameters to train$"),
        ([nn.Linear(2, 2), [{"params": []}]], ValueError, r"^groups: there are no parameters to train$"),
        ([nn.Linear(2, 2), torch.ones(2)], TypeError, r"^groups: got one tensor, "),
        ([nn.Linear(2, 2), nn.Linear(2, 2).named_parameters()], TypeError, r"^groups: got tuple among the parameters"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(arguments: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AnalogSGD(*arguments, lr=0.1)


def test_a_group_may_be_one_parameter() -> None:
    model = nn.Linear(2, 2)
    sgd = AnalogSGD(model, [{"params": model.weight}, {"params": model.bias, "lr": 0.3}], lr=0.1)
    assert [(len(group["params"]), group["lr"]) for group in sgd.param_groups] == [(1, 0.1), (1, 0.3)]
