"""The embedded data set `shapes`: ten kinds of shapes in small painted scenes, drawn from a seed.

An image is a pure function of (seed, split, number): its label is the number modulo ten, everything else comes from
Philox words keyed by them. A scene is painted from back to front: a textured background, fragments that resemble
parts of shapes, the shape's shadow, the shape, what covers a part of it, the light, the grain of a sensor. What makes
it hard is pose, clutter, overlap and light; every label is right.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from rapa_cli.data.images import Progress, Split, silent
from rapa_cli.data.outlines import OUTLINES
from rapa_cli.philox import Purpose, Stream, uniform, words

CLASSES = tuple(OUTLINES)
SIDE = 32
TRAIN, TEST = 10_000, 2_000
SEED = 0
VERSION = 2
"""Raised whenever the drawing changes, so that a copy in the store is drawn anew."""

_CHUNK = 250
_CHOICES, _TEXTURE, _GRAIN = 0, 1, 2
_FRAGMENTS = 4


def source(seed: int = SEED) -> str:
    """The provenance of the drawn images, one line."""
    return f"drawn by rapa, shapes version {VERSION}, seed {seed}"


def draw_splits(
    *, seed: int = SEED, train: int = TRAIN, test: int = TEST, progress: Progress = silent
) -> tuple[Split, Split]:
    """Draws the training and the test split.

    Args:
        seed: in [0, 2^32).
        train: number of training images.
        test: number of test images.
        progress: called after each chunk.
    """
    parts: list[Split] = []
    with _one_thread():
        for stream, count, before in ((Stream.TRAIN, train, 0), (Stream.TEST, test, train)):
            images = torch.empty((count, 3, SIDE, SIDE), dtype=torch.uint8)
            numbers = torch.arange(count)
            for start in range(0, count, _CHUNK):
                chosen = numbers[start : start + _CHUNK]
                images[start : start + len(chosen)] = draw(chosen, seed=seed, stream=stream)
                progress("drawing shapes", before + start + len(chosen), train + test)
            parts.append(Split(images, numbers % len(CLASSES)))
    return parts[0], parts[1]


def draw(numbers: Tensor, *, seed: int = SEED, stream: Stream = Stream.TRAIN) -> Tensor:
    """Draws images.

    Args:
        numbers: which images, int64, shape (B,), values in [0, 2^32); image i shows class i mod 10.
        seed: in [0, 2^32).
        stream: `Stream.TRAIN` or `Stream.TEST`.

    Returns:
        uint8, shape (B, 3, 32, 32). The same on every run; on another machine or version of torch a value may differ
        by one grey level.
    """
    choices = _Choices(words(Purpose.DATA, seed, images=numbers, count=192, layer=_CHOICES, stream=stream))
    scene = _background(choices, words(Purpose.DATA, seed, images=numbers, count=3 * 64, layer=_TEXTURE, stream=stream))
    back = choices.between(0.2, 0.7)
    picture = scene + back[:, None]
    for _ in range(_FRAGMENTS):
        picture = _fragment(picture, choices, back)
    picture = _subject(picture, choices, back, numbers % len(CLASSES))
    picture = _cover(picture, choices, back)
    picture = _light(picture, choices)
    picture = picture + _grain(
        choices, words(Purpose.DATA, seed, images=numbers, count=768, layer=_GRAIN, stream=stream)
    )
    return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads gain nothing on steps this small, and wait for each other where other programs run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Choices:
    """Hands out an image's uniform random numbers one after the other, as tensors of shape (B, 1, 1)."""

    def __init__(self, random_words: Tensor) -> None:
        self._numbers = uniform(random_words)[:, :, None, None]
        self._next = 0

    def between(self, low: float, high: float) -> Tensor:
        number = self._numbers[:, self._next]
        self._next += 1
        return low + (high - low) * number

    def angle(self) -> Tensor:
        return self.between(0.0, 2 * math.pi)

    def chance(self, probability: float) -> Tensor:
        """1 with the given probability, else 0."""
        return (self.between(0.0, 1.0) < probability).float()


