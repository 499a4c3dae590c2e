"""What `rapa` reads: for each kind its undamaged files, the lies about it, its reader, and another reading of it."""

from __future__ import annotations

import ast
import csv
import datetime as dt
import io
import json
import pickle
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rapa_cli import checkpoint, config, runs
from rapa_cli.attacks import records
from rapa_cli.data import sources, store, svhn
from rapa_cli.data.images import silent
from rapa_cli.errors import FileError, RapaError
from rapa_cli.experiments.jobs import Ended, Folder, Job
from rapa_cli.layers.network import build, resolve
from tests.data import files
from tests.fuzz import containers, damage, programs, text
from tests.training import tiny

Files = dict[str, bytes]
"""Contents by their paths below the folder of a case; what begins with `->` is a link to a place."""

_LAST = "last.safetensors"
JOB = Job(("vote", "runs/tiny", "-n", "3"), "tiny")
_ARCHIVE = "cifar-10-python.tar.gz"
_ROW = dict(zip(runs.METRICS, (1, 0.1, 2.0, 50.0, 1.25, 100 / 3), strict=True))


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the kind.
        seeds: variants of its undamaged files.
        lie: changes them as only someone does who knows the format.
        read: reads them as the program does.
        check: raises AssertionError unless a value is what the files say, read in another way.
        command: a command line that reads them; None where none ends with what was wrong.
        place: of the files below the folder of a case.
    """

    name: str
    seeds: Callable[[], tuple[Files, ...]]
    lie: Callable[[Random, Files], Files]
    read: Callable[[Path], Any]
    check: Callable[[Path, Any], None]
    command: Callable[[Path], tuple[str, ...]] | None


@contextmanager
def stopped_clock() -> Iterator[None]:
    """Archives tell when they were made, and a case must not depend on it."""
    with patch("time.time", lambda: 1e9), patch("time.localtime", time.gmtime), patch("time.asctime", lambda: "then"):
        yield


def _written(write: Callable[[Path], object]) -> Files:
    """What a function writes into a folder."""
    with tempfile.TemporaryDirectory() as name, stopped_clock():
        folder = Path(name)
        write(folder)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }


def _one(change: Callable[[Random, bytes], bytes]) -> Callable[[Random, Files], Files]:
    """A lie about one of several files."""

    def lie(rng: Random, undamaged: Files) -> Files:
        name = rng.choice(sorted(undamaged))
        return {**undamaged, name: change(rng, undamaged[name])}

    return lie


def accident(rng: Random, undamaged: Files) -> Files:
    """Damage to one of the files, seldom its loss."""
    name = rng.choice(sorted(undamaged))
    if rng.randrange(200) == 0:
        return {other: content for other, content in undamaged.items() if other != name}
    if rng.randrange(40) == 0:
        other = rng.choice(sorted(undamaged))
        return {**undamaged, name: undamaged[other] if other != name else b""}
    if rng.randrange(40) == 0:
        return {**undamaged, name: rng.choice((b"->/dev/zero", b"->/dev/null", b"->nowhere", b"->../outside"))}
    return {**undamaged, name: damage.damaged(rng, undamaged[name])}


def _same_tensors(path: Path, found: dict[str, Tensor]) -> None:
    """Tensors are the bytes that the header of a safetensors file points at."""
    head, content = containers.opened(path.read_bytes())
    for name, tensor in found.items():
        start, stop = head[name]["data_offsets"]
        assert tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() == content[start:stop], name
        assert list(tensor.shape) == head[name]["shape"], name


def _document(path: Path) -> Any:
    return json.loads(containers.opened(path.read_bytes())[0]["__metadata__"]["rapa"])


def _agrees(found: Any, said: Any) -> None:
    """Everything that a document says is in what was read; what it leaves out may be there too, and dates are text."""
    if isinstance(said, dict):
        for key, value in said.items():
            _agrees(found[key], value)
    elif isinstance(said, list):
        assert len(found) == len(said)
        for one, other in zip(found, said, strict=True):
            _agrees(one, other)
    else:
        said = str(said) if isinstance(said, dt.date | dt.time) else said
        # Where a float is asked for, a long whole number is the float next to it.
        said = float(said) if isinstance(found, float) and type(said) is int else said
        assert found == said, (found, said)
        assert isinstance(found, bool) == isinstance(said, bool), (found, said)


# Checkpoints


@cache
def _checkpoints() -> tuple[Files, ...]:
    found = []
    for changes in ({"scheme": "random", "tiles": [4, 2]}, {}, {"arrays": "ReRamES"}, {"normalization": "mean-image"}):
        network = tiny.network(seed=5, **changes)
        description = checkpoint.Description(
            network=network.definition,
            shape=network.shape,
            classes=tiny.CLASSES,
            data="tiny",
            seed=5,
            recipe=tiny.recipe(),
            progress=checkpoint.Progress(epoch=2, step=3, seen=21, loss_sum=0.3, wrong=4, best_test_error=100 / 3),
            provenance={"rapa": "1"},
        )
        momentum = {name: torch.full_like(value, 0.5) for name, value in network.named_parameters()}
        state = network.state_dict()

        def write(folder: Path, description: Any = description, state: Any = state, momentum: Any = momentum) -> None:
            checkpoint.save(folder / _LAST, description, state, momentum)

        found.append(_written(write))
    return (*found, _of_torchvision())


@cache
def _of_torchvision() -> Files:
    """A checkpoint around a network that is written in Python, the smallest that torchvision has."""
    module, shape = config.Module(name="squeezenet1_1"), (3, 32, 32)
    definition = resolve(config.Network(name="squeezenet1_1", layers=(), module=module, scheme="random"), shape)
    network = build(definition, shape, len(tiny.CLASSES))
    description = checkpoint.Description(network=definition, shape=shape, classes=tiny.CLASSES, data="tiny")
    return _written(lambda folder: checkpoint.save(folder / _LAST, description, network.state_dict(), {}))


def _large(rng: Random, document: Any) -> None:
    """A description that asks for a network larger than the file, the memory or anybody's patience."""
    network = document["network"]
    if network["module"] or rng.randrange(5) == 0:
        name = rng.choice(
            ("regnet_y_128gf", "vit_h_14", "vgg19", "densenet201", "swin_v2_b", "quantized_resnet50", "x")
        )
        network.update(layers=[], pool="max", module={"name": name}, tiles=rng.choice((None, network["tiles"])))
        document["shape"] = [3, *rng.choice(((32, 32), (224, 224), (1024, 1024)))]
        return
    layers = network["layers"]
    places = [layer for layer in layers if layer["kind"] == "conv"]
    way = rng.randrange(9)
    if way == 0:
        rng.choice(places).update(channels=rng.choice((4096, 65_536)), kernel=rng.choice((3, 63)), padding=31)
    elif way == 1:
        network["layers"] = [
            *layers[:-1],
            *[{"kind": "linear", "features": rng.choice((4096, 65_536))}] * 3,
            layers[-1],
        ]
    elif way == 2:
        network["layers"] = [{"kind": "relu"}] * rng.choice((2000, 20_000)) + layers
    elif way == 3:
        document["shape"] = rng.choice(
            ([3, 16_384, 16_384], [3, 60_000, 60_000], [1, 2**40, 2], [2**20, 8, 8], [3, 10**6, 8])
        )
    elif way == 4:
        document["classes"] = ["class"] * rng.choice((1, 65_536, 200_000))
    elif way == 5:
        network["arrays"] = {
            "device": {
                "kind": "VectorUnitCell",
                "unit_cell_devices": [{"kind": "ConstantStepDevice"}] * rng.choice((2, 20_000)),
            }
        }
    elif way == 6:
        network["arrays"] = rng.choice(
            (
                {"preset": "ReRamES", "mapping": {"max_input_size": 1, "max_output_size": 1}},
                {"preset": "PCM", "forward": {"out_noise": 1e308}},
                {"preset": {"preset": "x"}},
                {"preset": "ReRamES", "device": {"dw_min": 1e-300}},
                {"device": {"kind": "os.system"}},
            )
        )
    elif way == 7:
        network["tiles"] = rng.choice(([10**9] * len(places), [64] * len(places), [2**62, 4], [1] * 10_000))
        network["scheme"] = rng.choice(("random", "random-fixed", "perforated", "image-pad"))
    else:
        document["shape"] = [1, 8192, 8192]
        network["normalization"] = "mean-image"


