"""Several processes train as one does: real processes, started by torchrun, that talk by gloo.

Starting them takes seconds, so one start does all that needs no command line: `_work` below runs in each process, and
the tests look at what it left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapa_cli import app, checkpoint, runs
from rapa_cli.errors import FileError, Interrupted, RapaError
from rapa_cli.kernels import cpu
from rapa_cli.training import loop, parallel
from rapa_cli.training.parallel import Team
from rapa_cli.training.stopping import StopRequest
from rapa_cli.training.world import world
from tests.commands.conftest import TRAIN
from tests.tolerances import assert_near
from tests.training import tiny
from tests.training.test_resume import Stopper

_ROOT = Path(__file__).parents[2]

# 29 images in batches of 7: the last batch is one image, of which one of two processes has none.
_TRAIN, _TEST, _STEPS = 29, 13, 5
_CASES: dict[str, dict[str, Any]] = {
    "one tile": {},
    "random": {"scheme": "random", "tiles": (4, 2)},
    "perforated": {"scheme": "perforated", "tiles": (2, 2)},
    "stochastic": {"scheme": "random-fixed", "pool": "stochastic"},
    "mixed": {"scheme": "image-overlap", "pool": "mixed"},
    "inference": {"scheme": "random", "tiles": (4, 2), "arrays": "Inference"},
}
_RECIPE: dict[str, Any] = {"epochs": 2, "momentum": 0.9, "brightness": 0.2, "weight_decay": 0.01, "lr": 0.01}


def data() -> Any:
    return tiny.data_set(_TRAIN, _TEST)


def manifest(network: dict[str, Any], **changes: Any) -> runs.Manifest:
    recipe = tiny.recipe(**{**_RECIPE, **changes})
    return runs.Manifest(network=tiny.definition(**network), recipe=recipe, data="tiny", seed=3)


def train(folder: Path, team: Team, network: dict[str, Any], *stops: Stopper, **changes: Any) -> None:
    """A training from its beginning, stopped and gone on with as often as there are stops."""
    folder.mkdir(exist_ok=True)
    plan = manifest(network, **changes)
    training = loop.begin(folder, plan, data(), loop.untrained(plan, data(), tiny.CPU, team), team)
    for stopper in stops:
        with pytest.raises(Interrupted), StopRequest() as stop:
            training.run(stopper, stop)
        training = loop.resume(folder, training.manifest, data(), tiny.CPU, team)
    with StopRequest() as stop:
        training.run(Stopper(), stop)


def stop_only(folder: Path, team: Team, stopper: Stopper) -> str:
    """A training that is stopped; the exit code and the progress then."""
    folder.mkdir(exist_ok=True)
    plan = manifest(_CASES["random"])
    training = loop.begin(folder, plan, data(), loop.untrained(plan, data(), tiny.CPU, team), team)
    try:
        with StopRequest() as stop:
            training.run(stopper, stop)
    except Interrupted as error:
        return f"{error.exit_code} {training.progress.epoch} {training.progress.step}"
    return "not stopped"


def go_on(folder: Path, team: Team) -> None:
    """What is left of a training that was stopped."""
    plan = runs.read_manifest(folder) if team.first else manifest(_CASES["random"])
    plan = team.from_first(lambda: plan)
    with StopRequest() as stop:
        loop.resume(folder, plan, data(), tiny.CPU, team).run(Stopper(), stop)


def _refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except RapaError as error:
        return f"{type(error).__name__} {error.exit_code} {error.message}"
    return "nothing was raised"


def _work(folder: Path) -> None:
    """What each process does in the one start that most tests share."""
    seen: dict[str, Any] = {}
    with parallel.joined() as team:
        assert team.size == 2
        for name, network in _CASES.items():
            train(folder / name, team, network)
        # A signal that comes to one process alone, in a step and in the test.
        for rank in (0, 1):
            stops = [Stopper(after=_STEPS + 2), Stopper(testing=1, number=signal.SIGTERM)]
            calm = [Stopper(), Stopper()]
            train(folder / f"stopped {rank}", team, _CASES["random"], *(stops if team.rank == rank else calm))
        first = Stopper(after=_STEPS + 2, number=signal.SIGTERM) if team.first else Stopper()
        seen["stop"] = stop_only(folder / "two then one", team, first)
        go_on(folder / "one then two", team)

        def start(network: dict[str, Any], images: Any = None, **changes: Any) -> object:
            return loop.untrained(manifest(network, **changes), images or data(), tiny.CPU, team)

        refused = {
            "pulses": lambda: start({"arrays": "ReRamES"}),
            "range": lambda: start({"arrays": "StandardHWATraining"}),
            "modifier": lambda: start(
                {"arrays": {"preset": "Inference", "modifier": {"type": "AddNormal", "std_dev": 0.1}}}
            ),
            "average": lambda: start(
                {"arrays": {"preset": "Inference", "forward": {"noise_management": "AverageAbsMax"}}}
            ),
            "batch": lambda: start({}, batch_size=1),
            "images": lambda: start({}, tiny.data_set(_TRAIN + team.rank, _TEST)),
            "diverged": lambda: train(folder / "diverged", team, {}, lr=1e30),
            "folder": lambda: team.from_first(lambda: runs.read_manifest(folder / "nowhere")),
            "options": lambda: team.same_options({"--lr": 0.1, "--epochs": team.rank + 3}),
            "kinds": lambda: team.device(lambda: torch.device("meta")),
            "second": lambda: _second_fails(team),
        }
        seen |= {name: _refusal(action) for name, action in refused.items()}
        seen["by host"] = team.by_host(lambda: team.rank)
        seen["total"] = team.total(team.rank + 0.5, 1)
        (folder / f"seen{team.rank}.json").write_text(json.dumps(seen), encoding="utf-8")


def _second_fails(team: Team) -> None:
    with team.together():
        if team.rank == 1:
            raise FileError("the second has no disk", hint="buy one")


def torchrun(*words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *words]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `_work` left."""
    folder = tmp_path_factory.mktemp("parallel")
    stopped = stop_only(folder / "one then two", parallel.ALONE, Stopper(after=_STEPS + 2, number=signal.SIGTERM))
    assert stopped == "143 1 2"
    done = subprocess.run(
        torchrun("tests.training.test_parallel", str(folder)), cwd=_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def seen(folder: Path, name: str) -> list[Any]:
    """What both processes saw."""
    return [json.loads((folder / f"seen{rank}.json").read_text(encoding="utf-8"))[name] for rank in (0, 1)]


def alike(one: Path, other: Path) -> None:
    """Two run folders hold the same weights, momentum, progress and metrics, up to rounding."""
    for name in (runs.LAST, runs.BEST):
        first, second = checkpoint.read(one / name), checkpoint.read(other / name)
        for tensors, others in ((first.state, second.state), (first.optimizer, second.optimizer)):
            assert list(tensors) == list(others)
            for key, tensor in tensors.items():
                if tensor.is_floating_point():
                    assert_near(tensor, others[key])
                else:
                    assert torch.equal(tensor, others[key]), key
        assert first.description.progress is not None
        assert second.description.progress is not None
        without = {"seconds": 0.0}
        assert first.description.progress.model_copy(update=without) == second.description.progress.model_copy(
            update=without
        )
    for row, expected in zip(runs.read_metrics(one), runs.read_metrics(other), strict=True):
        for key, value in row.items():
            # Errors are counts, which rounding does not reach.
            assert value == (expected[key] if key.endswith("error") else pytest.approx(expected[key], rel=1e-5)), key


@pytest.mark.parametrize("name", _CASES)
def test_two_processes_train_as_one(folders: Path, tmp_path: Path, name: str) -> None:
    if name == "inference" and not cpu.available():
        pytest.skip("without a C compiler noise is drawn for a whole batch, not for each image")
    train(tmp_path, parallel.ALONE, _CASES[name])
    alike(folders / name, tmp_path)


@pytest.mark.parametrize("name", ["stopped 0", "stopped 1", "two then one", "one then two"])
def test_stopped_and_gone_on_with(folders: Path, tmp_path: Path, name: str) -> None:
    if name == "two then one":
        assert seen(folders, "stop") == ["143 1 2"] * 2
        go_on(folders / name, parallel.ALONE)
    train(tmp_path, parallel.ALONE, _CASES["random"])
    alike(folders / name, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pulses", "ConfigError 2 layer 'conv1' cannot be trained by several processes: its arrays learn by pulses"),
        ("range", "ConfigError 2 layer 'conv1' cannot be trained by several processes: the input range"),
        ("modifier", "ConfigError 2 layer 'conv1' cannot be trained by several processes: its weights are modified"),
        ("average", "ConfigError 2 layer 'conv1' cannot be trained by several processes: the noise management"),
        ("batch", "ConfigError 2 --batch-size 1: that is less than one image for each of 2 processes"),
        ("images", "ConfigError 2 data set 'tiny' of process 1 has other images than that of process 0"),
        ("options", "ConfigError 2 --epochs: process 0 was started with 3, process 1 with 4"),
        ("kinds", "ConfigError 2 --device: the processes have meta, allowed are"),
        (
            "diverged",
            "CheckFailed 4 the training diverged in epoch 1, by step 2: the output of layer",
        ),
    ],
)
def test_all_processes_refuse_alike(folders: Path, name: str, message: str) -> None:
    one, other = seen(folders, name)
    assert one == other
    assert one.startswith(message)


