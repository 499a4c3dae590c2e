"""The majority of several draws."""

from __future__ import annotations

import gc
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rapa_cli import vote
from rapa_cli.analysis.calibration import Calibration, Outcomes
from rapa_cli.analysis.evaluation import wilson
from rapa_cli.analysis.voting import Point, VoteResult, majority, vote_error
from rapa_cli.data.images import Split
from rapa_cli.keyed import draws
from rapa_cli.layers.network import Network
from tests.training import tiny

COUNT = 25


@pytest.fixture
def network() -> Network:
    """Untrained, so that its draws disagree on many images."""
    return tiny.network(scheme="random", tiles=(16, 8), seed=5)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(COUNT, *tiny.SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def test() -> Split:
    """Noise, with labels."""
    pixels = torch.randint(0, 256, (60, *tiny.SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Split(pixels, torch.arange(60) % len(tiny.CLASSES))


@pytest.fixture
def undecided(network: Network, test: Split) -> Network:
    """No class is likelier than another on the whole, so that draws disagree, and votes are tied."""
    with torch.no_grad():
        network.get_parameter("linear1.bias").sub_(network(tiny.pixels(test)).mean(0))
    return network


def probabilities(network: Network, images: Tensor, n: int, seed: int) -> list[Tensor]:
    """Of each class, for each draw."""
    found = []
    for draw in range(n):
        with torch.no_grad(), draws(network, images=torch.arange(len(images)), seed=seed, draw=draw, stream="vote"):
            found.append(network(images).softmax(1))
    return found


def counted(chances: list[list[float]]) -> int:
    """The vote on one image, given each draw's probabilities."""
    classes = range(len(chances[0]))
    votes = [sum(max(classes, key=chance.__getitem__) == which for chance in chances) for which in classes]
    means = [sum(chance[which] for chance in chances) / len(chances) for which in classes]
    return max(classes, key=lambda which: (votes[which], means[which]))


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_against_a_plain_count(network: Network, images: Tensor, n: int) -> None:
    found = vote(network, images, n, seed=9)
    draws_ = probabilities(network, images, n, seed=9)
    assert found.dtype == torch.int64
    assert found.tolist() == [counted([draw[image].tolist() for draw in draws_]) for image in range(COUNT)]
    if n == 1:
        assert torch.equal(found, draws_[0].argmax(1))
    else:
        singles = torch.stack([draw.argmax(1) for draw in draws_])
        assert (singles != singles[0]).any(), "the draws differ, so that there is something to vote on"


def test_the_seed_chooses_the_draws(network: Network, images: Tensor) -> None:
    first, second = (probabilities(network, images, 1, seed)[0] for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_error_is_that_of_the_votes(network: Network, n: int) -> None:
    test = tiny.data_set(test=COUNT).test
    result = vote_error(network, test.images, test.labels, n, seed=9, batch_size=7)
    pixels = tiny.pixels(test)
    assert result.images == COUNT
    assert result.vote_wrong == int((vote(network, pixels, n, seed=9) != test.labels).sum())
    assert result.votes_wrong[-1] == result.vote_wrong
    singles = [draw.argmax(1) for draw in probabilities(network, pixels, n, seed=9)]
    assert result.single_wrong == tuple(int((single != test.labels).sum()) for single in singles)
    wrong = torch.stack([single != test.labels for single in singles]).double().mean(0)
    gains = 100 * (wrong - (vote(network, pixels, n, seed=9) != test.labels).double())
    assert result.gain == pytest.approx(float(gains.mean()), abs=1e-9)
    assert result.gain_se == pytest.approx(float(gains.std(correction=0)) / COUNT**0.5, abs=1e-6)
    if n == 1:
        assert result.vote_error == result.single_error


def test_what_follows_from_the_counts() -> None:
    nothing = Outcomes(torch.eye(2, dtype=torch.int64), Calibration(*torch.ones(3, 15)))
    result = VoteResult(200, (20, 30, 25), (20, 22, 19), (20, 22, 18), 180, 2, nothing, nothing, nothing)
    assert (result.single_error, result.vote_error, result.soft_error) == (12.5, 9.5, 9)
    assert (result.vote_ci95, result.soft_ci95) == (wilson(19, 200), wilson(18, 200))
    assert result.single_sd == pytest.approx(statistics.stdev([10, 15, 12.5]))
    assert result.gain == 3.0
    # The mean square of the gain is 180 / 9 / 200 = 0.1, its mean 0.03.
    assert result.gain_se == pytest.approx(100 * ((0.1 - 0.03**2) / 200) ** 0.5)
    assert result.curve == [
        Point(1, 10, 10, wilson(20, 200), 10, wilson(20, 200)),
        Point(2, 15, 11, wilson(22, 200), 11, wilson(22, 200)),
        Point(3, 12.5, 9.5, wilson(19, 200), 9, wilson(18, 200)),
    ]


def test_the_curve_is_that_of_the_first_draws(undecided: Network, test: Split) -> None:
    """One pass gives what votes of 1, 2, ... draws give, each by itself."""
    result = vote_error(undecided, test.images, test.labels, 6, seed=9)
    alone = [vote_error(undecided, test.images, test.labels, n, seed=9, batch_size=25) for n in range(1, 7)]
    assert [point.n for point in result.curve] == [1, 2, 3, 4, 5, 6]
    assert [point.vote_error for point in result.curve] == [each.vote_error for each in alone]
    assert [point.soft_error for point in result.curve] == [each.soft_error for each in alone]
    assert [point.ci95 for point in result.curve] == [each.vote_ci95 for each in alone]
    assert result.single_wrong == alone[-1].single_wrong
    assert len({point.vote_error for point in result.curve}) > 2, "there is something to see"


@pytest.mark.parametrize("n", [1, 4, 5])
def test_soft_votes_ties_and_confidence_against_a_plain_count(undecided: Network, test: Split, n: int) -> None:
    result = vote_error(undecided, test.images, test.labels, n, seed=9, batch_size=10)
    chances = [draw.double().tolist() for draw in probabilities(undecided, tiny.pixels(test), n, seed=9)]
    classes = range(len(tiny.CLASSES))
    soft_wrong, ties = 0, 0
    tables = [[[0] * 3 for _ in classes] for _ in range(3)]
    sure: list[list[float]] = [[], [], []]
    for image, label in enumerate(test.labels.tolist()):
        each = [draw[image] for draw in chances]
        means = [sum(chance[which] for chance in each) / n for which in classes]
        chosen = [max(classes, key=chance.__getitem__) for chance in each]
        votes = [chosen.count(which) for which in classes]
        winner, soft = counted(each), max(classes, key=means.__getitem__)
        soft_wrong += soft != label
        ties += votes.count(max(votes)) > 1
        for which, chance in zip(chosen, each, strict=True):
            tables[0][label][which] += 1
            sure[0].append(chance[which])
        for number, which, confidence in ((1, winner, votes[winner] / n), (2, soft, means[soft])):
            tables[number][label][which] += 1
            sure[number].append(confidence)
    assert (result.softs_wrong[-1], result.ties) == (soft_wrong, ties)
    for outcome, table, confidences in zip((result.single, result.vote, result.soft), tables, sure, strict=True):
        assert outcome.confusion.tolist() == table
        assert outcome.calibration.mean_confidence == pytest.approx(100 * statistics.fmean(confidences), abs=1e-4)
        assert outcome.calibration.accuracy == pytest.approx(100 - outcome.error)
    assert result.single.error == pytest.approx(result.single_error)
    assert result.vote.error == pytest.approx(result.vote_error)
    assert ties > 0 or n != 4, "even votes meet ties here"


def held() -> int:
    """Bytes of all tensors that are alive; of other classes are those that hold nothing, and may not be asked."""
    gc.collect()
    alive = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}.values())


def test_memory_does_not_grow_with_the_draws(network: Network) -> None:
    """After the last of many draws tensors hold what they held after the third, on many images."""
    test = tiny.data_set(test=50).test
    seen: list[int] = []
    draws_done = 0

    def measure(images: int) -> None:
        nonlocal draws_done
        draws_done += 1
        assert images == 50
        if draws_done in (3, 150):
            seen.append(held())

    result = vote_error(network, test.images, test.labels, 150, on_draw=measure)
    assert len(result.single_wrong) == draws_done == 150
    assert seen[0] == seen[1]


@pytest.mark.parametrize("n", [0, -1])
def test_no_draws(network: Network, images: Tensor, n: int) -> None:
    test = tiny.data_set().test
    with pytest.raises(ValueError, match=f"n: got {n}, allowed are whole numbers from 1"):
        vote(network, images, n)
    with pytest.raises(ValueError, match=f"n: got {n}, allowed are whole numbers from 1"):
        vote_error(network, test.images, test.labels, n)


def test_no_images() -> None:
    assert vote(tiny.network(), torch.zeros(0, *tiny.SHAPE), 3).shape == (0,)
    with pytest.raises(ValueError, match="images: got none"):
        vote_error(tiny.network(), torch.zeros(0, *tiny.SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), 3)


def test_the_network_stays_as_it_is(network: Network, images: Tensor) -> None:
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    vote(network, images, 3)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_votes_that_can_be_seen() -> None:
    votes = torch.tensor([[3, 1, 1], [2, 2, 1], [2, 2, 1], [0, 0, 5], [1, 1, 1]])
    probability = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.2, 0.5], [0.2, 0.3, 0.5], [0.9, 0.1, 0.0], [0.3, 0.3, 0.4]])
    assert majority(votes, probability).tolist() == [0, 0, 1, 2, 2]


@given(
    st.integers(1, 6).flatmap(
        lambda classes: st.lists(
            st.lists(st.floats(0, 1, width=32), min_size=classes, max_size=classes), min_size=1, max_size=7
        )
    )
)
def test_the_majority_of_any_draws(chances: list[list[float]]) -> None:
    table = torch.tensor(chances, dtype=torch.float64)
    chosen = table.argmax(1)
    votes = torch.bincount(chosen, minlength=table.shape[1])[None]
    winner = int(majority(votes, table.mean(0, keepdim=True)))
    assert int(votes[0, winner]) == int(votes.max())
    rivals = votes[0] == votes.max()
    assert float(table.mean(0)[winner]) == float(table.mean(0)[rivals].max())
