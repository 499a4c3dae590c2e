"""What happens to bytes on disks and in transit, without regard to what they mean."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_NUMBERS = (b"-1", b"0", b"9" * 30, b"1e999", b"NaN", b"nan", b"-inf", b"1.5", b"true", b"null", b'"7"', b"1" * 5000)


def _flip(rng: Random, content: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _cut(rng: Random, content: bytearray) -> None:
    del content[rng.choice((rng.randrange(len(content)), len(content) - 1 - rng.randrange(min(16, len(content))))) :]


def _grow(rng: Random, content: bytearray) -> None:
    content += rng.choice((b"\0", b"\n", rng.randbytes(7), bytes(4096), bytes(content)))


def _set_length(rng: Random, content: bytearray) -> None:
    """Writes an extreme number over some bytes, mostly near the beginning, where lengths stand."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    start = rng.randrange(min(len(content), rng.choice((16, 200, len(content)))))
    value = rng.choice((*_EXTREMES, len(content), rng.getrandbits(64))) & (2 ** (8 * size) - 1)
    content[start : start + size] = value.to_bytes(size, order)


def _remove(rng: Random, content: bytearray) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice((1, 4, 64, 512))]


def _repeat(rng: Random, content: bytearray) -> None:
    start, size = rng.randrange(len(content)), rng.choice((1, 8, 64, 512))
    content[start:start] = content[start : start + size] * rng.choice((1, 1, 100))


def _insert(rng: Random, content: bytearray) -> None:
    start = rng.randrange(len(content) + 1)
    content[start:start] = rng.choice((rng.randbytes(3), b"\0", b"\n", b"\xff\xfe", b'"', b"\x1b[2J", b"[" * 50))


def _blank(rng: Random, content: bytearray) -> None:
    start, size = rng.randrange(len(content)), rng.choice((1, 16, 512, 4096))
    size = min(size, len(content) - start)
    content[start : start + size] = rng.choice((b"\0", b"\xff")) * size


def _move(rng: Random, content: bytearray) -> None:
    size = rng.choice((1, 16, 512))
    first, second = rng.randrange(len(content)), rng.randrange(len(content))
    content[first : first + size], content[second : second + size] = (
        content[second : second + size],
        content[first : first + size],
    )


def _change_number(rng: Random, content: bytearray) -> None:
    """Another number where one is written in digits."""
    places = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if places:
        start = stop = rng.choice(places)
        while stop < len(content) and 48 <= content[stop] <= 57:
            stop += 1
        content[start:stop] = rng.choice((*_NUMBERS, str(rng.getrandbits(rng.choice((3, 8, 40)))).encode()))


_WAYS: tuple[Callable[[Random, bytearray], None], ...] = (
    _flip,
    _flip,
    _flip,
    _cut,
    _grow,
    _set_length,
    _set_length,
    _remove,
    _repeat,
    _insert,
    _blank,
    _move,
    _change_number,
)


def damaged(rng: Random, content: bytes) -> bytes:
    """The bytes after one accident, seldom several."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if changed:
            rng.choice(_WAYS)(rng, changed)
    return bytes(changed)
