"""FGSM, PGD, Square and noise, written here: what they find, within which bounds, and that they leave no trace."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.attacks.fgsm import perturb
from rapa_cli.attacks.judging import judge
from rapa_cli.attacks.methods import METHODS, Method, Pgd, method_named, within
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.threat import Threat, View
from rapa_cli.errors import ConfigError
from rapa_cli.keyed import draws
from tests.attacks import toy

OWN = ("fgsm", "noise", "pgd", "pgd-l2", "eotpgd", "eotpgd-l2", "square")


def made(name: str) -> Method:
    """The method, with few steps."""
    steps = {"square": 12, "eotpgd": 3, "eotpgd-l2": 3, "pgd": 5, "pgd-l2": 5}.get(name)
    return method_named(name, steps)


def root_mean_square(change: Tensor) -> Tensor:
    return change.flatten(1).square().mean(1).sqrt()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return toy.trained()


def library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks
    return torchattacks


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3])
def test_fgsm_is_torchattacks_fgsm(model: nn.Module, eps: float) -> None:
    x, labels, ids = toy.batch()
    found = method_named("fgsm").attack(toy.view(model), x, labels, ids, torch.full((12,), eps))
    with draws(model, images=ids, seed=3, draw=0, stream="attack"):
        expected = library().FGSM(model, eps=eps)(x, labels)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "theirs"), [("pgd", "PGD"), ("pgd-l2", "PGDL2")])
def test_pgd_is_torchattacks_pgd(model: nn.Module, name: str, theirs: str) -> None:
    x, labels, ids = toy.batch()
    eps, norm = 0.06, "L2" if name == "pgd-l2" else "Linf"
    radius = eps * math.sqrt(x[0].numel()) if norm == "L2" else eps
    method = Pgd(name, 6, norm, start=False)
    found = method.attack(toy.view(model, "same-draw"), x, labels, ids, torch.full((12,), eps))

    class Contiguous(nn.Module):
        """torchattacks' PGDL2 needs gradients that it can view."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Any:
            return self.inner(x.flatten().view(x.shape))

    with draws(model, images=ids, seed=3, draw=1, stream="attack"):
        attack = getattr(library(), theirs)(
            Contiguous().eval(), eps=radius, alpha=2.5 * radius / 6, steps=6, random_start=False
        )
        expected = attack(x, labels)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, x, atol=0.01)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("threat", ["fresh-draw", "eot 2"])
def test_nothing_is_left(name: str, threat: str) -> None:
    model, (x, labels, ids) = toy.analog(), toy.batch(6)
    method = made(name)
    images, before = x.clone(), toy.everything(model)
    found = method.attack(
        View(toy.view(model).oracle, method.under(toy.view(model, threat).threat)),
        x, labels, ids, torch.full((6,), 0.05),
    )  # fmt: skip
    assert toy.same(before, toy.everything(model))
    assert torch.equal(x, images)
    assert x.grad is None
    assert not found.requires_grad


@pytest.mark.parametrize("name", OWN)
def test_an_images_attack_is_its_own(model: nn.Module, name: str) -> None:
    x, labels, ids = toy.batch()
    method, eps = made(name), torch.linspace(0.01, 0.1, 12)
    view = toy.view(model, "eot 2")
    whole = method.attack(view, x, labels, ids, eps)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    turned = method.attack(view, x[order], labels[order], ids[order], eps[order])
    assert torch.allclose(turned, whole[order], rtol=0, atol=1e-5)
    torch.manual_seed(99)
    for part in (slice(0, 1), slice(1, 6)):
        alone = method.attack(view, x[part], labels[part], ids[part], eps[part])
        assert torch.allclose(alone, whole[part], rtol=0, atol=1e-5)
    other = method.attack(view, x, labels, ids + 1, eps)
    assert not torch.equal(other, whole), "another image has other draws"


@pytest.mark.parametrize("name", OWN)
def test_within_the_strength_and_the_pixels(model: nn.Module, name: str) -> None:
    x, labels, ids = toy.batch()
    x[0], x[1, :, :4] = 0, 1
    method, eps = made(name), torch.linspace(0, 0.3, 12)
    found = method.attack(toy.view(model), x, labels, ids, eps)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    change = found - x
    size = root_mean_square(change) if method.norm == "L2" else change.abs().flatten(1).amax(1)
    assert (size <= eps + 1e-6).all()
    assert (size[2:] > 0.5 * eps[2:]).all(), "and they use it"
    assert torch.equal(found[0], x[0])


