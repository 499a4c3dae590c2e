"""RAPA: convolutional networks whose kernel matrices are replicated on several analog arrays.

The public names load on first use, so that `import rapa_cli` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rapa_cli.analysis.reduction import reduce
    from rapa_cli.analysis.voting import vote
    from rapa_cli.checkpoint import load
    from rapa_cli.keyed import draws
    from rapa_cli.layers.linear import AnalogLinear
    from rapa_cli.tiling.conv import TiledConv2d
    from rapa_cli.tiling.conversion import convert
    from rapa_cli.training.sgd import AnalogSGD

__version__ = "0.1.0.dev0"

__all__ = ["AnalogLinear", "AnalogSGD", "TiledConv2d", "__version__", "convert", "draws", "load", "reduce", "vote"]

_HOMES = {
    "AnalogLinear": "rapa_cli.layers.linear",
    "AnalogSGD": "rapa_cli.training.sgd",
    "TiledConv2d": "rapa_cli.tiling.conv",
    "convert": "rapa_cli.tiling.conversion",
    "draws": "rapa_cli.keyed",
    "load": "rapa_cli.checkpoint",
    "reduce": "rapa_cli.analysis.reduction",
    "vote": "rapa_cli.analysis.voting",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rapa_cli' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
