"""Networks built from their definitions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rapa_cli import config
from rapa_cli.analog.module import AwareMatrices, PulsedMatrices
from rapa_cli.analog.specification import arrays_of
from rapa_cli.data.images import IMAGENET_MEAN, IMAGENET_STD
from rapa_cli.errors import ConfigError, RapaError, commas, is_lack_of_memory
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.keyed import keyed_layers, number_layers
from rapa_cli.layers import modules
from rapa_cli.layers.conversion import convert, tileable
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.layers.normalization import LocalResponseNorm, Normalize
from rapa_cli.layers.pooling import pooled_size, pooling
from rapa_cli.philox import Purpose, check_seed, generator
from rapa_cli.tiling.arrays import AnyArrays, ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import balanced_tiles, scheme_named
from rapa_cli.tiling.tracing import Traced

# Of networks whose patches are wanted alone.
ANY_CLASSES = 10


@dataclass(frozen=True)
class Statistics:
    """What a network's normalisation needs of its training data, on the [0, 1] pixel scale.

    Attributes:
        mean: (C,).
        std: (C,).
        mean_image: (C, H, W).
    """

    mean: Tensor
    std: Tensor
    mean_image: Tensor


class Network(nn.Sequential):
    """A network that knows its definition.

    Takes images (B, C, H, W), float32 in [0, 1]; gives logits (B, classes).

    One written in Python is the module `body`, behind the normalisation.

    Attributes:
        definition: the definition, its tiles written out.
        shape: (C, H, W) of an image.
        classes: number of classes.
        anew: names of what begins with new weights although others were given, which were made for other classes.
    """

    def __init__(self, definition: config.Network, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.definition, self.shape, self.classes = definition, shape, classes
        self.anew: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W).

        Raises:
            ConfigError: a network that is written in Python fails, or gives something else than a tensor.
        """
        if self.definition.module is None or torch.compiler.is_compiling():
            return super().forward(images)  # type: ignore[no-any-return, no-untyped-call]
        with self.at_fault():
            logits: Any = super().forward(images)  # type: ignore[no-untyped-call]
            if not isinstance(logits, Tensor):
                raise TypeError(f"it gives {type(logits).__name__}, not a tensor")
            return logits

    @contextlib.contextmanager
    def at_fault(self) -> Iterator[None]:
        """Inside the block errors are those of the code that a network is written in, told in one line."""
        module = self.definition.module
        try:
            yield
        except RapaError:
            raise
        except Exception as error:  # Code of others can raise any exception that there is.
            if module is None or is_lack_of_memory(error):
                raise
            when = "training" if self.training else "evaluation"
            raise ConfigError(
                f"network '{module.name}' of {module.file or 'torchvision'} fails in {when}: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}",
                hint=f"does its forward differ in {when}? RAPA_TRACEBACK=1 shows where it fails",
            ) from error


def build(
    definition: config.Network,
    shape: tuple[int, int, int],
    classes: int,
    *,
    seed: int = 0,
    statistics: Statistics | None = None,
    code: Sequence[Path] = (),
    weights: Mapping[str, Tensor] | None = None,
) -> Network:
    """Builds a network and draws its weights from the seed.

    Args:
        definition: its tiles are resolved by `resolve` where they are not yet.
        shape: (C, H, W) of an image.
        classes: number of classes.
        seed: of the initial weights and of what tiling schemes draw once.
        statistics: of the training data; without them the normalisation does nothing until a checkpoint fills it.
        code: Python files whose code may be run, for networks that are written in them.
        weights: of the body of a network written in Python, by the names of its state before it is tiled; every tile
            begins with them.

    Raises:
        ConfigError: the definition does not fit the images, or code may not be run, or fails.
        FileError: a Python file is missing or another one, or the weights are those of another network.
    """
    check_seed(seed)
    definition = resolve(definition, shape, classes=classes, code=code)
    if weights is not None and definition.module is None:
        raise ConfigError(
            f"network '{definition.name}' takes no weights from a file",
            hint="those of torchvision and those in Python files do",
        )
    # Layers draw weights as they are made; torch's global generator stays as it was.
    with torch.random.fork_rng(devices=[]):
        try:
            if definition.module is not None:
                return _around(definition, shape, classes, seed, statistics, code, weights)
            # The seed's weights take their place.
            network = _assembled(definition, shape, classes, statistics)
        except RapaError:
            raise
        except ValueError as error:
            hint = "change the arrays, or the layers on them"
            if definition.module is not None and definition.scheme != "none":
                hint = "--scheme none leaves all convolutions as they are; --tiles with a 1 for it leaves this one so"
            raise ConfigError(str(error), hint=hint) from None
    _initialise(network, seed)
    return network


