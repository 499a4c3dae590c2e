"""The four poolings of the paper's table 2, all with Caffe's ceil rounding: the last window may reach over the border.

Pixels beyond the border do not exist: they are never the maximum, and no average counts them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.keyed import KeyedLayer
from rapa_cli.philox import Purpose, uniform

# The steepness mu of mixed pooling's mixture (paper, section 3).
_MU = 10.0


class MixedPool2d(nn.Module):
    """alpha average + (1 - alpha) maximum, alpha_k = 1 / (1 + exp(mu beta_k)) learned for each channel.

    mu = 10, and beta starts at 2 / mu, so that the maximum has the larger share (paper, section 3).

    Args:
        channels: channels C.
        kernel: window, pixels.
        stride: step, pixels.
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.beta = nn.Parameter(torch.full((channels,), 2 / _MU))

    @property
    def average_share(self) -> Tensor:
        """The share alpha (C,), in (0, 1)."""
        return torch.sigmoid(-_MU * self.beta)

    def forward(self, x: Tensor) -> Tensor:
        """Pools (B, C, H, W)."""
        share = self.average_share[:, None, None]
        average = F.avg_pool2d(x, self.kernel, self.stride, ceil_mode=True)
        largest = F.max_pool2d(x, self.kernel, self.stride, ceil_mode=True)
        return largest + share * (average - largest)


class StochasticPool2d(KeyedLayer):
    """Picks a pixel of the window with probability in proportion to its activation (Zeiler and Fergus 2013).

    In test the activations are averaged with these probabilities. An all-zero window gives 0.

    Args:
        kernel: window, pixels.
        stride: step, pixels.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Pools activations (B, C, H, W), at least 0, as ReLU leaves them."""
        if not self.training:
            squares, total = (
                F.avg_pool2d(each, self.kernel, self.stride, ceil_mode=True, divisor_override=1)
                for each in (x.square(), x)
            )
            return squares / torch.where(total > 0, total, 1)
        padded, size = self._padded(x)
        picked = self._picked(padded.detach(), size)
        return padded.flatten(2).gather(2, picked.flatten(2)).view(picked.shape)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"kernel={self.kernel}, stride={self.stride}"

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images with zeros beyond the border, as far as windows reach, and the size (h, w) of what is pooled."""
        size = pooled_size(x.shape[2], self.kernel, self.stride), pooled_size(x.shape[3], self.kernel, self.stride)
        reach = [(each - 1) * self.stride + self.kernel for each in size]
        return F.pad(x, (0, max(reach[1] - x.shape[3], 0), 0, max(reach[0] - x.shape[2], 0))), size

    def _picked(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The place of the pixel that each window picks among those of its image and channel, int64 (B, C, h, w)."""
        height, width = size
        views = {
            (top, left): x[
                :, :, top : top + height * self.stride : self.stride, left : left + width * self.stride : self.stride
            ]
            for top in range(self.kernel)
            for left in range(self.kernel)
        }
        total = sum(views.values(), torch.zeros_like(views[0, 0]))
        chance = uniform(self.draw_for(len(x), x.device).words(Purpose.POOLING, count=total.shape[1:].numel()))
        wanted, reached = chance.view(total.shape) * total, torch.zeros_like(total)
        chosen = torch.zeros_like(total, dtype=torch.int32)
        for (top, left), pixels in views.items():
            # The last pixel with a share whose interval of the cumulative sum begins below what was drawn.
            chosen.masked_fill_((reached <= wanted).logical_and_(pixels > 0), top * x.shape[3] + left)
            reached += pixels
        rows, columns = (torch.arange(each, device=x.device) * self.stride for each in size)
        return chosen + rows[:, None] * x.shape[3] + columns


def pooled_size(size: int, kernel: int, stride: int) -> int:
    """Output pixels along one side, by Caffe's rounding: up, unless the last window would lie outside the image."""
    out = -(-(size - kernel) // stride) + 1
    return out - 1 if (out - 1) * stride >= size else out


def pooling(method: str, channels: int, kernel: int, stride: int) -> nn.Module:
    """The pooling layer of a method: max, average, mixed or stochastic."""
    match method:
        case "max":
            return nn.MaxPool2d(kernel, stride, ceil_mode=True)
        case "average":
            return nn.AvgPool2d(kernel, stride, ceil_mode=True)
        case "mixed":
            return MixedPool2d(channels, kernel, stride)
        case "stochastic":
            return StochasticPool2d(kernel, stride)
    raise ValueError(f"method: got '{method}', allowed are max, average, mixed and stochastic")
