"""What experiments have found, as tables (CSV and JSON), figures and one page of HTML."""

from __future__ import annotations

import contextlib
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapa_cli.errors import FileError
from rapa_cli.experiments import similarity, under_attack
from rapa_cli.experiments.catalog import ALL, EXPERIMENTS, Experiment
from rapa_cli.experiments.claims import State, Verdict
from rapa_cli.experiments.jobs import Folder, Job, Results
from rapa_cli.experiments.measures import Measure
from rapa_cli.experiments.settings import Settings
from rapa_cli.files import inside, make_folder, write_text
from rapa_cli.report import attack_figures, figures, layer_figures, reproduction_figures
from rapa_cli.report.page import Block, Cell, Code, Mark, Page, Picture, Section, Table, Tone
from rapa_cli.report.page import write as write_page
from rapa_cli.report.reported import number_or_nan
from rapa_cli.runs import LAST, read_manifest, write_rows

TABLES, FIGURES, PAGE = "tables", "figures", "report.html"
_TONES: dict[State, Tone] = {
    State.HOLDS: "good",
    State.FAILS: "bad",
    State.UNDECIDED: "plain",
    State.NOT_TESTED: "weak",
}
_CHECKPOINTS = (
    "The paper's errors are the lowest of a training, which stand beside the lowest here. Votes, reduced networks and "
    "claims are of the network after the last epoch."
)
# Of the paper's 32 filters its figure shows 10.
_SHOWN_FILTERS = 10


@dataclass(frozen=True)
class Finding:
    """What was found in an experiment.

    Attributes:
        name: of the experiment.
        experiment: itself.
        measures: its figures.
        verdicts: on the paper's claims.
    """

    name: str
    experiment: Experiment
    measures: list[Measure]
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Grid:
    """The measures of one name, a cell for each row and column of the paper's table.

    Attributes:
        title: what is measured.
        columns: names.
        rows: name, and the measure of each column; None where there is no such cell.
    """

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Measure | None]]]

    @property
    def transposed(self) -> Grid:
        """With rows for columns."""
        rows = [(column, [measures[place] for _, measures in self.rows]) for place, column in enumerate(self.columns)]
        return Grid(self.title, [name for name, _ in self.rows], rows)


def findings(experiments: Mapping[str, Experiment], settings: Settings, found: Results) -> list[Finding]:
    """What the jobs that are done say."""
    return [
        Finding(name, experiment, experiment.measures(settings, found), experiment.verdicts(settings, found))
        for name, experiment in experiments.items()
    ]


def grids(measures: list[Measure]) -> list[Grid]:
    """The measures as tables, one for each name."""
    found = []
    for name in dict.fromkeys(measure.name for measure in measures):
        own = [measure for measure in measures if measure.name == name]
        cells = {(measure.row, measure.column): measure for measure in own}
        columns = list(dict.fromkeys(measure.column for measure in own))
        rows = dict.fromkeys(measure.row for measure in own)
        found.append(Grid(name, columns, [(row, [cells.get((row, column)) for column in columns]) for row in rows]))
    return found


def cell(measure: Measure | None) -> str:
    """A measure with its standard error, and the paper's with the difference; empty where nothing was measured."""
    if measure is None:
        return ""
    parts = [measure.note] if measure.note else []
    theirs = "" if measure.paper is None else f"paper {measure.paper:g}"
    if measure.mean is not None:
        parts.append(_numbers(measure.mean, measure.se))
        theirs += "" if measure.difference is None else f", {measure.difference:+.2f}"
    return " ".join([*parts, f"({theirs})"] if theirs else parts)


def _number(value: float | None) -> str:
    return "-" if value is None else _numbers(value, None)


def _numbers(value: float, spread: float | None) -> str:
    """A number and how much it varies, with three digits that say something where it is small."""
    form = ".2f" if abs(value) >= 1 else "#.3g"
    return f"{value:{form}}" + (f" ± {spread:{form}}" if spread is not None else "")


def estimate(verdict: Verdict) -> str:
    """The figure of a claim with its margin, and the threshold."""
    found = verdict.estimate
    if found is None:
        return "-"
    side = "above" if verdict.above else "below"
    text = _numbers(found.value, found.margin) if found.margin else f"{_numbers(found.value, None)} (margin not known)"
    return f"{text}, {side} {verdict.threshold:g}?"


