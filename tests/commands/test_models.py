"""`rapa models`, and names of the zoo in place of checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rapa_cli import resources
from tests import zoo
from tests.commands.conftest import Run, refused

NAME = "tiny-random"


@pytest.fixture
def shipped(here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo with the finished run's checkpoint, read-only as an installed package is."""
    root = zoo.models(tmp_path_factory.mktemp("package") / "models", monkeypatch)
    return zoo.fill(root, NAME, here / "runs" / "done" / "last.safetensors")


def test_the_list(rapa: Run, shipped: Path) -> None:
    document = rapa("models", "list", "--json").document
    assert {entry["name"] for entry in document["networks"]} == set(resources.names("networks"))
    (entry,) = document["zoo"]
    assert (entry["name"], entry["checkpoint"], entry["bytes"]) == (NAME, str(shipped), shipped.stat().st_size)
    assert entry["test_error_ci95"] == [31.3, 68.7]
    text = rapa("models", "list").out
    assert "\n  full\n    Caffe's" in text
    assert f"\n  {NAME}\n    A tiny network on the images mini\n    test error 50.00 %, 80.0 % right at 33 dB, " in text


def test_an_installation_without_a_zoo(rapa: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.models(tmp_path / "models", monkeypatch)
    assert rapa("models", "list", "--json").document["zoo"] == []
    assert "no trained networks" in rapa("models", "list").out


def test_a_card(rapa: Run, shipped: Path) -> None:
    document = rapa("models", "show", NAME, "--json").document
    assert document["date"] == "2026-07-01"
    assert document["command"].startswith("rapa train --network tiny.toml")
    text = rapa("models", "show", NAME).out
    for said in (
        "50.00 %  (95 %: 31.30 to 68.70; one draw)",
        "46.67 %",
        "53.33 %  (by norm)",
        "1 min 23 s",
        "random (4)",
    ):
        assert said in text
    assert document["command"] in text
    assert str(shipped) in text


def test_a_definition(rapa: Run, shipped: Path) -> None:
    document = rapa("models", "show", "full", "--json").document
    assert [layer["kind"] for layer in document["layers"]].count("conv") == 3
    assert document["file"].endswith("networks/full.toml")
    assert "conv    channels 32, kernel 5, padding 2" in rapa("models", "show", "full").out


def test_a_misspelt_name(rapa: Run, shipped: Path) -> None:
    refused(rapa("models", "show", "tiny-randm"), 3, "there is no network 'tiny-randm'", f"did you mean '{NAME}'?")
    refused(rapa("evaluate", "tiny-randm"), 3, "there is no checkpoint tiny-randm", f"did you mean '{NAME}'?")
    refused(rapa("plan", "tiny-randm"), 3, "no network and no checkpoint 'tiny-randm'", f"did you mean '{NAME}'?")
    refused(rapa("inspect", "tiny-randm"), 3, "tiny-randm", f"did you mean '{NAME}'?")


def test_a_network_of_the_zoo_is_no_run(rapa: Run, shipped: Path) -> None:
    refused(rapa("report", NAME), 3, f"there is no run folder {NAME}", f"`rapa models show {NAME}`")
    refused(rapa("train", "--resume", NAME), 3, f"there is no run folder {NAME}", f"`rapa models show {NAME}`")


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", NAME],
        ["vote", NAME, "-n", "2"],
        ["attack", NAME, "--snr", "33"],
        ["plan", NAME],
        ["inspect", NAME],
        ["reduce", NAME],
        ["export", NAME, "--to", "state-dict"],
    ],
    ids=lambda words: str(words[0]),
)
def test_a_name_stands_for_its_checkpoint(rapa: Run, here: Path, shipped: Path, words: list[str]) -> None:
    before = _files(shipped)
    found = rapa(*words, "--json").document
    assert found["checkpoint"] == str(shipped)
    assert _files(shipped) == before
    if "output" in found:
        assert Path(found["output"]).parent == Path()
        assert (here / found["output"]).is_file()


def test_the_same_figures_as_from_the_file(rapa: Run, here: Path, shipped: Path) -> None:
    by_name = rapa("evaluate", NAME, "--json").document
    by_path = rapa("evaluate", str(here / "runs" / "done" / "last.safetensors"), "--json").document
    assert by_name["test_error"] == by_path["test_error"]
    assert by_name["images"] == by_path["images"] == 30


def test_what_is_made_from_the_zoo_says_so(rapa: Run, shipped: Path) -> None:
    output = rapa("reduce", NAME, "--json").document["output"]
    assert output == f"{NAME}-reduced-norm.safetensors"
    provenance = rapa("inspect", output, "--json").document["provenance"]
    assert provenance["made_from"] == f"{NAME} of the zoo"


def test_a_path_wins_over_a_name(rapa: Run, here: Path, shipped: Path) -> None:
    (here / "runs" / "done").rename(here / NAME)
    assert rapa("inspect", NAME, "--json").document["checkpoint"] == os.path.join(NAME, "last.safetensors")  # noqa: PTH118


def _files(checkpoint: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_mtime_ns) for path in checkpoint.parent.iterdir())
