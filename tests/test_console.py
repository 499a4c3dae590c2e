"""What commands show while they compute."""

from __future__ import annotations

import pytest

from rapa_cli import console


def test_in_a_log_lines_get_rarer(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with console.progress() as bar:
        bar.get_time = lambda: now
        task = bar.add_task("attacking", total=None)
        bar.update(task, total=4000, description="fgsm, level 1 of 2")
        for second in range(1, 4001):
            now = float(second)
            bar.advance(task)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "fgsm, level 1 of 2: 0 %, 10 s so far",
        "fgsm, level 1 of 2: 0 %, 20 s so far",
        "fgsm, level 1 of 2: 1 %, 40 s so far",
    ]
    # 10, 20, ..., 640 s, and then one in ten minutes.
    assert len(lines) == 7 + 5
    assert lines[-1].endswith(": 91 %, 1 h 1 min so far")


def test_what_is_short_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as bar:
        bar.update(bar.add_task("reading", total=2), completed=2)
    assert capsys.readouterr().err == ""


def test_who_writes_lines_of_its_own_gets_none(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with console.progress(counted=False) as bar:
        bar.get_time = lambda: now
        task = bar.add_task("training", total=2)
        now = 3600.0
        bar.advance(task)
    assert capsys.readouterr().err == ""
