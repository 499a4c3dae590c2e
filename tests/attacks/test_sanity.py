"""The checks of an evaluation: they pass where all is well, and each fails where it should."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.attacks import methods, sanity
from rapa_cli.attacks.evaluation import Attack, Evaluation, Level, attacks_named
from rapa_cli.attacks.methods import method_named
from rapa_cli.attacks.records import Origin, Records, Settings
from rapa_cli.attacks.results import results
from rapa_cli.attacks.sanity import Line, State, trustworthy
from rapa_cli.attacks.threat import Threat
from rapa_cli.keyed import KeyedLayer
from rapa_cli.philox import Purpose, uniform

N, SIZE = 60, 6
PASSED, FAILED, MISSING = State.PASSED, State.FAILED, State.NOT_APPLICABLE

NOTHING = "eps = 0 equals clean"
NOISE = "noise weaker than FGSM"
ITERATIVE = "iterative at least as strong as one step"
TRANSFER = "white box at least as strong as transfer"
SQUARE = "white box at least as strong as Square"
SAME = "same draw at least as strong as fresh"
MORE = "more draws of EOT never weaker"
UNBOUNDED = "PGD-EOT reaches 0 % at eps = 1"
ZERO = "images have gradients"
COSINE = "gradients of draws agree, or are averaged"
BELIEVED = "re-judged as the attack believes"
ALL = [NOTHING, NOISE, ITERATIVE, TRANSFER, SQUARE, SAME, MORE, UNBOUNDED, ZERO, COSINE, BELIEVED]


def data() -> tuple[Tensor, Tensor]:
    """Images in three classes: which colour is the brightest, clearly or hardly."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(90, 130, (N, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.arange(N) % 3
    images[torch.arange(N), labels] += (4 + torch.arange(N) // 2)[:, None, None].to(torch.uint8)
    return images, labels


class Colours(nn.Module):
    """Sees the brightest colour; all that attacks need to know is in its gradient."""

    def __init__(self, sharpness: float = 20.0) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, x: Tensor) -> Tensor:
        return self.sharpness * x.mean((2, 3))


class Masked(Colours):
    """The same classes, but colours are rounded to steps, which have no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        return self.sharpness * torch.round(means * 100) / 100 + 0 * means


class Shattered(Colours):
    """The same classes and a gradient in the wrong direction (Athalye et al. 2018 call such gradients shattered)."""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        return self.sharpness * (2 * means.detach() - means)


class Forgetful(Colours):
    """Its gradient points the right way only at images that nobody has touched."""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        whole = ((255 * x - (255 * x).round()).abs() < 1e-3).flatten(1).all(1)[:, None]
        return self.sharpness * torch.where(whole, means, 2 * means.detach() - means)


class Flickering(KeyedLayer):
    """Adds to each image a pattern of its draw, times what the first pixels show, and so turns the gradient about."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def forward(self, x: Tensor) -> Tensor:
        draw = self.draw_for(len(x), x.device)
        chance = uniform(draw.words(Purpose.ASSIGNMENT, count=3 * x[0].numel())).view(len(x), 3, -1)
        pattern = (chance - chance.mean(2, keepdim=True)) * self.strength
        return 20 * x.mean((2, 3)) + torch.einsum("bkd,bd->bk", pattern, x.flatten(1))


