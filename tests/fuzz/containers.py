"""Lies that only someone tells who knows the format: in tensors' headers, numpy's, archives, MATLAB files, pictures."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from functools import cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz import text

CANARY = "canary"
"""The file that hostile content tries to make, in the working folder."""

Head = dict[str, Any]


class Caller:
    """Something that calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


# Tensors


def opened(content: bytes) -> tuple[Head, bytes]:
    """Header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    head: Head = json.loads(content[8 : 8 + length])
    return head, content[8 + length :]


def closed(head: Head | str, tensors: bytes, length: int | None = None) -> bytes:
    """A safetensors file, on request with another length of its header."""
    written = (head if isinstance(head, str) else text.dumped(head)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(written) if length is None else length) + written + tensors


_DTYPES = (
    *("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F4", "F6_E2M3", "F6_E3M2", "I16", "U16"),
    *("F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64", "C128", "f32", "O", "", "F32\0"),
)
_SHAPES: tuple[Any, ...] = (
    *(
        [],
        [0],
        [-1],
        [1],
        [2**63],
        [2**32, 2**32],
        [2**62, 4],
        [0, 2**63],
        [1] * 65,
        [1] * 1000,
        [1.5],
        ["3"],
        None,
        [None],
    ),
    *({}, [True], [[1]], [10**30]),
)
_LENGTHS = (0, 1, 2, 7, 8, 9, 2**31, 2**32, 100_000_000, 100_000_001, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def tensor_lie(rng: Random, content: bytes) -> bytes:
    """A safetensors file whose header says what is not so."""
    head, tensors = opened(content)
    names = [name for name in head if name != "__metadata__"]
    name = rng.choice(names)
    entry = head[name]
    start, stop = entry["data_offsets"]
    way = rng.randrange(17)
    if way == 0:
        return closed(head, tensors, rng.choice((*_LENGTHS, len(content) - 8, len(content) - 7, len(content))))
    if way == 1:
        entry["dtype"] = rng.choice((*_DTYPES, *_DTYPES, None, 3))
    elif way == 2:
        entry["shape"] = rng.choice(_SHAPES)
    elif way == 3:
        # All agree with one another, but not with what the program writes.
        entry["dtype"], entry["shape"] = "U8", rng.choice(([stop - start], [1, stop - start], [stop - start, 1, 1]))
    elif way == 4:
        entry["data_offsets"] = rng.choice(
            (
                [stop, start],
                [start, stop + 8],
                [start + 8, stop + 8],
                [0, len(tensors)],
                [2**63, 2**64 - 1],
                [-8, stop],
                [start],
            )
        )
    elif way == 5:
        other = head[rng.choice(names)]
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif way == 6:
        head[rng.choice(("../../outside/evil", "__class__", "\x1b[2J", "\n", "x" * 5000, "", "optimizer/"))] = head.pop(
            name
        )
    elif way == 7:
        size = rng.choice((100, 60_000))
        head |= {f"empty{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(size)}
    elif way == 8:
        pairs = text.Pairs([*head.items(), (name, entry)])
        return closed(text.dumped(pairs), tensors)
    elif way == 9:
        head["__metadata__"] = rng.choice(
            ({}, {"rapa": ""}, {"rapa": 3}, {"rapa": None}, [], None, "rapa", {"rapa": "{}"})
        )
    elif way == 10:
        return closed("[" * rng.choice((100, 100_000)), tensors)
    elif way == 11:
        return closed(rng.choice(("", " ", "{", "{}", "null", "[]", "\ud800", '{"__metadata__": {}}')), tensors)
    elif way == 12:
        filled = bytearray(tensors)
        value = rng.choice((struct.pack("<f", np.nan), struct.pack("<f", np.inf), b"\xff" * 4, b"\x80" * 4, bytes(4)))
        filled[start:stop] = (value * (stop - start))[: stop - start]
        return closed(head, bytes(filled))
    elif way == 13:
        entry["extra"] = text.Raw(text.nested(rng.choice((10, 5000))))
    elif way == 14:
        return closed(head, tensors + bytes(rng.choice((1, 8, 100_000))))
    elif way == 15:
        del head[name]
    else:
        document = json.loads(head["__metadata__"]["rapa"])
        head["__metadata__"]["rapa"] = text.lie(rng, document)
        return closed(json.dumps(head), tensors)
    return closed(head, tensors)


def described(content: bytes, change: Any) -> bytes:
    """A safetensors file with another description: `change` takes and may give back the document."""
    head, tensors = opened(content)
    document = json.loads(head["__metadata__"]["rapa"])
    document = change(document) or document
    head["__metadata__"]["rapa"] = document if isinstance(document, str) else text.dumped(document)
    return closed(json.dumps(head), tensors)


def unsigned(content: bytes) -> bytes:
    """A checkpoint without its digest, which would tell every lie about it: earlier versions wrote none."""
    return described(content, lambda document: {key: value for key, value in document.items() if key != "sha256"})


# Arrays


def array(
    header: str | bytes, data: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    """A file of numpy's with any header."""
    written = header if isinstance(header, bytes) else header.encode("latin1")
    size = len(written) if length is None else length
    return b"\x93NUMPY" + bytes(version) + size.to_bytes(2 if version[0] < 2 else 4, "little") + written + data


