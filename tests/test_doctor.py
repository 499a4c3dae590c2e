"""`rapa doctor`: it looks at everything, survives everything, and says what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import rapa_cli
from rapa_cli import app
from rapa_cli.commands import doctor as examination
from rapa_cli.commands.doctor import Finding, examine

NAMES = ["rapa", "Python", "torch", "torchvision", "torchattacks", "triton", "processor", "threads", "memory", "GPU"]
NAMES += ["C compiler", "kernel", "data folder", "data sets", "disk", "runs"]

Break = Callable[[str, Exception], None]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Makes the import of one package fail."""

    def install(broken: str, error: Exception) -> None:
        real = importlib.import_module

        def import_module(name: str, package: str | None = None) -> ModuleType:
            if name == broken:
                raise error
            return real(name, package)

        monkeypatch.setattr(importlib, "import_module", import_module)

    return install


def finding(name: str, data_dir: Path | None = None) -> Finding:
    return next(each for each in examine(data_dir) if each.name == name)


def test_a_sound_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["usable"] is True
    assert document["version"] == rapa_cli.__version__
    assert [each["name"] for each in document["findings"]] == NAMES
    for each in document["findings"]:
        assert each["status"] in {"ok", "warn"}
        assert each["found"]
        assert each["hint"] or each["status"] == "ok", f"no hint: {each}"
    assert list(Path().iterdir()) == []


def test_a_line_for_each_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["doctor"]) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if not line.startswith(" ")]
    assert [line[6:19].strip() for line in lines] == NAMES
    assert captured.err == ""


def test_torchvision_for_another_torch(breaking: Break, capsys: pytest.CaptureFixture[str]) -> None:
    breaking("torchvision", RuntimeError("operator torchvision::nms does not exist"))
    assert app.run(["doctor"]) == 4
    captured = capsys.readouterr()
    (line,) = (line for line in captured.out.splitlines() if line.startswith("fail"))
    assert "operator torchvision::nms does not exist" in line
    assert f"built for another torch than the {importlib.metadata.version('torch')} here" in line
    assert "pip install --force-reinstall torch torchvision" in captured.out
    assert captured.err.splitlines()[0] == "error: broken here: torchvision"


@pytest.mark.parametrize("name", ["torch", "torchvision", "torchattacks"])
def test_a_package_that_cannot_be_imported(breaking: Break, name: str) -> None:
    breaking(name, OSError("libfoo.so.1: cannot open\nshared object file"))
    found = finding(name)
    assert found.status == "fail"
    assert "cannot be imported: libfoo.so.1: cannot open shared object file" in found.found
    assert found.hint
    assert "pip install" in found.hint


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in {"torchattacks", "triton"}:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert finding("torchattacks") == Finding("torchattacks", "fail", "is not installed", "pip install torchattacks")
    assert finding("triton").status == "ok"


def test_a_look_that_fails_does_not_end_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble() -> Finding:
        raise ZeroDivisionError

    monkeypatch.setattr(examination, "_memory", stumble)
    findings = list(examine())
    assert [each.name for each in findings] == NAMES
    broken = next(each for each in findings if each.name == "memory")
    assert (broken.status, broken.found) == ("warn", "could not be looked at: ZeroDivisionError")


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr(examination, "cores", lambda: 2)
    found = finding("threads")
    assert (found.status, found.hint) == ("warn", "use --threads 2")


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="this system does not say how much memory is free")
def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "LOW_MEMORY", 2**62)
    found = finding("memory")
    assert (found.status, bool(found.hint)) == ("warn", True)


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", UserWarning, stacklevel=2)
        return False

    def properties(index: int) -> Any:
        return SimpleNamespace(name=f"Card {index}", total_memory=8 * 2**30)

    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert finding("GPU") == Finding("GPU", "ok", "none; the CPU is used")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "nvidia-smi" else None)
    assert finding("GPU").status == "warn"
    monkeypatch.setattr("torch.cuda.is_available", warn)
    assert finding("GPU").found == "The NVIDIA driver on your system is too old"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", properties)
    assert finding("GPU").found == "Card 0, 8 GiB; Card 1, 8 GiB"


