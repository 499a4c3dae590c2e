"""What all tests share: one thread for torch, and a data folder of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before anything loads torch: the workers of pytest-xdist share the cores, and so do the programs tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["MPLBACKEND"] = "Agg"

# Kept before the tests get a folder of their own: the one that holds the real CIFAR-10.
_REAL_DATA = os.environ.get("RAPA_DATA_DIR")


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of this test session, which `RAPA_DATA_DIR` names; nothing is written to the user's home."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist share one, so that a drawn data set is drawn once.
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = root / "data"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPA_DATA_DIR", str(folder))
        patch.setenv("XDG_DATA_HOME", str(root / "home"))
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield folder


@pytest.fixture
def cifar10_dir() -> Path:
    """The folder with the real CIFAR-10; tests that use it are marked `cifar10`."""
    if _REAL_DATA is None:
        pytest.skip("RAPA_DATA_DIR does not name a folder with the real CIFAR-10")
    folder = Path(_REAL_DATA)
    if not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip(f"RAPA_DATA_DIR is {folder}, which has no cifar-10-batches-py")
    return folder
