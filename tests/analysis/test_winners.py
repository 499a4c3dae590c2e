"""Wins in pooling windows, against a loop over every image, channel, window and pixel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli import TiledConv2d, convert, draws
from rapa_cli.analysis.reduction import reduce
from rapa_cli.analysis.winners import Windows, count_wins, window_wins
from rapa_cli.errors import ConfigError
from rapa_cli.layers.network import Network
from rapa_cli.layers.pooling import pooling
from tests.training import tiny


def brute(x: Tensor, tile: Tensor, tiles: int, pool: nn.MaxPool2d | nn.AvgPool2d) -> list[list[int]]:
    """Wins of each tile in each channel: look at every pixel of every window; padding is no pixel."""
    kernel, stride, padding = (int(value) for value in (pool.kernel_size, pool.stride, pool.padding))  # type: ignore[arg-type]
    dilation = int(pool.dilation) if isinstance(pool, nn.MaxPool2d) else 1  # type: ignore[arg-type]
    images, channels, height, width = x.shape
    down, right = pool(x).shape[2:]
    wins = [[0] * channels for _ in range(tiles)]
    for image in range(images):
        for channel in range(channels):
            for row in range(down):
                for column in range(right):
                    found = []
                    for i in range(kernel):
                        for j in range(kernel):
                            y, z = row * stride - padding + i * dilation, column * stride - padding + j * dilation
                            if 0 <= y < height and 0 <= z < width:
                                found.append((float(x[image, channel, y, z]), int(tile[image, y, z])))
                    largest = max(value for value, _ in found)
                    of = [which for value, which in found if value == largest]
                    if len(of) == 1:
                        wins[of[0]][channel] += 1
    return wins


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.MaxPool2d(3, 1, padding=1, dilation=2, ceil_mode=True),
        nn.AvgPool2d(3, 2, padding=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("relu", [False, True])
def test_windows_against_a_loop(pool: nn.MaxPool2d | nn.AvgPool2d, relu: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 7, 6, generator=generator) - 0.5
    if relu:
        # Windows of zeros only: nobody wins.
        x = x.relu()
    tile = torch.randint(0, 4, (2, 7, 6), generator=generator)
    numbers = (pool.kernel_size, pool.stride, pool.padding, getattr(pool, "dilation", 1))
    windows = Windows(*((int(value),) * 2 for value in numbers))  # type: ignore[arg-type]
    size = (pool(x).shape[2], pool(x).shape[3])
    found = window_wins(x, tile, 4, windows, size)
    assert found.tolist() == brute(x, tile, 4, pool)
    assert (int(found.sum()) < 2 * 3 * math.prod(size)) == relu


def test_one_window_by_hand() -> None:
    x = torch.tensor([[[[-5.0, -1.0], [-2.0, -3.0]]], [[[0.0, 7.0], [7.0, 1.0]]]])
    tile = torch.tensor([[[0, 1], [2, 0]], [[0, 1], [2, 0]]])
    # In the first image the largest of the negative ones, in the second two share the largest.
    assert window_wins(x, tile, 3, Windows((2, 2), (2, 2)), (1, 1)).flatten().tolist() == [0, 1, 0]


def assigned(layer: TiledConv2d, x: Tensor) -> Tensor:
    out = layer(x)
    return layer.assign(len(x), (out.shape[2], out.shape[3])).view(len(x), *out.shape[2:])


@pytest.mark.parametrize("scheme", ["random", "random-fixed", "image-overlap", "image-pad", "alternate"])
def test_a_network_against_a_loop(scheme: str) -> None:
    """The counts of the first layer, from its own output computed apart, with the same draw."""
    network = tiny.network(scheme=scheme, tiles=(16, 4), seed=3)
    train = tiny.data_set(train=9).train
    counts = count_wins(network, train.images, seed=7, batch_size=4)
    assert list(counts) == ["conv1", "conv2"]
    assert [tuple(count.shape) for count in counts.values()] == [(16, 4), (4, 6)]
    layer = network.get_submodule("conv1")
    assert isinstance(layer, TiledConv2d)
    with torch.no_grad(), draws(network, images=torch.arange(9), seed=7, stream="test"):
        x = network.get_submodule("normalize")(tiny.pixels(train))
        out, tile = layer(x).relu(), assigned(layer, x)
        second = network.get_submodule("lrn1")(network.get_submodule("pool1")(out))
        after = network.get_submodule("conv2")
        assert isinstance(after, TiledConv2d)
        later, tile_later = after(second).relu(), assigned(after, second)
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    assert counts["conv1"].tolist() == brute(out, tile, 16, pool)
    # The second pooling is an average; the largest pixel counts all the same.
    assert counts["conv2"].tolist() == brute(later, tile_later, 4, pool)
    assert int(counts["conv1"].sum()) > 9 * 4


@pytest.mark.parametrize("method", ["max", "average", "mixed", "stochastic"])
def test_all_poolings_have_the_same_windows(method: str) -> None:
    """Each of the four counts in the windows of max pooling, and alike."""
    torch.manual_seed(0)
    layer = TiledConv2d(3, 4, 3, padding=1, tiles=4, scheme="alternate")
    images = torch.randint(0, 256, (3, 3, 9, 9), dtype=torch.uint8)
    with torch.no_grad():
        out = layer(images / 255).relu()
    network = nn.Sequential(layer, nn.ReLU(), pooling(method, 4, 3, 2))
    expected = brute(out, assigned(layer, images / 255), 4, nn.MaxPool2d(3, 2, ceil_mode=True))
    assert count_wins(network, images)["0"].tolist() == expected


def test_a_tile_that_always_wins() -> None:
    network = tiny.network(scheme="random", tiles=(4, 1))
    layer = network.get_submodule("conv1")
    assert isinstance(layer, TiledConv2d)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias[2] += 100
    counts = count_wins(network, tiny.data_set().train.images)
    assert list(counts) == ["conv1"], "one tile leaves no choice"
    wins = counts["conv1"]
    assert (wins[2] > 0.85 * wins.sum(0)).all()


def test_batches_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Network = tiny.network(scheme="random", tiles=(16, 4))
    images = tiny.data_set(train=20).train.images
    network.train()
    calls: list[int] = []
    one = count_wins(network, images, on_batch=calls.append)
    several = count_wins(network, images, batch_size=7, on_batch=calls.append)
    assert calls == [20, 7, 7, 6]
    assert all(torch.equal(one[name], several[name]) for name in one)
    other = count_wins(network, images, seed=1)
    assert not torch.equal(one["conv1"], other["conv1"])
    assert all(module.training for module in network.modules())
    hooks = Counter(len(module._forward_hooks) for module in network.modules())
    assert list(hooks) == [0], "nothing stays behind"


class Functional(nn.Module):
    """A tiled layer, what lies behind it, and a pooling, as people write them."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = TiledConv2d(3, 4, 3, padding=1, tiles=4, scheme="alternate")
        self.norm, self.drop, self.pool = nn.BatchNorm2d(4), nn.Dropout2d(), pool

    def between(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.drop(F.relu(self.norm(x), inplace=True))
        return dropped * 2 + x

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.between(self.layer(x)))


