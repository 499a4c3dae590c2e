"""`rapa attack`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.commands.attack_request import (
    DEFAULT_SNR,
    JUDGE_DRAWS,
    REDUCED,
    Job,
    Request,
    levels_named,
    prepared,
)
from rapa_cli.errors import CheckFailed, ConfigError

if TYPE_CHECKING:
    from rapa_cli.attacks.evaluation import Evaluation
    from rapa_cli.attacks.records import Records
    from rapa_cli.attacks.results import Result
    from rapa_cli.attacks.sanity import Line
    from rapa_cli.commands.session import Subject


def attack(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=completion.checkpoints,
            metavar="CHECKPOINT",
            show_default=False,
            help="Files, run folders or zoo names; the newest run under ./runs when left out.",
        ),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", show_default=False, help="Strengths on the [0, 1] scale: 1/255,4/255 or start:stop:count."
        ),
    ] = None,
    snr: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            show_default=False,
            help=f"Signal-to-noise ratios in dB, as 33 or 60:20:9; {DEFAULT_SNR} when neither is given.",
        ),
    ] = None,
    snr_space: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.spaces,
            metavar="NAME",
            show_default="raw",
            help="Pixels that the ratio is of: raw, or standardized by the network's own constants.",
        ),
    ] = None,
    exact_snr: Annotated[
        bool, typer.Option("--exact-snr", help="Adapt each image's strength until the ratio is met after cutting.")
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.method_list,
            metavar="LIST",
            show_default="fgsm",
            help="fgsm, pgd, eotpgd, square, noise and others.",
        ),
    ] = None,
    threat: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=completion.threats,
            metavar="NAME",
            show_default="fresh-draw",
            help="What the attacker knows of the draws: same-draw, fresh-draw, eot:K, vote-aware:N, transfer or noise; "
            "may be given repeatedly.",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.sources,
            metavar="CHECKPOINT",
            show_default=REDUCED,
            help="For transfer: where the images are made; 'reduced' is each network's own reduction.",
        ),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=2**20, show_default="1", help="Draws that score.")
    ] = None,
    judge_draws: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=2**16,
            show_default=False,
            help=f"Fresh draws that judge again; {JUDGE_DRAWS} with --methods or --threat, for vote-aware:N "
            "at least 2 N; else none.",
        ),
    ] = None,
    votes: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--votes",
            metavar="N",
            min=1,
            show_default=False,
            help="How many of them vote; all, with vote-aware:N these N.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.checkpoints,
            metavar="CHECKPOINT",
            show_default=False,
            help="Also say how much of its errors is gone.",
        ),
    ] = None,
    sanity: Annotated[
        bool | None,
        typer.Option(
            "--sanity/--no-sanity",
            show_default=False,
            help="Check the evaluation itself; when left out with --methods, --threat or --strict.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with code 4 where a check fails.")] = False,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", show_default=False, help="New folder for records, tables and figures."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="DIR", show_default=False, help="Go on with the records in a folder, as they were begun."),
    ] = None,
    save_images: Annotated[
        bool, typer.Option("--save-images", help="With --out: keep all adversarial images.")
    ] = False,
    best: options.Best = False,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    images: options.Images = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=options.MAX_SEED, show_default="0", help="Seed of every random choice."),
    ] = None,
    noise: Annotated[
        bool | None,
        typer.Option(
            "--noise/--no-noise",
            show_default="noise",
            help="Whether arrays that are not ideal are read with their noise.",
        ),
    ] = None,
    code: options.Code = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="Images computed at a time; what memory allows."),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: options.Workers = None,
    json: options.Json = False,
) -> None:
    """Measure accuracy under attack.

    By default under FGSM noise, and over the images that are right without it: the gradient is taken on one draw of the
    random assignments and the result scored on another. That is a weak attack on a network that draws anew each time:
    docs/attacks.md says what to run before claiming robustness.

    Example: rapa attack runs/my-run --eps 1/255,2/255,4/255,8/255, or
    rapa attack runs/a runs/b --snr 33 --methods fgsm,pgd --threat fresh-draw --threat eot:16 --out attacked
    """
    if out is not None and resume is not None:
        raise ConfigError("--out and --resume are two ways to name the folder", hint="give one of them")
    if save_images and out is None and resume is None:
        raise ConfigError("--save-images cannot go without --out", hint="name a folder for the images")
    request = Request(
        tuple(checkpoints) if checkpoints else None,
        baseline,
        source,
        data,
        images,
        None if eps is None and snr is None else tuple(levels_named(eps, snr)),
        None if methods is None else options.parse_names(methods, "--methods"),
        tuple(threat) if threat else None,
        snr_space,
        exact_snr or None,
        draws,
        judge_draws,
        votes,
        seed,
        noise,
        save_images or None,
        batch_size,
    )
    from rapa_cli.attacks import records as store
    from rapa_cli.commands.session import subject
    from rapa_cli.files import held

    folder = _folder(out, "--out")
    begun = None if resume is None else store.read(_folder(resume, "--resume") or Path())
    request = request if begun is None else request.or_as(begun)

    def load(name: str | None, wanted: Request) -> Subject:
        return subject(
            name,
            best=best,
            data=wanted.data,
            data_dir=data_dir,
            images=wanted.images,
            device=device,
            threads=threads,
            workers=workers,
            noise=wanted.noise is not False,
            code=code,
        )

    job = prepared(request, load)
    first = job.subjects[0]
    if begun is not None:
        store.check_same(begun, job.settings)
    records = begun or store.begin(folder, job.settings, first.labels)
    with contextlib.nullcontext() if records.folder is None else held(records.folder):
        _evaluate(job, records, sanity=sanity, strict=strict, json=json)


def _folder(text: str | None, option: str) -> Path | None:
    """The folder that an option names; an empty name would be the current one."""
    if text == "":
        raise ConfigError(f"{option}: got an empty name", hint=f"for example {option} attacked")
    return None if text is None else Path(text)


def _evaluate(job: Job, records: Records, *, sanity: bool | None, strict: bool, json: bool) -> None:
    """Does what is left of an evaluation, and shows what it found."""
    from rapa_cli.attacks.evaluation import Evaluation, attacks_named
    from rapa_cli.attacks.results import results
    from rapa_cli.commands import attack_report

    first = job.subjects[0]
    networks = [one.network for one in job.subjects]
    with _progress() as (on_part, on_cost, set_total):
        run = Evaluation(
            networks, first.images, first.labels, records, source=job.source, on_part=on_part, on_cost=on_cost
        )
        set_total(run.cost)
        try:
            run.attack()
        except BaseException:
            if records.folder is not None:
                console.note(
                    f"what is done is kept; go on with: rapa attack --resume {shlex.quote(str(records.folder))}"
                )
            raise
        found = results(records, attacks_named(run.attacks))
        # The paper's figure costs what it did; whoever asks for more than it is told whether to believe it.
        wanted = sanity if sanity is not None else strict or not job.plain
        checks = _checked(found, run, job, on_part) if wanted else None
    if not any(point.counted for result in found for point in result.points):
        console.note("no image is classified correctly without noise, so that there is nothing to attack")
    shown = attack_report.Shown(job.subjects, job.settings, found, checks)
    written = [] if records.folder is None else attack_report.write(records.folder, shown, run)
    if json:
        console.print_json(attack_report.document(shown, written))
    else:
        attack_report.show(shown, written)
    if strict:
        _insist(checks)


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Callable[[int], None], Callable[[int], None]]]:
    """A bar over all levels; gives what renames it, what moves it on, and what sets its end."""
    with console.progress() as bar:
        task = bar.add_task("attacking", total=None)
        yield (
            lambda text: bar.update(task, description=text),
            lambda cost: bar.advance(task, cost),
            lambda total: bar.update(task, total=total),
        )


def _checked(found: list[Result], run: Evaluation, job: Job, on_part: Callable[[str], None]) -> list[list[Line]]:
    """The sanity block of each network."""
    from rapa_cli.attacks.sanity import check

    images, labels = job.subjects[0].images, job.subjects[0].labels
    blocks = []
    for number, one in enumerate(job.subjects):
        own = [result for result in found if result.network == number]
        blocks.append(check(own, run.attacks, one.network, images, labels, job.settings, on_part=on_part))
    return blocks


def _insist(checks: list[list[Line]] | None) -> None:
    """Raises CheckFailed where a check failed."""
    from rapa_cli.attacks.sanity import State

    failed = [line.check for block in checks or [] for line in block if line.state is State.FAILED]
    if failed:
        names = ", ".join(dict.fromkeys(failed))
        raise CheckFailed(f"not trustworthy: failed: {names}", hint="docs/attacks.md says what each check means")
