"""All experiments, scaled down to a moment, on a tiny data set: every word of their jobs is one that `rapa` takes."""

from __future__ import annotations

import contextlib
import html
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from rapa_cli import app
from rapa_cli.errors import ConfigError
from rapa_cli.experiments.catalog import EXPERIMENTS, named
from rapa_cli.experiments.claims import State
from rapa_cli.experiments.jobs import Ended, Folder, Job, Results, with_needs
from rapa_cli.experiments.local import LocalEngine
from rapa_cli.experiments.measures import Measure, paper
from rapa_cli.experiments.settings import Settings
from rapa_cli.files import make_folder
from rapa_cli.report import reproduction
from rapa_cli.runs import METRICS, write_rows
from tests.training import tiny

SETTINGS = Settings(
    epochs=1, seeds=1, data=("mini",), images=20, recipe="short", pools=("max", "average"), tiles=(8, 16)
)


def do(folder: Folder, job: Job) -> None:
    """Does a job in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(folder.path):
        assert app.run([*folder.command(job), "--json"]) == 0, job.words
    folder.keep(job, Ended(0, 0.0, json.loads(out.getvalue())))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Everything done."""
    place = tmp_path_factory.mktemp("experiments")
    (place / "arrays").mkdir()
    for name, count in (("train", 40), ("test", 30)):
        part = tiny.split(count, seed=count)
        # As large as the images that the tilings of the experiments are for.
        images = part.images.repeat_interleave(4, 2).repeat_interleave(4, 3).permute(0, 2, 3, 1)
        np.savez(place / "arrays" / f"{name}.npz", images=images.numpy(), labels=part.labels.numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPA_DATA_DIR", str(place / "data"))
        assert app.run(["data", "get", "mini", "--from", str(place / "arrays")]) == 0
        found = Folder(place / "done")
        found.make()
        for job in with_needs(job for name in EXPERIMENTS for job in EXPERIMENTS[name].jobs(SETTINGS)):
            if found.result(job) is None:
                do(found, job)
    return found


def results(folder: Folder, name: str) -> Results:
    return Results(folder, EXPERIMENTS[name].jobs(SETTINGS))


@pytest.mark.slow  # trains some twenty networks
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_is_filled(folder: Folder, name: str) -> None:
    measures = EXPERIMENTS[name].measures(SETTINGS, results(folder, name))
    # Networks that were hardly trained reach no 19 %, have no wrong image, no gap to close, or tiles of one filter.
    dispensable = ("epochs to", "of wrong images", "S of", "gap closed")
    for measure in measures:
        assert measure.mean is not None or measure.name.startswith(dispensable) or "wrong" in measure.name, measure
        assert all(math.isfinite(value) for value in measure.values)
        assert measure.paper is None, "the paper has no figure of this data set"
    for verdict in EXPERIMENTS[name].verdicts(SETTINGS, results(folder, name)):
        assert verdict.state in State


@pytest.mark.slow
def test_table_2_says_what_its_jobs_have_found(folder: Folder) -> None:
    found = results(folder, "table2")
    cells = {(each.row, each.column, each.name): each.mean for each in EXPERIMENTS["table2"].measures(SETTINGS, found)}
    run = SETTINGS.train("random", pool="max", seed=0)
    assert cells["max", "random", "last test error (%)"] == found[run]["test_error"]
    assert cells["max", "vote 5", "error (%)"] == found[SETTINGS.vote(run)]["vote_error"]
    assert cells["max", "reduced", "error (%)"] == found[SETTINGS.reduce(run)]["test_error_after"]


@pytest.mark.slow
def test_tables_and_the_page_are_written(folder: Folder) -> None:
    every = Results(folder, [job for name in EXPERIMENTS for job in EXPERIMENTS[name].jobs(SETTINGS)])
    experiments = EXPERIMENTS
    found = reproduction.findings(experiments, SETTINGS, every)
    failed = {SETTINGS.train("none", seed=9): "<the disk> is full"}
    paths = reproduction.write(folder, found, SETTINGS, every, failed, [])
    assert all(path.is_file() for path in paths)
    page = (folder.path / reproduction.PAGE).read_text()
    HTMLParser().feed(page)
    assert "&lt;the disk&gt; is full" in page
    for name, experiment in experiments.items():
        assert experiment.title in page
        document = json.loads((folder.path / "tables" / f"{name}.json").read_text())
        assert len(document["claims"]) == len(experiment.verdicts(SETTINGS, every))
    for picture in ("figure2", "figure4", "figure4-confidence", "tiles", "figure3-filters-max"):
        assert (folder.path / "figures" / f"{picture}.png").is_file(), picture


def test_what_was_not_run_stays_empty() -> None:
    for name, experiment in EXPERIMENTS.items():
        measures = experiment.measures(SETTINGS, {})
        assert all(each.mean is None or each.column == "analog time" for each in measures), name
        assert all(verdict.state is State.NOT_TESTED for verdict in experiment.verdicts(SETTINGS, {}))


def test_a_network_without_mistakes_leaves_no_gap() -> None:
    def sweep(job: Job) -> dict[str, Any]:
        gap = {} if job.option("--baseline") is None else {"gap_closed": None, "gap_closed_ci95": [None, None]}
        return {"points": [{"asked": {"snr_db": 33.0}, "accuracy": 100.0, **gap}]}

    settings = Settings(seeds=1)
    found = {job: sweep(job) for job in EXPERIMENTS["figure4"].jobs(settings) if job.words[0] == "attack"}
    gaps = [each for each in EXPERIMENTS["figure4"].measures(settings, found) if each.name == "gap closed (%)"]
    assert [each.mean for each in gaps] == [None, None]
    states = {each.state for each in EXPERIMENTS["figure4"].verdicts(settings, found)}
    assert states == {State.NOT_TESTED}


def test_random_is_the_best_only_of_all_schemes() -> None:
    settings = Settings(seeds=1, schemes=("random", "perforated"), data=("mini",))

    def best(**errors: float) -> State:
        found = {
            settings.train(scheme.replace("_", "-"), seed=0): {"test_error": error, "test_images": 10_000}
            for scheme, error in errors.items()
        }
        verdicts = EXPERIMENTS["table1"].verdicts(settings, found)
        return next(each for each in verdicts if each.claim.startswith("random is the best")).state

    assert best(random=20.0, perforated=33.0) is State.NOT_TESTED
    assert best(random=20.0, perforated=10.0) is State.FAILS
    others = {"random_fixed": 25.0, "image_overlap": 25.0, "image_pad": 25.0, "alternate": 25.0}
    assert best(random=20.0, perforated=33.0, **others) is State.HOLDS


def test_learning_speed_has_a_mean_only_where_all_trainings_got_there() -> None:
    settings = Settings(seeds=3)

    def untiled(*errors: float) -> Measure:
        runs = [settings.train("none", pool="mixed", seed=seed) for seed in range(len(errors))]
        found = {
            run: {"test_errors": [40.0, error], "vote_errors": None} for run, error in zip(runs, errors, strict=True)
        }
        return EXPERIMENTS["learning-speed"].measures(settings, found)[0]

    some, none, every = untiled(18.0, 25.0, 25.0), untiled(25.0), untiled(18.0, 18.5)
    assert (some.mean, some.difference, some.note) == (None, None, "reached by 1 of 3")
    assert reproduction.cell(some) == "reached by 1 of 3 (paper 82)"
    assert none.note == "reached by 0 of 1"
    assert (every.mean, every.note, len(every.values)) == (2.0, "", 2)


def test_the_papers_train_errors_stand_beside_the_lowest(tmp_path: Path) -> None:
    settings, folder = Settings(seeds=1, data=("cifar10",), schemes=("none",)), Folder(tmp_path)
    run = settings.train("none", seed=0)
    folder.make()
    make_folder(tmp_path / run.run)
    rows = [dict.fromkeys(METRICS, 0.0) | {"epoch": epoch, "train_error": error} for epoch, error in ((1, 3), (2, 5))]
    write_rows(tmp_path / run.run, "metrics", rows, lines=True)
    document = {"test_error": 20.0, "best_test_error": 19.0, "train_error": 5.0, "test_errors": [], "test_images": 9}
    folder.keep(run, Ended(0, 0.0, document))
    measures = EXPERIMENTS["table1"].measures(settings, Results(folder, [run]))
    figures = {each.name: (each.mean, each.paper) for each in measures}
    assert figures["lowest train error (%)"] == (3.0, 2.37)
    assert figures["last train error (%)"] == (5.0, None)
    (tmp_path / run.run / "metrics.jsonl").unlink()
    measures = EXPERIMENTS["table1"].measures(settings, Results(folder, [run]))
    assert next(each for each in measures if each.name == "lowest train error (%)").mean is None


def test_a_cell_has_digits_that_say_something_and_the_difference_to_the_paper() -> None:
    def cell(*values: float, theirs: float | None = None) -> str:
        return reproduction.cell(Measure("", "", "", "", values, theirs))

    assert cell(19.17, theirs=18.85) == "19.17 (paper 18.85, +0.32)"
    assert cell(theirs=18.85) == "(paper 18.85)"
    assert cell(0.000123) == "0.000123"
    assert cell(0.5, 0.5) == "0.500 ± 0.00"
    assert cell(17.0, 18.0) == "17.50 ± 0.50"
    assert cell() == ""


def test_the_page_says_what_is_not_the_papers_and_how_to_repeat_it(tmp_path: Path) -> None:
    settings = Settings(epochs=20, seeds=1, data=("cifar10", "my data"), recipe="short", changes=("lr=0.001",))
    folder = Folder(tmp_path)
    folder.make()
    chosen = named(("table1", "figure3"))
    every = Results(folder, [])
    lost = settings.train("none", seed=0), settings.train("random", seed=0)
    findings = reproduction.findings(chosen, settings, every)
    reproduction.write(folder, findings, settings, every, {lost[0]: "the disk is full"}, [lost[1]])
    page = html.unescape((tmp_path / reproduction.PAGE).read_text())
    assert "recipe short instead of the paper's, with lr=0.001, 20 epochs instead of 400, 1 seed instead of 3" in page
    assert page.index(lost[0].name) < page.index("the disk is full") < page.index(lost[1].name)
    words = "--set lr=0.001 --epochs 20 --seeds 1 --data 'cifar10,my data' --recipe short --out ."
    assert f"rapa reproduce table1 figure3 {words}" in page
    assert Settings().words == Settings().scaled_down == []
    assert Settings(pools=("max",), data=("svhn",)).scaled_down == []
    found = reproduction.findings(EXPERIMENTS, Settings(), every)
    reproduction.write(folder, found[:1], Settings(), every, {}, [])
    assert "These are not the paper's settings" not in html.unescape((tmp_path / reproduction.PAGE).read_text())


def test_figures_say_what_is_seen_and_have_their_numbers_behind_them(tmp_path: Path) -> None:
    settings, folder = Settings(seeds=1, tiles=(16, 32)), Folder(tmp_path)
    folder.make()
    chosen = named(("figure3", "figure4", "tiles", "regularizer"))
    points = [
        {"asked": {"snr_db": 50.0}, "snr_db": 50.125, "accuracy": 98.25, "ci95": [97.5, 99.0]},
        {"asked": {"snr_db": 33.0}, "snr_db": 33.5, "accuracy": None, "ci95": [None, None]},
    ]
    sure = {"mean": 81.5, "over_90": 50.0, "mean_wrong": None, "se_wrong": None, "histogram": [1, 3]}
    keys = ["regularizer", "approximation", "variance", "train_loss", "test_loss", "test_error", "gap"]
    keys += [f"{how}_{split}_loss" for how in ("mean", "averaged") for split in ("train", "test")]
    documents: dict[str, dict[str, Any]] = {
        "attack": {"points": points},
        "evaluate": {"confidence": [{"snr_db": None, **sure}, {"snr_db": 33.0, **sure}]},
        "inspect": {"layers": [{"similarity": 0.125}, {"similarity": 0.25}]},
        "vote": {"single_error": 20.0, "vote_error": 19.0, "gain_se": 0.1},
        "regularizer": {
            "data": "cifar10",
            "classes": ["cat", "dog"],
            "images": 200,
            "rows": [
                {"training": "rate x tiles", "tiles": tiles, "seed": [0], **{key: [0.375 * tiles] for key in keys}}
                for tiles in (1, 2, 4)
            ],
        },
    }
    jobs = with_needs(job for experiment in chosen.values() for job in experiment.jobs(settings))
    for job in jobs:
        if not job.trains:
            folder.keep(job, Ended(0, 0.0, documents[job.words[0]]))
    results = Results(folder, jobs)
    reproduction.write(folder, reproduction.findings(chosen, settings, results), settings, results, {}, [])
    page = html.unescape((tmp_path / reproduction.PAGE).read_text())
    assert page.count("Numbers behind this figure") == 5
    assert "none: 98.2 % at 50 dB." in page
    assert ">97.50 to 99.00<" in page
    assert "none, without noise: mean 81.5 %, 50.0 % of images above 90 %." in page
    assert ">75.00<" in page, "of the histogram"
    assert "max pooling: 0.125 in convolution 1, 0.250 in convolution 2." in page
    assert "vote 5: error (%): 19.00 with 16 tiles and 19.00 with 32 tiles." in page
    assert "R, rate x tiles: 0.750 with 2 tiles, 1.50 with 4 tiles." in page


def test_experiments_share_their_trainings() -> None:
    settings = Settings(seeds=1)
    trained = [{job.name for job in with_needs(EXPERIMENTS[name].jobs(settings)) if job.trains} for name in EXPERIMENTS]
    assert sum(map(len, trained)) > len(set().union(*trained))
    first, second = EXPERIMENTS["table1"].jobs(settings), EXPERIMENTS["figure4"].jobs(settings)
    assert settings.train("none", seed=0) in first
    assert settings.train("none", seed=0) in with_needs(second)


def test_the_papers_settings_are_the_default() -> None:
    settings = Settings()
    assert settings.train("none", seed=0).option("--recipe") == "paper-none"
    assert settings.train("random", seed=0).option("--recipe") == "paper-tiled"
    assert settings.train("random", seed=0).option("--epochs") == "400"
    table1 = EXPERIMENTS["table1"].jobs(settings)
    assert len(table1) == 8 * 3 * 3
    assert len(with_needs(EXPERIMENTS["table2"].jobs(settings))) == 4 * 3 * (3 + 2)


def test_the_papers_figures() -> None:
    assert paper("table1", "svhn", "random-fixed") == [11.28, 2.25]
    assert paper("table2", "stochastic", "vote") == 18.84
    assert paper("table2", "nowhere", "vote") is None
    measure = Measure("table2", "max", "vote", "error (%)", (17.0, 18.0), paper("table2", "max", "vote"))
    assert (measure.mean, measure.se) == (17.5, 0.5)
    assert measure.difference == pytest.approx(0.61)


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match="there is no experiment 'tabel1'") as error:
        named(("tabel1",))
    assert error.value.hint == "did you mean 'table1'?"
    assert list(named(("all",))) == list(EXPERIMENTS)


def test_jobs_get_options_that_their_commands_have(tmp_path: Path) -> None:
    program: Any = typer.main.get_command(app.app)
    engine = LocalEngine(Folder(tmp_path), slots=1, threads=1, devices=["cpu"], data_dir=tmp_path)
    planned = [job for experiment in EXPERIMENTS.values() for job in experiment.jobs(Settings(seeds=1))]
    asked = {job.words[0]: engine.words(job, "cpu") for job in with_needs(planned)}
    assert {"train", "vote", "regularizer"} <= asked.keys()
    for command, words in asked.items():
        known = {name for parameter in program.commands[command].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
