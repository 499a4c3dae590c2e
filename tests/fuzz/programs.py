"""Pickles that try to run something, to read something, to grow without end, or to end the process."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
from random import Random
from typing import Any

from tests.fuzz.containers import CANARY, Caller

_RUN = f"touch {CANARY}"
_PYTHON = f"open('{CANARY}', 'w')"

# Module and name of what a pickle could ask for, and an argument that leaves a trace when it is called.
_TARGETS = (
    ("os", "system", _RUN),
    ("posix", "system", _RUN),
    ("nt", "system", _RUN),
    ("subprocess", "Popen", _RUN),
    ("builtins", "eval", _PYTHON),
    ("builtins", "exec", _PYTHON),
    ("__builtin__", "eval", _PYTHON),
    ("builtins", "__import__", "antigravity"),
    ("builtins", "open", CANARY),
    ("builtins", "getattr", "x"),
    ("io", "open", CANARY),
    ("pickle", "loads", "cos\nsystem\n(S'touch canary'\ntR."),
    ("numpy", "load", CANARY),
    ("numpy", "fromfile", CANARY),
    ("numpy", "memmap", CANARY),
    ("numpy.core.multiarray", "_reconstruct.__globals__", ""),
    ("numpy", "dtype.__class__", ""),
    ("numpy", "ndarray.tofile", CANARY),
    ("rapa_cli.data.pickles", "_Admitted", ""),
    ("rapa_cli.files", "write_text", CANARY),
    ("importlib", "import_module", "this"),
    ("codecs", "encode", "x"),
    ("_codecs", "decode", "x"),
    ("copyreg", "_reconstructor", ""),
    ("functools", "reduce", ""),
    ("numpy", "ndarray", ""),
    ("numpy", "dtype", "u1"),
    ("_codecs", "encode", "x"),
)


def _string(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return b"X" + struct.pack("<I", len(content)) + content


def _call(rng: Random) -> bytes:
    """A call of one of the targets, by one of the opcodes that can call or import."""
    module, name, argument = rng.choice(_TARGETS)
    plain = f"c{module}\n{name}\n".encode()
    argued = _string(argument)
    ways = (
        plain + argued + b"\x85R",
        _string(module) + _string(name) + b"\x93" + argued + b"\x85R",
        b"(" + argued + f"i{module}\n{name}\n".encode(),
        b"(" + plain + argued + b"o",
        plain + argued + b"\x85\x81",
        plain + argued + b"\x85}\x92",
        plain + b"(" + argued + argued + b"tR",
        plain + b")R" + argued + b"b",
        plain + b"N" + b"}" + argued + argued + b"s\x86b",
        plain,
    )
    return rng.choice(ways)


def _holding(value: bytes) -> bytes:
    """A dictionary with a value under `data`."""
    return b"\x80\x02}" + _string("data") + value + b"s."


def _array_of(shape: bytes) -> bytes:
    """An array of one byte that claims a shape."""
    return b"cnumpy.core.numeric\n_frombuffer\n(U\x01acnumpy\ndtype\nU\x02u1\x85R" + shape + b"U\x01CtR"


def _laughing(value: bytes) -> bytes:
    """A dictionary after forty tables, the last of which is remembered as number 40."""
    levels = b"".join(b"q" + bytes([n]) + b"(" + (b"h" + bytes([n])) * 10 + b"t" for n in range(1, 40))
    return b"\x80\x02(K\x01t" + levels + b"q\x28" + _holding(value)[2:]


def _growing(rng: Random) -> bytes:
    """Small files that are large, deep or endless when they are read."""
    kilobyte = _string("x" * 1000)
    ways = (
        # One text encoded again and again, each time a copy.
        lambda: (
            b"\x80\x02}"
            + _string("data")
            + b"]("
            + _string("x" * 100_000)
            + b"q\x01c_codecs\nencode\nq\x02"
            + (b"h\x02h\x01" + _string("latin1") + b"\x86R") * 20_000
            + b"es."
        ),
        # A table that holds ten times the one before, and so on: as a value, as a shape, as labels.
        lambda: _laughing(b"h\x28"),
        lambda: _laughing(_array_of(b"h\x28")),
        lambda: _laughing(b"](" + b"h\x28" * 10 + b"e"),
        # An array of a shape with a product that never ends.
        lambda: _holding(
            _array_of(b"(\x8b" + struct.pack("<I", 500_000) + b"\x7f" * 500_000 + b"q\x01" + b"h\x01" * 2000 + b"t")
        ),
        # So deep that a hash or a comparison of it would leave the stack.
        lambda: b"\x80\x02}" + b")" + b"\x85" * 400_000 + b"K\x01s.",
        lambda: b"\x80\x04}" + _string("data") + b"\x8f(" + b")" + b"\x85" * 400_000 + b"\x90s.",
        lambda: _holding(b"]" * 300_000 + b"a" * 299_999),
        lambda: _holding(b"N0" * 3_000_000 + b"N"),
        lambda: _holding(b"](" + b"K\x01" * 2_000_000 + b"e"),
        lambda: _holding(b"](" + (kilobyte + b"q\x01" + b"h\x01" * 200_000) + b"e"),
        lambda: _holding(b"I" + b"9" * rng.choice((4000, 5000, 400_000)) + b"\n"),
        lambda: _holding(b"\x8b" + struct.pack("<i", rng.choice((2**31 - 1, -1, 100))) + b"\x7f" * 100),
        lambda: _holding(
            rng.choice((b"\x8e", b"\x96", b"\x8d")) + struct.pack("<Q", rng.choice((2**40, 2**63, 2**64 - 1)))
        ),
        lambda: _holding(b"T" + struct.pack("<i", rng.choice((-1, 2**31 - 1))) + b"abc"),
        lambda: b"\x80\x04\x95" + struct.pack("<Q", rng.choice((0, 1, 2**40, 2**64 - 1))) + _holding(b"N")[2:],
        lambda: b"\x80\x02Nr\xff\xff\xff\xff" + _holding(b"N"),
    )
    return rng.choice(ways)()


def _odd(rng: Random) -> bytes:
    """Pickles that do what theirs never do."""
    return rng.choice(
        (
            b"\x80\x02" + b"\x82\x01.",
            b"\x80\x02" + b"\x83\x01\x01.",
            b"\x80\x02" + b"\x84\x01\x01\x01\x01.",
            b"\x80\x02Pcanary\n.",
            b"\x80\x02" + _string(CANARY) + b"Q.",
            b"\x80\x05\x97.",
            b"\x80\x05N\x98.",
            b"\x80\xff.",
            b"\x80\x02}.",
            b"\x80\x02]}b.",
            b"\x80\x02}}" + _string("__setstate__") + b"K\x01sb.",
            b"\x80\x02(((((.",
            b"\x80\x020000.",
            b"\x80\x022222.",
            b"\x80\x02" + b"t" * 5 + b".",
            _holding(b"cnumpy\nndarray\n" + b"}" + _string("__class__") + b"K\x01sb"),
            _holding(b"cnumpy.core.multiarray\n_reconstruct\n)RNb"),
            _holding(b"cnumpy.core.multiarray\n_reconstruct\n)R(NNNNNtb"),
            _holding(b"cnumpy\ndtype\nU\x01O\x85R"),
            _holding(b"cnumpy\ndtype\nU\x02u1\x85RNb"),
            pickle.dumps({"data": float("nan"), "labels": [float("inf")]}, 2),
            pickle.dumps({"data": memoryview, "labels": type}, 2),
        )
    )


def program(rng: Random, content: bytes) -> bytes:
    """A hostile pickle: alone, or as a part of one that is otherwise in order."""
    way = rng.randrange(8)
    if way <= 3:
        call = _call(rng)
        # In front of what is in order, where nobody would look for it; in its place; or for one of its parts.
        return rng.choice((b"\x80\x02" + call + b"0" + content[2:], b"\x80\x02" + call + b".", _holding(call)))
    if way == 4:
        functions: tuple[Caller, ...] = (
            Caller(os.system, _RUN),
            Caller(subprocess.run, ["touch", CANARY]),
            Caller(eval, _PYTHON),
            Caller(os.putenv, "RAPA", "1"),
            Caller(os.mkdir, CANARY),
        )
        holder: Any = {b"data": rng.choice(functions), b"labels": [0]}
        return pickle.dumps(holder, rng.randrange(6))
    return _odd(rng) if way == 5 else _growing(rng)