@pytest.mark.parametrize("name", OWN)
def test_images_beyond_the_pixels_are_refused(model: nn.Module, name: str) -> None:
    x, labels, ids = toy.batch(3)
    method, eps = made(name), torch.full((3,), 0.1)
    for wrong in (255 * x, x - 0.5, x + torch.nan):
        with pytest.raises(ValueError, match="x: got pixels from"):
            method.attack(toy.view(model), wrong, labels, ids, eps)
        if method.single_gradient:
            with pytest.raises(ValueError, match="x: got pixels from"):
                method.direction(toy.view(model), wrong, labels, ids)
    with pytest.raises(ValueError, match="allowed is \\(B, C, H, W\\)"):
        method.attack(toy.view(model), x[0], labels, ids, eps)
    with pytest.raises(ValueError, match="eps: got shape"):
        method.attack(toy.view(model), x, labels, ids, eps[:2])


@pytest.mark.parametrize("name", ["fgsm", "noise"])
def test_one_direction_serves_all_strengths(model: nn.Module, name: str) -> None:
    x, labels, ids = toy.batch()
    method, view = method_named(name), toy.view(model)
    direction = method.direction(view, x, labels, ids)
    for eps in (torch.full((12,), 0.02), torch.linspace(0, 0.1, 12)):
        assert torch.equal(perturb(x, direction, eps), method.attack(view, x, labels, ids, eps))
    with pytest.raises(TypeError):
        method_named("pgd").direction(view, x, labels, ids)


def test_same_draw_uses_the_scoring_draw(model: nn.Module) -> None:
    x, labels, ids = toy.batch()
    for scoring in (0, 4):
        view = View(toy.view(model).oracle, Threat("same-draw"), scoring)
        direction = method_named("fgsm").direction(view, x, labels, ids)
        point = x.clone().requires_grad_()
        with draws(model, images=ids, seed=3, draw=1 + scoring, stream="attack"):
            (slope,) = torch.autograd.grad(F.cross_entropy(model(point), labels), point)
        assert torch.equal(direction, slope.sign())


def test_a_very_sure_network_is_no_stronger() -> None:
    x, labels, ids = toy.batch()
    sure = toy.surer(toy.trained(), 4)
    view = toy.view(sure)
    direction = method_named("fgsm").direction(view, x, labels, ids)
    point, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with draws(sure, images=ids, seed=3, draw=0, stream="attack"):
        (exact,) = torch.autograd.grad(F.cross_entropy(sure(point).double(), labels, reduction="sum"), point)
        loss = F.cross_entropy(sure(theirs), labels, reduction="none")
        (single,) = torch.autograd.grad(loss.sum(), theirs)
    assert int((loss == 0).sum()) > 6
    assert float((direction != exact.sign()).double().mean()) < 1e-3
    assert float((single.sign() != exact.sign()).double().mean()) > 0.1, "as torch and torchattacks have it"


