"""The matrices of a layer once they are programmed onto their arrays, and some time later."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rapa_cli.analog.aware import AwareArray
from rapa_cli.analog.inference import Programmed, compensation, mean_answer
from rapa_cli.analog.module import AwareMatrices
from rapa_cli.analog.periphery import Periphery


class ProgrammedMatrices:
    """Programs the weights of a layer, whose arrays are read as they were programmed from then on.

    With drift compensation the arrays answer one-hot inputs through their own periphery, right after programming and
    at each age; the outputs of each tile, or of each part of a split one, are then multiplied by the ratio of the two
    answers. Reading arrays whose noise is switched off has none here either; what the devices themselves do is not
    switched off by that.

    Args:
        matrices: of the layer.
        weights: of the layer, (tiles, out, lines).
        generator: for programming noise, drift coefficients and the noise of the first answer; on any device.

    Attributes:
        matrices: those of the layer; the `weights` and `compensation` of their parts are set.
    """

    def __init__(self, matrices: AwareMatrices, weights: Tensor, generator: torch.Generator) -> None:
        self.matrices = matrices
        self._parts: list[tuple[AwareArray, Programmed, Tensor | None]] = []
        model, compensated = matrices.arrays.noise_model, matrices.arrays.drift_compensation
        with torch.no_grad():
            for part, own in zip(matrices.parts, matrices.grid.split(weights), strict=True):
                programmed = Programmed(part.on_arrays(own), model, generator)
                part.weights, part.compensation = programmed.weights(), None
                self._parts.append((part, programmed, self._answer(part, generator) if compensated else None))

    @property
    def reference(self) -> Tensor | None:
        """The first answers, (tiles,), of split matrices (parts x tiles,); None without compensation."""
        return _joined(first for _, _, first in self._parts)

    @property
    def compensation(self) -> Tensor | None:
        """What outputs are multiplied by, in the same shape; None for nothing."""
        return _joined(part.compensation for part, _, _ in self._parts)

    def age(self, t_inference: float, generator: torch.Generator) -> None:
        """Reads the arrays as they are some time after programming, whatever they were aged to before.

        Args:
            t_inference: seconds, 0 or more.
            generator: for the read noise of the devices, the same at every reading until the next call, and for the
                noise of the answer; on any device.

        Raises:
            ValueError: a negative time, or one that the noise model has no data for.
        """
        with torch.no_grad():
            for part, programmed, first in self._parts:
                part.weights = programmed.at(t_inference, generator)
                if first is not None:
                    part.compensation = compensation(first, self._answer(part, generator))

    def _answer(self, part: AwareArray, generator: torch.Generator) -> Tensor:
        """The mean answer of each tile to one-hot inputs, (tiles,)."""
        weights, periphery = part.weights, part.periphery(noise=self.matrices.noise)
        assert weights is not None
        # A running divisor is for the inputs of the network.
        state = {name: values.clone() for name, values in periphery.state.items()}
        apart = Periphery(periphery.io, state)
        return mean_answer(lambda x, sizes: apart.read(weights, x, sizes, generator).values, weights)


def _joined(of_parts: Iterable[Tensor | None]) -> Tensor | None:
    found = [values for values in of_parts if values is not None]
    return torch.cat(found) if found else None
