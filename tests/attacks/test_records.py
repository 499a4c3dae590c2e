"""Records: what is in them, that nothing of them is lost, and that they are only gone on with by what began them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rapa_cli.attacks import records as store
from rapa_cli.attacks.evaluation import Evaluation, Level
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.records import FILE, Origin, Records, Settings
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.layers.network import Network
from tests.training import tiny

TEST = tiny.data_set(test=12).test


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "networks": (Origin(path="a", sha256="1"),),
        "data": "tiny",
        "data_sha256": store.digest_images(TEST.images, TEST.labels),
        "images": 12,
        "levels": (Level(snr_db=15), Level(snr_db=5)),
        "methods": ("pgd", "fgsm"),
        "threats": ("fresh-draw",),
        "draws": 2,
        "judge_draws": 2,
        "votes": 2,
        "batch_size": 5,
    }
    return Settings(**{**values, **changes})


def network() -> Network:
    return tiny.network(seed=5, scheme="random", tiles=(16, 4))


def go_on(records: Records) -> None:
    Evaluation([network()], TEST.images, TEST.labels, records).attack()


def test_what_is_in_the_file(tmp_path: Path) -> None:
    records = store.begin(tmp_path, settings(save_images=True), TEST.labels)
    go_on(records)
    found = load_file(tmp_path / FILE)
    assert found["index"].tolist() == list(range(12))
    assert torch.equal(found["label"], TEST.labels)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}
    for result in (0, 1):
        for level in (0, 1):
            part = f"results/{result}/{level}"
            assert shapes[f"{part}/predicted"] == ((12, 2), torch.int16)
            assert shapes[f"{part}/judged"] == ((12, 1, 2), torch.int16)
            assert shapes[f"{part}/believed"] == shapes[f"{part}/believed_clean"] == ((12, 1, 1), torch.int16)
            assert shapes[f"{part}/eps"] == shapes[f"{part}/snr_db"] == ((12, 1), torch.float32)
            pictures = tmp_path / "images" / f"result-{result}" / f"level-{level}"
            parts = [load_file(path) for path in sorted(pictures.iterdir())]
            assert [part["index"].tolist()[0] for part in parts] == [0, 5, 10]
            images = torch.cat([part["adversarial"] for part in parts])
            assert images.shape == (12, 1, *tiny.SHAPE)
            logits = Oracle(network()).logits(images[:, 0], torch.arange(12), 1)
            assert torch.equal(logits.argmax(1), found[f"{part}/predicted"][:, 0].long()), "the images that were scored"
    with safe_open(tmp_path / FILE, framework="pt") as file:
        document = json.loads(file.metadata()["rapa"])
    assert Settings(**document["settings"]) == records.settings
    assert set(document["done"].values()) == {12}


class Stopped(Exception):
    """A test's own end of an evaluation."""


