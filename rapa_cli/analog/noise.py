"""Random tensors from a generator that may live on another device than the result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gauss(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent N(0, 1) in the shape, type and place of `like`."""
    drawn = torch.empty(like.shape, dtype=like.dtype, device=generator.device)
    return drawn.normal_(generator=generator).to(like.device)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent uniform numbers in [0, 1) in the shape, type and place of `like`."""
    return torch.rand(like.shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)


def numbers(count: int, below: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Independent uniform whole numbers from 0 to `below` - 1, int64 (count,)."""
    return (uniform(torch.empty(count, device=device), generator) * below).long().clamp_max(below - 1)


def poisson(rates: Tensor, generator: torch.Generator) -> Tensor:
    """Independent Poisson variables with these means."""
    return torch.poisson(rates.to(generator.device), generator=generator).to(rates.device)


def any_generator() -> torch.Generator:
    """A generator that is seeded by torch's global one."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def drawn(shape: Sequence[int], mean: float, spread: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Makes mean + spread xi for each element, float32; nothing is drawn where the spread is 0."""
    values = torch.full(tuple(shape), mean, dtype=torch.float32, device=device)
    return values.add_(gauss(values, generator), alpha=spread) if spread else values


def rounded(values: Tensor, step: float, generator: torch.Generator | None = None) -> Tensor:
    """To multiples of `step`, halves to even; with a generator stochastically: unbiased. A step of 0 is none.

    Args:
        values: any shape.
        step: the distance of two levels.
        generator: for stochastic rounding.
    """
    if step <= 0:
        return values
    scaled = values / step
    if generator is not None:
        scaled += uniform(values, generator).sub_(0.5)
    return scaled.round_().mul_(step)
