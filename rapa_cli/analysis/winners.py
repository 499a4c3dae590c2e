"""Which tile's filters win the pooling: what "winner" reduction counts (paper, section 4).

The paper selects for each output channel "the filters that most often wins the maximum pooling on the training set".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rapa_cli.analysis.evaluation import evaluating, pixel_batches
from rapa_cli.data.stream import Images
from rapa_cli.errors import ConfigError
from rapa_cli.keyed import draws
from rapa_cli.layers.pooling import MixedPool2d, StochasticPool2d, pooled_size
from rapa_cli.tiling.conv import TiledConv2d

# Functions that leave each pixel where it is; an operator, a method and a function of torch go by the same name.
_WORDS = (
    "add sub subtract mul multiply div divide true_divide neg abs clamp clip where relu hardtanh relu6 leaky_relu "
    "prelu rrelu elu selu celu gelu silu mish hardswish sigmoid hardsigmoid logsigmoid tanh hardshrink softplus "
    "softsign threshold dropout dropout2d feature_dropout alpha_dropout batch_norm group_norm instance_norm "
    "local_response_norm clone contiguous detach to float double half bfloat16"
)
_PIXELWISE = frozenset(name + end for name in _WORDS.split() for end in ("", "_"))
_ORIGIN = "_rapa_origin"


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
    pooling is the first one, module or function, of pixels that are made one by one from the layer's: by activations,
    normalisations, dropout, sums and products. Of a sum of several layers it counts for the last of them. Adaptive
    poolings count where their windows are of one size. Average and stochastic pooling take no maximum; there too the
    largest pixel counts, which has the largest part in what they give, and of averages those that make images smaller.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        images: (N, C, H, W), uint8 or floats in [0, 1]; their ids are their places in the split.
        seed: of the draw.
        batch_size: does not change the result, apart from pixels that are equal up to rounding.
        on_batch: called with the number of images after each batch.

    Returns:
        For each tiled convolution with several matrices that pooling follows, by its name: int64 (tiles, out).

    Raises:
        ConfigError: no pooling follows any such layer, or images are something else.
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
    computed = 0

    def convolved(layer: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        nonlocal computed
        assert isinstance(layer, TiledConv2d)
        computed += 1
        setattr(output, _ORIGIN, _Origin(layer, computed))

    def pooled(x: Tensor, windows: Windows, size: tuple[int, int]) -> None:
        origin: _Origin | None = getattr(x, _ORIGIN, None)
        if origin is None or origin.pooled:
            return
        layer, origin.pooled = origin.layer, True
        # The same as the layer has used: inside `draws` an assignment is a function of the draw.
        tile = layer.assign(len(x), (x.shape[2], x.shape[3])).view(len(x), *x.shape[2:])
        wins[layer] += window_wins(x, tile.to(x.device), len(layer.weight), windows, size)
        followed.add(layer)

    def before_pooling(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(layer, (MixedPool2d, StochasticPool2d))
        x: Tensor = (*given, *named.values())[0]
        height, width = (pooled_size(side, layer.kernel, layer.stride) for side in x.shape[2:])
        pooled(x, Windows((layer.kernel,) * 2, (layer.stride,) * 2), (height, width))

    hooks = [layer.register_forward_hook(convolved) for layer in layers]
    hooks += [
        layer.register_forward_pre_hook(before_pooling, with_kwargs=True)
        for layer in model.modules()
        if isinstance(layer, (MixedPool2d, StochasticPool2d))
    ]
    device = next(model.parameters()).device
    try:
        with evaluating(model), torch.inference_mode():
            for ids, x in pixel_batches(images, batch_size, device):
                with draws(model, images=ids, seed=seed, stream="test"), _Followed(pooled):
                    model(x)
                if layers and not followed:
                    first, *others = layers.values()
                    more = " or any other tiled layer" if others else ""
                    raise ConfigError(
                        f"by: 'winner' counts wins in pooling, but no pooling follows '{first}'{more}",
                        hint="take 'norm'",
                    )
                if on_batch:
                    on_batch(len(x))
    finally:
        for hook in hooks:
            hook.remove()
    return {layers[layer]: count for layer, count in wins.items() if layer in followed}


@dataclass
class _Origin:
    """Where the pixels of a tensor come from.

    Attributes:
        layer: that computed them.
        number: how many layers had computed by then.
        pooled: whether a pooling has counted for it.
    """

    layer: TiledConv2d
    number: int
    pooled: bool = False


class _Followed(TorchFunctionMode):
    """Inside the block pixels keep their origin, and each pooling is told of: what it pools, its windows, its size."""

    def __init__(self, pooled: Callable[[Tensor, Windows, tuple[int, int]], None]) -> None:
        super().__init__()
        self._pooled = pooled

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _POOLINGS:
            made = out[0] if isinstance(out, tuple) else out
            x, windows = _POOLINGS[name](*args, **kwargs)
            smaller = "avg" not in name or made.shape != x.shape
            if windows is not None and smaller and x.ndim == 4:
                self._pooled(x, windows, (made.shape[2], made.shape[3]))
        elif name in _PIXELWISE and isinstance(out, Tensor):
            origin = _last_origin((*args, *kwargs.values()), out.shape)
            if origin is not None:
                setattr(out, _ORIGIN, origin)
        return out


def _last_origin(given: Iterable[Any], shape: torch.Size) -> _Origin | None:
    found = [getattr(one, _ORIGIN, None) for one in given if isinstance(one, Tensor) and one.shape == shape]
    return max((one for one in found if one is not None), key=lambda one: one.number, default=None)


def _maximum(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *_: Any, **__: Any
) -> tuple[Tensor, Windows | None]:
    kernel = _pair(kernel_size)
    return input, Windows(kernel, _pair(stride) if stride else kernel, _pair(padding), _pair(dilation))


def _average(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *_: Any, **__: Any
) -> tuple[Tensor, Windows | None]:
    return _maximum(input, kernel_size, stride, padding)


def _adaptive(input: Tensor, output_size: Any, *_: Any, **__: Any) -> tuple[Tensor, Windows | None]:
    wanted = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
    sides = [(side, side if out is None else out) for side, out in zip(input.shape[-2:], wanted, strict=True)]
    if any(side % out for side, out in sides):
        return input, None
    kernel = (sides[0][0] // sides[0][1], sides[1][0] // sides[1][1])
    return input, Windows(kernel, kernel)


_POOLINGS: dict[str, Callable[..., tuple[Tensor, Windows | None]]] = {
    "max_pool2d": _maximum,
    "max_pool2d_with_indices": _maximum,
    "avg_pool2d": _average,
    "adaptive_max_pool2d": _adaptive,
    "adaptive_max_pool2d_with_indices": _adaptive,
    "adaptive_avg_pool2d": _adaptive,
}


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


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Torch takes a number, one in a tuple, or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
