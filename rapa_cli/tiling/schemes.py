"""Tiling schemes: the rules by which the patches of an image are assigned to tiles (paper, section 2).

Output pixels are numbered row-major, i = y w + x; a patch goes by the number of its output pixel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from rapa_cli.errors import suggestion
from rapa_cli.kernels import cpu
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.keyed import Draw, KeyedLayer
from rapa_cli.philox import Purpose, Stream, in_triton, key_of
from rapa_cli.tiling.regions import Cut, cut, region_of

# The word that turns the labels; no image has so many patches that a patch would use it too.
_OFFSET_BLOCK = 0xFFFFFFFF


class Scheme(ABC):
    """A rule that assigns patches to tiles.

    A class derived from it that has a name and `assign` is a scheme like those below: `TiledConv2d` and `convert` take
    an instance of it in place of a name.

    Attributes:
        name: as on the command line.
        square: whether the number of tiles must be a square.
        random_in_test: whether images, or draws of one image, may have other assignments in test. One that says no
            gives every image the same row in evaluation mode.
    """

    name: ClassVar[str]
    square: ClassVar[bool] = False
    random_in_test: ClassVar[bool] = True

    def matrices(self, tiles: int) -> int:
        """How many kernel matrices a layer of `tiles` tiles has."""
        return tiles

    def check(self, tiles: int) -> None:
        """Raises ValueError where the scheme cannot work with this number of tiles."""
        if not isinstance(tiles, int) or isinstance(tiles, bool) or tiles < 1:
            raise ValueError(f"tiles: got {tiles!r}, allowed are whole numbers from 1")
        if self.square and math.isqrt(tiles) ** 2 != tiles:
            q = math.isqrt(tiles)
            raise ValueError(
                f"tiles: got {tiles}, but scheme '{self.name}' needs a square number ({q * q}, {(q + 1) ** 2}, ...)"
            )

    @abstractmethod
    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        """Assigns the patches of a batch.

        Args:
            layer: the layer that computes; it knows the draw.
            tiles: number of tiles.
            images: batch size or image ids (B,).
            size: height and width of the output.

        Returns:
            int64 tensor (B, n_p), values in [0, tiles), -1 where nothing is computed.
        """

    def cut(self, tiles: int, geometry: Geometry, device: torch.device) -> Cut | None:
        """How images are cut where patches read pixels of their own region only; None where they read all."""
        return None


class Untiled(Scheme):
    """One array computes all patches."""

    name = "none"
    random_in_test = False

    def check(self, tiles: int) -> None:
        """Raises ValueError unless there is one tile."""
        super().check(tiles)
        if tiles != 1:
            raise ValueError(f"tiles: got {tiles!r}, but scheme 'none' has one tile")

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        """All patches to tile 0."""
        return _same_for_all(_zeros(size, layer), images)


class ImageOverlap(Scheme):
    """s = floor(q x / w) + q floor(q y / h): each tile has a region of the image, patches may reach over its border."""

    name = "image-overlap"
    random_in_test = False
    square = True

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        """The region in which the output pixel lies."""
        return _same_for_all(_regions(math.isqrt(tiles), *size, layer.seed.device).flatten(), images)


class ImagePad(ImageOverlap):
    """As image-overlap, but pixels of other regions read as zero, as if each region were an image of its own."""

    name = "image-pad"

    def cut(self, tiles: int, geometry: Geometry, device: torch.device) -> Cut:
        """Into the regions of the tiles."""
        return cut(math.isqrt(tiles), geometry, device)


class Alternate(Scheme):
    """s = (x mod q) + q (y mod q): neighbours go to different tiles."""

    name = "alternate"
    random_in_test = False
    square = True

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        """The pixel's place in a q by q pattern."""
        q = math.isqrt(tiles)
        y, x = (torch.arange(each, device=layer.seed.device) % q for each in size)
        return _same_for_all((x + q * y[:, None]).flatten(), images)


class Random(Scheme):
    """A new balanced random partition for each image and draw, in training and in test."""

    name = "random"

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        """A partition for each image, from the layer's draw."""
        draw = layer.draw_for(images, layer.seed.device)
        return balanced_partition(draw, patches=size[0] * size[1], tiles=tiles)


class RandomFixed(Scheme):
    """One balanced random partition for all images, a function of the layer's seed, its index and n_p."""

    name = "random-fixed"
    random_in_test = False

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        """The one partition; no draw changes it."""
        patches = size[0] * size[1]
        once = torch.zeros(1, dtype=torch.int64, device=layer.seed.device)
        draw = Draw(layer.seed, patches, once, Stream.FIXED, layer.index)
        return _same_for_all(balanced_partition(draw, patches=patches, tiles=tiles)[0], images)