def resolve(
    definition: config.Network,
    shape: tuple[int, int, int],
    *,
    scheme: str | None = None,
    tiles: Sequence[int] | None = None,
    pool: str | None = None,
    arrays: str | dict[str, Any] | None = None,
    classes: int = ANY_CLASSES,
    code: Sequence[Path] = (),
) -> config.Network:
    """Writes out what a definition leaves open, after replacing what the caller names.

    Tiles without a scheme mean `random`; a scheme without tiles means balanced tiles.

    Args:
        definition: what to begin with.
        shape: (C, H, W) of an image.
        scheme: in place of the definition's, as are the next three.
        tiles: likewise.
        pool: likewise.
        arrays: likewise.
        classes: number of classes; tiles do not depend on it.
        code: Python files whose code may be run, for networks that are written in them.

    Raises:
        ConfigError: the layers do not fit the images, or the tiles do not fit the layers.
    """
    changes: dict[str, object] = {}
    if scheme is not None:
        changes.update(scheme=scheme, tiles=None)
    if tiles is not None:
        changes.update(
            tiles=tuple(tiles), scheme=scheme or ("random" if definition.scheme == "none" else definition.scheme)
        )
    if pool is not None:
        changes.update(pool=pool)
    if arrays is not None:
        changes.update(arrays=arrays)
    values = {**definition.model_dump(), **changes}
    definition = config.validate(config.Network, values, f"network '{definition.name}'")
    arrays_of(definition.arrays)
    patches = patches_per_layer(definition, shape, classes, code)
    if definition.tiles is None:
        definition = definition.model_copy(update={"tiles": _balanced(definition, patches, shape, classes, code)})
    assert definition.tiles is not None
    if len(definition.tiles) != len(patches):
        fitting = commas(_balanced(definition, patches, shape, classes, code))
        raise ConfigError(
            f"tiles: got {len(definition.tiles)} numbers ({commas(definition.tiles)}), "
            f"but network '{definition.name}' has {len(patches)} convolutions",
            hint=f"give one number for each, as in --tiles {fitting}",
        )
    for number, (count, available) in enumerate(zip(definition.tiles, patches, strict=True), 1):
        try:
            scheme_named(definition.scheme).check(count)
        except ValueError as error:
            fits = "leave --tiles out to get tiles that fit, or choose another --scheme"
            raise ConfigError(f"convolution {number}: {error}", hint=fits) from None
        if count > available:
            raise ConfigError(
                f"tiles: convolution {number} got {count} tiles, but its output has only {available} patches",
                hint=f"its number of tiles may be 1 to {available}",
            )
    return definition


