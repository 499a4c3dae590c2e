"""What records of an evaluation say: accuracies over the images that count and over all, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rapa_cli.attacks.intervals import Bootstrap, accuracies, accuracy, gap_closed, gap_interval
from rapa_cli.attacks.records import Level, Origin, Records
from rapa_cli.attacks.snr import Outcome
from rapa_cli.attacks.threat import Threat, parse_threat
from rapa_cli.shown import Shown

Interval = tuple[float, float]


@dataclass(frozen=True, repr=False)
class Judged(Shown):
    """What judging draws say of the adversarial images; accuracies in percent.

    Of accuracies without a further word only those images count that are right without noise in the same draw, or by
    the same vote, or in all of the same draws.

    Attributes:
        draws: how many draws judge that the attacker does not know; mean and `always` are of these.
        known: how many draws of the vote the attacker knows: all for vote-aware, else none.
        accuracy: mean over the draws; NaN where there are none.
        ci95: its interval over resampled images.
        accuracy_all: likewise over all images.
        ci95_all: its interval.
        vote: of the majority.
        vote_ci95: its interval.
        vote_all: likewise over all images.
        always: of images right in all draws.
        always_ci95: its interval.
        always_all: likewise over all images.
        believed: what the attack itself sees of its images, mean over the draws it has; of vote-aware, whose draws
            answer as one, by their mean softmax. NaN for noise, which sees none.
        believed_all: likewise over all images.
    """

    shown: ClassVar = ("draws", "accuracy", "ci95", "vote", "vote_ci95", "always", "believed")

    draws: int
    known: int
    accuracy: float
    ci95: Interval
    accuracy_all: float
    ci95_all: Interval
    vote: float
    vote_ci95: Interval
    vote_all: float
    always: float
    always_ci95: Interval
    always_all: float
    believed: float
    believed_all: float


@dataclass(frozen=True)
class Gap:
    """How much of the baseline's errors is gone: 1 - (100 - a) / (100 - a_baseline), with its paired interval."""

    closed: float
    ci95: Interval


@dataclass(frozen=True, repr=False)
class Point(Shown):
    """The result at one level; accuracies in percent, sums and means over the scoring draws.

    Attributes:
        level: what was asked for.
        eps: the strength, where an SNR was asked for its mean over the counted images.
        snr_db: mean of the signal-to-noise ratio that came about after cutting to [0, 1], over the counted images that
            were changed, those without signal apart, since they have no ratio; infinite where none was changed.
        correct: counted images that are still right, a sum over the draws.
        counted: images that are right without noise, under the draw that scores; a sum over the draws.
        accuracy: over the counted images of each draw, then the mean over the draws; NaN where none counts.
        ci95: its 95 % interval: Wilson's for one draw, else over resampled images.
        accuracy_all: over all images.
        ci95_all: its interval.
        accuracies: that over the counted images, of each draw.
        judged: what judging draws say; None without such that the attacker does not know.
        gap: against the baseline, where there is one.
        missed: how many images could not meet an exact ratio, by reason; empty where none was asked for.
        right: whether each image is right in each draw under attack, bool (N, S).
        right_clean: likewise without noise.
        ratio: the signal-to-noise ratio of each image that came about, dB, float32 (N, G).
    """

    shown: ClassVar = ("eps", "snr_db", "accuracy", "ci95", "accuracy_all", "counted", "judged")

    level: Level
    eps: float
    snr_db: float
    correct: int
    counted: int
    accuracy: float
    ci95: Interval
    accuracy_all: float
    ci95_all: Interval
    accuracies: tuple[float, ...]
    judged: Judged | None = None
    gap: Gap | None = None
    missed: dict[str, int] = field(default_factory=dict)
    right: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.bool), repr=False, compare=False)
    right_clean: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.bool), repr=False, compare=False)
    ratio: Tensor = field(default_factory=lambda: torch.zeros(0, 1), repr=False, compare=False)


@dataclass(frozen=True)
class Result:
    """One network under one attack.

    Attributes:
        number: of the result in the records.
        network: number of the network in the records.
        origin: its checkpoint.
        method: name.
        threat: as it is written.
        norm: Linf or L2.
        images: how many were attacked.
        accuracy_clean: percent of all images right without noise, mean over the scoring draws.
        points: one for each level.
    """

    number: int
    network: int
    origin: Origin
    method: str
    threat: str
    norm: str
    images: int
    accuracy_clean: float
    points: list[Point]

    @property
    def attack(self) -> str:
        """The attack in words."""
        return attack_name(self.method, self.threat)


def attack_name(method: str, threat: str) -> str:
    """A method under a threat in words; the method `noise` knows no other threat."""
    return method if method == "noise" else f"{method}, {threat}"


