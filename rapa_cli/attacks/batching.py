"""How many images fit into the memory at a time while they are attacked."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rapa_cli.attacks.oracle import Oracle

# Above these, larger batches are no faster.
_MOST = {"cuda": 1000}
_MOST_ELSEWHERE = 100
# What is kept of each layer's output for going back, its gradient, and room to work in.
_COPIES = 4
# The share of the free memory that an attack may take.
_SHARE = 0.25


def batch_size(model: nn.Module, shape: tuple[int, ...]) -> int:
    """A number of images whose gradients fit into the memory that is free now, at least 1.

    Args:
        model: takes (B, C, H, W) in [0, 1], on its device.
        shape: (C, H, W) of an image.
    """
    device = next(model.parameters()).device
    most = _MOST.get(device.type, _MOST_ELSEWHERE)
    free = free_memory(device)
    return most if free is None else max(1, min(most, int(_SHARE * free / bytes_per_image(model, shape))))


def bytes_per_image(model: nn.Module, shape: tuple[int, ...]) -> int:
    """About how many bytes the gradient at one image (C, H, W) takes: outputs of all layers, and patches of theirs."""
    device = next(model.parameters()).device
    numbers = 0

    def count(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal numbers
        if not isinstance(output, Tensor) or any(True for _ in layer.children()):
            return
        numbers += output.numel()
        kernel = getattr(layer, "kernel_size", None)
        first = inputs[0] if inputs else None
        if isinstance(kernel, tuple) and isinstance(first, Tensor) and output.ndim == 4:
            numbers += first.shape[1] * kernel[0] * kernel[-1] * output.shape[2] * output.shape[3]

    handles = [layer.register_forward_hook(count) for layer in model.modules()]
    try:
        Oracle(model).logits(torch.zeros(1, *shape, device=device), torch.zeros(1, dtype=torch.int64, device=device), 0)
    finally:
        for handle in handles:
            handle.remove()
    return 4 * _COPIES * max(numbers, 1)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, also by the limits of a container; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        found.append(max(limit - used, 0))
    except (OSError, ValueError):
        pass
    return min(found, default=None)
