"""How convolutions on CUDA devices round the factors of their products."""

from __future__ import annotations

import torch


def convolution_precision() -> str:
    """What cuDNN was told for `nn.Conv2d`: "tf32", 10 bits after the point, torch's default, or "ieee", all 23."""
    cudnn = torch.backends.cudnn
    # Where torch has the first setting, it may refuse to read the second.
    setting = getattr(getattr(cudnn, "conv", None), "fp32_precision", None)
    allowed = cudnn.allow_tf32 if setting is None else setting == "tf32"
    return "tf32" if allowed else "ieee"
