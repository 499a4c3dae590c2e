"""Compiling the C kernels: where they are kept, what is not trusted, and what happens without a compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rapa_cli.kernels import compiled

USE = """
import torch
from rapa_cli import TiledConv2d, draws
from rapa_cli.kernels.compiled import kernels
layer = TiledConv2d(3, 4, 3, tiles=4)
with draws(layer, images=torch.arange(2)):
    layer(torch.rand(2, 3, 8, 8)).sum().backward()
print(kernels().library is not None, kernels().threaded)
"""


_FLAGS = compiled._FLAGS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if compiled.kernels().library is None:
        pytest.skip(f"the C kernels could not be compiled here: {compiled.kernels().reason}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Where libraries lie is what matters here; such ones are built in a fraction of the time.
    monkeypatch.setattr(compiled, "_FLAGS", ("-O0", *_FLAGS[1:]))
    compiled.kernels.cache_clear()
    yield tmp_path / "rapa" / "kernels"
    monkeypatch.undo()
    compiled.kernels.cache_clear()


def _again() -> compiled.Kernels:
    compiled.kernels.cache_clear()
    return compiled.kernels()


def test_compiled_once_and_found_again(cache: Path) -> None:
    assert _again().library is not None
    (library,) = cache.iterdir()
    before = library.stat()
    assert _again().library is not None
    assert list(cache.iterdir()) == [library]
    assert library.stat().st_mtime_ns == before.st_mtime_ns
    assert before.st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["cut off", "another"])
def test_a_library_that_is_not_what_was_built_is_built_anew(cache: Path, damage: str) -> None:
    _again()
    (library,) = cache.iterdir()
    whole = library.read_bytes()
    # The loaded library keeps its file: the damage is done to a new one of that name.
    library.unlink()
    library.write_bytes(whole[: len(whole) // 2] if damage == "cut off" else b"\x7fELF" + bytes(1000))
    assert _again().library is not None
    (rebuilt,) = cache.iterdir()
    assert rebuilt.read_bytes() == whole


def test_a_link_that_leads_nowhere_is_replaced(cache: Path) -> None:
    _again()
    (library,) = cache.iterdir()
    library.unlink()
    library.symlink_to(cache / "nothing")
    assert _again().library is not None
    assert not library.is_symlink()


def test_a_folder_in_the_place_of_the_library_is_told(cache: Path) -> None:
    _again()
    (library,) = cache.iterdir()
    library.unlink()
    library.mkdir()
    kernels = _again()
    assert kernels.library is None
    assert kernels.reason.endswith(f"a folder stands at {library}")


def test_a_library_that_another_process_takes_away_is_built_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _again()
    (library,) = cache.iterdir()
    trusted = compiled._trusted

    def taken(path: Path) -> bool:
        if path == library:
            path.unlink()
        return trusted(path)

    monkeypatch.setattr(compiled, "_trusted", taken)
    assert _again().library is not None
    assert list(cache.iterdir()) == [library]


@pytest.mark.slow  # two processes that build
def test_two_processes_beside_a_library_that_is_cut_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_FLAGS", _FLAGS)
    _again()
    (library,) = cache.iterdir()
    whole = library.read_bytes()
    library.unlink()
    library.write_bytes(whole[:1000])
    test_two_processes_at_once()
    assert library.read_bytes() == whole


@pytest.mark.parametrize("above", [False, True], ids=["itself", "the one above"])
def test_a_folder_that_others_may_write_to_is_not_used(cache: Path, above: bool) -> None:
    cache.mkdir(parents=True, mode=0o700)
    (cache.parent if above else cache).chmod(0o777)
    kernels = _again()
    assert kernels.library is None
    assert "others may write to it" in kernels.reason
    assert not list(cache.iterdir())


def test_a_folder_of_another_user_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    owner = cache.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    kernels = _again()
    assert kernels.library is None
    assert "is not the user's own" in kernels.reason
    assert not list(cache.iterdir())


def test_a_library_that_others_may_write_to_is_built_anew(cache: Path) -> None:
    _again()
    (library,) = cache.iterdir()
    before = library.stat().st_ino
    library.chmod(0o770)
    kept = library.with_suffix(".kept")
    kept.hardlink_to(library)
    assert _again().library is not None
    kept.unlink()
    (rebuilt,) = cache.iterdir()
    assert rebuilt.stat().st_ino != before
    assert rebuilt.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["tiled_conv.c", "analog_conv.c", "common.h"])
def test_every_source_decides_what_is_built(
    cache: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [shutil.copy(path, tmp_path) for path in (*compiled._SOURCES, compiled._HEADER)]
    monkeypatch.setattr(compiled, "_SOURCES", tuple(map(Path, copies[:-1])))
    monkeypatch.setattr(compiled, "_HEADER", Path(copies[-1]))
    assert _again().library is not None
    with (tmp_path / name).open("a") as source:
        source.write("/* changed */\n")
    assert _again().library is not None
    assert len(list(cache.iterdir())) == 2


@pytest.mark.slow  # two processes that build
def test_two_processes_at_once() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", USE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [out.split() for out, _ in outputs] == [["True", "True"]] * 2, outputs


def test_without_a_compiler_the_torch_path_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert _again() == compiled.Kernels(None, "no C compiler was found (cc, gcc or clang)")


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\ncase $1 in --version) echo broken 1;; *) echo it is broken >&2; exit 1;; esac\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    kernels = _again()
    assert kernels.library is None
    assert kernels.reason == f"{broken} could not build the kernels: it is broken"


def test_the_torch_path_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPA_KERNEL", "torch")
    assert _again().library is None