def test_what_befalls_one_process_is_raised_in_all(folders: Path) -> None:
    first, other = seen(folders, "second")
    assert first.startswith("RapaError 3 the second has no disk (process 1 on ")
    assert other == "FileError 3 the second has no disk"
    first, other = seen(folders, "folder")
    assert first.startswith("FileError 3 there is no run folder")
    assert other == first.replace("FileError", "RapaError")


def test_sums_and_turns(folders: Path) -> None:
    assert seen(folders, "total") == [[2.0, 2.0]] * 2
    assert seen(folders, "by host") == [0, 1]


def test_only_the_first_writes(folders: Path) -> None:
    names = {"run.json", "metrics.csv", "metrics.jsonl", "timing.csv", "last.safetensors", "best.safetensors"}
    assert {path.name for path in (folders / "random").iterdir()} == names
    assert [path.name for path in (folders / "diverged").iterdir()] == ["run.json"]


@given(st.integers(0, 1000), st.integers(1, 20))
def test_parts_are_all_images_once(count: int, size: int) -> None:
    parts = [Team(rank, size).part(count) for rank in range(size)]
    assert [image for part in parts for image in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == -(-count // size)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"WORLD_SIZE": "2"}, (0, 1)),
        ({"RANK": "", "WORLD_SIZE": "many"}, (0, 1)),
    ],
)
def test_the_world(environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert world(environment) == expected


def test_one_process_is_alone() -> None:
    with parallel.joined() as team:
        assert team is parallel.ALONE
        assert not torch.distributed.is_initialized()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a data set and a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAPA_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "tiny.toml").write_text(tiny.TOML, encoding="utf-8")
    tiny.write_arrays(tmp_path / "arrays", train=60, test=30)
    assert app.run(["data", "get", "mini", "--from", "arrays"]) == 0
    return tmp_path


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """A command by two processes."""
    return subprocess.run(torchrun("rapa_cli", *words), capture_output=True, text=True, check=False)