@pytest.mark.parametrize("after", [1, 3, 5, 9, 12])
def test_stopped_anywhere_and_gone_on_with(tmp_path: Path, after: int) -> None:
    whole = store.begin(tmp_path / "whole", settings(), TEST.labels)
    go_on(whole)
    records = store.begin(tmp_path / "parts", settings(), TEST.labels)
    left = after

    def count(_: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Stopped

    run = Evaluation([network()], TEST.images, TEST.labels, records, on_cost=count)
    with pytest.raises(Stopped):
        run.attack()
    again = store.read(tmp_path / "parts")
    done = sum(again.done(part) for part in ("networks/0", "results/0/0", "results/0/1", "results/1/1"))
    # Three clean batches, three for each level of PGD and three for both levels of FGSM; the last one may be smaller.
    assert done == sum([5, 5, 2][n % 3] for n in range(after))
    costs: list[int] = []
    Evaluation([network()], TEST.images, TEST.labels, again, on_cost=costs.append).attack()
    assert len(costs) == 12 - after, "nothing is done twice"
    assert (tmp_path / "parts" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "--seed: 0 there, 1 here"),
        ({"levels": (Level(eps=0.1),)}, "--eps or --snr: 15 dB, 5 dB there, 0.1 here"),
        ({"methods": ("pgd",)}, "--methods: pgd, fgsm there, pgd here"),
        ({"draws": 3}, "--draws: 2 there, 3 here"),
        ({"exact_snr": True}, "--exact-snr: False there, True here"),
        ({"networks": (Origin(path="a", sha256="2"),)}, "a is another file now"),
        ({"networks": (Origin(path="b", sha256="2"),)}, "checkpoints: a there, b here"),
        ({"data_sha256": "x"}, "the images of --data are others now"),
        ({"data_sha256": "x", "images": 13}, "--images: 12 there, 13 here"),
        ({"data_sha256": "x", "data": "other"}, "--data: tiny there, other here"),
        ({"source": Origin(path="s", sha256="2")}, "--source: none there, s here"),
        ({"batch_size": 6}, "--batch-size: 5 there, 6 here"),
    ],
)
def test_records_of_something_else(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    records = store.begin(tmp_path, settings(), TEST.labels)
    with pytest.raises(ConfigError) as caught:
        store.check_same(records, settings(**changes))
    assert caught.value.message == f"--resume {tmp_path}: these records are of another evaluation: {message}"
    store.check_same(records, settings(networks=(Origin(path="elsewhere/a", sha256="1"),)))


def test_records_are_not_written_over(tmp_path: Path) -> None:
    store.begin(tmp_path, settings(), TEST.labels).save(now=True)
    with pytest.raises(ConfigError, match="there are records of an attack in this folder already"):
        store.begin(tmp_path, settings(), TEST.labels)


def test_paths_of_checkpoints_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    origin, whole = Origin(path="runs/a", sha256="1"), Origin(path=str(tmp_path / "b"), sha256="2")
    store.begin(Path("found"), settings(networks=(origin,)), TEST.labels).save(now=True)
    before = Path("found", FILE).read_bytes()
    assert store.read(Path("found")).from_here(origin) == "runs/a", "as it was given"
    (tmp_path / "work").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    records = store.read(Path("moved/found"))
    assert records.from_here(origin) == "moved/runs/a"
    assert records.from_here(whole) == str(tmp_path / "b")
    records.save(now=True)
    assert Path("moved/found", FILE).read_bytes() == before


@pytest.mark.parametrize("name", ["index", "label", "networks/0/clean", "results/0/0/predicted", "results/1/1/eps"])
def test_damaged_tensors(tmp_path: Path, name: str) -> None:
    go_on(store.begin(tmp_path, settings(), TEST.labels))
    path = tmp_path / FILE
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    held = load_file(path)
    held[name].view(torch.uint8).view(-1)[3] ^= 1
    store._write(path, held, metadata)
    with pytest.raises(FileError, match="its tensors are not those that were written"):
        store.read(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "missing", "none"])
def test_damaged_records(tmp_path: Path, damage: str) -> None:
    records = store.begin(tmp_path / "a", settings(), TEST.labels)
    records.save(now=True)
    path = tmp_path / "a" / FILE
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-9])
        case "empty":
            path.write_bytes(b"")
        case "other":
            store._write(path, {"label": TEST.labels}, {})
        case "missing":
            records._done["results/0/0"] = 5
            records.save(now=True)
        case _:
            path.unlink()
    with pytest.raises(FileError) as caught:
        store.read(tmp_path / "a")
    assert "\n" not in caught.value.message
    assert str(tmp_path / "a") in caught.value.message


def test_writing_takes_little_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = store.begin(tmp_path, settings(), TEST.labels)
    now, written = [0.0], list[float]()

    def write(*_: object) -> None:
        now[0] += 1
        written.append(now[0])

    monkeypatch.setattr(store, "_write", write)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(100):
        now[0] += 1
        records.save()
    assert len(written) == 5
    records.save(now=True)
    assert len(written) == 6
