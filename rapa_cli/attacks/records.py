"""What an evaluation found, image by image, in one safetensors file that grows as the evaluation goes on.

records.safetensors   the tensors below; its metadata key `rapa` holds the settings, how far the evaluation is, from
                      which folder it was begun, and a SHA-256 of the tensors
summary.csv           a row for each network, method, threat and level
images/               adversarial images, where they were asked for: a file for each result, level and batch

`index` and `label` are int64 (N,). With network n, result r, level l, draws S that score, J that judge, and attacks G:
networks/n/clean        int16 (N, S)        class of the clean image in each scoring draw
networks/n/judged       int16 (N, J)        and in each judging draw
networks/n/vote         int16 (N,)          and by the vote of the first of them
results/r/l/predicted   int16 (N, S)        class of the adversarial image in each scoring draw
results/r/l/believed    int16 (N, G, K)     its class in each of the attacker's own K draws, of vote-aware as one
results/r/l/believed_clean  likewise        class of the clean image in these draws
results/r/l/judged      int16 (N, G, J)     its class in each judging draw
results/r/l/vote        int16 (N, G)        and by the vote of the first of them
results/r/l/eps         float32 (N, G)      strength on the [0, 1] scale
results/r/l/snr_db      float32 (N, G)      SNR that came about
results/r/l/outcome     uint8 (N, G)        whether an exact SNR was met: 0 met, 1 black, 2 saturated, 3 nothing changed
G is 1 where one attack serves all scoring draws, else S. -1 is the class of an image that was not reached yet.

A file that a kill leaves is whole, and what goes on from it ends in the same bytes as what was never stopped: nothing
in it tells the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rapa_cli import config, tensors
from rapa_cli.attacks.levels import SpaceName
from rapa_cli.data.stream import Images, StreamedImages
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.files import atomic, inside, make_folder, system_error
from rapa_cli.philox import MAX_SEED

FILE, SUMMARY, IMAGES = "records.safetensors", "summary.csv", "images"
_KEY = "rapa"
# Type and axes of the tensors, as above: of the images, of a network, and of a result.
_LABELS = {"index": (torch.int64, "N"), "label": (torch.int64, "N")}
_TENSORS = {
    "networks": {"clean": (torch.int16, "NS"), "judged": (torch.int16, "NJ"), "vote": (torch.int16, "N")},
    "results": {
        "predicted": (torch.int16, "NS"),
        "believed": (torch.int16, "NGK"),
        "believed_clean": (torch.int16, "NGK"),
        "judged": (torch.int16, "NGJ"),
        "vote": (torch.int16, "NG"),
        "eps": (torch.float32, "NG"),
        "snr_db": (torch.float32, "NG"),
        "outcome": (torch.uint8, "NG"),
    },
}
_ALWAYS = {"networks": ("clean",), "results": ("predicted", "eps", "snr_db")}
_JUDGED = ("judged", "vote")
# Writing takes at most one part in so many of the time.
_SPARE = 20
# Settings in the words of the command line, for messages.
_OPTIONS = {
    "networks": "checkpoints",
    "levels": "--eps or --snr",
    "methods": "--methods",
    "threats": "--threat",
    "source": "--source",
    "snr_space": "--snr-space",
    "exact_snr": "--exact-snr",
    "draws": "--draws",
    "judge_draws": "--judge-draws",
    "votes": "-n",
    "data_sha256": "the images of --data",
    "save_images": "--save-images",
    "batch_size": "--batch-size",
}


class Level(config.Frozen):
    """A strength to attack with: `eps` on the [0, 1] scale, or a signal-to-noise ratio in dB."""

    eps: float | None = None
    snr_db: float | None = None


class Origin(config.Frozen):
    """A checkpoint file that was evaluated.

    Attributes:
        path: as it was given.
        sha256: of the file.
        chosen: how it was chosen among those of its run.
        baseline: whether the others are compared with it.
    """

    path: str
    sha256: str
    chosen: str = ""
    baseline: bool = False


class Settings(config.Frozen):
    """Everything that decides what an evaluation finds.

    Attributes:
        networks: what is attacked.
        source: the network that transfer attacks are made on; the networks' own reduction where it is None.
        data: name of the data set.
        data_sha256: of its images and labels that are used.
        images: how many.
        levels: strengths.
        methods: names.
        threats: as they are written.
        snr_space: raw or standardized.
        exact_snr: whether strengths are adapted until the ratio is met.
        draws: that score.
        judge_draws: fresh ones that judge again.
        votes: the first of them that vote.
        seed: of every draw.
        noise: whether arrays are read with noise.
        save_images: whether adversarial images are kept.
        batch_size: images at a time; floats, and so a class on the edge, may depend on it.
        device: cpu, cuda or mps; likewise.
    """

    format: Literal[1] = 1
    networks: tuple[Origin, ...] = Field(min_length=1)
    source: Origin | None = None
    data: str
    data_sha256: str
    images: PositiveInt
    levels: tuple[Level, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    threats: tuple[str, ...] = Field(min_length=1)
    snr_space: SpaceName = "raw"
    exact_snr: bool = False
    draws: PositiveInt = 1
    judge_draws: NonNegativeInt = 0
    votes: NonNegativeInt = 0
    seed: int = Field(0, ge=0, le=MAX_SEED)
    noise: bool = True
    save_images: bool = False
    batch_size: PositiveInt = 100
    device: str = "cpu"


class Records:
    """The tensors of an evaluation with how far they are filled, in memory and, if it has a folder, in its file.

    Attributes:
        settings: of the evaluation.
        folder: of the file; None keeps everything in memory.
        begun_in: the folder that it was begun from, which paths of checkpoints start at.
        tensors: by the names above.
    """

    def __init__(self, settings: Settings, labels: Tensor, folder: Path | None = None) -> None:
        self.settings, self.folder, self.begun_in = settings, folder, Path.cwd()
        self.tensors: dict[str, Tensor] = {"index": torch.arange(settings.images), "label": labels.to(torch.int64)}
        self._done: dict[str, int] = {}
        self._next = 0.0

    def done(self, part: str) -> int:
        """How many images of a part (`networks/n` or `results/r/l`) are done; they are the first ones."""
        return self._done.get(part, 0)

    def from_here(self, origin: Origin) -> str:
        """The path of a checkpoint for the current folder, which may be another than that it was begun from."""
        here = Path.cwd()
        elsewhere = self.begun_in.resolve() != here.resolve() and not Path(origin.path).is_absolute()
        return os.path.relpath(self.begun_in / origin.path, here) if elsewhere else origin.path

    def put(self, part: str, start: int, values: Mapping[str, Tensor]) -> None:
        """Fills in a batch of a part, image `start` first; every value has the images as its first axis."""
        stop = start
        for name, value in values.items():
            key, rows = f"{part}/{name}", value.detach().cpu()
            if key not in self.tensors:
                shape = (self.settings.images, *rows.shape[1:])
                self.tensors[key] = torch.full(shape, 0 if rows.is_floating_point() or name == "outcome" else -1).to(
                    rows.dtype
                )
            stop = start + len(rows)
            self.tensors[key][start:stop] = rows
        self._done[part] = stop

    def keep_images(self, result: int, level: int, start: int, images: Tensor) -> None:
        """Writes a batch of adversarial images, float32 (B, G, C, H, W) in [0, 1], as a file of its own."""
        assert self.folder is not None
        place = inside(self.folder, IMAGES, f"result-{result}", f"level-{level}")
        index = torch.arange(start, start + len(images))
        name = f"{start:06}.safetensors"
        _write(place / name, {"index": index, "adversarial": images.detach().cpu().contiguous()}, {})

    def save(self, *, now: bool = False) -> None:
        """Writes the file, unless writing would take too much of the time; `now` writes it in any case."""
        if self.folder is None or (not now and time.monotonic() < self._next):
            return
        started = time.monotonic()
        document = {
            "settings": self.settings.model_dump(mode="json"),
            "done": self._done,
            # From the records' own folder, so that both may be moved together.
            "begun_in": Path(os.path.relpath(self.begun_in, self.folder)).as_posix(),
            "sha256": tensors.digest(self.tensors),
        }
        metadata = {_KEY: json.dumps(document, sort_keys=True)}
        _write(self.folder / FILE, dict(sorted(self.tensors.items())), metadata)
        self._next = time.monotonic() + _SPARE * (time.monotonic() - started)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the block, what was done in it is written."""
        try:
            yield
        finally:
            self.save(now=True)


