"""Reading safetensors files, which may be damaged or made to do harm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rapa_cli.files import ordinary

MAX_HEADER = 4 * 2**20
"""Bytes of the longest header: each tensor that it names costs time and memory, also an empty one."""


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors of a file, which stay in the file until they are touched, and its metadata.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    with ordinary(path) as start:
        length = int.from_bytes(start.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header claims {length} bytes, allowed are {MAX_HEADER}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle is no mapping
            return tensors, file.metadata() or {}
    except OSError:
        raise
    except Exception as error:  # Types that torch does not know raise errors of many kinds.
        raise ValueError(str(error)) from error


def digest(tensors: Mapping[str, Tensor], document: str = "") -> str:
    """SHA-256, in hexadecimal digits, of a document and of tensors with their names, types, shapes and bytes.

    It is what tells a file that has rotted from one that has not; whoever writes a file can write a digest that fits.

    Args:
        tensors: in memory or in their file.
        document: what the file says of them.
    """
    found = hashlib.sha256(document.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Not every type that torch knows is one of numpy's.
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Bytes of the file that holds tensors and metadata, but for a few: what writing it takes."""
    ends = sum(tensor.nbytes for tensor in tensors.values())
    entries = {name: {"dtype": "F32", "shape": [*t.shape], "data_offsets": [ends, ends]} for name, t in tensors.items()}
    return 8 + len(json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":"))) + ends
