"""Logits and gradients under numbered draws, and that nothing of it is left in the network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.analog.module import exact_gradients, noiseless
from rapa_cli.analysis.evaluation import evaluating
from rapa_cli.attacks.oracle import Loss, Oracle, cross_entropy, difference_of_logits_ratio, without_gradient
from rapa_cli.keyed import draws
from rapa_cli.training.sgd import AnalogSGD
from tests.attacks import toy


def by_autograd(model: nn.Module, x: Tensor, ids: Tensor, draw: int) -> tuple[Tensor, Tensor]:
    """Logits with a graph, and the point they come from."""
    point = x.clone().requires_grad_()
    with draws(model, images=ids, seed=3, draw=draw, stream="attack"):
        return model(point), point


def test_logits_are_those_of_the_draw() -> None:
    model = toy.trained()
    x, _, ids = toy.batch()
    oracle = Oracle(model, seed=3)
    for draw in (0, 7, 2**24):
        with torch.no_grad(), draws(model, images=ids, seed=3, draw=draw, stream="attack"):
            assert torch.equal(oracle.logits(x, ids, draw), model(x))
    assert not torch.equal(oracle.logits(x, ids, 0), oracle.logits(x, ids, 1))
    before = oracle.logits(x, ids, 0)
    model.train()
    assert torch.equal(oracle.logits(x, ids, 0), before), "evaluation mode, whatever the network's"


@pytest.mark.parametrize("loss", Loss)
def test_the_gradient_against_autograd(loss: Loss) -> None:
    model = toy.trained()
    x, labels, ids = toy.batch()
    found, gradient = Oracle(model, seed=3).gradient(x, labels, ids, [5], loss=loss)
    logits, point = by_autograd(model, x, ids, 5)
    expected = difference_of_logits_ratio(logits, labels) if loss is Loss.DLR else F.cross_entropy(logits, labels)
    (slope,) = torch.autograd.grad(expected.sum() * (1 if expected.ndim else len(x)), point)
    assert torch.allclose(found.mean(), expected.mean(), rtol=1e-5)
    assert torch.allclose(gradient, slope, rtol=1e-4, atol=1e-7)
    assert not found.requires_grad


def test_expectation_is_the_mean_of_single_gradients() -> None:
    x, labels, ids = toy.batch()
    oracle, several = Oracle(toy.trained(), seed=3), [0, 2**20 + 1, 2**20 + 2, 9]
    loss, gradient = oracle.gradient(x, labels, ids, several)
    single = [oracle.gradient(x, labels, ids, [draw]) for draw in several]
    assert torch.allclose(loss, torch.stack([each[0] for each in single]).mean(0), rtol=1e-6)
    assert torch.allclose(gradient, torch.stack([each[1] for each in single]).mean(0), rtol=1e-5, atol=1e-9)
    assert torch.allclose(oracle.loss(x, labels, ids, several), loss, rtol=1e-5)


def test_the_gradient_of_a_vote_by_hand() -> None:
    model = toy.trained()
    x, labels, ids = toy.batch()
    oracle, several = Oracle(model, seed=3), [2**24, 2**24 + 1, 2**24 + 2]
    loss, gradient = oracle.gradient(x, labels, ids, several, loss=Loss.VOTE)
    point = x.clone().requires_grad_()
    mean = torch.zeros(())
    for draw in several:
        with draws(model, images=ids, seed=3, draw=draw, stream="attack"):
            mean = mean + model(point).softmax(1) / 3
    expected = -mean.gather(1, labels[:, None])[:, 0].log()
    (slope,) = torch.autograd.grad(expected.sum(), point)
    assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(gradient, slope, rtol=1e-3, atol=1e-6)
    assert torch.allclose(oracle.loss(x, labels, ids, several, loss=Loss.VOTE), loss, rtol=1e-4, atol=1e-6)


def test_a_vote_of_sure_draws_keeps_its_gradient() -> None:
    losses = torch.tensor([[200.0], [210.0], [0.0]])
    assert Loss.VOTE.together(losses[:2]).item() == pytest.approx(200 + math.log(2), abs=1e-3)
    assert Loss.VOTE.weights(losses[:2]).sum().item() == pytest.approx(1)
    assert Loss.VOTE.weights(losses)[:, 0].tolist() == pytest.approx([0, 0, 1])


@pytest.mark.parametrize("scale", [0.1, 1, 10, 20])
def test_cross_entropy_keeps_its_digits(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(500, 5, generator=generator)
    labels = torch.where(torch.arange(500) % 3 > 0, logits.argmax(1), 0)
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = cross_entropy(single, labels)
    others = (double - double.gather(1, labels[:, None])).scatter(1, labels[:, None], -torch.inf)
    expected = others.exp().sum(1).log1p()
    (gradient,) = torch.autograd.grad(found.sum(), single)
    (slope,) = torch.autograd.grad(expected.sum(), double)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-37)
    assert torch.allclose(gradient.double(), slope, rtol=1e-4, atol=1e-37)


def test_a_vote_of_sure_draws_keeps_its_digits() -> None:
    losses = torch.tensor([[1e-9, 1e-3, 2.0, 50.0], [3e-9, 5.0, 3.0, 60.0]])
    expected = -(-losses.double()).exp().mean(0).log()
    assert torch.allclose(Loss.VOTE.together(losses).double(), expected, rtol=1e-5, atol=0)


def test_the_ratio_of_logits_by_hand() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0], [4.0, 1.0, 3.0, 0.0], [2.0, 2.0, 1.0, 0.0]])
    found = difference_of_logits_ratio(logits, torch.tensor([0, 1, 1]))
    assert found.tolist() == pytest.approx([-1 / 3, 3 / 3, 0])
    scaled = difference_of_logits_ratio(9 * logits + 4, torch.tensor([0, 1, 1]))
    assert torch.allclose(scaled, found)


def test_nothing_is_left() -> None:
    for model in (toy.analog(), toy.trained()):
        x, labels, ids = toy.batch()
        oracle = Oracle(model, seed=3)
        x.requires_grad_(False)
        before = toy.everything(model)
        oracle.logits(x, ids, 1)
        oracle.logits(x, ids, 1, noise=False)
        oracle.gradient(x, labels, ids, [0, 4])
        with pytest.raises(ValueError, match="boom"), oracle.known():
            raise ValueError("boom")
        assert toy.same(before, toy.everything(model))
        assert x.grad is None
        assert not x.requires_grad


def test_a_step_of_arrays_is_the_same_after_an_attack() -> None:
    models = toy.analog(), toy.analog()
    x, labels, ids = toy.batch()
    Oracle(models[1]).gradient(x, labels, ids, [0, 1])
    for model in models:
        AnalogSGD(model, lr=0.1).step()
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_who_knows_the_arrays_has_no_noise() -> None:
    model = toy.analog()
    x, labels, ids = toy.batch()
    oracle = Oracle(model)
    quiet = oracle.logits(x, ids, 1, noise=False)
    assert not torch.allclose(quiet, oracle.logits(x, ids, 1))
    loss, gradient = oracle.gradient(x, labels, ids, [1])
    assert torch.allclose(loss, F.cross_entropy(quiet, labels, reduction="none"), rtol=1e-5)
    assert torch.equal(gradient, oracle.gradient(x, labels, ids, [1])[1])
    # Not as the arrays read it backwards, through converters.
    with noiseless(model), evaluating(model), draws(model, images=ids, draw=1, stream="attack"):
        point = x.clone().requires_grad_()
        (read,) = torch.autograd.grad(F.cross_entropy(model(point), labels, reduction="sum"), point)
    draw = draws(model, images=ids, draw=1, stream="attack")
    with exact_gradients(model), noiseless(model), evaluating(model), draw:
        (plain,) = torch.autograd.grad(F.cross_entropy(model(point), labels, reduction="sum"), point)
    assert torch.allclose(gradient, plain, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(gradient, read, rtol=1e-4, atol=1e-7)
    assert not without_gradient(gradient).any()


class Flat(nn.Module):
    """Logits that do not depend on the image, or on the images of odd number only."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.logits = how, nn.Parameter(torch.tensor([1.0, 0.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        fixed = self.logits.expand(len(x), 3)
        if self.how == "cut":
            return fixed
        odd = (torch.arange(len(x)) % 2)[:, None]
        return fixed + odd * x.flatten(1).sum(1, keepdim=True) * torch.tensor([1.0, 0.0, 0.0])


@pytest.mark.parametrize(("how", "without"), [("cut", [True] * 4), ("odd", [True, False] * 2)])
def test_gradients_of_zero_are_seen(how: str, without: list[bool]) -> None:
    x, labels, ids = toy.batch(4)
    _, gradient = Oracle(Flat(how)).gradient(x, labels.clamp(max=2), ids, [0])
    assert without_gradient(gradient).tolist() == without


def test_gradients_that_are_no_numbers_are_none() -> None:
    gradient = torch.ones(4, 3, 2, 2)
    gradient[1, 0, 0, 0], gradient[2] = torch.nan, torch.inf
    assert without_gradient(gradient).tolist() == [False, True, True, False]
