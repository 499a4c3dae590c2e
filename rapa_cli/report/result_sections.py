"""Sections on what runs reached: errors, learning, votes, reduction, attacks."""

from __future__ import annotations

from collections.abc import Iterable

from rapa_cli.analog.specification import label
from rapa_cli.analysis.analog_time import acceleration
from rapa_cli.analysis.modules import network_costs
from rapa_cli.attacks.levels import SPACES
from rapa_cli.errors import commas
from rapa_cli.layers.network import parameter_count
from rapa_cli.report import run_figures
from rapa_cli.report.attack_figures import HUMAN_DB, Curve, accuracy_against_snr
from rapa_cli.report.measured import AttackCurve, AttackPoint
from rapa_cli.report.page import Beside, Block, Fact, Facts, Picture, Section, Table
from rapa_cli.report.reported import (
    NONE,
    NOT_MEASURED,
    Named,
    Run,
    accuracy,
    fixed,
    interval,
    measured_notes,
    number_or_nan,
    percent,
    with_interval,
)


def summary(named: Named) -> Section:
    """A row for each run; of one run also the numbers that matter in large type."""
    blocks: list[Block] = []
    if len(named) == 1:
        blocks.append(Facts(list(_facts(named[0][1]))))
    rows = []
    for name, run in named:
        last, progress, measured = run.rows[-1] if run.rows else {}, run.progress, run.measured
        at = [point for curve in run.curves[:1] for point in curve.points if point.asked_db == HUMAN_DB]
        rows.append(
            [
                name,
                str(last.get("epoch", 0)),
                percent(last.get("train_error")),
                percent(last.get("test_error")),
                percent(min((row["test_error"] for row in run.rows), default=None)),
                with_interval(measured.single if measured else None),
                with_interval(measured.votes if measured else None),
                with_interval(measured.reduced if measured else None),
                accuracy(at[0]) if at else NONE,
            ]
        )
        if progress.step:
            blocks.append(
                f"{name} was stopped in epoch {progress.epoch + 1} after {progress.step} steps: its weights are later "
                f"than its test error of epoch {progress.epoch}."
            )
        if progress.epoch == 0 and not progress.step:
            blocks.append(f"{name} was not trained for an epoch: its weights are as they were drawn.")
    notes = [
        "Errors in percent. train, test and lowest are those of the training, over all images, one draw for each; the "
        "lowest is chosen on the test set. Intervals are 95 %.",
        *measured_notes(named),
    ]
    votes = " / ".join(dict.fromkeys(str(run.measured.settings.votes) for _, run in named if run.measured))
    columns = [
        "run",
        "epochs",
        "train",
        "test",
        "lowest",
        "one draw",
        f"vote of {votes}" if votes else "vote",
        "reduced",
    ]
    columns.append(f"accuracy at {HUMAN_DB:g} dB")
    blocks += [
        Table("Errors, and accuracy under attack", columns, rows, notes),
        Table(
            "Networks",
            [
                "run",
                "folder",
                "network",
                "data",
                "scheme",
                "tiles",
                "pooling",
                "arrays",
                "parameters",
                "in convolutions",
            ],
            [
                [
                    name,
                    str(run.folder),
                    run.definition.name,
                    run.manifest.data,
                    run.definition.scheme,
                    commas(run.definition.tiles or ()),
                    run.definition.pool if run.definition.module is None else "its own",
                    label(run.definition.arrays),
                    f"{parameter_count(run.network):,}",
                    f"{parameter_count(run.network, convolutions_only=True):,}",
                ]
                for name, run in named
            ],
        ),
    ]
    return Section("Summary", blocks)


def _facts(run: Run) -> Iterable[Fact]:
    progress, measured = run.progress, run.measured
    if progress.test_error is not None:
        how = "lowest of the run, chosen on the test set" if run.chosen else "all test images"
        yield Fact("Test error", f"{progress.test_error:.2f} %", f"epoch {progress.epoch}, one draw, {how}")
        if not run.chosen and progress.best_test_error is not None:
            note = f"epoch {progress.best_epoch}, chosen on the test set"
            yield Fact("Lowest test error", f"{progress.best_test_error:.2f} %", note)
    if measured:
        of = f"first {measured.single.images:,} test images" if measured.settings.images else "all test images"
        if measured.votes:
            yield Fact(f"Vote of {measured.settings.votes}", f"{measured.votes.error:.2f} %", f"{of}, error")
        if measured.reduced:
            yield Fact("Reduced", f"{measured.reduced.error:.2f} %", f"{of}, error with one matrix for each layer")
    at = [(curve, point) for curve in run.curves[:1] for point in curve.points if point.asked_db == HUMAN_DB]
    for curve, point in at:
        if point.accuracy is not None:
            note = f"accuracy of images right without noise, {curve.name}"
            yield Fact(f"Attacked, {HUMAN_DB:g} dB", f"{point.accuracy:.1f} %", note)
    costs = network_costs(run.network)
    if acceleration(costs) > 1:
        before, after = max(cost.n_p for cost in costs), max(cost.array_cycles for cost in costs)
        note = f"{after:,} array operations for an image in place of {before:,}"
        yield Fact("Analog speed-up", f"{acceleration(costs):.4g}-fold", note)


