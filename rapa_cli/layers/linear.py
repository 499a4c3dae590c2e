"""A fully connected layer on an array."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rapa_cli.analog.presets import refuse_uncalled
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.tiling.arrays import AnyArrays, ArrayLayer


class AnalogLinear(ArrayLayer):
    """`nn.Linear` on one array.

    Args:
        in_features: inputs.
        out_features: outputs.
        bias: whether the array has an extra line for a bias.
        arrays: what the array is made of, as `analog.presets` have them.

    Attributes:
        weight: (out, in).
        bias: (out,), or None.

    Raises:
        ValueError: an argument out of its range; the message begins with its name.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, arrays: AnyArrays) -> None:
        refuse_uncalled(arrays)
        super().__init__(arrays)
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value}, allowed are whole numbers from 1")
        if arrays is None:
            raise ValueError("arrays: got None, allowed are Arrays and InferenceArrays; on ideal arrays use nn.Linear")
        self.in_features, self.out_features = in_features, out_features
        self.lay_out(torch.empty(out_features, in_features), torch.empty(out_features) if bias else None)

    @property
    def fan_in(self) -> int:
        """Inputs."""
        return self.in_features

    def to_lines(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weights as they lie on the array, (1, out, lines); the bias is on the last line."""
        return (weight if bias is None else torch.cat([weight, bias[:, None]], 1))[None]

    def from_lines(self, lines: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights (out, in) and bias (out,)."""
        weight = lines[0, :, : self.in_features]
        return weight, lines[0, :, -1] if lines.shape[2] > self.in_features else None

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies vectors (..., in) with the matrix of the array: (..., out).

        Raises:
            ValueError: a wrong number of inputs.
        """
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: got shape {tuple(x.shape)}, allowed is (..., {self.in_features})")
        batch = len(x) if x.ndim > 1 else 1
        vectors = math.prod(x.shape[1:-1])
        if not vectors:
            return x @ x.new_zeros(self.in_features, self.out_features)
        images = x.reshape(batch, vectors, self.in_features)
        # Vectors are pixels of images with as many channels as the layer has inputs.
        pixels = images.permute(0, 2, 1)[..., None]
        assignment = torch.zeros(batch, vectors, dtype=torch.int64, device=x.device)
        y = self.on_arrays(pixels, assignment, Geometry(vectors, 1, (1, 1)))
        return y[..., 0].permute(0, 2, 1).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
