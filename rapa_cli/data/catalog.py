"""Finding a data set by its name: in the store, in official files that lie beside it, or drawn by ourselves."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rapa_cli.data import download, folder, shapes, sources, store, stream
from rapa_cli.data.images import DataSet, Progress, silent
from rapa_cli.data.places import data_dir, users_own
from rapa_cli.data.sources import Contents
from rapa_cli.errors import ConfigError, FileError, suggestion

DOWNLOADABLE = ("cifar10", "cifar100", "svhn")
EMBEDDED = "shapes"
KNOWN = (EMBEDDED, *DOWNLOADABLE)
STREAMED = "folder:"
"""What stands before the path of a folder of images that is streamed."""
_SIZE = 224
_MOST_PIXELS = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Entry:
    """A line of `rapa data list`.

    Attributes:
        name: what `--data` calls the data set.
        state: "stored", "embedded" (drawn when first used), "official files" (imported when first used), "damaged"
            or "absent" (a known data set that `rapa data get` would fetch).
        classes: number of classes, 0 where unknown.
        train: number of training images, 0 where unknown.
        test: number of test images, 0 where unknown.
        shape: channels, height and width; None where unknown.
        size: bytes on disk.
        source: where the images come from, or what is wrong.
    """

    name: str
    state: str
    classes: int = 0
    train: int = 0
    test: int = 0
    shape: tuple[int, int, int] | None = None
    size: int = 0
    source: str = ""


def open_data(
    name: str, data_dir: Path | None = None, *, workers: int | None = None, progress: Progress = silent
) -> DataSet:
    """Opens a data set by its name.

    `shapes` is drawn when it is first used. A known data set whose official files lie in the data folder is imported
    when it is first used; where that folder cannot be written, the store in the user's own data folder takes it.

    Args:
        name: "shapes", a name that `rapa data list` shows, or "folder:PATH" or "folder:PATH@SIZE": a folder with a
            folder of images for each class, which are decoded when they are wanted and cut to SIZE x SIZE pixels
            (224 where it is left out).
        data_dir: the folder of the store; None for the usual one.
        workers: processes that decode the images of such a folder; None for the usual number, 0 for none.
        progress: called while images are drawn or imported.

    Raises:
        ConfigError: the name cannot be the name of a data set.
        FileError: there is no such data set, or it is damaged.
    """
    if name.startswith(STREAMED):
        return _streamed(name, stream.usual_workers() if workers is None else workers, progress)
    home = _home(data_dir)
    check_name(name)
    if name == EMBEDDED:
        return _embedded(home, progress)
    if store.exists(home / name):
        return store.read(home / name)
    official = sources.find(name, home)
    if official is not None:
        folder = (home if _writable(home) else users_own()) / name
        return store.read(folder) if store.exists(folder) else _store(folder, name, sources.load(official, progress))
    raise _absent(name, home, data_dir)


def get(
    name: str,
    source: Path | None = None,
    *,
    data_dir: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> tuple[DataSet, bool]:
    """Puts a data set into the store.

    Args:
        name: a known name, or with a `source` any name.
        source: the official archive or folder, a folder with train.npz and test.npz, or a folder of images; None
            draws `shapes` or downloads a known data set.
        data_dir: the folder of the store; None for the usual one.
        force: whether a data set of that name is replaced.
        progress: called while images are fetched, read or drawn.

    Returns:
        The data set, and whether it is new: False means that the store had it already.

    Raises:
        ConfigError: the name cannot be the name of a data set.
        FileError: the source is missing or damaged, the download failed, the store cannot be written, or it has
            another data set of that name.
    """
    home = _home(data_dir)
    check_name(name)
    folder = home / name
    if name == EMBEDDED:
        if source is not None:
            raise ConfigError(f"'{EMBEDDED}' is drawn by rapa itself and takes no --from", hint="choose another name")
        with contextlib.suppress(FileError):
            if not force and store.read(folder).source == shapes.source():
                return store.read(folder), False
        train, test = shapes.draw_splits(progress=progress)
        return store.write(folder, EMBEDDED, shapes.CLASSES, train, test, shapes.source()), True
    if source is None:
        if store.exists(folder) and not force:
            return store.read(folder), False
        if name not in DOWNLOADABLE:
            hint = f"{suggestion(name, KNOWN)}; for images of your own: rapa data get {name} --from FOLDER"
            raise FileError(f"no place is known to fetch '{name}' from", hint=hint)
        official = sources.find(name, home) or download.fetch(name, home, progress)
        return _store(folder, name, sources.load(official, progress)), True
    found_there = sources.recognise(source.expanduser())
    if name in DOWNLOADABLE and found_there.kind != name:
        known = found_there.kind in DOWNLOADABLE
        holds = found_there.kind if known else "images of your own"
        other = found_there.kind if known else f"my-{name}"
        hint = f"the name is kept for the official images; choose another: rapa data get {other} --from {source}"
        raise FileError(f"{source} holds {holds}, not {name}", hint=hint)
    contents = sources.load(found_there, progress)
    if store.exists(folder) and not force:
        found = store.read(folder)
        if store.fingerprints(contents.train, contents.test) == store.fingerprints(found.train, found.test):
            return found, False
        raise FileError(f"{folder} holds other images already", hint="--force replaces them, or choose another name")
    return _store(folder, name, contents), True


def listing(data_dir: Path | None = None) -> list[Entry]:
    """Every data set that `--data` can name here, and the known ones that are not here; by name.

    Raises:
        FileError: the data folder is no folder.
    """
    home = _home(data_dir)
    return [_entry(name, home) for name in sorted(_stored(home) | set(KNOWN))]


def check_name(name: str) -> None:
    """Raises ConfigError unless the name can be a data set's: letters, digits and - _ . only, no path."""
    if not _NAME.fullmatch(name):
        hint = "names have letters, digits and - _ . only, and start with a letter or digit"
        if Path(name).is_dir():
            hint = f"give the folder a name first: rapa data get NAME --from {name}; or stream it: --data folder:{name}"
        raise ConfigError(f"{name!r} cannot be the name of a data set", hint=hint)


