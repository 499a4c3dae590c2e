"""Draws: what fixes every random choice that a network makes while it computes.

A layer that makes random choices is a `KeyedLayer`. Inside `with draws(model, ...)` all of them share one `Draw`;
outside, each layer counts its calls and takes the count as its draw.

What a layer draws outside `draws` rests on what the layer itself holds (its seed, calls and index), which `draws`
leaves as it is; inside, its place in the network it was given takes the place of the index.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor, nn

from rapa_cli.philox import Purpose, Stream, check_seed, words

# The streams that `draws` takes; layers use the others themselves.
_STREAMS = {"train": Stream.TRAIN, "test": Stream.TEST, "vote": Stream.VOTE, "attack": Stream.ATTACK}


@dataclass(frozen=True)
class Draw:
    """One sample of the random choices that a layer makes.

    Attributes:
        seed: in [0, 2^32), a number or a 0-dim int64 tensor where the ids are.
        draw: the number of the draw (in training the epoch), or an int64 tensor with one number for each image.
        images: image ids, int64, shape (B,).
        stream: what the network is used for.
        layer: the layer's number in its network.
    """

    seed: int | Tensor
    draw: int | Tensor
    images: Tensor
    stream: Stream
    layer: int = 0

    def words(self, purpose: Purpose, *, count: int, first_block: int = 0) -> Tensor:
        """Random 32-bit words, int64, shape (B, count)."""
        return words(
            purpose,
            self.seed,
            images=self.images,
            count=count,
            draw=self.draw,
            layer=self.layer,
            stream=self.stream,
            first_block=first_block,
        )

    def generator(self, part: int, place: torch.device) -> torch.Generator:
        """A generator for the whole batch, for where torch wants one.

        Args:
            part: what of a layer's work it is for; each has a generator of its own.
            place: torch's device of the numbers.
        """
        return torch.Generator(place).manual_seed(self.batch_seed(Purpose.ANALOG_SEED, first_block=part))

    def batch_seed(self, purpose: Purpose, *, first_block: int = 0) -> int:
        """A seed in [0, 2^63) for the whole batch."""
        # Sums over the images: the same for a batch in any order.
        low, high = self.words(purpose, count=2, first_block=first_block).sum(0).tolist()
        return int((low % 2**32) | (high % 2**31) << 32)


class KeyedLayer(nn.Module):
    """A layer whose random choices are pure functions of a key.

    Attributes:
        seed: buffer, the layer's own seed: the key of what is drawn once and of calls outside `draws`. A new layer
            takes it from torch's global generator, as it takes its weights.
        calls: buffer, how often the layer was called outside `draws`.
        index: the layer's place among the keyed layers of the network that was built with it, 0 for a single layer.
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
            ValueError: `draws` was given another number of image ids, or of draws, than the batch has images.
        """
        if self._draw is not None:
            if isinstance(images, int):
                if len(self._draw.images) != images:
                    given = len(self._draw.images)
                    raise ValueError(f"images: draws() was given {given} ids for a batch of {images} images")
                images = self._draw.images
            each = self._draw.draw
            if isinstance(each, Tensor) and each.ndim and len(each) != len(images):
                raise ValueError(
                    f"images: got {len(images)} ids, but draws() was given a draw for each of {len(each)} images"
                )
            return replace(self._draw, images=images.to(device))
        ids = torch.arange(images, device=device) if isinstance(images, int) else images.to(device)
        draw = Draw(int(self.seed), int(self.calls) % 2**32, ids, Stream.CALLS, self.index)
        self.calls += 1
        return draw


def keyed_layers(model: nn.Module) -> list[KeyedLayer]:
    """The keyed layers of a network, in the order of `model.modules()`."""
    return [module for module in model.modules() if isinstance(module, KeyedLayer)]


def number_layers(model: nn.Module) -> None:
    """Gives the keyed layers of a new network their index."""
    for index, layer in enumerate(keyed_layers(model)):
        layer.index = index


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
        draw: the number of the draw (in training the epoch), or an int64 tensor of shape (B,), in [0, 2^32).
        stream: "train", "test", "vote" or "attack"; each has draws of its own.

    Raises:
        ValueError: a wrong shape or type, a number out of its range, or an unknown stream.
    """
    check_ids(images)
    if isinstance(draw, Tensor) and draw.ndim and draw.shape != images.shape:
        raise ValueError(f"draw: got shape {tuple(draw.shape)} for {len(images)} images")
    if isinstance(draw, Tensor):
        _check_range("draw", draw)
    elif not isinstance(draw, Integral) or not 0 <= draw < 2**32:
        raise ValueError(f"draw: got {draw}, allowed are whole numbers from 0 to {2**32 - 1}")
    if stream not in _STREAMS:
        raise ValueError(f"stream: got '{stream}', allowed are {', '.join(_STREAMS)}")
    check_seed(seed)
    layers = keyed_layers(model)
    before = [layer._draw for layer in layers]
    for number, layer in enumerate(layers):
        layer._draw = Draw(seed, draw, images, _STREAMS[stream], number)
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer._draw = old


@contextlib.contextmanager
def global_generator(*, seed: int, draw: int, images: Tensor) -> Iterator[None]:
    """Inside the block torch's global generators are seeded by a batch in training, and afterwards as they were before.

    Layers that this package does not know, as dropout, draw from them.

    Args:
        seed: in [0, 2^32).
        draw: the epoch.
        images: ids of the images in the batch, int64, shape (B,).
    """
    own = Draw(seed, draw, images, Stream.TRAIN).batch_seed(Purpose.MODULE)
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(own)
        yield


def check_ids(images: Tensor) -> None:
    """Raises ValueError unless these are image ids: int64, shape (B,), values in [0, 2^32)."""
    if images.ndim != 1:
        raise ValueError(f"images: got shape {tuple(images.shape)}, allowed is (B,)")
    _check_range("images", images)


def _check_range(name: str, numbers: Tensor) -> None:
    if numbers.dtype != torch.int64:
        raise ValueError(f"{name}: got {numbers.dtype}, allowed is int64")
    # Looking at numbers on a GPU would wait for it at every step.
    if numbers.is_cpu and numbers.numel() and not (int(numbers.min()) >= 0 and int(numbers.max()) < 2**32):
        raise ValueError(
            f"{name}: got numbers from {int(numbers.min())} to {int(numbers.max())}, allowed are 0 to {2**32 - 1}"
        )
