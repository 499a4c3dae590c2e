"""aihwkit's layout: what its matrices compute, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rapa_cli
from rapa_cli import TiledConv2d
from rapa_cli.analog import presets
from rapa_cli.errors import ConfigError
from rapa_cli.exporting.aihwkit import from_aihwkit, layout, to_aihwkit
from tests.exporting.networks import Branches, branches, pixels
from tests.tolerances import assert_near
from tests.training import tiny


@pytest.mark.parametrize("bias", [True, False])
def test_matrices_times_unfolded_patches(bias: bool) -> None:
    """As aihwkit's convolution computes: each tile a matrix, its input a column of `unfold` and 1 for the bias."""
    layer = TiledConv2d(3, 5, (3, 2), stride=2, padding=1, dilation=(1, 2), bias=bias, tiles=4)
    images = pixels(2)
    size = layer.geometry(*images.shape[2:])
    assignment = torch.randint(4, (2, size.patches), generator=torch.Generator().manual_seed(0))
    columns = F.unfold(images, (3, 2), dilation=(1, 2), padding=1, stride=2)
    if bias:
        columns = F.pad(columns, (0, 0, 0, 1), value=1.0)
    matrices = to_aihwkit(layer)
    products = torch.stack([matrices[f"layer.tile_{tile}"] @ columns for tile in range(4)])
    chosen = products.gather(0, assignment[None, :, None].expand(1, -1, 5, -1))[0]
    assert_near(chosen.view(2, 5, size.out_height, size.out_width), layer(images, assignment).detach())


def test_names_and_what_the_matrices_mean() -> None:
    model = branches()
    found = to_aihwkit(model)
    shapes = {name: tuple(matrix.shape) for name, matrix in found.items()}
    assert shapes == {
        **{f"stem.0.tile_{tile}": (4, 28) for tile in range(5)},
        **{f"even.a.tile_{tile}": (4, 24) for tile in range(3)},
        **{f"down.tile_{tile}": (6, 37) for tile in range(2)},
        "head.tile_0": (5, 7),
    }
    assert all(matrix.is_contiguous() for matrix in found.values())
    assert layout(model)["even.a"] == {"kind": "conv", "tiles": 3, "kernel": [4, 4, 3, 2], "bias": False}
    assert layout(model)["head"] == {"kind": "linear", "tiles": 1, "kernel": [5, 6], "bias": True}


@pytest.mark.parametrize("tiled", [True, False])
def test_there_and_back(tiled: bool) -> None:
    model, other = (branches() if tiled else Branches() for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    back = from_aihwkit(other, to_aihwkit(model)).state_dict()
    weights = dict(model.named_parameters())
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in before.items())


def test_arrays_show_their_weights_and_take_others() -> None:
    model = rapa_cli.convert(
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4)), arrays=presets.Idealized()
    )
    matrices = to_aihwkit(model)
    conv, linear = model.get_submodule("0"), model.get_submodule("2")
    assert isinstance(conv.weight, Tensor)
    assert isinstance(linear.weight, Tensor)
    assert_near(matrices["0.tile_0"][:, :-1], conv.weight[0].flatten(1))
    assert_near(matrices["2.tile_0"][:, :-1], linear.weight)
    smaller = {name: matrix / 2 for name, matrix in matrices.items()}
    shown = to_aihwkit(from_aihwkit(model, smaller))
    for name, matrix in smaller.items():
        assert_near(shown[name], matrix)


def test_what_does_not_fit() -> None:
    model = tiny.network(scheme="random", tiles=(4, 1))
    good = to_aihwkit(model)
    name = "conv1.tile_3"
    wrong = {
        "matrix 'conv1.tile_3' is missing": {key: value for key, value in good.items() if key != name},
        "there is no layer for matrix 'conv1.tile_4'": {**good, "conv1.tile_4": good[name]},
        r"matrix 'conv1.tile_3' has shape \(4, 27\), not \(4, 28\)": {**good, name: good[name][:, :-1]},
        "matrix 'conv1.tile_3' has numbers that are not finite": {**good, name: good[name] / 0},
    }
    for message, matrices in wrong.items():
        with pytest.raises(ConfigError, match=message):
            from_aihwkit(model, matrices)
    with pytest.raises(ConfigError, match="convolution '0' has 2 groups"):
        to_aihwkit(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)))
