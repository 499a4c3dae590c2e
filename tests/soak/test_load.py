"""The checks of memory in small: they pass, and each of them fails where something is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.soak import load
from tests.soak.launcher import Launcher
from tests.soak.load import Load

# Large batches, so that little work would leave much behind.
CHECKS: dict[str, Callable[..., Load]] = {
    "batches": partial(load.epochs, few=2, many=42, images=4000),
    "draws": partial(load.voted, few=10, many=510, images=2000),
    "adversarial": partial(load.attacked, few=200, many=4000),
}

pytestmark = pytest.mark.slow  # each draws, trains or attacks for ten seconds and more


@pytest.mark.parametrize("leak", CHECKS)
def test_memory_stays_flat(launcher: Launcher, place: Path, leak: str) -> None:
    found = CHECKS[leak](launcher, place)
    assert found.growth <= found.limit, found


@pytest.mark.parametrize("leak", CHECKS)
def test_a_leak_is_found(launcher: Launcher, place: Path, leak: str) -> None:
    found = CHECKS[leak](launcher, place, leak=leak)
    assert found.growth > found.limit, found
