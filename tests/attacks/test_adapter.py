"""The attacks of torchattacks on randomised networks, and the traps that lie in them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rapa_cli.attacks import evaluation
from rapa_cli.attacks.judging import judge
from rapa_cli.attacks.methods import METHODS, Method, Pgd, method_named
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.threat import View, parse_threat
from rapa_cli.attacks.torchattacks_adapter import (
    Adapted,
    Apgd,
    _holds_squares,
    _StandIn,
    _torchattacks,
    _UnclearRowsError,
    names,
)
from rapa_cli.errors import ConfigError
from tests.attacks import toy
from tests.attacks.test_methods import OWN, root_mean_square

# Every class within L2 or Linf, with few steps where they can be chosen.
STEPS = {"deepfool": 3, "eaden": 10, "square": 6, "cw": 5, "spsa": 1, "fgsm": None, "ffgsm": None, "autoattack": None}
STEPS |= {"autoattack-l2": None, "square-l2": 6}
NAMED = [name for name in METHODS if name not in OWN]
CLASSES = [f"torchattacks.{name}" for name in names() if name not in METHODS]
SLOW = ("torchattacks.autoattack", "torchattacks.eaden")


def made(name: str) -> Method:
    return method_named(name, STEPS.get(name.removeprefix("torchattacks."), 4))


def attacked(name: str, model: nn.Module, count: int = 4, threat: str = "fresh-draw", eps: float = 0.1) -> Tensor:
    method, (x, labels, ids) = made(name), toy.batch(count)
    view = View(Oracle(model, 3), method.under(parse_threat(threat)))
    return method.attack(view, x, labels, ids, torch.full((count,), eps))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return toy.trained()


@pytest.mark.parametrize("name", [*NAMED, *(name for name in CLASSES if name not in SLOW)])
def test_nothing_is_left(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = toy.analog()
    before = toy.everything(model)
    found = attacked(name, model, count=2, threat="eot 2")
    assert toy.same(before, toy.everything(model))
    assert not found.requires_grad
    assert capfd.readouterr().out == "", "only results go to standard output"


@pytest.mark.parametrize("name", SLOW)
def test_nothing_is_left_of_the_slow_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both ask thousands of questions.
    from torchattacks.attacks import eaden, square

    monkeypatch.setattr(square.Square, "forward", lambda attack, images, labels: images)
    monkeypatch.setattr(eaden.EADEN.__init__, "__defaults__", (0, 0.01, 2, 10, True, 0.001, 0.001))
    model = toy.analog()
    before = toy.everything(model)
    attacked(name, model, count=2, eps=0.01)
    assert toy.same(before, toy.everything(model))


@pytest.mark.parametrize(
    "name", [*NAMED, *CLASSES, *(f"{name}-l2" for name in ("apgdt", "autoattack", "fab", "square"))]
)
def test_images_as_an_evaluation_has_them(model: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels are last in their memory, and attacks are only sure of images in order."""
    from torchattacks.attacks import eaden, square

    if name.startswith("torchattacks.autoattack") or name == "autoattack-l2":
        monkeypatch.setattr(square.Square, "forward", lambda attack, images, labels: images.reshape(images.shape))
    monkeypatch.setattr(eaden.EADEN.__init__, "__defaults__", (0, 0.01, 2, 10, True, 0.001, 0.001))
    monkeypatch.setattr(evaluation, "method_named", made)
    x, labels, _ = toy.batch(3)
    points = evaluation.attack(model, (255 * x).to(torch.uint8), labels, [evaluation.Level(eps=0.001)], method=name)
    assert points[0].eps == 0.001


def test_nothing_is_left_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        raise RuntimeError("broken")

    monkeypatch.setattr(_torchattacks().BIM, "forward", broken)
    model = toy.analog()
    before = toy.everything(model)
    with pytest.raises(RuntimeError, match="broken"):
        attacked("bim", model)
    assert toy.same(before, toy.everything(model))


@pytest.mark.parametrize("name", [*NAMED, *(name for name in CLASSES if name not in SLOW)])
def test_within_the_strength_and_the_pixels(model: nn.Module, name: str) -> None:
    x, labels, ids = toy.batch(4)
    x[0, :, :2], x[1, :, :4] = 0, 1
    method, eps = made(name), torch.tensor([0.0, 0.03, 0.1, 0.1])
    found = method.attack(View(Oracle(model, 3), parse_threat("fresh-draw")), x, labels, ids, eps)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    size = root_mean_square(found - x) if method.norm == "L2" else (found - x).abs().flatten(1).amax(1)
    assert (size <= eps + 1e-6).all()
    assert torch.equal(found[0], x[0])