def patches_per_layer(
    definition: config.Network, shape: tuple[int, int, int], classes: int = ANY_CLASSES, code: Sequence[Path] = ()
) -> list[int]:
    """n_p of each convolution, for images of a shape (C, H, W); of a network written in Python where it is above 1.

    Args:
        definition: of the network.
        shape: (C, H, W) of an image.
        classes: number of classes, on which patches do not depend.
        code: Python files whose code may be run, for networks that are written in them.

    Raises:
        ConfigError: the images are too small for the layers, or a convolution comes after a linear layer.
    """
    if definition.module is not None:
        found = convolutions_of(definition.module, shape, classes, code)
        if not found:
            raise ConfigError(
                f"network '{definition.name}' has no convolution of more than one patch",
                hint="take a convolutional network, or larger images",
            )
        return list(found.values())
    flat = False
    for layer in definition.layers:
        if flat and not isinstance(layer, config.Linear | config.Relu):
            raise ConfigError(
                f"network '{definition.name}': a layer of kind '{layer.kind}' comes after a linear one",
                hint="put the layers of kind 'linear' last",
            )
        flat = flat or isinstance(layer, config.Linear)
    patches: list[int] = []
    for layer, _, (_, height, width) in sized_layers(definition, shape, classes):
        if isinstance(layer, config.Conv):
            patches.append(height * width)
        if height < 1 or width < 1:
            raise ConfigError(
                f"network '{definition.name}' needs larger images than {shape[1]} x {shape[2]} pixels",
                hint="use larger images, or a network with fewer pooling layers",
            )
    if not patches:
        raise ConfigError(f"network '{definition.name}' has no convolution", hint="add a layer of kind 'conv'")
    return patches


def sized_layers(
    definition: config.Network, shape: tuple[int, int, int], classes: int = ANY_CLASSES
) -> Iterator[tuple[config.Layer, tuple[int, int, int], tuple[int, int, int]]]:
    """The layers of a definition, each with the sizes (C, H, W) of what it takes and of what it gives.

    Args:
        definition: of the network.
        shape: (C, H, W) of an image.
        classes: outputs of linear layers that name none.

    Raises:
        ConfigError: a kernel does not fit.
    """
    channels, height, width = shape
    for layer in definition.layers:
        before = channels, height, width
        if isinstance(layer, config.Conv):
            channels, (height, width) = layer.channels, _conv_size(layer, height, width)
        elif isinstance(layer, config.Pool):
            height, width = (pooled_size(size, layer.kernel, layer.stride) for size in (height, width))
        elif isinstance(layer, config.Linear):
            channels, height, width = layer.features or classes, 1, 1
        yield layer, before, (channels, height, width)


def fewest_numbers(
    definition: config.Network, shape: tuple[int, int, int], classes: int, code: Sequence[Path] = ()
) -> int:
    """How many weights and constants a network has at least, told without building it, or its tiles.

    Args:
        definition: resolved; where it names no tiles each convolution has one.
        shape: (C, H, W) of an image.
        classes: number of classes.
        code: Python files whose code may be run, for networks that are written in them.

    Raises:
        ConfigError: the definition does not fit the images.
    """
    count = math.prod(shape) if definition.normalization == "mean-image" else 0
    matrices = scheme_named(definition.scheme).matrices
    tiles = iter(definition.tiles or ())
    if definition.module is not None:
        count += modules.traced(definition.module, shape, classes, tuple(code)).weights
        for number, one in zip(tiles, _with_tiles(definition.module, shape, classes, code), strict=False):
            count += (matrices(number) - 1) * sum(parameter.numel() for parameter in one.layer.parameters())
        return count
    for layer, before, after in sized_layers(definition, shape, classes):
        if isinstance(layer, config.Conv):
            count += matrices(next(tiles, 1)) * before[0] * after[0] * layer.kernel**2
        elif isinstance(layer, config.Linear):
            count += math.prod(before) * after[0]
    return count


def parameter_count(network: nn.Module, *, convolutions_only: bool = False) -> int:
    """How many weights and biases a network has; on request those of its convolutions only, as the paper counts."""
    kinds = (nn.Conv2d, TiledConv2d) if convolutions_only else (nn.Module,)
    count = 0
    for layer in network.modules():
        if isinstance(layer, ArrayLayer):
            # What it lies on may keep weights in another form than as parameters.
            count += layer.number_of_weights() if isinstance(layer, kinds) else 0
        elif isinstance(layer, kinds) and not isinstance(layer, (PulsedMatrices, AwareMatrices)):
            count += sum(parameter.numel() for parameter in layer.parameters(recurse=False))
    return count


