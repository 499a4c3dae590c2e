"""FGSM, the law of the signal-to-noise ratio, and accuracy under attack."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.analysis.evaluation import wilson
from rapa_cli.attacks.evaluation import Level, attack
from rapa_cli.attacks.fgsm import perturb
from rapa_cli.attacks.snr import eps_for_snr, snr_db
from rapa_cli.data.images import Split
from rapa_cli.keyed import draws
from rapa_cli.layers.network import Network
from tests.attacks.toy import gradient_sign
from tests.training import tiny

EPS = [0.0, 1 / 255, 8 / 255, 0.2]


@pytest.fixture(params=[{"scheme": "random"}, {"pool": "mixed"}], ids=["random", "none"])
def network(request: pytest.FixtureRequest) -> Network:
    return tiny.network(seed=5, **request.param)


@pytest.fixture
def test() -> Split:
    return tiny.data_set(test=24).test


def theirs(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks
    found: Tensor = torchattacks.FGSM(model, eps=eps)(x, y)
    return found


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3])
def test_against_torchattacks(network: Network, test: Split, eps: float) -> None:
    x, y, ids = tiny.pixels(test), test.labels, torch.arange(24)
    with draws(network, images=ids, seed=3, draw=0, stream="attack"):
        expected = theirs(network, x, y, eps)
    # What another library does to torch's generator must not matter.
    torch.rand(3)
    with draws(network, images=ids, seed=3, draw=0, stream="attack"):
        sign = gradient_sign(network, x, y)
    assert torch.allclose(perturb(x, sign, eps), expected, rtol=0, atol=1e-6)
    assert set(sign.flatten().tolist()) <= {-1.0, 0.0, 1.0}
    assert not torch.equal(sign, torch.zeros_like(sign))


def test_one_strength_for_each_image() -> None:
    x, sign = torch.full((3, 1, 2, 2), 0.5), torch.ones(3, 1, 2, 2)
    sign[2] = -1
    found = perturb(x, sign, torch.tensor([0.1, 0.7, 0.2]))
    assert found.flatten(1)[:, 0].tolist() == pytest.approx([0.6, 1.0, 0.3])
    assert torch.equal(perturb(x, sign, 0.0), x)


@given(st.floats(0, 80), st.integers(0, 1000))
def test_the_strength_of_a_signal_to_noise_ratio(snr: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 0.4 + 0.2 * torch.rand(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, x.shape, generator=generator) * 2.0 - 1
    eps = eps_for_snr(x, snr)
    root_mean_square = [math.sqrt(float(image.square().mean())) for image in x]
    assert eps.tolist() == pytest.approx([value / 10 ** (snr / 20) for value in root_mean_square])
    # Where nothing is cut the ratio comes out as asked for.
    noisy = x + eps[:, None, None, None] * sign
    assert snr_db(x, noisy).tolist() == pytest.approx([snr] * 3, abs=1e-6)
    # Cutting makes the noise smaller and so the ratio larger.
    assert (snr_db(x, perturb(x, sign, eps)) >= snr_db(x, noisy) - 1e-9).all()


def test_the_ratio_by_hand() -> None:
    x = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2) / 10
    assert snr_db(x, x + torch.tensor([0.05, 0.0])).item() == pytest.approx(20)
    assert snr_db(x, x.clone()).item() == math.inf


def test_black_images_have_no_ratio() -> None:
    black = torch.zeros(2, 1, 2, 2)
    assert eps_for_snr(black, 20).tolist() == [0, 0]
    assert snr_db(black, black.clone()).tolist() == [math.inf, math.inf]
    assert snr_db(black, black + 0.1).tolist() == [-math.inf, -math.inf]


def by_hand(network: Network, test: Split, eps: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which images count, which of them are right under attack, and the attacked images."""
    x, y, ids = tiny.pixels(test).requires_grad_(), test.labels, torch.arange(len(test))
    with draws(network, images=ids, seed=seed, draw=0, stream="attack"):
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), y), x)
    noisy = (x.detach() + eps[:, None, None, None] * gradient.sign()).clamp(0, 1)
    with torch.no_grad(), draws(network, images=ids, seed=seed, draw=1, stream="attack"):
        counted = network(x).argmax(1) == y
        right = counted & (network(noisy).argmax(1) == y)
    return counted, right, noisy


@pytest.mark.parametrize("size", [5, 100])
def test_by_hand_over_eps(network: Network, test: Split, size: int) -> None:
    points = attack(network, test.images, test.labels, [Level(eps=eps) for eps in EPS], seed=3, batch_size=size)
    assert [point.eps for point in points] == EPS, "as they were asked for, to the last digit"
    for point, eps in zip(points, EPS, strict=True):
        counted, right, noisy = by_hand(network, test, torch.full((24,), eps), seed=3)
        assert (point.correct, point.counted) == (int(right.sum()), int(counted.sum()))
        assert point.accuracy == 100 * point.correct / point.counted
        assert point.ci95 == wilson(point.correct, point.counted)
        if eps:
            ratio = snr_db(tiny.pixels(test), noisy)[counted].mean()
            assert point.snr_db == pytest.approx(float(ratio), rel=1e-4)
    assert points[0].counted > 0
    assert (points[0].accuracy, points[0].snr_db) == (100.0, math.inf)


