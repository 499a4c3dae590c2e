"""Threats: what an attacker knows of the draws of a randomised network."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from rapa_cli.attacks.oracle import Loss, Oracle
from rapa_cli.errors import ConfigError, suggestion
from rapa_cli.philox import Purpose, Stream, words

# What a threat's number is when none is given; threats that are not here have none.
_COUNTS = {"eot": 16, "vote-aware": 16}
THREATS = ("same-draw", "fresh-draw", "eot", "vote-aware", "transfer", "noise")
_MOST_DRAWS = 4096

# The stream "attack": 0 and those from 2^20 are the attacker's, 1 to 2^20 score, those from 2^24 judge.
_OWN, _JUDGING = 2**20, 2**24


def attackers_draw(number: int) -> int:
    """The number on the stream "attack" of the attacker's own draw `number`, counted from 0."""
    return 0 if number == 0 else _OWN + 1 + (number - 1) % (_JUDGING - _OWN - 1)


def scoring_draw(number: int) -> int:
    """The number on the stream "attack" of the scoring draw `number`, from 0 to 2^20 - 1."""
    return 1 + number


def judging_draw(number: int) -> int:
    """The number on the stream "attack" of the judging draw `number`, counted from 0."""
    return _JUDGING + number


@dataclass(frozen=True)
class Threat:
    """What an attacker knows of a network's draws.

    - same-draw: the draw that scores.
    - fresh-draw: only that there are draws; it takes one of its own, at each step of a method another.
    - eot: likewise with `count` draws, over which it averages the loss (Athalye et al. 2018).
    - vote-aware: the `count` draws of the vote that judges; it raises the loss of their mean softmax.
    - transfer: another network, which the caller gives in the place of the attacked one, under fresh draws.
    - noise: nothing; every gradient is random signs, the control.

    Attributes:
        name: one of these.
        count: number of draws for each gradient.
    """

    name: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.name} {self.count}" if self.name in _COUNTS else self.name

    @property
    def loss(self) -> Loss:
        """What the attacker raises."""
        return Loss.VOTE if self.name == "vote-aware" else Loss.CROSS_ENTROPY

    @property
    def known(self) -> int:
        """How many of the judging draws, the first ones, the attacker knows."""
        return self.count if self.name == "vote-aware" else 0

    def draws(self, scoring: int = 0, step: int = 0) -> tuple[int, ...]:
        """The attacker's draws on the stream "attack".

        Args:
            scoring: the number of the scoring draw, counted from 0; only same-draw looks at it.
            step: of a method that takes new draws at each step. An attacker who stays with one draw fits its images to
                that draw, and makes a randomised network look better than it is.
        """
        match self.name:
            case "same-draw":
                return (scoring_draw(scoring),)
            case "vote-aware":
                return tuple(judging_draw(number) for number in range(self.count))
            case "noise":
                return ()
        return tuple(attackers_draw(step * self.count + number) for number in range(self.count))


def parse_threat(text: str) -> Threat:
    """The threat that a text names: `fresh-draw`, `eot 16`, `eot:16`, `eot16`; eot and vote-aware have 16 by default.

    Raises:
        ConfigError: no such threat, or a number that it cannot have.
    """
    found = re.fullmatch(r"\s*([a-z-]*[a-z])[\s:=]*(\d+)?\s*", text.lower())
    name = found[1] if found else text.strip()
    if name not in THREATS:
        raise ConfigError(f"threat: there is no '{name}'", hint=suggestion(name, THREATS))
    assert found
    if name not in _COUNTS:
        if found[2] is not None:
            raise ConfigError(
                f"threat: got '{text.strip()}', but {name} has no number of draws",
                hint=f"write {name}; eot and vote-aware have one, as in eot 16",
            )
        return Threat(name)
    count = _COUNTS[name] if found[2] is None else int(found[2])
    if not 1 <= count <= _MOST_DRAWS:
        raise ConfigError(
            f"threat: got {count} draws for {name}, allowed are 1 to {_MOST_DRAWS}", hint=f"for example {name} 16"
        )
    return Threat(name, count)


