"""What this process may use of the machine that it runs on."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """How many cores: those of its affinity, and no more than the quota of a container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = control_group("cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return count


def control_group(name: str) -> str:
    """A file of the container's control group, or nothing where there is none."""
    path = Path("/sys/fs/cgroup") / name
    return path.read_text(encoding="ascii").strip() if path.exists() else ""