POOLS: dict[str, tuple[Callable[[Tensor], Tensor], nn.MaxPool2d | nn.AvgPool2d]] = {
    "function": (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), nn.MaxPool2d(3, 2, ceil_mode=True)),
    "torch": (lambda x: torch.max_pool2d(x, (3, 3), padding=1), nn.MaxPool2d(3, padding=1)),
    "indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], nn.MaxPool2d(2)),
    "module": (lambda x: nn.MaxPool2d(2, return_indices=True)(x)[0], nn.MaxPool2d(2)),
    "keyword": (lambda x: nn.MaxPool2d(2)(input=x), nn.MaxPool2d(2)),
    "stride 1": (lambda x: F.max_pool2d(x, 3, 1, 1), nn.MaxPool2d(3, 1, padding=1)),
    "average": (lambda x: F.avg_pool2d(x, 3, 2, 1), nn.AvgPool2d(3, 2, padding=1)),
    "adaptive": (lambda x: F.adaptive_max_pool2d(x, 3), nn.MaxPool2d(3)),
    "adaptive module": (lambda x: nn.AdaptiveMaxPool2d((3, None), return_indices=True)(x)[0], nn.MaxPool2d(3)),
    "adaptive average": (nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(9)),
    "smoothed before": (lambda x: F.max_pool2d(x / (1 + F.avg_pool2d(x * x, 3, 1, 1)), 2), nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("kind", POOLS)
def test_poolings_as_people_write_them(kind: str) -> None:
    torch.manual_seed(0)
    network = Functional(POOLS[kind][0]).eval()
    images = torch.randint(0, 256, (3, 3, 9, 9), dtype=torch.uint8)
    expected = POOLS[kind][1]
    with torch.no_grad():
        out = network.between(first := network.layer(images / 255))
        if kind == "smoothed before":
            out = out / (1 + F.avg_pool2d(out * out, 3, 1, 1))
        if kind == "adaptive module":
            # Windows of 3 x 1 pixels.
            tile = assigned(network.layer, images / 255)
            found = window_wins(out, tile, 4, Windows((3, 1), (3, 1)), (3, 9))
            assert count_wins(network, images)["layer"].equal(found)
            return
    assert first.shape == out.shape
    wanted = brute(out, assigned(network.layer, images / 255), 4, expected)
    assert count_wins(network, images)["layer"].tolist() == wanted


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x.flip(3), 2),
        lambda x: F.max_pool2d(x.transpose(2, 3), 2),
        lambda x: F.max_pool2d(torch.rand_like(x), 2),
        lambda x: F.max_pool2d(F.conv2d(x, torch.ones(4, 1, 3, 3), padding=1, groups=4), 2),
        lambda x: F.adaptive_max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: x.amax((2, 3)),
    ],
)
def test_pixels_from_elsewhere_count_for_nobody(pool: Callable[[Tensor], Tensor]) -> None:
    """Also pixels of the layer that lie elsewhere by then, and windows that are not of one size."""
    with pytest.raises(ConfigError, match=r"^by: 'winner' counts wins in pooling, but no pooling follows 'layer'$"):
        count_wins(Functional(pool), torch.zeros(2, 3, 9, 9, dtype=torch.uint8))


