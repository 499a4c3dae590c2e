"""Graphs of torch.export: what they compute, what they take, and that the network stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rapa_cli
from rapa_cli.analog import presets
from rapa_cli.errors import ConfigError
from rapa_cli.exporting.graph import assignments, graph_of
from rapa_cli.keyed import KeyedLayer
from rapa_cli.philox import Purpose
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import Scheme
from tests.exporting.networks import SHAPE, branches, pixels
from tests.tolerances import assert_near
from tests.training import tiny

FIXED = ["random-fixed", "image-overlap", "image-pad", "alternate"]


def drawn(model: nn.Module, images: Tensor, ids: Tensor, seed: int = 0, draw: int = 0) -> Tensor:
    with torch.no_grad(), rapa_cli.draws(model, images=ids, seed=seed, draw=draw):
        logits: Tensor = model(images)
    return logits


@pytest.mark.parametrize("count", [1, 5])
def test_assignments_of_a_draw_give_what_the_draw_gives(count: int) -> None:
    model, images, ids = branches(), pixels(count), torch.arange(count) + 7
    graph = graph_of(model, SHAPE)
    assert [(each.name, each.tiles, each.size) for each in graph.assignments] == [
        ("assignment_stem.0", 5, (9, 8)),
        ("assignment_even.a", 3, (9, 8)),
        ("assignment_down", 2, (5, 3)),
    ]
    outputs = []
    for draw in (0, 3):
        given = assignments(model, SHAPE, images=ids, seed=4, draw=draw)
        assert [(name, tuple(values.shape)) for name, values in given.items()] == [
            (each.name, (count, each.patches)) for each in graph.assignments
        ]
        outputs.append(graph.program.module()(images, *given.values()))
        assert_near(outputs[-1], drawn(model, images, ids, seed=4, draw=draw))
    assert not torch.equal(outputs[0], outputs[1]), "the assignments matter"


@pytest.mark.parametrize("scheme", [*FIXED, "perforated", "none"])
def test_assignments_that_never_change_are_constants(scheme: str) -> None:
    model = tiny.network(scheme=scheme, tiles=(1, 1) if scheme == "none" else (4, 4))
    graph = graph_of(model, tiny.SHAPE)
    assert graph.assignments == ()
    images = pixels(3, tiny.SHAPE)
    assert_near(graph.program.module()(images), drawn(model, images, torch.arange(3)))
    operators = [node for node in graph.program.graph.nodes if node.target is torch.ops.rapa.tiled_conv2d.default]
    assert len(operators) == (2 if scheme in FIXED else 0), "one matrix is an ordinary convolution"


class Shifted(Scheme):
    """Every image begins with another tile."""

    name = "shifted"

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        shift = layer.draw_for(images, layer.seed.device).words(Purpose.ASSIGNMENT, count=1)
        return (torch.arange(size[0] * size[1]) + shift) % tiles


class Striped(Scheme):
    """Every other pixel, on one tile or on the other, the same for all images; the rest is zero."""

    name = "striped"
    random_in_test = False

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        row = torch.arange(size[0] * size[1])
        count = images if isinstance(images, int) else len(images)
        return torch.where(row % 2 == 0, row // 2 % tiles, -1).expand(count, -1)


class Every2nd(Striped):
    """Likewise with one kernel matrix."""

    def matrices(self, tiles: int) -> int:
        return 1

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        return super().assign(layer, 1, images, size)


@pytest.mark.parametrize(
    ("scheme", "inputs"), [(Shifted(), 1), (Striped(), 0), (Every2nd(), 0)], ids=["shifted", "striped", "every 2nd"]
)
@pytest.mark.parametrize("apart", [False, True])
def test_schemes_of_ones_own_say_whether_they_draw(scheme: Scheme, inputs: int, apart: bool) -> None:
    """Also while all tiles are alike, where any assignment would pass a check."""
    model = rapa_cli.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), tiles=4, scheme=scheme)
    layer = model.get_submodule("0")
    assert isinstance(layer, TiledConv2d)
    if apart:
        layer.reset_parameters(torch.Generator().manual_seed(1))
    graph = graph_of(model, SHAPE)
    assert len(graph.assignments) == inputs
    images, ids = pixels(3), torch.arange(3)
    given = assignments(model, SHAPE, images=ids, draw=2)
    assert_near(graph.program.module()(images, *given.values()), drawn(model, images, ids, draw=2))


def test_the_network_stays_as_it_was() -> None:
    model = branches().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph_of(model, SHAPE)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_arrays_with_noise_are_refused_by_layer() -> None:
    model = tiny.network(scheme="random", tiles=(4, 4), arrays="ReRamES")
    with pytest.raises(ConfigError, match="layer 'conv1' lies on arrays") as caught:
        graph_of(model, tiny.SHAPE)
    assert caught.value.hint is not None
    assert "--reduced" in caught.value.hint
    assert graph_of(rapa_cli.reduce(model), tiny.SHAPE).assignments == ()
    linear = rapa_cli.convert(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), arrays=presets.ReRamES())
    with pytest.raises(ConfigError, match="layer '1' lies on arrays"):
        graph_of(linear, (3, 2, 2))


class Moody(nn.Module):
    """Its layers depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if float(y.sum()) > 0 else -y


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_other_precisions_are_refused(to: str, tmp_path: Path) -> None:
    model = rapa_cli.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).double(), tiles=4)
    with pytest.raises(ConfigError, match=r"^the network computes in torch\.float64, and what is exp") as caught:
        rapa_cli.export(model, tmp_path / "x", to=to, shape=SHAPE)
    assert caught.value.hint == "export model.float()"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_traced() -> None:
    with pytest.raises(ConfigError, match=r"torch\.export cannot trace the network: ") as caught:
        graph_of(Moody(), SHAPE)
    assert "\n" not in caught.value.message
    with pytest.raises(ConfigError, match="cannot take an image of 2 x 9 x 8"):
        graph_of(branches(), (2, 9, 8))
