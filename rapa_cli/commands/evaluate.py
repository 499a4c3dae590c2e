"""`rapa evaluate`."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.errors import ConfigError

if TYPE_CHECKING:
    from rapa_cli.analog.aware import InferenceArrays
    from rapa_cli.analysis.drift import Drift
    from rapa_cli.attacks.confidence import Confidence
    from rapa_cli.commands.session import Subject

_REPEATS, _DRAWS = 3, 5


def evaluate(
    checkpoint: options.Checkpoint = None,
    best: options.Best = False,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    split: options.Split = "test",
    images: options.Images = None,
    seed: options.Seed = 0,
    noise: options.Noise = True,
    drift: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            show_default=False,
            help="Also program inference arrays, and measure at these times after that: seconds, or with a unit s, m, "
            "h, d, w or y, as in 0,1h,1d,1y.",
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=str(_REPEATS), help="With --drift: how often to program."),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option("-n", "--draws", metavar="N", min=1, show_default=str(_DRAWS), help="With --drift: votes."),
    ] = None,
    arrays: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.arrays,
            metavar="NAME",
            show_default=False,
            help="With --drift: preset or TOML file of the inference arrays; when left out the network's own, or "
            "Inference.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="With --drift: folder for drift.png, .svg and .csv."),
    ] = None,
    sureness: Annotated[
        str | None,
        typer.Option(
            "--confidence",
            metavar="LIST",
            show_default=False,
            help="Also show how sure the network is, without noise and under FGSM at these SNR in dB, as in 33.",
        ),
    ] = None,
    code: options.Code = None,
    batch_size: options.BatchSize = 200,
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: options.Workers = None,
    json: options.Json = False,
) -> None:
    """Measure the error of a checkpoint.

    With one draw; with --drift also some time after its weights were programmed.

    Example: rapa evaluate runs/my-run --best, rapa evaluate runs/my-run --drift 0,1h,1d,1y --out figures
    """
    only = {"--repeats": repeats, "--draws": draws, "--arrays": arrays, "--out": out}
    given = [option for option, value in only.items() if value is not None]
    if drift is None and given:
        raise ConfigError(f"{' and '.join(given)} cannot go without --drift", hint="give times too: --drift 0,1h,1d,1y")
    times = [] if drift is None else options.parse_times(drift, "--drift")
    ratios = [] if sureness is None else options.parse_levels(sureness, "--confidence")
    from rapa_cli.analysis.drift import drift as programmed
    from rapa_cli.analysis.drift import passes
    from rapa_cli.analysis.evaluation import evaluate as measure
    from rapa_cli.attacks.confidence import confidence
    from rapa_cli.commands.session import arrays_line, counting, labelled, open_data, subject

    wanted = None if arrays is None else _inference_arrays(arrays)
    chosen = subject(
        checkpoint,
        best=best,
        data=data,
        data_dir=data_dir,
        images=images,
        device=device,
        threads=threads,
        workers=workers,
        split=split,
        noise=noise,
        code=code,
    )
    repeats = repeats or _REPEATS
    total = len(chosen.images) * (1 + (passes(times, repeats) if times else 0) + (sureness is not None))
    found, sure = None, []
    with counting("evaluating", total) as count:
        if times:
            found = programmed(
                chosen.network,
                chosen.images,
                chosen.labels,
                times,
                arrays=wanted,
                repeats=repeats,
                votes=draws or _DRAWS,
                noise=noise,
                training_images=open_data(chosen.data, data_dir).train.images,
                seed=seed,
                batch_size=batch_size,
                on_batch=count,
            )
        result = measure(chosen.network, chosen.images, chosen.labels, seed=seed, batch_size=batch_size, on_batch=count)
        if sureness is not None:
            sure = confidence(
                chosen.network,
                chosen.images,
                chosen.labels,
                ratios,
                seed=seed,
                batch_size=batch_size,
                on_batch=count,
            )
    document = {
        "checkpoint": chosen.path,
        "chosen": chosen.chosen,
        "data": chosen.data,
        "split": split,
        "images": result.images,
        "error": result.error,
        # The contract's name for the error on test images; those of the training images are none.
        f"{split}_error": result.error,
        "ci95": result.ci95,
        "loss": result.loss,
        "seed": seed,
        **chosen.arrays,
    }
    if sureness is not None:
        document["confidence"] = [_sure(each) for each in sure]
    name = _name(chosen, arrays)
    if found is not None:
        document |= _document(found, name)
        if out is not None:
            document["files"] = _write(found, f"{chosen.network.definition.name} on {chosen.data}\n{name}", out)
    if json:
        console.print_json(document)
        return
    low, high = result.ci95
    console.show(
        f"{split} error {result.error:.2f} %  (95 % interval {low:.2f} to {high:.2f})\n"
        f"{result.wrong} of {result.images} images of {chosen.data} wrong, one draw, seed {seed}\n"
        f"checkpoint {labelled(chosen.path)}{arrays_line(chosen.arrays)}"
    )
    if sure:
        _show_sureness(sure)
    if found is not None:
        _show(found, name)
        for path in document.get("files", []):
            console.show(f"wrote {path}")


def _sure(found: Confidence) -> dict[str, Any]:
    return {
        "snr_db": found.snr_db,
        "error": 100 * float((~found.right).double().mean()),
        "mean": found.mean,
        "over_90": found.over_90,
        "mean_wrong": found.mean_wrong,
        "se_wrong": found.se_wrong,
        "histogram": found.histogram,
    }


def _show_sureness(found: list[Confidence]) -> None:
    """The highest probabilities, a line for each strength."""
    rows = ["", f"{'highest probability':<20}{'mean, %':>9}{'above 0.9, %':>14}{'mean of wrong images, %':>25}"]
    for each in found:
        under = "without noise" if each.snr_db is None else f"FGSM at {each.snr_db:g} dB"
        wrong = "-" if each.mean_wrong is None else f"{each.mean_wrong:.1f}"
        rows.append(f"{under:<20}{each.mean:>9.1f}{each.over_90:>14.1f}{wrong:>25}")
    console.show("\n".join(rows))


def _inference_arrays(name: str) -> InferenceArrays:
    """The arrays that --arrays means."""
    from rapa_cli.analog.aware import InferenceArrays
    from rapa_cli.analog.presets import INFERENCE_PRESETS
    from rapa_cli.analog.specification import arrays_of, named_arrays

    found = arrays_of(named_arrays(name))
    if not isinstance(found, InferenceArrays):
        raise ConfigError(
            f"--arrays {name}: these are not arrays that weights are programmed onto",
            hint=f"name one of {', '.join(INFERENCE_PRESETS)}, or leave --arrays out",
        )
    return found


def _name(chosen: Subject, arrays: str | None) -> str:
    """What is programmed, in words."""
    from rapa_cli.analog.aware import InferenceArrays
    from rapa_cli.analog.specification import arrays_of, label

    own = chosen.network.definition.arrays
    if arrays is None and not isinstance(arrays_of(own), InferenceArrays):
        return "arrays Inference"
    return f"arrays {label(own if arrays is None else arrays)}"


def _document(found: Drift, name: str) -> dict[str, Any]:
    return {
        "digital_error": found.digital_single,
        "digital_vote_error": found.digital_vote,
        "programmed_on": name,
        "noise_on": found.noise_on,
        "noise_off": found.noise_off,
        "input_ranges_calibrated": found.calibrated,
        "repeats": found.repeats,
        "n": found.votes,
        "drift": [
            {
                "seconds": age.seconds,
                "single_error": age.single_error,
                "single_se": age.single_se,
                "vote_error": age.vote_error,
                "vote_se": age.vote_se,
                "compensation": age.compensation,
                "single_errors": age.single_errors,
                "vote_errors": age.vote_errors,
            }
            for age in found.ages
        ],
    }


def _write(found: Drift, title: str, out: Path) -> list[Path]:
    """Writes the figure, and the errors of each programming."""
    from rapa_cli.report import figures
    from rapa_cli.runs import write_rows

    paths = figures.write(figures.error_against_time(found, title), out, "drift")
    rows = [
        {"seconds": age.seconds, "repeat": repeat, "single_error": single, "vote_error": vote}
        | ({"compensation": age.compensations[repeat]} if age.compensations else {})
        for age in found.ages
        for repeat, (single, vote) in enumerate(zip(age.single_errors, age.vote_errors, strict=True))
    ]
    write_rows(out, "drift", rows)
    return [*paths, out / "drift.csv"]


def _show(found: Drift, name: str) -> None:
    from rapa_cli.analysis.drift import duration

    heading = f"vote of {found.votes}, %"
    times = "once" if found.repeats == 1 else f"{found.repeats} times"
    rows = [
        f"\nprogrammed {times} on {name}",
        f"{'time':<14}{'single draw, %':>18}{heading:>18}{'compensation':>16}",
        f"{'digital':<14}{found.digital_single:>10.2f}{found.digital_vote:>18.2f}",
    ]
    for age in found.ages:
        factor = "none" if age.compensation is None else f"{age.compensation:.3f}"
        single, vote = _with_error(age.single_error, age.single_se), _with_error(age.vote_error, age.vote_se)
        rows.append(f"{duration(age.seconds):<14}{single:>18}{vote:>18}{factor:>16}")
    rows.append("digital: the same draws with exact weights and products")
    if found.repeats > 1:
        rows.append("+-: standard error of the mean over programmings")
    if found.calibrated:
        rows.append("input ranges calibrated on training images, as nobody learned them")
    rows += textwrap.wrap(f"with {', '.join(found.noise_on) or 'nothing random'}", 80)
    if found.noise_off:
        rows += textwrap.wrap(f"without {', '.join(found.noise_off)}", 80)
    console.show("\n".join(rows))


def _with_error(mean: float, error: float) -> str:
    return f"{mean:.2f}{' ' * 8 if math.isnan(error) else f' +- {error:.2f}'}"