def _described(descr: str, shape: str, order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


_DESCRS = (
    *(
        "'|u1'",
        "'|O'",
        "'|V0'",
        "'<U0'",
        "'<f8'",
        "'>u2'",
        "'<M8[s]'",
        "'|b1'",
        "'<c16'",
        "'|S3'",
        "'x'",
        "''",
        "None",
        "3",
    ),
    *("('|u1', (1000000000,))", "[('a', '|u1')]", "[('a', '|O')]", "[]", "()", "[()]", "('|u1', (2,), 3)", "{}", "[1]"),
    *("[('a', '|u1'), ('a', '|u1')]", "'|u1' * 3", "__import__('os').system('touch canary')", "'u1,' * 100", "'\\x00'"),
)
_ARRAY_SHAPES: tuple[Any, ...] = (
    *(
        "(4, 6, 5, 3)",
        "(-1,)",
        "(-4, -90)",
        "(0,)",
        "()",
        "(99999999999, 32, 32)",
        "(2**3,)",
        "(1.0, 2)",
        "('4',)",
        "None",
    ),
    *("(4, 6, 5, True)", "[4]", "4", "(" + "1," * 70 + ")", "(" + "9" * 4200 + ",)", "(" * 900 + "4" + ",)" * 900),
    *(
        "(4, 6, 5, 3" + " " * 60_000 + ")",
        "(18446744073709551616,)",
        "(4611686018427387904, 4)",
        "(" + "-" * 5000 + "4,)",
    ),
)


@cache
def zeros(size: int) -> bytes:
    """A member of an archive that is nothing but black images."""
    return array(_described("'|u1'", f"({size // 1024}, 32, 32)"), bytes(size // 1024 * 1024))


@cache
def _bomb(size: int, method: int) -> bytes:
    return _zipped({"images.npy": zeros(size), "labels.npy": _labels(size // 1024)}, method)


def _labels(count: int) -> bytes:
    return array(_described("'<i8'", f"({count},)"), bytes(8 * count))


def _zipped(
    members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, extra: tuple[str, bytes] | None = None
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if extra is not None:
            archive.writestr(*extra)
    return file.getvalue()


def arrays_lie(rng: Random, content: bytes) -> bytes:
    """An npz file that is a bomb, a program, or not what its headers say."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    member = rng.choice(list(members))
    data = members[member][-360:]
    way = rng.randrange(14)
    if way <= 3:
        header = _described(rng.choice(_DESCRS), rng.choice(_ARRAY_SHAPES), rng.choice(("False", "True", "3")))
        members[member] = array(header, rng.choice((data, b"", bytes(10_000))))
    elif way == 4:
        header = rng.choice(
            ("", "{", "{}", "(" * 5000, "[" * 9000, "{'descr': '|u1'}", "1" * 9000, "\xff" * 50, "lambda: 3")
        )
        version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (0, 0), (255, 255)))
        members[member] = array(header, data, version, rng.choice((None, 0, 65_535)))
    elif way == 5:
        members[member] = array(b"", b"", (2, 0), rng.choice((2**31, 2**32 - 1)))
    elif way == 6:
        return _bomb(rng.choice((2**22, 48 * 2**20, 80 * 2**20, 400 * 2**20)), zipfile.ZIP_DEFLATED)
    elif way == 7:
        return _zipped(members, rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED)))
    elif way == 8:
        file = io.BytesIO()
        program = Caller(eval, f"__import__('os').system('touch {CANARY}')")
        np.savez(file, images=np.array([program], dtype=object), labels=np.zeros(1, int))
        return file.getvalue()
    elif way == 9:
        extra = rng.choice(("../../outside/images.npy", "/tmp/images.npy", "images.npy/", "images", "\x1b[2J.npy"))
        return _zipped(members, extra=(extra, members[member]))
    elif way == 10:
        # The directory at the end tells another story than the members do.
        changed = bytearray(_zipped(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))))
        place = changed.rindex(b"PK\x01\x02") + rng.choice((8, 10, 16, 20, 24, 28, 30, 32, 38, 42))
        changed[place : place + 2] = rng.choice(
            (b"\x01\x00", b"\xff\xff", b"\x00\x00", b"\x0e\x00", b"\x0c\x00", b"\x63\x00")
        )
        return bytes(changed)
    elif way == 11:
        changed = bytearray(_zipped(members))
        place = changed.rindex(b"PK\x05\x06") + rng.choice((4, 8, 10, 12, 16, 20))
        changed[place : place + 2] = rng.choice((b"\xff\xff", b"\x00\x00", b"\xff\x7f", b"\x01\x00"))
        return bytes(changed)
    elif way == 12:
        # A member packed in a way whose own damage raises errors of its own.
        packed = rng.choice((lzma.compress(b"x" * 500), bz2.compress(b"x" * 500), b"\x09\x04\x05\x00]" + b"\xff" * 60))
        stored = bytearray(_zipped({member: packed}, zipfile.ZIP_STORED))
        method = rng.choice((12, 14, 8, 93, 99)).to_bytes(2, "little")
        for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            place = stored.rindex(mark) + offset
            stored[place : place + 2] = method
        return bytes(stored)
    else:
        with np.errstate(all="ignore"):
            labels = rng.choice(
                (
                    np.array([0, 1, 2, 65_535]),
                    np.array([0, 1, 2, 65_536]),
                    np.array([0, 1, 2, -1]),
                    np.array([0, 1, 2, 2**63], dtype=np.uint64),
                    np.array([0.0, np.nan, 1, 2]),
                    np.array([[0, 1, 2, 3]]),
                    np.array(3),
                    np.array([True, False, True, True]),
                )
            )
        file = io.BytesIO()
        np.save(file, labels)
        members["labels.npy"] = file.getvalue()
    return _zipped(members)


# Archives


def _member(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def _filled(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


@cache
def _gzipped_zeros(size: int) -> bytes:
    return gzip.compress(bytes(size), 6, mtime=0)


@cache
def _bomb_member(name: str, kind: bytes, size: int) -> bytes:
    """An archive with a member that unpacks to so much; gzip streams may follow one another."""
    return gzip.compress(_member(name, size, kind), mtime=0) + _gzipped_zeros(size)


def archive_lie(rng: Random, content: bytes) -> bytes:
    """A packed archive that is a bomb, or whose members are not what they seem."""
    tar = gzip.decompress(content)
    folder = "cifar-10-batches-py"
    way = rng.randrange(11)
    if way == 0:
        return _bomb_member(
            rng.choice(("filler", f"{folder}/data_batch_1")), tarfile.REGTYPE, rng.choice((2**24, 2**29))
        )
    if way == 1:
        kind = rng.choice((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK))
        return _bomb_member("header", kind, rng.choice((2**24, 2**29)))
    if way == 2:
        return gzip.compress(_member("empty", 0) * rng.choice((1000, 200_000)) + tar, 1, mtime=0)
    if way == 3:
        records = rng.choice(
            (b"9" * 60_000, b"30 hdrcharset=BINARY\n" + b"1" * 60_000, b"0 a=b\n", b"99 path=../../x\n")
        )
        return gzip.compress(_member("header", len(records), tarfile.XHDTYPE) + _filled(records) + tar, mtime=0)
    if way == 4:
        kind = rng.choice(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"?")
        )
        link = rng.choice(("/etc/passwd", "../../outside/evil", f"{folder}/data_batch_2"))
        return gzip.compress(_member(f"{folder}/data_batch_1", 0, kind, link) + tar, mtime=0)
    if way == 5:
        name = rng.choice(
            (f"../../outside/{folder}/data_batch_1", f"/tmp/{folder}/data_batch_1", f"{folder}/\x1b[2J", "\n")
        )
        return gzip.compress(_member(name, 4) + _filled(b"evil") + tar, mtime=0)
    if way == 6:
        program = pickle.dumps(Caller(eval, f"__import__('os').system('touch {CANARY}')"), rng.randrange(6))
        return gzip.compress(_member(f"{folder}/data_batch_1", len(program)) + _filled(program) + tar, mtime=0)
    if way == 7:
        changed = bytearray(tar)
        place = 512 * rng.randrange(min(8, len(tar) // 512)) + rng.choice((124, 148, 156, 257, 345))
        size = rng.choice(
            (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0", b"-1         \0", b"            ", b"9" * 12)
        )
        changed[place : place + len(size)] = size
        return gzip.compress(bytes(changed), mtime=0)
    if way == 8:
        return content + rng.choice((_gzipped_zeros(2**28), b"garbage", content, b"\x1f\x8b\x08\xff" + bytes(20)))
    if way == 9:
        return rng.choice((tar, gzip.compress(b""), gzip.compress(bytes(10_240)), bz2.compress(tar), b"\x1f\x8b"))
    changed = bytearray(gzip.compress(tar, mtime=0))
    changed[3] = rng.choice((1, 2, 4, 8, 16, 31, 255))
    return bytes(changed)


# MATLAB files


def _element(kind: int, content: bytes, size: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(content) if size is None else size) + content + bytes(-len(content) % 8)


def _matrix(
    name: str, shape: tuple[int, ...], content: bytes, *, of: int = 9, data_kind: int = 2, flags: int = 0
) -> bytes:
    return _element(
        14,
        _element(6, struct.pack("<II", of | flags, 0))
        + _element(5, b"".join(struct.pack("<i", size) for size in shape))
        + _element(1, name.encode())
        + (_element(data_kind, content) if data_kind else content),
    )


def _mat(*elements: bytes, version: int = 0x0100) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", version) + b"IM" + b"".join(elements)


def _packed(element: bytes) -> bytes:
    packed = zlib.compress(element)
    return struct.pack("<II", 15, len(packed)) + packed


@cache
def _black_digits(count: int) -> bytes:
    images = _matrix("X", (32, 32, 3, count), bytes(3072 * count))
    return _mat(_packed(images), _packed(_matrix("y", (count, 1), b"\x01" * count)))


@cache
def _cells(depth: int, name: str) -> bytes:
    """A cell in a cell, so often; built from the inside, with lengths that wrap where they must."""
    inner = _matrix("", (1, 1), b"\x01")
    parts = [inner]
    size = len(inner)
    for level in range(depth):
        title = name if level == depth - 1 else ""
        shape = (32, 32, 3, 1) if level == depth - 1 else (1, 1)
        head = _matrix(title, shape, b"", of=1, data_kind=0)[8:]
        parts.append(struct.pack("<II", 14, len(head) + size) + head)
        size += len(head) + 8
    return b"".join(reversed(parts))


def matlab_lie(rng: Random, content: bytes) -> bytes:
    """A MATLAB file with other variables, shapes or lengths."""
    good = _matrix("X", (32, 32, 3, 5), bytes(3072 * 5))
    labels = _matrix("y", (5, 1), b"\x01\x02\x03\x04\x0a")
    way = rng.randrange(12)
    if way == 0:
        shape = rng.choice(
            ((32, 32, 3, 2**31 - 1), (-1, 32, 3, 5), (10**6, 10**6, 3, 1), (32,), (), (0, 0, 0, 0), (1,) * 60)
        )
        return _mat(_matrix("X", shape, bytes(15_360)), labels)
    if way == 1:
        return _black_digits(rng.choice((1000, 30_000, 180_000)))
    if way == 2:
        name = rng.choice(("X", "y", "Z"))
        return _mat(_cells(rng.choice((3, 900, 30_000)), name), good, labels)
    if way == 3:
        return _mat(good, good if rng.randrange(2) else _matrix("X", (32, 32, 3, 5), b"x" * 15_360), labels)
    if way == 4:
        of = rng.choice((1, 2, 3, 4, 5, 6, 7, 12, 14, 15, 16, 17, 18, 255))
        return _mat(_matrix("X", (32, 32, 3, 5), bytes(15_360), of=of), labels)
    if way == 5:
        kind = rng.choice((1, 3, 5, 6, 7, 9, 12, 14, 15, 16, 17, 18, 99, 2**31))
        return _mat(_matrix("X", (32, 32, 3, 5), bytes(15_360), data_kind=kind), labels)
    if way == 6:
        size = rng.choice((0, 8, 2**31 - 1, 2**31, 2**32 - 1))
        return _mat(struct.pack("<II", rng.choice((14, 15)), size) + good[8:], labels)
    if way == 7:
        # The length of the pixels alone is a lie.
        changed = bytearray(_mat(good, labels))
        place = changed.index(struct.pack("<II", 2, 15_360)) + 4
        changed[place : place + 4] = struct.pack("<I", rng.choice((0, 8, 2**31 - 1, 2**31, 2**32 - 1, 10**9)))
        return bytes(changed)
    if way == 8:
        return _mat(good, labels, version=rng.choice((0, 1, 0x0200, 0xFFFF)))
    if way == 9:
        changed = bytearray(_mat(_packed(good), _packed(labels)))
        place = rng.randrange(128, len(changed))
        changed[place] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if way == 10:
        return _mat(_packed(_packed(good)), _packed(labels))
    flags = rng.choice((0x0800, 0x0400, 0x0200, 0xF000))
    return _mat(_matrix("X", (32, 32, 3, 5), bytes(15_360), flags=flags), labels)


# Pictures


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, packed: bytes, *, depth: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


@cache
def black_picture(side: int) -> bytes:
    """A large black picture in a small file."""
    return _png(side, side, zlib.compress(bytes((3 * side + 1) * side)))


_POSTSCRIPT = f"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 5 4
%%EndComments
(%pipe%touch {CANARY}) (w) file
(outside/evil) (w) file
showpage
%%EOF
""".encode()


def picture_lie(rng: Random, content: bytes) -> bytes:
    """A file that ends in .png and is something else, or unpacks to far more than it should."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    way = rng.randrange(11)
    if way == 0:
        return rng.choice(
            (_POSTSCRIPT, _POSTSCRIPT.replace(b"\n", b"\r"), b"\xc5\xd0\xd3\xc6" + bytes(26) + _POSTSCRIPT)
        )
    if way == 1:
        sides = ((2**31 - 1, 2**31 - 1), (100_000, 100_000), (2**31, 1), (0, 4), (5, 0), (8000, 8000), (1, 10**7))
        return _png(*rng.choice(sides), zlib.compress(bytes(1000)))
    if way == 2:
        return black_picture(rng.choice((1000, 6000, 9000)))
    if way == 3:
        text_bomb = rng.choice((b"zTXt", b"iCCP")), b"a\0\0" + zlib.compress(bytes(2**26))
        return _png(5, 4, zlib.compress(bytes(64)), more=_chunk(*text_bomb))
    if way == 4:
        return _png(5, 4, zlib.compress(bytes(2**26)))
    if way == 5:
        return _png(
            5, 4, zlib.compress(bytes(200)), depth=rng.choice((1, 3, 16, 99)), colour=rng.choice((0, 3, 4, 6, 9))
        )
    if way == 6:
        names = (
            "BMP",
            "GIF",
            "ICO",
            "TGA",
            "PCX",
            "SGI",
            "DDS",
            "TIFF",
            "WEBP",
            "PPM",
            "IM",
            "JPEG2000",
            "MPO",
            "PDF",
            "AVIF",
        )
        file = io.BytesIO()
        try:
            picture.save(file, format=rng.choice(names))
        except (KeyError, OSError, ValueError):
            return b""
        return file.getvalue()
    if way == 7:
        file = io.BytesIO()
        picture.save(file, format="GIF", save_all=True, append_images=[picture.rotate(90, expand=False)] * 50)
        return file.getvalue()
    if way == 8:
        # Directories of TIFF that point at themselves, beyond the end, or at far too many pixels.
        entries = [
            (256, 4, 1, 5),
            (257, 4, 1, 4),
            (258, 3, 1, 8),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (273, 4, 1, 8),
            (279, 4, 1, 20),
        ]
        tag, kind, count, _ = entries.pop(rng.randrange(len(entries)))
        entries.append(
            (
                tag,
                rng.choice((kind, 0, 2, 5, 12, 16, 99)),
                rng.choice((count, 0, 2**31, 2**32 - 1)),
                rng.choice((0, 2**31, 2**32 - 1)),
            )
        )
        table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
        after = rng.choice((0, 8, 2**32 - 1))
        return (
            b"II*\0\x08\0\0\0"
            + struct.pack("<H", rng.choice((len(entries), 65_535)))
            + table
            + struct.pack("<I", after)
        )
    if way == 9:
        size = rng.choice(
            (b"5 4", b"-5 4", b"99999999 99999999", b"5 99999999999999999999", b"5", b"0x5 4", b"9" * 5000 + b" 4")
        )
        return (
            rng.choice((b"P6\n", b"P5\n", b"P3\n", b"P1\n", b"Pf\n"))
            + size
            + rng.choice((b"\n255\n", b"\n0\n", b"\n70000\n"))
            + bytes(60)
        )
    return rng.choice(
        (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM" + bytes(60), b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(40))
    )
