"""`rapa evaluate --drift`."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rapa_cli
from rapa_cli.analysis.drift import drift
from rapa_cli.checkpoint import Description, save
from rapa_cli.commands import options, session
from rapa_cli.errors import ConfigError
from rapa_cli.layers.network import build
from tests.commands.conftest import Run, refused
from tests.training import tiny

DONE = "runs/done"
FEW = ("--repeats", "2", "-n", "3", "--images", "20")


def test_the_document(rapa: Run) -> None:
    found = rapa("evaluate", DONE, "--drift", "0,1h,1d", *FEW, "--seed", "4", "--json").document
    plain = rapa("evaluate", DONE, "--images", "20", "--seed", "4", "--json").document
    assert plain.items() <= found.items(), "the contract's keys stay as they are"
    assert {"checkpoint", "data", "images", "test_error", "ci95"} <= plain.keys()
    data = tiny.data_set(60, 30)
    network, test = rapa_cli.load(DONE), data.test
    expected = drift(network, test.images[:20], test.labels[:20], [0, 3600, 86400], repeats=2, votes=3, seed=4)
    assert (found["digital_error"], found["digital_vote_error"]) == (expected.digital_single, expected.digital_vote)
    assert (found["repeats"], found["n"]) == (2, 3)
    assert found["programmed_on"] == "arrays Inference"
    assert found["noise_on"] == list(expected.noise_on)
    assert found["noise_off"] == []
    for row, age in zip(found["drift"], expected.ages, strict=True):
        for key in ("seconds", "single_error", "single_se", "vote_error", "vote_se", "compensation"):
            assert row[key] == getattr(age, key)
        assert (row["single_errors"], row["vote_errors"]) == (list(age.single_errors), list(age.vote_errors))


def test_one_programming_has_no_standard_error(rapa: Run) -> None:
    found = rapa("evaluate", DONE, "--drift", "0", "--repeats", "1", "-n", "1", "--json").document
    (row,) = found["drift"]
    assert (row["single_se"], row["vote_se"]) == (None, None)
    outcome = rapa("evaluate", DONE, "--drift", "0", "--repeats", "1", "-n", "1")
    assert outcome.code == 0
    assert "programmed once on" in outcome.out
    assert "+-" not in outcome.out
    assert "nan" not in outcome.out


def test_the_table(rapa: Run) -> None:
    outcome = rapa("evaluate", DONE, "--drift", "0,90,1h,1d,1w,1y", *FEW)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("test error ")
    assert max(map(len, lines)) <= 80
    table = lines[lines.index("programmed 2 times on arrays Inference") + 1 :]
    assert table[0].split("  ")[0] == "time"
    assert "vote of 3, %" in table[0]
    assert [row[:14].strip() for row in table[1:8]] == ["digital", "0 s", "1.5 min", "1 h", "1 d", "7 d", "1 y"]
    assert all(row.count("+-") == 2 for row in table[2:8])
    rest = " ".join(table[8:])
    assert "with programming noise, drift, read noise of the devices, noise of the converters and lines" in rest
    assert "without" not in rest


def test_without_noise_it_says_what_stays(rapa: Run) -> None:
    found = rapa("evaluate", DONE, "--drift", "1d", *FEW, "--no-noise", "--json").document
    assert found["noise_on"] == ["programming noise", "drift", "read noise of the devices"]
    assert found["noise_off"] == ["noise of the converters and lines"]
    text = rapa("evaluate", DONE, "--drift", "1d", *FEW, "--no-noise").out
    assert "with programming noise, drift, read noise of the devices\n" in text
    assert text.endswith("\nwithout noise of the converters and lines\n")


def test_files(rapa: Run, here: Path) -> None:
    found = rapa("evaluate", DONE, "--drift", "1d,0", *FEW, "--out", "figures", "--json").document
    assert found["files"] == [f"figures/drift.{kind}" for kind in ("png", "svg", "csv")]
    assert sorted(path.name for path in (here / "figures").iterdir()) == ["drift.csv", "drift.png", "drift.svg"]
    with (here / "figures/drift.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seconds"], row["repeat"]) for row in rows] == [
        ("86400.0", "0"),
        ("86400.0", "1"),
        ("0.0", "0"),
        ("0.0", "1"),
    ]
    assert [float(row["vote_error"]) for row in rows[:2]] == found["drift"][0]["vote_errors"]
    text = (here / "figures/drift.svg").read_text(encoding="utf-8")
    for part in ("tiny on mini", "single draw, digital", "vote of 3", "2 programmings", ">1 d<", ">0 s<"):
        assert part in text
    assert rapa("evaluate", DONE, "--drift", "0", *FEW, "--out", "figures").out.endswith("wrote figures/drift.csv\n")


@pytest.mark.parametrize("arrays", ["ideal", "Idealized"])
@pytest.mark.parametrize("tiles", [None, 4])
def test_the_embedded_images(rapa: Run, here: Path, data_dir: Path, arrays: str, tiles: int | None) -> None:
    layers = [{"kind": "conv", "channels": 4, "kernel": 5}, {"kind": "relu"}, {"kind": "pool"}, {"kind": "linear"}]
    scheme = {} if tiles is None else {"scheme": "random", "tiles": (tiles,)}
    network = build(tiny.definition(layers=layers, arrays=arrays, **scheme), (3, 32, 32), 10)
    description = Description(
        network=network.definition, shape=network.shape, classes=tuple("abcdefghij"), data="shapes"
    )
    save(here / "few.safetensors", description, network.state_dict(), {})
    words = ["few.safetensors", "--data-dir", str(data_dir), "--drift", "0,1d", *FEW]
    found = rapa("evaluate", *words, "--json").document
    assert (found["data"], found["images"], len(found["drift"])) == ("shapes", 20, 2)
    assert rapa("evaluate", *words, "--json").document == found


def test_arrays_of_a_preset_and_of_a_file(rapa: Run, here: Path) -> None:
    (here / "mine.toml").write_text("weight_scaling_omega = 1.0\n[noise_model]\nkind = 'PCMLike'\ndrift_scale = 0\n")
    found = rapa("evaluate", DONE, "--drift", "0,1h", *FEW, "--arrays", "mine.toml", "--json").document
    assert found["programmed_on"] == "arrays mine.toml"
    assert "drift" not in found["noise_on"]
    (here / "wan.toml").write_text("[noise_model]\nkind = 'ReRamWan2022'\n")
    outcome = rapa("evaluate", DONE, "--drift", "0,1h", *FEW, "--arrays", "wan.toml")
    refused(
        outcome, 2, "got 3600 s, for this ReRAM allowed are 0, 1, 86400, 172800", "was measured at these times only"
    )


def test_arrays_with_a_largest_size(rapa: Run, here: Path) -> None:
    kind, mapping = "[noise_model]\nkind = 'PCMLike'\n", "[mapping]\nmax_input_size = 16\nmax_output_size = 3\n"
    rows = []
    for name, text in (("whole.toml", kind), ("split.toml", mapping + kind)):
        (here / name).write_text(text)
        found = rapa("evaluate", DONE, "--drift", "0,1d", *FEW, "--arrays", name, "--json").document
        assert found["programmed_on"] == f"arrays {name}"
        rows.append(found["drift"])
        assert rows[-1][1]["compensation"] > 1
    assert rows[0] != rows[1]
    (here / "split.toml").write_text(f"preset = 'Inference'\n{mapping}weight_scaling_omega = 1.0\n")
    outcome = rapa("evaluate", DONE, "--drift", "0", *FEW, "--arrays", "split.toml")
    refused(outcome, 2, "mapping.weight_scaling_omega: got 1.0, but inference arrays have weight_scaling_omega of", "")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--drift", ""], "--drift: got an empty time", "0,1h,1d,1y"),
        (["--drift", "0,,1"], "--drift: got an empty time", "0,1h,1d,1y"),
        (["--drift", "0,1x"], "--drift: got '1x' in '0,1x', which is no time from 0", "s, m, h, d, w or y"),
        (["--drift", "-1"], "--drift: got '-1', which is no time from 0", "0,1h,1d,1y"),
        (["--drift", "1e9y"], "--drift: got '1e9y', allowed are times up to 1000y", "0,1h,1d,1y"),
        (["--drift", "1h", "--repeats", "0"], "invalid value for '--repeats'", "-h' shows what is allowed"),
        (["--repeats", "2"], "--repeats cannot go without --drift", "--drift 0,1h,1d,1y"),
        (["-n", "2", "--out", "x"], "--draws and --out cannot go without --drift", "--drift 0,1h,1d,1y"),
        (["--drift", "1h", "--arrays", "ReRamES"], "--arrays ReRamES: these are not arrays that weights are programmed",
         "StandardHWATraining"),
        (["--drift", "1h", "--arrays", "ideal"], "--arrays ideal: these are not arrays", "leave --arrays out"),
        (["--drift", "1h", "--arrays", "none.toml"], "none.toml", None),
    ],
)  # fmt: skip
def test_wrong_options(rapa: Run, words: list[str], message: str, hint: str | None) -> None:
    outcome = rapa("evaluate", DONE, "--json", *words)
    if hint is None:
        assert outcome.code == 3
        assert message in outcome.err
    else:
        refused(outcome, 2, message, hint)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", [0]),
        ("0,1h,1d,1y", [0, 3600, 86400, 31536000]),
        (" 90 s , 1.5min,2m,.5w ", [90, 120, 302400]),
        ("1e3,1E3s,1H", [1000, 3600]),
        ("20,20,0", [20, 0]),
        ("1000y", [31536000000]),
    ],
)
def test_times(text: str, seconds: list[float]) -> None:
    assert options.parse_times(text, "--drift") == seconds


@pytest.mark.parametrize("text", ["1h30", "1 month", "nan", "inf", "1/2", "h", "1e", "1e400", "٣", "1" * 200, "1hours"])
def test_no_times(text: str) -> None:
    with pytest.raises(ConfigError, match="--drift: got '"):
        options.parse_times(text, "--drift")


def test_the_bar_counts_all_images(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    @contextlib.contextmanager
    def counting(_: str, total: int) -> Iterator[Callable[[int], None]]:
        yield counts.append
        assert sum(counts) == total

    monkeypatch.setattr(session, "counting", counting)
    assert rapa("evaluate", DONE, "--drift", "0,1h", *FEW, "--json").code == 0
    assert sum(counts) == 20 * (1 + 2 * 3)
