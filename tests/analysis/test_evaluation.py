"""The error of a network, and its interval."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional as F

from rapa_cli.analysis.evaluation import Evaluation, evaluate, evaluating, wilson
from rapa_cli.keyed import draws
from rapa_cli.layers.network import Network
from rapa_cli.tiling.conv import TiledConv2d
from tests.training import tiny


@pytest.fixture
def network() -> Network:
    return tiny.network(scheme="random", pool="stochastic", seed=5)


@given(st.integers(1, 100_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilsons_interval(counts: tuple[int, int]) -> None:
    successes, trials = counts
    found = wilson(successes, trials)
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert 0 <= found[0] <= 100 * successes / trials <= found[1] <= 100


def test_the_ends_of_the_interval() -> None:
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 100.0
    assert wilson(0, 0) == (0.0, 100.0)


def test_what_follows_from_the_counts() -> None:
    result = Evaluation(images=400, wrong=57, loss=0.5)
    assert result.error == 14.25
    assert result.ci95 == wilson(57, 400)


@pytest.mark.parametrize("draw", [0, 3])
def test_against_a_plain_count(network: Network, draw: int) -> None:
    test = tiny.data_set(test=25).test
    found = evaluate(network, test.images, test.labels, seed=4, draw=draw)
    with torch.no_grad(), draws(network, images=torch.arange(25), seed=4, draw=draw, stream="test"):
        logits = network(tiny.pixels(test))
    assert found.wrong == sum(int(row.argmax()) != int(label) for row, label in zip(logits, test.labels, strict=True))
    assert found.images == 25
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, test.labels)), rel=1e-5)


def test_the_batch_changes_no_assignment(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    test = tiny.data_set(test=25).test
    assign, seen = TiledConv2d.assign, dict[int, list[torch.Tensor]]()

    def noted(layer: TiledConv2d, images: int | torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        assignment = assign(layer, images, size)
        seen.setdefault(layer.tiles, []).append(assignment)
        return assignment

    monkeypatch.setattr(TiledConv2d, "assign", noted)
    found = []
    for size in (1, 7, 25, 200):
        seen.clear()
        result = evaluate(network, test.images, test.labels, seed=4, batch_size=size)
        found.append((result.wrong, {tiles: torch.cat(parts) for tiles, parts in seen.items()}))
        assert result.loss == pytest.approx(evaluate(network, test.images, test.labels, seed=4).loss, rel=1e-4)
    for wrong, assignments in found:
        assert wrong == found[0][0]
        assert assignments.keys() == {4}
        assert torch.equal(assignments[4], found[0][1][4])


def test_images_are_counted_as_they_are_done(network: Network) -> None:
    test, counts = tiny.data_set(test=25).test, list[int]()
    evaluate(network, test.images, test.labels, batch_size=10, on_batch=counts.append)
    assert counts == [10, 10, 5]


def test_the_network_stays_as_it_is(network: Network) -> None:
    test = tiny.data_set().test
    network.train()
    network.get_submodule("pool1").eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(network, test.images, test.labels)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()), "calls included"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mode_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.ReLU().eval())
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]
