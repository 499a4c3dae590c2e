"""Which of how many processes this is: light enough for what starts before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping


def world(environment: Mapping[str, str]) -> tuple[int, int]:
    """The number of this process, and how many there are, by the variables that torchrun sets; 0 of 1 without them."""
    rank, size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    return (int(rank), int(size)) if rank.isdecimal() and size.isdecimal() and int(size) > 1 else (0, 1)
