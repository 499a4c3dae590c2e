"""What `rapa attack` shows and writes of what it found."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapa_cli import console
from rapa_cli.attacks.levels import SPACES
from rapa_cli.commands.session import Subject, arrays_line, labelled

if TYPE_CHECKING:
    from rapa_cli.attacks.evaluation import Evaluation
    from rapa_cli.attacks.records import Settings
    from rapa_cli.attacks.results import Point, Result
    from rapa_cli.attacks.sanity import Line

_WIDTH = 80


@dataclass(frozen=True)
class Shown:
    """An evaluation that is done.

    Attributes:
        subjects: the networks.
        settings: what was asked.
        found: results, network by network.
        checks: the sanity block of each network, None where it was not asked for.
    """

    subjects: list[Subject]
    settings: Settings
    found: list[Result]
    checks: list[list[Line]] | None


def document(shown: Shown, written: Sequence[Path]) -> dict[str, Any]:
    """The keys of the first result, with all of them in a list where there are several."""
    several = [_result(shown, result) for result in shown.found]
    found = dict(several[0])
    if len(several) > 1:
        found["results"] = several
    if shown.checks is not None:
        found["sanity"] = [
            {
                "checkpoint": subject.path,
                "trustworthy": _trustworthy(block),
                "checks": [
                    {"check": line.check, "state": line.state.value, "says": line.says, "figures": line.figures}
                    for line in block
                ],
            }
            for subject, block in zip(shown.subjects, shown.checks, strict=True)
        ]
    if written:
        found["files"] = list(written)
    return found


def show(shown: Shown, written: Sequence[Path]) -> None:
    """Tables and sentences on standard output."""
    settings = shown.settings
    for number, subject in enumerate(shown.subjects):
        own = [result for result in shown.found if result.network == number]
        _network(shown, subject, own)
        if len(shown.subjects) > 1:
            console.show("")
    several = "" if settings.draws == 1 else f", mean over {settings.draws} draws"
    _wrapped(
        f"SNR of {SPACES[settings.snr_space]} after cutting{arrays_line(shown.subjects[0].arrays)}\n"
        f"accuracy over the images that are right without noise{several}; all: over all images"
    )
    if settings.judge_draws:
        _wrapped(
            f"fresh draws: mean over {settings.judge_draws} draws that judge again, over images that are right without "
            "noise in the same draw, vote, or all draws; believed: what the attack sees of its own images, no result"
        )
        judged = {result.threat: result.points[0].judged for result in shown.found}
        for threat, point in judged.items():
            if point is not None and point.known:
                _wrapped(f"{threat}: the vote is of draws that it knows, fresh are the {point.draws} it does not know")
    if any(result.points[0].gap for result in shown.found):
        _wrapped("gap closed: 1 - (100 - accuracy) / (100 - that of the baseline)")
    if shown.checks is None:
        weak = "one gradient is a weak attack on a network that draws: see --methods, --threat, --sanity"
        _wrapped(f"not checked{'' if settings.judge_draws else f'; {weak}'}")
    else:
        for subject, block in zip(shown.subjects, shown.checks, strict=True):
            _block(subject, block)
    pictures = [path for path in written if path.stem.startswith("images-")]
    for path in written:
        if path not in pictures:
            console.show(f"wrote {path}")
    if pictures:
        console.show(f"wrote {len(pictures)} pictures {pictures[0].parent / 'images-*'}")


def write(folder: Path, shown: Shown, run: Evaluation) -> list[Path]:
    """Writes summary.csv, figure 4 and a picture for each network, and returns all paths.

    Raises:
        FileError: one of them cannot be written.
    """
    from rapa_cli.attacks.records import FILE, IMAGES, SUMMARY
    from rapa_cli.report import attack_figures, figures
    from rapa_cli.runs import write_rows

    write_rows(
        folder, SUMMARY.removesuffix(".csv"), [_row(result, point) for result in shown.found for point in result.points]
    )
    settings, names = shown.settings, _names(shown)
    paths = [folder / FILE, folder / SUMMARY]
    title = f"{settings.data}, {settings.images:,} images, 95 % bands"
    space = SPACES[settings.snr_space]
    curves = [
        attack_figures.Curve(
            names[result.network],
            _attack(result),
            [point.snr_db for point in result.points],
            [point.accuracy for point in result.points],
            [point.ci95 for point in result.points],
        )
        for result in shown.found
    ]
    over = "images right without noise"
    figure = attack_figures.accuracy_against_snr(curves, title, space=space, over=over)
    paths += figures.write(figure, folder, "accuracy")
    for number in range(len(shown.subjects)):
        paths += _picture(folder, shown, run, [result for result in shown.found if result.network == number])
    if settings.save_images:
        paths.append(folder / IMAGES)
    return paths


def _picture(folder: Path, shown: Shown, run: Evaluation, own: list[Result]) -> list[Path]:
    """The strongest attack on a network, at all levels, on the first image whose class it changes if there is one."""
    from rapa_cli.report import attack_figures, figures

    result = min(own, key=lambda found: sum(point.accuracy_all for point in found.points))
    right = result.points[0].right_clean[:, 0]
    if not right.any():
        return []
    strongest = min(result.points, key=lambda point: point.accuracy_all)
    lost = right & ~strongest.right[:, 0]
    image = int((lost if lost.any() else right).double().argmax())
    clean, seen = run.pictures(result.network, result.number % len(run.attacks), image)
    classes = shown.subjects[result.network].description.classes
    label = int(shown.subjects[0].labels[image])
    column = [
        attack_figures.Example(_level(point), ratio, adversarial.cpu(), classes[predicted], predicted == label)
        for point, (adversarial, predicted, ratio) in zip(result.points, seen, strict=True)
    ]
    title = f"{_names(shown)[result.network]}: {_attack(result)}, image {image} of {shown.settings.data}"
    figure = attack_figures.clean_noise_adversarial(clean.cpu(), classes[label], column, title)
    return figures.write(figure, folder, f"images-{result.network}")


def _result(shown: Shown, result: Result) -> dict[str, Any]:
    subject, settings = shown.subjects[result.network], shown.settings
    return {
        "checkpoint": subject.path,
        "chosen": subject.chosen,
        "baseline": result.origin.baseline,
        "data": settings.data,
        "method": result.method,
        "threat": result.threat,
        "source": None if settings.source is None or result.threat != "transfer" else settings.source.path,
        "norm": result.norm,
        "images": result.images,
        "counted": result.points[0].counted,
        "accuracy_clean": result.accuracy_clean,
        "seed": settings.seed,
        **subject.arrays,
        "snr_space": settings.snr_space,
        "exact_snr": settings.exact_snr,
        "draws": settings.draws,
        "judge_draws": settings.judge_draws,
        "votes": settings.votes,
        "batch_size": settings.batch_size,
        "trustworthy": None if shown.checks is None else _trustworthy(shown.checks[result.network]),
        "points": [_point(point) for point in result.points],
    }


def _point(point: Point) -> dict[str, Any]:
    found: dict[str, Any] = {
        "eps": point.eps,
        "snr_db": point.snr_db,
        "accuracy": point.accuracy,
        "ci95": point.ci95,
        "accuracy_all": point.accuracy_all,
        "ci95_all": point.ci95_all,
        "correct": point.correct,
        "counted": point.counted,
        "accuracies": point.accuracies,
        "asked": {"eps": point.level.eps} if point.level.eps is not None else {"snr_db": point.level.snr_db},
    }
    if point.judged is not None:
        judged = dict(vars(point.judged))
        found["believed"] = {"accuracy": judged.pop("believed"), "accuracy_all": judged.pop("believed_all")}
        found["judged"] = judged
    if point.gap is not None:
        found |= {"gap_closed": point.gap.closed, "gap_closed_ci95": point.gap.ci95}
    if point.missed:
        found["snr_not_met"] = point.missed
    return found


def _row(result: Result, point: Point) -> dict[str, Any]:
    """A row of summary.csv, with the same columns for all results."""
    judged, gap = point.judged, point.gap
    return {
        "checkpoint": result.origin.path,
        "baseline": result.origin.baseline,
        "method": result.method,
        "threat": result.threat,
        "norm": result.norm,
        "asked_eps": point.level.eps,
        "asked_snr_db": point.level.snr_db,
        "eps": point.eps,
        "snr_db": point.snr_db,
        "images": result.images,
        "counted": point.counted,
        "correct": point.correct,
        "accuracy": point.accuracy,
        "low": point.ci95[0],
        "high": point.ci95[1],
        "accuracy_all": point.accuracy_all,
        "low_all": point.ci95_all[0],
        "high_all": point.ci95_all[1],
        "judge_draws": judged and judged.draws,
        "judged": judged and judged.accuracy,
        "judged_all": judged and judged.accuracy_all,
        "vote_known": judged and judged.known,
        "vote": judged and judged.vote,
        "vote_all": judged and judged.vote_all,
        "always": judged and judged.always,
        "always_low": judged and judged.always_ci95[0],
        "always_high": judged and judged.always_ci95[1],
        "always_all": judged and judged.always_all,
        "believed": judged and judged.believed,
        "believed_all": judged and judged.believed_all,
        "gap_closed": gap and gap.closed,
        "gap_closed_low": gap and gap.ci95[0],
        "gap_closed_high": gap and gap.ci95[1],
        "snr_not_met": sum(point.missed.values()) if point.missed else None,
    }


def _network(shown: Shown, subject: Subject, own: list[Result]) -> None:
    """All attacks on one network."""
    settings, first, one = shown.settings, own[0], len(own) == 1
    name = f"{_attack(first, short=True)} on " if one else ""
    console.show(f"{name}{labelled(subject.path)}{' (baseline)' if first.origin.baseline else ''}")
    rows = [(result, point, place == 0) for result in own for place, point in enumerate(result.points)]
    names = [] if one else [_attack(result) if begins else "" for result, _, begins in rows]
    columns = {
        "eps x 255": [_number(255 * point.eps, 2) for _, point, _ in rows],
        "SNR (dB)": [_number(point.snr_db, 1) for _, point, _ in rows],
        "accuracy (%)": [_number(point.accuracy, 1) for _, point, _ in rows],
        "95 % interval": [_interval(point.ci95, 1) for _, point, _ in rows],
        "all (%)": [_number(point.accuracy_all, 1) for _, point, _ in rows],
    }
    if first.points[0].gap:
        columns["gap closed"] = [_number(point.gap.closed, 2) if point.gap else "-" for _, point, _ in rows]
    _table(names, columns)
    judged = [point.judged for _, point, _ in rows if point.judged is not None]
    if judged:
        columns = {
            "SNR (dB)": [_number(point.snr_db, 1) for _, point, _ in rows],
            "fresh draws (%)": [_number(found.accuracy, 1) for found in judged],
            "95 % interval": [_interval(found.ci95, 1) for found in judged],
            f"vote {settings.votes}": [_number(found.vote, 1) for found in judged],
            "all right": [_number(found.always, 1) for found in judged],
            "believed": [_number(found.believed, 1) for found in judged],
        }
        _table(names, columns)
    of = f" in a draw, mean of {settings.draws}," if settings.draws > 1 else ""
    counted = first.points[0].counted / settings.draws
    _wrapped(f"{counted:.10g} of {first.images} images of {settings.data} are right without noise{of} and count")
    sentences = [f"{_sentence(result)}, seed {settings.seed}" if one else _sentence(result) for result in own]
    known = dict(zip((result.threat for result in own), sentences, strict=True))
    for threat, sentence in known.items():
        console.show(sentence if one else f"{threat}: {sentence}")
    for result in own:
        for point in result.points:
            reasons = [f"{count} {kind}" for kind, count in point.missed.items() if count]
            if reasons:
                console.show(f"{_attack(result)}: {_level(point)} cannot be met by {', '.join(reasons)}")


def _table(names: list[str], columns: dict[str, list[str]]) -> None:
    """A table of numbers; with a column of names it does without lines, to stay within 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)) if names else Table()
    if names:
        table.add_column("attack", max_width=18)
    for heading in columns:
        # In two lines headings are hardly wider than numbers.
        table.add_column(_halved(heading) if names else heading, justify="right", no_wrap=bool(names))
    for row in zip(*([names] if names else []), *columns.values(), strict=True):
        table.add_row(*row)
    console.out().print(table)


