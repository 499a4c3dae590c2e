"""Compiling the C kernels once with the system's compiler, and loading them.

The library lies in the user's cache folder under a name made from sources, flags, compiler and processor, since home
folders are shared between machines.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("tiled_conv.c", "analog_conv.c"))
_HEADER = Path(__file__).with_name("common.h")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-std=gnu11")
_SECONDS = 120


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels, or why there are none.

    Attributes:
        library: the loaded library, or None.
        reason: one line for `rapa doctor`.
        threaded: whether torch's own OpenMP runtime serves the library; otherwise it runs on one thread.
    """

    library: ctypes.CDLL | None
    reason: str
    threaded: bool = False

    @property
    def name(self) -> str:
        """Of what computes: "compiled" or "torch"; their results differ in the last bits."""
        return "compiled" if self.library is not None else "torch"


@functools.cache
def kernels() -> Kernels:
    """Compiles the kernels unless that was done before, and loads them; `RAPA_KERNEL=torch` does without."""
    if os.environ.get("RAPA_KERNEL", "").lower() == "torch":
        return Kernels(None, "RAPA_KERNEL=torch asks for the torch path")
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        return Kernels(None, "no C compiler was found (cc, gcc or clang)")
    runtime = _openmp()
    flags = _FLAGS if runtime else tuple(flag for flag in _FLAGS if flag != "-fopenmp")
    try:
        built = _built(compiler, flags)
        if runtime:
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError) as error:
        return Kernels(None, f"{compiler} could not build the kernels: {' '.join(str(error).split())[:200]}")
    _declare(library)
    return Kernels(library, f"built by {compiler} in {built.parent}", bool(runtime))


def cache_folder() -> Path:
    """Where compiled kernels lie."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rapa" / "kernels"


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    content = [path.read_bytes() for path in (*_SOURCES, _HEADER)]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_SECONDS).stdout
    key = _digest(b"\0".join([*content, " ".join(flags).encode(), version, _processor()]))
    folder = cache_folder()
    # Who may write to the folder above could put another in its place.
    for place in (folder.parent, folder):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _trusted(place):
            raise OSError(f"the cache folder {place} is not the user's own, or others may write to it")
    # The name ends with a digest of the content: what is cut off or another's is not loaded, but built anew.
    for path in folder.glob(f"{key}-*.so"):
        # Whatever else stands there, such as a folder, is no library.
        with contextlib.suppress(OSError):
            if _trusted(path) and path.stem == f"{key}-{_digest(path.read_bytes())}":
                return path
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        library = Path(scratch) / "kernels.so"
        objects = [str(Path(scratch) / f"{source.stem}.o") for source in _SOURCES]
        for command in (
            *([compiler, *flags, "-c", str(s), "-o", o] for s, o in zip(_SOURCES, objects, strict=True)),
            # Without -fopenmp the runtime's symbols stay open: a second one beside torch's would make both spin.
            [compiler, "-shared", *objects, "-lm", "-o", str(library)],
        ):
            result = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            if result.returncode:
                raise OSError(result.stderr.strip() or f"exit code {result.returncode}")
        library.chmod(0o700)
        path = folder / f"{key}-{_digest(library.read_bytes())}.so"
        if path.is_dir():
            raise OSError(f"a folder stands at {path}")
        # Two processes that build at once each move a whole library into place, over what was there.
        library.replace(path)
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _trusted(path: Path) -> bool:
    # A link is not: everybody may write to it, as the system has it.
    status = path.lstat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _processor() -> bytes:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    wanted = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join(sorted(set(wanted))).encode()


def _openmp() -> str | None:
    """The OpenMP runtime that torch has loaded, if it is GNU's, which this compiler's code calls."""
    if "USE_OPENMP=ON" not in torch.__config__.show():
        return None
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[5] for line in mapped.splitlines() if "libgomp" in line}
    return sorted(paths)[0] if len(paths) == 1 else None


def _declare(library: ctypes.CDLL) -> None:
    library.rapa_vector_width.restype = ctypes.c_int64
    library.rapa_sort.restype = ctypes.c_int64
    of_int = ("partition", "kernel_gradient", "image_gradient", "analog_forward", "analog_backward", "analog_moments")
    for name in of_int:
        getattr(library, f"rapa_{name}").restype = ctypes.c_int
    for name in ("rapa_pad", "rapa_forward"):
        getattr(library, name).restype = None
