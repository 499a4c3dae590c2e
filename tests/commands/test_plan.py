"""`rapa plan`: what it prints, for every kind of network, and what it refuses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rapa_cli.analysis.hardware import Hardware
from tests.commands.conftest import Run, refused

GUIDE = Path(__file__).parent.parent.parent / "docs" / "plan.md"
KEYS = {"name", "n_p", "k", "c_out", "macs", "tiles", "array_cycles"}


def column(document: dict[str, Any], key: str) -> list[Any]:
    return [layer[key] for layer in document["layers"]]


def test_the_papers_network(rapa: Run) -> None:
    found = rapa("plan", "full", "--json").document
    assert all(layer.keys() >= KEYS for layer in found["layers"])
    assert column(found, "n_p") == [1024, 256, 64]
    assert column(found, "tiles") == [16, 4, 1]
    assert column(found, "array_cycles") == [64, 64, 64]
    assert column(found, "utilisation") == [1, 1, 1]
    assert (found["acceleration"], found["acceleration_sequential"]) == (16, 7)
    assert (found["arrays"], found["idle_arrays"], found["bottleneck_untiled"]) == (21, 0, "conv1")
    assert found["shape"] == [3, 32, 32]
    assert [layer["k"] for layer in found["linear"]] == [1024]


def test_alexnet(rapa: Run) -> None:
    found = rapa("plan", "alexnet", "--json").document
    assert column(found, "tiles") == [17, 4, 1, 1, 1]
    assert column(found, "array_cycles") == [178, 183, 169, 169, 169]
    assert found["bottleneck"] == "conv2"
    assert found["acceleration"] == pytest.approx(3025 / 183)
    assert found["shape"] == [3, 224, 224]


@pytest.mark.parametrize("network", ["full", "alexnet", "torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_the_table_fits_the_screen(rapa: Run, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = rapa("plan", network, "--array-rows", "256")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in outcome.out
    layers = rapa("plan", network, "--array-rows", "256", "--json").document["layers"]
    for layer in layers:
        (row,) = [line.split() for line in lines if line.split()[:1] == [layer["name"]]]
        assert {str(layer[key]) for key in ("n_p", "tiles", "arrays", "array_cycles")} <= set(row)
        place = row.index("x")
        assert row[place - 1 : place + 2] == [str(layer["array_rows"]), "x", str(layer["array_columns"])]
    # What there is no room for is named.
    (heading,) = [line.split() for line in lines if line.split()[:1] == ["layer"]]
    named = [line.split(";")[0].removeprefix("no room for ") for line in lines if "no room" in line]
    grouped = any(layer["groups"] > 1 for layer in layers)
    everything = {"n_p", "k", "c_out", "array", "MACs", "tiles", "arrays", "cycles", "busy", "time"}
    assert set(heading[1:]) | set(", ".join(named).split(", ")) - {""} == everything | (
        {"groups"} if grouped else set()
    )


def test_what_people_read(rapa: Run) -> None:
    out = rapa("plan", "full").out
    for part in (
        "random (16,4,1), 21 arrays, 192,704 weights",
        "16.0 times with layers pipelined, 7.0 times one after the other",
        "none, each layer with 64 operations",
        "untiled conv1 with 1,024 operations",
        "5.12 us from image to image",
        "untiled 81.92 us",
    ):
        assert part in out


def test_a_checkpoint_is_planned_with_its_own_tiles(rapa: Run) -> None:
    found = rapa("plan", "runs/done", "--json").document
    assert found["checkpoint"] == "runs/done/last.safetensors"
    rows = rapa("inspect", "runs/done", "--json").document["layers"]
    for ours, theirs in (("n_p", "n_p"), ("k", "k"), ("tiles", "tiles"), ("array_cycles", "patches_per_tile")):
        assert column(found, ours) == [row[theirs] for row in rows]
    assert column(found, "weights") == [row["parameters"] for row in rows]
    newest = rapa("plan", "--json")
    assert newest.document == found
    assert newest.err == "using runs/done/last.safetensors\n"
    best = rapa("plan", "runs/done", "--best", "--json").document
    assert best["checkpoint"] == "runs/done/best.safetensors"
    assert "checkpoint    runs/done/last.safetensors" in rapa("plan", "runs/done").out


def test_a_definition_of_ones_own(rapa: Run) -> None:
    by_file = rapa("plan", "tiny.toml", "--image-size", "16", "--json").document
    assert (by_file["network"], by_file["shape"]) == ("tiny", [3, 16, 16])
    assert by_file["tiles"] == by_file["balanced_tiles"]


def test_a_network_of_torchvision(rapa: Run) -> None:
    found = rapa("plan", "torchvision:resnet18", "--arrays-budget", "100", "--json").document
    assert found["arrays"] <= 100
    assert found["acceleration"] == 12544 / max(column(found, "array_cycles"))
    smaller = rapa("plan", "torchvision:resnet18", "--image-size", "64", "--json").document
    assert column(smaller, "n_p")[:2] == [1024, 256]
    assert column(smaller, "n_p")[-1] == 4


@pytest.mark.parametrize(
    ("words", "tiles"),
    [
        (["--tiles", "128,32,8"], [128, 32, 8]),
        (["--acceleration", "32"], [32, 8, 2]),
        (["--acceleration", "16.5"], [17, 5, 2]),
        (["--arrays-budget", "21"], [16, 4, 1]),
        (["--arrays-budget", "23"], [16, 4, 1]),
        (["--scheme", "alternate"], [16, 4, 1]),
        (["--scheme", "none"], [1, 1, 1]),
    ],
)
def test_ways_to_tile(rapa: Run, words: list[str], tiles: list[int]) -> None:
    found = rapa("plan", "full", *words, "--json").document
    assert found["tiles"] == tiles
    assert found["acceleration"] == 1024 / max(column(found, "array_cycles"))


def test_figures_of_the_hardware(rapa: Run) -> None:
    default = rapa("plan", "full", "--json").document
    assert {name: entry["value"] for name, entry in default["hardware"].items()} == {
        name: value for name, value in vars(Hardware()).items() if value is not None
    }
    assert all(len(entry["source"]) > 20 for entry in default["hardware"].values())
    words = ["--integration-ns", "160", "--adc-pj", "0", "--array-rows", "256"]
    given = rapa("plan", "full", *words, "--json").document
    assert given["interval_us"] == pytest.approx(2 * default["interval_us"])
    assert given["latency_us"] == pytest.approx(2 * default["latency_us"])
    assert given["energy_nj"]["adc"] == 0
    assert given["hardware"]["adc_pj"] == {"value": 0, "source": "given"}
    assert given["hardware"]["device_fj"] == default["hardware"]["device_fj"]
    assert column(given, "arrays") == [16, 4 * 4, 4]
    assert column(given, "array_cycles") == column(default, "array_cycles")


def test_free_width(rapa: Run) -> None:
    words = ["plan", "full", "--channels", "2", "--kernel", "9"]
    found = rapa(*words, "--json").document
    wide = found["free_width"]
    assert wide["array_cycles"] == wide["array_cycles_wider"] == column(found, "array_cycles")
    assert wide["macs_wider"] == found["macs"] > 10 * wide["macs"]
    assert wide["weights_wider"] == found["weights"] > 10 * wide["weights"]
    assert found["interval_us"] == rapa("plan", "full", "--json").document["interval_us"]
    assert "free width    as many operations as without; 11.7 times the multiply-adds" in rapa(*words).out
    assert "free_width" not in rapa("plan", "full", "--json").document


def test_the_figure(rapa: Run, here: Path) -> None:
    outcome = rapa("plan", "full", "--out", "figures")
    assert sorted(path.name for path in (here / "figures").iterdir()) == ["plan.png", "plan.svg"]
    assert outcome.out.splitlines()[-2:] == ["wrote figures/plan.png", "wrote figures/plan.svg"]
    with Image.open(here / "figures" / "plan.png") as picture:
        assert min(picture.size) >= 500


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["fulll"], 3, "there is no network and no checkpoint 'fulll'", "did you mean 'full'?"),
        (["zzz"], 3, "no checkpoint 'zzz'", "definitions: alexnet, enlarged, full; torchvision:resnet18 and others"),
        (["run/done"], 3, "no checkpoint 'run/done'", "did you mean 'runs/done'?"),
        (["torchvision:resnet19"], 2, "no classification network 'resnet19'", "did you mean 'resnet18'?"),
        (["torchvision:zzz"], 2, "no classification network 'zzz'", "list_models() lists all"),
        (["torchvision:vgg11", "--image-size", "8"], 2, "cannot take an image of 3 x 8 x 8", "--image-size"),
        (["alexnet", "--image-size", "32"], 2, "larger images than 32 x 32", "use larger images"),
        (["none.toml"], 3, "there is no file none.toml", "alexnet, enlarged, full"),
        (["full", "--tiles", "16,4"], 2, "got 2 numbers (16,4) for 3 convolutions", "--tiles 16,4,1"),
        (["full", "--tiles", "2000,4,1"], 2, "conv1 got 2000 tiles", "nothing to compute"),
        (["full", "--tiles", "a"], 2, "--tiles: got 'a'", "16,4,1"),
        (["full", "--acceleration", "1025"], 2, "acceleration of 1025 is not possible", "ask for 1 to 1024"),
        (["full", "--arrays-budget", "2"], 2, "2 arrays are too few", "at least 3"),
        (["full", "--tiles", "1,1,1", "--arrays-budget", "9"], 2, "--tiles and --arrays-budget cannot go", "how many"),
        (["full", "--scheme", "rnadom"], 2, "--scheme: there is no 'rnadom'", "did you mean 'random'?"),
        (["full", "--scheme", "alternate", "--tiles", "3,1,1"], 2, "needs a square number", "--tiles"),
        (["full", "--scheme", "perforated", "--arrays-budget", "9"], 2, "one array for each layer", "random"),
        (["full", "--adc-pj", "-1"], 2, "--adc-pj: got -1, allowed are numbers from 0", "default"),
        (["full", "--integration-ns", "0"], 2, "--integration-ns: got 0, allowed are numbers above 0", "default"),
        (["full", "--device-fj", "nan"], 2, "--device-fj: got nan", "default"),
        (["full", "--out", "tiny.toml"], 3, "cannot make the folder tiny.toml", "move that file away"),
    ],
)
def test_what_is_refused(rapa: Run, words: list[str], code: int, message: str, hint: str) -> None:
    refused(rapa("plan", *words, "--json"), code, message, hint)


def test_the_commands_of_the_guide_work(rapa: Run) -> None:
    commands = re.findall(r"^\$ rapa (.+)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        assert rapa(*shlex.split(command)).code == 0


@pytest.mark.parametrize("option", ["--channels", "--kernel"])
def test_free_width_has_an_end(rapa: Run, option: str) -> None:
    assert rapa("plan", "full", option, "1024", "--json").code == 0
    outcome = rapa("plan", "full", option, "1000000000")
    assert outcome.code == 2
    assert option in outcome.err


def test_nothing_accelerates_without_tiles(rapa: Run) -> None:
    outcome = rapa("plan", "full", "--acceleration", "20", "--scheme", "none")
    refused(outcome, 2, "scheme 'none' has one array for each layer, so that nothing makes it faster", "leave --scheme")