def _halved(heading: str) -> str:
    """A heading in two lines, the last word below."""
    first, _, last = heading.rpartition(" ")
    return f"{first}\n{last}"


def _block(subject: Subject, block: Sequence[Line]) -> None:
    states = [line.state.value for line in block]
    failed, open_ones = states.count("failed"), states.count("not applicable")
    # That nothing failed is no praise where little was tried.
    verdict = f"not trustworthy: {failed} of {len(states)} checks failed" if failed else "no check failed"
    verdict += f", {open_ones} of {len(states)} do not apply to what was run" if open_ones else ""
    _wrapped(f"\n{subject.path}\n{verdict}")
    for line in block:
        state = line.state.value.rjust(14)
        text = f"{line.check}: {line.says}"
        console.show(textwrap.fill(text, _WIDTH, initial_indent=f"{state}  ", subsequent_indent=" " * 16))


def _trustworthy(block: Sequence[Line]) -> bool:
    from rapa_cli.attacks.sanity import trustworthy

    return trustworthy(block)


def _sentence(result: Result) -> str:
    """What the attacker knew."""
    name, _, count = result.threat.partition(" ")
    return {
        "same-draw": "gradient on the draw that scores",
        "fresh-draw": "gradient on one draw, score on another",
        "eot": f"gradient over {count} draws, score on another",
        "vote-aware": f"gradient of the vote's own {count} draws",
        "transfer": "images made on another network",
        "noise": "random signs, without a look at the network",
    }[name]


def _attack(result: Result, *, short: bool = False) -> str:
    """An attack in words; in short without a threat that goes without saying."""
    if short and (result.method, result.threat) == ("fgsm", "fresh-draw"):
        return "FGSM"
    return result.attack


def _names(shown: Shown) -> list[str]:
    """The networks as figures name them: by scheme and tiles, and where these are not enough by file."""
    from rapa_cli.config import tiling

    definitions = [subject.network.definition for subject in shown.subjects]
    short = [tiling(found.scheme, found.tiles) for found in definitions]
    if len(set(short)) == len(short):
        return short
    paths = [subject.path for subject in shown.subjects]
    return [f"{name}, {path.parent.name}/{path.stem}" for name, path in zip(short, paths, strict=True)]


def _level(point: Point) -> str:
    eps, snr = point.level.eps, point.level.snr_db
    return f"eps {255 * eps:.3g}/255" if eps is not None else f"{snr:g} dB"


def _wrapped(text: str) -> None:
    console.show("\n".join(textwrap.fill(line, _WIDTH) for line in text.split("\n")))


def _interval(ends: tuple[float, float], digits: int) -> str:
    return "-" if any(map(math.isnan, ends)) else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
