"""Training steps captured in CUDA graphs: all kernels of a step in one launch.

A graph holds the kernels that a step launched once, their arguments as they were, and is replayed on what then lies in
the same memory. Numbers of Python are constants of it, so that an epoch, with its number and its rate, has a graph of
its own.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rapa_cli.kernels.cuda import triton_serves

# The first calls compile kernels, choose algorithms and make what stays in memory, such as momentum.
EAGER_CALLS = 2


class Recorder(Protocol):
    """What records functions."""

    def run(self, function: Callable[[], object]) -> None:
        """Calls a function where it will be recorded."""

    def record(self, function: Callable[[], object]) -> Callable[[], None] | None:
        """Records a function without carrying it out; what it returns replays it, None if it cannot be recorded."""


class CudaGraphs:
    """Records what functions launch on a CUDA device, all on one stream.

    Graphs that are kept are let go together, since libraries may give them memory in common. After a function that
    could not be captured no other is tried: what is left of a capture that failed depends on torch's version.
    """

    def __init__(self, device: torch.device) -> None:
        # Libraries keep memory for each stream that they have seen.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._refused = False

    def run(self, function: Callable[[], object]) -> None:
        """Calls a function on the stream that will be captured, in order with what is done on the current one."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                function()
        finally:
            current.wait_stream(self._stream)

    def record(self, function: Callable[[], object]) -> Callable[[], None] | None:
        """Captures a function; None where it looks at a number on the device, or copies from the host."""
        if self._refused:
            return None
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        try:
            # Not every version of torch goes back to the current stream from a capture that failed.
            with torch.cuda.stream(current), torch.cuda.graph(graph, stream=self._stream):
                function()
        except RuntimeError as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            self._refused = True
            warnings.warn(f"steps are launched one by one, since they cannot be captured: {error}", stacklevel=2)
            return None
        replay: Callable[[], None] = graph.replay
        return replay


class Captured:
    """A function of tensors that is recorded in one of its first calls, and from then on replayed.

    A function that cannot be recorded is called each time.

    Args:
        function: it changes tensors that stay where they are in memory; it may depend on the values of its own, which
            have the same shapes and types in each call, and of those that it finds, but look at none.
        recorder: records it.
    """

    def __init__(self, function: Callable[..., object], recorder: Recorder) -> None:
        self._function, self._recorder = function, recorder
        self._replay: Callable[[], None] | None = None
        self._static: list[Tensor] = []
        self._calls = 0

    @property
    def replays(self) -> bool:
        """Whether it has been recorded."""
        return self._replay is not None

    def __call__(self, *tensors: Tensor) -> None:
        """Calls the function."""
        self._calls += 1
        if self._calls == EAGER_CALLS + 1:
            self._static = [tensor.clone() for tensor in tensors]
            self._replay = self._recorder.record(lambda: self._function(*self._static))
        if self._replay is None:
            self._recorder.run(lambda: self._function(*tensors))
            return
        for static, tensor in zip(self._static, tensors, strict=True):
            static.copy_(tensor)
        self._replay()


def recorder(device: torch.device) -> Recorder | None:
    """What records functions on a device; None where there is nothing, or RAPA_CUDA_GRAPH=0 says not to.

    Without the Triton kernels tiled convolutions look at numbers on the device, and cannot be recorded; other networks
    are left as they are there too.
    """
    if os.environ.get("RAPA_CUDA_GRAPH") == "0" or not triton_serves(device):
        return None
    return CudaGraphs(device)
