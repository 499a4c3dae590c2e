"""What attackers know: which draws they take, and how they are named."""

from __future__ import annotations

import pytest
import torch

from rapa_cli.attacks.methods import method_named
from rapa_cli.attacks.oracle import Loss, Oracle
from rapa_cli.attacks.threat import Threat, View, parse_threat
from rapa_cli.errors import ConfigError
from tests.attacks import toy


@pytest.mark.parametrize(
    ("text", "threat"),
    [
        ("same-draw", Threat("same-draw")),
        (" Fresh-Draw ", Threat("fresh-draw")),
        ("eot 16", Threat("eot", 16)),
        ("eot:8", Threat("eot", 8)),
        ("eot=8", Threat("eot", 8)),
        ("eot4", Threat("eot", 4)),
        ("eot", Threat("eot", 16)),
        ("vote-aware 5", Threat("vote-aware", 5)),
        ("vote-aware", Threat("vote-aware", 16)),
        ("transfer", Threat("transfer")),
        ("noise", Threat("noise")),
    ],
)
def test_names(text: str, threat: Threat) -> None:
    assert parse_threat(text) == threat
    assert parse_threat(str(threat)) == threat


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("eott 3", "there is no 'eott'", "did you mean 'eot'"),
        ("fresh", "there is no 'fresh'", "fresh-draw"),
        ("", "there is no ''", "known: "),
        ("eot 3 4", "there is no 'eot 3 4'", "eot"),
        ("noise 3", "has no number of draws", "write noise"),
        ("eot 0", "got 0 draws for eot, allowed are 1 to 4096", "eot 16"),
        ("vote-aware 5000", "got 5000 draws", "vote-aware 16"),
    ],
)
def test_wrong_names(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="threat: ") as error:
        parse_threat(text)
    assert message in error.value.message
    assert hint in str(error.value.hint)


def test_draws() -> None:
    assert Threat("fresh-draw").draws(5) == Threat("transfer").draws(5) == (0,)
    assert Threat("same-draw").draws(5) == (6,)
    assert Threat("eot", 3).draws(5) == (0, 2**20 + 1, 2**20 + 2)
    assert Threat("vote-aware", 3).draws(5) == (2**24, 2**24 + 1, 2**24 + 2)
    assert Threat("noise").draws() == ()


def test_draws_of_later_steps() -> None:
    assert Threat("fresh-draw").draws(step=2) == (2**20 + 2,)
    assert Threat("eot", 3).draws(step=2) == (2**20 + 6, 2**20 + 7, 2**20 + 8)
    for fixed in (Threat("same-draw"), Threat("vote-aware", 3)):
        assert fixed.draws(4, step=0) == fixed.draws(4, step=9)
    assert all(2**20 < draw < 2**24 for draw in Threat("eot", 4096).draws(step=10_000)), "never one that judges"


def test_a_view_asks_for_the_threats_draws() -> None:
    x, labels, ids = toy.batch()
    oracle = Oracle(toy.trained(), seed=3)
    for threat, expected, loss in (
        ("same-draw", [3], Loss.CROSS_ENTROPY),
        ("eot 2", [0, 2**20 + 1], Loss.CROSS_ENTROPY),
        ("vote-aware 2", [2**24, 2**24 + 1], Loss.VOTE),
    ):
        view = View(oracle, parse_threat(threat), scoring=2)
        found = view.gradient(x, labels, ids)
        wanted = oracle.gradient(x, labels, ids, expected, loss=loss)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
        assert torch.equal(view.loss(x, labels, ids), oracle.loss(x, labels, ids, expected, loss=loss))
    mean = torch.stack([oracle.logits(x, ids, draw) for draw in (0, 2**20 + 1)]).mean(0)
    assert torch.equal(View(oracle, Threat("eot", 2)).logits(x, ids), mean)
    vote = torch.stack([oracle.logits(x, ids, 2**24 + draw).softmax(1) for draw in (0, 1)]).mean(0).log()
    assert torch.allclose(View(oracle, Threat("vote-aware", 2)).logits(x, ids), vote, atol=1e-5)


def test_an_attacks_own_success() -> None:
    x, labels, ids = toy.batch()
    view = toy.view(toy.trained(), "eot 3")
    each = torch.stack([view.oracle.logits(x, ids, draw).argmax(1) for draw in (0, 2**20 + 1, 2**20 + 2)])
    wrong = (labels + (torch.arange(12) % 2)) % toy.CLASSES
    assert torch.allclose(view.wrong(x, wrong, ids), (each != wrong).float().mean(0))
    vote = toy.view(toy.trained(), "vote-aware 3")
    assert torch.equal(vote.wrong(x, wrong, ids) > 0, vote.logits(x, ids).argmax(1) != wrong)


def test_noise_sees_nothing() -> None:
    x, labels, ids = toy.batch()
    view = toy.view(toy.trained(), "noise")
    loss, gradient = view.gradient(x, labels, ids)
    assert not loss.any()
    assert torch.equal(gradient, view.signs(x, ids))
    with pytest.raises(ConfigError, match="sees nothing"):
        view.logits(x, ids)
    with pytest.raises(ConfigError, match="sees nothing"):
        view.loss(x, labels, ids)
    with pytest.raises(ConfigError, match="sees nothing"):
        view.wrong(x, labels, ids)
    with pytest.raises(ConfigError, match="sees nothing"):
        method_named("apgd-ce").attack(view, x, labels, ids, torch.full((12,), 0.1))


def test_random_words_are_of_seed_image_and_use() -> None:
    _, _, ids = toy.batch(4)
    view, other = toy.view(toy.trained(), seed=3), toy.view(toy.trained(), seed=4)
    words = view.words(ids, 6, part=1)
    assert torch.equal(view.words(ids.flip(0), 6, part=1).flip(0), words)
    for different in (other.words(ids, 6, part=1), view.words(ids, 6, part=2), view.words(ids, 6, part=1, step=1)):
        assert not (different == words).any()
    signs = view.signs(torch.zeros(4, 3, 40, 40), ids)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.04