def told(text: str) -> list[str]:
    """Lines of standard error without those of torchrun, which come after ours or begin with a letter and a date."""
    lines = text.partition("\nTraceback")[0].splitlines()
    return [line for line in lines if not (line[:1] in "WE" and line[1:5].isdigit())]


@pytest.mark.slow
def test_the_command_speaks_once(here: Path) -> None:
    words = [*TRAIN, "--scheme", "random", "--tiles", "4", "--epochs", "2", "--json"]
    done = command(*words)
    document = json.loads(done.stdout)
    assert done.returncode == 0
    (folder,) = (here / "runs").iterdir()
    assert document["run"] == f"runs/{folder.name}"
    lines = told(done.stderr)
    assert lines[1:3] == ["2 epochs, batch 10 by 2 processes, rate 0.003, seed 0", f"run folder {document['run']}"]
    assert [line.split("  ")[0] for line in lines[3:]] == ["epoch 1/2", "epoch 2/2"]
    assert runs.read_manifest(folder).provenance["processes"] == "2"
    assert app.run([*words, "--out", "one"]) == 0
    alike(folder, Path("one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "--epochz", "3"], 2, "error: no such option: --epochz"),
        (["train", "--data", "nowhere"], 3, "error: there is no data set 'nowhere'"),
        ([*TRAIN, "--out", "full"], 2, "error: --out full: there is a run in this folder already"),
    ],
)
def test_errors_are_told_once(here: Path, words: list[str], code: int, message: str) -> None:
    (here / "full").mkdir()
    (here / "full" / runs.MANIFEST).touch()
    done = command(*words)
    first, hint = told(done.stderr)
    assert first.startswith(message)
    assert hint.startswith("hint: ")
    assert done.stdout == ""
    assert done.returncode == 1, "torchrun has one exit code for all failures"
    assert f"(exitcode: {code})" in done.stderr


_LATE = """
import os, time
from pathlib import Path
from rapa_cli import __main__
from rapa_cli.commands import train
failed = Path("failed")
sleep = time.sleep
if os.environ["RANK"] == "0":
    while not failed.exists():
        sleep(0.1)
else:
    train.time.sleep = lambda seconds: (failed.touch(), sleep(seconds))
__main__.main()
"""


@pytest.mark.slow
def test_a_first_process_that_is_late_still_speaks(here: Path) -> None:
    """torchrun ends it as soon as the other has ended with the error of both."""
    (here / "late.py").write_text(_LATE, encoding="utf-8")
    done = subprocess.run(torchrun("late", "train", "--epochz", "3"), capture_output=True, text=True, check=False)
    assert [line.partition(":")[0] for line in told(done.stderr)] == ["error", "hint"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_a_signal_to_torchrun(here: Path, number: int, word: str) -> None:
    words = torchrun("rapa_cli", *TRAIN, "--epochs", "3000", "--out", "here")
    environment = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch "):
                break
        process.send_signal(number)
        out, rest = process.communicate(timeout=300)
    assert process.returncode == 1, rest
    assert out == ""
    lines = [line for line in told(rest) if not line.startswith("epoch ")]
    assert lines == ["saved; go on with: torchrun ... -m rapa_cli train --resume here", word]
    progress = checkpoint.read(here / "here" / runs.LAST).description.progress
    assert progress is not None
    epochs = str(progress.epoch + 1)
    assert app.run(["train", "--resume", "here", "--epochs", epochs]) == 0
    # The whole training by one process, which was never stopped.
    assert app.run([*TRAIN, "--epochs", epochs, "--out", "whole"]) == 0
    alike(Path("here"), Path("whole"))


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
