"""Reading the pickles of the official CIFAR files, and nothing else that a pickle can hold.

A pickle is a program. The unpickler here knows five names, none of which reaches Python or numpy: an array is taken
down as its shape, type and bytes, and made from them afterwards. It follows only the instructions that such files are
made of; everything else that a pickle could call, build or look up is refused before it is done.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from rapa_cli.errors import FileError

# Steps of the pickles of a data set; the official ones take less than a million.
_MOST_STEPS = 2_000_000
# More than the axes or the pixels of any array here.
_MOST_AXES, _MOST_ITEMS = 8, 2**40
_TYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"}


@dataclass
class Steps:
    """How many steps the pickles of a data set may still take, all together."""

    left: int = _MOST_STEPS


def load(content: bytes, path: PurePath, steps: Steps | None = None) -> dict[str, Any]:
    """Reads a pickled dictionary of arrays of whole numbers, lists, bytes and strings.

    Args:
        content: the pickle.
        path: where it comes from, for messages.
        steps: what it shares with the other files of its data set; None where there are none.

    Returns:
        The dictionary; keys are strings. Arrays are numpy arrays of integers; strings of Python 2 are bytes.

    Raises:
        FileError: it is damaged, holds something else, or tries to call anything.
    """
    hint = "this is not an official CIFAR file, or its download was cut off"
    try:
        found = _Unpickler(content, steps or Steps()).load()
        if not isinstance(found, dict):
            raise _RefusedError(f"it holds a {type(found).__name__}, not a dictionary")
        return {key: _plain(value) for key, value in found.items()}
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


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Admitted(_new_type),
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _Admitted(_new_array)
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _Admitted(_from_buffer)


class _Counted(io.BytesIO):
    """A pickle that is read a step at a time, and only so many of them."""

    def __init__(self, content: bytes, steps: Steps) -> None:
        super().__init__(content)
        self._steps = steps

    def read(self, size: int | None = -1, /) -> bytes:
        self._steps.left -= 1
        if self._steps.left < 0:
            raise _RefusedError(f"it takes more than {_MOST_STEPS} steps, with the other files of its data set")
        return super().read(size)


class _Table(dict[Any, Any]):
    """A dictionary in a pickle. Keys are text alone: to hash a tuple that is nested deeply enough ends the process."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        name = _text(key)
        if name in self:
            raise _RefusedError(f"the key {name!r} stands twice")
        super().__setitem__(name, value)


class _Unpickler(pickle._Unpickler):
    # The library's version in C makes room for whatever size or index a pickle claims, before it looks whether the
    # content is there; the one in Python does so for byte arrays alone.

    def __init__(self, content: bytes, steps: Steps) -> None:
        super().__init__(_Counted(content, steps), encoding="bytes")
        self._room = len(content)
        self._encode = _Admitted(self._encoded)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _RefusedError(f"it asks for {module}.{name}, allowed are arrays, lists, bytes and strings") from None

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        # How Python 3 writes bytes in the old protocols. Each text stands in the pickle and is encoded once.
        if not isinstance(text, str) or _text(encoding) not in ("latin1", "latin-1"):
            raise _RefusedError("text in an encoding other than latin1")
        self._room -= len(text)
        if self._room < 0:
            raise _RefusedError("it encodes more text than it holds")
        return text.encode("latin1")


def _load_bytearray8(unpickler: Any) -> None:
    size = int.from_bytes(unpickler.read(8), "little")
    content = unpickler.read(size)
    if len(content) != size:
        raise _RefusedError(f"it claims {size} bytes and has {len(content)}")
    unpickler.append(bytearray(content))


def _load_empty_table(unpickler: Any) -> None:
    unpickler.append(_Table())


def _load_table(unpickler: Any) -> None:
    items, table = unpickler.pop_mark(), _Table()
    for key, value in zip(items[::2], items[1::2], strict=True):
        table[key] = value
    unpickler.append(table)


def _load_frame(unpickler: Any) -> None:
    # Frames only say how much may be read at once.
    unpickler.read(8)


def _refuse(unpickler: Any) -> None:
    raise _RefusedError("it has an instruction that arrays, lists, bytes and strings do not need")


# What calls, imports or shares by other ways than by the names above, and sets, whose members would be hashed.
_REFUSED = (
    *(pickle.PERSID, pickle.BINPERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
)
_Unpickler.dispatch = {
    **pickle._Unpickler.dispatch,
    **{instruction[0]: _refuse for instruction in _REFUSED},
    pickle.BYTEARRAY8[0]: _load_bytearray8,
    pickle.EMPTY_DICT[0]: _load_empty_table,
    pickle.DICT[0]: _load_table,
    pickle.FRAME[0]: _load_frame,
}


def _array(shape: Any, dtype: _Type, order: str, content: Any) -> npt.NDArray[Any]:
    if not isinstance(shape, tuple) or len(shape) > _MOST_AXES:
        raise _RefusedError("an array without a shape")
    if not all(isinstance(size, int) and 0 <= size < _MOST_ITEMS for size in shape):
        raise _RefusedError("an array of a shape that is no list of sizes")
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
