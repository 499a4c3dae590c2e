"""Draws: what fixes every random choice that a network makes while it computes.

A layer that makes random choices is a `KeyedLayer`. Inside `with draws(model, ...)` all of them share one `Draw`;
outside, each layer counts its calls and takes the count as its draw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapa_cli.philox import Purpose, Stream, check_seed, words


@dataclass(frozen=True)
class Draw:
    """One sample of all random choices in a network.

    Attributes:
        seed: in [0, 2^32).
        draw: the number of the draw (in training the epoch), or an int64 tensor with one number for each image.
        images: image ids, int64, shape (B,).
        stream: what the network is used for.
    """

    seed: int
    draw: int | Tensor
    images: Tensor
    stream: Stream

    def words(self, purpose: Purpose, *, layer: int, count: int, first_block: int = 0) -> Tensor:
        """Random 32-bit words, int64, shape (B, count)."""
        return words(
            purpose,
            self.seed,
            images=self.images,
            count=count,
            draw=self.draw,
            layer=layer,
            stream=self.stream,
            first_block=first_block,
        )


class KeyedLayer(nn.Module):
    """A layer whose random choices are pure functions of a key.

    Attributes:
        seed: buffer, the layer's own seed: the key of what is drawn once and of calls outside `draws`. A new layer
            takes it from torch's global generator, as it takes its weights.
        calls: buffer, how often the layer was called outside `draws`.
        index: the layer's place among the keyed layers of its network.
    """

    seed: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.index = 0
        self._draw: Draw | None = None
        self.register_buffer("seed", torch.randint(2**32, (), dtype=torch.int64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def draw_for(self, images: int | Tensor, device: torch.device) -> Draw:
        """The draw that holds for this call.

        Args:
            images: the batch's size B, or its image ids, int64 of shape (B,).
            device: where the ids are wanted.

        Raises:
            ValueError: `draws` was given another number of image ids than the batch has images.
        """
        size = images if isinstance(images, int) else len(images)
        if self._draw is not None:
            if not isinstance(images, int):
                return Draw(self._draw.seed, self._draw.draw, images, self._draw.stream)
            if len(self._draw.images) != size:
                raise ValueError(f"images: draws() was given {len(self._draw.images)} ids for a batch of {size} images")
            return self._draw
        ids = torch.arange(images, device=device) if isinstance(images, int) else images
        draw = Draw(int(self.seed), int(self.calls) % 2**32, ids, Stream.CALLS)
        self.calls += 1
        return draw


def keyed_layers(model: nn.Module) -> list[KeyedLayer]:
    """The keyed layers of a network, in the order of `model.modules()`, numbered by that order."""
    layers = [module for module in model.modules() if isinstance(module, KeyedLayer)]
    for index, layer in enumerate(layers):
        layer.index = index
    return layers


@contextlib.contextmanager
def draws(
    model: nn.Module,
    *,
    images: Tensor,
    seed: int = 0,
    draw: int | Tensor = 0,
    stream: str = "test",
) -> Iterator[None]:
    """Fixes every random choice that `model` makes inside the block.

    Args:
        model: any network; its keyed layers are numbered in the order of `model.modules()`.
        images: the ids of the images in the batch, int64, shape (B,), values in [0, 2^32).
        seed: in [0, 2^32).
        draw: the number of the draw (in training the epoch), or an int64 tensor of shape (B,).
        stream: "train", "test", "vote" or "attack"; each has draws of its own.

    Raises:
        ValueError: a wrong shape, seed or stream.
    """
    if images.dtype != torch.int64 or images.ndim != 1:
        raise ValueError(f"images: got {images.dtype} of shape {tuple(images.shape)}, allowed is int64 of shape (B,)")
    if isinstance(draw, Tensor) and draw.ndim and draw.shape != images.shape:
        raise ValueError(f"draw: got shape {tuple(draw.shape)} for {len(images)} images")
    try:
        chosen = Stream[stream.upper()]
    except KeyError:
        allowed = ", ".join(member.name.lower() for member in Stream)
        raise ValueError(f"stream: got '{stream}', allowed are {allowed}") from None
    check_seed(seed)
    layers = keyed_layers(model)
    before = [layer._draw for layer in layers]
    now = Draw(seed, draw, images, chosen)
    for layer in layers:
        layer._draw = now
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer._draw = old