def _checkpoint_lie(rng: Random, undamaged: Files) -> Files:
    (content,) = undamaged.values()
    if rng.randrange(4):
        content = containers.unsigned(content)
    if rng.randrange(3):
        return {_LAST: containers.tensor_lie(rng, content)}
    return {_LAST: containers.described(content, lambda document: _large(rng, document))}


def _read_checkpoint(folder: Path) -> Any:
    path = folder / _LAST
    found = checkpoint.read(path)
    checkpoint.restore(found, path)
    return found


def _check_checkpoint(folder: Path, found: Any) -> None:
    path = folder / _LAST
    assert len(found.state) + len(found.optimizer) == len(containers.opened(path.read_bytes())[0]) - 1
    optimizer = {checkpoint.OPTIMIZER + name: tensor for name, tensor in found.optimizer.items()}
    _same_tensors(path, {**found.state, **optimizer})
    said = _document(path)
    if said.pop("sha256", None):
        whole = {containers.opened(undamaged[_LAST])[1] for undamaged in _checkpoints()}
        assert containers.opened(path.read_bytes())[1] in whole
    _agrees(found.description.model_dump(mode="json"), said)


# Definitions, recipes, settings


def _shared(kind: str) -> tuple[Files, ...]:
    folder = Path(config.__file__).parent.parent / "models" / kind
    return tuple({"mine.toml": path.read_bytes()} for path in sorted(folder.glob("*.toml")))


