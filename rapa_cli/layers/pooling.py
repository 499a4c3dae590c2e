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
        windows = self._windows(x)
        total = windows.sum(-1)
        if not self.training:
            return windows.square().sum(-1) / torch.where(total > 0, total, 1)
        batch, *shape = total.shape
        draw = self.draw_for(batch, x.device)
        count = shape[0] * shape[1] * shape[2]
        chance = uniform(draw.words(Purpose.POOLING, count=count)).view(total.shape)
        reached = windows.detach().cumsum(-1)
        # A pixel of activation 0 is never picked: its interval of the cumulative sum is empty.
        picked = (reached <= (chance * reached[..., -1])[..., None]).sum(-1, keepdim=True)
        last = windows.shape[-1] - 1 - (windows > 0).flip(-1).to(torch.int8).argmax(-1, keepdim=True)
        return windows.gather(-1, torch.minimum(picked, last)).squeeze(-1)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"kernel={self.kernel}, stride={self.stride}"

    def _windows(self, x: Tensor) -> Tensor:
        """The pixels of each window, (B, C, h, w, kernel²), zeros beyond the border."""
        out = [pooled_size(size, self.kernel, self.stride) for size in x.shape[2:]]
        reach = [(size - 1) * self.stride + self.kernel for size in out]
        x = F.pad(x, (0, max(reach[1] - x.shape[3], 0), 0, max(reach[0] - x.shape[2], 0)))
        unfolded = x.unfold(2, self.kernel, self.stride).unfold(3, self.kernel, self.stride)
        return unfolded[:, :, : out[0], : out[1]].flatten(-2)


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
