"""From what a network's definition says of its arrays to the arrays."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapa_cli import config
from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.effects import without_effect
from rapa_cli.analog.presets import INFERENCE_PRESETS, PRESETS, preset
from rapa_cli.errors import ConfigError

IDEAL = "ideal"
_ALL_PRESETS = "`rapa inspect --presets` lists all"


def arrays_of(specification: str | Mapping[str, Any]) -> Arrays | InferenceArrays | None:
    """The arrays that a definition means.

    Args:
        specification: "ideal", the name of a preset, or a table of parameters; with `preset` in it the others take the
            place of that preset's, table by table.

    Returns:
        None for ideal arrays.

    Raises:
        ConfigError: there is no such preset, or parameters are wrong, or those of the table itself are without effect;
            all are named.
    """
    if isinstance(specification, str):
        if specification == IDEAL:
            return None
        try:
            return preset(specification)
        except ValueError:
            known = {name.lower(): name for name in (IDEAL, *PRESETS, *INFERENCE_PRESETS)}
            near = difflib.get_close_matches(specification.removesuffix("Preset").lower(), known, n=1)
            hint = f"did you mean '{known[near[0]]}'?" if near else _ALL_PRESETS
            raise ConfigError(f"arrays: there is no preset '{specification}'", hint=hint) from None
    table = dict(specification)
    name = table.pop("preset", None)
    base: dict[str, Any] = {}
    only_inference = InferenceArrays.model_fields.keys() - Arrays.model_fields.keys()
    kind: type[Arrays] | type[InferenceArrays] = InferenceArrays if only_inference & table.keys() else Arrays
    if name is not None:
        found = arrays_of(str(name))
        if found is None:
            raise ConfigError("arrays: preset 'ideal' has no parameters", hint=_ALL_PRESETS)
        base, kind = found.model_dump(mode="json"), type(found)
    hint = "see `rapa inspect NAME` for a preset's parameters"
    arrays: Arrays | InferenceArrays = config.validate(kind, _merged(base, table), "arrays", hint=hint)
    idle = without_effect(arrays, table)
    if idle:
        raise ConfigError(f"arrays: {'; '.join(idle)}", hint="leave these out, or set what they depend on")
    return arrays


def named_arrays(name: str) -> str | dict[str, Any]:
    """What `--arrays` means: "ideal", a preset's name, or the table in a TOML file.

    Raises:
        FileError: the file cannot be read.
        ConfigError: it is not TOML.
    """
    return config.read_toml(Path(name)) if name.endswith(".toml") else name


def label(specification: str | Mapping[str, Any]) -> str:
    """A short name, for people."""
    if isinstance(specification, str):
        return specification.removesuffix("Preset")
    return f"{specification['preset']}, changed" if "preset" in specification else "of the user's own"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A table with changes; a device of another kind takes the place of the whole."""
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key)
        same = (
            isinstance(value, Mapping)
            and isinstance(before, Mapping)
            and value.get("kind", before.get("kind")) == before.get("kind")
        )
        merged[key] = _merged(before, value) if same else value  # type: ignore[arg-type]
    return merged