def _toml_lie(rng: Random, undamaged: Files) -> Files:
    (content,) = undamaged.values()
    changed = text.toml_lie(rng, content.decode())
    return {"mine.toml": changed.encode("utf-8", "surrogatepass")}


def _read_network(folder: Path) -> Any:
    found = config.load_network(str(folder / "mine.toml"))
    for size in (32, 224):
        try:
            resolve(found, (3, size, size))
        except RapaError as error:
            _reject(error)
    return found


def _reject(error: RapaError) -> None:
    """What does not fit these images may fit others; what it says must be a message all the same."""
    from tests.fuzz.judging import unfit

    said = unfit(error)
    assert said is None, said


def _check_network(folder: Path, found: Any) -> None:
    _agrees(found.model_dump(mode="json"), tomllib.loads((folder / "mine.toml").read_text(encoding="utf-8")))


def _read_recipe(folder: Path) -> Any:
    return config.load_recipe(str(folder / "mine.toml"), "random")


def _check_recipe(folder: Path, found: Any) -> None:
    said = tomllib.loads((folder / "mine.toml").read_text(encoding="utf-8"))
    schemes = said.pop("scheme", {})
    _agrees(found.model_dump(mode="json"), {**said, **schemes.get("random", {})})


def _settings() -> tuple[Files, ...]:
    return (
        {"settings.txt": b"lr=0.01\nrecipe.epochs=3\nnetwork.pool=average\n"},
        {"settings.txt": b'arrays="ReRamES"\ntiles=[16, 4, 1]\nscheme=random\n'},
        {"settings.txt": b"batch_size=10\nmirror=false\nlr_scaling=linear\ndescription=x\n"},
    )


def _settings_lie(rng: Random, undamaged: Files) -> Files:
    (content,) = undamaged.values()
    changed = text.toml_lie(rng, content.decode().replace("=", " = "))
    return {"settings.txt": changed.encode("utf-8", "surrogatepass")}


def _lines(folder: Path) -> list[str]:
    path = folder / "settings.txt"
    # As a command line brings them: bytes that are no text become halves of surrogate pairs.
    lines = (
        (path.read_bytes() if path.is_file() else b"").decode("utf-8", "surrogateescape").replace("\0", "").split("\n")
    )
    return [line[:100_000] for line in lines if line][:50]


def _read_settings(folder: Path) -> Any:
    recipe = config.Recipe(epochs=3, batch_size=10, lr=0.1)
    return config.override(tiny.definition(), recipe, _lines(folder))