def _grid() -> tuple[Tensor, Tensor]:
    """The pixels' centres, x and y, in pixels from the middle: float32, shape (1, 32, 32)."""
    line = torch.arange(SIDE) - (SIDE - 1) / 2
    return line[None, None, :].expand(1, SIDE, SIDE), line[None, :, None].expand(1, SIDE, SIDE)


_X, _Y = _grid()


def _tint(choices: _Choices, strength: float) -> Tensor:
    """A colour without brightness: its channels add up to zero; shape (B, 3, 1, 1)."""
    hue, amount = choices.angle(), choices.between(0.15, 1.0) * strength
    return torch.stack([amount * torch.cos(hue - shift * 2 * math.pi / 3) for shift in range(3)], 1)


def _paint(picture: Tensor, colour: Tensor, coverage: Tensor) -> Tensor:
    """Lays a colour over the picture where the coverage (B, 32, 32), in [0, 1], says so."""
    return picture + (colour - picture) * coverage[:, None]


def _fill(distance: Tensor, softness: float | Tensor = 1.0) -> Tensor:
    """How much of each pixel lies inside an outline, from its signed distance in pixels."""
    return (0.5 - distance / softness).clamp(0, 1)


def _contrasting(choices: _Choices, back: Tensor, low: float, high: float, brighter: float = 0.5) -> Tensor:
    """A brightness that differs from the background's by `low` to `high`.

    It is brighter in a share `brighter` of the images where there is room on both sides.
    """
    step = choices.between(low, high)
    sign = 2 * choices.chance(brighter) - 1
    fits = ((back + sign * step) > 0.06) & ((back + sign * step) < 0.94)
    return back + torch.where(fits, sign, -sign) * step


