"""An ordinary network from a tiled one, and how alike the tiles are."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rapa_cli
from rapa_cli import TiledConv2d, checkpoint, convert, draws, reduce
from rapa_cli.analysis.reduction import WAYS, largest_norm, most_wins, same_filters
from rapa_cli.analysis.similarity import similarity
from rapa_cli.analysis.winners import count_wins
from rapa_cli.checkpoint import Description
from rapa_cli.layers.network import Network
from tests.training import tiny


def hand_made() -> TiledConv2d:
    """Two tiles, two channels, filters of one pixel; the bias is large where the filter is small."""
    layer = TiledConv2d(2, 2, 1, tiles=2, scheme="random")
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[3.0, 4.0], [1.0, 1.0]], [[0.0, 4.9], [-2.0, 2.0]]]).view(2, 2, 2, 1, 1))
        layer.bias.copy_(torch.tensor([[0.1, 90.0], [80.0, 0.2]]))
    return layer


def test_by_hand() -> None:
    layer = hand_made()
    # Channel 0: 5 against 4.9, so the first tile; channel 1: 1.41 against 2.83, so the second.
    assert largest_norm(layer.weight).tolist() == [0, 1]
    ordinary = reduce(layer)
    assert type(ordinary) is nn.Conv2d
    assert ordinary.weight.flatten().tolist() == [3, 4, -2, 2]
    assert ordinary.bias is not None
    assert ordinary.bias.tolist() == pytest.approx([0.1, 0.2])


def test_one_tile_is_the_layer_itself() -> None:
    layer = TiledConv2d(3, 4, (3, 5), 2, (1, 2), (1, 2), bias=False, tiles=1, scheme="none").double()
    ordinary = reduce(layer.eval())
    assert isinstance(ordinary, nn.Conv2d)
    assert ordinary.bias is None
    assert not ordinary.training
    x = torch.rand(2, 3, 13, 15, dtype=torch.float64)
    assert torch.equal(ordinary(x), layer(x))


def test_padding_by_name() -> None:
    layer = TiledConv2d(3, 4, 3, padding="same", tiles=4, scheme="alternate")
    ordinary = reduce(layer)
    assert isinstance(ordinary, nn.Conv2d)
    assert ordinary(torch.rand(1, 3, 6, 7)).shape == (1, 4, 6, 7)


@pytest.mark.parametrize("scheme", ["random", "random-fixed", "image-overlap", "alternate", "perforated"])
def test_equal_tiles_are_reduced_to_the_same_network(scheme: str) -> None:
    network = convert(tiny.network(), tiles=[4, 4], scheme=scheme)
    ordinary = reduce(network)
    x = torch.rand(5, *tiny.SHAPE)
    with torch.no_grad(), draws(network, images=torch.arange(5)):
        assert torch.allclose(ordinary(x), network(x), atol=1e-5)


def test_a_whole_network(tmp_path: Path) -> None:
    network = tiny.network(scheme="random", tiles=(16, 4), pool="mixed")
    before = copy.deepcopy(network.state_dict())
    random_state = torch.get_rng_state()
    ordinary = reduce(network)
    assert isinstance(ordinary, Network)
    assert (ordinary.definition.scheme, ordinary.definition.tiles) == ("none", (1, 1))
    assert network.definition.tiles == (16, 4)
    assert not any(isinstance(module, TiledConv2d) for module in ordinary.modules())
    assert [name for name, _ in ordinary.named_children()] == [name for name, _ in network.named_children()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    for name in ("conv1", "conv2"):
        tiled, convolution = network.get_submodule(name), ordinary.get_submodule(name)
        assert isinstance(tiled, TiledConv2d)
        assert isinstance(convolution, nn.Conv2d)
        assert tiled.bias is not None
        assert convolution.bias is not None
        for channel in range(tiled.out_channels):
            norms = [float(kernel.square().sum()) for kernel in tiled.weight.detach()[:, channel]]
            tile = norms.index(max(norms))
            assert torch.equal(convolution.weight[channel], tiled.weight[tile, channel])
            assert convolution.bias[channel] == tiled.bias[tile, channel]

    description = Description(network=ordinary.definition, shape=tiny.SHAPE, classes=tiny.CLASSES, data="tiny")
    checkpoint.save(tmp_path / "ordinary.safetensors", description, ordinary.state_dict(), {})
    loaded = rapa_cli.load(tmp_path / "ordinary.safetensors")
    x = torch.rand(4, *tiny.SHAPE)
    assert torch.equal(loaded(x), ordinary.eval()(x))


def test_layers_inside_other_modules() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(hand_made(), nn.ReLU()), "b": nn.Linear(2, 2)})
    reduced = reduce(model)
    assert type(reduced.get_submodule("a.0")) is nn.Conv2d
    assert type(model.get_submodule("a.0")) is TiledConv2d


def test_unknown_ways() -> None:
    with pytest.raises(ValueError, match="by: there is no 'nrom'; did you mean 'norm'"):
        reduce(hand_made(), by="nrom")


def test_mean_and_first_by_hand() -> None:
    mean, first = reduce(hand_made(), "mean"), reduce(hand_made(), "first")
    assert isinstance(mean, nn.Conv2d)
    assert isinstance(first, nn.Conv2d)
    assert mean.bias is not None
    assert first.bias is not None
    assert mean.weight.flatten().tolist() == pytest.approx([1.5, 4.45, -0.5, 1.5])
    assert mean.bias.tolist() == pytest.approx([40.05, 45.1])
    assert first.weight.flatten().tolist() == [3, 4, 1, 1]
    assert first.bias.tolist() == pytest.approx([0.1, 90])


def test_most_wins_by_hand() -> None:
    """Most wins; of equals the largest norm, not the first."""
    weight = hand_made().weight
    assert most_wins(torch.tensor([[5, 3], [4, 2]]), weight).tolist() == [0, 0]
    assert most_wins(torch.tensor([[5, 3], [6, 4]]), weight).tolist() == [1, 1]
    assert most_wins(torch.tensor([[0, 0], [0, 0]]), weight).tolist() == largest_norm(weight).tolist() == [0, 1]


@pytest.mark.parametrize("by", WAYS)
def test_equal_tiles_are_the_same_network_by_all_ways(by: str) -> None:
    network = convert(tiny.network(), tiles=[4, 4])
    ordinary = reduce(network, by, images=tiny.data_set().train.images)
    x = torch.rand(5, *tiny.SHAPE)
    with torch.no_grad(), draws(network, images=torch.arange(5)):
        torch.testing.assert_close(ordinary(x), network(x), atol=1e-5, rtol=0)


def test_by_winner() -> None:
    """Each channel has the filter and the bias of the tile that the counts name."""
    network = tiny.network(scheme="random", tiles=(16, 4), seed=3)
    images = tiny.data_set(train=40).train.images
    state = torch.get_rng_state()
    seen: list[int] = []
    ordinary = reduce(network, "winner", images=images, seed=2, batch_size=30, on_batch=seen.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == [30, 10]
    counts = count_wins(network, images, seed=2)
    chosen = []
    for name in ("conv1", "conv2"):
        tiled, convolution = network.get_submodule(name), ordinary.get_submodule(name)
        assert isinstance(tiled, TiledConv2d)
        assert isinstance(convolution, nn.Conv2d)
        assert tiled.bias is not None
        assert convolution.bias is not None
        for channel in range(tiled.out_channels):
            wins = counts[name][:, channel].tolist()
            tile = wins.index(max(wins))
            assert wins.count(max(wins)) == 1 or max(wins) == 0
            if max(wins):
                chosen.append(tile)
                assert torch.equal(convolution.weight[channel], tiled.weight[tile, channel])
                assert convolution.bias[channel] == tiled.bias[tile, channel]
    assert len(set(chosen)) > 1
    shared = same_filters(network, ordinary, reduce(network))
    assert shared is not None
    assert 0 < shared < 1


def test_filters_in_common() -> None:
    network = tiny.network(scheme="random", tiles=(16, 1))
    norm, first = reduce(network), reduce(network, "first")
    tiled, one, other = (
        each.get_submodule("conv1").get_parameter("weight").detach() for each in (network, norm, first)
    )
    same = sum(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert same == int((largest_norm(tiled) == 0).sum())
    assert same_filters(network, norm, first) == same / 4, "the layer of one tile does not count"
    assert same_filters(network, norm, norm) == 1
    assert same_filters(tiny.network(), reduce(tiny.network()), reduce(tiny.network())) is None


def test_winner_needs_images_only_where_there_is_a_choice() -> None:
    network = tiny.network(scheme="random", tiles=(4, 1))
    with pytest.raises(ValueError, match="images: 'winner' counts on training images"):
        reduce(network, "winner")
    assert isinstance(reduce(tiny.network(), "winner"), Network)
    assert isinstance(reduce(tiny.network(scheme="perforated", tiles=(4, 4)), "winner"), Network)


def correlations(weight: Tensor) -> float:
    """The mean correlation over all pairs of tiles and all channels, pair by pair."""
    tiles, channels = weight.shape[:2]
    found = [
        np.corrcoef(weight[one, channel].flatten().numpy(), weight[other, channel].flatten().numpy())[0, 1]
        for channel in range(channels)
        for one in range(tiles)
        for other in range(one + 1, tiles)
    ]
    return float(np.mean(found))


@pytest.mark.parametrize("tiles", [2, 3, 16])
def test_similarity_against_numpy(tiles: int) -> None:
    generator = torch.Generator().manual_seed(tiles)
    common = torch.rand(1, 5, 3, 4, 4, generator=generator)
    weight = common + 0.3 * torch.rand(tiles, 5, 3, 4, 4, generator=generator)
    assert similarity(weight) == pytest.approx(correlations(weight), abs=1e-6)


def test_similarity_of_equal_and_of_independent_tiles() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(1, 5, 3, 4, 4, generator=generator)
    assert similarity(one.expand(4, -1, -1, -1, -1)) == pytest.approx(1, abs=1e-12)
    assert similarity(torch.cat([one, 3 * one + 2])) == pytest.approx(1, abs=1e-12)
    assert similarity(torch.cat([one, -one])) == pytest.approx(-1, abs=1e-12)
    independent = similarity(torch.randn(8, 32, 32, 5, 5, generator=generator))
    # 28 pairs, 32 channels, 800 weights: the standard deviation of the mean is about 0.0012.
    assert independent == pytest.approx(0, abs=0.006)


def test_no_similarity_without_two_tiles_that_vary() -> None:
    assert similarity(torch.rand(1, 4, 3, 3, 3)) is None
    assert similarity(torch.ones(3, 4, 3, 3, 3)) is None
    constant = torch.rand(2, 2, 3, 3, 3)
    constant[0, 0] = 1
    assert similarity(constant) == pytest.approx(correlations(constant[:, 1:]), abs=1e-6)


def test_a_shared_convolution_is_reduced_everywhere() -> None:
    shared = TiledConv2d(3, 3, 3, padding=1, tiles=4)
    reduced = reduce(nn.Sequential(shared, nn.ReLU(), shared))
    assert isinstance(reduced, nn.Sequential)
    assert type(reduced[0]) is nn.Conv2d
    assert reduced[0] is reduced[2]
