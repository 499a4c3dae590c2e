"""The geometry of a convolution: which input pixels each output pixel reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Sizes in pixels; padding is (top, bottom, left, right).

    Raises:
        ValueError: the kernel does not fit into the padded input.
    """

    in_height: int
    in_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.out_height < 1 or self.out_width < 1:
            raise ValueError(
                f"kernel_size: a kernel of {self.kernel} with dilation {self.dilation} does not fit into an input of "
                f"{self.in_height} x {self.in_width} pixels with padding {self.padding}"
            )

    @property
    def padded_height(self) -> int:
        """Input rows with padding."""
        return self.in_height + self.padding[0] + self.padding[1]

    @property
    def padded_width(self) -> int:
        """Input columns with padding."""
        return self.in_width + self.padding[2] + self.padding[3]

    @property
    def out_height(self) -> int:
        """Output rows."""
        return (self.padded_height - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Output columns."""
        return (self.padded_width - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1

    @property
    def patches(self) -> int:
        """The paper's n_p, output pixels of an image."""
        return self.out_height * self.out_width
