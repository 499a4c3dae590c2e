"""`rapa reproduce`."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.errors import CheckFailed, ConfigError, FileError, RapaError, suggestion
from rapa_cli.machine import cores

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress
    from rich.table import Table

    from rapa_cli.experiments.jobs import Ended, Folder, Job
    from rapa_cli.experiments.probe import Estimate
    from rapa_cli.experiments.running import Engine, Outcome
    from rapa_cli.experiments.settings import Settings
    from rapa_cli.report.reproduction import Finding, Grid

_ENGINES = ("local", "ray")


def reproduce(
    names: Annotated[
        list[str],
        typer.Argument(
            autocompletion=completion.experiments,
            metavar="EXPERIMENT...",
            show_default=False,
            help=f"{', '.join(completion.EXPERIMENTS)} or all.",
        ),
    ],
    epochs: Annotated[
        int | None, typer.Option(metavar="N", min=1, show_default=False, help="Epochs of each training.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Trainings of each network.")] = 3,
    data: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.data_list,
            metavar="LIST",
            show_default="cifar10,svhn,cifar100",
            help="Data sets of table 1; the other experiments take the first.",
        ),
    ] = None,
    images: options.Images = None,
    recipe: Annotated[
        str,
        typer.Option(
            autocompletion=completion.recipes_or_paper,
            metavar="NAME",
            help="Recipe of all trainings, or `paper` for the two of the paper.",
        ),
    ] = "paper",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="Override any key of the recipe."),
    ] = None,
    schemes: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.scheme_list,
            metavar="LIST",
            show_default="all",
            help="Only these rows of table 1.",
        ),
    ] = None,
    pools: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.pool_list,
            metavar="LIST",
            show_default="all",
            help="Only these ways to pool in table 2.",
        ),
    ] = None,
    tiles: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", show_default="16,32,...,1024", help="Tiles of the first layer in the experiment `tiles`."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the jobs with an estimate of time and disk, and end.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; make tables, figures and page of what is done.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of all experiments; what is done in it is not done again.")
    ] = Path("reproduce"),
    engine: Annotated[str, typer.Option(metavar="NAME", help="Where jobs run: local or ray.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", show_default=False, help="With --engine ray: the cluster, or auto."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="Jobs at a time; one for each core or GPU."),
    ] = None,
    cpus: Annotated[int, typer.Option(metavar="N", min=1, help="With --engine ray: CPUs of a job.")] = 1,
    gpus: Annotated[
        float, typer.Option(metavar="N", min=0, help="With --engine ray: GPUs of a job; parts are allowed.")
    ] = 0,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Run the paper's tables, figures and claims again.

    A job is a command line of rapa; one that is done is not run again, and a training that was stopped goes on. Ends
    with code 4 where a claim does not hold.

    Example: rapa reproduce table2 --data cifar10 --epochs 20 --seeds 1, rapa reproduce all --plan
    """
    from rapa_cli.experiments import catalog, running
    from rapa_cli.experiments.jobs import RESULTS, Folder, with_needs
    from rapa_cli.experiments.local import LocalEngine
    from rapa_cli.experiments.ray_engine import RayEngine
    from rapa_cli.experiments.settings import POOLS, SCHEMES, Settings
    from rapa_cli.files import held
    from rapa_cli.resources import is_path

    if engine not in _ENGINES:
        raise ConfigError(f"--engine: there is no '{engine}'", hint=suggestion(engine, _ENGINES))
    if engine == "local" and address is not None:
        raise ConfigError("--address cannot go without --engine ray", hint="add --engine ray")
    if plan and report_only:
        raise ConfigError("--plan and --report-only exclude each other", hint="leave one of them out")
    default = Settings()
    wanted = Settings(
        epochs=epochs,
        seeds=seeds,
        data=default.data if data is None else options.parse_names(data, "--data"),
        images=images,
        # Jobs run in the folder, where the path would mean another file.
        recipe=str(Path(recipe).absolute()) if is_path(recipe) else recipe,
        changes=tuple(settings or ()),
        schemes=SCHEMES if schemes is None else options.parse_names(schemes, "--schemes", SCHEMES),
        pools=POOLS if pools is None else options.parse_names(pools, "--pools", POOLS),
        tiles=default.tiles if tiles is None else options.parse_tiles(tiles),
    )
    experiments, folder = catalog.named(tuple(names)), Folder(out)
    # A wrong recipe is found here, and not by each job.
    planned = [job for experiment in experiments.values() for job in experiment.jobs(wanted)]
    running.check_recipes(folder, planned)
    if report_only and planned and not (out / RESULTS).is_dir():
        raise FileError(f"there are no results in {out}", hint="name the folder that they are in with --out")
    for line in folder.damaged(planned):
        console.note(f"{line}; its job counts as not done")
    if not (plan or report_only or json):
        console.note(f"folder {out}")
    outcome = running.Outcome()
    left = [] if report_only else running.left(folder, planned)
    if plan or left:
        place, slots, threads, devices = _shared(device, jobs)
    if plan:
        estimated = _estimates(left, place, threads, data_dir) if left else {}
        # How many jobs a cluster has room for is not known here.
        _show_plan(folder, planned, estimated, jobs if engine == "ray" else slots, json=json)
        return
    if left:
        folder.make()
        with held(folder.path):
            estimated = _estimates(left, place, threads, data_dir)
            with contextlib.closing(
                RayEngine(folder, address=address, cpus=cpus, gpus=gpus, slots=jobs, data_dir=data_dir)
                if engine == "ray"
                else LocalEngine(folder, slots=slots, threads=threads, devices=devices, data_dir=data_dir)
            ) as runner:
                try:
                    outcome = _run(folder, planned, runner, estimated)
                except BaseException:
                    _write(folder, experiments, planned, wanted)
                    console.note("what is done is kept; go on with the same command")
                    raise
    found, paths = _write(folder, experiments, planned, wanted)
    if json:
        console.print_json(_document(folder, found, paths, planned))
    else:
        _show(found, paths)
    _judge(outcome, found, len(with_needs(planned)), wanted.scaled_down)