class Guarded(KeyedLayer):
    """Hides its gradient in the draws that score, and only there."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        scores = 1 <= int(self.draw_for(len(x), x.device).draw) <= 2**20
        return self.sharpness * (means.detach() + 0 * means if scores else means)


class Broken(Colours):
    """The same classes, and a gradient that is no number."""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        return self.sharpness * (means + (means - means).sqrt())


def checked(model: nn.Module, *, source: nn.Module | None = None, **changes: Any) -> dict[str, Line]:
    images, labels = (several[: changes.get("images", N)] for several in data())
    values: dict[str, Any] = {
        "networks": (Origin(path="", sha256=""),),
        "data": "",
        "data_sha256": "",
        "images": N,
        "levels": (Level(eps=0.02), Level(eps=0.05)),
        "methods": ("fgsm", "pgd"),
        "threats": ("fresh-draw",),
        "judge_draws": 4,
        "votes": 4,
    }
    settings = Settings(**{**values, **changes})
    records = Records(settings, labels)
    run = Evaluation([model], images, labels, records, source=source)
    run.attack()
    found = results(records, attacks_named(run.attacks))
    lines = sanity.check(found, run.attacks, model, images, labels, settings)
    assert [line.check for line in lines] == ALL
    assert all(line.says for line in lines)
    return {line.check: line for line in lines}


def states(lines: dict[str, Line]) -> dict[str, State]:
    return {name: line.state for name, line in lines.items()}


def test_all_is_well() -> None:
    lines = checked(Colours(), source=Colours(), threats=("fresh-draw", "same-draw", "eot 2", "transfer"))
    expected = dict.fromkeys(ALL, PASSED) | {SQUARE: MISSING, COSINE: MISSING}
    assert states(lines) == expected
    assert trustworthy(list(lines.values()))
    assert lines[ZERO].figures["zero_images"] == 0
    assert lines[UNBOUNDED].figures == {"accuracy": 0, "images": 32}


def test_what_was_not_run_does_not_apply() -> None:
    lines = checked(Colours(), methods=("fgsm",), judge_draws=0, votes=0)
    assert {name for name, line in lines.items() if line.state is MISSING} == {
        ITERATIVE,
        TRANSFER,
        SQUARE,
        SAME,
        MORE,
        COSINE,
        BELIEVED,
    }
    assert "--judge-draws 0" in lines[BELIEVED].says
    assert trustworthy(list(lines.values()))


def test_masked_gradients() -> None:
    lines = checked(Masked(), source=Colours(), threats=("fresh-draw", "transfer"))
    found = states(lines)
    assert (found[ZERO], found[UNBOUNDED], found[TRANSFER]) == (FAILED, FAILED, FAILED)
    assert lines[ZERO].figures["zero_images"] == 100
    assert "100.0 % of" in lines[ZERO].says
    assert lines[TRANSFER].figures["standard_errors"] > 3
    assert not trustworthy(list(lines.values()))


def test_gradients_in_the_wrong_direction() -> None:
    found = states(checked(Shattered(), levels=(Level(eps=0.3),)))
    assert (found[NOISE], found[ZERO], found[UNBOUNDED]) == (FAILED, PASSED, FAILED)


def test_an_iterative_method_that_gets_lost() -> None:
    lines = checked(Forgetful())
    assert lines[ITERATIVE].state is FAILED
    assert lines[NOISE].state is PASSED
    assert re_numbers(lines[ITERATIVE].says)[0] in (1, 2)


def re_numbers(text: str) -> list[int]:
    return [int(word.strip(":,%")) for word in text.split() if word.strip(":,%").isdigit()]


def test_draws_that_disagree() -> None:
    blind = checked(Flickering(3.0), methods=("fgsm",))
    assert blind[COSINE].state is FAILED
    cosine = blind[COSINE].figures["cosine"]
    # The pattern of one draw is independent of those of others, and the same on average as none.
    assert 0 < cosine < 0.4
    assert blind[COSINE].figures["aligned"] == pytest.approx(math.sqrt(cosine))
    averaged = checked(Flickering(3.0), methods=("fgsm",), threats=("fresh-draw", "eot 64"))
    assert averaged[COSINE].state is PASSED
    assert averaged[COSINE].figures["draws"] == 64
    assert averaged[MORE].state is PASSED


def test_draws_are_those_that_the_method_has() -> None:
    lines = checked(Flickering(3.0), methods=("fgsm", "apgd-ce"), levels=(Level(eps=0.05),), images=12)
    assert lines[COSINE].figures["draws"] == 1
    assert lines[COSINE].state is FAILED
    votes = checked(Flickering(3.0), methods=("pgd",), threats=("vote-aware 3",), levels=(Level(eps=0.05),), images=12)
    assert votes[COSINE].figures["draws"] == 3


def test_knowing_the_draw_helps_nobody_else() -> None:
    threats = ("fresh-draw", "transfer")
    apart = checked(Flickering(6.0), source=Colours(), methods=("fgsm",), threats=threats)
    told = checked(Flickering(6.0), source=Colours(), methods=("fgsm",), threats=(*threats, "same-draw"))
    assert apart[TRANSFER].state is FAILED
    assert told[TRANSFER] == apart[TRANSFER]
    assert told[NOISE] == apart[NOISE]
    alone = checked(Flickering(6.0), source=Colours(), methods=("fgsm",), threats=("same-draw", "transfer"))
    assert alone[TRANSFER].state is PASSED
    assert "white box, same-draw" in alone[TRANSFER].says


def test_noise_is_compared_with_fresh_draws_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Attackers who do not know the draw step down the loss, and are weaker than noise.
    from rapa_cli.attacks.methods import Fgsm

    direction = Fgsm.direction

    def lost(self: Fgsm, view: Any, *rest: Any) -> Tensor:
        sign = direction(self, view, *rest)
        return sign if view.threat.name == "same-draw" else -sign

    monkeypatch.setattr(Fgsm, "direction", lost)
    lines = checked(Colours(), methods=("fgsm",), threats=("fresh-draw", "same-draw"), levels=(Level(eps=0.3),))
    assert lines[NOISE].state is FAILED


def test_knowing_the_draw_must_not_hurt() -> None:
    found = checked(Flickering(6.0), methods=("fgsm",), threats=("fresh-draw", "same-draw"))[SAME]
    assert found.state is PASSED
    assert found.figures["strong"] < found.figures["weak"] - 30
    assert checked(Guarded(), methods=("fgsm",), threats=("fresh-draw", "same-draw"))[SAME].state is FAILED


@pytest.fixture
def short_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods._METHODS, "square", methods.Square("square", 60))


@pytest.mark.usefixtures("short_square")
def test_a_white_box_that_answers_alone_beat() -> None:
    square: dict[str, Any] = {"methods": ("fgsm", "square"), "levels": (Level(eps=0.1),)}
    assert checked(Colours(), **square)[SQUARE].state is PASSED
    found = checked(Masked(), **square)[SQUARE]
    assert found.state is FAILED
    assert found.figures["weak"] < found.figures["strong"] - 30


@pytest.mark.parametrize("name", ["square-l2", "spsa", "torchattacks.square"])
def test_others_that_ask_for_answers_alone(name: str) -> None:
    attack = Attack(method_named(name), Threat("fresh-draw"))
    assert sanity._black_box(attack)
    assert not sanity._white_box(attack)
    assert not sanity._one_step(attack)


def test_one_step_of_torchattacks_is_one_step() -> None:
    lines = checked(Forgetful(), methods=("torchattacks.fgsm", "pgd"))
    assert (lines[NOISE].state, lines[ITERATIVE].state) == (PASSED, FAILED)


def test_too_few_images_for_an_order() -> None:
    masked: dict[str, Any] = {"source": Colours(), "threats": ("fresh-draw", "transfer"), "levels": (Level(eps=0.05),)}
    few = {count: checked(Masked(), images=count, **masked)[TRANSFER] for count in (6, 9, 12, 24)}
    assert [line.state for line in few.values()] == [MISSING, MISSING, FAILED, FAILED]
    assert few[9].says.startswith("too few images: 7 of 9 differ; level 1: white box 77.8 %")
    weak = checked(Masked(), images=12, **{**masked, "levels": (Level(eps=0.012),)})[TRANSFER]
    assert weak.figures["strong"] - weak.figures["weak"] > 10, "and still no three standard errors"
    assert weak.state is MISSING
    # The same few images among many are an order that nearly holds.
    near = checked(Masked(), **{**masked, "levels": (Level(eps=0.006),)})[TRANSFER]
    assert 0 < near.figures["strong"] - near.figures["weak"] < 10
    assert near.state is PASSED


@pytest.mark.usefixtures("short_square")
def test_gradients_that_are_no_numbers() -> None:
    lines = checked(Broken(), methods=("square",), levels=(Level(eps=0.02),))
    assert (lines[ZERO].state, lines[UNBOUNDED].state) == (FAILED, FAILED)
    assert lines[ZERO].figures["zero_images"] == 100
    assert "no number" in lines[ZERO].says
    assert "not finite" in lines[UNBOUNDED].says
    assert not trustworthy(list(lines.values()))


def test_the_mean_over_draws_has_the_cosine_it_is_said_to_have() -> None:
    # Gradients that share a direction: g_k = mean + deviation.
    generator = torch.Generator().manual_seed(0)
    mean, deviations = torch.randn(4000, generator=generator), torch.randn(64, 4000, generator=generator) * 2
    single = F.cosine_similarity((mean + deviations[0])[None], (mean + deviations[1])[None]).item()
    over = F.cosine_similarity((mean + deviations[:16].mean(0))[None], mean[None]).item()
    assert over == pytest.approx(math.sqrt(16 * single / (1 + 15 * single)), abs=0.05)


def test_an_attack_that_believes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    from rapa_cli.attacks.threat import View

    monkeypatch.setattr(View, "classes", lambda self, x, ids: torch.full((len(x), 1), -1))
    lines = checked(Colours())
    assert lines[BELIEVED].state is FAILED
    assert lines[BELIEVED].figures["believed"] == 0


def test_attacks_of_no_strength_that_change_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    from rapa_cli.attacks.methods import Pgd

    monkeypatch.setattr(Pgd, "_attack", lambda self, view, x, *_: x.flip(1))
    lines = checked(Colours(), methods=("pgd",))
    assert lines[NOTHING].state is FAILED
    assert "pgd, fresh-draw: other classes" in lines[NOTHING].says
    transfer = checked(Colours(), source=Colours(), methods=("pgd",), threats=("transfer",))
    assert transfer[NOTHING].state is FAILED


def test_the_network_stays_as_it_is() -> None:
    model = Colours().train()
    model.sharpness.grad = torch.tensor(3.0)
    state = torch.get_rng_state()
    checked(model, methods=("fgsm", "noise"))
    assert model.training
    assert model.sharpness.requires_grad
    assert float(model.sharpness.grad) == 3
    assert torch.equal(torch.get_rng_state(), state)
