"""Judging on draws that no attacker has seen."""

from __future__ import annotations

import pytest
import torch

from rapa_cli.attacks.judging import Judgement, judge, voting_draws
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.threat import parse_threat
from rapa_cli.errors import ConfigError
from tests.attacks import toy


def test_by_hand() -> None:
    probability = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.3, 0.3]], dtype=torch.float64)
    predictions = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [2, 1, 1, 0]])
    found = Judgement(predictions, probability, torch.tensor([0, 0, 1]))
    assert found.share.tolist() == [1, 0.5, 0.5]
    assert found.vote.tolist() == [0, 1, 1], "of two equal ones the more probable"


def test_fresh_draws() -> None:
    x, labels, ids = toy.batch()
    oracle = Oracle(toy.trained(), seed=3)
    found = judge(oracle, x, labels, ids, 5)
    for number in range(5):
        logits = oracle.logits(x, ids, 2**24 + number)
        assert torch.equal(found.predictions[:, number], logits.argmax(1))
    assert found.predictions.shape == (12, 5)
    assert torch.allclose(found.probability.sum(1), torch.ones(12, dtype=torch.float64))
    assert float(found.share.mean()) > 0.9, "the network has learned"
    with pytest.raises(ValueError, match="draws: got 0"):
        judge(oracle, x, labels, ids, 0)
    with pytest.raises(ValueError, match="votes: got 6, allowed are 1 to 5"):
        judge(oracle, x, labels, ids, 5, 6)
    some, few = judge(oracle, x, labels, ids, 5, 2), judge(oracle, x, labels, ids, 2)
    assert torch.equal(some.predictions, found.predictions)
    assert torch.equal(some.vote, few.vote), "the first ones vote"


@pytest.mark.parametrize(
    ("threats", "draws", "votes", "found"),
    [
        (["fresh-draw"], 16, None, 16),
        (["fresh-draw", "eot 8"], 16, 3, 3),
        (["vote-aware 4"], 8, None, 4),
        (["vote-aware 4", "fresh-draw", "vote-aware 6"], 12, None, 4),
        (["vote-aware 4"], 9, 3, 3),
        (["vote-aware 4"], 0, None, 0),
        (["fresh-draw"], 2, 3, "-n 3: only 2 draws judge"),
        (["vote-aware 4"], 7, None, "--judge-draws 7: vote-aware 4 knows the first 4 of them"),
        (["vote-aware 2", "vote-aware 32"], 4, None, "--judge-draws 4: vote-aware 32 knows the first 32"),
        (["vote-aware 4", "vote-aware 2"], 8, 3, "-n 3: vote-aware 2 knows 2 draws, not the vote"),
    ],
)
def test_who_votes(threats: list[str], draws: int, votes: int | None, found: int | str) -> None:
    known = [parse_threat(text) for text in threats]
    if isinstance(found, int):
        assert voting_draws(known, draws, votes) == found
    else:
        with pytest.raises(ConfigError, match=found):
            voting_draws(known, draws, votes)


def test_batches_together() -> None:
    x, labels, ids = toy.batch()
    oracle = Oracle(toy.trained(), seed=3)
    parts = [judge(oracle, x[part], labels[part], ids[part], 3) for part in (slice(0, 5), slice(5, 12))]
    whole = judge(oracle, x, labels, ids, 3)
    assert torch.equal(torch.cat([part.predictions for part in parts]), whole.predictions)
    assert torch.allclose(torch.cat([part.probability for part in parts]), whole.probability, atol=1e-6)


def test_the_noise_of_arrays_judges_too() -> None:
    x, labels, ids = toy.batch()
    model = toy.analog()
    before = toy.everything(model)
    found = judge(Oracle(model), x, labels, ids, 2)
    assert toy.same(before, toy.everything(model))
    quiet = Oracle(model).logits(x, ids, 2**24, noise=False).softmax(1)
    noisy = Oracle(model).logits(x, ids, 2**24).softmax(1)
    other = Oracle(model).logits(x, ids, 2**24 + 1).softmax(1)
    assert torch.allclose(found.probability.float(), (noisy + other) / 2, atol=1e-6)
    assert not torch.allclose(quiet, noisy, atol=1e-6)
