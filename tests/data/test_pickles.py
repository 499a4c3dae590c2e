"""The unpickler gives what official files hold and refuses everything that could run."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapa_cli.data import pickles
from rapa_cli.errors import FileError

PATH = Path("data_batch_1")


class _Caller:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def python2_batch(data: np.ndarray[Any, Any], labels: list[int], key: bytes = b"labels") -> bytes:
    """A batch with the opcodes that Python 2's cPickle and the numpy of its time wrote in the official files."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    rows, columns = data.shape
    content = np.ascontiguousarray(data).tobytes()
    return (
        b"\x80\x02}q\x01("
        + short(key)
        + b"]("
        + b"".join(b"K" + bytes([label]) for label in labels)
        + b"e"
        + short(b"data")
        + b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87R(K\x01"
        + b"J"
        + struct.pack("<i", rows)
        + b"J"
        + struct.pack("<i", columns)
        + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(content))
        + content
        + b"tbu."
    )


def test_an_official_batch_is_read() -> None:
    data = np.arange(2 * 7, dtype=np.uint8).reshape(2, 7)
    found = pickles.load(python2_batch(data, [3, 1]), PATH)
    assert found["labels"] == [3, 1]
    assert np.array_equal(found["data"], data)
    assert found["data"].dtype == np.uint8


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [np.uint8, np.int64, ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_protocol_are_read(protocol: int, kind: Any, order: Any) -> None:
    data = np.asarray(np.arange(250, 262).reshape(3, 4), dtype=np.uint16).astype(kind, order=order)
    content = {"data": data, b"names": [b"a", "b"], "count": 7}
    found = pickles.load(pickle.dumps(content, protocol), PATH)
    assert np.array_equal(found["data"], data)
    assert found["data"].dtype == data.dtype
    assert found["names"] == [b"a", "b"]
    assert found["count"] == 7


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_call_is_refused_and_not_made(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    attack = pickle.dumps({"data": _Caller(os.system, f"echo caught > {trace}")}, protocol)
    with pytest.raises(FileError, match=r"refused: it asks for (posix|nt)\.system") as caught:
        pickles.load(attack, PATH)
    assert not trace.exists()
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "value",
    [
        OrderedDict(),
        {1, 2},
        1.5,
        np.float64(1),
        np.zeros(2),
        np.array([None, {}], dtype=object),
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype=[("a", "u1")]),
        _Caller(eval, "1"),
        _Caller(getattr, "a", "upper"),
        _Caller(np.ndarray, (10**12,)),
    ],
)
def test_everything_else_is_refused(value: Any) -> None:
    with pytest.raises(FileError, match=r"refused|damaged"):
        pickles.load(pickle.dumps({"data": value}, 4), PATH)


@pytest.mark.parametrize(
    "content",
    [
        # The name of a function as a value, a function called with an attribute set, a call of what is no function.
        b"\x80\x02}(U\x04datacnumpy\ndtype\nu.",
        b"\x80\x02}(U\x04datacnumpy\ndtype\n}(U\x05_makeK\x01ubu.",
        b"\x80\x02}(U\x04datacnumpy\ndtype\nN}(U\x05_makeK\x01u\x86bu.",
        b"\x80\x02}(U\x04datacnumpy\nndarray\n)Ru.",
        b"\x80\x02}(U\x04datacnumpy\nndarray\n)\x81u.",
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n)Ru.",
        b"\x80\x02}(U\x04datacnumpy\ndtype.__class__\nu.",
        # Sizes and indices that are not there.
        b"\x80\x02}(U\x04data\x8e" + b"\xff" * 4 + bytes(4) + b"abcu.",
        b"\x80\x05}(U\x04data\x96" + b"\xff" * 5 + bytes(3) + b"abcu.",
        b"\x80\x02}r\xff\xff\xff\xff(U\x04dataju.",
        b"\x80\x02](.",
        b"\x80\x02K\x01.",
        b"\x80\x02}(K\x01K\x02u.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"",
    ],
)
def test_crafted_programs_are_refused(content: bytes) -> None:
    with pytest.raises(FileError, match=r"refused|damaged"):
        pickles.load(content, PATH)
    # Nothing was left behind that would change the next reading.
    assert pickles.load(pickle.dumps({"data": np.zeros(2, np.uint8)}), PATH)["data"].shape == (2,)


@pytest.mark.parametrize("claimed", [(3,), (10**9,), (-2,), ("2",), 2])
def test_an_array_that_lies_about_its_size_is_refused(claimed: Any) -> None:
    array = _Caller(_frombuffer(), b"ab", np.dtype("u1"), claimed, "C")
    with pytest.raises(FileError, match=r"refused|damaged"):
        pickles.load(pickle.dumps({"data": array}, 4), PATH)


def _frombuffer() -> Any:
    """The function that numpy names in pickles of protocol 5."""
    return np.zeros(2, np.uint8).__reduce_ex__(5)[0]


@given(st.binary(max_size=60), st.integers(0, 200))
def test_damage_never_ends_in_another_error(noise: bytes, place: int) -> None:
    content = bytearray(python2_batch(np.zeros((2, 5), np.uint8), [3, 1]))
    content[place : place + len(noise)] = noise
    try:
        found = pickles.load(bytes(content), PATH)
    except FileError as error:
        assert "\n" not in error.message
    else:
        assert isinstance(found, dict)