def _check_settings(folder: Path, found: Any) -> None:
    network, recipe = found
    dumped = {"recipe": recipe.model_dump(mode="json"), "network": network.model_dump(mode="json")}
    last = {}
    for line in _lines(folder):
        key, _, value = line.partition("=")
        place, _, name = key.strip().rpartition(".")
        last[place or ("recipe" if name in dumped["recipe"] else "network"), name] = value.strip()
    for (place, name), value in last.items():
        try:
            table = tomllib.loads(f"value = {value}")
            said = table["value"] if len(table) == 1 else value
        except ValueError:
            said = value
        _agrees(dumped[place][name], said)


# What runs and evaluations leave


def _run_seed() -> Files:
    def write(folder: Path) -> None:
        runs.write_manifest(
            folder,
            runs.Manifest(
                network=tiny.definition(), recipe=tiny.recipe(), data="tiny", seed=3, provenance={"rapa": "1"}
            ),
        )
        runs.write_rows(folder, "metrics", [{**_ROW, "epoch": number} for number in (1, 2, 3)], lines=True)
        runs.write_rows(folder, "timing", [{"epoch": 1, "train_seconds": 0.1, "seconds": 0.3, "images": 30}])

    return _written(write)


@cache
def _run_files(*names: str) -> tuple[Files, ...]:
    return ({name: content for name, content in _run_seed().items() if name in names},)


def _json_lie(rng: Random, content: bytes) -> bytes:
    return text.lie(rng, json.loads(content)).encode("utf-8", "surrogatepass")


def _lines_lie(rng: Random, content: bytes) -> bytes:
    lines = content.decode().splitlines()
    place = rng.randrange(len(lines))
    lines[place] = text.lie(rng, json.loads(lines[place]))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _table_lie(rng: Random, content: bytes) -> bytes:
    value = rng.choice(
        ("nan", "1e999", "9" * 5000, '"' + "x" * 200_000 + '"', "", ",,,,", '"\n', "\0", "\x1b[2J", "1_0")
    )
    return content.replace(rng.choice((b"0.1", b"1,", b"epoch", b"\n")), value.encode())


def _check_manifest(folder: Path, found: Any) -> None:
    _agrees(found.model_dump(mode="json"), json.loads((folder / runs.MANIFEST).read_text(encoding="utf-8")))


def _check_metrics(folder: Path, found: Any) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    assert repr(found) == repr([json.loads(line) for line in lines])
    for number, row in enumerate(found):
        assert row["epoch"] == found[0]["epoch"] + number >= 1
        f"{row['test_error']:.2f}"


def _check_timing(folder: Path, found: Any) -> None:
    if found:
        with (folder / "timing.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [{key: repr(value) for key, value in row.items()} for row in found] == [
            {key: repr((int if key == "epoch" else float)(value)) for key, value in row.items()} for row in rows
        ]


@cache
def _records() -> tuple[Files, ...]:
    settings = records.Settings(
        networks=(records.Origin(path="a", sha256="1"),),
        data="tiny",
        data_sha256="2",
        images=6,
        levels=(records.Level(snr_db=15), records.Level(snr_db=5)),
        methods=("fgsm",),
        threats=("fresh-draw",),
        draws=2,
        judge_draws=2,
        votes=2,
    )

    def write(folder: Path) -> None:
        found = records.begin(folder, settings, torch.arange(6) % 3)
        classes, judged = torch.arange(12).reshape(6, 2) % 3, torch.arange(12).reshape(6, 1, 2) % 3
        of_network = {"clean": classes, "judged": classes, "vote": classes[:, 0]}
        found.put("networks/0", 0, {name: value.to(torch.int16) for name, value in of_network.items()})
        for level in (0, 1):
            share = torch.full((6, 1), 0.5)
            found.put(
                f"results/0/{level}",
                0,
                {
                    "predicted": classes.to(torch.int16),
                    "believed": judged.to(torch.int16),
                    "believed_clean": judged.to(torch.int16),
                    "judged": judged.to(torch.int16),
                    "vote": judged[:, :, 0].to(torch.int16),
                    "eps": share,
                    "snr_db": share * 30,
                },
            )
        found.save(now=True)

    return (_written(write),)


def _read_records(folder: Path) -> Any:
    from rapa_cli.report.measured import recorded

    found = records.read(folder)
    try:
        recorded(folder)
    except RapaError as error:
        _reject(error)
    return found


