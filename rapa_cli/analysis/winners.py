"""Which tile's filters win the pooling: what "winner" reduction counts (paper, section 4).

The paper selects for each output channel "the filters that most often wins the maximum pooling on the training set".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.analysis.evaluation import evaluating, pixel_batches
from rapa_cli.data.stream import Images
from rapa_cli.errors import ConfigError
from rapa_cli.keyed import draws
from rapa_cli.layers.pooling import MixedPool2d, StochasticPool2d
from rapa_cli.tiling.conv import TiledConv2d

_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, MixedPool2d, StochasticPool2d)


@dataclass(frozen=True)
class Windows:
    """Where the windows of a pooling lie; pairs are (vertical, horizontal), pixels.

    Attributes:
        kernel: size.
        stride: step.
        padding: how far the first window reaches over the border.
        dilation: distance of the pixels of a window.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


def count_wins(
    model: nn.Module,
    images: Images,
    *,
    seed: int = 0,
    batch_size: int = 200,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Counts how often each tile computed the largest pixel of a pooling window, in one pass over the images.

    Every window of the pooling that follows a layer counts once for each output channel, as the network computes it
    with one draw; a window whose largest value several pixels share, as the zeros after a ReLU, counts for none. The
    pooling is the next one that is called with pixels of the layer's output size, so that pixelwise layers may lie
    between. Average and stochastic pooling take no maximum; there too the largest pixel counts, which has the largest
    part in what they give.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        images: (N, C, H, W), uint8 or floats in [0, 1]; their ids are their places in the split.
        seed: of the draw.
        batch_size: does not change the result, apart from pixels that are equal up to rounding.
        on_batch: called with the number of images after each batch.

    Returns:
        For each tiled convolution with several matrices, by its name: int64 (tiles, out).

    Raises:
        ConfigError: no pooling follows such a layer.
        ValueError: there are no images.
    """
    if not len(images):
        raise ValueError("images: got none")
    layers = {layer: name for name, layer in model.named_modules() if has_choice(layer)}
    wins = {
        layer: torch.zeros(len(layer.weight), layer.out_channels, dtype=torch.int64, device=layer.weight.device)
        for layer in layers
        if isinstance(layer, TiledConv2d)
    }
    followed: set[nn.Module] = set()
    waiting: tuple[TiledConv2d, Tensor, torch.Size] | None = None

    def convolved(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal waiting
        waiting = None
        if isinstance(layer, TiledConv2d) and layer in wins:
            # The same as the layer has just used: inside `draws` an assignment is a function of the draw.
            tile = layer.assign(len(output), (output.shape[2], output.shape[3])).view(len(output), *output.shape[2:])
            waiting = layer, tile.to(output.device), output.shape

    def pooled(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal waiting
        if waiting is not None and given[0].shape == waiting[2]:
            convolution, tile, _ = waiting
            size = (output.shape[2], output.shape[3])
            wins[convolution] += window_wins(given[0], tile, len(convolution.weight), _windows(layer), size)
            followed.add(convolution)
            waiting = None

    hooks = [
        layer.register_forward_hook(pooled if isinstance(layer, _POOLINGS) else convolved)
        for layer in model.modules()
        if isinstance(layer, (*_POOLINGS, nn.Conv2d, TiledConv2d))
    ]
    device = next(model.parameters()).device
    try:
        with evaluating(model), torch.inference_mode():
            for ids, x in pixel_batches(images, batch_size, device):
                with draws(model, images=ids, seed=seed, stream="test"):
                    model(x)
                alone = [name for layer, name in layers.items() if layer not in followed]
                if alone:
                    raise ConfigError(
                        f"by: 'winner' counts wins in pooling, but no pooling layer follows '{alone[0]}'",
                        hint="take 'norm'",
                    )
                if on_batch:
                    on_batch(len(x))
    finally:
        for hook in hooks:
            hook.remove()
    return {layers[layer]: count for layer, count in wins.items()}


def has_choice(layer: nn.Module) -> bool:
    """Whether a layer has several kernel matrices, of which a reduction chooses."""
    return isinstance(layer, TiledConv2d) and len(layer.weight) > 1


def window_wins(x: Tensor, tile: Tensor, tiles: int, windows: Windows, size: tuple[int, int]) -> Tensor:
    """How often each tile has the only largest pixel of a window.

    Args:
        x: what is pooled, (B, C, H, W).
        tile: which tile computed each pixel, int64 (B, H, W).
        tiles: how many there are.
        windows: of the pooling.
        size: height and width of what the pooling gives.

    Returns:
        int64 (tiles, C).
    """
    (top, left), reach = windows.padding, _reach(windows, size)
    margins = (left, max(reach[1] - left - x.shape[3], 0), top, max(reach[0] - top - x.shape[2], 0))
    # Pixels beyond the border never win.
    x = F.pad(x, margins, value=float("-inf"))
    tile = F.pad(tile, margins)
    largest = x.new_full((*x.shape[:2], *size), float("-inf"))
    winner = torch.zeros(largest.shape, dtype=torch.int64, device=x.device)
    shared = torch.zeros(largest.shape, dtype=torch.bool, device=x.device)
    # Pixel by pixel of the window, all windows at once.
    for down in range(windows.kernel[0]):
        for right in range(windows.kernel[1]):
            places = tuple(
                slice(first * dilation, first * dilation + (count - 1) * stride + 1, stride)
                for first, dilation, count, stride in zip(
                    (down, right), windows.dilation, size, windows.stride, strict=True
                )
            )
            pixel, of = x[..., places[0], places[1]], tile[:, None, places[0], places[1]]
            larger = pixel > largest
            shared = ~larger & (shared | (pixel == largest))
            winner = torch.where(larger, of, winner)
            largest = torch.where(larger, pixel, largest)
    channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
    wins = torch.zeros(tiles * x.shape[1], dtype=torch.int64, device=x.device)
    wins.scatter_add_(0, (winner * x.shape[1] + channel).flatten(), (~shared).to(torch.int64).flatten())
    return wins.view(tiles, -1)


def _reach(windows: Windows, size: tuple[int, int]) -> tuple[int, int]:
    """How many pixels the windows cover, vertically and horizontally."""
    down, right = (
        (count - 1) * stride + (kernel - 1) * dilation + 1
        for count, stride, kernel, dilation in zip(size, windows.stride, windows.kernel, windows.dilation, strict=True)
    )
    return down, right


def _windows(layer: nn.Module) -> Windows:
    if isinstance(layer, (MixedPool2d, StochasticPool2d)):
        return Windows((layer.kernel,) * 2, (layer.stride,) * 2)
    assert isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d))
    dilation = _pair(layer.dilation) if isinstance(layer, nn.MaxPool2d) else (1, 1)
    return Windows(_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding), dilation)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
