"""Judging adversarial images: what the network says of them on draws that no attacker has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rapa_cli.analysis.voting import majority
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.threat import judging_draw


@dataclass(frozen=True)
class Judgement:
    """What a network says of images on J fresh draws.

    Attributes:
        predictions: classes, int64 (B, J).
        probability: mean over the draws of the softmax, float64 (B, classes).
        labels: int64 (B,).
    """

    predictions: Tensor
    probability: Tensor
    labels: Tensor

    @property
    def correct(self) -> Tensor:
        """Which draws are right, bool (B, J)."""
        return self.predictions == self.labels[:, None]

    @property
    def share(self) -> Tensor:
        """The share of the draws that are right, float64 (B,); its mean over images is the accuracy of one draw."""
        return self.correct.to(torch.float64).mean(1)

    @property
    def vote(self) -> Tensor:
        """The class that most draws say, int64 (B,); ties go to the highest mean probability."""
        votes = torch.nn.functional.one_hot(self.predictions, self.probability.shape[1]).sum(1)
        return majority(votes, self.probability)

    @property
    def vote_correct(self) -> Tensor:
        """Where the vote is right, bool (B,)."""
        return self.vote == self.labels

    @property
    def always_correct(self) -> Tensor:
        """Where all draws are right, bool (B,): what an attacker leaves who may try as often."""
        return self.correct.all(1)


def judge(oracle: Oracle, x: Tensor, labels: Tensor, ids: Tensor, draws: int) -> Judgement:
    """Classifies images on fresh draws, with the noise of the arrays.

    A vote-aware attacker of N draws has seen the first N of them, as it must have.

    Args:
        oracle: of the attacked network.
        x: images (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        ids: image ids, int64 (B,).
        draws: how many, J, at least 1.

    Raises:
        ValueError: less than 1 draw.
    """
    if draws < 1:
        raise ValueError(f"draws: got {draws}, allowed are whole numbers from 1")
    each = [oracle.logits(x, ids, judging_draw(number)) for number in range(draws)]
    probability = torch.stack([logits.to(torch.float64).softmax(1) for logits in each]).mean(0)
    return Judgement(torch.stack([logits.argmax(1) for logits in each], 1), probability, labels)


def joined(parts: Sequence[Judgement]) -> Judgement:
    """The judgements of several batches as one."""
    return Judgement(
        torch.cat([part.predictions for part in parts]),
        torch.cat([part.probability for part in parts]),
        torch.cat([part.labels for part in parts]),
    )
