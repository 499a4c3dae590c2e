"""The implicit regularizer of random tiling, in logistic regression (paper, section 4).

Every weight theta_l is replicated over n_t tiles, and whenever it is used a tile s_l is drawn anew. The law is the
paper's unless another is named: all s_l independent and uniform, for each feature and image. (Layers draw balanced
partitions instead, where the tiles of two features are not quite independent.) With A(z) = log(1 + exp z), the logit
z = x · theta^s and a label y of 0 or 1, the loss of an image is A(z) - y z. What depends on the label is linear in z,
and the mean of z over draws is x · mean(theta). So, for any law with uniform s_l,

    <L(theta^s)> = L(mean(theta)) + R,    R = sum_i <A(z_i)> - A(<z_i>) >= 0.

R is free of labels, and 0 where the tiles agree. The lowest expected loss is therefore the lowest loss of a single
tile: more tiles are more weights, but can fit no better. Whether they fit less well, and over-fit less, depends on the
noise that training has beside R; `study` measures it.

Losses and R are sums over images, as in the paper, unless they are called means; in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rapa_cli.data.images import DataSet, Progress, Split, silent
from rapa_cli.errors import ConfigError, suggestion
from rapa_cli.keyed import Draw
from rapa_cli.philox import Purpose, Stream, check_seed, generator, permutation, words
from rapa_cli.tiling.schemes import balanced_partition

MOST_LOGITS = 2**24
"""The most logits, images times draws, that are enumerated."""

TILES = (1, 2, 4, 8, 16, 32, 64)

_CHUNK = 2**20
# Of the images of an experiment: pixels of the average-pooled image, across and down.
_SIDE = 8

Law = Literal["independent", "balanced"]


@dataclass(frozen=True)
class Sampled:
    """A Monte Carlo estimate.

    Attributes:
        value: the estimate, without bias.
        standard_error: of the value, from the spread over the draws.
    """

    value: float
    standard_error: float


def loss(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """L(theta), the negative log-likelihood summed over images.

    Args:
        x: features (N, d).
        y: labels 0 and 1, of the type of `x`, (N,).
        theta: weights (d,).
    """
    return _losses(x @ theta, y).sum()


def expected_loss(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """<L(theta^s)>, by enumeration of all tiles^d draws.

    Args:
        x: features (N, d).
        y: labels 0 and 1, of the type of `x`, (N,).
        theta: weights (tiles, d).

    Raises:
        ValueError: there would be more than `MOST_LOGITS` logits.
    """
    return _mean_over_draws(lambda z: _losses(z, y[:, None]), x, theta)


def regularizer(x: Tensor, theta: Tensor) -> Tensor:
    """R, by enumeration of all tiles^d draws.

    It is summed up from terms of which none is negative, so that little of it is lost to rounding where it is small.

    Args:
        x: features (N, d).
        theta: weights (tiles, d).

    Raises:
        ValueError: there would be more than `MOST_LOGITS` logits.
    """
    mean = x @ theta.mean(0)
    return _mean_over_draws(lambda z: _divergence(z, mean[:, None]), x, theta)


def approximation(x: Tensor, theta: Tensor) -> Tensor:
    """R to second order in the deviations from the mean: 1/2 sum_i p_i (1 - p_i) sum_l (x_l^i)² Var(theta_l).

    The error is of third order, of fourth with two tiles, which lie symmetrically about their mean.

    Args:
        x: features (N, d).
        theta: weights (tiles, d).
    """
    return _approximations(x, theta).sum()


def sampled_regularizer(x: Tensor, theta: Tensor, *, draws: int, seed: int = 0, law: Law = "independent") -> Sampled:
    """R by Monte Carlo, from draws that are independent for each image.

    What is averaged are the terms of `regularizer`, whose spread is of the order of R itself.

    Args:
        x: features (N, d); an image's id, which keys its draws, is its row.
        theta: weights (tiles, d).
        draws: for each image, at least 2.
        seed: in [0, 2^32).
        law: "independent" as in the paper, or "balanced" as layers draw.

    Raises:
        ValueError: fewer than 2 draws, or a seed out of range.
    """
    (z,) = sample_logits(x, [theta], draws=draws, seed=seed, law=law)
    return _sampled(_divergence(z, x @ theta.mean(0)))


def sample_logits(
    x: Tensor, weights: Sequence[Tensor], *, draws: int, seed: int = 0, law: Law = "independent"
) -> list[Tensor]:
    """Logits x · theta^s of keyed draws, which several models share.

    Args:
        x: features (N, d); an image's id is its row.
        weights: of each model (tiles, d).
        draws: for each image, at least 2.
        seed: in [0, 2^32).
        law: of the assignment.

    Returns:
        For each model (draws, N).

    Raises:
        ValueError: fewer than 2 draws, or a seed out of range.
    """
    if draws < 2:
        raise ValueError(f"draws: got {draws}, allowed are whole numbers from 2")
    check_seed(seed)
    count, features = x.shape
    found = [x.new_empty(draws, count) for _ in weights]
    for numbers in torch.split(torch.arange(draws), max(1, _CHUNK // (8 * x.numel()))):
        images, each = torch.arange(count).repeat(len(numbers)), numbers.repeat_interleave(count)
        draw = Draw(seed, each, images, Stream.VOTE)
        drawn = draw.words(Purpose.ASSIGNMENT, count=features) if law == "independent" else None
        for z, theta in zip(found, weights, strict=True):
            if drawn is None:
                tile = balanced_partition(draw, patches=features, tiles=len(theta))
            else:
                tile = drawn * len(theta) >> 32
            z[numbers] = (theta.gather(0, tile).view(-1, count, features) * x).sum(2)
    return found


class Training(StrEnum):
    """What the rate of a training is to the number of tiles.

    A weight of one tile is used by one image in n_t, so that at a given rate the mean over the tiles learns n_t times
    more slowly. SCALED makes up for that. SAME does not, and CONTROL shows what comes of learning slowly alone: its
    rows have a single tile, trained at the rate divided by the row's number of tiles.
    """

    SCALED = "rate x tiles"
    SAME = "same rate"
    CONTROL = "one tile, rate / tiles"


@dataclass(frozen=True)
class Row:
    """One training: means over images in nats, errors in percent.

    Attributes:
        training: of what kind.
        tiles: number of tiles; see `Training` for the control.
        seed: of the training images, their order, weights and assignments.
        regularizer: R on the training images, Monte Carlo.
        regularizer_se: its standard error.
        approximation: of R, second order.
        variance: of a weight across tiles, mean over the weights.
        norm: of the weights averaged over tiles, Euclidean.
        train_loss: mean over draws, L(mean) + R.
        test_loss: the same on test images.
        gap: test loss minus train loss.
        mean_train_loss: of the weights averaged over tiles, L(mean).
        mean_test_loss: the same on test images.
        mean_gap: their difference.
        averaged_train_loss: of the probability averaged over draws, as many votes would give it.
        averaged_test_loss: the same on test images.
        averaged_gap: their difference.
        train_error: mean over draws.
        test_error: the same on test images.
        mean_train_error: of the weights averaged over tiles.
        mean_test_error: the same on test images.
    """

    training: str
    tiles: int
    seed: int
    regularizer: float
    regularizer_se: float
    approximation: float
    variance: float
    norm: float
    train_loss: float
    test_loss: float
    gap: float
    mean_train_loss: float
    mean_test_loss: float
    mean_gap: float
    averaged_train_loss: float
    averaged_test_loss: float
    averaged_gap: float
    train_error: float
    test_error: float
    mean_train_error: float
    mean_test_error: float


KEYS = ("training", "tiles", "seed")
MEASURES = tuple(field.name for field in fields(Row) if field.name not in KEYS)


@dataclass(frozen=True)
class Examples:
    """Features (N, d) and labels 0 and 1 (N,), both float64."""

    x: Tensor
    y: Tensor


def two_classes(
    data: DataSet, *, images: int, classes: tuple[str, str] | None = None, seed: int = 0
) -> tuple[Examples, Examples]:
    """A few training images of two classes, and all their test images.

    Features are the pixels of the image averaged over 8 by 8 squares, each with mean 0 and standard deviation 1 over
    the training images, divided by the root of their number: an image has norm 1 or so, and rates mean the same for
    any number of features. There is no bias, as in the paper.

    Args:
        data: where they are from.
        images: of both classes together in training, half of each.
        classes: their names; by default the first two of the data set.
        seed: chooses the training images.

    Returns:
        Training and test examples; y is 1 for the second class.

    Raises:
        ConfigError: unknown or equal classes, an odd number of images, or one below 4 or too large.
    """
    chosen = classes if classes is not None else data.classes[:2]
    for name in chosen:
        if name not in data.classes:
            raise ConfigError(f"data set '{data.name}' has no class '{name}'", hint=suggestion(name, data.classes))
    if len(set(chosen)) != 2:
        raise ConfigError(f"classes: got {', '.join(chosen)}, allowed are two that differ")
    if images < 4 or images % 2:
        raise ConfigError(f"images: got {images}, allowed are even numbers from 4, half of them of each class")
    numbers = [data.classes.index(name) for name in chosen]
    order = permutation(seed, 0, len(data.train))
    labels = data.train.labels[order]
    parts = [order[labels == number][: images // 2] for number in numbers]
    fewest = min(map(len, parts))
    if fewest < images // 2:
        raise ConfigError(f"images: got {images}, but '{data.name}' has {fewest} of a class", hint="ask for fewer")
    train, test = _examples(data.train, torch.cat(parts), numbers[1]), _examples_of(data.test, numbers)
    mean, std = train.x.mean(0), train.x.std(0).clamp_min(1 / 255)
    scale = std * math.sqrt(len(mean))
    return Examples((train.x - mean) / scale, train.y), Examples((test.x - mean) / scale, test.y)


def study(
    train: Examples,
    test: Examples,
    *,
    tiles: Sequence[int] = TILES,
    epochs: int = 200,
    seed: int = 0,
    rate: float = 1.0,
    batch_size: int = 10,
    spread: float = 0.0,
    draws: int = 50,
    on_epoch: Callable[[int], None] = lambda _: None,
) -> list[Row]:
    """Trains logistic regressions with each number of tiles by SGD, and measures them.

    Every image gets a new assignment in every epoch. All trainings of a seed share images, order and random words.

    Args:
        train: the training images.
        test: the test images.
        tiles: numbers of tiles.
        epochs: of each training.
        seed: in [0, 2^32).
        rate: learning rate with one tile, of the mean loss of a batch; see `Training`.
        batch_size: images of a step.
        spread: standard deviation of the first weights, drawn for each tile; at 0 all variance comes from training.
        draws: of each image when losses over draws are estimated.
        on_epoch: called with 1 after each epoch.

    Returns:
        Rows for each kind of training and number of tiles, in this order.

    Raises:
        ValueError: a number out of its range.
    """
    if not tiles or min(tiles) < 1:
        raise ValueError(f"tiles: got {tuple(tiles)}, allowed are whole numbers from 1")
    for name, number in (("epochs", epochs), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name}: got {number}, allowed are whole numbers from 1")
    check_seed(seed)
    runs = [
        *((Training.SCALED, count, count, rate * count) for count in tiles),
        *((Training.SAME, count, count, rate) for count in tiles),
        *((Training.CONTROL, count, 1, rate / count) for count in tiles),
    ]
    weights = _fit(
        train,
        [matrices for _, _, matrices, _ in runs],
        [own for _, _, _, own in runs],
        epochs=epochs,
        seed=seed,
        batch_size=batch_size,
        spread=spread,
        on_epoch=on_epoch,
    )
    seen = _measure(train, weights, draws, seed)
    unseen = _measure(test, weights, draws, seed)
    return [
        Row(
            training=str(training),
            tiles=count,
            seed=seed,
            regularizer=a.regularizer.value,
            regularizer_se=a.regularizer.standard_error,
            approximation=a.approximation,
            variance=float(theta.var(0, correction=0).mean()),
            norm=float(theta.mean(0).norm()),
            train_loss=a.loss,
            test_loss=b.loss,
            gap=b.loss - a.loss,
            mean_train_loss=a.mean_loss,
            mean_test_loss=b.mean_loss,
            mean_gap=b.mean_loss - a.mean_loss,
            averaged_train_loss=a.averaged_loss,
            averaged_test_loss=b.averaged_loss,
            averaged_gap=b.averaged_loss - a.averaged_loss,
            train_error=a.error,
            test_error=b.error,
            mean_train_error=a.mean_error,
            mean_test_error=b.mean_error,
        )
        for (training, count, _, _), theta, a, b in zip(runs, weights, seen, unseen, strict=True)
    ]


def run_regularizer(
    data: DataSet,
    *,
    tiles: Sequence[int] = TILES,
    images: int = 200,
    epochs: int = 200,
    seeds: Sequence[int] = range(5),
    classes: tuple[str, str] | None = None,
    rate: float = 1.0,
    spread: float = 0.0,
    draws: int = 50,
    on_step: Progress = silent,
) -> list[dict[str, Any]]:
    """The study on a data set, over several seeds.

    Args:
        data: the data set.
        tiles: numbers of tiles.
        images: training images, half of each class; each seed has others.
        epochs: of each training.
        seeds: of the trainings.
        classes: two of the data set; by default its first two.
        rate: learning rate with one tile.
        spread: standard deviation of the first weights.
        draws: of each image when losses over draws are estimated.
        on_step: called after each epoch.

    Returns:
        For each kind of training and number of tiles a dictionary that JSON can hold: "training", "tiles", "seed", and
        each of `MEASURES`, the last ones as lists with a number for each seed.

    Raises:
        ConfigError: see `two_classes`; or there is no seed.
        ValueError: see `study`.
    """
    if not seeds:
        raise ConfigError("seeds: got none, at least one is needed")
    done, total = 0, epochs * len(seeds)

    def count(epoch: int) -> None:
        nonlocal done
        done += epoch
        on_step("logistic regressions", done, total)

    found = [
        study(
            *two_classes(data, images=images, classes=classes, seed=seed),
            tiles=tiles,
            epochs=epochs,
            seed=seed,
            rate=rate,
            spread=spread,
            draws=draws,
            on_epoch=count,
        )
        for seed in seeds
    ]
    tables = [[asdict(row) for row in rows] for rows in zip(*found, strict=True)]
    return [
        {
            "training": rows[0]["training"],
            "tiles": rows[0]["tiles"],
            **{name: [row[name] for row in rows] for name in ("seed", *MEASURES)},
        }
        for rows in tables
    ]


def _losses(z: Tensor, y: Tensor) -> Tensor:
    """A(z) - y z, the loss of single images."""
    return _log_partition(z) - y * z


def _log_partition(z: Tensor) -> Tensor:
    """A(z) = log(1 + exp z); torch's softplus is z itself from 20 on, which is wrong by 2e-9."""
    return torch.logaddexp(z, torch.zeros_like(z))


