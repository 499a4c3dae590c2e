"""RAPA: convolutional networks whose kernel matrices are replicated on several analog arrays.

The public names load on first use, so that `import rapa_cli` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rapa_cli.analog.presets import preset
    from rapa_cli.analysis.evaluation import evaluate
    from rapa_cli.analysis.overview import plan, similarity
    from rapa_cli.analysis.reduction import reduce
    from rapa_cli.analysis.voting import vote, vote_error
    from rapa_cli.attacks.evaluation import attack
    from rapa_cli.attacks.records import Level
    from rapa_cli.checkpoint import load
    from rapa_cli.data.catalog import open_data
    from rapa_cli.exporting.files import export
    from rapa_cli.exporting.graph import assignments
    from rapa_cli.keyed import KeyedLayer, draws
    from rapa_cli.layers.conversion import convert
    from rapa_cli.layers.linear import AnalogLinear
    from rapa_cli.philox import Purpose
    from rapa_cli.tiling.conv import TiledConv2d
    from rapa_cli.tiling.schemes import Scheme
    from rapa_cli.training.request import resume, train
    from rapa_cli.training.sgd import AnalogSGD

__version__ = "0.1.0"

__all__ = [
    "AnalogLinear",
    "AnalogSGD",
    "KeyedLayer",
    "Level",
    "Purpose",
    "Scheme",
    "TiledConv2d",
    "__version__",
    "assignments",
    "attack",
    "convert",
    "draws",
    "evaluate",
    "export",
    "load",
    "open_data",
    "plan",
    "preset",
    "reduce",
    "resume",
    "similarity",
    "train",
    "vote",
    "vote_error",
]

_HOMES = {
    "AnalogLinear": "rapa_cli.layers.linear",
    "AnalogSGD": "rapa_cli.training.sgd",
    "KeyedLayer": "rapa_cli.keyed",
    "Level": "rapa_cli.attacks.records",
    "Purpose": "rapa_cli.philox",
    "Scheme": "rapa_cli.tiling.schemes",
    "TiledConv2d": "rapa_cli.tiling.conv",
    "assignments": "rapa_cli.exporting.graph",
    "attack": "rapa_cli.attacks.evaluation",
    "convert": "rapa_cli.layers.conversion",
    "draws": "rapa_cli.keyed",
    "evaluate": "rapa_cli.analysis.evaluation",
    "export": "rapa_cli.exporting.files",
    "load": "rapa_cli.checkpoint",
    "open_data": "rapa_cli.data.catalog",
    "plan": "rapa_cli.analysis.overview",
    "preset": "rapa_cli.analog.presets",
    "reduce": "rapa_cli.analysis.reduction",
    "resume": "rapa_cli.training.request",
    "similarity": "rapa_cli.analysis.overview",
    "train": "rapa_cli.training.request",
    "vote": "rapa_cli.analysis.voting",
    "vote_error": "rapa_cli.analysis.voting",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rapa_cli' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
