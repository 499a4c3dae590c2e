"""What a network draws is made where the network is: on a GPU the host waits for nothing and copies nothing to it.

Torch's device "meta" stands for the GPU. Tensors there have no values, so that whatever reads one raises.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rapa_cli.data.augmentation import augment
from rapa_cli.keyed import draws
from rapa_cli.layers.pooling import StochasticPool2d
from rapa_cli.tiling import regions
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import SCHEMES

_META = torch.device("meta")


class _OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses every operation with a tensor elsewhere: made there, read there, or copied to or from there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            assert not isinstance(leaf, Tensor) or leaf.device == _META, f"{func} on {leaf.device}"
        return result


@pytest.fixture
def ids() -> Tensor:
    return torch.empty(5, dtype=torch.int64, device=_META)


def _step(layer: nn.Module, ids: Tensor, draw: int | Tensor) -> None:
    x = torch.empty(5, 3, 8, 8, device=_META, requires_grad=True)
    with draws(layer, images=ids, seed=3, draw=draw, stream="train"), _OneDevice():
        layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("training", [True, False], ids=["training", "test"])
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_every_scheme(scheme: str, training: bool, ids: Tensor) -> None:
    tiles = 1 if scheme == "none" else 4
    layer = TiledConv2d(3, 4, 3, padding=1, tiles=tiles, scheme=scheme).to(_META).train(training)
    regions.cut.cache_clear()
    for draw in (2, torch.empty((), dtype=torch.int64, device=_META), ids):
        _step(layer, ids, draw)
    with draws(layer, images=ids), _OneDevice():
        assert layer.assign(5, (8, 8)).device == _META


def test_stochastic_pooling(ids: Tensor) -> None:
    _step(StochasticPool2d(3, 2).to(_META), ids, 2)


def test_augmentation(ids: Tensor) -> None:
    images = torch.empty(5, 3, 8, 8, device=_META)
    with _OneDevice():
        assert augment(images, ids, seed=3, epoch=2, mirror=True, brightness=0.2).shape == images.shape


def test_a_number_that_is_read_is_noticed(ids: Tensor) -> None:
    with pytest.raises(RuntimeError, match="meta tensors"):
        int(ids[0])
    with _OneDevice(), pytest.raises(AssertionError, match="on cpu"):
        torch.arange(5).to(_META)
