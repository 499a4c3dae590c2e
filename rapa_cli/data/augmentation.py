"""Batches: images as the network takes them, and their random changes in training."""

from __future__ import annotations

import torch
from torch import Tensor

from rapa_cli.philox import Purpose, uniform, words


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; to a GPU it goes through page-locked memory, so that nobody waits for it."""
    if device.type == "cuda" and tensor.is_cpu:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pixels(images: Tensor, device: torch.device) -> Tensor:
    """Moves images (B, C, H, W), bytes or floats in [0, 1], to the device, as float32 in [0, 1], channels last."""
    floats = moved(images, device).to(torch.float32, memory_format=torch.channels_last)
    return floats.div_(255) if images.dtype == torch.uint8 else floats


def augment(images: Tensor, ids: Tensor, *, seed: int, epoch: int, mirror: bool, brightness: float) -> Tensor:
    """Mirrors images and changes their brightness (paper, section 3), the same for an image id in any batch.

    Args:
        images: (B, C, H, W), in [0, 1].
        ids: image ids, int64 (B,).
        seed: of the run.
        epoch: each has its own changes.
        mirror: whether to mirror left and right with probability 1/2.
        brightness: b in [0, 1); pixels are multiplied by a number uniform in [1 - b, 1 + b) and cut to [0, 1].

    Returns:
        (B, C, H, W), in [0, 1].
    """
    if not mirror and not brightness:
        return images
    chance = uniform(words(Purpose.AUGMENTATION, seed, images=ids.to(images.device), count=2, draw=epoch))
    chance = chance[:, :, None, None, None]
    if mirror:
        images = torch.where(chance[:, 0] < 0.5, images.flip(3), images)
    if brightness:
        images = (images * (1 + brightness * (2 * chance[:, 1] - 1))).clamp_(max=1)
    return images