def convolutions_of(
    module: config.Module, shape: tuple[int, int, int], classes: int, code: Sequence[Path]
) -> dict[str, int]:
    """n_p of the convolutions that have tiles, by their names and in the order in which they compute."""
    return {one.name: one.patches for one in _with_tiles(module, shape, classes, code)}


def _with_tiles(module: config.Module, shape: tuple[int, int, int], classes: int, code: Sequence[Path]) -> list[Traced]:
    """The convolutions of more than one patch, in the order in which they compute."""
    return [one for one in modules.traced(module, shape, classes, tuple(code)).layers if one.patches > 1]


def _balanced(
    definition: config.Network,
    patches: Sequence[int],
    shape: tuple[int, int, int],
    classes: int,
    code: Sequence[Path],
) -> tuple[int, ...]:
    """Balanced tiles; one for layers of a network written in Python that can have no more."""
    can = None
    if definition.module is not None:
        can = [tileable(one, definition.scheme) for one in _with_tiles(definition.module, shape, classes, code)]
    return balanced_tiles(patches, definition.scheme, can)


def _around(
    definition: config.Network,
    shape: tuple[int, int, int],
    classes: int,
    seed: int,
    statistics: Statistics | None,
    code: Sequence[Path],
    weights: Mapping[str, Tensor] | None,
) -> Network:
    """The network around one that is written in Python, which draws its own weights."""
    assert definition.module is not None
    torch.manual_seed(generator(Purpose.INITIALISATION, seed).initial_seed())
    body = modules.make(definition.module, classes, code)
    network = Network(definition, shape, classes)
    network.add_module("normalize", _normalization(definition, shape, statistics))
    if weights is not None:
        network.anew = modules.take(body, weights)
    arrays = arrays_of(definition.arrays)
    if definition.scheme != "none" or arrays is not None:
        names = convolutions_of(definition.module, shape, classes, code)
        tiles = dict(zip(names, definition.tiles or (), strict=True))
        body = convert(body, tiles=tiles, scheme=definition.scheme, arrays=arrays)
    network.add_module("body", body)
    if weights is None:
        _draw_apart(body, seed)
    _key(network, seed)
    return network


def _draw_apart(body: nn.Module, seed: int) -> None:
    """Gives the further tiles of each layer the numbers of the first in an order of their own.

    However the network draws its weights, as long as those of a layer are drawn alike, a tile is so as probable as any
    other draw, and independent of the first but for having the same numbers.
    """
    layers = [layer for layer in body.modules() if isinstance(layer, TiledConv2d)]
    for index, layer in enumerate(layers):
        source = generator(Purpose.INITIALISATION, seed, layer=1 + index)
        weight, bias = layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()
        for tile in range(1, len(weight)):
            for numbers in (weight, bias):
                if numbers is not None:
                    order = torch.randperm(numbers[0].numel(), generator=source)
                    numbers[tile] = numbers[0].flatten()[order].view(numbers[0].shape)
        if len(weight) > 1:
            layer.set_weights(weight, bias, source)