class Perforated(Scheme):
    """One kernel matrix; in training a fresh random n_p / tiles of each image's patches is computed, in test all."""

    name = "perforated"
    random_in_test = False

    def matrices(self, tiles: int) -> int:
        """One, whatever the perforation."""
        return 1

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        """In training 0 for the patches of one part of a balanced partition and -1 elsewhere, in test 0."""
        if not layer.training:
            return _same_for_all(_zeros(size, layer), images)
        draw = layer.draw_for(images, layer.seed.device)
        return balanced_partition(draw, patches=size[0] * size[1], tiles=tiles).sign().neg()


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (Untiled(), Random(), RandomFixed(), ImageOverlap(), ImagePad(), Alternate(), Perforated())
}


def scheme_named(name: str | Scheme) -> Scheme:
    """The scheme of a name; one that somebody made is taken as it is.

    Raises:
        ValueError: there is none of that name; the message names the nearest.
    """
    if isinstance(name, Scheme):
        return name
    if name not in SCHEMES:
        raise ValueError(f"scheme: there is no '{name}'; {suggestion(str(name), SCHEMES)}")
    return SCHEMES[name]


def balanced_tiles(
    patches: Sequence[int], scheme: str | Scheme, tileable: Sequence[bool] | None = None
) -> tuple[int, ...]:
    """The paper's tiling: floor(n_p / smallest n_p) tiles for each layer; the square below it for square schemes.

    Args:
        patches: n_p of each layer.
        scheme: it or its name; `none` has one tile everywhere.
        tileable: of each layer, whether it can have several tiles; the others have one.
    """
    rule = scheme_named(scheme)
    if rule.name == "none":
        return (1,) * len(patches)
    smallest = min(patches)
    can = (True,) * len(patches) if tileable is None else tileable
    tiles = tuple(count // smallest if may else 1 for count, may in zip(patches, can, strict=True))
    return tuple(math.isqrt(count) ** 2 for count in tiles) if rule.square else tiles


def balanced_partition(draw: Draw, *, patches: int, tiles: int) -> Tensor:
    """Random partitions with parts whose sizes differ by at most one.

    A patch's rank is the rank of its hash among the image's patches (ties by patch number), its tile is
    floor(rank tiles / patches); then the labels are turned by a keyed offset, so that every patch is uniform over the
    tiles also where sizes differ.

    Returns:
        int64 tensor (B, patches), values in [0, tiles).
    """
    if draw.images.device.type == "cpu" and cpu.available():
        each = torch.as_tensor(draw.draw, dtype=torch.int64, device="cpu").expand(len(draw.images))
        key = key_of(Purpose.ASSIGNMENT, draw.seed, draw.stream)
        return cpu.partition(
            key, draw.layer, draw.images, each, patches=patches, tiles=tiles, offset_block=_OFFSET_BLOCK
        )
    gpu = in_triton(draw.images.device)
    if gpu is not None and patches <= gpu.MAX_PATCHES:
        drawn: Tensor = gpu.ranked(*_words(draw, patches), tiles)
        return drawn
    return partition_in_torch(draw, patches=patches, tiles=tiles)


def partition_in_torch(draw: Draw, *, patches: int, tiles: int) -> Tensor:
    """`balanced_partition` on any device: the definition, to the last integer."""
    hashes, turns = _words(draw, patches)
    order = torch.argsort(hashes, dim=1, stable=True)
    by_rank = torch.arange(patches, device=order.device) * tiles // patches
    return torch.empty_like(order).scatter_(1, order, (by_rank + (turns * tiles >> 32)) % tiles)


def _words(draw: Draw, patches: int) -> tuple[Tensor, Tensor]:
    """The hashes of each image's patches, (B, patches), and what turns its labels, (B, 1)."""
    return (
        draw.words(Purpose.ASSIGNMENT, count=patches),
        draw.words(Purpose.ASSIGNMENT, count=1, first_block=_OFFSET_BLOCK),
    )


def _zeros(size: tuple[int, int], layer: KeyedLayer) -> Tensor:
    return torch.zeros(size[0] * size[1], dtype=torch.int64, device=layer.seed.device)


def _regions(q: int, height: int, width: int, device: torch.device) -> Tensor:
    """The region of each pixel of an image cut into q by q regions, int64 (height, width)."""
    return region_of(q, width, device) + q * region_of(q, height, device)[:, None]


def _same_for_all(assignment: Tensor, images: int | Tensor) -> Tensor:
    return assignment.expand(images if isinstance(images, int) else len(images), -1)