def results(records: Records, attacks: Sequence[tuple[str, str, str]]) -> list[Result]:
    """What complete records say: a result for each network and attack, network by network.

    Args:
        records: all parts of them done.
        attacks: name, threat and norm of each attack, in their order.
    """
    settings = records.settings
    bootstrap = Bootstrap(settings.images, settings.seed)
    baseline = next((number for number, origin in enumerate(settings.networks) if origin.baseline), None)
    found = []
    for number, origin in enumerate(settings.networks):
        clean = records.tensors[f"networks/{number}/clean"] == records.tensors["label"][:, None]
        for place, (method, threat, norm) in enumerate(attacks):
            result = number * len(attacks) + place
            against = None if baseline in (None, number) else (baseline * len(attacks) + place, baseline)
            points = [
                _point(records, result, number, level, parse_threat(threat), bootstrap, against)
                for level in range(len(settings.levels))
            ]
            share = 100 * float(clean.double().mean())
            found.append(Result(result, number, origin, method, threat, norm, settings.images, share, points))
    return found


def _point(
    records: Records,
    result: int,
    network: int,
    level: int,
    threat: Threat,
    bootstrap: Bootstrap,
    against: tuple[int, int] | None,
) -> Point:
    """What one level of a result says, against another result and its network, where there is one."""
    asked = records.settings.levels[level]
    own = f"results/{result}/{level}"
    right, counted = _right(records, result, network, level)
    everyone = torch.ones_like(counted)
    alike = _like(counted, records.tensors[f"{own}/eps"].shape[1])
    eps = asked.eps if asked.eps is not None else _mean(records.tensors[f"{own}/eps"][alike])
    ratios = records.tensors[f"{own}/snr_db"]
    finite = ratios[alike & ratios.isfinite()]
    unchanged = math.inf if counted.any() else math.nan
    gap = None
    if against is not None:
        others, theirs = _right(records, *against, level)
        closed = gap_closed(accuracy(right, counted), accuracy(others, theirs))
        resampled = bootstrap.accuracies(right, counted), bootstrap.accuracies(others, theirs)
        gap = Gap(closed, gap_interval(*resampled))
    return Point(
        asked,
        eps,
        _mean(finite) if len(finite) else unchanged,
        int((right & counted).sum()),
        int(counted.sum()),
        accuracy(right, counted),
        bootstrap.interval(right, counted),
        accuracy(right, everyone),
        bootstrap.interval(right, everyone),
        tuple(accuracies(right, counted)),
        _judged(records, own, network, threat, bootstrap),
        gap,
        _missed(records, own),
        right,
        counted,
        ratios,
    )


def _right(records: Records, result: int, network: int, level: int) -> tuple[Tensor, Tensor]:
    """Whether images are right under attack and without noise, both bool (N, S)."""
    labels = records.tensors["label"][:, None]
    clean = records.tensors[f"networks/{network}/clean"]
    return records.tensors[f"results/{result}/{level}/predicted"] == labels, clean == labels


def _judged(records: Records, own: str, network: int, threat: Threat, bootstrap: Bootstrap) -> Judged | None:
    settings = records.settings
    if settings.judge_draws <= threat.known:
        return None
    labels = records.tensors["label"]
    right = records.tensors[f"{own}/judged"][..., threat.known :] == labels[:, None, None]
    _, groups, draws = right.shape
    clean = records.tensors[f"networks/{network}/judged"][:, threat.known :] == labels[:, None]
    right_draws, clean_draws = right.flatten(1), clean.repeat(1, groups)
    vote = records.tensors[f"{own}/vote"] == labels[:, None]
    vote_clean = (records.tensors[f"networks/{network}/vote"] == labels)[:, None].expand_as(vote)
    always, always_clean = right.all(2), clean.all(1, keepdim=True).expand(-1, groups)
    every_draw, every_vote = torch.ones_like(right_draws), torch.ones_like(vote)
    believed = believed_all = math.nan
    if f"{own}/believed" in records.tensors:
        seen, seen_clean = (
            (records.tensors[f"{own}/{name}"] == labels[:, None, None]).flatten(1)
            for name in ("believed", "believed_clean")
        )
        believed, believed_all = accuracy(seen, seen_clean), accuracy(seen, torch.ones_like(seen))
    return Judged(
        draws,
        min(threat.known, settings.votes),
        accuracy(right_draws, clean_draws),
        bootstrap.interval(right_draws, clean_draws),
        accuracy(right_draws, every_draw),
        bootstrap.interval(right_draws, every_draw),
        accuracy(vote, vote_clean),
        bootstrap.interval(vote, vote_clean),
        accuracy(vote, every_vote),
        accuracy(always, always_clean),
        bootstrap.interval(always, always_clean),
        accuracy(always, torch.ones_like(always)),
        believed,
        believed_all,
    )


def _missed(records: Records, own: str) -> dict[str, int]:
    outcome = records.tensors.get(f"{own}/outcome")
    if outcome is None:
        return {}
    return {kind.name.lower(): int((outcome == kind).any(1).sum()) for kind in Outcome if kind != Outcome.MET}


def _like(counted: Tensor, groups: int) -> Tensor:
    """Which of the attacks (N, G) on an image count: those of the draws in which it does."""
    return counted if groups == counted.shape[1] else counted.any(1, keepdim=True)


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else math.nan
