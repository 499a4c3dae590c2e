"""Where a training that diverged first left the finite numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def first_not_finite(network: nn.Module, run: Callable[[], object]) -> str | None:
    """The name of the first layer, in the order of computation, whose output is not finite.

    Args:
        network: its layers are those modules that have no others in them.
        run: runs the network once, as it ran when it was noticed.

    Returns:
        None where all outputs are finite: then it is the loss that is not.
    """
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not torch.isfinite(output).all():
                found.append(name)

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in network.named_modules():
            if not list(module.children()):
                stack.callback(module.register_forward_hook(look(name)).remove)
        run()
    return found[0] if found else None