class View:
    """What one attacker sees: an oracle under the draws of a threat.

    Args:
        oracle: of the attacked network; for a transfer of the network that the images are made on.
        threat: what is known of the draws.
        scoring: the number of the scoring draw, for same-draw.
    """

    def __init__(self, oracle: Oracle, threat: Threat, scoring: int = 0) -> None:
        self.oracle, self.threat, self.scoring = oracle, threat, scoring

    def gradient(
        self, x: Tensor, labels: Tensor, ids: Tensor, step: int = 0, loss: Loss | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss (B,) and its gradient (B, C, H, W) over the threat's draws; under `noise` 0 and random signs.

        Args:
            x: images (B, C, H, W) in [0, 1].
            labels: int64 (B,).
            ids: image ids, int64 (B,).
            step: of the method; fresh-draw, eot and transfer take new draws at each.
            loss: in place of the threat's.
        """
        if self.threat.name == "noise":
            return x.new_zeros(len(x)), self.signs(x, ids)
        draws = self.threat.draws(self.scoring, step)
        return self.oracle.gradient(x, labels, ids, draws, loss=loss or self.threat.loss)

    def loss(self, x: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The loss of each image over the threat's draws at step 0, (B,), without a gradient.

        Raises:
            ConfigError: the threat is `noise`, which sees nothing.
        """
        return self.oracle.loss(x, labels, ids, self.seen(), loss=self.threat.loss)

    def logits(self, x: Tensor, ids: Tensor) -> Tensor:
        """The logits of the threat's draws at step 0 as one, (B, classes), without noise and without a graph.

        They are the mean over the draws, for vote-aware the logarithm of their mean softmax.

        Raises:
            ConfigError: the threat is `noise`, which sees nothing.
        """
        return self.one_of([self.oracle.logits(x, ids, draw, noise=False) for draw in self.seen()])

    def one_of(self, logits: list[Tensor]) -> Tensor:
        """One answer (B, classes) for those of several draws."""
        if len(logits) == 1:
            return logits[0]
        each = torch.stack(logits)
        if self.threat.loss is Loss.VOTE:
            return each.log_softmax(2).logsumexp(0) - math.log(len(each))
        return each.mean(0)

    def wrong(self, x: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The share of `classes` that are wrong, (B,): an attack's own success.

        Raises:
            ConfigError: the threat is `noise`, which sees nothing.
        """
        return (self.classes(x, ids) != labels[:, None]).to(x.dtype).mean(1)

    def classes(self, x: Tensor, ids: Tensor) -> Tensor:
        """The classes in each of the threat's draws at step 0, int64 (B, K), without noise.

        Of vote-aware it is one, that of the mean softmax.

        Raises:
            ConfigError: the threat is `noise`, which sees nothing.
        """
        each = [self.oracle.logits(x, ids, draw, noise=False) for draw in self.seen()]
        if self.threat.loss is Loss.VOTE:
            each = [self.one_of(each)]
        return torch.stack([logits.argmax(1) for logits in each], 1)

    def seen(self) -> tuple[int, ...]:
        """The threat's draws at step 0, on the stream "attack".

        Raises:
            ConfigError: the threat is `noise`, which sees nothing.
        """
        draws = self.threat.draws(self.scoring)
        if not draws:
            raise ConfigError(
                "threat: an attacker under noise sees nothing of the network",
                hint="take a method that uses gradients alone, as fgsm",
            )
        return draws

    def words(self, ids: Tensor, count: int, *, part: int, step: int = 0) -> Tensor:
        """Random words of an attack itself, int64 (B, count) in [0, 2^32), of the seed and the image alone.

        Args:
            ids: image ids, int64 (B,).
            count: for each image.
            part: what of an attack they are for.
            step: of the attack.
        """
        seed = self.oracle.seed
        return words(Purpose.ATTACK, seed, images=ids, count=count, draw=step, layer=part, stream=Stream.ATTACK)

    def signs(self, x: Tensor, ids: Tensor) -> Tensor:
        """Random signs, -1 or 1, in the shape of x: what noise is, the control."""
        bits = self.words(ids, x[0].numel(), part=0) >> 31
        return (2 * bits - 1).to(x.dtype).view(x.shape)
