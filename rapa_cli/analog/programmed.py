"""The matrices of a layer once they are programmed onto their arrays, and some time later."""

from __future__ import annotations

import torch
from torch import Tensor

from rapa_cli.analog.inference import Programmed, compensation, mean_answer
from rapa_cli.analog.module import AwareMatrices
from rapa_cli.analog.periphery import Periphery


class ProgrammedMatrices:
    """Programs the weights of a layer, whose arrays are read as they were programmed from then on.

    With drift compensation the arrays answer one-hot inputs through their own periphery, right after programming and
    at each age; the outputs of each tile are then multiplied by the ratio of the two answers. Reading arrays whose
    noise is switched off has none here either; what the devices themselves do is not switched off by that.

    Args:
        matrices: of the layer.
        weights: of the layer, (tiles, out, lines).
        generator: for programming noise, drift coefficients and the noise of the first answer; on any device.

    Attributes:
        matrices: those of the layer; their `weights` and `compensation` are set.
        reference: the first answer of each tile, (tiles,), or None without compensation.
    """

    def __init__(self, matrices: AwareMatrices, weights: Tensor, generator: torch.Generator) -> None:
        self.matrices = matrices
        with torch.no_grad():
            on_arrays = weights / matrices.scales(weights)[:, :, None]
            self._programmed = Programmed(on_arrays, matrices.arrays.noise_model, generator)
            matrices.weights, matrices.compensation = self._programmed.weights(), None
            self.reference = self._answer(generator) if matrices.arrays.drift_compensation else None

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
            self.matrices.weights = self._programmed.at(t_inference, generator)
            if self.reference is not None:
                self.matrices.compensation = compensation(self.reference, self._answer(generator))

    def _answer(self, generator: torch.Generator) -> Tensor:
        """The mean answer of each tile to one-hot inputs, (tiles,)."""
        weights, periphery = self.matrices.weights, self.matrices._periphery()
        assert weights is not None
        # A running divisor is for the inputs of the network.
        state = {name: values.clone() for name, values in periphery.state.items()}
        apart = Periphery(periphery.io, state)
        return mean_answer(lambda x, sizes: apart.read(weights, x, sizes, generator).values, weights)
