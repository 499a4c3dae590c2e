"""What a CUDA graph does, on the CPU: it repeats the operators that a function called, with the arguments they had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Call = tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]


class Tape:
    """A recorder of functions; it counts how often it was given out, and what it recorded and replayed."""

    def __init__(self) -> None:
        self.given = self.recorded = self.replayed = 0

    def run(self, function: Callable[[], object]) -> None:
        function()

    def record(self, function: Callable[[], object]) -> Callable[[], None] | None:
        self.recorded += 1
        recording = _Recording()
        with recording:
            function()
        recording.undo()

        def replay() -> None:
            self.replayed += 1
            recording.replay()

        return replay


class Refusing(Tape):
    """Records nothing."""

    def record(self, function: Callable[[], object]) -> Callable[[], None] | None:
        self.recorded += 1
        return None


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[Call] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(given):
                    if _place(tensor) not in self._made:
                        self._before.setdefault(_place(tensor), (tensor, tensor.detach().clone()))
        result = func(*args, **kwargs)
        given = {_place(tensor) for tensor in _tensors((args, kwargs))}
        # A view stays one of what lies there.
        new = [tensor if _place(tensor) not in given else None for tensor in tree_leaves(result)]
        self._made |= {_place(tensor) for tensor in new if isinstance(tensor, Tensor)}
        if func._schema.is_mutable or any(isinstance(tensor, Tensor) for tensor in new):
            self._calls.append((func, args, kwargs, new))  # type: ignore[arg-type]
        return result

    def undo(self) -> None:
        """Puts back what was there before."""
        with torch.no_grad():
            for tensor, before in self._before.values():
                tensor.copy_(before)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, new in self._calls:
                for static, tensor in zip(new, tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(static, Tensor):
                        static.copy_(tensor)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _place(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr()) if isinstance(tensor, Tensor) else 0
