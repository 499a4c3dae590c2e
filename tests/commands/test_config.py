"""`rapa config`: where values come from, and every error of a file in a line of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rapa_cli.config import Network, Recipe
from rapa_cli.resources import models_root
from tests.commands.conftest import Run, refused

GOOD = "epochs = 4\nbatch_size = 5\nlr = 0.5\n[scheme.none]\nlr = 0.25\n"


def shown(rapa: Run, *words: str) -> dict[str, tuple[Any, str]]:
    rows = rapa("config", "show", *words, "--json").document["settings"]
    return {row["key"]: (row["value"], row["from"]) for row in rows}


def test_every_key_once_and_where_it_comes_from(rapa: Run) -> None:
    Path("mine.toml").write_text(GOOD, encoding="utf-8")
    found = shown(
        rapa, "--recipe", "mine.toml", "--network", "tiny.toml", "--set", "momentum=0.5", "--set", "pool=mixed"
    )
    expected = {f"network.{key}" for key in Network.model_fields} | {f"recipe.{key}" for key in Recipe.model_fields}
    assert set(found) == expected | {"data_dir", "kernel", "cuda_graph"}
    assert found["recipe.epochs"] == (4, "mine.toml")
    assert found["recipe.lr"] == (0.25, "mine.toml [scheme.none]")
    assert found["recipe.weight_decay"] == (1e-4, "default")
    assert found["recipe.momentum"] == (0.5, "--set")
    assert found["network.pool"] == ("mixed", "--set")
    assert found["network.layers"][1] == "tiny.toml"
    # The scheme decides which table of a recipe counts.
    found = shown(rapa, "--recipe", "mine.toml", "--scheme", "random")
    assert found["recipe.lr"] == (0.5, "mine.toml")
    assert found["network.scheme"] == ("random", "--scheme")
    assert found["network.layers"][1] == "networks/full.toml"


def test_what_the_environment_decides(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPA_DATA_DIR", "/somewhere")
    monkeypatch.setenv("RAPA_KERNEL", "torch")
    monkeypatch.setenv("RAPA_CUDA_GRAPH", "0")
    found = shown(rapa)
    assert found["cuda_graph"] == ("0", "RAPA_CUDA_GRAPH")
    assert (found["data_dir"], found["kernel"]) == (("/somewhere", "RAPA_DATA_DIR"), ("torch", "RAPA_KERNEL"))
    monkeypatch.delenv("RAPA_DATA_DIR")
    monkeypatch.delenv("RAPA_KERNEL")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    found = shown(rapa)
    assert (found["data_dir"], found["kernel"]) == (("/data/rapa", "XDG_DATA_HOME"), ("auto", "default"))
    monkeypatch.delenv("XDG_DATA_HOME")
    assert shown(rapa)["data_dir"][1] == "default"


def test_what_is_shown_is_what_a_run_gets(rapa: Run) -> None:
    words = ["--network", "tiny.toml", "--recipe", "demo", "--scheme", "random", "--set", "lr=0.125"]
    run = rapa("train", "--data", "mini", *words, "--dry-run", "--json").document["recipe"]
    found = shown(rapa, *words)
    assert {key: found[f"recipe.{key}"][0] for key in run} == run


def test_lines_for_people(rapa: Run) -> None:
    lines = rapa("config", "show", "--set", "lr=0.01").out.splitlines()
    assert ["recipe.lr", "0.01", "--set"] in [line.split() for line in lines]
    assert ["recipe.mirror", "true", "recipes/short.toml"] in [line.split() for line in lines]
    assert max(map(len, lines)) < 80


def test_nothing_is_cut_off_where_there_is_little_room(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = rapa("config", "show").out.splitlines()
    assert max(map(len, lines)) <= 40
    assert "…" not in "".join(lines)


def test_all_files_of_the_package_are_in_order(rapa: Run) -> None:
    files = [str(path) for kind in ("networks", "recipes") for path in (models_root() / kind).glob("*.toml")]
    found = rapa("config", "validate", *files, "--json").document
    assert found["valid"] is True
    assert [(each["file"], each["kind"] + "s") for each in found["checked"]] == [
        (file, Path(file).parent.name) for file in files
    ]


@pytest.mark.parametrize(
    ("text", "kind", "errors"),
    [
        (GOOD, "recipe", []),
        # A scheme's own key does not hide the wrong one.
        (
            "epochs = 0.5\nlr = -1\nbatchsize = 3\n[scheme.none]\nlr = 0.1\n",
            "recipe",
            [
                "mine.toml: epochs: input should be a valid integer, got 0.5",
                "mine.toml: 'batch_size' is missing",
                "mine.toml: unknown key 'batchsize' (did you mean 'batch_size'?)",
                "mine.toml: lr: input should be greater than 0, got -1",
            ],
        ),
        (
            '[[layers]]\nkind = "conv"\nchannels = 0\nkernel = 3\n[[layers]]\nkind = "reluu"\n',
            "network",
            ["mine.toml: layers.0.channels: ", "mine.toml: layers.1.kind: "],
        ),
        (
            'arrays = "ReRamEX"\n[[layers]]\nkind = "linear"\n',
            "network",
            ["mine.toml: arrays: there is no preset 'ReRamEX' (did you mean 'ReRamES'?)"],
        ),
        (
            'preset = "ReRamES"\n[forward]\ninp_ress = 0.1\n',
            "arrays",
            ["mine.toml: arrays: unknown key 'forward.inp_ress' (did you mean 'inp_res'?)"],
        ),
        (
            '[device]\nkind = "Vector"\n[[device.unit_cell_devices]]\nkind = "SoftBounds"\ndw_mn = 0.1\n',
            "arrays",
            [
                "mine.toml: arrays: unknown key 'device.unit_cell_devices.0.dw_mn' (did you mean 'dw_min'?)",
                "mine.toml: arrays: device.unit_cell_devices: ",
            ],
        ),
        ('preset = "ReRamES"\n[forward]\ninp_res = 0.01\n', "arrays", []),
        ("lr = [", None, ["mine.toml is not TOML"]),
    ],
)
def test_a_line_for_each_error(rapa: Run, text: str, kind: str | None, errors: list[str]) -> None:
    Path("mine.toml").write_text(text, encoding="utf-8")
    outcome = rapa("config", "validate", "mine.toml")
    assert (outcome.code, outcome.err) == (2 if errors else 0, "")
    lines = outcome.out.splitlines()
    if not errors:
        assert lines == [f"mine.toml: {kind}, in order"]
        return
    assert len(lines) == len(errors)
    for error in errors:
        assert [line for line in lines if line.startswith(error)], error


def test_settings(rapa: Run) -> None:
    words = ["--set", "lr=0.1", "--set", "pol=max", "--set", "network.pool=maxx", "--set", "epochs"]
    outcome = rapa("config", "validate", *words)
    assert outcome.code == 2
    assert outcome.out.splitlines() == [
        "--set pol=max: unknown key 'pol' (did you mean 'pool'?)",
        "--set epochs: there is no '='",
        "settings: network.pool: input should be 'max', 'average', 'mixed' or 'stochastic', got 'maxx' "
        "(did you mean 'max'?)",
    ]
    outcome = rapa("config", "validate", "--set", "network.arrays=ReRamEX")
    assert (outcome.code, outcome.out) == (2, "arrays: there is no preset 'ReRamEX' (did you mean 'ReRamES'?)\n")
    refused(rapa("config", "show", "--set", "network.arrays=ReRamEX"), 2, "no preset 'ReRamEX'", "'ReRamES'")
    assert rapa("config", "validate", "--set", "lr=0.1").out == "settings: in order\n"


def test_wrong_usage(rapa: Run) -> None:
    refused(rapa("config", "validate"), 2, "there is nothing to check", "rapa config validate mine.toml")
    refused(rapa("config", "validate", "x.toml", "--kind", "recipes"), 2, "no kind 'recipes'", "did you mean 'recipe'?")
    refused(rapa("config", "validate", "x.toml"), 3, "cannot read x.toml", "name a TOML file")
