"""Torch's device "meta" in place of a GPU: tensors there have no values, so that whatever reads one raises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses every operation with a tensor elsewhere: made there, read there, or copied to or from there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            assert not isinstance(leaf, Tensor) or leaf.device == META, f"{func} on {leaf.device}"
        return result