def test_a_pooling_beside_the_layer_is_not_its_own() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = TiledConv2d(3, 3, 3, padding=1, tiles=4)
            self.b = TiledConv2d(3, 3, 3, padding=1, tiles=4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(
                [self.a(x).flatten(1), F.max_pool2d(x, 2).flatten(1), F.max_pool2d(self.b(x), 2).flatten(1)], 1
            )

    assert list(count_wins(Beside(), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8))) == ["b"]


def test_of_a_sum_the_last_layer_counts() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = TiledConv2d(3, 3, 3, padding=1, tiles=4)
            self.b = TiledConv2d(3, 3, 3, padding=1, tiles=4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return F.max_pool2d(torch.relu(x + self.b(x)), 2)

    assert list(count_wins(Residual(), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8))) == ["b"]


def test_where_no_pooling_follows() -> None:
    network = convert(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)), tiles=[4, 4]
    )
    assert isinstance(network, nn.Sequential)
    images = tiny.data_set().train.images
    assert list(count_wins(network, images)) == ["2"]
    with pytest.raises(ConfigError, match=r"no pooling follows '0' or any other tiled layer$"):
        count_wins(network[:3], images)
    unpooled: list[list[str]] = []
    won = reduce(network, "winner", images=images, on_unpooled=unpooled.append)
    assert unpooled == [["0"]]
    assert torch.equal(won.state_dict()["0.weight"], reduce(network, "norm").state_dict()["0.weight"])
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(ValueError, match=r"^images: got none$"):
        count_wins(network, images[:0])
