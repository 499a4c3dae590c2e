"""Small data sets that the tests of the data room share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rapa_cli.data.images import Split


def random_split(count: int, *, shape: tuple[int, int, int] = (3, 6, 5), classes: int = 4, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % classes)


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
