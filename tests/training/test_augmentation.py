"""What happens to training images: mirrored half of the time, and brighter or darker, by their id and the epoch."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from rapa_cli.data.augmentation import augment, pixels
from rapa_cli.philox import permutation

COUNT = 4000


def changed(images: Tensor, ids: Tensor, *, epoch: int = 0, mirror: bool = True, brightness: float = 0.3) -> Tensor:
    return augment(images, ids, seed=7, epoch=epoch, mirror=mirror, brightness=brightness)


@pytest.fixture(scope="module")
def ramp() -> Tensor:
    """Images that are darker on the left and nowhere so bright that anything is cut."""
    return torch.linspace(0.2, 0.5, 4).expand(COUNT, 1, 2, 4)


def factors(images: Tensor, ramp: Tensor) -> Tensor:
    """What each image was multiplied by."""
    return images.sum((1, 2, 3)) / ramp.sum((1, 2, 3))


def test_half_are_mirrored(ramp: Tensor) -> None:
    images = changed(ramp, torch.arange(COUNT), brightness=0)
    mirrored = (images == ramp.flip(3)).flatten(1).all(1)
    assert ((images == ramp).flatten(1).all(1) ^ mirrored).all()
    assert stats.binomtest(int(mirrored.sum()), COUNT).pvalue > 0.001


def test_brightness_is_uniform(ramp: Tensor) -> None:
    found = factors(changed(ramp, torch.arange(COUNT), mirror=False), ramp)
    assert found.min() >= 0.7 - 1e-6
    assert found.max() <= 1.3 + 1e-6
    assert stats.kstest(found.numpy(), stats.uniform(0.7, 0.6).cdf).pvalue > 0.001


def test_mirroring_and_brightness_are_independent(ramp: Tensor) -> None:
    images = changed(ramp, torch.arange(COUNT))
    mirrored = images[:, 0, 0, 0] > images[:, 0, 0, 3]
    found = factors(images, ramp)
    assert stats.ks_2samp(found[mirrored].numpy(), found[~mirrored].numpy()).pvalue > 0.001


def test_pixels_stay_in_range() -> None:
    white = torch.ones(200, 3, 2, 2)
    images = changed(white, torch.arange(200))
    assert images.max() == 1
    assert images.min() >= 0.7 - 1e-6


def test_the_same_in_any_batch(ramp: Tensor) -> None:
    ids = torch.arange(COUNT)
    whole = changed(ramp, ids)
    order = permutation(1, 0, COUNT)
    assert torch.equal(changed(ramp[order], ids[order]), whole[order])
    assert torch.equal(changed(ramp[17:18], ids[17:18]), whole[17:18])


def test_epochs_and_seeds_differ(ramp: Tensor) -> None:
    ids = torch.arange(COUNT)
    first, second = (factors(changed(ramp, ids, epoch=epoch), ramp) for epoch in (0, 1))
    assert abs(stats.pearsonr(first.numpy(), second.numpy()).statistic) < 0.06
    assert not torch.equal(first, second)
    assert not torch.equal(augment(ramp, ids, seed=8, epoch=0, mirror=True, brightness=0.3), changed(ramp, ids))


def test_nothing_is_changed_where_nothing_was_asked_for(ramp: Tensor) -> None:
    before = ramp.clone()
    assert torch.equal(changed(ramp, torch.arange(COUNT), mirror=False, brightness=0), ramp)
    changed(ramp, torch.arange(COUNT))
    assert torch.equal(ramp, before), "the images given stay as they are"


def test_pixels() -> None:
    images = torch.tensor([0, 51, 255, 1], dtype=torch.uint8).view(1, 1, 2, 2)
    found = pixels(images, torch.device("cpu"))
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([0, 0.2, 1, 1 / 255])
    assert images.flatten().tolist() == [0, 51, 255, 1]


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_an_epoch_visits_each_image_once(size: int) -> None:
    orders = [permutation(seed, epoch, size) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(torch.equal(order.sort().values, torch.arange(size)) for order in orders)
    if size == 1000:
        assert len({tuple(order.tolist()) for order in orders}) == 3