def begin(folder: Path | None, settings: Settings, labels: Tensor) -> Records:
    """New records, in a folder which is made, or in memory where it is None.

    Raises:
        ConfigError: there are records in it already.
        FileError: it cannot be made.
    """
    if folder is None:
        return Records(settings, labels)
    if (folder / FILE).exists():
        raise ConfigError(
            f"--out {folder}: there are records of an attack in this folder already",
            hint=f"go on with them by --resume {folder}, or choose another folder",
        )
    make_folder(folder)
    return Records(settings, labels, folder)


def read(folder: Path) -> Records:
    """The records in a folder, to look at or to go on with.

    Raises:
        FileError: there are none, or they are damaged.
    """
    path = folder / FILE
    if not path.is_file():
        what = f"there are no records in {folder} ({FILE} is missing)" if folder.is_dir() else f"there is no {folder}"
        raise FileError(what, hint="`rapa attack --out DIR` writes them")
    try:
        held, metadata = tensors.read(path)
        document = config.validate(_Document, config.read_json(metadata.get(_KEY, "")), "its description")
        _check_tensors(document, held)
        if tensors.digest(held) != document.sha256:
            raise ValueError("its tensors are not those that were written")
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}", hint="begin again in another folder with --out") from None
    found = Records(document.settings, held["label"], folder)
    found.tensors, found._done, found.begun_in = held, dict(document.done), folder / document.begun_in
    return found


