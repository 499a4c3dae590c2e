"""What a network draws is made where the network is: on a GPU the host waits for nothing and copies nothing to it.

Torch's device "meta" stands for the GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rapa_cli.data.augmentation import augment
from rapa_cli.keyed import draws
from rapa_cli.layers.pooling import StochasticPool2d
from rapa_cli.tiling import regions
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import SCHEMES
from tests.meta import META, OnMeta


@pytest.fixture
def ids() -> Tensor:
    return torch.empty(5, dtype=torch.int64, device=META)


def _step(layer: nn.Module, ids: Tensor, draw: int | Tensor) -> None:
    x = torch.empty(5, 3, 8, 8, device=META, requires_grad=True)
    with draws(layer, images=ids, seed=3, draw=draw, stream="train"), OnMeta():
        layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("training", [True, False], ids=["training", "test"])
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_every_scheme(scheme: str, training: bool, ids: Tensor) -> None:
    tiles = 1 if scheme == "none" else 4
    layer = TiledConv2d(3, 4, 3, padding=1, tiles=tiles, scheme=scheme).to(META).train(training)
    regions.cut.cache_clear()
    for draw in (2, torch.empty((), dtype=torch.int64, device=META), ids):
        _step(layer, ids, draw)
    with draws(layer, images=ids), OnMeta():
        assert layer.assign(5, (8, 8)).device == META


def test_stochastic_pooling(ids: Tensor) -> None:
    _step(StochasticPool2d(3, 2).to(META), ids, 2)


def test_augmentation(ids: Tensor) -> None:
    images = torch.empty(5, 3, 8, 8, device=META)
    with OnMeta():
        assert augment(images, ids, seed=3, epoch=2, mirror=True, brightness=0.2).shape == images.shape


def test_a_number_that_is_read_is_noticed(ids: Tensor) -> None:
    with pytest.raises(RuntimeError, match="meta tensors"):
        int(ids[0])
    with OnMeta(), pytest.raises(AssertionError, match="on cpu"):
        torch.arange(5).to(META)
