"""Majority votes over random assignments (paper, section 4): each draw is one vote for a class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapa_cli.analysis.evaluation import batches, evaluating, wilson
from rapa_cli.keyed import draws


@dataclass(frozen=True)
class VoteResult:
    """The error of single draws and of their vote.

    Attributes:
        images: how many were classified.
        single_wrong: wrong images of each draw.
        vote_wrong: wrong images of the vote.
        gain_squares: sum over the images of (wrong draws - draws, if the vote is wrong)^2.
    """

    images: int
    single_wrong: tuple[int, ...]
    vote_wrong: int
    gain_squares: int

    @property
    def single_error(self) -> float:
        """Mean error of a single draw, percent."""
        return 100 * sum(self.single_wrong) / len(self.single_wrong) / self.images

    @property
    def vote_error(self) -> float:
        """Error of the vote, percent."""
        return 100 * self.vote_wrong / self.images

    @property
    def gain(self) -> float:
        """By how much the vote's error is below that of a single draw, points."""
        return self.single_error - self.vote_error

    @property
    def gain_se(self) -> float:
        """Standard error of the gain over the images, each of which both have classified, points."""
        square = self.gain_squares / len(self.single_wrong) ** 2 / self.images
        return 100 * math.sqrt(max(square - (self.gain / 100) ** 2, 0) / self.images)

    @property
    def vote_ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the vote's error, percent."""
        return wilson(self.vote_wrong, self.images)


def vote(model: nn.Module, images: Tensor, n: int, seed: int = 0) -> Tensor:
    """Classifies images by the majority of n draws; ties go to the highest mean probability.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        images: float32 (B, C, H, W) in [0, 1]; their ids are their places in the batch.
        n: number of draws, at least 1.
        seed: of the draws.

    Returns:
        Classes, int64 (B,).

    Raises:
        ValueError: n is less than 1.
    """
    _check_number(n)
    ids = torch.arange(len(images), device=images.device)
    with evaluating(model):
        return _votes(model, images, ids, n, seed)[0]


def vote_error(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    n: int,
    *,
    seed: int = 0,
    batch_size: int = 200,
    on_batch: Callable[[int], None] | None = None,
) -> VoteResult:
    """The errors of n single draws and of their vote, in one pass over the images.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        images: uint8 (N, C, H, W); their ids are their places in the split.
        labels: int64 (N,).
        n: number of draws, at least 1.
        seed: of the draws.
        batch_size: changes the result in the last bits only.
        on_batch: called with the number of images after each batch.

    Raises:
        ValueError: n is less than 1.
    """
    _check_number(n)
    device = next(model.parameters()).device
    single_wrong = torch.zeros(n, dtype=torch.int64, device=device)
    vote_wrong = torch.zeros((), dtype=torch.int64, device=device)
    gain_squares = torch.zeros((), dtype=torch.int64, device=device)
    with evaluating(model):
        for ids, x, y in batches(images, labels, batch_size, device):
            winner, singles, votes = _votes(model, x, ids, n, seed, labels=y)
            wrong = winner != y
            vote_wrong += wrong.sum()
            gain_squares += (n - votes.gather(1, y[:, None])[:, 0] - n * wrong).square().sum()
            single_wrong += singles
            if on_batch:
                on_batch(len(x))
    return VoteResult(len(images), tuple(single_wrong.tolist()), int(vote_wrong), int(gain_squares))


def majority(votes: Tensor, probability: Tensor) -> Tensor:
    """The class with most votes; among equals the one with the highest mean probability.

    Args:
        votes: how many draws chose each class, int64 (B, classes).
        probability: mean over the draws, (B, classes).

    Returns:
        int64 (B,).
    """
    leading = votes == votes.max(1, keepdim=True).values
    return probability.masked_fill(~leading, -1).argmax(1)


def _votes(
    model: nn.Module, x: Tensor, ids: Tensor, n: int, seed: int, labels: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The vote's classes (B,), how many images each draw got wrong (n,) if labels are given, and votes (B, classes)."""
    singles = torch.zeros(n, dtype=torch.int64, device=x.device)
    votes = probability = torch.zeros(0)
    for number in range(n):
        with torch.inference_mode(), draws(model, images=ids, seed=seed, draw=number, stream="vote"):
            logits = model(x)
        chosen = logits.argmax(1)
        if number == 0:
            votes = torch.zeros(logits.shape, dtype=torch.int64, device=x.device)
            probability = torch.zeros(logits.shape, dtype=torch.float64, device=x.device)
        votes.scatter_add_(1, chosen[:, None], torch.ones_like(chosen)[:, None])
        probability += logits.softmax(1) / n
        if labels is not None:
            singles[number] = (chosen != labels).sum()
    return majority(votes, probability), singles, votes


def _check_number(n: int) -> None:
    if n < 1:
        raise ValueError(f"n: got {n}, allowed are whole numbers from 1")
