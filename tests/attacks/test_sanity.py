"""The checks of an evaluation: they pass where all is well, and each fails where it should."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.attacks import sanity
from rapa_cli.attacks.evaluation import Evaluation, Level, attacks_named
from rapa_cli.attacks.records import Origin, Records, Settings
from rapa_cli.attacks.results import results
from rapa_cli.attacks.sanity import Line, State, trustworthy
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


def checked(model: nn.Module, *, source: nn.Module | None = None, **changes: Any) -> dict[str, Line]:
    images, labels = data()
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


def test_the_mean_over_draws_has_the_cosine_it_is_said_to_have() -> None:
    # Gradients that share a direction: g_k = mean + deviation.
    generator = torch.Generator().manual_seed(0)
    mean, deviations = torch.randn(4000, generator=generator), torch.randn(64, 4000, generator=generator) * 2
    single = F.cosine_similarity((mean + deviations[0])[None], (mean + deviations[1])[None]).item()
    over = F.cosine_similarity((mean + deviations[:16].mean(0))[None], mean[None]).item()
    assert over == pytest.approx(math.sqrt(16 * single / (1 + 15 * single)), abs=0.05)


def test_an_attack_that_believes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    from rapa_cli.attacks.threat import View

    monkeypatch.setattr(View, "wrong", lambda self, x, labels, ids: torch.ones(len(x)))
    lines = checked(Colours())
    assert lines[BELIEVED].state is FAILED
    assert lines[BELIEVED].figures["believed"] == 0


def test_attacks_of_no_strength_that_change_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    from rapa_cli.attacks.methods import Pgd

    monkeypatch.setattr(Pgd, "_attack", lambda self, view, x, *_: x.flip(1))
    lines = checked(Colours(), methods=("pgd",))
    assert lines[NOTHING].state is FAILED
    assert "pgd, fresh-draw: other classes" in lines[NOTHING].says


def test_the_network_stays_as_it_is() -> None:
    model = Colours().train()
    model.sharpness.grad = torch.tensor(3.0)
    state = torch.get_rng_state()
    checked(model, methods=("fgsm", "noise"))
    assert model.training
    assert model.sharpness.requires_grad
    assert float(model.sharpness.grad) == 3
    assert torch.equal(torch.get_rng_state(), state)