def write(
    folder: Folder,
    found: list[Finding],
    settings: Settings,
    results: Results,
    failed: Mapping[Job, str],
    skipped: Sequence[Job],
) -> list[Path]:
    """Writes tables, figures and the page; gives the paths of the tables and of the page.

    Args:
        folder: of the experiments.
        found: what they have found.
        settings: with which they were run.
        results: of the jobs that are done.
        failed: jobs, with why.
        skipped: jobs that need one of those.

    Raises:
        FileError: one of them cannot be written.
    """
    tables = inside(make_folder(folder.path), TABLES)
    paths = []
    for finding in found:
        rows = [measure.row_of_table() for measure in finding.measures]
        if rows:
            write_rows(tables, finding.name, rows)
            paths.append(tables / f"{finding.name}.csv")
        document = {"experiment": finding.name, "title": finding.experiment.title, "measures": rows}
        document["claims"] = [claim_row(verdict) for verdict in finding.verdicts]
        write_text(tables / f"{finding.name}.json", json.dumps(document, indent=2) + "\n")
        paths.append(tables / f"{finding.name}.json")
    sections = [_claims(found, settings), *(_section(folder, finding, settings, results) for finding in found)]
    if failed:
        rows_failed = [[job.name, why] for job, why in failed.items()]
        rows_failed += [[job.name, "not run: it needs one that failed"] for job in skipped]
        sections.insert(1, Section("Jobs that failed", [Table("Failed", ["job", "why"], rows_failed)]))
    sections.append(_how(folder, [finding.name for finding in found], settings, results))
    page = Page("The paper's experiments, run again", sections, subtitle=_subtitle(settings))
    write_page(folder.path / PAGE, page)
    return [*paths, folder.path / PAGE]


