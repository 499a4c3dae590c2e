"""TiledConv2d: a convolution whose kernel matrix is replicated on several arrays (RAPA; paper, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from rapa_cli.analog.presets import refuse_uncalled
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.kernels.operator import tiled_conv2d
from rapa_cli.keyed import check_ids
from rapa_cli.tiling.arrays import AnyArrays, ArrayLayer
from rapa_cli.tiling.schemes import Scheme, scheme_named

Pair = int | tuple[int, int]

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class TiledConv2d(ArrayLayer):
    """A 2-D convolution computed by several tiles, each with a kernel matrix and a bias of its own.

    Each image's patches are divided among the tiles by the scheme; output pixel i is patch i times the kernel matrix
    of its tile. With one tile of an ideal array it is `nn.Conv2d`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one number or (height, width), pixels.
        stride: likewise.
        padding: likewise, on both sides; or "same" or "valid" as in `nn.Conv2d`.
        dilation: likewise.
        bias: whether each array has an extra row for a bias.
        tiles: number of tiles n_t, from 1 to the number of patches; for `perforated` the perforation factor.
        scheme: none, random, random-fixed, image-overlap, image-pad, alternate or perforated; or a scheme of your own.
        padding_mode: what lies beyond the border: zeros, reflect, replicate or circular, as in `nn.Conv2d`; zeros alone
            for `image-pad`, whose regions end in them.
        arrays: what the arrays are made of, as `analog.presets` have them; None are ideal ones. Arrays that learn by
            pulses need `AnalogSGD`.

    Attributes:
        weight: (tiles, out, in, kh, kw); for `perforated` (1, out, in, kh, kw). In memory each tile is a matrix
            (kh kw in, out), as the kernels read it; a state dictionary holds it contiguous in its shape.
        bias: (tiles, out) or (1, out), or None.

    Raises:
        ValueError: an argument out of its range; the message begins with its name.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        bias: bool = True,
        *,
        tiles: int = 1,
        scheme: str | Scheme = "random",
        padding_mode: PaddingMode = "zeros",
        arrays: AnyArrays | None = None,
    ) -> None:
        refuse_uncalled(arrays)
        super().__init__(arrays)
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value}, allowed are whole numbers from 1")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.dilation = _pair("dilation", dilation, 1)
        self.padding: tuple[int, int] | str
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"padding: got '{padding}', allowed are numbers, 'same' and 'valid'")
            if padding == "same" and self.stride != (1, 1):
                raise ValueError("padding: 'same' needs stride 1")
            self.padding = padding
        else:
            self.padding = _pair("padding", padding, 0)
        self._scheme = scheme_named(scheme)
        self._scheme.check(tiles)
        if padding_mode not in get_args(PaddingMode):
            raise ValueError(f"padding_mode: got '{padding_mode}', allowed are {', '.join(get_args(PaddingMode))}")
        if padding_mode != "zeros" and self._scheme.name == "image-pad":
            raise ValueError(f"padding_mode: got '{padding_mode}', but scheme 'image-pad' has zeros around its regions")
        self.padding_mode: PaddingMode = padding_mode
        self.scheme, self.tiles = self._scheme.name, tiles
        matrices = self._scheme.matrices(tiles)
        # In memory as the kernels read it, so that no step copies it.
        in_memory = torch.empty(matrices, *self.kernel_size, in_channels, out_channels)
        self.lay_out(in_memory.permute(0, 4, 3, 1, 2), torch.empty(matrices, out_channels) if bias else None)

    def another(self, arrays: AnyArrays | None) -> TiledConv2d:
        """A new layer of the same sizes, tiles and scheme on such arrays, with weights and a seed of its own."""
        return TiledConv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.bias is not None,
            tiles=self.tiles,
            scheme=self._scheme,
            padding_mode=self.padding_mode,
            arrays=arrays,
        )

    @property
    def random_in_test(self) -> bool:
        """Whether images, or draws of one image, may have other assignments in test."""
        return self.tiles > 1 and self._scheme.random_in_test

    @property
    def fan_in(self) -> int:
        """The paper's k, weights of a filter."""
        return self.in_channels * self.kernel_size[0] * self.kernel_size[1]

    def to_lines(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Kernels as they lie on arrays, (matrices, out, lines): lines ordered (kh, kw, in), then the bias."""
        lines = weight.permute(0, 1, 3, 4, 2).flatten(2)
        return lines if bias is None else torch.cat([lines, bias[:, :, None]], 2)

    def from_lines(self, lines: Tensor) -> tuple[Tensor, Tensor | None]:
        """Kernels (matrices, out, in, kh, kw) and bias (matrices, out)."""
        shape = (*lines.shape[:2], *self.kernel_size, self.in_channels)
        kernels = lines[..., : self.fan_in].reshape(shape).permute(0, 1, 4, 2, 3)
        return kernels, lines[..., -1] if lines.shape[2] > self.fan_in else None

    def geometry(self, height: int, width: int) -> Geometry:
        """The geometry of the convolution for images of this size in pixels.

        Where something else than zeros lies beyond the border, it is that of the padded image.
        """
        margins = self._margins()
        if self.padding_mode != "zeros":
            height, width, margins = height + sum(margins[:2]), width + sum(margins[2:]), (0, 0, 0, 0)
        return Geometry(height, width, self.kernel_size, self.stride, margins, self.dilation)

    def assign(self, images: int | Tensor, out_size: tuple[int, int]) -> Tensor:
        """Assigns the patches of a batch to tiles.

        Args:
            images: the batch's size B, or its image ids, int64 of shape (B,).
            out_size: height and width of the output in pixels.

        Returns:
            int64 tensor (B, n_p), row-major over output pixels, values in [0, tiles); -1 where nothing is computed.

        Raises:
            ValueError: wrong images, or more tiles than patches.
        """
        if isinstance(images, Tensor):
            check_ids(images)
        elif images < 0:
            raise ValueError(f"images: got {images}, allowed are batch sizes from 0 and image ids")
        patches = out_size[0] * out_size[1]
        if self.tiles > patches:
            raise ValueError(
                f"tiles: got {self.tiles}, "
                f"but an output of {out_size[0]} x {out_size[1]} pixels has only {patches} patches"
            )
        return self._scheme.assign(self, self.tiles, images, out_size)

    def forward(self, x: Tensor, assignment: Tensor | None = None) -> Tensor:
        """Convolves a batch.

        Args:
            x: images (B, in, H, W), or one image (in, H, W).
            assignment: int64 (B, n_p), values in [-1, tiles), to use instead of the scheme's.

        Returns:
            (B, out, h, w), or (out, h, w) for one image.

        Raises:
            ValueError: wrong shapes, or more tiles than patches.
        """
        if x.ndim == 3:
            return self(x[None], assignment)[0]  # type: ignore[no-any-return]
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: got shape {tuple(x.shape)}, allowed is (B, {self.in_channels}, H, W)")
        geometry = self.geometry(x.shape[2], x.shape[3])
        padding = self.padding
        if self.padding_mode != "zeros":
            top, bottom, left, right = self._margins()
            x, padding = F.pad(x, (left, right, top, bottom), mode=self.padding_mode), (0, 0)
        if assignment is not None:
            self._check_assignment(assignment, x.shape[0], geometry.patches)
        elif self.tiles == 1 and self.matrices is None:
            return F.conv2d(
                x, self.weight[0], None if self.bias is None else self.bias[0], self.stride, padding, self.dilation
            )
        else:
            assignment = self.assign(x.shape[0], (geometry.out_height, geometry.out_width))
        cut = self._scheme.cut(self.tiles, geometry, x.device)
        if cut is not None:
            return cut.convolve(x, assignment.to(x.device), (geometry.out_height, geometry.out_width), self._product)
        return self._product(x, assignment.to(x.device), geometry)

    def _product(self, x: Tensor, assignment: Tensor, geometry: Geometry) -> Tensor:
        if self.matrices is not None:
            return self.on_arrays(x, assignment, geometry)
        return tiled_conv2d(x, self.weight, self.bias, assignment, geometry)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars and prefix + "weight" in destination:
            # Files and `view` want it so, whatever the order in memory.
            destination[prefix + "weight"] = destination[prefix + "weight"].contiguous()

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, dilation={self.dilation}, bias={self.bias is not None}, "
            f"tiles={self.tiles}, scheme={self.scheme!r}"
            + (f", padding_mode={self.padding_mode!r}" if self.padding_mode != "zeros" else "")
        )

    def _margins(self) -> tuple[int, int, int, int]:
        if self.padding == "valid":
            return (0, 0, 0, 0)
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
        assert not isinstance(self.padding, str)
        return (self.padding[0], self.padding[0], self.padding[1], self.padding[1])

    def _check_assignment(self, assignment: Tensor, batch: int, patches: int) -> None:
        if assignment.shape != (batch, patches) or assignment.dtype != torch.int64:
            raise ValueError(
                f"assignment: got {assignment.dtype} of shape {tuple(assignment.shape)}, "
                f"allowed is int64 of shape ({batch}, {patches})"
            )
        if torch.compiler.is_compiling():
            # While a graph is traced there are no values to look at.
            return
        matrices = self._scheme.matrices(self.tiles)
        if assignment.numel() and not (int(assignment.min()) >= -1 and int(assignment.max()) < matrices):
            raise ValueError(
                f"assignment: values from {int(assignment.min())} to {int(assignment.max())}, "
                f"allowed are -1 to {matrices - 1}"
            )


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or any(not isinstance(entry, int) or entry < least for entry in pair)
    ):
        raise ValueError(f"{name}: got {value!r}, allowed are one or two whole numbers from {least}")
    return pair[0], pair[1]
