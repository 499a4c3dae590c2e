"""Votes over random assignments (paper, section 4): each draw votes for a class, or gives its probabilities.

Draws are streamed: what is kept of an image is a count and a sum for each class, whatever the number of draws.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rapa_cli.analysis.calibration import Outcomes, outcomes
from rapa_cli.analysis.evaluation import batches, check_images, check_labels, evaluating, wilson
from rapa_cli.data.augmentation import pixels
from rapa_cli.data.stream import Images
from rapa_cli.keyed import draws
from rapa_cli.shown import Shown


@dataclass(frozen=True)
class Point:
    """The error of votes of the first n draws; intervals are Wilson's of 95 %, over images.

    Attributes:
        n: how many draws vote.
        single_error: of the last of them alone, percent.
        vote_error: of their majority, percent.
        ci95: its interval, percent.
        soft_error: of their mean probabilities, percent.
        soft_ci95: its interval, percent.
    """

    n: int
    single_error: float
    vote_error: float
    ci95: tuple[float, float]
    soft_error: float
    soft_ci95: tuple[float, float]


@dataclass(frozen=True, repr=False)
class VoteResult(Shown):
    """The errors of single draws and of their votes.

    Attributes:
        images: how many were classified.
        single_wrong: wrong images of each draw.
        votes_wrong: wrong images of the majority of the first 1, 2, ... n draws.
        softs_wrong: likewise of the class with the highest mean probability.
        gain_squares: sum over the images of (wrong draws - draws, if the vote is wrong)^2.
        ties: images of which several classes got most votes of all n draws.
        single: outcomes of all single draws; their confidence is the probability of the chosen class.
        vote: outcomes of the majority of all; its confidence is the share of the draws that chose the class.
        soft: outcomes of the highest mean probability, which is the confidence.
    """

    shown: ClassVar = ("single_error", "vote_error", "soft_error", "vote_ci95", "gain", "gain_se", "ties", "images")

    images: int
    single_wrong: tuple[int, ...]
    votes_wrong: tuple[int, ...]
    softs_wrong: tuple[int, ...]
    gain_squares: int
    ties: int
    single: Outcomes
    vote: Outcomes
    soft: Outcomes

    @property
    def single_error(self) -> float:
        """Mean error of a single draw, percent."""
        return 100 * sum(self.single_wrong) / len(self.single_wrong) / self.images

    @property
    def single_sd(self) -> float:
        """Standard deviation of the errors of single draws, points; NaN for one draw."""
        n, total = len(self.single_wrong), sum(self.single_wrong)
        if n == 1:
            return math.nan
        # In whole numbers until the root, so that equal draws have none.
        squares = n * sum(wrong * wrong for wrong in self.single_wrong) - total * total
        return 100 * math.sqrt(squares / n / (n - 1)) / self.images

    @property
    def vote_wrong(self) -> int:
        """Wrong images of the majority of all draws."""
        return self.votes_wrong[-1]

    @property
    def vote_error(self) -> float:
        """Error of the majority, percent."""
        return 100 * self.vote_wrong / self.images

    @property
    def soft_error(self) -> float:
        """Error of the highest mean probability, percent."""
        return 100 * self.softs_wrong[-1] / self.images

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

    @property
    def soft_ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the soft vote's error, percent."""
        return wilson(self.softs_wrong[-1], self.images)

    @property
    def curve(self) -> list[Point]:
        """The error against the number of draws: the first of n, the first two, ... all, as `vote` would have them."""
        return [
            Point(
                n,
                100 * single / self.images,
                100 * vote / self.images,
                wilson(vote, self.images),
                100 * soft / self.images,
                wilson(soft, self.images),
            )
            for n, (single, vote, soft) in enumerate(
                zip(self.single_wrong, self.votes_wrong, self.softs_wrong, strict=True), 1
            )
        ]


def vote(model: nn.Module, images: Tensor, n: int, seed: int = 0) -> Tensor:
    """Classifies images by the majority of n draws; ties go to the highest mean probability.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        images: (B, C, H, W), uint8 or floats in [0, 1]; their ids are their places in the batch.
        n: number of draws, at least 1, odd or even.
        seed: of the draws.

    Returns:
        Classes, int64 (B,).

    Raises:
        ConfigError: images are something else.
        ValueError: n is less than 1.
    """
    _check_number(n)
    check_images(images)
    device = next(model.parameters(), images).device
    # Those in double precision are for a network that is so too.
    x = images.to(device) if images.dtype == torch.float64 else pixels(images, device)
    ids = torch.arange(len(images), device=device)
    with evaluating(model):
        (ballots,) = deque(_polled(model, x, ids, n, seed), maxlen=1)
    return ballots.majority()


