"""Checkpoints: one safetensors file that describes its own network.

The tensors are the network's state, and for resuming the optimizer's under names that begin with `optimizer/`. The
metadata key `rapa` holds one JSON document: a `Description`, and as `sha256` a digest of that and of all tensors, by
which a file that has rotted is found out. Files of earlier versions have none, and are read without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rapa_cli import config, tensors
from rapa_cli.errors import FileError, RapaError
from rapa_cli.files import atomic, system_error
from rapa_cli.layers import modules
from rapa_cli.layers.network import Network, build, fewest_numbers, resolve
from rapa_cli.philox import MAX_SEED
from rapa_cli.runs import find_checkpoint

OPTIMIZER = "optimizer/"
_KEY, _DIGEST = "rapa", "sha256"


class Progress(config.Frozen):
    """How far a training is; errors are in percent.

    Attributes:
        epoch: epochs that are done.
        step: steps of the next one that are done.
        seen: images of those steps.
        loss_sum: sum of their losses.
        wrong: how many of them were classified wrongly.
        test_error: of the last epoch that is done.
        train_error: likewise.
        best_test_error: the lowest so far.
        best_epoch: where it was reached.
        seconds: of the training so far, testing counted in.
        images: that it took in this time.
    """

    epoch: int = Field(0, ge=0)
    step: int = Field(0, ge=0)
    seen: int = Field(0, ge=0)
    loss_sum: float = 0.0
    wrong: int = Field(0, ge=0)
    test_error: float | None = None
    train_error: float | None = None
    best_test_error: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    images: int = Field(0, ge=0)


class Description(config.Frozen):
    """What a checkpoint says of itself.

    Attributes:
        format: version of this document.
        network: the definition, its tiles written out.
        shape: (C, H, W) of an image.
        classes: names of the classes.
        data: the data set it was trained on.
        seed: of the training.
        recipe: how it was trained, if it was.
        progress: how far its training is.
        provenance: versions, command, what it was made from.
    """

    format: Literal[1] = 1
    network: config.Network
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    classes: tuple[str, ...] = Field(min_length=1)
    data: str
    seed: int = Field(0, ge=0, le=MAX_SEED)
    recipe: config.Recipe | None = None
    progress: Progress | None = None
    provenance: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: its description, the network's state and the optimizer's."""

    description: Description
    state: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def save(path: Path, description: Description, state: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint atomically.

    Raises:
        FileError: it cannot be written; an older file of that name is as it was.
    """
    everything = {**state, **{OPTIMIZER + name: tensor for name, tensor in optimizer.items()}}
    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in everything.items():
        plain[name] = tensor.detach().cpu().contiguous()
        if plain[name].data_ptr() in places and plain[name].numel():
            # Weights that a network uses in two places; a file holds them twice.
            plain[name] = plain[name].clone()
        places.add(plain[name].data_ptr())
    document = description.model_dump(mode="json")
    metadata = {_KEY: json.dumps({**document, _DIGEST: _digest(document, plain)})}
    with atomic(path, tensors.size(plain, metadata)) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:
            raise system_error(error) from error


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        FileError: missing, damaged, or no checkpoint of this program.
    """
    if path.is_dir():
        raise FileError(f"{path} is a folder, not a checkpoint", hint="name the .safetensors file in it")
    if not path.is_file():
        raise FileError(f"there is no checkpoint {path}", hint="`rapa train` writes one into its run folder")
    try:
        found, metadata = tensors.read(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    own = {name: tensor for name, tensor in found.items() if not name.startswith(OPTIMIZER)}
    rest = {name.removeprefix(OPTIMIZER): tensor for name, tensor in found.items() if name not in own}
    return Checkpoint(_description(path, metadata, found), own, rest)


def load(path: str | Path, *, code: Sequence[str | Path] = ()) -> Network:
    """Rebuilds a network from a checkpoint alone, in evaluation mode on the CPU.

    Args:
        path: the checkpoint file, a run folder, whose last checkpoint is meant, or a name in the zoo.
        code: Python files that you trust, for a network that is written in one of them: its code is run.

    Raises:
        FileError: missing, damaged, or no checkpoint of this program; or `code` is not the file that it was made with.
        ConfigError: its network is written in a Python file, which was not handed over.
    """
    found = find_checkpoint(str(path))
    return restore(read(found), found, [Path(file) for file in code]).eval()


def restore(checkpoint: Checkpoint, path: Path, code: Sequence[Path] = ()) -> Network:
    """Builds the network that a checkpoint describes and fills in its state.

    Args:
        checkpoint: the checkpoint.
        path: where it came from, for messages.
        code: Python files whose code may be run.

    Raises:
        FileError: its tensors are not finite, or do not fit the network it describes; or `code` is not the file that
            it was made with.
        ConfigError: its network is written in a Python file, which was not handed over, or fails.
    """
    description = checkpoint.description
    module = description.network.module
    if module is not None and module.file is not None:
        # What is wrong with the file is not wrong with the checkpoint.
        modules.written_in(module, code)
    shape, classes = description.shape, len(description.classes)
    try:
        # Told before it is built, which may take more memory and time than anybody has.
        wanted = resolve(description.network, shape, classes=classes, code=code), shape, classes
        fewest, held = fewest_numbers(*wanted, code), sum(tensor.numel() for tensor in checkpoint.state.values())
        if fewest > held:
            raise ValueError(f"it has {fewest} weights at least, and the file {held}")
        network = build(*wanted, seed=description.seed, code=code)
    except (RapaError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        # A damaged definition can ask for sizes that torch or the memory has no room for; torch adds a stack trace.
        reason = str(error).partition("\n")[0]
        raise _damaged(path, f"its network cannot be built: {reason}") from None
    expected = network.state_dict()
    for name, tensor in expected.items():
        found = checkpoint.state.get(name)
        if found is None:
            raise _damaged(path, f"tensor '{name}' is missing")
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise _damaged(
                path,
                f"tensor '{name}' is {found.dtype} {tuple(found.shape)}, not {tensor.dtype} {tuple(tensor.shape)}",
            )
        if not is_finite({name: found}):
            raise _damaged(path, f"tensor '{name}' has values that are not finite")
    extra = sorted(set(checkpoint.state) - set(expected))
    if extra:
        raise _damaged(path, f"tensor '{extra[0]}' does not belong to its network")
    network.load_state_dict(dict(checkpoint.state))
    return network


def _description(path: Path, metadata: Mapping[str, str], held: Mapping[str, Tensor]) -> Description:
    document = metadata.get(_KEY)
    if document is None:
        raise _damaged(path, "it is no checkpoint of this program (no description in it)")
    try:
        found = config.read_json(document)
        if not _is_data_set(found):
            if isinstance(found, dict) and _DIGEST in found and found.pop(_DIGEST) != _digest(found, held):
                raise ValueError("its weights or its description are not those that were written")
            return config.validate(Description, found, "its description")
    except (RapaError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    hint = f"name a checkpoint or a run folder; its images are used by --data {path.absolute().parent.name}"
    raise FileError(f"{path} is a data set, not a checkpoint", hint=hint)


def _digest(document: Mapping[str, Any], held: Mapping[str, Tensor]) -> str:
    return tensors.digest(held, json.dumps(document, sort_keys=True))


def _is_data_set(document: object) -> bool:
    """Whether a description is that of a file of the data store."""
    return isinstance(document, dict) and "split" in document and "network" not in document


def _damaged(path: Path, reason: str) -> FileError:
    return FileError(
        f"checkpoint {path} cannot be used: {' '.join(reason.split())}",
        hint="take another one, such as best.safetensors beside last.safetensors in its run folder",
    )


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether all floating-point tensors are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values() if tensor.is_floating_point())