def _check_records(folder: Path, found: Any) -> None:
    path = folder / records.FILE
    _same_tensors(path, found.tensors)
    document = _document(path)
    _agrees(found.settings.model_dump(mode="json"), document["settings"])
    _agrees(found._done, document["done"])


@cache
def _results() -> tuple[Files, ...]:
    def write(folder: Path) -> None:
        experiments = Folder(folder)
        experiments.make()
        experiments.keep(
            JOB, Ended(code=0, seconds=1.5, document={"single_error": 26.5, "vote_error": 25.0, "gain_se": 0.5, "n": 3})
        )

    return (_written(write),)


def _read_result(folder: Path) -> Any:
    experiments = Folder(folder)
    for line in experiments.damaged([JOB]):
        raise FileError(line)
    return experiments.result(JOB)


def _check_result(folder: Path, found: Any) -> None:
    path = folder / f"results/{JOB.name}.json"
    assert repr(found) == repr(json.loads(path.read_text(encoding="utf-8"))["document"] if path.exists() else None)


# Images


@cache
def _stores() -> tuple[Files, ...]:
    def write(folder: Path, shape: tuple[int, int, int]) -> None:
        train, test = files.random_split(9, shape=shape, seed=1), files.random_split(5, shape=shape, seed=2)
        store.write(folder / "mine", "mine", ("ant", "bee", "cat", "döner"), train, test, "made up")

    return _written(lambda folder: write(folder, (3, 6, 5))), _written(lambda folder: write(folder, (1, 1, 1)))


def _check_store(folder: Path, found: Any) -> None:
    for name, split in (("train", found.train), ("test", found.test)):
        path = folder / "mine" / f"{name}.safetensors"
        tensors = {"images": split.images, "labels": split.labels}
        if name == "train":
            tensors |= {"mean": found.mean, "std": found.std, "mean_image": found.mean_image}
        _same_tensors(path, tensors)
        assert list(found.classes) == _document(path)["classes"]
    # Chance has no part in this: the fingerprints are in the files.
    wanted = [_splits_of(undamaged) for undamaged in _stores()]
    assert _seen(found) in wanted


@cache
def _fingerprints(number: int) -> Any:
    with tempfile.TemporaryDirectory() as name:
        _put(Path(name), _stores()[number])
        found = store.read(Path(name) / "mine")
        return _seen(found)


def _seen(found: Any) -> Any:
    """All arrays of a data set."""
    return store.fingerprints(found.train, found.test), tuple(
        constant.numpy().tobytes() for constant in (found.mean, found.std, found.mean_image)
    )


def _splits_of(undamaged: Files) -> Any:
    return _fingerprints(next(number for number, other in enumerate(_stores()) if other is undamaged))


def _put(folder: Path, contents: Files) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith(b"->"):
            path.symlink_to(content[2:].decode())
        else:
            path.write_bytes(content)


put = _put


def _load(folder: Path) -> Any:
    """The images of a source, as `rapa data get` takes them before it writes them into the store."""
    found = sources.load(sources.recognise(folder), silent)
    store.check("mine", found.classes, found.train, found.test)
    assert found.source.isprintable()
    return found


@cache
def _npz() -> tuple[Files, ...]:
    def stored(folder: Path) -> None:
        for number, name in enumerate(("train.npz", "test.npz")):
            np.savez(folder / name, images=files.pixels(4, 6, 5, seed=number), labels=np.array([0, 2, 5, 0]))

    return _written(files.write_arrays), _written(stored)


def _check_arrays(folder: Path, found: Any) -> None:
    for name, split in (("train.npz", found.train), ("test.npz", found.test)):
        with zipfile.ZipFile(folder / name) as archive:
            images, labels = (_plain_array(archive.read(f"{member}.npy")) for member in ("images", "labels"))
        assert np.array_equal(images.reshape(*images.shape[:3], -1), split.images.permute(0, 2, 3, 1).numpy())
        assert np.array_equal(labels, split.labels.numpy())


def _plain_array(content: bytes) -> Any:
    size = int.from_bytes(content[8:10], "little")
    start = 10 + size
    if content[6] == 2:
        size = int.from_bytes(content[8:12], "little")
        start = 12 + size
    header = ast.literal_eval(content[start - size : start].decode("latin1").strip())
    flat = np.frombuffer(content[start:], np.dtype(header["descr"]))
    shape = header["shape"]
    return flat.reshape(shape[::-1]).T if header["fortran_order"] else flat.reshape(shape)


