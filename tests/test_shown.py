"""How results show themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rapa_cli.analysis.evaluation import Evaluation
from rapa_cli.shown import Shown
from tests.training import tiny


@dataclass(frozen=True, repr=False)
class Result(Shown):
    shown: ClassVar = ("number", "doubled", "parts")

    number: float
    parts: tuple[object, ...] = ()
    hidden: Tensor | None = None

    @property
    def doubled(self) -> float:
        return 2 * self.number


def test_properties_and_four_digits() -> None:
    assert repr(Result(1 / 3, hidden=torch.ones(3))) == "Result(number=0.3333, doubled=0.6667, parts=())"
    assert repr(Result(1, (True, None, "a", (2.0,)))) == "Result(number=1, doubled=2, parts=(True, None, 'a', (2,)))"
    shown = "Evaluation(error=40, ci95=(11.76, 76.93), loss=0.7, images=5, wrong=2)"
    assert repr(Evaluation(5, 2, 0.7)) == shown


def test_long_things_are_cut_and_deep_ones_indented() -> None:
    many = repr(Result(1, (tuple(range(2000)), torch.zeros(2, 3, dtype=torch.uint8))))
    assert many == "Result(number=1, doubled=2, parts=((0, 1, 2, 3, ... 2000 in all ..., 1999), uint8 (2, 3)))"
    deep = repr(Result(1, (Result(2), Result(3))))
    assert deep.splitlines() == [
        "Result(",
        "    number=1,",
        "    doubled=2,",
        "    parts=(",
        "        Result(number=2, doubled=4, parts=()),",
        "        Result(number=3, doubled=6, parts=()),",
        "    ),",
        ")",
    ]


def test_a_data_set_shows_sizes_and_no_pixels() -> None:
    text = repr(tiny.data_set())
    assert "train=Split(images=uint8 (30, 3, 8, 8), labels=int64 (30,))" in text
    assert "tensor" not in text
