"""What a process may use of its machine."""

from __future__ import annotations

import os

import pytest

from rapa_cli import machine


def test_cores_within_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    def allowed(count: int, quota: str) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(count)), raising=False)
        monkeypatch.setattr(machine, "control_group", lambda _name: quota)
        return machine.cores()

    assert allowed(8, "") == 8
    assert allowed(8, "max 100000") == 8
    assert allowed(8, "350000 100000") == 3
    assert allowed(8, "50000 100000") == 1
    assert allowed(2, "800000 100000") == 2