@cache
def _cifar() -> tuple[Files, ...]:
    return _written(files.write_cifar10), _written(files.write_cifar100)


def _check_cifar(folder: Path, found: Any) -> None:
    """What was admitted calls nothing, so that Python's own unpickler may read it too."""
    ten = (folder / "cifar-10-batches-py").is_dir()
    home = folder / ("cifar-10-batches-py" if ten else "cifar-100-python")
    train = [f"data_batch_{number}" for number in range(1, 6)] if ten else ["train"]
    _same_batches({name: (home / name).read_bytes() for name in (*train, "test_batch" if ten else "test")}, ten, found)


def _same_batches(contents: dict[str, bytes], ten: bool, found: Any) -> None:
    with np.errstate(all="ignore"):
        parts = {name: _standard(content) for name, content in contents.items()}
    key = b"labels" if ten else b"fine_labels"
    test = "test_batch" if ten else "test"
    for split, names in ((found.train, [name for name in sorted(parts) if name != test]), (found.test, [test])):
        assert np.array_equal(np.concatenate([parts[name][b"data"] for name in names]), split.images.flatten(1).numpy())
        assert np.concatenate([parts[name][key] for name in names]).tolist() == split.labels.tolist()


def _standard(content: bytes) -> Any:
    found = pickle.loads(content, encoding="bytes")
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}


@cache
def _archives() -> tuple[Files, ...]:
    def write(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as name:
            files.pack(files.write_cifar10(Path(name)), folder / _ARCHIVE)

    return (_written(write),)


def _check_archive(folder: Path, found: Any) -> None:
    path = folder / _ARCHIVE
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: archive.extractfile(member) for member in archive.getmembers()}
            contents = {name: file.read() for name in names if (file := members[name]) is not None}
    except (tarfile.TarError, KeyError):
        # Extensions that are passed over can end the other reader: what is left are the undamaged files.
        contents = {name: _cifar()[0][f"cifar-10-batches-py/{name}"] for name in names}
    _same_batches(contents, True, found)


@cache
def _svhn() -> tuple[Files, ...]:
    return (_written(files.write_svhn),)


def _check_svhn(folder: Path, found: Any) -> None:
    """Pixels and labels of the undamaged files, also in each other's place, or zeros as the lies have them."""
    (undamaged,) = _svhn()
    names = list(svhn.FILES)
    for name, split in zip(names, (found.train, found.test), strict=True):
        content = (folder / name).read_bytes()
        number = next((names.index(other) for other in names if content == undamaged[other]), names.index(name))
        expected = np.random.default_rng(number).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
        same = np.array_equal(split.images.permute(2, 3, 1, 0).numpy(), expected)
        assert same or (not bool(split.images.any()) and content not in undamaged.values()), name
        assert same is False or split.labels.tolist() == [0, 1, 9, 0, 2], name


@cache
def _pictures() -> tuple[Files, ...]:
    one_level = _written(lambda folder: files.write_images(folder, {"ant": 4, "bee": 3}))
    grey = _written(lambda folder: files.write_images(folder, {"ant": 3, "bee": 2}, mode="L"))
    other: Files = {}
    for name, content in one_level.items():
        picture = Image.open(io.BytesIO(content))
        for suffix in ("jpg", "bmp", "gif", "tiff", "webp", "ppm"):
            file = io.BytesIO()
            picture.save(file, format={"jpg": "JPEG"}.get(suffix, suffix.upper()))
            if len(other) % 6 == ("jpg", "bmp", "gif", "tiff", "webp", "ppm").index(suffix):
                other[str(Path(name).with_suffix(f".{suffix}"))] = file.getvalue()
                break
    split = {f"{part}/{name}": content for part in ("train", "test") for name, content in one_level.items()}
    return one_level, grey, other, split


