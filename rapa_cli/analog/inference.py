"""Trained weights on arrays: programmed once, read later, with a global compensation of what has drifted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rapa_cli.analog.conductance import Pair, single_pair
from rapa_cli.analog.device import State
from rapa_cli.analog.parameters import Compat
from rapa_cli.analog.pcm import PCMLikeNoiseModel
from rapa_cli.analog.reram import ReRamWan2022NoiseModel

NoiseModel = Annotated[PCMLikeNoiseModel | ReRamWan2022NoiseModel, Field(discriminator="kind")]

_LEAST_ANSWER = 1e-4
# Numbers of one-hot inputs that are in memory together.
_AT_A_TIME = 2**24


class Programmed:
    """The weights of a bank on pairs of conductances, from their programming on.

    Both devices of a pair are programmed, drift and are read for themselves, the one at the least conductance too.
    aihwkit instead takes the weights after programming to a new pair for each reading, which folds the noise of the
    idle device into the other, while the drift coefficients stay with the targets ("rpucuda").

    Args:
        weights: (tiles, out, in).
        model: what becomes of conductances.
        generator: for programming noise and drift coefficients.
        compat: "rpucuda" reads as aihwkit does.

    Attributes:
        state: every tensor that a checkpoint needs: `plus`, `minus` (programmed conductances), `nu_plus`, `nu_minus`
            (their coefficients) of shape (tiles, out, in), and `scale` (tiles, 1, 1).
    """

    def __init__(self, weights: Tensor, model: NoiseModel, generator: torch.Generator, compat: Compat = None) -> None:
        self.model = model
        target = single_pair(weights.detach(), model.g_max, model.g_min)
        pair = Pair(model.program(target.plus, generator), model.program(target.minus, generator), target.scale)
        nu = model.coefficients(target.plus, generator), model.coefficients(target.minus, generator)
        if compat == "rpucuda":
            pair = single_pair(pair.weights(), model.g_max, model.g_min)
        self.state: State = {
            "plus": pair.plus,
            "minus": pair.minus,
            "scale": pair.scale,
            "nu_plus": nu[0],
            "nu_minus": nu[1],
        }

    def weights(self) -> Tensor:
        """The weights as they were programmed, (tiles, out, in)."""
        return self._pair().weights()

    def at(self, t_inference: float, generator: torch.Generator) -> Tensor:
        """The weights some time after programming.

        Args:
            t_inference: seconds, 0 or more.
            generator: for the read noise.

        Returns:
            (tiles, out, in).

        Raises:
            ValueError: a negative time, or one that the model has no data for.
        """
        if t_inference < 0:
            raise ValueError(f"t_inference: got {t_inference}, allowed are seconds from 0")
        pair = self._pair()
        plus = self.model.at(pair.plus, self.state["nu_plus"], t_inference, generator)
        minus = self.model.at(pair.minus, self.state["nu_minus"], t_inference, generator)
        return Pair(plus, minus, pair.scale).weights()

    def _pair(self) -> Pair:
        return Pair(self.state["plus"], self.state["minus"], self.state["scale"])


def mean_answer(forward: Callable[[Tensor, Sequence[int]], Tensor], weights: Tensor) -> Tensor:
    """The mean |output| of each tile for one-hot inputs, some at a time: (tiles,), at least 1e-4.

    Args:
        forward: reads vectors (N, in) in the order of tiles, of which each tile has so many: (N, out).
        weights: what is read, (tiles, out, in); only the shape, type and place count.
    """
    tiles, _, lines = weights.shape
    means = []
    for numbers in torch.split(torch.arange(tiles * lines, device=weights.device), max(1, _AT_A_TIME // lines)):
        one_hot = F.one_hot(numbers % lines, lines).to(weights.dtype)
        sizes = torch.bincount(numbers // lines, minlength=tiles).tolist()
        means.append(forward(one_hot, sizes).abs().mean(1))
    return torch.cat(means).view(tiles, lines).mean(1).clamp_min(_LEAST_ANSWER)


def compensation(at_first: Tensor, now: Tensor) -> Tensor:
    """Global drift compensation (Joshi et al., 2020): what the outputs of each tile are multiplied by, (tiles,).

    Args:
        at_first: `mean_answer` right after programming.
        now: `mean_answer` at the time of inference.
    """
    return at_first / now