def _shared(name: str, jobs: int | None) -> tuple[torch.device, int, int, list[str]]:
    """How jobs share this machine: where a probe runs, jobs at a time, threads of each, and their devices."""
    import torch

    from rapa_cli.commands.session import compute_device

    place, usable = compute_device(name), cores()
    if name == "auto" and place.type == "cuda":
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    else:
        devices = [name if name != "auto" else "cpu"]
    slots = jobs or (len(devices) if place.type == "cuda" else usable)
    return place, slots, max(usable // slots, 1), devices


def _estimates(left: Sequence[Job], place: torch.device, threads: int, data_dir: Path | None) -> Mapping[Job, Estimate]:
    import torch

    from rapa_cli.experiments.probe import estimates

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with console.progress() as bar:
            task = bar.add_task("measuring speeds", total=None)
            return estimates(
                left, place, data_dir, on_network=lambda done, total: bar.update(task, completed=done, total=total)
            )
    finally:
        torch.set_num_threads(before)


def _run(folder: Folder, planned: Sequence[Job], engine: Engine, estimated: Mapping[Job, Estimate]) -> Outcome:
    from rapa_cli.experiments import running
    from rapa_cli.training.stopping import StopRequest

    with console.progress(counted=False) as bar, StopRequest() as stop:
        watcher = _Watcher(folder, bar, estimated, engine.slots)
        return running.run(folder, planned, engine, watcher, stop)


class _Watcher:
    """A bar over the estimated seconds of all jobs with the time left, and a line for each that has ended."""

    def __init__(self, folder: Folder, bar: Progress, estimated: Mapping[Job, Estimate], slots: int) -> None:
        from rapa_cli.experiments.schedule import TimeLeft

        self._folder, self._bar = folder, bar
        seconds = {job: each.seconds for job, each in estimated.items()}
        done = {job: folder.share_done(job) for job in estimated}
        self._left = TimeLeft(seconds, done, slots, time.monotonic())
        self._work = self._left.work
        self._task = bar.add_task("", total=self._work)

    def begun(self, job: Job) -> None:
        """Says so where there is no bar."""
        self._left.begun(job, time.monotonic())
        if self._bar.disable:
            console.note(f"begun  {job.words[0]} {job.label}; {self._state()}")

    def ended(self, job: Job, ended: Ended) -> None:
        """A line."""
        self._left.ended(job, time.monotonic(), done=ended.code == 0)
        state = "done  " if ended.code == 0 else "FAILED"
        why = "" if ended.code == 0 else f": {ended.message} (log {self._folder.log(job)})"
        self._bar.console.print(
            f"{state} {job.words[0]} {job.label}  {console.duration(ended.seconds)}{why}", markup=False, highlight=False
        )

    def skipped(self, jobs: Sequence[Job]) -> None:
        """They are not waited for."""
        self._left.skipped(jobs, time.monotonic())

    def tick(self, running: Sequence[Job]) -> None:
        """Moves the bar."""
        for job in running:
            self._left.moved(job, self._folder.share_done(job), time.monotonic())
        self._bar.update(self._task, completed=self._work - self._left.work, description=self._state())

    def _state(self) -> str:
        jobs = self._left.jobs
        left = console.duration(self._left.seconds(time.monotonic()))
        return f"{jobs} {'job' if jobs == 1 else 'jobs'}, about {left} left"


def _write(
    folder: Folder,
    experiments: Mapping[str, Any],
    planned: Sequence[Job],
    wanted: Settings,
) -> tuple[list[Finding], list[Path]]:
    from rapa_cli.experiments.jobs import Results, failures
    from rapa_cli.report import reproduction

    folder.make()
    results = Results(folder, planned)
    found = reproduction.findings(experiments, wanted, results)
    return found, reproduction.write(folder, found, wanted, results, *failures(folder, planned))


def _show_plan(
    folder: Folder, planned: Sequence[Job], estimated: Mapping[Job, Estimate], slots: int | None, *, json: bool
) -> None:
    from rapa_cli.experiments.jobs import with_needs
    from rapa_cli.experiments.schedule import makespan

    every = with_needs(planned)
    # What is left of trainings that were stopped.
    left = {job: each.seconds * (1 - folder.share_done(job)) for job, each in estimated.items()}
    seconds, size = sum(left.values()), sum(each.bytes for each in estimated.values())
    whole = None if slots is None else makespan(left, slots)
    rows = [
        {
            "job": job.name,
            "command": shlex.join(["rapa", *job.words]),
            "needs": [need.name for need in job.needs],
            "done": job not in left,
            "seconds": left.get(job),
            "bytes": estimated[job].bytes if job in estimated else None,
        }
        for job in every
    ]
    if json:
        document = {"jobs": rows, "seconds": seconds, "bytes": size, "at_a_time": slots, "whole_seconds": whole}
        console.print_json(document)
        return
    for job in every:
        duration = console.duration(left[job]) if job in left else "done"
        console.show(f"{duration:>9}  {job.words[0]:<8} {job.label}")
    together = "" if whole is None else f", about {console.duration(whole)} with {slots} at a time"
    jobs = f"{len(every)} {console.plural('job', len(every))}"
    console.show(
        f"{jobs}, {len(left)} of them to do: {console.duration(seconds)} of one after the other{together}, "
        f"{console.size(size)} on the disk"
    )


def _show(found: list[Finding], paths: Sequence[Path]) -> None:
    from rich.text import Text

    from rapa_cli.experiments.claims import State
    from rapa_cli.report.reproduction import estimate, grids

    screen = console.out()
    for finding in found:
        console.show(f"\n{finding.experiment.title} ({finding.experiment.source})")
        for grid in grids(finding.measures):
            table = _table(grid)
            if table.__rich_measure__(screen, screen.options.update(max_width=10_000)).maximum > screen.width:
                table = _table(grid.transposed)
            screen.print(table)
    colours = {State.HOLDS: "green", State.FAILS: "bold red", State.UNDECIDED: "yellow", State.NOT_TESTED: "dim"}
    for finding in found:
        for verdict in finding.verdicts:
            screen.print(Text.assemble((verdict.state.value, colours[verdict.state]), f": {verdict.claim}"))
            console.show(f"    {verdict.figure}: {estimate(verdict)}")
    for path in paths:
        console.show(f"wrote {path}")


def _table(grid: Grid) -> Table:
    from rich import box
    from rich.table import Table

    from rapa_cli.report.reproduction import cell

    table = Table(
        box=box.SIMPLE_HEAD, title=grid.title, title_justify="left", title_style="bold", pad_edge=False, padding=(0, 1)
    )
    for heading in ("", *grid.columns):
        table.add_column(heading)
    for row, measures in grid.rows:
        table.add_row(row, *(cell(measure) for measure in measures))
    return table


def _document(folder: Folder, found: list[Finding], paths: Sequence[Path], planned: Sequence[Job]) -> dict[str, Any]:
    from rapa_cli.experiments.jobs import failures, with_needs
    from rapa_cli.report.reproduction import claim_row

    every = with_needs(planned)
    failed, skipped = failures(folder, planned)
    return {
        "folder": folder.path,
        "jobs": len(every),
        "done": sum(folder.result(job) is not None for job in every),
        "failed": [{"job": job.name, "error": why} for job, why in failed.items()],
        "skipped": [job.name for job in skipped],
        "experiments": [
            {
                "experiment": finding.name,
                "measures": [measure.row_of_table() for measure in finding.measures],
                "claims": [claim_row(verdict) for verdict in finding.verdicts],
            }
            for finding in found
        ],
        "files": list(paths),
    }


def _judge(outcome: Outcome, found: list[Finding], jobs: int, scaled_down: Sequence[str]) -> None:
    """Ends with an error where jobs failed, or a claim did not hold."""
    from rapa_cli.experiments.claims import State

    if outcome.failed:
        first, ended = next(iter(outcome.failed.items()))
        skipped = f", and {len(outcome.skipped)} that need them were not run" if outcome.skipped else ""
        raise RapaError(
            f"{len(outcome.failed)} of {jobs} jobs failed{skipped}; the first: {first.name}: {ended.message}",
            hint="the same command tries them again",
        )
    fails = [verdict.claim for finding in found for verdict in finding.verdicts if verdict.state is State.FAILS]
    if fails:
        no_test = f"; {', '.join(scaled_down)} is no test of what the paper says" if scaled_down else ""
        raise CheckFailed(
            f"{len(fails)} of the paper's claims did not hold here: {'; '.join(fails)}",
            hint=f"the page says by how much{no_test}",
        )
