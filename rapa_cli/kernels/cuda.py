"""What holds for all computing on CUDA devices: whether Triton's kernels serve there, and how products round."""

from __future__ import annotations

import importlib.util

import torch


def triton_serves(device: torch.device) -> bool:
    """Whether the Triton kernels compute on a device; Triton is not imported before somebody asks for a CUDA one."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    from rapa_cli.kernels import gpu

    return gpu.available(device)


def convolution_precision() -> str:
    """What cuDNN was told for `nn.Conv2d`: "tf32", 10 bits after the point, torch's default, or "ieee", all 23."""
    cudnn = torch.backends.cudnn
    # Where torch has the first setting, it may refuse to read the second.
    setting = getattr(getattr(cudnn, "conv", None), "fp32_precision", None)
    allowed = cudnn.allow_tf32 if setting is None else setting == "tf32"
    return "tf32" if allowed else "ieee"
