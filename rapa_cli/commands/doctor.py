"""`rapa doctor`: looks at everything the program needs and says what is missing and what to do about it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rapa_cli import __version__
from rapa_cli.commands.options import DataDir, Json
from rapa_cli.errors import CheckFailed, RapaError
from rapa_cli.machine import control_group, cores

Status = Literal["ok", "warn", "fail"]

GIB = 2**30
LOW_MEMORY = 2 * GIB
LOW_DISK = 2 * GIB

_REINSTALL = "install torch and torchvision again, both from the same place: pip install --force-reinstall"
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Attributes:
        name: what was looked at.
        status: "ok", "warn" (the program works, with a limit) or "fail" (something does not work).
        found: what is there.
        hint: what to do about it.
    """

    name: str
    status: Status
    found: str
    hint: str | None = None


def doctor(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Check this installation and say what is missing.

    Looks at versions, processors, compiler, data sets, disk space and permissions. Ends with exit code 0 when `rapa`
    is usable here, and 4 when something is broken.

    Example: rapa doctor
    """
    from rapa_cli.console import print_json

    findings = list(examine(data_dir))
    broken = [finding.name for finding in findings if finding.status == "fail"]
    if as_json:
        print_json({"usable": not broken, "version": __version__, "findings": [asdict(each) for each in findings]})
    else:
        _show(findings)
    if broken:
        raise CheckFailed(f"broken here: {', '.join(broken)}", hint="the lines marked 'fail' say what to do")


def examine(data_dir: Path | None = None) -> Iterator[Finding]:
    """Looks at one thing after the other; no look ends the examination, whatever it runs into.

    Args:
        data_dir: the folder of the data sets; the usual one when None.
    """
    looks: dict[str, Callable[[], Finding]] = {
        "rapa": _rapa,
        "Python": _python,
        "torch": _torch,
        "torchvision": _torchvision,
        "torchattacks": lambda: _package("torchattacks"),
        "triton": _triton,
        "processor": _processor,
        "threads": _threads,
        "memory": _memory,
        "GPU": _gpus,
        "C compiler": _compiler,
        "kernel": _kernel,
        "data folder": lambda: _data_folder(data_dir),
        "data sets": lambda: _data_sets(data_dir),
        "disk": lambda: _disk(data_dir),
        "runs": _runs,
    }
    for name, look in looks.items():
        try:
            yield look()
        except RapaError as error:
            yield Finding(name, "fail", error.message, error.hint)
        except Exception as error:
            yield Finding(name, "warn", f"could not be looked at: {_line(error)}")


def _rapa() -> Finding:
    return Finding("rapa", "ok", f"{__version__} in {Path(__file__).parent.parent}")


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} ({sys.executable}) on {platform.platform(terse=True)}")


def _version(name: str) -> str | None:
    """The version of an installed package, or None."""
    # Loading this takes as long as a shell may wait for its completions.
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, hint: str | None = None) -> Finding:
    """A package that is needed: its version, and whether it can be imported."""
    hint = hint or f"install it again: pip install --force-reinstall {name}"
    version = _version(name)
    if version is None:
        return Finding(name, "fail", "is not installed", f"pip install {name}")
    try:
        importlib.import_module(name)
    except Exception as error:
        return Finding(name, "fail", f"{version} cannot be imported: {_line(error)}", hint)
    return Finding(name, "ok", version)


def _torch() -> Finding:
    return _package("torch", f"{_REINSTALL} torch torchvision")


def _torchvision() -> Finding:
    finding = _package("torchvision", f"{_REINSTALL} torch torchvision")
    if finding.status == "fail" and "nms" in finding.found:
        # torch checks the operators of torchvision's compiled half, which a build for another torch never registered.
        cause = (
            f"; it was built for another torch than the {_version('torch')} here, such as a CUDA build beside a CPU one"
        )
        return Finding(finding.name, "fail", finding.found + cause, finding.hint)
    return finding


def _triton() -> Finding:
    return Finding("triton", "ok", _version("triton") or "not installed; only GPU kernels would use it")


def _processor() -> Finding:
    usable = cores()
    present = os.cpu_count() or usable
    count = f"{usable} cores" if usable == present else f"{usable} of {present} cores may be used"
    return Finding("processor", "ok", f"{_processor_name()}, {count}")


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def _threads() -> Finding:
    import torch

    threads, usable = torch.get_num_threads(), cores()
    found = f"torch computes with {threads}"
    if threads > usable:
        return Finding("threads", "warn", f"{found} on {usable} cores, which is slow", f"use --threads {usable}")
    return Finding("threads", "ok", found)


def _memory() -> Finding:
    information = Path("/proc/meminfo")
    if not information.exists():
        return Finding("memory", "ok", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB")
    lines = (line.split() for line in information.read_text(encoding="ascii").splitlines())
    amounts = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    total, free = amounts["MemTotal"], amounts["MemAvailable"]
    limit = control_group("memory.max")
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        free = min(free, total - int(control_group("memory.current") or 0))
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free"
    if free < LOW_MEMORY:
        return Finding("memory", "warn", found, "use a small --batch-size, or end other programs")
    return Finding("memory", "ok", found)


def _gpus() -> Finding:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
        count = torch.cuda.device_count() if usable else 0
    if count:
        devices = (torch.cuda.get_device_properties(index) for index in range(count))
        return Finding("GPU", "ok", "; ".join(f"{each.name}, {each.total_memory / GIB:.0f} GiB" for each in devices))
    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", "Apple's (--device mps)")
    if caught or shutil.which("nvidia-smi"):
        reason = _line(caught[0].message) if caught else "nvidia-smi is there, but torch sees no GPU"
        return Finding("GPU", "warn", reason, "install a torch for this GPU's driver, or use --device cpu")
    return Finding("GPU", "ok", "none; the CPU is used")


def _compiler() -> Finding:
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path:
            try:
                answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
            except (OSError, subprocess.SubprocessError) as error:
                return Finding("C compiler", "warn", f"{path} does not run: {_line(error)}", "install it again")
            version = answer.stdout.splitlines()[0] if answer.stdout else "of unknown version"
            return Finding("C compiler", "ok", f"{version} ({path})")
    hint = "install gcc or clang (a package such as build-essential); without it the slower kernel is used"
    return Finding("C compiler", "warn", "none found", hint)


def _kernel() -> Finding:
    """Which kernel computes tiled convolutions in float32; everything else is computed in torch."""
    from rapa_cli.kernels.compiled import kernels

    compiled, on_gpu = kernels(), _gpu_kernel()
    if compiled.library is None:
        found = f"torch on the CPU ({compiled.reason}){on_gpu}"
        if os.environ.get("RAPA_KERNEL"):
            return Finding("kernel", "ok", found)
        return Finding("kernel", "warn", found, "everything works, but slower on the CPU than with compiled kernels")
    if not compiled.threaded and cores() > 1:
        hint = "this torch brings no GNU OpenMP, which the kernels share; everything works, but slower on the CPU"
        return Finding("kernel", "warn", f"C on one thread of the CPU ({compiled.reason}){on_gpu}", hint)
    return Finding("kernel", "ok", f"C on the CPU ({compiled.reason}){on_gpu}")


def _gpu_kernel() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    try:
        from rapa_cli.kernels import gpu
    except ImportError:
        return ", torch on the GPU (triton is not installed)"
    return ", Triton on the GPU" if gpu.available(torch.device("cuda", 0)) else ", torch on the GPU"


def _data_folder(data_dir: Path | None) -> Finding:
    from rapa_cli.data import places

    folder = places.data_dir(data_dir).absolute()
    if folder.exists() and not folder.is_dir():
        return Finding("data folder", "fail", f"{folder} is no folder", "name another with --data-dir or RAPA_DATA_DIR")
    problem = _unwritable(folder)
    if problem:
        hint = "data sets there can be used; to add others, name another folder with --data-dir or RAPA_DATA_DIR"
        return Finding("data folder", "warn", f"{folder}: {problem}", hint)
    return Finding("data folder", "ok", str(folder) if folder.is_dir() else f"{folder} (made when it is needed)")


def _data_sets(data_dir: Path | None) -> Finding:
    from rapa_cli.data import catalog

    entries = [entry for entry in catalog.listing(data_dir) if entry.state != "absent"]
    found = ", ".join(f"{entry.name} ({entry.state})" for entry in entries)
    damaged = [entry.name for entry in entries if entry.state == "damaged"]
    if damaged:
        return Finding("data sets", "warn", found, f"fetch it again: rapa data get {damaged[0]} --force")
    return Finding("data sets", "ok", found)


def _disk(data_dir: Path | None) -> Finding:
    from rapa_cli.data import places

    wanted = [Path("runs").absolute(), places.data_dir(data_dir).absolute()]
    folders = {_existing(folder).stat().st_dev: folder for folder in wanted}
    free = {folder: shutil.disk_usage(_existing(folder)).free for folder in folders.values()}
    found = "; ".join(f"{amount / GIB:.1f} GiB are free for {folder}" for folder, amount in free.items())
    if min(free.values()) < LOW_DISK:
        return Finding("disk", "warn", found, "free some space before fetching data or training")
    return Finding("disk", "ok", found)


def _runs() -> Finding:
    folder = Path("runs").absolute()
    problem = _unwritable(folder)
    if problem:
        return Finding("runs", "warn", f"{folder}: {problem}", "work in a folder that you own, or train with --out")
    return Finding("runs", "ok", f"{folder} can be written")


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest of its parents that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written to a folder, which need not exist yet; None where it can."""
    place = _existing(folder)
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"cannot write in {place}: {os.strerror(error.errno or 0).lower()}"


def _line(error: Any) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _show(findings: list[Finding]) -> None:
    from rich.text import Text

    from rapa_cli.console import out

    console = out()
    indent = " " * 19
    # A line that is read by another program stays whole.
    width = max(console.width, 40) if console.is_terminal else 10**6
    for finding in findings:
        head = f"{finding.status:<5} {finding.name:<13}"
        text = textwrap.fill(head + finding.found, width, subsequent_indent=indent, break_on_hyphens=False)
        line = Text(text)
        line.stylize(_COLOURS[finding.status], 0, len(finding.status))
        console.print(line, soft_wrap=True)
        if finding.hint:
            hint = textwrap.fill(
                f"hint: {finding.hint}", width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            )
            console.print(Text(hint, style="cyan"), soft_wrap=True)