def _pictures_lie(rng: Random, undamaged: Files) -> Files:
    name = rng.choice(sorted(undamaged))
    way = rng.randrange(8)
    if way == 0:
        other_name = rng.choice(("\n", "\x1b[2J", "..x", "-rf", "\udcff\udcfe", "x" * 200, "\u202e", " ", "a\nb", "%s"))
        own = Path(name).parent
        moved = own.with_name(other_name)
        return {
            str(moved / Path(other).name) if Path(other).parent == own else other: content
            for other, content in undamaged.items()
        }
    if way == 1:
        link = rng.choice(
            (b"->/etc/passwd", b"->../../../outside", b"->.", b"->/dev/zero", b"->/proc/self/mem", b"->nowhere")
        )
        return {**undamaged, name: link}
    return {**undamaged, name: containers.picture_lie(rng, undamaged[name])}


def _check_pictures(folder: Path, found: Any) -> None:
    """Each undamaged picture is in one of the splits, pixel by pixel, in RGB or grey as all of them."""
    every = (path for path in folder.rglob("*") if path.is_file())
    total = [path for path in every if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    assert len(found.train) + len(found.test) <= len(total)
    kept = torch.cat([found.train.images, found.test.images])
    known = {bytes(image.numpy().tobytes()) for image in kept}
    for undamaged in _pictures():
        for content in undamaged.values():
            if any(path.read_bytes() == content for path in total if path.stat().st_size == len(content)):
                picture = Image.open(io.BytesIO(content)).convert("L" if kept.shape[1] == 1 else "RGB")
                pixels = np.asarray(picture).reshape(*kept.shape[2:], kept.shape[1]).transpose(2, 0, 1)
                assert pixels.tobytes() in known


def _get(path: Path) -> tuple[str, ...]:
    return ("data", "get", "mine", "--from", str(path), "--data-dir", "chosen")


KINDS: tuple[Kind, ...] = (
    Kind(
        "checkpoints", _checkpoints, _checkpoint_lie, _read_checkpoint, _check_checkpoint,
        lambda folder: ("inspect", str(folder / _LAST)),
    ),
    Kind(
        "networks", lambda: _shared("networks"), _toml_lie, _read_network, _check_network,
        lambda folder: ("train", "--network", str(folder / "mine.toml"), "--data", "none", "--out", "chosen/run"),
    ),
    Kind(
        "recipes", lambda: _shared("recipes"), _toml_lie, _read_recipe, _check_recipe,
        lambda folder: ("train", "--recipe", str(folder / "mine.toml"), "--data", "none", "--out", "chosen/run"),
    ),
    Kind(
        "settings", _settings, _settings_lie, _read_settings, _check_settings,
        lambda folder: (
            "train", "--data", "none", "--out", "chosen/run",
            *(word for line in _lines(folder) for word in ("--set", line)),
        ),
    ),
    Kind(
        "manifests", lambda: _run_files(runs.MANIFEST), _one(_json_lie), runs.read_manifest, _check_manifest,
        lambda folder: ("train", "--resume", str(folder)),
    ),
    Kind("metrics", lambda: _run_files("metrics.jsonl"), _one(_lines_lie), runs.read_metrics, _check_metrics, None),
    Kind("timing", lambda: _run_files("timing.csv"), _one(_table_lie), runs.read_timing, _check_timing, None),
    Kind(
        "records", _records, _one(containers.tensor_lie), _read_records, _check_records,
        lambda folder: ("attack", "--resume", str(folder)),
    ),
    Kind("results", _results, _one(_json_lie), _read_result, _check_result, None),
    Kind(
        "data stores", _stores, _one(containers.tensor_lie), lambda folder: store.read(folder / "mine"), _check_store,
        lambda folder: ("data", "show", "mine", "--out", "chosen/sheet.png", "--data-dir", str(folder)),
    ),
    Kind("npz", _npz, _one(containers.arrays_lie), _load, _check_arrays, _get),
    Kind("pickled batches", _cifar, _one(programs.program), _load, _check_cifar, _get),
    Kind(
        "archives", _archives, _one(containers.archive_lie), lambda folder: _load(folder / _ARCHIVE), _check_archive,
        lambda folder: _get(folder / _ARCHIVE),
    ),
    Kind("MATLAB files", _svhn, _one(containers.matlab_lie), _load, _check_svhn, _get),
    Kind("pictures", _pictures, _pictures_lie, _load, _check_pictures, _get),
)  # fmt: skip
