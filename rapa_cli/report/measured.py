"""What a report measures of a network, and RUN/measured.json, where that is kept.

Nothing is measured twice: what was found is found again by the checkpoint's SHA-256 and everything that decides the
result. The figures are those of `rapa evaluate`, `rapa vote`, `rapa reduce` and `rapa attack --snr`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from rapa_cli import __version__, config
from rapa_cli.analysis.evaluation import evaluate, wilson
from rapa_cli.analysis.reduction import reduce
from rapa_cli.analysis.voting import vote_error
from rapa_cli.attacks import batching, records
from rapa_cli.attacks.evaluation import attack, attacks_named, attacks_of
from rapa_cli.attacks.levels import SNR
from rapa_cli.attacks.results import Point, results
from rapa_cli.data.stream import Images
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.files import read_text, write_text
from rapa_cli.philox import MAX_SEED
from rapa_cli.tiling.arrays import ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d

FILE = "measured.json"
VOTES = 5
# What an attack on one image costs, in passes of it forward through the network: once without noise, about three times
# for the gradient, and once for each level.
_ATTACK_COST = 4 + len(SNR)

Interval = tuple[float, float]


class Errors(config.Frozen):
    """How many of the images were classified wrongly."""

    wrong: NonNegativeInt
    images: PositiveInt

    @property
    def error(self) -> float:
        """Percent."""
        return 100 * self.wrong / self.images

    @property
    def ci95(self) -> Interval:
        """Wilson's 95 % interval, percent."""
        return wilson(self.wrong, self.images)


class AttackPoint(config.Frozen):
    """Accuracy at one strength; None where there is no number.

    Attributes:
        eps: on the [0, 1] scale, mean over the counted images.
        snr_db: that came about, mean over the counted images, dB.
        asked_db: that was asked for, dB, where it was.
        accuracy: percent of the images that are right without noise.
        ci95: its interval.
        accuracy_all: percent of all images.
        ci95_all: its interval.
    """

    eps: float | None
    snr_db: float | None
    asked_db: float | None
    accuracy: float | None
    ci95: Interval
    accuracy_all: float
    ci95_all: Interval


class AttackCurve(config.Frozen):
    """One network under one attack.

    Attributes:
        data: name of the data set.
        images: how many were attacked.
        counted: how many of them are right without noise, a sum over the draws that score.
        draws: that score.
        seed: of all draws.
        space: raw or standardized: the pixels that ratios are of.
        noise: whether arrays were read with noise.
        method: name.
        threat: as it is written.
        points: in the order they were asked for.
    """

    data: str
    images: PositiveInt
    counted: NonNegativeInt
    draws: PositiveInt = 1
    seed: NonNegativeInt = 0
    space: str = "raw"
    noise: bool = True
    method: str = "fgsm"
    threat: str = "fresh-draw"
    points: tuple[AttackPoint, ...]

    @property
    def name(self) -> str:
        """The attack in words."""
        return self.method if self.threat == "noise" else f"{self.method}, {self.threat}"


class Settings(config.Frozen):
    """Everything that decides what is found.

    Attributes:
        checkpoint: SHA-256 of its file.
        data: name of the data set.
        data_sha256: of its images and labels that are used; None where they are not at hand.
        images: the first so many of the test images, 0 for all.
        seed: of every draw.
        votes: draws that vote.
        snr: levels of the attack, dB.
        rapa: version of this program.
    """

    checkpoint: str
    data: str
    data_sha256: str | None = None
    images: NonNegativeInt
    seed: int = Field(0, ge=0, le=MAX_SEED)
    votes: PositiveInt = VOTES
    snr: tuple[float, ...] = SNR
    rapa: str = __version__


class Measured(config.Frozen):
    """What was found of one checkpoint.

    Attributes:
        settings: under which.
        device: cpu, cuda or mps.
        single: one draw.
        votes: the majority of several; None where all draws are the same.
        reduced: the network with one kernel matrix for each layer; None where it has no more than that.
        attack: FGSM, a gradient on one draw, the score on another; None where other attacks took its place.
    """

    settings: Settings
    device: str
    single: Errors
    votes: Errors | None
    reduced: Errors | None
    attack: AttackCurve | None


class _Kept(config.Frozen):
    format: Literal[1] = 1
    measured: tuple[Measured, ...] = ()