def test_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = finding("C compiler")
    assert (found.status, found.found) == ("warn", "none found")
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\necho 'My C 1.0'\necho more\n", encoding="ascii")
    compiler.chmod(0o755)
    assert finding("C compiler") == Finding("C compiler", "ok", f"My C 1.0 ({compiler})")
    compiler.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    assert finding("C compiler").status == "warn"


def test_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(library: object, reason: str, threaded: bool = False) -> Finding:
        answer = SimpleNamespace(library=library, reason=reason, threaded=threaded)
        monkeypatch.setattr("rapa_cli.kernels.compiled.kernels", lambda: answer)
        return finding("kernel")

    monkeypatch.setattr(examination, "cores", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("RAPA_KERNEL", raising=False)
    assert found(object(), "built by cc", threaded=True).status == "ok"
    assert found(object(), "built by cc").status == "warn"
    assert found(None, "no C compiler was found").status == "warn"
    monkeypatch.setenv("RAPA_KERNEL", "torch")
    assert found(None, "RAPA_KERNEL=torch") == Finding("kernel", "ok", "torch on the CPU (RAPA_KERNEL=torch)")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "rapa_cli.kernels.gpu", SimpleNamespace(available=lambda _device: True))
    monkeypatch.setattr("rapa_cli.kernels.gpu", sys.modules["rapa_cli.kernels.gpu"], raising=False)
    assert found(object(), "built", threaded=True).found == "C on the CPU (built), Triton on the GPU"


def test_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a" / "b"
    assert finding("data folder", folder) == Finding("data folder", "ok", f"{folder} (made when it is needed)")
    assert not (tmp_path / "a").exists()
    folder.mkdir(parents=True)
    assert finding("data folder", folder) == Finding("data folder", "ok", str(folder))
    assert "shapes" in finding("data sets", folder).found
    file = tmp_path / "file"
    file.write_text("", encoding="ascii")
    assert finding("data folder", file).status == "fail"
    assert app.run(["doctor", "--data-dir", str(file)]) == 4

    def refuse(**_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    found = finding("data folder", folder)
    assert (found.status, found.found) == ("warn", f"{folder}: cannot write in {folder}: permission denied")
    found = finding("runs")
    assert (found.status, bool(found.hint)) == ("warn", True)


def test_runs_under_a_file() -> None:
    Path("runs").write_text("", encoding="ascii")
    found = finding("runs")
    assert (found.status, found.found) == ("warn", f"{Path('runs').absolute()}: {Path('runs').absolute()} is no folder")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**20))
    found = finding("disk")
    assert (found.status, bool(found.hint)) == ("warn", True)
    assert found.found.startswith("0.0 GiB are free for ")


def test_a_terminal_of_fifty_columns() -> None:
    """Every line fits, and nothing is lost."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo terminals")
    main, branch = pty.openpty()
    code = (
        "from rapa_cli.commands.doctor import Finding, _show\n"
        "_show([Finding('data folder', 'warn', 'word ' * 20 + '/' + 'x' * 60, 'do ' * 20), Finding('a', 'ok', 'b')])\n"
    )
    environment = {**os.environ, "COLUMNS": "50", "NO_COLOR": "1", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=branch, env=environment) as process:
        os.close(branch)
        chunks = []
        try:
            while chunk := os.read(main, 65536):
                chunks.append(chunk)
        except OSError:
            pass  # Linux ends a terminal whose program has gone with an error.
        os.close(main)
        assert process.wait() == 0
    text = b"".join(chunks).decode()
    assert "\x1b[3" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 50
    assert lines[-1] == "ok    a            b"
    assert text.count("word") == 20
    assert text.count("x") == 60