def _divergence(z: Tensor, mean: Tensor) -> Tensor:
    """A(z) - A(mean) - A'(mean) (z - mean): what A(z) has over its tangent at the mean.

    Its mean over the draws is that of A(z) - A(mean), as that of z - mean is 0. It is never negative but by rounding.
    """
    tangent = _log_partition(mean) + torch.sigmoid(mean) * (z - mean)
    return (_log_partition(z) - tangent).clamp_min(0)


def _mean_over_draws(function: Callable[[Tensor], Tensor], x: Tensor, theta: Tensor) -> Tensor:
    """The mean over all draws of a function of logits (N, any), summed over images; a part of the draws at a time."""
    (count, features), tiles = x.shape, len(theta)
    if count * tiles**features > MOST_LOGITS:
        raise ValueError(
            f"x, theta: {count} images with {tiles}^{features} draws are too many to enumerate, allowed are "
            f"{MOST_LOGITS:,} logits; sampled_regularizer takes any number"
        )
    # A logit is the sum of a part that the first half of the features makes and of one that the second half makes.
    half = features // 2
    first, second = (_partial_logits(x[:, part], theta[:, part]) for part in (slice(half), slice(half, None)))
    total = x.new_zeros(())
    for part in torch.split(first, max(1, _CHUNK // second.numel()), dim=1):
        total = total + function((part[:, :, None] + second[:, None]).flatten(1)).sum()
    return total.div(tiles**features)


def _partial_logits(x: Tensor, theta: Tensor) -> Tensor:
    """Logits for every s, (N, tiles^features)."""
    z = x.new_zeros(len(x), 1)
    for feature in range(x.shape[1]):
        z = (z[:, :, None] + (x[:, feature, None] * theta[:, feature])[:, None]).flatten(1)
    return z


def _approximations(x: Tensor, theta: Tensor) -> Tensor:
    """The second-order approximation for each image (N,)."""
    z = x @ theta.mean(0)
    # 1 - p would have no digits left where p is near 1.
    return torch.sigmoid(z) * torch.sigmoid(-z) / 2 * (x.square() @ theta.var(0, correction=0))


def _sampled(terms: Tensor) -> Sampled:
    """The sum over images of means over draws; terms (draws, N)."""
    error = (terms.var(0) / len(terms)).sum().sqrt()
    return Sampled(float(terms.mean(0).sum()), float(error))


@dataclass(frozen=True)
class _Measured:
    """Means over images of one model: losses, R, and errors in percent."""

    loss: float
    mean_loss: float
    averaged_loss: float
    regularizer: Sampled
    approximation: float
    error: float
    mean_error: float


def _measure(examples: Examples, weights: Sequence[Tensor], draws: int, seed: int) -> list[_Measured]:
    x, y = examples.x, examples.y
    found = []
    for theta, z in zip(weights, sample_logits(x, weights, draws=draws, seed=seed), strict=True):
        mean = x @ theta.mean(0)
        terms = _divergence(z, mean)
        mean_loss, own = float(_losses(mean, y).mean()), _sampled(terms / len(x))
        # The probability of the true class.
        right = torch.sigmoid(torch.where(y > 0, z, -z)).mean(0)
        found.append(
            _Measured(
                loss=mean_loss + own.value,
                mean_loss=mean_loss,
                averaged_loss=float(-right.log().mean()),
                regularizer=own,
                approximation=float(_approximations(x, theta).mean()),
                error=_error(z, y),
                mean_error=_error(mean, y),
            )
        )
    return found


def _error(z: Tensor, y: Tensor) -> float:
    """In percent, of logits (..., N)."""
    return 100 * float(((z > 0) != (y > 0)).double().mean())


def _fit(
    train: Examples,
    tiles: Sequence[int],
    rates: Sequence[float],
    *,
    epochs: int,
    seed: int,
    batch_size: int,
    spread: float,
    on_epoch: Callable[[int], None],
) -> list[Tensor]:
    """SGD of several models at once; their weights lie one after the other in one vector."""
    count, features = train.x.shape
    sizes = [each * features for each in tiles]
    numbers = torch.tensor(tiles)[:, None, None]
    starts = numbers.cumsum(0).sub(numbers).mul(features) + torch.arange(features)
    steps = torch.tensor(rates, dtype=torch.float64)[:, None, None]
    random = generator(Purpose.INITIALISATION, seed)
    theta = spread * torch.randn(sum(sizes), dtype=torch.float64, generator=random)
    ids = torch.arange(count)
    for epoch in range(1, epochs + 1):
        drawn = words(Purpose.ASSIGNMENT, seed, images=ids, count=features, draw=epoch)
        for batch in torch.split(permutation(seed, epoch, count), batch_size):
            x = train.x[batch]
            places = starts + (drawn[batch] * numbers >> 32) * features
            z = (theta[places] * x).sum(2, keepdim=True)
            slope = torch.sigmoid(z) - train.y[batch, None]
            theta.index_add_(0, places.flatten(), (slope * x).mul_(-steps / len(batch)).flatten())
        on_epoch(1)
    return [part.view(-1, features) for part in torch.split(theta, sizes)]


def _examples_of(split: Split, numbers: Sequence[int]) -> Examples:
    wanted = torch.isin(split.labels, torch.tensor(numbers))
    return _examples(split, wanted.nonzero()[:, 0], numbers[1])


def _examples(split: Split, rows: Tensor, second: int) -> Examples:
    pixels = split.images[rows].double() / 255
    height, width = pixels.shape[2:]
    pooled = F.adaptive_avg_pool2d(pixels, (min(_SIDE, height), min(_SIDE, width)))
    return Examples(pooled.flatten(1), (split.labels[rows] == second).double())
