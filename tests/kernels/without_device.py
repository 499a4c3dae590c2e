"""Triton kernels where there is no GPU: interpreted on the CPU, or compiled for a GPU that need not be there.

Triton takes its mode when it is imported, so that each runs in a process of its own, a test module as a program:
`python -m tests.kernels.test_gpu CHECK ...` with TRITON_INTERPRET set.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def _triton() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in metadata.version("triton").split(".")[:2])
    except metadata.PackageNotFoundError:
        return (0, 0)


triton_wanted = pytest.mark.skipif(_triton() < (3, 4), reason="Triton 3.4 or later is not installed here")
device_wanted = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, whatever makes the host wait for a CUDA device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_checks(checks: Sequence[Callable[[], None]], *, interpret: bool, cache: Path) -> None:
    """Runs functions of a test module in a process of its own; `cache` is a folder for what Triton compiles."""
    unset = {key: value for key, value in os.environ.items() if key not in ("RAPA_KERNEL", "TRITON_DEFAULT_FP_FUSION")}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", checks[0].__module__, *(check.__name__ for check in checks)],
        env={**unset, "TRITON_INTERPRET": str(int(interpret)), "TRITON_CACHE_DIR": str(cache)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]


def compile_only() -> set[tuple[str, str]]:
    """From now on kernels are compiled, and not launched: the interpreter lets pass what the compiler refuses.

    Returns:
        What has been compiled since, each kernel's name and the hash of what was made of it.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Absent:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return device

    compiled: set[tuple[str, str]] = set()
    run = triton.JITFunction.run

    def compile_one(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        assert "cubin" in kernel.asm
        compiled.add((self.__name__, kernel.hash))

    driver.set_active(Absent())
    triton.JITFunction.run = compile_one
    return compiled


def main(module: dict[str, Any]) -> None:
    """The program that a test module is: runs those of its functions that the command line names."""
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        module[name]()
