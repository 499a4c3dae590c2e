"""What the checks of the soak share: a folder of their own, and commands started in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak import kills
from tests.soak.launcher import Launcher


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module")
def launcher(place: Path) -> Iterator[Launcher]:
    with Launcher(place, place / "data") as launcher:
        kills.prepare(place, launcher)
        yield launcher
