"""The implicit regularizer: its identity, its estimates, and the experiment."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import asdict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rapa_cli.analysis import regularizer as module
from rapa_cli.analysis.regularizer import (
    MEASURES,
    MOST_LOGITS,
    Examples,
    Row,
    Training,
    approximation,
    expected_loss,
    loss,
    regularizer,
    run_regularizer,
    sample_logits,
    sampled_regularizer,
    study,
    two_classes,
)
from rapa_cli.data import shapes, store
from rapa_cli.data.images import DataSet
from rapa_cli.errors import ConfigError
from rapa_cli.philox import Purpose, permutation, words
from tests.tolerances import assert_equally_likely, assert_near, assert_plausible

IDENTITY = 1e-10

steady = settings(deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow])

Case = tuple[Tensor, Tensor, Tensor]


def case(seed: int, images: int, features: int, tiles: int, scale: float = 1.0) -> Case:
    """Features (N, d), labels (N,), weights (tiles, d), all float64."""
    random = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(images, features, dtype=torch.float64, generator=random)
    y = torch.randint(2, (images,), generator=random).double()
    return x, y, torch.randn(tiles, features, dtype=torch.float64, generator=random)


@st.composite
def cases(draw: st.DrawFn, tiles: int = 1) -> Case:
    features = draw(st.integers(1, 5))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    return case(draw(st.integers(0, 10**6)), draw(st.integers(1, 4)), features, draw(st.integers(tiles, 4)), scale)


def log_partition(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def logits(x: Tensor, theta: Tensor, draws: Iterable[tuple[int, ...]]) -> list[list[float]]:
    """For each draw, the logit of each image, in plain Python."""
    weights = theta.tolist()
    return [
        [math.fsum(value * weights[tile][place] for place, (value, tile) in enumerate(zip(row, draw, strict=True)))
         for row in x.tolist()]
        for draw in draws
    ]  # fmt: skip


def all_draws(theta: Tensor) -> list[tuple[int, ...]]:
    return list(itertools.product(range(len(theta)), repeat=theta.shape[1]))


def oracle(x: Tensor, y: Tensor, theta: Tensor, draws: list[tuple[int, ...]]) -> tuple[float, float, float]:
    """The expected loss, the loss of the mean weights, and R, over draws that are equally likely."""
    found = logits(x, theta, draws)
    (mean,) = logits(x, theta.mean(0, keepdim=True), [(0,) * theta.shape[1]])
    labels = y.tolist()

    def total(z: list[float]) -> float:
        return math.fsum(log_partition(each) - label * each for each, label in zip(z, labels, strict=True))

    partition = [math.fsum(map(log_partition, z)) for z in (*found, mean)]
    r = math.fsum(partition[:-1]) / len(draws) - partition[-1]
    return math.fsum(map(total, found)) / len(draws), total(mean), r


@steady
@given(cases())
def test_the_expected_loss_is_that_of_the_mean_weights_and_r(drawn: Case) -> None:
    x, y, theta = drawn
    expected, mean, r = oracle(x, y, theta, all_draws(theta))
    scale = max(1.0, abs(expected))
    assert abs(float(expected_loss(x, y, theta)) - expected) < IDENTITY * scale
    assert abs(float(loss(x, y, theta.mean(0))) - mean) < IDENTITY * scale
    assert abs(float(regularizer(x, theta)) - r) < IDENTITY * scale
    split = loss(x, y, theta.mean(0)) + regularizer(x, theta)
    assert abs(float(expected_loss(x, y, theta) - split)) < IDENTITY * scale


@steady
@given(cases(tiles=2))
def test_r_is_positive_and_no_expected_loss_is_below_that_of_one_tile(drawn: Case) -> None:
    x, y, theta = drawn
    assert float(regularizer(x, theta)) >= 0
    # Beyond logits of some 30 A is a straight line to the last bit, and R is too small to be seen.
    if float((x.abs() @ theta.abs().amax(0)).max()) < 10:
        assert float(regularizer(x, theta)) > 0
    single = loss(x, y, theta.mean(0))
    assert float(expected_loss(x, y, theta)) >= float(single) - IDENTITY * max(1.0, float(single))


@steady
@given(cases())
def test_r_vanishes_where_the_tiles_agree(drawn: Case) -> None:
    x, _, theta = drawn
    same = theta[:1].expand_as(theta)
    scale = max(1.0, float((x.abs() @ same[0].abs()).max()))
    assert float(regularizer(x, same)) < 1e-14 * len(x) * scale
    assert float(approximation(x, same)) < 1e-14 * len(x) * scale
    assert sampled_regularizer(x, same, draws=2).value < 1e-14 * len(x) * scale


@steady
@given(cases(tiles=2), st.integers(0, 10**6))
def test_which_tile_holds_which_weight_makes_no_difference(drawn: Case, seed: int) -> None:
    x, _, theta = drawn
    random = torch.Generator().manual_seed(seed)
    order = torch.rand(theta.shape, generator=random).argsort(0)
    mixed = theta.gather(0, order)
    assert_near(regularizer(x, mixed), regularizer(x, theta))
    assert_near(approximation(x, mixed), approximation(x, theta))


def test_large_logits() -> None:
    x, theta = torch.full((1, 1), 30.0, dtype=torch.float64), torch.tensor([[1.0], [0.7]], dtype=torch.float64)
    expected = (log_partition(30) + log_partition(21)) / 2 - log_partition(25.5)
    assert float(regularizer(x, theta)) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-10, "torch's softplus would make it 0"


def test_enumeration_goes_through_draws_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, theta = case(0, 3, 5, 3)
    whole = expected_loss(x, y, theta), regularizer(x, theta)
    sizes: list[int] = []
    losses = module._losses

    def recorded(z: Tensor, labels: Tensor) -> Tensor:
        sizes.append(z.numel())
        return losses(z, labels)

    monkeypatch.setattr(module, "_CHUNK", 200)
    monkeypatch.setattr(module, "_losses", recorded)
    assert_near(torch.stack([expected_loss(x, y, theta), regularizer(x, theta)]), torch.stack(whole))
    assert max(sizes) <= 200
    assert sum(sizes) == 3 * 3**5


def test_what_is_too_large_to_enumerate_is_refused() -> None:
    x, theta = torch.zeros(1, 25, dtype=torch.float64), torch.zeros(2, 25, dtype=torch.float64)
    message = rf"1 images with 2\^25 draws .* allowed are {MOST_LOGITS:,} logits"
    with pytest.raises(ValueError, match=message):
        regularizer(x, theta)
    with pytest.raises(ValueError, match=message):
        expected_loss(x, torch.zeros(1, dtype=torch.float64), theta)
    x, theta = torch.zeros(MOST_LOGITS // 64, 6), torch.zeros(2, 6)
    assert float(regularizer(x, theta)) == 0
    with pytest.raises(ValueError, match="too many to enumerate"):
        regularizer(torch.zeros(MOST_LOGITS // 64 + 1, 6), theta)


@steady
@given(cases())
def test_the_approximation_is_its_formula(drawn: Case) -> None:
    x, _, theta = drawn
    tiles = len(theta)
    total = 0.0
    means = [math.fsum(column) / tiles for column in theta.T.tolist()]
    variances = [
        math.fsum((w - m) ** 2 for w in column) / tiles for column, m in zip(theta.T.tolist(), means, strict=True)
    ]
    for row in x.tolist():
        z = math.fsum(a * b for a, b in zip(row, means, strict=True))
        second = math.exp(-log_partition(-z) - log_partition(z))
        total += second / 2 * math.fsum(a * a * v for a, v in zip(row, variances, strict=True))
    assert float(approximation(x, theta)) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("tiles", "order"), [(2, 4), (3, 3), (5, 3)])
def test_the_order_of_the_approximation(tiles: int, order: int) -> None:
    """Halving the spread takes 2^3 off the error, and 2^4 with two tiles, whose third moments are 0."""
    x, _, theta = case(0, 1, 4, tiles)
    # With skewed weights and features above 0, and one image, no parts of the third-order term cancel.
    x, theta = x.abs(), theta.exp()
    mean = theta.mean(0)
    errors = []
    for spread in (0.02, 0.01, 0.005):
        narrow = mean + spread * (theta - mean)
        errors.append(abs(float(regularizer(x, narrow) - approximation(x, narrow))))
    for wide, half in itertools.pairwise(errors):
        assert math.log2(wide / half) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tiles", [2, 3, 5])
def test_the_next_term_of_the_approximation(tiles: int, seed: int) -> None:
    """The third derivative of A and third moment of z, of each image, by 3!; with two tiles the fourth ones."""
    x, _, theta = case(seed, 6, 4, tiles)
    mean = theta.mean(0)
    p = (x @ mean).sigmoid()
    order = 4 if tiles == 2 else 3
    derivative = p * (1 - p) * (1 - 6 * p * (1 - p) if order == 4 else 1 - 2 * p)
    z = torch.tensor(logits(x, theta - mean, all_draws(theta)), dtype=torch.float64)
    terms = derivative * z.pow(order).mean(0) / math.factorial(order)

    def coefficient(spread: float) -> float:
        narrow = mean + spread * (theta - mean)
        return float(regularizer(x, narrow) - approximation(x, narrow)) / spread**order

    # Twice the value at half the spread minus that at the whole: what is left is two orders smaller.
    found = 2 * coefficient(0.01) - coefficient(0.02)
    assert found == pytest.approx(float(terms.sum()), abs=0.01 * float(terms.abs().sum()))


def test_float32() -> None:
    x, y, theta = case(1, 4, 4, 3)
    for found, exact in (
        (regularizer(x.float(), theta.float()), regularizer(x, theta)),
        (expected_loss(x.float(), y.float(), theta.float()), expected_loss(x, y, theta)),
        (approximation(x.float(), theta.float()), approximation(x, theta)),
    ):
        assert found.dtype == torch.float32
        assert_near(found, exact.float())


def test_r_has_a_gradient() -> None:
    x, _, theta = case(2, 3, 3, 3)
    assert torch.autograd.gradcheck(lambda weights: regularizer(x, weights), theta.requires_grad_())


# Monte Carlo


def balanced_draws(tiles: int, features: int) -> list[tuple[int, ...]]:
    """All assignments that give each tile equally many features."""
    return sorted(set(itertools.permutations([place * tiles // features for place in range(features)])))


@pytest.mark.parametrize("law", ["independent", "balanced"])
def test_monte_carlo_and_its_standard_error(law: module.Law) -> None:
    x, y, theta = case(3, 5, 4, 2)
    draws = all_draws(theta) if law == "independent" else balanced_draws(2, 4)
    expected, mean, r = oracle(x, y, theta, draws)
    assert expected - mean == pytest.approx(r, rel=1e-10), "the loss splits under either law"
    repeats = 400
    found = [sampled_regularizer(x, theta, draws=200, seed=seed, law=law) for seed in range(repeats)]
    standard = torch.tensor([(each.value - r) / each.standard_error for each in found])
    assert abs(float(standard.mean())) < 4 / math.sqrt(repeats), "no bias"
    assert_plausible(float(standard.square().sum()), repeats)


def test_the_laws_differ() -> None:
    x = torch.ones(3, 4, dtype=torch.float64)
    theta = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 4)
    assert sampled_regularizer(x, theta, draws=20, law="balanced").value < 1e-14, "always two weights of each tile"
    assert sampled_regularizer(x, theta, draws=20).value > 0.1


def test_tiles_are_uniform_and_independent() -> None:
    tiles = 4
    numbers = torch.arange(tiles, dtype=torch.float64)
    theta = torch.stack([numbers, tiles * numbers], 1)
    (z,) = sample_logits(torch.ones(40, 2, dtype=torch.float64), [theta], draws=100)
    assert z.shape == (100, 40)
    assert_equally_likely(torch.bincount(z.flatten().long(), minlength=tiles * tiles))
    for first, second in ((z[0], z[1]), (z[:, 0], z[:, 1])):
        assert not torch.equal(first, second), "each draw and image has its own"


def test_draws_are_keyed() -> None:
    x, _, theta = case(4, 8, 6, 3)
    whole, other = sample_logits(x, [theta, theta[:2]], draws=5, seed=7)
    assert torch.equal(sample_logits(x[:3], [theta], draws=4, seed=7)[0], whole[:4, :3])
    assert torch.equal(sample_logits(x, [theta[:2]], draws=5, seed=7)[0], other)
    assert not torch.equal(sample_logits(x, [theta], draws=5, seed=8)[0], whole)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sampled_regularizer(x, theta, draws=2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("draws", "seed"), [(1, 0), (2, -1), (2, 2**32)])
def test_wrong_numbers_of_draws_and_seeds(draws: int, seed: int) -> None:
    with pytest.raises(ValueError, match=r"^(draws|seed): got "):
        sampled_regularizer(torch.zeros(1, 1), torch.zeros(2, 1), draws=draws, seed=seed)


# The experiment


@pytest.fixture(scope="module")
def data() -> DataSet:
    train, test = shapes.draw_splits(train=200, test=100)
    return DataSet("shapes", shapes.CLASSES, train, test, *store.constants(train.images))


def examples(seed: int, images: int = 12, features: int = 6) -> Examples:
    x, y, _ = case(seed, images, features, 1)
    return Examples(x, y)


def sgd(train: Examples, tiles: int, rate: float, *, epochs: int, seed: int, batch_size: int) -> Tensor:
    """The training with one weight at a time, its gradients from autograd."""
    count, features = train.x.shape
    theta = torch.zeros(tiles, features, dtype=torch.float64, requires_grad=True)
    for epoch in range(1, epochs + 1):
        drawn = words(Purpose.ASSIGNMENT, seed, images=torch.arange(count), count=features, draw=epoch).tolist()
        for batch in permutation(seed, epoch, count).split(batch_size):  # type: ignore[no-untyped-call]
            total = torch.zeros((), dtype=torch.float64)
            for image in batch.tolist():
                s = [word * tiles // 2**32 for word in drawn[image]]
                z = (train.x[image] * theta[s, range(features)]).sum()
                total = total - torch.nn.functional.logsigmoid(z if train.y[image] else -z)
            (gradient,) = torch.autograd.grad(total / len(batch), theta)
            with torch.no_grad():
                theta -= rate * gradient
    return theta.detach()


def test_training_against_autograd() -> None:
    train, test, rate = examples(0), examples(1), 0.4
    rows = study(train, test, tiles=(1, 3), epochs=3, seed=5, rate=rate, batch_size=5, draws=2)
    for row in rows:
        tiles = 1 if row.training == Training.CONTROL else row.tiles
        own = {Training.SCALED: rate * row.tiles, Training.SAME: rate, Training.CONTROL: rate / row.tiles}
        theta = sgd(train, tiles, own[Training(row.training)], epochs=3, seed=5, batch_size=5)
        mean = theta.mean(0)
        assert row.norm == pytest.approx(float(mean.norm()), rel=1e-10)
        assert row.variance == pytest.approx(float(theta.var(0, correction=0).mean()), rel=1e-10)
        assert row.approximation == pytest.approx(float(approximation(train.x, theta)) / 12, rel=1e-10)
        assert row.mean_test_loss == pytest.approx(float(loss(test.x, test.y, mean)) / 12, rel=1e-10)
        wrong = (test.x @ mean > 0) != (test.y > 0)
        assert row.mean_test_error == pytest.approx(100 * float(wrong.double().mean()))


def test_measures_belong_together() -> None:
    train, test = examples(0), examples(1)
    rows = study(train, test, tiles=(1, 2, 5), epochs=30, draws=4000)
    assert [(row.training, row.tiles) for row in rows] == [(kind, n) for kind in Training for n in (1, 2, 5)]
    for row in rows:
        assert row.train_loss == pytest.approx(row.mean_train_loss + row.regularizer)
        for kind in ("", "mean_", "averaged_"):
            values = asdict(row)
            assert values[f"{kind}gap"] == pytest.approx(values[f"{kind}test_loss"] - values[f"{kind}train_loss"])
        assert row.averaged_test_loss <= row.test_loss + 0.02, "Jensen, but for Monte Carlo"
        if row.tiles == 1 or row.training == Training.CONTROL:
            assert row.variance < 1e-30
            assert row.regularizer < 1e-14
            assert row.test_error == row.mean_test_error
            assert row.averaged_test_loss == pytest.approx(row.mean_test_loss)
        else:
            assert row.regularizer > 5 * row.regularizer_se > 0
    single = [row for row in rows if row.tiles == 1]
    assert {row.norm for row in single} == {single[0].norm}, "with one tile all trainings are the same"


def test_sampled_measures_against_enumeration() -> None:
    """The trainings are found again by hand, so that every draw of theirs can be enumerated."""
    train, test = examples(0, features=4), examples(1, features=4)
    row = study(train, test, tiles=(3,), epochs=20, seed=2, rate=0.5, batch_size=6, draws=3000)[0]
    theta = sgd(train, 3, 1.5, epochs=20, seed=2, batch_size=6)
    assert row.regularizer == pytest.approx(float(regularizer(train.x, theta)) / 12, abs=4 * row.regularizer_se)
    z = torch.tensor(logits(test.x, theta, all_draws(theta)), dtype=torch.float64)
    assert row.test_error == pytest.approx(100 * float(((z > 0) != (test.y > 0)).double().mean()), abs=1)
    p = torch.where(test.y > 0, z, -z).sigmoid().mean(0)
    assert row.averaged_test_loss == pytest.approx(-float(p.log().mean()), abs=0.01)
    exact = float(expected_loss(test.x, test.y, theta)) / 12
    assert row.test_loss == pytest.approx(exact, abs=0.02)
    assert abs(row.averaged_test_loss - exact) > 0.03, "the two are told apart"


def test_tiles_that_begin_apart_come_together() -> None:
    train, test = (examples(seed, images=60, features=3) for seed in (0, 1))

    def variance(epochs: int) -> float:
        return study(train, test, tiles=(4,), epochs=epochs, rate=0.2, spread=1.0, draws=2)[0].variance

    assert variance(50) < variance(1) / 5


@pytest.mark.parametrize(
    ("wrong", "name"), [({"tiles": ()}, "tiles"), ({"tiles": (2, 0)}, "tiles"), ({"epochs": 0}, "epochs"),
                        ({"batch_size": 0}, "batch_size"), ({"seed": -1}, "seed"), ({"draws": 1}, "draws")],
)  # fmt: skip
def test_numbers_out_of_range(wrong: dict[str, int], name: str) -> None:
    settings = {"tiles": (2,), "epochs": 1} | wrong
    with pytest.raises(ValueError, match=f"^{name}: got "):
        study(examples(0), examples(1), **settings)  # type: ignore[arg-type]


def test_two_classes(data: DataSet) -> None:
    names = data.classes[4], data.classes[1]
    train, test = two_classes(data, images=20, classes=names, seed=3)
    assert train.x.shape == (20, 192)
    assert len(test.x) == 20
    assert train.x.dtype == train.y.dtype == torch.float64
    assert int(train.y.sum()) == 10
    assert int(test.y.sum()) == 10
    assert_near(train.x.mean(0), torch.zeros(192, dtype=torch.float64))
    assert_near(train.x.square().sum(1).mean(), torch.tensor(19 / 20, dtype=torch.float64))
    # A test feature by hand: the mean of 4 x 4 pixels, as seen from those of the training images.
    order = permutation(3, 0, 200)
    chosen = torch.cat([order[data.train.labels[order] == label][:10] for label in (4, 1)])
    block = data.train.images[chosen, 1, 8:12, 28:32].double().mean((1, 2)) / 255
    first = next(place for place, label in enumerate(data.test.labels.tolist()) if label in (1, 4))
    value = data.test.images[first, 1, 8:12, 28:32].double().mean() / 255
    assert float(test.x[0, 64 + 2 * 8 + 7]) == pytest.approx(
        float((value - block.mean()) / block.std()) / math.sqrt(192), rel=1e-10
    )
    assert float(test.y[0]) == float(data.test.labels[first] == 1)
    other, _ = two_classes(data, images=20, classes=names, seed=4)
    assert not torch.equal(other.x, train.x)


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (21, None, "images: got 21, allowed are even numbers from 4"),
        (2, None, "images: got 2, allowed are even numbers from 4"),
        (42, None, "images: got 42, but 'shapes' has 20 of a class"),
        (20, (shapes.CLASSES[0], "nothing"), "has no class 'nothing'"),
        (20, (shapes.CLASSES[0], shapes.CLASSES[0]), "allowed are two that differ"),
    ],
)
def test_what_two_classes_refuses(data: DataSet, images: int, classes: tuple[str, str] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        two_classes(data, images=images, classes=classes)


def test_the_experiment(data: DataSet) -> None:
    steps: list[tuple[str, int, int]] = []
    settings = {"tiles": (1, 8), "images": 40, "epochs": 10, "draws": 10}
    rows = run_regularizer(data, seeds=(0, 3), on_step=lambda *step: steps.append(step), **settings)  # type: ignore[arg-type]
    assert json.loads(json.dumps(rows)) == rows
    assert [done for _, done, _ in steps] == list(range(1, 21))
    assert {total for _, _, total in steps} == {20}
    assert [(row["training"], row["tiles"]) for row in rows] == [(kind, n) for kind in Training for n in (1, 8)]
    for row in rows:
        assert set(row) == {"training", "tiles", "seed", *MEASURES}
        assert row["seed"] == [0, 3]
        assert all(len(row[name]) == 2 for name in MEASURES)
        assert row["mean_train_loss"][0] != row["mean_train_loss"][1], "each seed has images of its own"
    again = run_regularizer(data, seeds=(3,), **settings)  # type: ignore[arg-type]
    for row, single in zip(rows, again, strict=True):
        assert all(row[name][1:] == single[name] for name in MEASURES), "a seed is the same beside others"


def test_no_seeds(data: DataSet) -> None:
    with pytest.raises(ConfigError, match="at least one is needed"):
        run_regularizer(data, seeds=())


def test_what_the_experiment_finds(data: DataSet) -> None:
    """R grows with the tiles, its approximation is near; at the same rate tiles are as one tile that learns slowly."""
    train, test = two_classes(data, images=40)
    rows = study(train, test, tiles=(2, 8, 32), epochs=100, draws=100)
    by: dict[str, list[Row]] = {kind: [row for row in rows if row.training == kind] for kind in Training}
    scaled = by[Training.SCALED]
    for few, many in itertools.pairwise(scaled):
        assert many.regularizer > 2 * few.regularizer
        assert many.variance > 2 * few.variance
    for row in scaled:
        assert row.approximation == pytest.approx(row.regularizer, rel=0.2)
    for row, control in zip(by[Training.SAME], by[Training.CONTROL], strict=True):
        assert row.mean_train_loss == pytest.approx(control.mean_train_loss, rel=0.02)
        assert row.mean_test_loss == pytest.approx(control.mean_test_loss, rel=0.02)