def test_by_hand_over_snr(network: Network, test: Split) -> None:
    (point,) = attack(network, test.images, test.labels, [Level(snr_db=20)], seed=3)
    eps = eps_for_snr(tiny.pixels(test), 20)
    counted, right, noisy = by_hand(network, test, eps, seed=3)
    assert (point.correct, point.counted) == (int(right.sum()), int(counted.sum()))
    assert point.eps == pytest.approx(float(eps[counted].mean()), rel=1e-5)
    assert point.snr_db == pytest.approx(float(snr_db(tiny.pixels(test), noisy)[counted].mean()), rel=1e-5)
    assert point.snr_db >= 20


def test_the_draws_differ(test: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    from rapa_cli.tiling.conv import TiledConv2d

    network, seen = tiny.network(scheme="random", tiles=(4, 1)), list[Tensor]()
    assign = TiledConv2d.assign

    def noted(layer: TiledConv2d, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        seen.append(assign(layer, images, size))
        return seen[-1]

    monkeypatch.setattr(TiledConv2d, "assign", noted)
    attack(network, test.images, test.labels, [Level(eps=0.1), Level(eps=0.2)])
    clean, gradient, *noisy = seen
    assert not torch.equal(gradient, clean)
    assert len(noisy) == 2
    assert all(torch.equal(clean, other) for other in noisy), "one draw scores the clean and the noisy image"


def test_the_network_stays_as_it_is(network: Network, test: Split) -> None:
    network.train()
    network.get_submodule("conv1").eval()
    weight = next(network.parameters())
    weight.grad = torch.full_like(weight, 0.5)
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state, images = torch.get_rng_state(), test.images.clone()
    attack(network, test.images, test.labels, [Level(eps=0.1), Level(snr_db=20)])
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()), "calls included"
    first, *others = network.parameters()
    assert torch.equal(first.grad if first.grad is not None else torch.zeros(()), torch.full_like(weight, 0.5))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in others)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(test.images, images)


def test_images_are_counted_as_they_are_done(network: Network, test: Split) -> None:
    counts: list[int] = []
    attack(network, test.images, test.labels, [Level(eps=0.1)], batch_size=10, on_batch=counts.append)
    assert counts == [10, 10, 4]


class Constant(nn.Module):
    """Gives every image the same logits, so that the gradient at its pixels is 0."""

    def __init__(self, favourite: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(F.one_hot(torch.tensor(favourite), 3).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)


def test_a_network_that_is_always_wrong(test: Split) -> None:
    labels = torch.ones_like(test.labels)
    points = attack(Constant(0), test.images, labels, [Level(eps=0.1), Level(snr_db=20)])
    assert [(point.correct, point.counted) for point in points] == [(0, 0), (0, 0)]
    assert all(math.isnan(point.accuracy) and math.isnan(point.snr_db) for point in points)
    assert points[0].eps == 0.1
    assert math.isnan(points[1].eps)
    assert points[0].ci95 == (0.0, 100.0)


def test_images_without_a_gradient(test: Split) -> None:
    labels = torch.zeros_like(test.labels)
    for point in attack(Constant(0), test.images, labels, [Level(eps=0.1), Level(snr_db=20)]):
        assert (point.accuracy, point.snr_db) == (100.0, math.inf)


@pytest.fixture
def half_black(test: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, every other one black, with labels that the network gives them."""
    images = test.images.clone()
    images[::2] = 0
    yield images, torch.zeros_like(test.labels)


class Brightness(nn.Module):
    """Class 0 whatever the image, with a gradient at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([10 - self.slope * x.flatten(1).sum(1), torch.zeros(len(x))], 1)


def test_black_images_do_not_spoil_the_mean(half_black: tuple[Tensor, Tensor]) -> None:
    images, labels = half_black
    levels = [Level(eps=0.0), Level(eps=0.01), Level(snr_db=40)]
    none, some, ratio = attack(Brightness(), images, labels, levels)
    x = images.to(torch.float32)[1::2] / 255
    assert none.snr_db == math.inf
    assert some.snr_db == pytest.approx(float(snr_db(x, (x + 0.01).clamp(max=1)).mean()), rel=1e-4)
    assert ratio.snr_db == pytest.approx(40, abs=0.5)
    assert ratio.eps == pytest.approx(float(eps_for_snr(x, 40).mean()) / 2, rel=1e-4)
    assert all(point.counted == 24 for point in (none, some, ratio))
