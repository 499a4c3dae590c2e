"""The range of inputs that the DAC covers: learned with the weights, or calibrated after training."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from rapa_cli.analog.parameters import Named
from rapa_cli.config import Frozen


class Calibration(Named):
    """From what of a batch's inputs a range is taken."""

    MOVING_STD = "MovingStd"
    MOVING_QUANTILE = "MovingQuantile"
    MAX = "Max"


class InputRange(Frozen):
    """How the range r of x -> clamp(x, -r, r) is found.

    For the first `init_from_data` batches r is the running mean of `init_std_alpha` standard deviations. Then it is
    learned: it follows the gradient that reaches clipped inputs, and shrinks by `decay` where more than
    `input_min_percentage` of the inputs lie within.

    Attributes:
        init_value: r before any data.
        init_from_data: batches that r is taken from.
        init_std_alpha: standard deviations.
        decay: relative shrinking, in units of the gradient.
        input_min_percentage: share of inputs that may as well lie within.
    """

    init_value: float = Field(3.0, gt=0)
    init_from_data: int = Field(100, ge=0)
    init_std_alpha: float = Field(3.0, gt=0)
    decay: float = Field(0.001, ge=0)
    input_min_percentage: float = Field(0.95, ge=0, le=1)

    def draw(self, place: torch.device | str = "cpu") -> dict[str, Tensor]:
        """State before any data: `input_range`, one number, and `batches`, how many were seen."""
        return {
            "input_range": torch.tensor(self.init_value, device=place),
            "batches": torch.zeros((), dtype=torch.int64, device=place),
        }

    def observe(self, state: dict[str, Tensor], x: Tensor) -> None:
        """Takes r from a batch of inputs of any shape, while it is one of the first, in place."""
        seen = int(state["batches"])
        if seen >= self.init_from_data:
            return
        spread = self.init_std_alpha * x.detach().std(unbiased=False)
        if float(spread) > 0:
            state["input_range"].mul_(seen / (seen + 1)).add_(spread / (seen + 1))
            state["batches"] += 1

    def gradient(self, state: dict[str, Tensor], x: Tensor, gradient: Tensor) -> Tensor:
        """dL/dr of the clamp, with the decay.

        Args:
            state: as `draw` makes it.
            x: inputs, any shape.
            gradient: dL/d clamp(x), the same shape.

        Returns:
            One number; inputs at or beyond r count with their sign.
        """
        r = state["input_range"]
        clipped = gradient[x >= r].sum() - gradient[x <= -r].sum()
        within = (x.abs() < r).to(gradient.dtype).mean()
        return clipped + torch.where(within > self.input_min_percentage, self.decay * r, 0.0)


def calibrated(
    state: dict[str, Tensor],
    x: Tensor,
    calibration: Calibration,
    *,
    std_alpha: float = 3.0,
    quantile: float = 0.99995,
) -> None:
    """Takes one more batch into a calibrated range, in place.

    Args:
        state: `input_range`, and `batches`, the number of batches so far.
        x: inputs of any shape.
        calibration: mean over the batches of a number of standard deviations or of a quantile of |x|, or the maximum
            of |x|.
        std_alpha: the number of standard deviations.
        quantile: in (0, 1].
    """
    size, seen = x.detach().abs().flatten(), int(state["batches"])
    if calibration is Calibration.MAX:
        largest = size.max()
        state["input_range"].copy_(torch.maximum(state["input_range"], largest) if seen else largest)
    else:
        if calibration is Calibration.MOVING_STD:
            now = std_alpha * x.detach().std(unbiased=False)
        else:
            # torch.quantile has a limit of 2^24 elements; the k-th smallest has none.
            now = size.kthvalue(max(1, round(quantile * size.numel()))).values
        state["input_range"].mul_(seen / (seen + 1)).add_(now / (seen + 1))
    state["batches"] += 1