@pytest.mark.parametrize("name", NAMED)
def test_images_beyond_the_pixels_are_refused(model: nn.Module, name: str) -> None:
    x, labels, ids = toy.batch(2)
    with pytest.raises(ValueError, match="x: got pixels from"):
        made(name).attack(toy.view(model), 255 * x, labels, ids, torch.full((2,), 0.1))


def test_the_adapter_against_our_own(model: nn.Module) -> None:
    x, labels, ids = toy.batch()
    view, eps = toy.view(model, "same-draw"), torch.linspace(0.02, 0.1, 12).round(decimals=2)
    ours = method_named("fgsm").attack(view, x, labels, ids, eps)
    theirs = method_named("torchattacks.fgsm").attack(view, x, labels, ids, eps)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    # PGDL2 walks by a fifth of its strength; from where it starts does not matter much after some steps.
    ours = Pgd("pgd-l2", 30, "L2", stride=6).attack(view, x, labels, ids, eps)
    theirs = method_named("torchattacks.PGDL2", 30).attack(view, x, labels, ids, eps)
    assert torch.allclose(view.loss(ours, labels, ids), view.loss(theirs, labels, ids), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", ["bim", "mifgsm", "apgdt", "torchattacks.square", "fab", "deepfool", "cw", "fab-l2"])
def test_ids_follow_the_rows(model: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, ids = toy.batch()
    # One is wrong from the start, so that attacks drop it.
    labels[5] = (labels[5] + 1) % toy.CLASSES
    view, near = toy.view(model), list[bool]()
    answer = view.oracle.answer

    def noted(rows: Tensor, given: Tensor, draw: int) -> Tensor:
        images = torch.stack([x[int((ids == one).nonzero())] for one in given])
        others = torch.cdist(rows.detach().flatten(1), x.flatten(1)).min(1).values
        near.append(torch.allclose((rows.detach() - images).flatten(1).norm(dim=1), others, atol=1e-4))
        return answer(rows, given, draw)

    monkeypatch.setattr(view.oracle, "answer", noted)
    made(name).attack(view, x, labels, ids, torch.full((12,), 0.05))
    assert near
    assert all(near)


@pytest.mark.parametrize("name", ["bim", "mifgsm", "torchattacks.fgsm", "deepfool", "cw"])
def test_attacks_without_random_numbers_do_not_depend_on_the_batch(model: nn.Module, name: str) -> None:
    x, labels, ids = toy.batch()
    method, view, eps = made(name), toy.view(model, "eot 2"), torch.full((12,), 0.05)
    whole = method.attack(view, x, labels, ids, eps)
    turned = method.attack(view, x.flip(0), labels.flip(0), ids.flip(0), eps).flip(0)
    alone = method.attack(view, x[3:4], labels[3:4], ids[3:4], eps[3:4])
    assert torch.allclose(turned, whole, rtol=0, atol=1e-5)
    assert torch.allclose(alone[0], whole[3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["apgd-ce", "autoattack-rand", "torchattacks.pgd", "torchattacks.square", "fab"])
def test_the_same_again_whatever_the_global_generators(model: nn.Module, name: str) -> None:
    first = attacked(name, model)
    with toy.fixed():
        torch.manual_seed(5)
        torch.rand(3)
        second = attacked(name, model)
    assert torch.equal(first, second)


def test_images_that_cannot_be_told_apart_are_attacked_alone(model: nn.Module) -> None:
    x, labels, ids = toy.batch(4)
    x[1] = x[0]
    view, eps = toy.view(model), torch.full((4,), 0.05)
    with pytest.raises(_UnclearRowsError):
        _StandIn(view, x, ids, reach=0.05, norm="Linf")
    method = made("mifgsm")
    whole = method.attack(view, x, labels, ids, eps)
    each = [method.attack(view, x[n : n + 1], labels[n : n + 1], ids[n : n + 1], eps[:1]) for n in range(4)]
    assert torch.allclose(whole, torch.cat(each), rtol=0, atol=1e-6)
    assert not torch.equal(whole[0], whole[1]), "the same image under the draw of another id"


def test_rows_beyond_reach_are_not_guessed(model: nn.Module) -> None:
    x, _, ids = toy.batch(4)
    stand_in = _StandIn(toy.view(model), x, ids, reach=0.05, norm="Linf")
    assert torch.equal(stand_in._ids_of(x[[2, 2, 0]] + 0.04), ids[[2, 2, 0]])
    with pytest.raises(_UnclearRowsError):
        stand_in._ids_of(x[:2] + 0.06)
    whole = _StandIn(toy.view(model), x, ids, reach=0.0, norm="Linf")
    with pytest.raises(_UnclearRowsError):
        whole._ids_of(x[:2])
    assert torch.equal(_StandIn(toy.view(model), x[:1], ids[:1], reach=torch.inf, norm="L2")._ids_of(x), ids[[0] * 4])


@pytest.mark.parametrize("threat", ["fresh-draw", "eot 3", "vote-aware 3"])
def test_the_loss_of_apgd_is_that_of_the_draws(model: nn.Module, threat: str) -> None:
    x, labels, ids = toy.batch()
    view = toy.view(model, threat)
    stand_in = _StandIn(view, x, ids, reach=0.0, norm="Linf")
    for name in ("ce", "dlr"):
        with view.oracle.known():
            point = x.clone().requires_grad_()
            loss = stand_in.loss(name, stand_in(point), labels)
            (slope,) = torch.autograd.grad(loss.sum(), point)
        if name == "ce":
            expected, gradient = view.gradient(x, labels, ids)
            assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-6)
            assert torch.allclose(slope, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("threat", ["fresh-draw", "vote-aware 2", "eot 2"])
def test_losses_of_apgd_fit_among_images_of_which_some_are_right(model: nn.Module, threat: str) -> None:
    x, labels, ids = toy.batch(8)
    labels = torch.where(torch.arange(8) < 4, labels, (labels + 1) % toy.CLASSES)
    view = View(Oracle(model), parse_threat(threat))
    for name in ("apgd-dlr", "apgd-ce"):
        found = method_named(name, 5).attack(view, x, labels, ids, torch.full((8,), 0.02))
        assert found.dtype == x.dtype
        assert float((found - x).abs().max()) <= 0.02 + 1e-6


def test_apgd_keeps_no_clean_images(model: nn.Module) -> None:
    x, labels, ids = toy.batch()
    weak, eps = 0.02, torch.full((12,), 0.02)
    view = toy.view(model)
    found = made("apgd-ce").attack(view, x, labels, ids, eps)
    assert view.wrong(found, labels, ids).mean() < 0.5, "too weak to succeed"
    assert ((found - x).abs().flatten(1).amax(1) > 0.9 * weak).all()
    loss = view.loss(found, labels, ids)
    assert (loss > view.loss(x, labels, ids)).all()
    with view.oracle.known(), toy.fixed():
        _, theirs = (
            _torchattacks().APGD(_StandIn(view, x, ids, reach=weak, norm="Linf"), eps=weak, steps=4).perturb(x, labels)
        )
    assert torch.equal(theirs, x), "as torchattacks does by itself"


def test_lucky_draws() -> None:
    """Torchattacks on a network that draws at each question believes what other draws do not confirm."""
    x, labels, ids = toy.batch(32)
    model, eps = toy.trained(), 0.07
    oracle = Oracle(model, 3)

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.count = nn.Parameter(torch.zeros(())), 0

        def forward(self, rows: Tensor) -> Tensor:
            self.count += 1
            return oracle.answer(rows, torch.arange(len(rows)), 2**20 + self.count)

    with oracle.known(), toy.fixed():
        attack = _torchattacks().APGD(Drawing(), eps=eps, steps=20)
        acc, kept = attack.perturb(x, labels)
    believed = float(acc.double().mean())
    judged = float(judge(oracle, kept, labels, ids, 8).share.mean())
    view = toy.view(model, "eot 6")
    found = method_named("apgd-ce", 20).attack(view, x, labels, ids, torch.full((32,), eps))
    ours = float(judge(oracle, found, labels, ids, 8).share.mean())
    assert believed < judged - 0.05
    assert ours < judged
    assert abs(1 - float(view.wrong(found, labels, ids).mean()) - ours) < judged - believed


def test_both_losses_of_autoattack() -> None:
    x, labels, ids = toy.batch()
    method = made("autoattack-rand")
    assert method.under(parse_threat("fresh-draw")) == parse_threat("eot 20")
    assert method.under(parse_threat("same-draw")) == parse_threat("same-draw")
    view, eps = toy.view(toy.trained(), "eot 3"), torch.full((12,), 0.06)
    both = method.attack(view, x, labels, ids, eps)
    each = [Apgd("x", 4, losses=(loss,)).attack(view, x, labels, ids, eps) for loss in ("ce", "dlr")]
    wrong = torch.stack([view.wrong(found, labels, ids) for found in each])
    assert torch.equal(view.wrong(both, labels, ids), wrong.amax(0))


@pytest.mark.parametrize("name", ["apgd-ce", "bim"])
def test_modes_and_batch_normalisation(name: str) -> None:
    model, training = toy.trained(), toy.trained().train()
    training[1].eval()
    modes = [module.training for module in training.modules()]
    before = {key: value.clone() for key, value in training.state_dict().items()}
    assert torch.equal(attacked(name, model), attacked(name, training)), "attacked as it is evaluated"
    assert [module.training for module in training.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in training.state_dict().items())


@pytest.mark.parametrize("name", ["apgd-ce", "bim"])
def test_constants_of_normalisation_are_not_taken_over(name: str) -> None:
    # torchattacks takes `mean` and `std` of a network of this name, and images for normalised ones.
    class RobModel(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.mean, self.std = np.full(3, 0.5), np.full(3, 0.2)

        def forward(self, x: Tensor) -> Any:
            assert float(x.detach().min()) >= 0
            assert float(x.detach().max()) <= 1
            return self.inner(x)

    assert torch.equal(attacked(name, toy.trained()), attacked(name, RobModel(toy.trained())))


@pytest.mark.parametrize("name", ["cw", "deepfool", "fab", "apgd-dlr"])
def test_gradients_of_parameters(name: str) -> None:
    model = toy.trained()
    weight = next(model.parameters())
    weight.grad = torch.full_like(weight, 0.5)
    attacked(name, model)
    first, *others = model.parameters()
    assert torch.equal(first.grad if first.grad is not None else weight, torch.full_like(weight, 0.5))
    assert all(parameter.grad is None for parameter in others)


@pytest.mark.parametrize("name", ["deepfool", "cw", "apgd-ce", "pgd", "torchattacks.PGDL2"])
def test_without_gradients_images_stay_numbers(name: str) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([1.0, 0.5, 0.2, 0.1]))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)

    assert attacked(name, Flat()).isfinite().all()


@pytest.mark.parametrize("name", ["bim", "torchattacks.PGDL2", "apgd-ce"])
def test_a_very_sure_network_is_no_stronger(name: str) -> None:
    x, labels, ids = toy.batch()
    method, found = method_named(name, 10), []
    for scale in (1, 6):
        view = toy.view(toy.surer(toy.trained(), scale))
        attacked = method.attack(view, x, labels, ids, torch.full((12,), 0.05))
        found.append(toy.view(toy.trained()).loss(attacked, labels, ids))
    assert float(found[1].mean()) > 0.9 * float(found[0].mean())


def test_names() -> None:
    assert isinstance(method_named("cw"), Adapted)
    assert isinstance(method_named("pgd"), Pgd), "our own first"
    assert isinstance(method_named("torchattacks.PGD"), Adapted)
    assert (method_named("mifgsm").steps, method_named("MIFGSM", 3).steps, method_named("ffgsm").steps) == (10, 3, 1)
    assert [method_named(name).norm for name in ("cw", "PGDL2", "fab", "fab-l2", "apgd-dlr-l2", "bim")] == [
        "L2", "L2", "Linf", "L2", "L2", "Linf",
    ]  # fmt: skip
    for name, message in (
        ("jsma", "JSMA is no attack within L2 or Linf"),
        ("multiattack", "MultiAttack is no attack"),
        ("bim-l2", "BIM has no norm to choose"),
    ):
        with pytest.raises(ConfigError, match=message):
            method_named(name)
    with pytest.raises(ConfigError, match="ffgsm has no number of steps"):
        method_named("ffgsm", 3)
    with pytest.raises(ConfigError) as error:
        method_named("mifgssm")
    assert error.value.hint == "did you mean 'mifgsm'?"


def test_sizes_that_squares_can_be_laid_out_in() -> None:
    for size in (*range(4, 17), 20, 28, 32, 64):
        x, model = torch.full((1, 1, size, size), 0.5), nn.Sequential(nn.Flatten(), nn.Linear(size * size, 3))
        # Images that are wrong already are left alone.
        labels = model(x).argmax(1)
        with toy.fixed():
            try:
                _torchattacks().Square(model, norm="L2", n_queries=1).perturb(x, labels)
                works = True
            except (RuntimeError, ZeroDivisionError):
                works = False
        assert _holds_squares(size, size) is works, size


def test_networks_that_an_attack_cannot_take() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1)
            return torch.stack([total, -total], 1)

    x, ids = torch.full((2, 1, 4, 4), 0.5), torch.arange(2)
    for name, message in (
        ("apgd-dlr", "needs 3 classes, the network has 2"),
        ("apgdt", "needs 4 classes"),
        ("tifgsm", "needs images of 3 channels, got 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            method_named(name).attack(toy.view(Two()), x, ids, ids, torch.full((2,), 0.1))
    assert method_named("apgd-ce").attack(toy.view(Two()), x, ids, ids, torch.full((2,), 0.1)).isfinite().all()