def training(named: Named) -> Section:
    """Learning curves of all runs on one axis, and times."""
    trained = {name: run for name, run in named if run.rows}
    if not trained:
        return Section("Training", ["No epoch was trained."])
    pictures: list[Block] = []
    for what, title, unit in (("error", "Error", "error (%)"), ("loss", "Loss", "cross-entropy (nats)")):
        ways = []
        for name, run in trained.items():
            test = [row[f"test_{what}"] for row in run.rows]
            lowest = min(range(len(test)), key=test.__getitem__)
            ways.append(
                f"{name}: test {what} from {test[0]:.4g} in epoch {run.rows[0]['epoch']} to {test[-1]:.4g} in epoch "
                f"{run.rows[-1]['epoch']}, lowest {test[lowest]:.4g} in epoch {run.rows[lowest]['epoch']}; training "
                f"{what} at the end {run.rows[-1][f'train_{what}']:.4g}."
            )
        table = Table(
            f"{title} by epoch",
            ["run", "epoch", "rate", "train", "test"],
            [
                [
                    name,
                    str(row["epoch"]),
                    f"{row['rate']:.3g}",
                    f"{row[f'train_{what}']:.4g}",
                    f"{row[f'test_{what}']:.4g}",
                ]
                for name, run in trained.items()
                for row in run.rows
            ],
        )
        figure = run_figures.learning({name: run.rows for name, run in trained.items()}, what, unit)
        pictures.append(Picture(figure, f"{title} against the epoch", " ".join(ways), table=table))
    times = []
    for name, run in trained.items():
        seconds = sum(row["seconds"] for row in run.timing)
        images, training = (sum(row[key] for row in run.timing) for key in ("images", "train_seconds"))
        times.append(
            [
                name,
                str(len(run.rows)),
                f"{seconds:,.0f}" if run.timing else NONE,
                f"{images / training:,.0f}" if training else NONE,
                run.manifest.provenance.get("machine", NONE),
                run.manifest.provenance.get("threads", NONE),
            ]
        )
    time = Table(
        "Time",
        ["run", "epochs", "seconds", "images/s", "machine", "threads"],
        times,
        ["Seconds with testing, images/s without. Rings in the figures mark the lowest test values."],
    )
    return Section("Training", [Beside(pictures), time])


def errors(named: Named) -> Section:
    """Errors of one draw, of a vote and after reduction, with their intervals."""
    title = "Vote and reduction"
    measured = {name: run.measured for name, run in named if run.measured}
    if not measured:
        return Section(title, [NOT_MEASURED])
    found: dict[str, dict[str, tuple[float, tuple[float, float]]]] = {}
    rows = []
    for name, one in measured.items():
        kinds = {"one draw": one.single, f"vote of {one.settings.votes}": one.votes, "reduced": one.reduced}
        found[name] = {kind: (count.error, count.ci95) for kind, count in kinds.items() if count}
        rows += [
            [name, kind, f"{count.error:.2f}", interval(count.ci95), f"{count.wrong:,} of {count.images:,}"]
            for kind, count in kinds.items()
            if count
        ]
    said = "; ".join(
        f"{name}: {', '.join(f'{kind} {error:.2f} % ({interval(ends)})' for kind, (error, ends) in kinds.items())}"
        for name, kinds in found.items()
    )
    table = Table("Errors on test images", ["run", "what", "error (%)", "95 % interval", "wrong"], rows)
    blocks: list[Block] = [
        "A vote takes the class that most of several draws of the random assignments choose. The reduction keeps one "
        "kernel matrix for each layer: of every output channel the filter of the tile where its norm is largest.",
        Beside(
            [
                Picture(
                    run_figures.intervals(found),
                    "Errors with 95 % intervals",
                    f"{said}.",
                    caption=f"Wilson's intervals. {' '.join(measured_notes(named))}",
                ),
                table,
            ]
        ),
    ]
    without = [name for name, one in measured.items() if one.votes is None]
    if without:
        blocks.append(f"Without a vote, as all draws of it are the same: {', '.join(without)}.")
    ordinary = [name for name, one in measured.items() if one.reduced is None]
    if ordinary:
        blocks.append(f"Without a reduction, as it has one matrix for each layer: {', '.join(ordinary)}.")
    return Section(title, blocks)


