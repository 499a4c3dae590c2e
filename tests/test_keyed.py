"""Draws: what fixes a network's random choices, and what it leaves as it was."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from rapa_cli.keyed import Draw, KeyedLayer, draws, keyed_layers, number_layers
from rapa_cli.layers.pooling import StochasticPool2d
from rapa_cli.philox import Purpose, Stream
from rapa_cli.tiling.conv import TiledConv2d
from tests.tolerances import assert_near

STREAMS = ["train", "test", "vote", "attack"]


def _conv(scheme: str = "random", tiles: int = 4) -> TiledConv2d:
    return TiledConv2d(3, 3, 3, padding=1, tiles=tiles, scheme=scheme)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(_conv(), nn.ReLU(), StochasticPool2d(2, 2))
    return nn.Sequential(_conv(), nn.ReLU(), inner, _conv("random-fixed"), nn.Flatten(), nn.Linear(27, 2))


def _images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_all_layers_are_found_in_order() -> None:
    network = _network()
    places = [name for name, module in network.named_modules() if isinstance(module, KeyedLayer)]
    assert places == ["0", "2.0", "2.2", "3"]
    assert keyed_layers(network) == [network.get_submodule(place) for place in places]
    number_layers(network)
    assert [layer.index for layer in keyed_layers(network)] == [0, 1, 2, 3]


def test_a_draw_fixes_the_result() -> None:
    network, x, ids = _network(), _images(), torch.arange(5)

    def result(seed: int, draw: int, stream: str, images: Tensor) -> tuple[float, ...]:
        with draws(network, images=images, seed=seed, draw=draw, stream=stream):
            return tuple(network(x).flatten().tolist())

    keys = list(itertools.product((0, 7), (0, 3), STREAMS, (ids, ids + 5)))
    found = [result(*key) for key in keys]
    assert len(set(found)) == len(keys)
    network(x)
    torch.manual_seed(99)
    assert found == [result(*key) for key in keys]


def test_by_default_it_is_the_first_draw_of_the_test_stream() -> None:
    network, x, ids = _network(), _images(), torch.arange(5)
    with draws(network, images=ids):
        found = network(x)
    with draws(network, images=ids, seed=0, draw=0, stream="test"):
        assert torch.equal(found, network(x))


@pytest.mark.parametrize("training", [True, False])
def test_an_image_has_the_same_result_in_every_batch(training: bool) -> None:
    network, x, ids = _network().double().train(training), _images(6).double(), torch.tensor([9, 4, 2**32 - 1, 0, 5, 5])
    with draws(network, images=ids, draw=2):
        whole = network(x)
    for chosen in ([0], [5, 1], [3, 2, 4, 0, 1]):
        part = torch.tensor(chosen)
        with draws(network, images=ids[part], draw=2):
            assert_near(network(x[part]), whole[part])


def test_a_draw_for_each_image_is_the_draws_one_by_one() -> None:
    network, x, ids, each = _network().double(), _images(4).double(), torch.tensor([3, 3, 8, 0]), torch.arange(4) * 7
    with draws(network, images=ids, draw=each, stream="vote"):
        together = network(x)
    assert not torch.equal(together[0], together[1])
    for i in range(4):
        with draws(network, images=ids[i : i + 1], draw=int(each[i]), stream="vote"):
            assert_near(network(x[i : i + 1]), together[i : i + 1])
    with draws(network, images=ids, draw=torch.tensor(5)):
        found = network(x)
    with draws(network, images=ids, draw=5):
        assert torch.equal(found, network(x))


def test_training_and_evaluation_share_the_assignments_of_a_draw() -> None:
    layer = _conv()
    with draws(layer, images=torch.arange(3), draw=1):
        assert torch.equal(layer.train().assign(3, (6, 6)), layer.eval().assign(3, (6, 6)))


def test_the_state_before_comes_back() -> None:
    layer = _conv()
    ids = torch.arange(2)

    def found() -> Tensor:
        return layer.assign(2, (6, 6))

    with draws(layer, images=ids, draw=0):
        outer = found()
        with draws(layer, images=ids, draw=1):
            inner = found()
        assert torch.equal(found(), outer)
        with pytest.raises(KeyError), draws(layer, images=ids, draw=1):
            raise KeyError
        assert torch.equal(found(), outer)
        with pytest.raises(ValueError, match=r"^seed"), draws(layer, images=ids, seed=-1):
            pytest.fail("not reached")
        assert torch.equal(found(), outer)
    assert not torch.equal(inner, outer)
    assert int(layer.calls) == 0
    found()
    assert int(layer.calls) == 1


def test_a_draw_reaches_its_own_model_only() -> None:
    one, other = _conv(), _conv()
    with draws(one, images=torch.arange(2)):
        assert torch.equal(one.assign(2, (6, 6)), one.assign(2, (6, 6)))
        assert not torch.equal(other.assign(2, (6, 6)), other.assign(2, (6, 6)))


def test_without_a_draw_calls_are_counted() -> None:
    network, x = _network().eval(), _images()
    for training in (True, False):
        network.train(training)
        assert not torch.equal(network(x), network(x))
    counted = {name: int(value) for name, value in network.state_dict().items() if name.endswith("calls")}
    # Stochastic pooling draws in training only, and a fixed partition never.
    assert counted == {"0.calls": 4, "2.0.calls": 4, "2.2.calls": 2, "3.calls": 0}


def test_the_count_goes_on_from_a_state_dict() -> None:
    network, x = _network(), _images()
    network(x)
    resumed = _network()
    resumed.load_state_dict(copy.deepcopy(network.state_dict()))
    with draws(network, images=torch.arange(5)):
        network(x)
    assert torch.equal(network(x), resumed(x))


def test_layers_count_with_seeds_of_their_own() -> None:
    torch.manual_seed(0)
    layers = [_conv() for _ in range(3)]
    assert len({int(layer.seed) for layer in layers}) == 3
    assert len({tuple(layer.assign(1, (6, 6))[0].tolist()) for layer in layers}) == 3


def test_draws_leave_what_layers_hold_as_it_was() -> None:
    network = _network()
    number_layers(network)
    before = copy.deepcopy(network.state_dict())
    with draws(network, images=torch.arange(5)):
        network(_images())
        with draws(network[2], images=torch.arange(5)):
            pass
    assert [layer.index for layer in keyed_layers(network)] == [0, 1, 2, 3]
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_image_ids_given_to_assign_replace_those_of_the_draw() -> None:
    layer = _conv()
    with draws(layer, images=torch.arange(8), draw=4):
        whole = layer.assign(8, (6, 6))
        assert torch.equal(layer.assign(torch.tensor([6, 2]), (6, 6)), whole[[6, 2]])
    with draws(layer, images=torch.arange(8), draw=torch.arange(8)):
        whole = layer.assign(8, (6, 6))
        assert torch.equal(layer.assign(torch.arange(8), (6, 6)), whole)
        with pytest.raises(
            ValueError, match=r"^images: got 1 ids, but draws\(\) was given a draw for each of 8 images$"
        ):
            layer.assign(torch.tensor([6]), (6, 6))


@pytest.mark.parametrize(
    "images",
    [
        torch.arange(4).float(),
        torch.arange(4, dtype=torch.int32),
        torch.arange(4)[None],
        torch.tensor(4),
        torch.tensor([0, -1]),
        torch.tensor([2**32]),
    ],
)
def test_wrong_ids_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^images: "), draws(_conv(), images=images):
        pytest.fail("not reached")


@pytest.mark.parametrize("draw", [torch.arange(3), torch.zeros(4, 1), torch.zeros(4), -1, 2**32, 0.5])
def test_wrong_draws_are_refused(draw: int | Tensor) -> None:
    with pytest.raises(ValueError, match=r"^draw: "), draws(_conv(), images=torch.arange(4), draw=draw):
        pytest.fail("not reached")


@pytest.mark.parametrize("stream", ["", "calls", "fixed", "training"])
def test_wrong_streams_are_refused(stream: str) -> None:
    with (
        pytest.raises(ValueError, match=r"^stream: got '.*', allowed are train, test, vote, attack$"),
        draws(_conv(), images=torch.arange(4), stream=stream),
    ):
        pytest.fail("not reached")


@pytest.mark.parametrize("ids", [1, 4, 6])
def test_ids_must_be_as_many_as_images(ids: int) -> None:
    network = _network()
    message = rf"^images: draws\(\) was given {ids} ids for a batch of 5 images"
    with draws(network, images=torch.arange(ids)), pytest.raises(ValueError, match=message):
        network(_images())


def test_ids_come_to_the_device_of_the_layer() -> None:
    layer = StochasticPool2d(2, 2)
    with draws(layer, images=torch.arange(5), draw=2):
        draw = layer.draw_for(5, torch.device("meta"))
    assert draw.images.device.type == "meta"


def test_a_draw_gives_words() -> None:
    draw = Draw(3, 2, torch.arange(2), Stream.VOTE, 1)
    found = draw.words(Purpose.POOLING, count=6)
    assert found.shape == (2, 6)
    assert torch.equal(draw.words(Purpose.POOLING, count=2, first_block=1), found[:, 4:])