def measure(
    network: nn.Module,
    images: Images,
    labels: Tensor,
    settings: Settings,
    *,
    attacked: bool = True,
    on_part: Callable[[str], None] = lambda _: None,
    on_cost: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Measures a network on images.

    Args:
        network: takes (B, C, H, W) in [0, 1].
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        settings: as they are kept.
        attacked: whether under attack too.
        on_part: called with what is about to be done, in words.
        on_cost: called as it goes on with passes of one image forward through the network; `cost` is their sum.
    """
    seed, count = settings.seed, len(images)

    def errors(model: nn.Module) -> Errors:
        return Errors(wrong=evaluate(model, images, labels, seed=seed, on_batch=on_cost).wrong, images=count)

    on_part("one draw")
    single, votes, reduced = errors(network), None, None
    if draws_differ(network):
        on_part(f"vote of {settings.votes}")
        found = vote_error(
            network, images, labels, settings.votes, seed=seed, on_batch=lambda n: on_cost(n * settings.votes)
        )
        votes = Errors(wrong=found.vote_wrong, images=count)
    if can_be_reduced(network):
        on_part("reduced")
        reduced = errors(reduce(network))
    curve = None
    if attacked:
        on_part("under attack")
        points = attack(
            network,
            images,
            labels,
            [records.Level(snr_db=value) for value in settings.snr],
            seed=seed,
            batch_size=batching.batch_size(network, tuple(images.shape[1:])),
            on_batch=lambda n: on_cost(n * _ATTACK_COST),
        )
        curve = AttackCurve(
            data=settings.data, images=count, counted=points[0].counted, seed=seed, points=tuple(map(_point, points))
        )
    return Measured(
        settings=settings,
        device=next(network.parameters()).device.type,
        single=single,
        votes=votes,
        reduced=reduced,
        attack=curve,
    )


def cost(network: nn.Module, images: int, settings: Settings, *, attacked: bool = True) -> int:
    """What `measure` costs, in passes of one image forward through the network."""
    votes = settings.votes if draws_differ(network) else 0
    return images * (1 + votes + can_be_reduced(network) + (_ATTACK_COST if attacked else 0))


def draws_differ(network: nn.Module) -> bool:
    """Whether a network makes random choices in test: fresh assignments, or arrays with noise."""
    return any(
        (isinstance(layer, TiledConv2d) and layer.random_in_test)
        or (isinstance(layer, ArrayLayer) and layer.arrays is not None)
        for layer in network.modules()
    )


def can_be_reduced(network: nn.Module) -> bool:
    """Whether a reduction is another network: some layer has several matrices, or lies on arrays that are not ideal."""
    return any(
        isinstance(layer, ArrayLayer)
        and (layer.arrays is not None or (isinstance(layer, TiledConv2d) and len(layer.weight) > 1))
        for layer in network.modules()
    )


def find(folder: Path, settings: Settings) -> Measured | None:
    """What is kept in a run folder of these settings; without a digest of the data, of any data of that name."""
    for found in reversed(_kept(folder)):
        same = found.settings if settings.data_sha256 else found.settings.model_copy(update={"data_sha256": None})
        if same == settings:
            return found
    return None


def keep(folder: Path, found: Measured) -> None:
    """Writes what was found into a run folder, beside what was found before.

    Raises:
        FileError: it cannot be written.
    """
    others = [entry for entry in _kept(folder) if entry.settings != found.settings]
    document = _Kept(measured=(*others, found)).model_dump(mode="json")
    write_text(folder / FILE, json.dumps(document, indent=2) + "\n")


def recorded(folder: Path) -> dict[str, list[AttackCurve]]:
    """Curves from the records of `rapa attack --out`, by the SHA-256 of the checkpoint.

    Raises:
        FileError: there are none, they are damaged, or the attack has not come to its end.
    """
    found = records.read(folder)
    settings = found.settings
    try:
        attacks = attacks_named(attacks_of(settings.methods, settings.threats))
    except ConfigError as error:
        raise FileError(f"{folder}: {error.message}", hint="was it written by another version?") from None
    parts = [f"networks/{number}" for number in range(len(settings.networks))]
    parts += [
        f"results/{result}/{level}"
        for result in range(len(settings.networks) * len(attacks))
        for level in range(len(settings.levels))
    ]
    if any(found.done(part) < settings.images for part in parts):
        hint = f"go on with it: rapa attack --resume {folder}"
        raise FileError(f"the attack in {folder} has not come to its end", hint=hint)
    curves: dict[str, list[AttackCurve]] = {}
    for result in results(found, attacks):
        curves.setdefault(result.origin.sha256, []).append(
            AttackCurve(
                data=settings.data,
                images=result.images,
                counted=result.points[0].counted,
                draws=settings.draws,
                seed=settings.seed,
                space=settings.snr_space,
                noise=settings.noise,
                method=result.method,
                threat=result.threat,
                points=tuple(map(_point, result.points)),
            )
        )
    return curves


def _point(point: Point) -> AttackPoint:
    return AttackPoint(
        eps=_finite(point.eps),
        snr_db=_finite(point.snr_db),
        asked_db=point.level.snr_db,
        accuracy=_finite(point.accuracy),
        ci95=point.ci95,
        accuracy_all=point.accuracy_all,
        ci95_all=point.ci95_all,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _kept(folder: Path) -> Sequence[Measured]:
    """What a run folder keeps; what cannot be read can be measured again."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        document = json.loads(read_text(folder / FILE))
        return config.validate(_Kept, document, FILE).measured
    return ()