def test_each_step_has_draws_of_its_own(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, ids = toy.batch(3)
    view, seen = toy.view(model, "eot 2"), list[tuple[int, ...]]()
    ask = view.oracle.gradient

    def noted(x: Tensor, labels: Tensor, ids: Tensor, draws: tuple[int, ...], **more: Any) -> Any:
        seen.append(draws)
        return ask(x, labels, ids, draws, **more)

    monkeypatch.setattr(view.oracle, "gradient", noted)
    method_named("pgd", 3).attack(view, x, labels, ids, torch.full((3,), 0.1))
    assert seen == [(0, 2**20 + 1), (2**20 + 2, 2**20 + 3), (2**20 + 4, 2**20 + 5)]


def test_eotpgd_averages_where_the_threat_does_not(model: nn.Module) -> None:
    method = method_named("eotpgd")
    assert method.under(Threat("fresh-draw")) == Threat("eot", 16)
    assert method.under(Threat("eot", 4)) == Threat("eot", 4)
    assert method.under(Threat("same-draw")) == Threat("same-draw")
    assert method_named("pgd").under(Threat("fresh-draw")) == Threat("fresh-draw")
    x, labels, ids = toy.batch(3)
    eps = torch.full((3,), 0.05)
    view = toy.view(model, "eot 3")
    assert torch.equal(
        method_named("eotpgd", 4).attack(view, x, labels, ids, eps),
        method_named("pgd", 4).attack(view, x, labels, ids, eps),
    )


@pytest.mark.parametrize("threat", ["fresh-draw", "eot 3", "vote-aware 3"])
def test_square_is_never_weaker_than_noise(model: nn.Module, threat: str) -> None:
    x, labels, ids = toy.batch()
    view, eps = toy.view(model, threat), torch.full((12,), 0.1)
    noise = view.loss(method_named("noise").attack(view, x, labels, ids, eps), labels, ids)
    before = noise
    for steps in (1, 2, 20):
        loss = view.loss(method_named("square", steps).attack(view, x, labels, ids, eps), labels, ids)
        assert (loss >= noise - 1e-6).all()
        assert loss.sum() >= before.sum() - 1e-6
        before = loss
    assert before.sum() > noise.sum()


def test_squares_shrink() -> None:
    from rapa_cli.attacks.methods import Square

    sides = [Square("square", 10_000)._side(question, 32 * 32) for question in (1, 11, 51, 201, 1001, 2001, 8001)]
    expected = [math.sqrt(0.8 / halvings * 1024) for halvings in (1, 2, 4, 8, 32, 64, 512)]
    assert sides == [max(round(side), 1) for side in expected]
    assert Square("square", 100)._side(99, 32 * 32) == 1
    assert Square("square", 5)._side(1, 2) >= 1


def test_squares_on_images_that_are_not_square(model: nn.Module) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1)
            return torch.stack([total, -total], 1)

    x = torch.rand(3, 1, 4, 9, generator=torch.Generator().manual_seed(0))
    labels, ids = torch.tensor([0, 1, 0]), torch.arange(3)
    found = method_named("square", 300).attack(toy.view(Sum()), x, labels, ids, torch.full((3,), 0.1))
    expected = perturb(x, torch.tensor([-1.0, 1.0, -1.0])[:, None, None, None].expand_as(x), 0.1)
    assert float((found - expected).abs().mean()) < 0.02, "it nears the strongest change there is"


def test_what_attacks_do(model: nn.Module) -> None:
    x, labels, ids = toy.batch(24)
    eps = torch.full((24,), 0.08)

    def accuracy(name: str, threat: str) -> float:
        method = method_named(name)
        view = toy.view(model, threat)
        found = method.attack(view, x, labels, ids, eps)
        return float(judge(view.oracle, found, labels, ids, 6).share.mean())

    noise, fgsm, pgd = (accuracy(name, "fresh-draw") for name in ("noise", "fgsm", "pgd"))
    eot, vote = accuracy("pgd", "eot 4"), accuracy("pgd", "vote-aware 6")
    assert noise > 0.95
    assert fgsm < noise - 0.2
    assert pgd < fgsm
    assert eot < pgd + 0.03
    assert vote < pgd + 0.03


def test_starts_are_anywhere_in_the_ball(model: nn.Module) -> None:
    x, ids = torch.full((400, 3, 2, 2), 0.5), torch.arange(400)
    view, eps = toy.view(model), torch.full((400,), 0.1)
    for norm in ("Linf", "L2"):
        change = Pgd("pgd", 1, norm)._start(view, x, ids, eps) - x
        if norm == "Linf":
            assert abs(float(change.var()) - 0.1**2 / 3) < 3e-4
            size = change.abs().flatten(1).amax(1) / 0.1
        else:
            size = root_mean_square(change) / 0.1
        # The largest of 12 numbers, and the radius in 12 dimensions, both go as u^(1/12).
        assert float(size.max()) <= 1 + 1e-5
        assert abs(float(size.mean()) - 12 / 13) < 0.01
        assert abs(float(change.mean())) < 0.004


