"""What is seen of a training: curves that fit the screen, and lines where there is none."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapa_cli import console
from rapa_cli.checkpoint import Progress
from rapa_cli.commands.live import View, sparkline
from rapa_cli.training.loop import Sums
from tests.commands.conftest import TRAIN
from tests.training import tiny

BLOCKS = "▁▂▃▄▅▆▇█"


def row(epoch: int, **changes: float) -> dict[str, Any]:
    known = {"rate": 0.01, "train_loss": 1.5, "train_error": 40.0, "test_loss": 1.4, "test_error": 38.0}
    return {"epoch": epoch, **known, **changes}


@given(values=st.lists(st.floats(0, 1e6), max_size=300), width=st.integers(1, 80))
def test_a_curve_fits_and_shows_its_ends(values: list[float], width: int) -> None:
    drawn = sparkline(values, width)
    assert len(drawn) == min(len(values), width)
    assert set(drawn) <= set(BLOCKS)
    if len(values) <= width and values and max(values) > min(values):
        assert drawn[values.index(min(values))] == BLOCKS[0]
        assert drawn[values.index(max(values))] == BLOCKS[-1]


def test_curves() -> None:
    assert sparkline(range(8), 8) == BLOCKS
    assert sparkline(range(16), 8) == BLOCKS
    assert sparkline([3.0, 3.0], 5) == "▁▁"
    assert sparkline([], 5) == ""
    assert sparkline([1.0, math.nan, 2.0], 5) == "▁?█"
    assert sparkline([0.0, 1.0], 5, "_#") == "_#"


@pytest.fixture
def view(monkeypatch: pytest.MonkeyPatch) -> View:
    """A view on a terminal, of a run of 20 epochs that has done three and a part of the fourth."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    view = View(tiny.recipe(epochs=20, lr=0.00108), [row(1), row(2, test_error=30.0), row(3)])
    with view:
        view._drawn = -math.inf
        view.step(3, 5, 400, Sums(torch.tensor(20.0), torch.tensor(3), 10))
    return view


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_lines_fit_the_screen(view: View, width: int) -> None:
    lines = view.lines(width).plain.splitlines()
    assert len(lines) == (5 if width >= 80 else 6)
    if width >= 40:
        assert all(len(line) < width for line in lines)
    assert lines[0].startswith("epoch 4/20  ")


def test_what_the_view_says(view: View) -> None:
    lines = view.lines(80).plain.splitlines()
    assert lines[0].endswith("   15 %")
    loss, train, test, rate = lines[1:]
    assert re.fullmatch(r"loss +2\.000  .{4}", loss)
    assert re.fullmatch(r"train error +30\.00 %  .{4}", train)
    assert re.fullmatch(r"test error +38\.00 %  ... +lowest 30\.00 %, epoch 2", test)
    assert re.fullmatch(r"rate +0\.00108  .{4}", rate)


def test_the_time_left(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    now = view._began + 100.0
    monkeypatch.setattr("rapa_cli.commands.live.time.monotonic", lambda: now)
    # The first step of this process was the fifth of epoch 4: 5 + 3 * 400 + 400 are done now.
    view._done = 1205 + 400
    assert view._left() == f"{console.duration(100 / 400 * (20 * 400 - 1605))} left"
    view._done = view._all
    assert view._left() == ""


def test_an_epoch_that_ends_goes_into_the_curves(view: View) -> None:
    view._live = type("Nothing", (), {"update": lambda *_args, **_options: None})()
    view.epoch(row(4, test_error=25.0), Progress(), 1234.0)
    lines = view.lines(80).plain.splitlines()
    assert lines[0].startswith("epoch 4/20  ")
    assert " 20 %  1,234 images/s" in lines[0]
    assert "lowest 25.00 %, epoch 4" in lines[3]


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with View(tiny.recipe(epochs=20)) as view:
        view.step(0, 1, 2, Sums(torch.tensor(20.0), torch.tensor(3), 10))
        view.testing(0)
        assert capsys.readouterr().err == ""
        view.epoch(row(1), Progress(), 99.6)
    line = "epoch  1/20  rate 0.01  loss 1.500  train 40.00 %  test 38.00 %  100 images/s\n"
    assert capsys.readouterr() == ("", line)


def test_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    token = console.quiet.set(True)
    try:
        for colour in ("", "1"):
            monkeypatch.setenv("FORCE_COLOR", colour)
            with View(tiny.recipe(epochs=20)) as view:
                view.step(0, 1, 2, Sums(torch.tensor(20.0), torch.tensor(3), 10))
                view.epoch(row(1), Progress(), 99.6)
    finally:
        console.quiet.reset(token)
    assert capsys.readouterr() == ("", "")


# What a pipe gets is also what `test_same_bits` compares.
@pytest.mark.parametrize("terminal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_real_terminal_and_a_pipe(here: Path, terminal: bool) -> None:
    pty = pytest.importorskip("pty", reason="this system has no pseudo terminals")
    main, branch = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "NO_COLOR")}
    environment |= {"TERM": "xterm", "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "rapa_cli", *TRAIN, "--epochs", "2", "--out", "here"]
    done = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=branch if terminal else subprocess.PIPE, env=environment
    )
    os.close(branch)
    shown = b""
    try:
        while terminal and (part := os.read(main, 65536)):
            shown += part
    except OSError:
        # Linux says so that the other end was closed.
        pass
    os.close(main)
    out, err = done.communicate()
    text = (shown if terminal else err).decode()
    assert done.returncode == 0, text
    assert b"test error" in out
    escapes = "\x1b[" in text
    assert escapes is terminal
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    if terminal:
        assert "epoch 2/2  " in plain
        assert "100 %" in plain
        assert re.search("[▁▂▃▄▅▆▇█]", plain)
    else:
        assert [line[:9] for line in plain.splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
        assert not re.search("[▁▂▃▄▅▆▇█━]", plain)
