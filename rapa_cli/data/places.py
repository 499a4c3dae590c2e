"""Where data sets lie. Nothing heavy is imported: shells ask for names, too."""

from __future__ import annotations

import os
from pathlib import Path


def data_dir(explicit: Path | None = None) -> Path:
    """The folder of the store: `explicit`, else $RAPA_DATA_DIR, else `rapa` in the user's data folder."""
    if explicit is not None:
        return explicit.expanduser()
    named = os.environ.get("RAPA_DATA_DIR")
    return Path(named).expanduser() if named else users_own()


def users_own() -> Path:
    """The folder of the store in the user's own data folder."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "rapa"
