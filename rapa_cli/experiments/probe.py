"""How long jobs will take and what they leave on the disk, from a few measured steps of each network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rapa_cli.config import Network, load_network
from rapa_cli.data.catalog import open_data
from rapa_cli.errors import RapaError
from rapa_cli.experiments.jobs import Job, with_needs
from rapa_cli.experiments.settings import recipe_asked
from rapa_cli.keyed import draws
from rapa_cli.layers.network import Statistics, build, resolve
from rapa_cli.training.schedule import optimizer

# Training and test images, and the shape of those, of data sets that may not be there yet.
_OFFICIAL = {
    "cifar10": (50_000, 10_000, (3, 32, 32), 10),
    "cifar100": (50_000, 10_000, (3, 32, 32), 100),
    "svhn": (73_257, 26_032, (3, 32, 32), 10),
}
# Steps are measured for so long, after a first one that compiles and allocates.
_SECONDS = 0.6
_TEST_BATCH = 200
# Starting a process, importing torch, opening the data.
_START_SECONDS = 5.0
# A gradient costs as much as so many passes forward.
_GRADIENT = 3
_REGULARIZER_SECONDS = 60.0
_BYTES = 4


@dataclass(frozen=True)
class Estimate:
    """What a job costs.

    Attributes:
        seconds: on one slot.
        bytes: on the disk.
    """

    seconds: float
    bytes: int


@dataclass(frozen=True)
class _Data:
    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class _Speed:
    """Images a second, and the size of a checkpoint in bytes."""

    train: float
    test: float
    size: int


def estimates(
    jobs: Sequence[Job],
    device: torch.device,
    data_dir: Path | None = None,
    *,
    on_network: Callable[[int, int], None] | None = None,
) -> Mapping[Job, Estimate]:
    """Estimates for jobs and all that they need.

    Args:
        jobs: a plan.
        device: where steps are measured; with as many threads as torch has now.
        data_dir: folder of the data sets, or None for the usual one.
        on_network: called with the networks measured so far and their number.

    Raises:
        ConfigError: a network or recipe is wrong.
    """
    every = with_needs(jobs)
    trainings = {job: _network_words(job) for job in every if job.trains}
    sizes = {name: _data(name, data_dir) for name in dict.fromkeys(job.option("--data") for job in every) if name}
    # One training of each network stands for the others.
    distinct = {words: job for job, words in trainings.items()}
    speeds: dict[tuple[str | None, ...], _Speed] = {}
    for number, (words, job) in enumerate(distinct.items(), 1):
        speeds[words] = _speed(job, sizes[job.option("--data") or ""], device)
        if on_network is not None:
            on_network(number, len(distinct))
    found = {}
    for job in every:
        run = next((one for one in (job, *job.needs) if one.trains), None)
        if run is None:
            found[job] = Estimate(_START_SECONDS + _REGULARIZER_SECONDS, 0)
        else:
            found[job] = _estimate(job, run, speeds[trainings[run]], sizes[run.option("--data") or ""])
    return found


def _estimate(job: Job, run: Job, speed: _Speed, data: _Data) -> Estimate:
    images = min(int(job.option("--images") or data.test), data.test)
    if job.trains:
        epochs = recipe_asked(job).epochs
        seconds = epochs * (data.train / speed.train + data.test / speed.test * recipe_asked(job).test_votes)
        # Weights in last and best, momentum in last.
        return Estimate(_START_SECONDS + seconds, 2 * speed.size + (speed.size if recipe_asked(job).momentum else 0))
    levels = len((job.option("--snr") or job.option("--confidence") or "").split(","))
    passes = {
        "vote": int(job.option("-n") or 0),
        "reduce": 2,
        "attack": (1 + _GRADIENT + levels) * (1 + (job.option("--baseline") is not None)),
        "evaluate": 1 + _GRADIENT + levels,
    }.get(job.words[0], 0)
    return Estimate(_START_SECONDS + passes * images / speed.test, speed.size if job.words[0] == "reduce" else 0)


def _speed(job: Job, data: _Data, device: torch.device) -> _Speed:
    definition, recipe = _network(job, data), recipe_asked(job)
    ones = torch.ones(data.shape[0])
    statistics = Statistics(ones, ones, torch.zeros(data.shape))
    network = build(definition, data.shape, data.classes, seed=0, statistics=statistics).to(device)
    sgd = optimizer(network, recipe)

    def step(size: int, *, train: bool) -> None:
        x = torch.rand(size, *data.shape, device=device)
        ids = torch.arange(size, device=device)
        with draws(network, images=ids, seed=0, draw=0, stream="train"), torch.set_grad_enabled(train):
            logits = network(x)
        if train:
            loss = nn.functional.cross_entropy(logits, ids % data.classes)
            sgd.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    network.train()
    trained = _rate(lambda: step(recipe.batch_size, train=True)) * recipe.batch_size
    network.eval()
    tested = _rate(lambda: step(_TEST_BATCH, train=False)) * _TEST_BATCH
    return _Speed(trained, tested, _BYTES * sum(parameter.numel() for parameter in network.parameters()))


def _rate(step: Callable[[], None]) -> float:
    """Steps a second."""
    step()
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < _SECONDS:
        step()
        count += 1
    return count / passed


def _network(job: Job, data: _Data) -> Network:
    tiles = tuple(int(count) for count in (job.option("--tiles") or "1").split(","))
    definition = load_network(job.option("--network") or "full")
    return resolve(definition, data.shape, scheme=job.option("--scheme"), tiles=tiles, pool=job.option("--pool"))


def _network_words(job: Job) -> tuple[str | None, ...]:
    """What decides how fast a training is."""
    names = ("--network", "--scheme", "--tiles", "--pool", "--data", "--recipe")
    return tuple(job.option(name) for name in names)


def _data(name: str, data_dir: Path | None) -> _Data:
    """Sizes of a data set; of one that is not there, what is known of it."""
    try:
        found = open_data(name, data_dir)
        return _Data(len(found.train), len(found.test), found.shape, len(found.classes))
    except RapaError:
        if name not in _OFFICIAL:
            raise
        return _Data(*_OFFICIAL[name])
