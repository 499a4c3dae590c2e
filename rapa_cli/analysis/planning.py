"""What replicated arrays would give for a network: the plan that `rapa plan` shows."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from rapa_cli import config
from rapa_cli.analysis import balancing
from rapa_cli.analysis import hardware as of_arrays
from rapa_cli.analysis.analog_time import (
    Layer,
    LayerCost,
    acceleration,
    acceleration_sequential,
    balanced,
    costs,
    layers_of,
)
from rapa_cli.analysis.hardware import Energy, Hardware
from rapa_cli.analysis.modules import layers_of_module
from rapa_cli.checkpoint import read
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.layers.modules import make
from rapa_cli.layers.network import convolutions_of, patches_per_layer
from rapa_cli.resources import names
from rapa_cli.runs import find_checkpoint
from rapa_cli.shown import Shown

# Sizes and classes of the images that a definition may be made for: CIFAR's, and where these are too small ImageNet's.
_CIFAR, _IMAGENET = (32, 10), (224, 1000)


@dataclass(frozen=True)
class Subject:
    """A network to plan.

    Attributes:
        name: for people.
        shape: (C, H, W) of an image.
        convolutions: layers with more than one patch for an image.
        linear: layers of one patch, which are on one array each.
        scheme: that it names itself; `none` where it names none.
        tiles: likewise, of each convolution.
        elsewhere: share of its weights that lies in none of these layers.
        checkpoint: the file that it was read from.
    """

    name: str
    shape: tuple[int, int, int]
    convolutions: list[Layer]
    linear: list[Layer]
    scheme: str = "none"
    tiles: tuple[int, ...] | None = None
    elsewhere: float = 0.0
    checkpoint: Path | None = None


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """A network on tiles.

    Attributes:
        layers: costs of the convolutions.
        linear: costs of the linear layers.
        scheme: how patches are assigned to tiles.
        hardware: figures of the arrays.
    """

    shown: ClassVar = ("acceleration", "acceleration_sequential", "arrays", "interval", "layers", "scheme")

    layers: tuple[LayerCost, ...]
    linear: tuple[LayerCost, ...]
    scheme: str
    hardware: Hardware

    @property
    def acceleration(self) -> float:
        """Against one array for each convolution, the layers pipelined."""
        return acceleration(self.layers)

    @property
    def acceleration_sequential(self) -> float:
        """Against one array for each convolution, one layer after the other."""
        return acceleration_sequential(self.layers)

    @property
    def bottleneck(self) -> LayerCost:
        """The convolution that takes longest; the first of equal ones."""
        return max(self.layers, key=lambda layer: layer.array_cycles)

    def utilisation(self, layer: LayerCost) -> float:
        """Share of the time in which a layer works while images follow each other through the pipeline."""
        return layer.array_cycles / self.bottleneck.array_cycles

    @property
    def arrays(self) -> int:
        """Arrays of the convolutions."""
        return of_arrays.arrays(self.layers, self.hardware)

    @property
    def idle_arrays(self) -> float:
        """Arrays of the convolutions that do nothing, on average over time.

        Layers wait for the slowest one, and the tiles of a layer for its largest one.
        """
        idle = 0.0
        for layer in self.layers:
            busy = layer.computed / (layer.matrices * self.bottleneck.array_cycles)
            idle += (1 - busy) * of_arrays.arrays([layer], self.hardware)
        return idle

    @property
    def macs(self) -> int:
        """Multiply-adds of the convolutions."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Weights and biases on the arrays of the convolutions."""
        return sum(layer.weights for layer in self.layers)

    @property
    def interval(self) -> float:
        """Time from one image to the next, layers pipelined, us."""
        return of_arrays.interval([*self.layers, *self.linear], self.hardware)

    @property
    def latency(self) -> float:
        """Time of one image through all layers, us."""
        return of_arrays.latency([*self.layers, *self.linear], self.hardware)

    @property
    def energy(self) -> Energy:
        """Energy of the arrays for one image."""
        return of_arrays.energy([*self.layers, *self.linear], self.hardware)