def _assembled(
    definition: config.Network, shape: tuple[int, int, int], classes: int, statistics: Statistics | None
) -> Network:
    """The network with its layers, their weights not yet drawn from a seed."""
    network = Network(definition, shape, classes)
    arrays = arrays_of(definition.arrays)
    network.add_module("normalize", _normalization(definition, shape, statistics))
    tiles = iter(definition.tiles or ())
    outputs, flat = 0, False
    numbers: dict[str, int] = {}

    def add(kind: str, layer: nn.Module) -> None:
        numbers[kind] = numbers.get(kind, 0) + 1
        network.add_module(f"{kind}{numbers[kind]}", layer)

    for layer, before, (outputs, _, _) in sized_layers(definition, shape, classes):
        if isinstance(layer, config.Conv):
            add("conv", _convolution(layer, before[0], definition.scheme, next(tiles), arrays))
        elif isinstance(layer, config.Pool):
            add("pool", pooling(layer.method or definition.pool, before[0], layer.kernel, layer.stride))
        elif isinstance(layer, config.Relu):
            add("relu", nn.ReLU())
        elif isinstance(layer, config.Lrn):
            add("lrn", LocalResponseNorm(layer.kernel, layer.alpha, layer.beta))
        else:
            if not flat:
                network.add_module("flatten", nn.Flatten())
                flat = True
            sizes = math.prod(before), outputs
            add("linear", nn.Linear(*sizes) if arrays is None else AnalogLinear(*sizes, arrays=arrays))
    hint = "let it end with a layer of kind 'linear' without 'features'"
    if not flat:
        raise ConfigError(f"network '{definition.name}' has no linear layer at its end", hint=hint)
    if outputs != classes:
        raise ConfigError(f"network '{definition.name}' ends with {outputs} outputs for {classes} classes", hint=hint)
    return network


def _convolution(layer: config.Conv, channels: int, scheme: str, tiles: int, arrays: AnyArrays | None) -> nn.Module:
    arguments = (channels, layer.channels, layer.kernel, layer.stride, layer.padding, layer.dilation)
    if scheme == "none" and arrays is None:
        return nn.Conv2d(*arguments)
    return TiledConv2d(*arguments, tiles=tiles, scheme=scheme, arrays=arrays)


def _conv_size(layer: config.Conv, height: int, width: int) -> tuple[int, int]:
    margins = (layer.padding,) * 4
    pair = (layer.stride,) * 2
    try:
        geometry = Geometry(height, width, (layer.kernel,) * 2, pair, margins, (layer.dilation,) * 2)
    except ValueError as error:
        raise ConfigError(str(error), hint="use larger images, a smaller kernel or more padding") from None
    return geometry.out_height, geometry.out_width


def _normalization(definition: config.Network, shape: tuple[int, int, int], statistics: Statistics | None) -> nn.Module:
    channels = shape[0]
    one = torch.ones(channels, 1, 1)
    match definition.normalization:
        case "mean-std":
            if statistics is None:
                return Normalize(torch.zeros(channels, 1, 1), one)
            # A channel that is the same everywhere is only shifted.
            std = torch.where(statistics.std > 0, statistics.std, 1)
            return Normalize(statistics.mean.view(-1, 1, 1), std.view(-1, 1, 1))
        case "imagenet":
            if channels != len(IMAGENET_MEAN):
                raise ConfigError(
                    f"normalization: 'imagenet' is for images of 3 channels, these have {channels}",
                    hint="take mean-std: --set network.normalization=mean-std",
                )
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            return Normalize(mean, std)
        case "mean-image":
            return Normalize(torch.zeros(shape) if statistics is None else statistics.mean_image, one)
        case _:
            return nn.Identity()


def _initialise(network: Network, seed: int) -> None:
    """Draws all weights uniform within 1 / sqrt(fan-in), each layer and each tile from the seed."""
    layers = [layer for layer in network if isinstance(layer, (nn.Conv2d, ArrayLayer, nn.Linear))]
    for index, layer in enumerate(layers):
        source = generator(Purpose.INITIALISATION, seed, layer=index)
        if isinstance(layer, ArrayLayer):
            layer.reset_parameters(source)
            continue
        bound = layer.weight[0].numel() ** -0.5
        with torch.no_grad():
            layer.weight.uniform_(-bound, bound, generator=source)
            if layer.bias is not None:
                layer.bias.uniform_(-bound, bound, generator=source)
    _key(network, seed)


def _key(network: Network, seed: int) -> None:
    """Numbers the layers that make random choices, and gives them the seed."""
    number_layers(network)
    for keyed in keyed_layers(network):
        keyed.seed.fill_(seed)