def check_same(records: Records, settings: Settings) -> None:
    """Records can only be gone on with by the evaluation they are of.

    Raises:
        ConfigError: the settings differ; the message names the first difference.
    """
    before, now = records.settings, settings
    # Other images are also what other settings make of the same data: these tell more.
    for name in sorted(Settings.model_fields, key=lambda field: field == "data_sha256"):
        old, new = getattr(before, name), getattr(now, name)
        # A checkpoint may be named by another path, but must be the same file.
        if old == new or (name in ("networks", "source") and _files(old) == _files(new)):
            continue
        what = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
        if name in ("networks", "source") and _paths(old) == _paths(new):
            difference = f"{_shown(old)} is another file now"
        elif name == "data_sha256":
            difference = f"{what} are others now"
        else:
            difference = f"{what}: {_shown(old)} there, {_shown(new)} here"
        raise ConfigError(
            f"--resume {records.folder}: these records are of another evaluation: {difference}",
            hint="leave out what --resume reads from the records, or begin anew in another folder with --out",
        )


def digest_images(images: Images, labels: Tensor) -> str:
    """SHA-256 of images uint8 (N, C, H, W) and labels int64 (N,); of a stream, of what tells its files apart."""
    if isinstance(images, StreamedImages):
        found = hashlib.sha256(images.fingerprint().encode())
    else:
        found = hashlib.sha256(images.contiguous().numpy().tobytes())
    found.update(labels.contiguous().numpy().tobytes())
    return found.hexdigest()


class _Document(config.Frozen):
    settings: Settings
    done: dict[str, NonNegativeInt]
    begun_in: str
    sha256: str


def _check_tensors(document: _Document, held: Mapping[str, Tensor]) -> None:
    """Raises ValueError where tensors are missing, or not what `results` and going on rely on."""
    settings = document.settings
    sizes = {"N": {settings.images}, "S": {settings.draws}, "G": {1, settings.draws}, "J": {settings.judge_draws}}
    wanted: list[tuple[str, Mapping[str, Any], tuple[str, ...]]] = [("", _LABELS, tuple(_LABELS))]
    for part, count in document.done.items():
        kind = part.partition("/")[0]
        if count > settings.images or kind not in _TENSORS:
            raise ValueError(f"{count} images of '{part}' cannot be done")
        wanted.append((f"{part}/", _TENSORS[kind], (*_ALWAYS[kind], *(_JUDGED if settings.judge_draws else ()))))
    for prefix, known, needed in wanted:
        for name, (dtype, axes) in known.items():
            tensor = held.get(prefix + name)
            if tensor is None:
                if name in needed or (name == "believed_clean" and f"{prefix}believed" in held):
                    raise ValueError(f"tensor '{prefix}{name}' is missing")
            elif (
                tensor.dtype != dtype
                or len(tensor.shape) != len(axes)
                or any(size not in sizes.get(axis, {size}) for size, axis in zip(tensor.shape, axes, strict=True))
            ):
                raise ValueError(f"tensor '{prefix}{name}' is {tensor.dtype} {tuple(tensor.shape)}")


def _write(path: Path, values: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with atomic(path, tensors.size(values, metadata)) as temporary:
        try:
            save_file(values, temporary, metadata)
        except SafetensorError as error:
            raise system_error(error) from error


def _paths(value: tuple[Origin, ...] | Origin | None) -> list[tuple[str, bool]]:
    return [(origin.path, origin.baseline) for origin in _origins(value)]


def _files(value: tuple[Origin, ...] | Origin | None) -> list[tuple[str, bool]]:
    return [(origin.sha256, origin.baseline) for origin in _origins(value)]


def _origins(value: tuple[Origin, ...] | Origin | None) -> tuple[Origin, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, Origin):
        return f"{value.path} (baseline)" if value.baseline else value.path
    if isinstance(value, Level):
        return f"{value.eps:g}" if value.eps is not None else f"{value.snr_db:g} dB"
    return "none" if value is None else str(value)