def _streamed(name: str, workers: int, progress: Progress) -> DataSet:
    path, size = name.removeprefix(STREAMED), _SIZE
    found = re.fullmatch(r"(.+)@([0-9]{1,9})", path, re.ASCII | re.DOTALL)
    if found:
        path, size = found[1], int(found[2])
    if not path or not 8 <= size <= _MOST_PIXELS:
        raise ConfigError(
            f"--data {name}: got {f'images of {size} pixels' if path else 'no folder'}",
            hint=f"write folder:PATH or folder:PATH@SIZE, SIZE from 8 to {_MOST_PIXELS}",
        )
    if not name.isprintable():
        raise ConfigError(f"--data {name!r}: the path has signs that are no text", hint="rename the folder")
    data = folder.stream(Path(path).expanduser(), name, size, workers=workers, progress=progress)
    store.check(name, data.classes, data.train, data.test)
    return data


def _home(explicit: Path | None) -> Path:
    home = data_dir(explicit)
    if home.exists() and not home.is_dir():
        raise FileError(f"the data folder {home} is a file", hint="choose a folder with --data-dir or RAPA_DATA_DIR")
    return home


def _stored(home: Path) -> set[str]:
    if not home.is_dir():
        return set()
    return {folder.name for folder in home.iterdir() if _NAME.fullmatch(folder.name) and store.exists(folder)}


def _writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _store(folder: Path, name: str, contents: Contents) -> DataSet:
    return store.write(folder, name, contents.classes, contents.train, contents.test, contents.source)


def _embedded(home: Path, progress: Progress) -> DataSet:
    """`shapes` from the store, or drawn and put there; where no folder can be written it stays in memory."""
    places = [place for place in dict.fromkeys([home, users_own()]) if place == home or not _writable(home)]
    for place in places:
        # A copy that is damaged or of another version is drawn anew.
        with contextlib.suppress(FileError):
            found = store.read(place / EMBEDDED)
            if found.source == shapes.source():
                return found
    train, test = shapes.draw_splits(progress=progress)
    for place in places:
        with contextlib.suppress(FileError):
            return store.write(place / EMBEDDED, EMBEDDED, shapes.CLASSES, train, test, shapes.source())
    return DataSet(EMBEDDED, shapes.CLASSES, train, test, *store.constants(train.images), source=shapes.source())


def _absent(name: str, home: Path, explicit: Path | None) -> FileError:
    if name in DOWNLOADABLE:
        option = f" --data-dir {explicit}" if explicit is not None else ""
        return FileError(f"data set '{name}' is not in {home}", hint=f"rapa data get {name}{option}")
    hint = f"{suggestion(name, _stored(home) | set(KNOWN))} (rapa data list shows what is there)"
    return FileError(f"there is no data set '{name}' in {home}", hint=hint)


def _entry(name: str, home: Path) -> Entry:
    folder = home / name
    if not store.exists(folder):
        if name == EMBEDDED:
            shape = (3, shapes.SIDE, shapes.SIDE)
            return Entry(name, "embedded", len(shapes.CLASSES), shapes.TRAIN, shapes.TEST, shape, 0, shapes.source())
        official = sources.find(name, home)
        if official is not None:
            return Entry(name, "official files", source=str(official.path))
        return Entry(name, "absent", source=f"rapa data get {name}")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        data = store.read(folder)
    except FileError as error:
        return Entry(name, "damaged", size=size, source=error.message)
    return Entry(name, "stored", len(data.classes), len(data.train), len(data.test), data.shape, size, data.source)
