"""Reading the pickles of the official CIFAR files, and nothing else that a pickle can hold.

A pickle is a program. The unpickler here knows five names, none of which reaches Python or numpy: an array is taken
down as its shape, type and bytes, and made from them afterwards. Everything else that a pickle could call is refused
before it is called.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from rapa_cli.errors import FileError

_TYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"}


def load(content: bytes, path: PurePath) -> dict[str, Any]:
    """Reads a pickled dictionary of arrays of whole numbers, lists, bytes and strings.

    Args:
        content: the pickle.
        path: where it comes from, for messages.

    Returns:
        The dictionary; keys are strings. Arrays are numpy arrays of integers; strings of Python 2 are bytes.

    Raises:
        FileError: it is damaged, holds something else, or tries to call anything.
    """
    hint = "this is not an official CIFAR file, or its download was cut off"
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise _RefusedError(f"it holds a {type(found).__name__}, not a dictionary")
        return {_text(key): _plain(value) for key, value in found.items()}
    except _RefusedError as error:
        raise FileError(f"{path} is refused: {error}", hint=hint) from error
    except Exception as error:  # A damaged pickle can raise any exception that there is.
        raise FileError(f"{path} is damaged: it cannot be unpickled ({type(error).__name__})", hint=hint) from error


class _RefusedError(Exception):
    """The pickle is whole, but holds or asks for what is not admitted."""


class _Array:
    """An array in a pickle: what is known of it so far."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> npt.NDArray[Any]:
        _version, shape, dtype, columns_first, content = self.state
        if not isinstance(dtype, _Type):
            raise _RefusedError("an array without a type")
        return _array(shape, dtype, "F" if columns_first else "C", content)


class _Type:
    """The type of an array in a pickle."""

    __slots__ = ("name", "order")

    def __init__(self, name: str) -> None:
        self.name = name
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if _text(state[1]) == ">" else "<"


class _Admitted:
    """A name that a pickle may use; without attributes, so that a pickle cannot change it."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _RefusedError("it tries to change what it was given")

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)


def _new_array(*_arguments: Any) -> _Array:
    return _Array()


def _new_type(name: Any, *_arguments: Any) -> _Type:
    text = _text(name)
    if text.lstrip("<>|=") not in _TYPES:
        raise _RefusedError(f"an array of {text!r}, allowed are whole numbers")
    return _Type(text.lstrip("<>|="))


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, _text(order) == "F", content)
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    # How Python 3 writes bytes in the old protocols.
    if not isinstance(text, str) or _text(encoding) not in ("latin1", "latin-1"):
        raise _RefusedError("text in an encoding other than latin1")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Admitted(_new_type),
    ("_codecs", "encode"): _Admitted(_encode),
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _Admitted(_new_array)
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _Admitted(_from_buffer)


class _Unpickler(pickle._Unpickler):
    # The library's version in C makes room for whatever size or index a pickle claims, before it looks whether the
    # content is there; the one in Python does so for byte arrays alone.

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _RefusedError(f"it asks for {module}.{name}, allowed are arrays, lists, bytes and strings") from None


def _load_bytearray8(unpickler: Any) -> None:
    size = int.from_bytes(unpickler.read(8), "little")
    content = unpickler.read(size)
    if len(content) != size:
        raise _RefusedError(f"it claims {size} bytes and has {len(content)}")
    unpickler.append(bytearray(content))


_Unpickler.dispatch = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray8}


def _array(shape: Any, dtype: _Type, order: str, content: Any) -> npt.NDArray[Any]:
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _RefusedError(f"an array of shape {shape!r}")
    if not isinstance(content, (bytes, bytearray)):
        raise _RefusedError("an array whose content is not bytes")
    whole = np.dtype(dtype.order + dtype.name)
    if math.prod(shape) * whole.itemsize != len(content):
        raise _RefusedError(f"an array of shape {shape} with {len(content)} bytes")
    flat = np.frombuffer(content, dtype=whole)
    return flat.reshape(shape, order="F") if order == "F" else flat.reshape(shape)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, str):
        return value
    raise _RefusedError(f"a {type(value).__name__} where a string was expected")


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value()
    if isinstance(value, (list, bytes, str, int)):
        return value
    raise _RefusedError(f"it holds a {type(value).__name__}, allowed are arrays, lists, bytes and strings")
