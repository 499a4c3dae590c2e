"""Checks of an evaluation itself: whether its attacks are as strong as their place in the order of attacks demands.

An attack that loses to one which knows or tries less is broken or blinded, and the robustness it shows is none (Athalye
et al. 2018, Carlini et al. 2019, Tramer et al. 2020). Each check passes, fails, or does not apply, and says on which
figures it rests. One that fails makes the result not trustworthy.

Accuracies are compared image by image on the scoring draws. A check fails where the order is wrong by more than three
standard errors, so that chance alone hardly ever fails one. Fewer than 10 images that differ cannot be that, whatever
they say; an exact sign test at that level (p < 0.00135) needs as many.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor, nn

from rapa_cli.analysis.evaluation import batches
from rapa_cli.attacks.evaluation import Attack, Evaluation, attacks_named, deterministic
from rapa_cli.attacks.intervals import excess
from rapa_cli.attacks.methods import method_named
from rapa_cli.attacks.oracle import Oracle, without_gradient
from rapa_cli.attacks.records import Records, Settings
from rapa_cli.attacks.results import Result, results
from rapa_cli.attacks.threat import Threat, View, attackers_draw, scoring_draw
from rapa_cli.data.stream import Images
from rapa_cli.errors import ConfigError

# Images that the checks themselves attack: many for a gradient or two, few for many steps over many draws.
PROBED, PROBED_LONG = 200, 32
# PGD takes others at each step.
EOT_DRAWS = 4
# Standard errors by which an order may be wrong.
_TOLERANCE = 3.0
# Percent by which an order may be wrong and pass where too few images differ to fail it.
_UNDECIDED = 10.0
# Share of images without a gradient from which an evaluation by gradients says nothing of robustness.
_BLIND = 0.01
# Cosine with the gradient of the mean over all draws that an attacker's own should have.
_ALIGNED = 0.7
# Percent by which an attack may believe itself stronger than fresh draws find it.
_CONCEIT = 10.0
_GRADIENT_DRAWS = 4
_QUESTIONS = 1000
_KNOWING = ("same-draw", "fresh-draw", "eot", "vote-aware")


class State(Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Line:
    """One check.

    Attributes:
        check: what was checked.
        state: how it ended.
        says: the figures it rests on, or why it does not apply, in words.
        figures: numbers, by name.
    """

    check: str
    state: State
    says: str
    figures: dict[str, float] = field(default_factory=dict)


def trustworthy(lines: Sequence[Line]) -> bool:
    """Whether no check failed."""
    return all(line.state is not State.FAILED for line in lines)


def check(
    found: Sequence[Result],
    attacks: Sequence[Attack],
    network: nn.Module,
    images: Images,
    labels: Tensor,
    settings: Settings,
    *,
    on_part: Callable[[str], None] | None = None,
) -> list[Line]:
    """All checks of one network.

    Args:
        found: its results, one for each attack.
        attacks: in the same order.
        network: takes (B, C, H, W) in [0, 1]; it is as before afterwards.
        images: uint8 (N, C, H, W), those of the results.
        labels: int64 (N,).
        settings: of the evaluation.
        on_part: called with each check's name before it is made.
    """
    block = _Block(list(zip(attacks, found, strict=True)), network, images, labels, settings)
    lines = []
    for name, make in block.checks:
        if on_part:
            on_part(f"checking: {name}")
        lines.append(Line(name, *make()))
    return lines


_Verdict = tuple[State, str, dict[str, float]]


class _Block:
    def __init__(
        self,
        found: list[tuple[Attack, Result]],
        network: nn.Module,
        images: Images,
        labels: Tensor,
        settings: Settings,
    ) -> None:
        self._found, self._network, self._settings = found, network, settings
        self._images, self._labels = images, labels
        self._oracle = Oracle(network, settings.seed)
        self._device = next(network.parameters()).device
        self._gradients: list[Tensor] | None = None
        self.checks: list[tuple[str, Callable[[], _Verdict]]] = [
            ("eps = 0 equals clean", self._nothing),
            ("noise weaker than FGSM", self._noise),
            ("iterative at least as strong as one step", self._iterative),
            ("white box at least as strong as transfer", self._transfer),
            ("white box at least as strong as Square", self._square),
            ("same draw at least as strong as fresh", self._same_draw),
            ("more draws of EOT never weaker", self._more_draws),
            ("PGD-EOT reaches 0 % at eps = 1", self._unbounded),
            ("images have gradients", self._zero),
            ("gradients of draws agree, or are averaged", self._cosine),
            ("re-judged as the attack believes", self._believed),
        ]

    def _nothing(self) -> _Verdict:
        """Attacks of strength 0 leave images, and so classes, as they are."""
        changed, fewest = [], PROBED_LONG
        for attack, _ in self._found:
            # Thousands of questions for each image tell no more of a strength of 0 than a few.
            few = max(2, min(PROBED_LONG, _QUESTIONS // (attack.method.steps * max(1, attack.threat.count))))
            fewest = min(few, fewest, len(self._images))
            # At this strength it makes no difference whose gradients a transfer follows: they are the network's own.
            view = View(self._oracle, attack.threat)
            for ids, x, y in self._batches(few):
                clean = self._oracle.logits(x, ids, scoring_draw(0)).argmax(1)
                same = attack.method.attack(view, x, y, ids, x.new_zeros(len(x)))
                if not torch.equal(self._oracle.logits(same, ids, scoring_draw(0)).argmax(1), clean):
                    changed.append(str(attack))
        names = list(dict.fromkeys(changed))
        if names:
            return State.FAILED, f"{', '.join(names)}: other classes at eps = 0", {"attacks": float(len(names))}
        return State.PASSED, f"at least {fewest} images under each method", {"images": float(fewest)}

    def _noise(self) -> _Verdict:
        """Random signs must do less than signs of the gradient."""
        if not self._of(_one_step):
            return _missing("fgsm was not run")
        own = self._of(lambda attack: attack.threat.name == "noise" and attack.method.single_gradient)
        noise = own[0] if own else self._noise_result()
        return _worst(self._orders(_one_step, [noise], "FGSM", "noise")) or _missing("FGSM was run in L2 only")

    def _iterative(self) -> _Verdict:
        verdicts = []
        for attack, single in self._of(_one_step):
            fresh = attack.threat.name == "fresh-draw"
            matching = [
                result
                for other, result in self._of(lambda other: _white_box(other) and other.method.iterative)
                if other.method.norm == attack.method.norm
                and (other.threat == attack.threat or (fresh and other.threat.name == "eot"))
            ]
            if matching:
                verdicts.append(self._order(matching, [single], "iterative", str(attack)))
        return _worst(verdicts) or _missing("FGSM and an iterative method under the same threat were not both run")

    def _transfer(self) -> _Verdict:
        return self._white_box_against(lambda attack: attack.threat.name == "transfer", "transfer")

    def _square(self) -> _Verdict:
        return self._white_box_against(_black_box, "Square")

    def _white_box_against(self, weaker: Callable[[Attack], bool], name: str) -> _Verdict:
        others = self._of(weaker)
        if not others:
            return _missing(f"{name.lower()} was not run")
        return _worst(self._orders(_white_box, others, "white box", name)) or _missing(
            "no white-box method of the same norm that knows as much was run"
        )

    def _orders(
        self, stronger: Callable[[Attack], bool], others: list[tuple[Attack, Result]], strong_name: str, weak_name: str
    ) -> list[_Verdict]:
        """Some attacks against others of the same norm that know no more of the scoring draw.

        Attackers who know that draw are apart: what they do says nothing of those who do not.
        """
        verdicts = []
        for norm in dict.fromkeys(attack.method.norm for attack, _ in others):
            for told in (False, True):
                strong = [
                    result
                    for attack, result in self._of(stronger)
                    if attack.method.norm == norm and _told(attack) == told
                ]
                weak = [result for attack, result in others if attack.method.norm == norm and _told(attack) <= told]
                if strong and weak:
                    name = f"{strong_name}, same-draw" if told else strong_name
                    verdicts.append(self._order(strong, weak, name, weak_name))
        return verdicts

    def _same_draw(self) -> _Verdict:
        verdicts = []
        for attack, same in self._of(lambda attack: attack.threat.name == "same-draw"):
            fresh = [result for other, result in self._found if other == Attack(attack.method, Threat("fresh-draw"))]
            if fresh:
                verdicts.append(self._order([same], fresh, f"{attack.method.name} same-draw", "fresh-draw"))
        return _worst(verdicts) or _missing("no method was run under both same-draw and fresh-draw")

    def _more_draws(self) -> _Verdict:
        verdicts = []
        averaging = self._of(lambda attack: attack.threat.name in ("fresh-draw", "eot") and _white_box(attack))
        families: dict[str, list[tuple[int, Result]]] = {}
        for attack, result in averaging:
            families.setdefault(attack.method.name.removeprefix("eot"), []).append((attack.threat.count, result))
        for family, members in families.items():
            ordered = sorted(members, key=lambda member: member[0])
            for (few, weak), (many, strong) in itertools.pairwise(ordered):
                if many > few:
                    verdicts.append(self._order([strong], [weak], f"{family} over {many} draws", f"{few}"))
        return _worst(verdicts) or _missing("no method was run with two numbers of draws")

    def _unbounded(self) -> _Verdict:
        """Without a bound every image can be made any other, so that an attack which fails is broken."""
        method = method_named("pgd")
        threat = Threat("fresh-draw") if self._deterministic else Threat("eot", EOT_DRAWS)
        left = counted = 0
        for ids, x, y in self._batches(PROBED_LONG):
            right = self._oracle.logits(x, ids, scoring_draw(0)).argmax(1) == y
            if right.any():
                view, own = View(self._oracle, threat), ids[right]
                try:
                    adversarial = method.attack(view, x[right], y[right], own, x.new_ones(len(own)))
                except ConfigError as error:
                    return State.FAILED, str(error), {}
                left += int((self._oracle.logits(adversarial, own, scoring_draw(0)).argmax(1) == y[right]).sum())
                counted += len(own)
        if not counted:
            return _missing("no image is right without noise")
        share = 100 * left / counted
        says = f"{share:.1f} % of {counted} images are still right after PGD, {threat}"
        return (State.FAILED if left else State.PASSED), says, {"accuracy": share, "images": counted}

    def _zero(self) -> _Verdict:
        """Images without a gradient count as robust against methods that follow it, but are only out of its sight."""
        gradients = self._probed()[0]
        if not len(gradients):
            return _missing("no image is right without noise")
        images = float(without_gradient(gradients).double().mean())
        pixels = float((gradients == 0).double().mean())
        says = f"{100 * images:.1f} % of {len(gradients)} images have none; {100 * pixels:.1f} % of all pixels are 0"
        if not gradients.isfinite().all():
            says += ", and some are no number"
        state = State.FAILED if images > _BLIND else State.PASSED
        return state, says, {"zero_images": 100 * images, "zero_pixels": 100 * pixels, "images": len(gradients)}

    def _cosine(self) -> _Verdict:
        """How well the gradient over an attacker's draws points where that over all draws does.

        With independent deviations of the draws, and c the mean cosine between those of two, the cosine of a mean over
        K draws with the mean over all is sqrt(K c / (1 + (K - 1) c)). How many an attack has, its method tells.
        """
        gradients = self._probed()
        if self._deterministic:
            return _missing("all draws are the same")
        if not len(gradients[0]):
            return _missing("no image is right without noise")
        if not all(gradient.isfinite().all() for gradient in gradients):
            return _missing("some gradients are no number")
        flat = torch.stack(gradients).flatten(2).double()
        unit = flat / flat.norm(dim=2, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        pairs = [(unit[i] * unit[j]).sum(1) for i in range(len(unit)) for j in range(i)]
        cosine = float(torch.stack(pairs).mean())
        aiming = self._of(lambda attack: _white_box(attack) and attack.threat.name != "same-draw")
        if not aiming:
            return _missing("no attack follows gradients of draws that it does not know")
        most = max(attack.method.distinct_draws(attack.threat) for attack, _ in aiming)
        positive = max(cosine, 0.0)
        reached = math.sqrt(most * positive / (1 + (most - 1) * positive))
        says = (
            f"cosine {cosine:.3f} between draws; over the {most} draws that an attack used at most, "
            f"{reached:.2f} with the mean of all, {_ALIGNED:g} wanted"
        )
        figures = {"cosine": cosine, "draws": float(most), "aligned": reached}
        return (State.PASSED if reached >= _ALIGNED else State.FAILED), says, figures

    def _believed(self) -> _Verdict:
        """The attack that fresh draws find strongest must not believe itself far stronger than that."""
        if not self._settings.judge_draws:
            return _missing("nothing was judged again: --judge-draws 0")
        judged = self._of(lambda attack: attack.threat.name in ("fresh-draw", "eot", "vote-aware"))
        if not judged:
            return _missing("no attack that aims at draws it does not know was run")
        worst: tuple[float, str, dict[str, float]] | None = None
        for level in range(len(self._settings.levels)):
            several = [(attack, result.points[level].judged) for attack, result in judged]
            known = [(attack, point) for attack, point in several if point is not None]
            attack, point = min(known, key=lambda pair: pair[1].accuracy_all)
            gap = point.accuracy_all - point.believed_all
            says = (
                f"{attack} at level {level + 1}: believed {point.believed_all:.1f} %, on fresh draws "
                f"{point.accuracy_all:.1f} %"
            )
            figures = {"believed": point.believed_all, "judged": point.accuracy_all, "level": level + 1.0}
            if worst is None or gap > worst[0]:
                worst = gap, says, figures
        assert worst is not None
        return (State.FAILED if worst[0] > _CONCEIT else State.PASSED), worst[1], worst[2]

    def _order(self, strong: list[Result], weak: list[Result], strong_name: str, weak_name: str) -> _Verdict:
        """At each level the strongest of the first must be no weaker than the strongest of the others."""
        verdicts = []
        for level in range(len(self._settings.levels)):
            first = [result.points[level].right for result in strong]
            second = [result.points[level].right for result in weak]
            shared = min(map(len, first + second))
            lowest = min((right[:shared] for right in first), key=_share)
            other = min((right[:shared] for right in second), key=_share)
            by, errors = excess(lowest, other)
            differing = int((lowest.double().mean(1) != other.double().mean(1)).sum())
            low, high = 100 * _share(lowest), 100 * _share(other)
            says = f"level {level + 1}: {strong_name} {low:.1f} %, {weak_name} {high:.1f} %"
            if errors > 0:
                says += f", {by:.1f} too many ({errors:.1f} standard errors)"
            figures = {"strong": low, "weak": high, "standard_errors": errors, "level": level + 1.0}
            state = State.FAILED if errors > _TOLERANCE else State.PASSED
            # No images could be more than the root of their number of standard errors.
            if math.sqrt(shared) <= _TOLERANCE or (math.sqrt(differing) <= _TOLERANCE and by > _UNDECIDED):
                state, says = State.NOT_APPLICABLE, f"too few images: {differing} of {shared} differ; {says}"
            verdicts.append((state, says, figures))
        found = _worst(verdicts)
        assert found is not None
        return found

    def _noise_result(self) -> tuple[Attack, Result]:
        """Noise at all levels on some of the images."""
        few = min(PROBED, len(self._images))
        changes = {
            "images": few,
            "methods": ("noise",),
            "threats": ("noise",),
            "networks": self._settings.networks[:1],
            "judge_draws": 0,
            "votes": 0,
            "save_images": False,
        }
        records = Records(self._settings.model_copy(update=changes), self._labels[:few])
        run = Evaluation([self._network], self._images[:few], self._labels[:few], records)
        run.attack()
        return run.attacks[0], results(records, attacks_named(run.attacks))[0]

    def _probed(self) -> list[Tensor]:
        """Gradients of some draws at the images that are right without noise, each (n, C, H, W)."""
        if self._gradients is None:
            parts: list[list[Tensor]] = []
            for ids, x, y in self._batches(PROBED):
                right = self._oracle.logits(x, ids, scoring_draw(0)).argmax(1) == y
                numbers = range(1 if self._deterministic else _GRADIENT_DRAWS)
                each = [self._oracle.gradient(x, y, ids, (attackers_draw(draw),))[1][right] for draw in numbers]
                parts.append(each)
            self._gradients = [torch.cat(several) for several in zip(*parts, strict=True)]
        return self._gradients

    @cached_property
    def _deterministic(self) -> bool:
        return deterministic(self._oracle, self._images)

    def _batches(self, most: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return batches(self._images[:most], self._labels[:most], self._settings.batch_size, self._device)

    def _of(self, wanted: Callable[[Attack], bool]) -> list[tuple[Attack, Result]]:
        return [(attack, result) for attack, result in self._found if wanted(attack)]


def _white_box(attack: Attack) -> bool:
    return attack.threat.name in _KNOWING and attack.method.follows_gradients


def _black_box(attack: Attack) -> bool:
    return attack.threat.name in _KNOWING and not attack.method.follows_gradients


def _one_step(attack: Attack) -> bool:
    return _white_box(attack) and not attack.method.iterative


def _told(attack: Attack) -> bool:
    """Whether the attacker knows the draw that scores."""
    return attack.threat.name == "same-draw"


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def _missing(why: str) -> _Verdict:
    return State.NOT_APPLICABLE, why, {}


def _worst(verdicts: list[_Verdict]) -> _Verdict | None:
    """One that failed before one that is open, and of these the one with the most standard errors."""
    ranks = (State.PASSED, State.NOT_APPLICABLE, State.FAILED)
    return max(verdicts, key=lambda found: (ranks.index(found[0]), found[2]["standard_errors"]), default=None)