def _background(choices: _Choices, random_words: Tensor) -> Tensor:
    """A gradient between two colours, soft blotches and faint stripes, about zero brightness; (B, 3, 32, 32)."""
    angle = choices.angle()
    across = (_X * torch.cos(angle) + _Y * torch.sin(angle)) / SIDE
    first, second = _tint(choices, 0.16), _tint(choices, 0.16)
    share = (across + 0.5)[:, None]
    picture = first + (second - first) * share + choices.between(-0.25, 0.25)[:, None] * across[:, None]
    blotches = uniform(random_words).reshape(-1, 3, 8, 8) - 0.5
    coarse = F.interpolate(blotches[:, :, :4, :4], size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    fine = F.interpolate(blotches[:, :1], size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    picture = picture + coarse * choices.between(0.0, 0.22)[:, None] + fine * choices.between(0.0, 0.25)[:, None]
    angle, period = choices.angle(), choices.between(4.0, 10.0)
    wave = torch.sin((_X * torch.cos(angle) + _Y * torch.sin(angle)) * (2 * math.pi / period) + choices.angle())
    strength = choices.between(0.03, 0.08) * choices.chance(0.35)
    return picture + ((wave * 3).clamp(-1, 1) * strength)[:, None]


def _fragment(picture: Tensor, choices: _Choices, back: Tensor) -> Tensor:
    """Paints a piece of an arc, a stroke or a corner somewhere, as a distraction."""
    angle = choices.angle()
    x, y = _X - choices.between(-17, 17), _Y - choices.between(-17, 17)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    x, y = x * cosine + y * sine, y * cosine - x * sine
    size, width = choices.between(2.5, 5.0), choices.between(0.8, 1.8)
    arc = torch.maximum((torch.hypot(x, y) - size).abs() - width, -y)
    stroke = torch.hypot(x - torch.minimum(torch.maximum(x, -size), size), y) - width
    corner = torch.maximum(torch.maximum(x - size, y - 0.7 * size), -0.8 * x - 0.6 * y)
    kind = choices.between(0.0, 3.0)
    distance = torch.where(kind < 1, arc, torch.where(kind < 2, stroke, corner))
    colour = _contrasting(choices, back, 0.08, 0.3)[:, None] + _tint(choices, 0.2)
    return _paint(picture, colour, _fill(distance) * choices.chance(0.5))


def _subject(picture: Tensor, choices: _Choices, back: Tensor, labels: Tensor) -> Tensor:
    """Paints the shape that the label names, with its shadow."""
    radius = choices.between(10.0, 13.5)
    reach = 16.0 - radius
    centre_x, centre_y = choices.between(-1, 1) * reach, choices.between(-1, 1) * reach
    angle = choices.between(-0.45, 0.45)
    squeeze, lean = choices.between(0.78, 1.0), choices.between(-0.2, 0.2)
    cosine, sine = torch.cos(angle), torch.sin(angle)

    def distance(shift_x: Tensor | float, shift_y: Tensor | float) -> Tensor:
        x, y = _X - centre_x - shift_x, _Y - centre_y - shift_y
        x, y = x * cosine + y * sine, y * cosine - x * sine
        x, y = (x + lean * y) / (radius * squeeze), y / radius
        result = torch.empty_like(x)
        for label, outline in enumerate(OUTLINES.values()):
            chosen = (labels == label).nonzero()[:, 0]
            if len(chosen):
                result[chosen] = outline(x[chosen], y[chosen])
        return result * (radius * squeeze)

    fall = choices.angle()
    away = choices.between(1.5, 3.5)
    shadow = _fill(distance(away * torch.cos(fall), away * torch.sin(fall)), 4.0)
    picture = picture * (1 - shadow * choices.between(0.0, 0.55))[:, None]

    inside = distance(0.0, 0.0)
    brightness = _contrasting(choices, back, 0.22, 0.48, brighter=0.8)
    colour = brightness[:, None] + _tint(choices, 0.26)
    # Light from the side the shadow falls away from.
    slope = -((_X - centre_x) * torch.cos(fall) + (_Y - centre_y) * torch.sin(fall)) / radius
    shading = slope * choices.between(0.0, 0.14)
    period, phase, turn = choices.between(3.0, 6.0), choices.angle(), choices.angle()
    wave = torch.sin((_X * torch.cos(turn) + _Y * torch.sin(turn)) * (2 * math.pi / period) + phase)
    shading = shading + wave * choices.between(0.02, 0.08) * choices.chance(0.3)
    rim = _fill(inside.abs() - 0.6) * choices.between(-0.25, 0.1)
    return _paint(picture, colour + (shading + rim)[:, None], _fill(inside))


def _cover(picture: Tensor, choices: _Choices, back: Tensor) -> Tensor:
    """Lays a bar or a blob over a part of the picture, in some images both."""
    angle, offset = choices.angle(), choices.between(-9.0, 9.0)
    across = _X * torch.cos(angle) + _Y * torch.sin(angle) - offset
    bar = across.abs() - choices.between(0.7, 2.2)
    colour = _contrasting(choices, back, 0.0, 0.3)[:, None] + _tint(choices, 0.2)
    picture = _paint(picture, colour, _fill(bar) * choices.chance(0.4))
    blob = torch.hypot(_X - choices.between(-12, 12), _Y - choices.between(-12, 12)) - choices.between(3.0, 6.0)
    colour = _contrasting(choices, back, 0.0, 0.3)[:, None] + _tint(choices, 0.2)
    return _paint(picture, colour, _fill(blob) * choices.chance(0.4))


def _light(picture: Tensor, choices: _Choices) -> Tensor:
    """Light that is brighter on one side, warmer or colder, and stronger or weaker on the whole."""
    angle = choices.angle()
    across = (_X * torch.cos(angle) + _Y * torch.sin(angle)) / SIDE
    gain = choices.between(0.65, 1.15) * (1 + across * choices.between(0.0, 0.6))
    return picture * gain[:, None] * (1 + _tint(choices, 0.1))


def _grain(choices: _Choices, random_words: Tensor) -> Tensor:
    """Independent noise for each pixel and channel, one byte each; (B, 3, 32, 32)."""
    bytes_ = torch.stack([(random_words >> shift) & 255 for shift in (0, 8, 16, 24)], -1)
    noise = bytes_.reshape(-1, 3, SIDE, SIDE).to(torch.float32) / 127.5 - 1
    return noise * choices.between(0.01, 0.07)[:, None]
