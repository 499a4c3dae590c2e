"""The report on runs: one page with what they are, how they learned, what was measured, and how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from rapa_cli import config
from rapa_cli.report.layer_sections import analog_time, assignments, filters
from rapa_cli.report.page import Block, Code, Page, Section, Table
from rapa_cli.report.reported import NONE, Named, Run, names_of, plain_value
from rapa_cli.report.result_sections import attacks, errors, summary, training

# What of a run's provenance stands among the commands.
_IN_COMMANDS = {"command", "resumed"}


def page(found: Sequence[Run], commands: Sequence[str] = ()) -> Page:
    """The page on runs.

    Args:
        found: in the order they are shown.
        commands: what makes this page again, as it is typed.
    """
    names = names_of(found)
    named = list(zip(names, found, strict=True))
    networks = ", ".join(dict.fromkeys(run.definition.name for run in found))
    data = ", ".join(dict.fromkeys(run.manifest.data for run in found))
    title = f"{networks} on {data}: {names[0]}" if len(found) == 1 else f"{len(found)} runs of {networks} on {data}"
    sections = [
        summary(named),
        training(named),
        errors(named),
        attacks(named),
        assignments(named),
        filters(named),
        analog_time(named),
        _recipe(named),
        _repeat(named, commands),
    ]
    folders = ", ".join(str(run.folder) for run in found)
    version = found[0].measured.settings.rapa if found[0].measured else None
    made = f"Figures measured by rapa {version}." if version else ""
    return Page(title, sections, f"rapa report of {folders}", made)


def _recipe(named: Named) -> Section:
    recipes = [run.manifest.recipe.model_dump() for _, run in named]
    keys = [key for key in recipes[0] if key != "description"]
    columns = ["setting", *(name for name, _ in named)]
    plan = [[key.replace("_", " "), *(plain_value(recipe[key]) for recipe in recipes)] for key in keys]
    plan.append(["seed", *(str(run.manifest.seed) for _, run in named)])
    blocks: list[Block] = [Table("Recipe", columns, plan)]
    definitions: dict[str, config.Network] = {}
    for _, run in named:
        definitions.setdefault(
            run.definition.model_dump_json(exclude={"scheme", "tiles", "pool", "arrays"}), run.definition
        )
    blocks += [
        Table(
            f"Layers of {definition.name}",
            ["layer", "kind", "settings"],
            [[str(place), layer.kind, ", ".join(_settings(layer))] for place, layer in enumerate(definition.layers, 1)],
            [f"Before them: {definition.normalization} normalisation. Pooling without a method is the network's."],
        )
        for definition in definitions.values()
        if definition.module is None
    ]
    blocks += [
        f"{definition.name} is written in Python, in {_source(definition.module)}. Before it: "
        f"{definition.normalization} normalisation."
        for definition in definitions.values()
        if definition.module is not None
    ]
    blocks += [
        Code(f"arrays of {name}\n" + "\n".join(_lines(run.definition.arrays)))
        for name, run in named
        if isinstance(run.definition.arrays, dict)
    ]
    return Section("Recipe", blocks)


def _source(module: config.Module) -> str:
    return "torchvision" if module.file is None else f"{module.file} with the SHA-256 {module.sha256}"


def _repeat(named: Named, commands: Sequence[str]) -> Section:
    lines = []
    for name, run in named:
        given = run.manifest.provenance
        lines += [f"# {name}", *([given["command"]] if "command" in given else [])]
        lines += [f"# resumed: {entry}" for entry in given.get("resumed", "").split("; ") if entry]
        if run.measured:
            settings = run.measured.settings
            more = ["--best"] if run.chosen else []
            some = ["--images", str(settings.images)] if settings.images else []
            for words in (
                ["evaluate", str(run.folder)],
                *([["vote", str(run.folder), "-n", str(settings.votes)]] if run.measured.votes else []),
                *([["reduce", str(run.folder)]] if run.measured.reduced else []),
                *([_attack(run, settings.snr)] if run.measured.attack and not run.recorded else []),
            ):
                lines.append(shlex.join(["rapa", *words, *some, "--seed", str(settings.seed), *more]))
    if commands:
        lines += ["# this page", *commands]
    keys = list(dict.fromkeys(key for _, run in named for key in run.manifest.provenance if key not in _IN_COMMANDS))
    rows = [[key, *(run.manifest.provenance.get(key, NONE) for _, run in named)] for key in keys]
    rows.append(["checkpoint", *(str(run.path) for _, run in named)])
    rows.append(["SHA-256", *(run.sha256 for _, run in named)])
    rows.append(["seed", *(str(run.manifest.seed) for _, run in named)])
    return Section(
        "How to repeat it",
        [
            "Every random choice is a function of the seed and of where it is used: the same command on the same "
            "versions, machine and number of threads gives the same weights, and the same figures.",
            Code("\n".join(lines)),
            Table("Versions and origin", ["what", *(name for name, _ in named)], rows),
        ],
    )


def _attack(run: Run, snr: Sequence[float]) -> list[str]:
    return ["attack", str(run.folder), "--snr", ",".join(f"{value:g}" for value in snr)]


def _settings(layer: config.Layer) -> Iterable[str]:
    for key, value in layer.model_dump(exclude={"kind"}).items():
        if value is not None:
            yield f"{key} {plain_value(value)}"


def _lines(table: dict[str, Any], place: str = "") -> Iterable[str]:
    """A table of arrays, a line for each value."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{place}{key}.")
        else:
            yield f"{place}{key} = {value}"