def test_back_to_within() -> None:
    x = torch.full((2, 1, 1, 2), 0.5)
    moved = x + torch.tensor([[0.3, 0.4], [0.03, -0.04]]).view(2, 1, 1, 2)
    eps = torch.tensor([0.1, 0.1])
    assert torch.allclose(within(x, moved, eps, "Linf") - x, torch.tensor([[0.1, 0.1], [0.03, -0.04]]).view(2, 1, 1, 2))
    length = 0.1 * math.sqrt(2)
    expected = torch.tensor([[0.6 * length, 0.8 * length], [0.03, -0.04]]).view(2, 1, 1, 2)
    assert torch.allclose(within(x, moved, eps, "L2") - x, expected)


def test_what_methods_ask_for() -> None:
    found = {name: (method_named(name).follows_gradients, method_named(name).iterative) for name in OWN}
    one_step, many_steps, answers = (True, False), (True, True), (False, True)
    assert found == {
        "fgsm": one_step,
        "noise": (False, False),
        "pgd": many_steps,
        "pgd-l2": many_steps,
        "eotpgd": many_steps,
        "eotpgd-l2": many_steps,
        "square": answers,
    }
    adapted = {
        "torchattacks.fgsm": one_step,
        "ffgsm": one_step,
        "rfgsm": many_steps,
        "apgd-ce": many_steps,
        "autoattack": many_steps,
        "cw": many_steps,
    }
    assert {name: (method_named(name).follows_gradients, method_named(name).iterative) for name in adapted} == adapted
    assert not any(method_named(name).follows_gradients for name in ("square-l2", "torchattacks.square", "spsa"))


@pytest.mark.parametrize(
    ("name", "threat", "count"),
    [
        ("fgsm", "fresh-draw", 1),
        ("fgsm", "eot 4", 4),
        ("fgsm", "noise", 0),
        ("pgd", "fresh-draw", 5),
        ("pgd", "eot 4", 20),
        ("pgd", "transfer", 5),
        ("pgd", "same-draw", 1),
        ("pgd", "vote-aware 4", 4),
        ("square", "eot 4", 4),
    ],
)
def test_distinct_draws_are_those_it_asks_about(
    model: nn.Module, name: str, threat: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels, ids = toy.batch(3)
    view, asked, answer = toy.view(model, threat), set[int](), Oracle._draw

    def noted(self: Oracle, ids: Tensor, draw: int) -> Any:
        asked.add(draw)
        return answer(self, ids, draw)

    monkeypatch.setattr(Oracle, "_draw", noted)
    made(name).attack(view, x, labels, ids, torch.full((3,), 0.05))
    assert made(name).distinct_draws(view.threat) == len(asked) == count


def test_a_method_of_torchattacks_stays_with_its_draws() -> None:
    assert method_named("apgd-ce").distinct_draws(Threat("fresh-draw")) == 1
    assert method_named("torchattacks.pgd").distinct_draws(Threat("eot", 4)) == 4


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd-l2"])
def test_gradients_that_are_no_numbers_are_refused(name: str) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1)
            # 0 at every image, with a slope of infinity times 0.
            return torch.stack([total, (x[:, 0, 0, 0] - x[:, 0, 0, 0]).sqrt()], 1)

    x, labels, ids = toy.batch(3)
    view, eps = toy.view(Broken()), torch.full((3,), 0.1)
    assert view.oracle.logits(x, ids, 0).isfinite().all()
    with pytest.raises(ConfigError, match="gradient: not finite at image 100"):
        made(name).attack(view, x, labels % 2, ids, eps)
    assert made("square").attack(view, x, labels % 2, ids, eps).isfinite().all()


def test_names() -> None:
    for name in METHODS:
        assert method_named(f" {name.upper()} ").name == name
    assert method_named("pgd", 7).steps == 7
    assert [method_named(name).single_gradient for name in OWN] == [True, True, False, False, False, False, False]
    with pytest.raises(ConfigError, match="there is no 'fgms'") as error:
        method_named("fgms")
    assert error.value.hint == "did you mean 'fgsm'?"
    with pytest.raises(ConfigError, match="fgsm has no number of steps"):
        method_named("fgsm", 3)
    with pytest.raises(ConfigError, match="steps: got 0"):
        method_named("pgd", 0)