def find(
    name: str | None,
    *,
    best: bool = False,
    size: int | None = None,
    classes: int | None = None,
    code: Sequence[Path] = (),
) -> Subject:
    """The network that an argument means.

    Args:
        name: a definition of the package, a TOML file, `torchvision:NAME`, `FILE.py:NAME`, whose code is run, or what
            commands take for a checkpoint.
        best: of a run, the checkpoint with the lowest test error.
        size: height and width of the images; by default those that a checkpoint was trained on, 224 for torchvision,
            and for definitions 32, or 224 where that is too small.
        classes: outputs of a definition; by default 10, or 1,000 where 224 pixels are taken because 32 are too small.
        code: Python files whose code may be run, for a checkpoint's network that is written in one.

    Raises:
        FileError: there is no such network.
        ConfigError: it cannot take such images, or is not in order.
    """
    if name is not None and name.startswith(config.TORCHVISION):
        return _written_in_python(config.load_network(name), (3, *(size or _IMAGENET[0],) * 2), classes or _IMAGENET[1])
    if name is not None and config.is_code(name):
        definition, file = config.load_network(name), config.code_named(name)[0]
        return _written_in_python(definition, (3, *(size or _CIFAR[0],) * 2), classes or _CIFAR[1], (file,))
    if name is not None and (name.endswith(".toml") or (name in names("networks") and not Path(name).exists())):
        return _defined(config.load_network(name), size, classes)
    try:
        path = find_checkpoint(name, best=best)
    except FileError as error:
        near = difflib.get_close_matches(name or "", names("networks"), n=1)
        if name is None or Path(name).exists():
            raise
        known = f"definitions: {', '.join(names('networks'))}; {config.TORCHVISION}resnet18 and others"
        hint = f"did you mean '{near[0]}'?" if near else error.hint if "did you mean" in (error.hint or "") else known
        raise FileError(f"there is no network and no checkpoint '{name}'", hint=hint) from None
    description = read(path).description
    channels, height, width = description.shape
    shape = (channels, size or height, size or width)
    if description.network.module is not None:
        subject = _written_in_python(description.network, shape, len(description.classes), code)
        scheme, own = description.network.scheme, dict.fromkeys((one.name for one in subject.convolutions), 1)
        if size is None:
            tiled = convolutions_of(description.network.module, shape, len(description.classes), code)
            own |= dict(zip(tiled, description.network.tiles or (), strict=True))
        tiles = None if size else tuple(own.values())
        return replace(subject, scheme=scheme, tiles=tiles, checkpoint=path)
    patches_per_layer(description.network, shape)
    convolutions, linear = layers_of(description.network, shape, len(description.classes))
    network = description.network
    return Subject(
        network.name, shape, convolutions, linear, network.scheme, None if size else network.tiles, checkpoint=path
    )


def plan(
    convolutions: Sequence[Layer],
    linear: Sequence[Layer] = (),
    tiles: Sequence[int] | None = None,
    scheme: str = "random",
    figures: Hardware | None = None,
) -> Plan:
    """Plans layers on tiles.

    Args:
        convolutions: layers with more than one patch for an image.
        linear: layers of one patch, each on one array.
        tiles: of each convolution; None is the paper's tiling, floor(n_p / smallest n_p).
        scheme: how patches are assigned.
        figures: of the arrays.

    Raises:
        ConfigError: tiles that do not fit.
    """
    found = costs(convolutions, balanced(convolutions, scheme) if tiles is None else tiles, scheme)
    return Plan(tuple(found), tuple(costs(linear, (1,) * len(linear))), scheme, figures or Hardware())


def tiles_for_arrays(layers: Sequence[Layer], budget: int, scheme: str, figures: Hardware) -> tuple[int, ...]:
    """The tiling of the highest acceleration with at most `budget` arrays, cut matrices and groups counted.

    Raises:
        ConfigError: the arrays are too few, or the scheme has one array for each layer whatever its tiles.
    """
    if scheme in ("none", "perforated"):
        raise ConfigError(
            f"scheme '{scheme}' has one array for each layer, so that there are none to share out",
            hint="leave --scheme out, or choose random",
        )
    single = costs(layers, (1,) * len(layers))
    each = [of_arrays.arrays_per_tile(layer, figures) for layer in single]
    return balancing.for_arrays(layers, budget, scheme, each)


def _written_in_python(
    definition: config.Network, shape: tuple[int, int, int], classes: int, code: Sequence[Path] = ()
) -> Subject:
    assert definition.module is not None
    with torch.random.fork_rng(devices=[]):
        network = make(definition.module, classes, code, weightless=True)
    found = layers_of_module(network, shape)
    return Subject(definition.name, shape, found.convolutions, found.linear, elsewhere=found.elsewhere)


def _defined(definition: config.Network, size: int | None, classes: int | None) -> Subject:
    likely = [(size, _CIFAR[1])] if size else [_CIFAR, _IMAGENET]
    for number, (side, outputs) in enumerate(likely, 1):
        shape = (3, side, side)
        try:
            patches_per_layer(definition, shape)
        except ConfigError:
            if number == len(likely):
                raise
            continue
        convolutions, linear = layers_of(definition, shape, classes or outputs)
        return Subject(definition.name, shape, convolutions, linear, definition.scheme, definition.tiles)
    raise AssertionError("one of the sizes was tried last")
