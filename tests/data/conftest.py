"""Small data sets that the tests of the data room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from rapa_cli.data.images import Split
from tests.data.files import random_split


@pytest.fixture
def train() -> Split:
    return random_split(23, seed=1)


@pytest.fixture
def test() -> Split:
    return random_split(11, seed=2)


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own data folder, in a temporary place."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    return tmp_path / "own" / "rapa"
