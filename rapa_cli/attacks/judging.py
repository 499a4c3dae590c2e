"""Judging adversarial images: what the network says of them on draws that no attacker has seen.

A vote-aware attacker of N draws knows the first N judging draws: its vote is of these, and all else that is said of its
images is of the draws behind them. There must be at least as many.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rapa_cli.analysis.voting import majority
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.threat import Threat, judging_draw
from rapa_cli.errors import ConfigError


@dataclass(frozen=True)
class Judgement:
    """What a network says of images on J fresh draws.

    Attributes:
        predictions: classes, int64 (B, J).
        probability: mean over the draws that vote of the softmax, float64 (B, classes).
        labels: int64 (B,).
        votes: how many draws vote, the first ones; all where it is None.
    """

    predictions: Tensor
    probability: Tensor
    labels: Tensor
    votes: int | None = None

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
        """The class that most voting draws say, int64 (B,); ties go to the highest mean probability."""
        votes = torch.nn.functional.one_hot(self.predictions[:, : self.votes], self.probability.shape[1]).sum(1)
        return majority(votes, self.probability)


def judge(oracle: Oracle, x: Tensor, labels: Tensor, ids: Tensor, draws: int, votes: int | None = None) -> Judgement:
    """Classifies images on the judging draws, with the noise of the arrays.

    Args:
        oracle: of the attacked network.
        x: images (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        ids: image ids, int64 (B,).
        draws: how many, J, at least 1.
        votes: how many of them vote, from 1 to J; all where it is None.

    Raises:
        ValueError: a number outside its range.
    """
    if draws < 1:
        raise ValueError(f"draws: got {draws}, allowed are whole numbers from 1")
    if votes is not None and not 1 <= votes <= draws:
        raise ValueError(f"votes: got {votes}, allowed are 1 to {draws}")
    each = [oracle.logits(x, ids, judging_draw(number)) for number in range(draws)]
    probability = torch.stack([logits.to(torch.float64).softmax(1) for logits in each[:votes]]).mean(0)
    return Judgement(torch.stack([logits.argmax(1) for logits in each], 1), probability, labels, votes)


def voting_draws(threats: Iterable[Threat], draws: int, votes: int | None = None) -> int:
    """How many of the judging draws vote: all, or with a vote-aware attacker those that it knows.

    Args:
        threats: of all attacks that are judged.
        draws: that judge, 0 where nothing is judged.
        votes: how many were asked for.

    Raises:
        ConfigError: too few draws for the votes, or to judge a vote-aware attack by draws that it does not know; or a
            vote of draws that it does not know.
    """
    if votes is not None and votes > draws:
        raise ConfigError(f"-n {votes}: only {draws} draws judge", hint=f"give --judge-draws {votes} or more")
    aware = sorted((threat for threat in threats if threat.known), key=lambda threat: threat.known)
    if not draws or not aware:
        return draws if votes is None else votes
    least, most = aware[0], aware[-1]
    if draws < 2 * most.known:
        raise ConfigError(
            f"--judge-draws {draws}: {most} knows the first {most.known} of them, and as many others must judge it",
            hint=f"give --judge-draws {2 * most.known} or more",
        )
    if votes is not None and votes > least.known:
        raise ConfigError(f"-n {votes}: {least} knows {least.known} draws, not the vote", hint="leave -n out")
    return least.known if votes is None else votes
