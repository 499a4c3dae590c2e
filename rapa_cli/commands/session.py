"""What the subcommands do before their own work: device, threads, checkpoint, images, progress bars."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapa_cli import console
from rapa_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rapa_cli.checkpoint import Checkpoint, Description
    from rapa_cli.data.images import DataSet, Progress
    from rapa_cli.data.stream import Images
    from rapa_cli.layers.network import Network

_MIB = 2**20
# What counts further than this counts bytes.
_MANY_BYTES = 4 * _MIB

# The words of the command line that is being run, for the provenance of what it writes.
arguments: ContextVar[Sequence[str]] = ContextVar("arguments", default=())


def command_line() -> str:
    """The command line that is being run, as one types it."""
    return shlex.join(["rapa", *arguments.get()])


@dataclass(frozen=True)
class Subject:
    """A checkpoint with the images that it is judged on.

    Attributes:
        path: the checkpoint file.
        chosen: how it was chosen among those of its run, as results are labelled with it; None for the last.
        description: what it says of itself.
        network: on its device, in evaluation mode.
        data: name of the data set.
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        arrays: what its arrays are made of, and whether they are read with noise; as results are labelled with it.
    """

    path: Path
    chosen: str | None
    description: Description
    network: Network
    data: str
    images: Images
    labels: Tensor
    arrays: dict[str, Any]


def compute_device(name: str, threads: int | None = None) -> torch.device:
    """The device of a name; sets torch's threads.

    Of the processes that torchrun starts on a host each takes a GPU of its own by `auto` and `cuda`.

    Raises:
        ConfigError: this machine has no such device.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    local = os.environ.get("LOCAL_RANK", "")
    if name in ("auto", "cuda") and local.isdecimal() and torch.cuda.is_available():
        if int(local) >= torch.cuda.device_count():
            raise ConfigError(
                f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices, but process {local} "
                "needs one of its own",
                hint="start as many processes as there are GPUs by --nproc-per-node, or take --device cpu",
            )
        return torch.device("cuda", int(local))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices",
            hint="leave --device out, or see `rapa doctor`",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: this machine has none", hint="leave --device out, or see `rapa doctor`")
    return device


def checkpoint_path(name: str | None, *, best: bool) -> Path:
    """The checkpoint file that the argument means; says which one where it was left out."""
    from rapa_cli.runs import find_checkpoint

    path = find_checkpoint(name, best=best)
    if name is None:
        console.note(f"using {path}")
    return path


def beside(path: Path, name: str) -> Path:
    """A file of that name beside a checkpoint; for one of the zoo in the current folder: the package stays as it is."""
    from rapa_cli.resources import zoo_name

    return path.with_name(name) if zoo_name(path) is None else Path(name)


def made_from(path: Path, folder: Path) -> str:
    """The checkpoint that something in a folder is made from, as its provenance has it."""
    from rapa_cli.resources import zoo_name

    name = zoo_name(path)
    return os.path.relpath(path.resolve(), folder.resolve()) if name is None else f"{name} of the zoo"


def chosen(path: Path) -> str | None:
    """How a checkpoint was chosen among those of its run; None for the last, and for others that nobody chose."""
    from rapa_cli.runs import BEST

    return "lowest test error of the run, chosen on the test set" if path.name == BEST else None


def command_to_resume(folder: Path, data_dir: Path | None, code: Sequence[Path] = ()) -> str:
    """What goes on with a run, as one types it after `rapa`."""
    where = ["--data-dir", str(data_dir)] if data_dir is not None else []
    where += [word for file in code for word in ("--code", str(file))]
    return shlex.join(["train", "--resume", str(folder), *where])


def labelled(path: Path) -> str:
    """The checkpoint as results name it, with how it was chosen."""
    how = chosen(path)
    return f"{path}\n({how})" if how else str(path)


def open_data(name: str, data_dir: Path | None, workers: int | None = None) -> DataSet:
    """Opens a data set, with a progress bar where that takes long.

    The processes that torchrun starts on a host share its cores for the workers of each.
    """
    from rapa_cli.data import catalog, stream

    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    if workers is None and local.isdecimal():
        workers = max(1, stream.usual_workers() // max(1, int(local)))
    with data_progress() as report:
        return catalog.open_data(name, data_dir, workers=workers, progress=report)


@contextlib.contextmanager
def data_progress() -> Iterator[Progress]:
    """Shows what getting or opening a data set is doing: a bar on a terminal, else a line for each long step."""
    with console.progress() as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if total > _MANY_BYTES:
                what, done, total = f"{what} (MiB)", done // _MIB, -(-total // _MIB)
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
                if bar.disable:
                    console.note(f"{what} ...")
            bar.update(tasks[what], completed=done, total=total or None)

        yield report


def subject(
    checkpoint: str | None,
    *,
    best: bool,
    data: str | None,
    data_dir: Path | None,
    images: int | None,
    device: str,
    threads: int | None,
    split: str = "test",
    noise: bool = True,
    code: Sequence[Path] | None = None,
    workers: int | None = None,
) -> Subject:
    """Loads a checkpoint and the images to judge it on; without noise its arrays are read so from now on.

    Raises:
        ConfigError: the images do not fit the network.
        FileError: the checkpoint or the data is missing or damaged.
    """
    from rapa_cli.analog.module import silence
    from rapa_cli.checkpoint import read

    place = compute_device(device, threads)
    path = checkpoint_path(checkpoint, best=best)
    saved = read(path)
    network = restored(saved, path, code).to(place)
    if not noise:
        silence(network)
    name = data or saved.description.data
    opened = open_data(name, data_dir, workers)
    if opened.shape != network.shape or len(opened.classes) != network.classes:
        raise ConfigError(
            f"--data {name}: images of {_shape(opened.shape)} in {len(opened.classes)} classes do not fit the network, "
            f"which takes {_shape(network.shape)} in {network.classes} classes",
            hint=f"it was trained on '{saved.description.data}'",
        )
    part = opened.train if split == "train" else opened.test
    limit = len(part) if images is None else min(images, len(part))
    return Subject(
        path,
        chosen(path),
        saved.description,
        network,
        name,
        part.images[:limit],
        part.labels[:limit],
        reading(network, noise=noise),
    )


def restored(saved: Checkpoint, path: Path, code: Sequence[Path] | None) -> Network:
    """The network of a checkpoint, in evaluation mode; says so where it runs code of the user's.

    Args:
        saved: the checkpoint.
        path: where it came from.
        code: Python files whose code may be run.
    """
    from rapa_cli.checkpoint import restore

    module = saved.description.network.module
    if code and module is not None and module.file is not None:
        note_code(code)
    return restore(saved, path, code or ()).eval()


def note_code(code: Sequence[Path]) -> None:
    """Warns that code of the user's is run."""
    console.note(f"running the code in {', '.join(map(str, code))}")


def reading(network: Network, *, noise: bool) -> dict[str, Any]:
    """Keys of a document that say what was read, and how; noise is None where there is none to switch off."""
    from rapa_cli.analog.specification import IDEAL, label

    arrays = network.definition.arrays
    return {"arrays": label(arrays), "noise": None if arrays == IDEAL else noise}


def arrays_line(reading: dict[str, Any]) -> str:
    """A line on the arrays, for people; empty for ideal ones."""
    if reading["noise"] is None:
        return ""
    return f"\narrays {reading['arrays']}, read {'with' if reading['noise'] else 'without'} noise"


@contextlib.contextmanager
def counting(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over images; gives the function that counts them."""
    with console.progress() as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def _shape(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} x {shape[1]} x {shape[2]}"
