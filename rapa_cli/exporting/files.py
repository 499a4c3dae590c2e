"""Writing a network to a file that other programs read, and checking that they find the same network in it."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from rapa_cli import __version__, tensors
from rapa_cli.analysis.reduction import reduce
from rapa_cli.errors import CheckFailed, ConfigError, FileError, suggestion
from rapa_cli.exporting import onnx
from rapa_cli.exporting.aihwkit import from_aihwkit, layout, to_aihwkit
from rapa_cli.exporting.graph import Assignment, Graph, assignments, graph_of
from rapa_cli.files import atomic
from rapa_cli.keyed import draws
from rapa_cli.layers.network import Network
from rapa_cli.shown import Shown

SUFFIXES = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "state-dict": "-state.safetensors",
    "aihwkit": "-aihwkit.safetensors",
}
"""What the names of files end in, for each form."""

TOLERANCE = 1e-4
"""How far logits may lie from the network's, relative to the largest of them where that is above 1."""

# Other than the number of images that graphs are traced with, so that the check is also one of their batch.
_CHECKED = 3
_SEED = 0


@dataclass(frozen=True, repr=False)
class Exported(Shown):
    """A file that was written.

    Attributes:
        path: of the file.
        form: onnx, torch-export, state-dict or aihwkit.
        size: bytes.
        assignments: what the network in it takes besides images.
        difference: how far its logits lie from the network's at most, on random images and relative to the largest
            logit where that is above 1; None where the form has weights alone.
    """

    shown: ClassVar = ("path", "form", "size", "assignments", "difference")

    path: Path
    form: str
    size: int
    assignments: tuple[Assignment, ...] = ()
    difference: float | None = None


def export(
    model: nn.Module,
    path: str | Path,
    *,
    to: str = "onnx",
    reduced: bool = False,
    shape: tuple[int, int, int] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Exported:
    """Writes a network to a file for other programs.

    Args:
        model: it is left as it is.
        path: the file; an older one of this name is replaced once the new one is whole and checked.
        to: `onnx`: a model of ordinary operators; `torch-export`: a program of torch.export; `state-dict`: the tensors
            of its state dictionary, and `aihwkit`: its matrices in aihwkit's layout, both as safetensors.
        reduced: whether it is made ordinary first, by `reduce(model, "norm")`.
        shape: (C, H, W) of an image; a network of rapa's own knows it.
        about: what else the file is to say of itself, as JSON.

    Raises:
        CheckFailed: what was to be written does not compute the same; there is no new file.
        ConfigError: the network cannot be written in this form, or a package for it is missing.
        FileError: there is no such folder, or the file cannot be written.
        ValueError: an unknown form, or no shape.
    """
    if to not in SUFFIXES:
        raise ValueError(f"to: there is no form '{to}'; {suggestion(to, SUFFIXES)}")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileError(f"there is no folder {path.parent} to write {path.name} to", hint="make it, or name another")
    if reduced:
        model = reduce(model, "norm")
    document = {"rapa": __version__, "form": to, "reduced": reduced, **(about or {})}
    if to in ("state-dict", "aihwkit"):
        if to == "aihwkit":
            document["layers"] = layout(model)
        held = to_aihwkit(model) if to == "aihwkit" else _state(model)
        content = save(held, {"rapa": json.dumps(document)})
        _write(path, content)
        return Exported(path, to, len(content))
    shape = shape or (model.shape if isinstance(model, Network) else None)
    if shape is None:
        raise ValueError("shape: it cannot be told from the network; give (C, H, W) of an image")
    if to == "onnx":
        onnx.check_installed()
    graph = graph_of(model, shape)
    document |= {"shape": shape, "assignments": [asdict(each) for each in graph.assignments]}
    content = onnx.onnx_bytes(graph, document) if to == "onnx" else _program_bytes(graph, document)
    difference = _difference(model, shape, lambda x, given: _run(content, to, x, given))
    if not difference <= TOLERANCE:
        raise CheckFailed(
            f"logits of the {to} file differ by {difference:.2g} from the network's, allowed is {TOLERANCE:g}",
            hint="nothing was written; `rapa doctor` checks the installation",
        )
    _write(path, content)
    return Exported(path, to, len(content), graph.assignments, difference)


def read_aihwkit(model: nn.Module, path: Path) -> nn.Module:
    """Copies a network with the weights of a file as `export(..., to="aihwkit")` writes it.

    Raises:
        ConfigError: the weights do not fit the network.
        FileError: the file is missing or damaged.
    """
    try:
        found, _ = tensors.read(path)
    except FileNotFoundError:
        raise FileError(f"there is no file {path}", hint="`rapa export --to aihwkit` writes one") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}", hint="is the file damaged?") from None
    try:
        return from_aihwkit(model, found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The state dictionary, each tensor with memory of its own."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def _write(path: Path, content: bytes) -> None:
    with atomic(path, len(content)) as temporary:
        temporary.write_bytes(content)


def _program_bytes(graph: Graph, about: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.export.save(graph.program, file, extra_files={"rapa.json": json.dumps(about)})
    return file.getvalue()


def _run(content: bytes, to: str, images: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """The logits that a file gives."""
    if to == "onnx":
        return onnx.run(content, images, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(content))
    logits: Tensor = program.module()(images, *given.values())
    return logits


def _difference(
    model: nn.Module, shape: tuple[int, int, int], run: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
) -> float:
    """How far what `run` gives lies from the network's own logits, in one draw."""
    network = copy.deepcopy(model).cpu().eval()
    images = torch.rand(_CHECKED, *shape, generator=torch.Generator().manual_seed(_SEED))
    ids = torch.arange(_CHECKED)
    with torch.no_grad(), draws(network, images=ids, seed=_SEED):
        expected = network(images)
    found = run(images, assignments(network, shape, images=ids, seed=_SEED))
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
