"""Tilings for a wanted acceleration or a number of arrays, exact.

With the layers pipelined, time is that of the slowest layer. For a bound T on the patches of a tile each layer has a
fewest number of tiles of its own, n_t = ceil(n_p / T), so that the fewest arrays for T are known; they do not grow with
T, so that the smallest T for a number of arrays is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from rapa_cli.analysis.analog_time import Layer, largest_tile
from rapa_cli.errors import ConfigError
from rapa_cli.tiling.schemes import scheme_named


def fewest_tiles(layer: Layer, cycles: int, scheme: str = "random") -> int:
    """The fewest tiles none of which has more than `cycles` patches, or one where a layer can have no more.

    `cycles` is at least 1.
    """
    if layer.obstacle(scheme) is not None:
        return 1
    if not scheme_named(scheme).square:
        return -(-layer.n_p // cycles)
    q = math.isqrt(-(-layer.n_p // cycles) - 1) + 1
    while largest_tile(layer, q * q, scheme) > cycles:
        q += 1
    return q * q


def for_acceleration(layers: Sequence[Layer], wanted: float | Fraction, scheme: str = "random") -> tuple[int, ...]:
    """The tiling with the fewest arrays that is at least `wanted` times as fast as one array for each layer.

    Args:
        layers: pipelined.
        wanted: max n_p / max patches of a tile, from 1 to max n_p.
        scheme: how patches are assigned.

    Raises:
        ConfigError: no tiling reaches it.
    """
    if scheme == "none":
        raise ConfigError(
            "scheme 'none' has one array for each layer, so that nothing makes it faster",
            hint="leave --scheme out, or choose random",
        )
    most, fewest = max(layer.n_p for layer in layers), _fewest_cycles(layers, scheme)
    if not math.isfinite(wanted) or not 1 <= wanted <= Fraction(most, fewest):
        slowest = next((layer for layer in layers if layer.n_p == fewest and layer.obstacle(scheme)), None)
        why = f"with an array for each patch it is {most}"
        if slowest is not None and fewest > 1:
            why = f"{slowest.name} {slowest.obstacle(scheme)} and keeps one tile, with which it is {most / fewest:g}"
        raise ConfigError(
            f"an acceleration of {float(wanted):g} is not possible; {why}", hint=f"ask for 1 to {most / fewest:g}"
        )
    # A float is an exact fraction, so that what is reached is never a little less than what was asked for.
    return _within(layers, math.floor(most / Fraction(wanted)), scheme)


def for_arrays(
    layers: Sequence[Layer], budget: int, scheme: str = "random", arrays: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The tiling with the highest acceleration of those with at most `budget` arrays, and the fewest arrays for it.

    Args:
        layers: pipelined.
        budget: arrays of all tiles.
        scheme: how patches are assigned.
        arrays: of one tile of each layer: more than one where its matrix is cut, or has groups.

    Raises:
        ConfigError: not even one tile for each layer fits.
    """
    each = list(arrays or (1,) * len(layers))

    def needed(cycles: int) -> int:
        return sum(count * size for count, size in zip(_within(layers, cycles, scheme), each, strict=True))

    def fits(cycles: int) -> bool:
        # The squares of an image that is none may be more than its patches.
        possible = all(fewest_tiles(layer, cycles, scheme) <= layer.n_p for layer in layers)
        return possible and needed(cycles) <= budget

    high = max(layer.n_p for layer in layers)
    if needed(high) > budget:
        raise ConfigError(
            f"{budget} arrays are too few: one tile for each of the {len(layers)} convolutions needs {needed(high)}",
            hint=f"allow at least {needed(high)} arrays",
        )
    low = _fewest_cycles(layers, scheme)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return _within(layers, low, scheme)


def _fewest_cycles(layers: Sequence[Layer], scheme: str) -> int:
    """Below this many operations no tiling comes: those of the layers that have one tile."""
    return max((layer.n_p for layer in layers if layer.obstacle(scheme) is not None), default=1)


def _within(layers: Sequence[Layer], cycles: int, scheme: str) -> tuple[int, ...]:
    return tuple(fewest_tiles(layer, cycles, scheme) for layer in layers)
