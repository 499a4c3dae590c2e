"""`rapa demo`: the chain of commands, and the table at its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rapa_cli import app
from rapa_cli.commands.demo import DATA, NETWORK, RECIPE, VOTES
from rapa_cli.files import LOCK

DOCUMENTS: dict[str, dict[str, Any]] = {
    "train": {"test_error": 20.0},
    "evaluate": {"test_error": 21.25, "images": 2000},
    "vote": {"n": VOTES, "single_error": 21.5, "vote_error": 19.75},
    "attack": {
        "points": [{"eps": 0.0, "snr_db": None, "accuracy": 100.0}, {"eps": 4 / 255, "snr_db": 30.25, "accuracy": 50.0}]
    },
    "reduce": {"output": "runs/demo/last-reduced-norm.safetensors"},
}


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the demonstration ran; each answers with a document of its own."""
    monkeypatch.chdir(tmp_path)
    seen: list[list[str]] = []
    run = app.run

    def answer(arguments: Sequence[str]) -> int:
        if arguments[0] == "demo":
            return run(arguments)
        seen.append(list(arguments))
        if arguments[0] == "train":
            folder = Path(arguments[arguments.index("--out") + 1])
            folder.mkdir(parents=True)
            (folder / "last.safetensors").write_bytes(b"")
        print(json.dumps(DOCUMENTS[arguments[0]]))  # noqa: T201 - this is the command's output
        return 0

    monkeypatch.setattr(app, "run", answer)
    return seen


def test_the_chain(typed: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["demo", "--seed", "7"]) == 0
    captured = capsys.readouterr()
    assert [words[0] for words in typed] == ["train", "evaluate", "vote", "attack", "reduce", "evaluate"]
    assert all(words[-3:] == ["--seed", "7", "--json"] for words in typed)
    assert [words[1] for words in typed[1:5]] == ["runs/demo"] * 4
    assert typed[5][1] == DOCUMENTS["reduce"]["output"]
    assert [f"$ rapa {' '.join(words[:-1])}" for words in typed] == captured.err.splitlines()
    for text in ("21.25 %", "mean of 5 draws", "21.50 %", "19.75 %", "no noise", "4/255", "30.2 dB", "50.00 %"):
        assert text in captured.out
    assert captured.out.splitlines()[-1] == "  runs/demo/last.safetensors"


def test_a_second_time_takes_a_new_folder(typed: list[list[str]]) -> None:
    assert app.run(["demo"]) == app.run(["demo"]) == 0
    assert [words[1] for words in typed if words[0] == "vote"] == ["runs/demo", "runs/demo-2"]


def test_json_is_one_document(typed: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["demo", "--json", "--out", "here", "--data-dir", "there"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["written"] == ["here/last.safetensors"]
    assert {name: document[name] for name in DOCUMENTS} == DOCUMENTS
    assert document["evaluate_reduced"] == DOCUMENTS["evaluate"]
    assert all(words[words.index("--data-dir") + 1] == "there" for words in typed)


def test_a_command_that_fails_ends_the_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("", encoding="ascii")
    assert app.run(["demo"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] != []
    assert not any("evaluate" in line for line in lines)


@pytest.mark.slow
def test_the_real_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.run(["demo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["attack"]["points"][0]["accuracy"] == 100
    assert document["vote"]["vote_error"] <= document["vote"]["single_error"] < 50
    assert all((tmp_path / name).is_file() for name in document["written"])
    assert not [name for name in document["written"] if name.endswith((".tmp", LOCK))]


@pytest.mark.slow
def test_the_embedded_images_are_neither_easy_nor_hopeless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The untiled network after the demonstration's training: what tiling, votes and attacks are to be seen against."""
    monkeypatch.chdir(tmp_path)
    words = ["train", "--network", NETWORK, "--data", DATA, "--scheme", "none", "--recipe", RECIPE]
    assert app.run([*words, "--out", "plain", "--json"]) == 0
    assert 3 <= json.loads(capsys.readouterr().out)["test_error"] <= 15
