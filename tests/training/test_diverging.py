"""The layer at which numbers stop being finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rapa_cli import checkpoint, runs
from rapa_cli.errors import CheckFailed
from rapa_cli.training.diverging import first_not_finite
from rapa_cli.training.stopping import StopRequest
from tests.training import tiny
from tests.training.test_resume import Stopper, resumed, run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("place", [0, 2])
def test_the_first_layer_is_named(place: int, value: float) -> None:
    first, third = nn.Linear(3, 4), nn.Linear(4, 4)
    network = nn.Sequential(first, nn.ReLU(), third, nn.Linear(4, 2))
    with torch.no_grad():
        first.weight.fill_(1.0)
        (third if place else first).weight.fill_(value)
    assert first_not_finite(network, lambda: network(torch.full((2, 3), 9.0))) == str(place)
    assert not any(module._forward_hooks for module in network.modules())


def test_none_where_all_is_finite() -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    assert first_not_finite(network, lambda: network(torch.zeros(2, 3))) is None


@pytest.mark.parametrize("layer", ["conv1", "conv2", "linear1"])
def test_a_training_says_step_layer_and_rate_and_keeps_the_last_checkpoint(tmp_path: Path, layer: str) -> None:
    run(tiny.begin(tmp_path, epochs=1, network={"scheme": "random"}), Stopper())
    good = (tmp_path / runs.LAST).read_bytes()
    training = resumed(tmp_path, epochs=2)

    class Breaking(Stopper):
        def step(self, epoch: int, step: int, *_: object) -> None:
            if step == 3:
                with torch.no_grad():
                    dict(training.network.named_parameters())[f"{layer}.weight"].fill_(float("inf"))

    with pytest.raises(CheckFailed) as caught, StopRequest() as stop:
        training.run(Breaking(), stop)
    assert caught.value.message == (
        f"the training diverged in epoch 2, by step 4: the output of layer '{layer}' is not finite at rate 0.05"
    )
    assert caught.value.exit_code == 4
    assert (tmp_path / runs.LAST).read_bytes() == good
    assert checkpoint.is_finite(checkpoint.load(tmp_path).state_dict())
