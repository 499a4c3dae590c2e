"""Confidence against accuracy, and classes against each other, by hand and by plain counts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapa_cli.analysis.calibration import BINS, Calibration, calibration, outcomes


def by_hand(confidence: list[float], right: list[bool], bins: int) -> float:
    """Guo et al. (2017), equation 3, in words: weigh each bin by its size."""
    error = 0.0
    for number in range(bins):
        inside = [
            place
            for place, value in enumerate(confidence)
            if number / bins < value <= (number + 1) / bins or (number == 0 and value == 0)
        ]
        if inside:
            accuracy = sum(right[place] for place in inside) / len(inside)
            sure = sum(confidence[place] for place in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - sure)
    return 100 * error


def test_an_example_on_paper() -> None:
    confidence = torch.tensor([0.9, 0.7, 0.6, 0.55, 0.2], dtype=torch.float64)
    right = torch.tensor([True, True, False, False, True])
    found = calibration(confidence, right, bins=2)
    # Upper half: sure 0.6875, right 0.5, four of five; lower half: sure 0.2, right 1, one of five.
    assert found.ece == pytest.approx(100 * (0.8 * 0.1875 + 0.2 * 0.8))
    assert found.accuracy == pytest.approx(60)
    assert found.mean_confidence == pytest.approx(59)
    assert [row["count"] for row in found.rows()] == [1, 4]
    assert found.rows()[1]["confidence"] == pytest.approx(68.75)
    assert found.rows()[1]["accuracy"] == 50


def test_limits_belong_to_the_bin_below() -> None:
    confidence = torch.tensor([0.0, 0.25, 0.5, 0.5000001, 1.0], dtype=torch.float64)
    found = calibration(confidence, torch.ones(5, dtype=torch.bool), bins=4)
    assert found.count.tolist() == [2, 1, 1, 1]
    # Rounding may leave a probability above 1.
    assert calibration(torch.tensor([1.0 + 1e-12], dtype=torch.float64), torch.tensor([True])).count[-1] == 1


@pytest.mark.parametrize("n", range(1, 60))
def test_shares_of_draws_that_are_limits(n: int) -> None:
    """k / n of n draws lies in the bin that whole numbers say: k bins / n, rounded up."""
    shares = torch.arange(1, n + 1).to(torch.float64) / n
    found = calibration(shares, torch.ones(n, dtype=torch.bool), bins=15)
    expected = [0] * 15
    for k in range(1, n + 1):
        expected[-(-15 * k // n) - 1] += 1
    assert found.count.tolist() == expected


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 20))
def test_against_the_formula(predictions: list[tuple[float, bool]], bins: int) -> None:
    # Confidences apart from the limits, where 3 * (1 / 3) and 1 may differ.
    predictions = [(min(round(confidence, 3) + 0.0004321, 1.0), right) for confidence, right in predictions]
    confidence, right = [list(column) for column in zip(*predictions, strict=True)]
    found = calibration(torch.tensor(confidence, dtype=torch.float64), torch.tensor(right), bins)
    assert found.ece == pytest.approx(by_hand(confidence, [bool(each) for each in right], bins), abs=1e-9)
    half = len(confidence) // 2
    parts = [slice(0, half), slice(half, None)]
    one, two = (
        calibration(
            torch.tensor(confidence[part], dtype=torch.float64), torch.tensor(right[part], dtype=torch.bool), bins
        )
        for part in parts
    )
    together = one + two
    assert together.count.tolist() == found.count.tolist()
    assert together.ece == pytest.approx(found.ece, abs=1e-9)


def test_what_is_calibrated_has_little_error() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator, dtype=torch.float64)
    right = torch.rand(200_000, generator=generator, dtype=torch.float64) < confidence
    assert calibration(confidence, right).ece < 0.5
    assert calibration(confidence, ~right).ece > 40


def test_empty_bins_have_nothing() -> None:
    rows = calibration(torch.tensor([0.99]), torch.tensor([True])).rows()
    assert len(rows) == BINS
    assert (rows[0]["count"], rows[0]["confidence"], rows[0]["accuracy"]) == (0, None, None)
    assert (rows[0]["low"], rows[-1]["high"]) == (0, 100)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"right: got shape \(2,\), for confidences of \(3,\)"):
        calibration(torch.ones(3), torch.ones(2, dtype=torch.bool))


def test_confusion_by_a_plain_count() -> None:
    generator = torch.Generator().manual_seed(1)
    labels, chosen = torch.randint(0, 4, (2, 60), generator=generator)
    labels[labels == 3] = 2
    found = outcomes(labels, chosen, torch.full((60,), 0.5), 4)
    pairs = list(zip(labels.tolist(), chosen.tolist(), strict=True))
    assert found.confusion.tolist() == [[pairs.count((row, column)) for column in range(4)] for row in range(4)]
    assert found.error == pytest.approx(100 * sum(label != which for label, which in pairs) / 60)
    for label in range(3):
        own = [which for truth, which in pairs if truth == label]
        assert found.class_errors[label] == pytest.approx(100 * sum(which != label for which in own) / len(own))
        assert float(found.rates[label].sum()) == pytest.approx(100)
    assert math.isnan(found.class_errors[3]), "there is no image of the last class"
    twice = found + found
    assert twice.confusion.tolist() == (2 * found.confusion).tolist()
    assert isinstance(twice.calibration, Calibration)
    assert twice.calibration.ece == pytest.approx(found.calibration.ece)
