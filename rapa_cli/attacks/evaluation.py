"""Networks under attack: methods and threats, at many strengths, scored on some draws and judged on others.

Accuracy over the images that are right without noise is the paper's (figure 4), accuracy over all images that of Cisse
et al. (2017). An attack may believe what it likes of its images: what counts is what the network says of them on draws
that the attack has not seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from rapa_cli.analysis.evaluation import batches, check_images, check_labels, pixel_batches
from rapa_cli.analysis.reduction import reduce
from rapa_cli.attacks.fgsm import perturb
from rapa_cli.attacks.judging import judge, voting_draws
from rapa_cli.attacks.methods import Method, Square, method_named
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.records import Level, Origin, Records, Settings
from rapa_cli.attacks.results import Point, attack_name, results
from rapa_cli.attacks.snr import RAW, Space, eps_for_snr, exact_step, snr_db, space_of
from rapa_cli.attacks.threat import Threat, View, judging_draw, parse_threat, scoring_draw
from rapa_cli.attacks.torchattacks_adapter import OfTorchattacks
from rapa_cli.data.stream import Images
from rapa_cli.errors import ConfigError

__all__ = [
    "Attack",
    "Evaluation",
    "Level",
    "Point",
    "attack",
    "attacks_named",
    "attacks_of",
    "check_fit",
    "deterministic",
    "strength",
]

# Backward through a network takes about twice the time of forward.
_GRADIENT_COST = 3


@dataclass(frozen=True)
class Attack:
    """A method under a threat."""

    method: Method
    threat: Threat

    def __str__(self) -> str:
        return attack_name(self.method.name, str(self.threat))


def attacks_of(methods: Sequence[str], threats: Sequence[str]) -> list[Attack]:
    """All methods under all threats, each attack once: noise knows no threats, and EOT-PGD is EOT under any.

    Raises:
        ConfigError: a name is not known, or a method must see what a threat does not show.
    """
    known = [parse_threat(text) for text in threats]
    named = [method_named(name) for name in methods]
    found = list(dict.fromkeys(Attack(method, method.under(threat)) for method in named for threat in known))
    for one in found:
        if one.threat.name == "noise" and isinstance(one.method, (Square, OfTorchattacks)):
            raise ConfigError(
                f"--threat noise: {one.method.name} asks the network, and noise sees nothing of it",
                hint="take methods that use gradients alone, as fgsm and pgd",
            )
    return found


def check_fit(attacks: Sequence[Attack], shape: tuple[int, ...], classes: int) -> None:
    """Raises ConfigError where a method cannot attack a network with images (C, H, W) and so many classes."""
    for one in attacks:
        if isinstance(one.method, OfTorchattacks):
            one.method.check_fit(shape, classes)


def attack(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    levels: Sequence[Level | float],
    *,
    method: str = "fgsm",
    threat: str = "fresh-draw",
    draws: int = 1,
    judge_draws: int = 0,
    seed: int = 0,
    batch_size: int = 100,
    on_batch: Callable[[int], None] | None = None,
) -> list[Point]:
    """Attacks a network, by default with FGSM: the gradient is taken on one draw, the result is scored on another.

    For FGSM one gradient for each image serves all levels. On analog arrays gradients are those of the weights they
    show, without the noise of reading: an attacker who knows the arrays is not held up by it. The model is as before
    afterwards.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        images: (N, C, H, W), uint8 or floats in [0, 1]; their ids are their places in the split.
        labels: whole numbers (N,).
        levels: the strengths; a number is an eps on the [0, 1] scale.
        method: a name that `method_named` knows.
        threat: what the attacker knows of the draws, as `parse_threat` reads it.
        draws: how many draws score.
        judge_draws: how many fresh draws judge again; under vote-aware at least twice as many as it knows.
        seed: of the draws.
        batch_size: images at a time.
        on_batch: called with the number of images after each batch.

    Returns:
        A point for each level.

    Raises:
        ConfigError: no such method or threat, or too few draws to judge it; images or labels are something else.
    """
    check_images(images)
    check_labels(labels, len(images))
    threats = [one.threat for one in attacks_of([method], [threat])]
    settings = Settings(
        networks=(Origin(path="", sha256=""),),
        data="",
        data_sha256="",
        images=len(images),
        levels=tuple(level if isinstance(level, Level) else Level(eps=level) for level in levels),
        methods=(method,),
        threats=(threat,),
        draws=draws,
        judge_draws=judge_draws,
        votes=voting_draws(threats, judge_draws),
        seed=seed,
        batch_size=batch_size,
    )
    records = Records(settings, labels)
    run = Evaluation([model], images, labels, records, on_images=on_batch)
    run.attack()
    return results(records, attacks_named(run.attacks))[0].points


def attacks_named(attacks: Sequence[Attack]) -> list[tuple[str, str, str]]:
    """Name, threat and norm of each attack, as results carry them."""
    return [(attack.method.name, str(attack.threat), attack.method.norm) for attack in attacks]


class Evaluation:
    """One evaluation on its way: fills records, from where they are.

    Args:
        networks: in the order of the settings; each takes (B, C, H, W) in [0, 1].
        images: uint8 (N, C, H, W); their ids are their places in the split.
        labels: int64 (N,).
        records: what was found so far.
        source: the network that transfer attacks are made on; each network's own reduction where it is None.
        on_part: called with what is about to be done, in words.
        on_cost: called after each batch with what it cost, in passes of one image forward through a network.
        on_images: called after each batch under attack with its number of images.

    Attributes:
        attacks: methods under threats, in the order of the results of each network.
        records: as above.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        images: Images,
        labels: Tensor,
        records: Records,
        *,
        source: nn.Module | None = None,
        on_part: Callable[[str], None] | None = None,
        on_cost: Callable[[int], None] | None = None,
        on_images: Callable[[int], None] | None = None,
    ) -> None:
        settings = records.settings
        self.records, self.attacks = records, attacks_of(settings.methods, settings.threats)
        self._images, self._labels, self._settings = images, labels, settings
        self._networks = [_Target(network, settings, images) for network in networks]
        self._source = None if source is None else Oracle(source, settings.seed)
        self._on_part = on_part or (lambda _: None)
        self._on_cost = on_cost or (lambda _: None)
        self._on_images = on_images or (lambda _: None)

    @property
    def cost(self) -> int:
        """All that is still to be done, in passes of one image forward through a network."""
        images, left = self._settings.images, 0
        for number in range(len(self._networks)):
            left += (images - self.records.done(f"networks/{number}")) * self._clean_cost
            for place, attack in enumerate(self.attacks):
                result = number * len(self.attacks) + place
                for levels in self._passes(attack):
                    done = self.records.done(f"results/{result}/{levels[0]}")
                    left += (images - done) * self._attack_cost(attack, len(levels))
        return left

    def attack(self) -> None:
        """Does what is left to do; whatever ends it, what was done is in the records.

        Raises:
            ConfigError: a method cannot work on a network.
            FileError: the records cannot be written.
        """
        with self.records.kept():
            for number, target in enumerate(self._networks):
                name = f"network {number + 1} of {len(self._networks)}: " if len(self._networks) > 1 else ""
                self._on_part(f"{name}without noise")
                self._clean(number, target)
                for place, attack in enumerate(self.attacks):
                    result = number * len(self.attacks) + place
                    for levels in self._passes(attack):
                        at = "all levels" if len(levels) > 1 else f"level {levels[0] + 1}"
                        of = f" of {len(self._settings.levels)}" if len(levels) == 1 else ""
                        self._on_part(f"{name}{attack}, {at}{of}")
                        self._attack(result, levels, target, attack)

    def pictures(self, network: int, place: int, image: int) -> tuple[Tensor, list[tuple[Tensor, int, float]]]:
        """One image under an attack at all levels, as the first scoring draw meets it.

        Args:
            network: its number.
            place: that of the attack in `attacks`.
            image: its id.

        Returns:
            The clean image (C, H, W) in [0, 1], and for each level the adversarial image, the class it is seen as, and
            the signal-to-noise ratio that came about, dB.
        """
        target, attack = self._networks[network], self.attacks[place]
        # Attacks are functions of the image's id, so that alone it meets what it met in its batch, but for those of
        # torchattacks that draw for a whole batch.
        one = slice(image, image + 1)
        _, x, y = next(batches(self._images[one], self._labels[one], 1, target.device))
        ids = torch.tensor([image], device=target.device)
        view = View(self._oracle(target, attack.threat), attack.threat, 0)
        direction = attack.method.direction(view, x, y, ids) if attack.method.single_gradient else None
        found = []
        for level in self._settings.levels:
            seen = self._perturbed(attack.method, view, x, y, ids, level, direction, target).images
            ratio = float(snr_db(x, seen, target.space))
            found.append((seen[0], int(target.scored(seen, ids, range(1))[0]), ratio))
        return x[0], found

    @property
    def _clean_cost(self) -> int:
        return self._settings.draws + self._settings.judge_draws

    def _attack_cost(self, attack: Attack, levels: int) -> int:
        groups = len({attack.threat.draws(number) for number in range(self._settings.draws)})
        own = groups * max(1, attack.threat.count)
        judging, gradients = self._settings.judge_draws, own * attack.method.steps * _GRADIENT_COST
        seen = own * (levels + 1) if judging else 0
        return gradients + seen + levels * (self._settings.draws + groups * judging)

    def _passes(self, attack: Attack) -> list[list[int]]:
        """The levels of an attack that are done together."""
        every = list(range(len(self._settings.levels)))
        return [every] if attack.method.single_gradient else [[level] for level in every]

    def _clean(self, number: int, target: _Target) -> None:
        part = f"networks/{number}"
        for ids, x, y in self._left(part, target.device):
            found = {"clean": torch.stack(target.scored(x, ids, range(self._settings.draws)), 1).to(torch.int16)}
            check_labels(y, len(y), target.classes)
            if self._settings.judge_draws:
                judged, vote = target.judged(x, y, ids)
                found |= {"judged": judged, "vote": vote}
            self.records.put(part, int(ids[0]), found)
            self.records.save()
            self._on_cost(len(x) * self._clean_cost)

    def _attack(self, result: int, levels: list[int], target: _Target, attack: Attack) -> None:
        draws = range(self._settings.draws)
        # Draws that show the attacker the same share one attack.
        alike = 1 if target.deterministic or len({attack.threat.draws(draw) for draw in draws}) == 1 else len(draws)
        oracle = self._oracle(target, attack.threat)
        views = [View(oracle, attack.threat, scoring) for scoring in range(alike)]
        cost = self._attack_cost(attack, len(levels))
        # All levels of a pass get each batch at once, so that the last one is the one that may be behind.
        for ids, x, y in self._left(f"results/{result}/{levels[-1]}", target.device):
            single = attack.method.single_gradient
            directions = [attack.method.direction(view, x, y, ids) if single else None for view in views]
            seen_clean = None
            if self._settings.judge_draws and attack.threat.name != "noise":
                seen_clean = torch.stack([view.classes(x, ids) for view in views], 1)
            for level in levels:
                found = [
                    self._perturbed(attack.method, view, x, y, ids, self._settings.levels[level], direction, target)
                    for view, direction in zip(views, directions, strict=True)
                ]
                self._put(result, level, target, x, y, ids, views, found, seen_clean)
            self.records.save()
            self._on_cost(len(x) * cost)
            self._on_images(len(x))

    def _perturbed(
        self,
        method: Method,
        view: View,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        level: Level,
        direction: Tensor | None,
        target: _Target,
    ) -> _Perturbed:
        """Adversarial images of one level."""
        exact, outcome = level.snr_db if self._settings.exact_snr else None, None
        eps = strength(level, x, target.space)
        if direction is not None:
            if exact is not None:
                eps, outcome = exact_step(x, direction, exact, target.space)
            return _Perturbed(perturb(x, direction, eps), eps, outcome)
        adversarial = method.attack(view, x, y, ids, eps)
        if exact is not None:
            step, outcome = exact_step(x, adversarial - x, exact, target.space)
            adversarial, eps = perturb(x, adversarial - x, step), step * eps
        return _Perturbed(adversarial, eps, outcome)

    def _put(
        self,
        result: int,
        level: int,
        target: _Target,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        views: list[View],
        found: list[_Perturbed],
        seen_clean: Tensor | None,
    ) -> None:
        settings = self._settings
        scored: list[Tensor] = []
        for group, perturbed in enumerate(found):
            scored += target.scored(perturbed.images, ids, range(settings.draws) if len(found) == 1 else [group])
        values = {
            "predicted": torch.stack(scored, 1).to(torch.int16),
            "eps": torch.stack([each.eps for each in found], 1),
            "snr_db": torch.stack([snr_db(x, each.images, target.space) for each in found], 1),
        }
        if settings.judge_draws:
            judgements = [target.judged(each.images, y, ids) for each in found]
            values["judged"] = torch.stack([judged for judged, _ in judgements], 1)
            values["vote"] = torch.stack([vote for _, vote in judgements], 1)
            if seen_clean is not None:
                seen = [view.classes(each.images, ids) for view, each in zip(views, found, strict=True)]
                values["believed"] = torch.stack(seen, 1).to(torch.int16)
                values["believed_clean"] = seen_clean.to(torch.int16)
        outcomes = [each.outcome for each in found if each.outcome is not None]
        if outcomes:
            values["outcome"] = torch.stack(outcomes, 1)
        start = int(ids[0])
        if settings.save_images:
            self.records.keep_images(result, level, start, torch.stack([each.images for each in found], 1))
        self.records.put(f"results/{result}/{level}", start, values)

    def _left(self, part: str, device: torch.device) -> itertools.islice[tuple[Tensor, Tensor, Tensor]]:
        """The batches of a part that are not done."""
        size = self._settings.batch_size
        done = -(-self.records.done(part) // size)
        return itertools.islice(batches(self._images, self._labels, size, device), done, None)

    def _oracle(self, target: _Target, threat: Threat) -> Oracle:
        if threat.name != "transfer":
            return target.oracle
        return self._source or target.reduced


@dataclass(frozen=True)
class _Perturbed:
    images: Tensor
    eps: Tensor
    outcome: Tensor | None


class _Target:
    """A network that is attacked.

    Attributes:
        classes: its outputs, once it has scored; None until then.
    """

    classes: int | None = None

    def __init__(self, network: nn.Module, settings: Settings, images: Images) -> None:
        self.oracle = Oracle(network, settings.seed)
        self.device = next(network.parameters()).device
        self.space: Space = space_of(network, settings.snr_space) if settings.snr_space != "raw" else RAW
        self._settings = settings
        self._images = images

    @cached_property
    def deterministic(self) -> bool:
        """Whether several draws are wanted, and all are the same."""
        several = self._settings.draws + self._settings.judge_draws > 1
        return several and len(self._images) > 0 and deterministic(self.oracle, self._images)

    @cached_property
    def reduced(self) -> Oracle:
        """The network's own reduction to one kernel matrix for each layer."""
        return Oracle(reduce(self.oracle.model), self._settings.seed)

    def scored(self, x: Tensor, ids: Tensor, draws: Sequence[int]) -> list[Tensor]:
        """Classes int64 (B,) in each of these scoring draws."""
        wanted = draws[:1] if self.deterministic else draws
        logits = [self.oracle.logits(x, ids, scoring_draw(draw)) for draw in wanted]
        self.classes = logits[0].shape[1]
        found = [each.argmax(1) for each in logits]
        return found if len(found) == len(draws) else found * len(draws)

    def judged(self, x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Classes int16 in each judging draw (B, J), and of the vote of the first of them (B,)."""
        wanted, votes = self._settings.judge_draws, self._settings.votes
        found = (
            judge(self.oracle, x, y, ids, 1, 1) if self.deterministic else judge(self.oracle, x, y, ids, wanted, votes)
        )
        return found.predictions.expand(-1, wanted).to(torch.int16), found.vote.to(torch.int16)


def deterministic(oracle: Oracle, images: Images) -> bool:
    """Whether a network answers the same in all draws, bit for bit, to its first images and to random pixels."""
    device = next(oracle.model.parameters()).device
    _, x = next(pixel_batches(images[:8], 8, device))
    # Of images that are black, say, all draws of a network may answer the same.
    pixels = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    x, ids = torch.cat([x, pixels]), torch.arange(2 * len(x), device=device)
    first, *others = [oracle.logits(x, ids, draw) for draw in (scoring_draw(0), scoring_draw(1), judging_draw(0))]
    return all(torch.equal(first, other) for other in others)


def strength(level: Level, x: Tensor, space: Space = RAW) -> Tensor:
    """Strengths (B,) of a level for images (B, C, H, W)."""
    if level.eps is not None:
        return x.new_full((len(x),), level.eps)
    assert level.snr_db is not None
    return eps_for_snr(x, level.snr_db, space)