def vote_error(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    n: int,
    *,
    seed: int = 0,
    batch_size: int = 200,
    on_batch: Callable[[int], None] | None = None,
    on_draw: Callable[[int], None] | None = None,
) -> VoteResult:
    """The errors of n single draws and of their votes, in one pass over the images.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        images: (N, C, H, W), uint8 or floats in [0, 1]; their ids are their places in the split.
        labels: whole numbers (N,).
        n: number of draws, at least 1. Three whole numbers are kept for each.
        seed: of the draws.
        batch_size: changes the result in the last bits only.
        on_batch: called with the number of images after each batch.
        on_draw: called with the number of images of the batch after each draw.

    Raises:
        ConfigError: images or labels are something else.
        ValueError: n is less than 1, or there are no images.
    """
    _check_number(n)
    if not len(images):
        raise ValueError("images: got none")
    device = next(model.parameters()).device
    single_wrong, votes_wrong, softs_wrong = torch.zeros(3, n, dtype=torch.int64, device=device)
    gain_squares, ties = torch.zeros(2, dtype=torch.int64, device=device)
    found: tuple[Outcomes, ...] | None = None
    with evaluating(model):
        for ids, x, y in batches(images, labels, batch_size, device):
            wrong_draws = torch.zeros_like(y)
            single: Outcomes | None = None
            for number, ballots in enumerate(_polled(model, x, ids, n, seed)):
                classes = ballots.votes.shape[1]
                if not number:
                    check_labels(y, len(y), classes)
                majority_, soft = ballots.majority(), ballots.probability.argmax(1)
                wrong_draws += ballots.last != y
                single_wrong[number] += (ballots.last != y).sum()
                votes_wrong[number] += (majority_ != y).sum()
                softs_wrong[number] += (soft != y).sum()
                outcome = outcomes(y, ballots.last, ballots.confidence, classes)
                single = outcome if single is None else single + outcome
                if on_draw:
                    on_draw(len(x))
            assert single is not None
            share = ballots.votes.gather(1, majority_[:, None])[:, 0].to(torch.float64) / n
            mean = ballots.probability.gather(1, soft[:, None])[:, 0] / n
            own = (single, outcomes(y, majority_, share, classes), outcomes(y, soft, mean, classes))
            found = own if found is None else tuple(map(Outcomes.__add__, found, own))
            gain_squares += (wrong_draws - n * (majority_ != y)).square().sum()
            ties += ballots.tied().sum()
            if on_batch:
                on_batch(len(x))
    assert found is not None
    return VoteResult(
        len(images),
        tuple(single_wrong.tolist()),
        tuple(votes_wrong.tolist()),
        tuple(softs_wrong.tolist()),
        int(gain_squares),
        int(ties),
        *found,
    )


def majority(votes: Tensor, probability: Tensor) -> Tensor:
    """The class with most votes; among equals the one with the highest mean probability.

    Args:
        votes: how many draws chose each class, int64 (B, classes).
        probability: mean or sum over the draws, (B, classes).

    Returns:
        int64 (B,).
    """
    leading = votes == votes.max(1, keepdim=True).values
    return probability.masked_fill(~leading, -1).argmax(1)


@dataclass
class _Ballots:
    """What the draws so far have said of a batch.

    Attributes:
        votes: how many chose each class, int64 (B, classes).
        probability: sum of their probabilities, float64 (B, classes).
        last: what the last of them chose, int64 (B,).
        confidence: its probability of that class, float64 (B,).
    """

    votes: Tensor
    probability: Tensor
    last: Tensor
    confidence: Tensor

    def majority(self) -> Tensor:
        return majority(self.votes, self.probability)

    def tied(self) -> Tensor:
        """Where several classes have most votes, bool (B,)."""
        return (self.votes == self.votes.max(1, keepdim=True).values).sum(1) > 1


def _polled(model: nn.Module, x: Tensor, ids: Tensor, n: int, seed: int) -> Iterator[_Ballots]:
    """The ballots of a batch after the first draw, the second, ... the last of n; they are the same object."""
    ballots: _Ballots | None = None
    for number in range(n):
        with torch.inference_mode(), draws(model, images=ids, seed=seed, draw=number, stream="vote"):
            logits = model(x)
        # In float64 the sum over draws is exact enough that only true ties are ties.
        probability = logits.to(torch.float64).softmax(1)
        chosen = logits.argmax(1)
        if ballots is None:
            votes = torch.zeros_like(probability, dtype=torch.int64)
            ballots = _Ballots(votes, torch.zeros_like(probability), chosen, probability[:, 0])
        ballots.last = chosen
        ballots.confidence = probability.gather(1, chosen[:, None])[:, 0]
        ballots.votes.scatter_add_(1, chosen[:, None], torch.ones_like(chosen)[:, None])
        ballots.probability += probability
        yield ballots


def _check_number(n: int) -> None:
    if n < 1:
        raise ValueError(f"n: got {n}, allowed are whole numbers from 1")