def attacks(named: Named) -> Section:
    """Accuracy against noise, one figure for each data set and way to measure."""
    curves = [(name, curve) for name, run in named for curve in run.curves]
    if not curves:
        return Section("Attacks", [NOT_MEASURED])
    blocks: list[Block] = ["Accuracy over the images that are right without noise, as in the paper's figure 4."]
    groups: dict[tuple[str, int, str, bool], list[tuple[str, AttackCurve]]] = {}
    for name, curve in curves:
        groups.setdefault((curve.data, curve.images, curve.space, curve.noise), []).append((name, curve))
    for (data, images, space, noise), group in groups.items():
        where = f"{data}, {images:,} images{'' if noise else ', arrays read without noise'}"
        figure = accuracy_against_snr(
            [
                Curve(
                    name,
                    curve.name,
                    [number_or_nan(point.snr_db) for point in curve.points],
                    [number_or_nan(point.accuracy) for point in curve.points],
                    [point.ci95 for point in curve.points],
                )
                for name, curve in group
            ],
            where,
            space=SPACES.get(space, space),
            over="images right without noise",
        )
        figure.set_size_inches(5.4, 4.2 + 0.1 * len(group))
        counts = [
            f"{name}, {curve.name}: {curve.counted / curve.draws:,.10g} images count"
            + (f", mean of {curve.draws} draws." if curve.draws > 1 else ".")
            for name, curve in group
        ]
        picture = Picture(
            figure,
            f"Accuracy against noise: {data}",
            " ".join(_said(name, curve) for name, curve in group),
            caption=f"Bands are 95 % intervals. {' '.join(counts)}",
            table=_points(group, where),
        )
        blocks.append(Beside([picture, _levels(group, where)]))
    if all((curve.method, curve.threat) == ("fgsm", "fresh-draw") for _, curve in curves):
        blocks.append(
            "FGSM takes its gradient on one draw of the random assignments and is scored on another: a weak attack on "
            "a network that draws anew each time. Before claiming robustness, run those of docs/attacks.md, and name "
            "their folder by --attacks."
        )
    return Section("Attacks", blocks)


def _said(name: str, curve: AttackCurve) -> str:
    """A curve in words."""
    points = [point for point in curve.points if point.accuracy is not None]
    if not points:
        return f"{name}, {curve.name}: no image is right without noise."
    first, last = points[0], points[-1]
    return f"{name}, {curve.name}: accuracy {_at(first)} and {_at(last)}."


def _at(point: AttackPoint) -> str:
    return f"{fixed(point.accuracy, 1)} % at {_level(point)}"


def _points(group: list[tuple[str, AttackCurve]], where: str) -> Table:
    """Everything that is known of each point."""
    return Table(
        f"Accuracy under attack, {where}",
        ["run", "attack", "asked (dB)", "SNR (dB)", "eps x 255", "accuracy (%)", "95 % interval", "all (%)"],
        [
            [
                name,
                curve.name,
                NONE if point.asked_db is None else f"{point.asked_db:g}",
                fixed(point.snr_db, 1),
                NONE if point.eps is None else f"{255 * point.eps:.2f}",
                fixed(point.accuracy, 1),
                interval(point.ci95),
                f"{point.accuracy_all:.1f}",
            ]
            for name, curve in group
            for point in curve.points
        ],
        ["SNR and eps: means over the images that count; all: accuracy over all images."],
    )


def _levels(group: list[tuple[str, AttackCurve]], where: str) -> Table:
    """A row for each level, a column for each curve."""
    names, attacks = ({pair[0] for pair in group}, {pair[1].name for pair in group})
    columns = [
        curve.name if len(names) == 1 else name if len(attacks) == 1 else f"{name}: {curve.name}"
        for name, curve in group
    ]
    found = [{_level(point): accuracy(point) for point in curve.points} for _, curve in group]
    levels = list(dict.fromkeys(level for by_level in found for level in by_level))
    rows = [[level, *(by_level.get(level, NONE) for by_level in found)] for level in levels]
    return Table(f"Accuracy (%) with 95 % intervals, {where}", ["noise", *columns], rows)


def _level(point: AttackPoint) -> str:
    return f"{point.asked_db:g} dB" if point.asked_db is not None else f"eps {255 * number_or_nan(point.eps):.3g}/255"