def claim_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON has it."""
    return {
        "experiment": verdict.experiment,
        "claim": verdict.claim,
        "source": verdict.source,
        "figure": verdict.figure,
        "threshold": verdict.threshold,
        "above": verdict.above,
        "estimate": verdict.estimate and verdict.estimate.value,
        "margin": (verdict.estimate and verdict.estimate.margin) or None,
        "verdict": verdict.state.value,
    }


def _subtitle(settings: Settings) -> str:
    epochs = "the recipe's epochs" if settings.epochs is None else f"epochs {settings.epochs}"
    seeds = "one seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    images = "all test images" if settings.images is None else f"{settings.images:,} test images where not all"
    changes = f", {', '.join(settings.changes)}" if settings.changes else ""
    return f"{', '.join(settings.data)}; recipe {settings.recipe}{changes}, {epochs}, {seeds}, {images}"


def _claims(found: list[Finding], settings: Settings) -> Section:
    verdicts = [verdict for finding in found for verdict in finding.verdicts]
    if not verdicts:
        return Section("The paper's claims", ["These experiments check none."])
    rows: list[list[Cell]] = [
        [verdict.claim, Mark(verdict.state.value, _TONES[verdict.state]), estimate(verdict), verdict.figure]
        for verdict in verdicts
    ]
    notes = [
        "A claim holds where its figure's 95 % interval lies on the claim's side of the threshold, and does not where "
        "it lies on the other; else it is undecided. The interval is that over seeds or that of the test images, "
        "whichever is wider; with one seed it is that of the test images alone."
    ]
    counts = ", ".join(
        f"{state.value}: {count}" for state in State if (count := sum(each.state is state for each in verdicts))
    )
    columns = ["claim", "verdict", "found", "figure"]
    blocks: list[Block] = [f"{counts}.", Table("Claims", columns, rows, notes)]
    if settings.scaled_down:
        differences = ", ".join(settings.scaled_down)
        blocks.insert(
            0,
            f"These are not the paper's settings: {differences}. What holds here, or does not, is no test of what the "
            "paper says.",
        )
    return Section("The paper's claims", blocks)


def _section(folder: Folder, finding: Finding, settings: Settings, results: Results) -> Section:
    blocks: list[Block] = [f"{finding.experiment.source} of the paper."]
    blocks += [
        Table(
            grid.title,
            ["", *grid.columns],
            [[row, *(cell(measure) for measure in measures)] for row, measures in grid.rows],
        )
        for grid in grids(finding.measures)
    ]
    if finding.name in ("table1", "table2", "large"):
        blocks.append(_CHECKPOINTS)
    place = inside(folder.path, FIGURES)
    for name, picture in _pictures(folder, finding, settings, results).items():
        figures.write(picture.figure, place, f"{finding.name}{name}")
        blocks.append(picture)
    return Section(finding.experiment.title, blocks)


def _how(folder: Folder, names: list[str], settings: Settings, results: Results) -> Section:
    """How to repeat it, and with what it was made."""
    words = [ALL] if len(names) == len(EXPERIMENTS) else names
    blocks: list[Block] = [
        "In the folder of these results this runs what is not done yet; in an empty folder all of it:",
        Code(shlex.join(["rapa", "reproduce", *words, *settings.words, "--out", "."])),
    ]
    runs = [job for job in results if job.trains]
    if runs:
        blocks.append(Table("Made with", ["", "trainings"], _made_with(folder, runs)))
        blocks.append(
            Table("Trainings", ["run folder", "words after rapa"], [[r.run, shlex.join(r.words)] for r in runs])
        )
    return Section("How to repeat this", blocks)


def _made_with(folder: Folder, runs: list[Job]) -> list[list[Cell]]:
    """Versions, machines and days of trainings, of all that differ."""
    made: dict[str, dict[str, None]] = {key: {} for key in ("rapa", "torch", "python", "machine", "started")}
    for job in runs:
        with contextlib.suppress(FileError):
            provenance = read_manifest(folder.path / job.run).provenance
            for key, values in made.items():
                if key in provenance:
                    values[provenance[key].partition("T")[0] if key == "started" else provenance[key]] = None
    return [[key, ", ".join(sorted(values))] for key, values in made.items() if values]


def _pictures(folder: Folder, finding: Finding, settings: Settings, results: Results) -> dict[str, Picture]:
    """The figures of an experiment, by what is appended to its name."""
    match finding.name:
        case "figure2":
            return _schemes()
        case "figure3":
            return _similarities(folder, finding, settings, results)
        case "figure4":
            return _attacks(settings, results)
        case "tiles":
            return _tiles(finding)
        case "regularizer":
            return _regularizer(settings, results)
    return {}


def _schemes() -> dict[str, Picture]:
    from rapa_cli.tiling.conv import TiledConv2d

    tiles, side = 4, 12
    panels = []
    for scheme in ("perforated", "random-fixed", "random", "image-overlap", "image-pad", "alternate"):
        layer = TiledConv2d(1, 1, 3, padding=1, tiles=tiles, scheme=scheme)
        tile = layer.assign(1, (side, side))[0].reshape(side, side)
        panels.append(layer_figures.Assigned(scheme, tile, tiles))
    figure = layer_figures.assignments(panels, columns=3)
    text = (
        f"Output pixels of a layer with {tiles} tiles in the colours of the arrays that compute them, scheme by scheme."
    )
    return {"": Picture(figure, "Tiling schemes", text, caption="White: not computed.")}


def _similarities(folder: Folder, finding: Finding, settings: Settings, results: Results) -> dict[str, Picture]:
    from rapa_cli.checkpoint import read

    pictures = {}
    found: dict[str, dict[str, float | None]] = {}
    for measure in finding.measures:
        if measure.row == "random" and measure.mean is not None:
            found.setdefault(measure.column, {})[measure.name.removeprefix("S of ")] = measure.mean
    if found:
        layers = list(dict.fromkeys(layer for by_layer in found.values() for layer in by_layer))
        rows = [[pool, *(_number(by_layer.get(layer)) for layer in layers)] for pool, by_layer in found.items()]
        pictures["-similarity"] = Picture(
            layer_figures.similarities(found),
            "Similarity S of tiles with random tiling",
            " ".join(
                f"{row[0]}: {', '.join(f'{s} in {layer}' for s, layer in zip(row[1:], layers, strict=True))}."
                for row in rows
            ),
            table=Table("Similarity S", ["", *layers], rows),
        )
    for pool, runs in similarity.random_runs(settings).items():
        path = folder.path / runs[0].run / LAST
        if runs[0] not in results or pool not in ("max", "average") or not path.is_file():
            continue
        state = read(path).state
        weight = next(tensor for name, tensor in state.items() if name.endswith("weight") and tensor.dim() == 5)
        channels = [round(number * (weight.shape[1] - 1) / (_SHOWN_FILTERS - 1)) for number in range(_SHOWN_FILTERS)]
        pictures[f"-filters-{pool}"] = Picture(
            layer_figures.filters(weight, channels),
            f"Filters of the first layer, {pool} pooling",
            f"{_SHOWN_FILTERS} filters, a column each, in every tile, a row each.",
        )
    return pictures


def _attacks(settings: Settings, results: Results) -> dict[str, Picture]:
    pictures = {}
    curves: list[attack_figures.Curve] = []
    panels: dict[str, dict[str, list[int]]] = {}
    points: list[list[Cell]] = []
    said: list[str] = []
    sure: list[str] = []
    for name in under_attack.networks(settings):
        attack, look = under_attack.jobs_of(settings, name)[0]
        if attack in results:
            measured = [point for point in results[attack]["points"] if point["accuracy"] is not None]
            intervals = [tuple(map(number_or_nan, point["ci95"])) for point in measured]
            curves.append(
                attack_figures.Curve(
                    name,
                    "FGSM, fresh draw",
                    [number_or_nan(point["snr_db"]) for point in measured],
                    [point["accuracy"] for point in measured],
                    [(low, high) for low, high in intervals],
                )
            )
            points += [
                [
                    name,
                    f"{point['asked']['snr_db']:g}",
                    _number(point["snr_db"]),
                    _number(point["accuracy"]),
                    f"{low:.2f} to {high:.2f}",
                ]
                for point, (low, high) in zip(measured, intervals, strict=True)
            ]
            told = [f"{point['accuracy']:.1f} % at {point['asked']['snr_db']:g} dB" for point in measured]
            said.append(f"{name}: {', '.join(told)}.")
        if look in results:
            for document in results[look]["confidence"]:
                what = "without noise" if document["snr_db"] is None else f"FGSM at {document['snr_db']:g} dB"
                panels.setdefault(what, {})[name] = document["histogram"]
                sure.append(
                    f"{name}, {what}: mean {document['mean']:.1f} %, {document['over_90']:.1f} % of images above 90 %."
                )
    if curves:
        title = f"{settings.data[0]}, seed 0, 95 % bands"
        columns = ["network", "asked (dB)", "SNR (dB)", "accuracy (%)", "95 % interval"]
        pictures[""] = Picture(
            attack_figures.accuracy_against_snr(curves, title, space="raw pixels", over="images right without noise"),
            "Accuracy under FGSM",
            " ".join(said),
            caption="Of the trainings with seed 0; the tables above are of all seeds." if settings.seeds > 1 else "",
            table=Table(f"Accuracy under FGSM: {title}", columns, points),
        )
    if panels:
        pictures["-confidence"] = Picture(
            reproduction_figures.confidences(panels),
            "How sure the networks are",
            f"Distribution of the highest probability. {' '.join(sure)}",
            table=_bins(panels),
            wide=True,
        )
    return pictures


def _bins(panels: Mapping[str, Mapping[str, list[int]]]) -> Table:
    """Images in each bin of the highest probability, a column for each network and what was done to the images."""
    columns = {f"{name}, {what}": counts for what, networks in panels.items() for name, counts in networks.items()}
    bins = max(map(len, columns.values()))
    rows: list[list[Cell]] = [
        [
            f"{100 * number / bins:g} to {100 * (number + 1) / bins:g}",
            *(
                _number(100 * counts[number] / max(sum(counts), 1)) if number < len(counts) else ""
                for counts in columns.values()
            ),
        ]
        for number in range(bins)
    ]
    return Table("Share of images (%)", ["highest probability (%)", *columns], rows)


def _tiles(finding: Finding) -> dict[str, Picture]:
    panels: dict[str, dict[int, tuple[float, float | None]]] = {}
    for measure in finding.measures:
        if measure.mean is not None:
            first = int(measure.row.strip("()").split(",")[0])
            panels.setdefault(f"{measure.column}: {measure.name}", {})[first] = (measure.mean, measure.se)
    measured = {name: points for name, points in panels.items() if len(points) > 1}
    if len(measured) < 2:
        return {}
    said, rows = [], []
    for name, points in measured.items():
        first, last = min(points), max(points)
        ends = (f"{_number(points[count][0])} with {count} tiles" for count in (first, last))
        said.append(f"{name}: {' and '.join(ends)}.")
        rows += [[name, f"{count}", _numbers(*points[count])] for count in sorted(points)]
    table = Table("Against the tiles of the first layer", ["", "tiles", "mean"], rows)
    figure = reproduction_figures.against_tiles(measured)
    return {"": Picture(figure, "From few tiles to many", " ".join(said), table=table, wide=True)}


def _regularizer(settings: Settings, results: Results) -> dict[str, Picture]:
    from rapa_cli.experiments.theory import jobs
    from rapa_cli.report.regularizer_figure import regularizer_against_tiles

    document = results.get(jobs(settings)[0])
    if document is None:
        return {}
    title = f"{document['data']}: {' or '.join(document['classes'])}, {document['images']} training images"
    figure = regularizer_against_tiles(document["rows"], title)
    keys = [key for key, values in document["rows"][0].items() if isinstance(values, list) and key != "seed"]
    means = [
        [row["training"], f"{row['tiles']}", *(_number(statistics.fmean(row[key])) for key in keys)]
        for row in document["rows"]
    ]
    said = []
    for training in dict.fromkeys(row["training"] for row in document["rows"]):
        several = [row for row in document["rows"] if row["training"] == training and row["tiles"] > 1]
        ends = (f"{_number(statistics.fmean(row['regularizer']))} with {row['tiles']} tiles" for row in several)
        if several:
            said.append(f"R, {training}: {', '.join(ends)}.")
    table = Table("Means over seeds", ["", "tiles", *(key.replace("_", " ") for key in keys)], means)
    return {"": Picture(figure, "Logistic regressions with ever more tiles", " ".join(said), table=table, wide=True)}
