"""The learning rate, and which parameters are scaled and decay."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from rapa_cli.layers.network import Network
from rapa_cli.training.schedule import optimizer, rate, set_rate
from tests.training import tiny


def test_steps() -> None:
    recipe = tiny.recipe(lr=0.5, step_epochs=25, step_factor=0.75)
    rates = [rate(recipe, epoch) for epoch in (0, 24, 25, 49, 50, 399)]
    assert rates == pytest.approx([0.5, 0.5, 0.375, 0.375, 0.28125, 0.5 * 0.75**15], rel=1e-15)


@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_warm_up_is_a_fiftieth(epochs: int) -> None:
    recipe = tiny.recipe(lr=0.5, warmup_epochs=epochs)
    assert [rate(recipe, epoch) for epoch in range(8)] == pytest.approx([0.01] * epochs + [0.5] * (8 - epochs))


def test_steps_count_from_the_beginning_of_warming_up() -> None:
    recipe = tiny.recipe(lr=1.0, warmup_epochs=3, warmup_factor=0.1, step_epochs=2, step_factor=0.5)
    assert [rate(recipe, epoch) for epoch in range(5)] == pytest.approx([0.1, 0.1, 0.05, 0.5, 0.25])


def settings(network: Network, **changes: Any) -> dict[str, tuple[float, float]]:
    """Rate and decay of each parameter at the rate 2."""
    sgd = optimizer(network, tiny.recipe(weight_decay=0.1, **changes))
    set_rate(sgd, 2.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in sgd.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(names), "each parameter is in one group"
    return dict(found)


def test_all_alike_without_scaling() -> None:
    assert set(settings(tiny.network(scheme="random")).values()) == {(2.0, 0.1)}


@pytest.mark.parametrize("scheme", ["random", "random-fixed", "image-overlap", "perforated"])
def test_the_rate_of_a_layer_grows_with_its_tiles(scheme: str) -> None:
    found = settings(tiny.network(scheme=scheme, tiles=(16, 4)), lr_scaling="linear")
    assert found == {
        "conv1.weight": (32.0, 0.1),
        "conv1.bias": (32.0, 0.1),
        "conv2.weight": (8.0, 0.1),
        "conv2.bias": (8.0, 0.1),
        "linear1.weight": (2.0, 0.1),
        "linear1.bias": (2.0, 0.1),
    }


def test_the_rate_of_a_layer_may_grow_with_the_root_of_its_tiles() -> None:
    found = settings(tiny.network(scheme="random", tiles=(16, 4)), lr_scaling="sqrt")
    assert {name: rate for name, (rate, _) in found.items()} == {
        "conv1.weight": 8.0,
        "conv1.bias": 8.0,
        "conv2.weight": 4.0,
        "conv2.bias": 4.0,
        "linear1.weight": 2.0,
        "linear1.bias": 2.0,
    }


def test_an_untiled_network_is_not_scaled() -> None:
    for scaling in ("none", "sqrt", "linear"):
        assert set(settings(tiny.network(), lr_scaling=scaling).values()) == {(2.0, 0.1)}


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("mixtures", [True, False])
def test_what_decays(biases: bool, mixtures: bool) -> None:
    network = tiny.network(pool="mixed", scheme="random")
    found = settings(network, decay_bias=biases, decay_mixture=mixtures)
    for name, (_, decay) in found.items():
        decays = mixtures if name.endswith("beta") else biases or not name.endswith("bias")
        assert decay == (0.1 if decays else 0.0), name
    assert "pool1.beta" in found


def test_momentum() -> None:
    sgd = optimizer(nn.Linear(2, 2), tiny.recipe(momentum=0.9))
    assert [group["momentum"] for group in sgd.param_groups] == [0.9]
    assert not any(group["nesterov"] or group["dampening"] for group in sgd.param_groups)
