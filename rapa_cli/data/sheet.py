"""A contact sheet: a few images of each class, one row for each, with the class names beside them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rapa_cli.data.images import DataSet, Split
from rapa_cli.errors import ConfigError

_GAP = 2
_MARGIN = 8
_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_TARGET = 64
_LONGEST_NAME = 40
_MOST_PIXELS = 10**8


def contact_sheet(data: DataSet, *, split: str = "train", columns: int = 12, scale: int | None = None) -> Image.Image:
    """Draws the first images of each class.

    Args:
        data: the data set.
        split: "train" or "test".
        columns: how many images of each class, at least 1.
        scale: by how much each pixel is enlarged; None makes images at least 64 pixels high or wide.

    Returns:
        An RGB picture, a class for each row; a class with fewer images leaves room.

    Raises:
        ConfigError: the picture would be too large.
    """
    part = {"train": data.train, "test": data.test}[split]
    _, height, width = data.shape
    scale = scale or max(1, -(-_TARGET // max(height, width)))
    cell_width, cell_height = width * scale + _GAP, height * scale + _GAP
    font = ImageFont.load_default(max(10, min(20, height * scale // 3)))
    labels = [name[:_LONGEST_NAME] for name in data.classes]
    names = _MARGIN + round(max(map(font.getlength, labels))) + _MARGIN
    size = (names + columns * cell_width + _MARGIN, len(labels) * cell_height + 2 * _MARGIN)
    if size[0] * size[1] > _MOST_PIXELS:
        raise ConfigError(
            f"a sheet of {len(labels)} classes and {columns} columns would have {size[0]} x {size[1]} pixels, "
            f"allowed are {_MOST_PIXELS}",
            hint="take fewer --columns",
        )
    sheet = Image.new("RGB", size, _PAPER)
    ink = ImageDraw.Draw(sheet)
    for label, name in enumerate(labels):
        top = _MARGIN + label * cell_height
        ink.text((names - _MARGIN, top + cell_height / 2), name, fill=_INK, font=font, anchor="rm")
        for column, picture in enumerate(_pictures(part, label, columns)):
            enlarged = picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (names + column * cell_width, top))
    return sheet


def _pictures(part: Split, label: int, count: int) -> list[Image.Image]:
    numbers = (part.labels == label).nonzero()[:count, 0]
    pixels = part.images[numbers].permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(pixel).repeat(3 // pixel.shape[2], axis=2)) for pixel in pixels]
