"""A run that was stopped goes on as if it had not been, to the last bit."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rapa_cli import checkpoint, runs
from rapa_cli.checkpoint import Progress
from rapa_cli.errors import CheckFailed, ConfigError, FileError, Interrupted
from rapa_cli.training import loop
from rapa_cli.training.loop import Sums
from rapa_cli.training.stopping import StopRequest
from tests.training import tiny

STEPS = 5
"""Of an epoch: 30 images, 7 in a batch."""


class Stopper:
    """Sends the process a signal after some step, or when testing begins."""

    def __init__(self, *, after: int = -1, testing: int = -1, number: int = signal.SIGINT, times: int = 1) -> None:
        self.after, self.tested, self.number, self.times = after, testing, number, times

    def stop(self) -> None:
        for _ in range(self.times):
            signal.raise_signal(self.number)

    def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
        if epoch * steps + step == self.after:
            self.stop()

    def testing(self, epoch: int) -> None:
        if epoch == self.tested:
            self.stop()

    def epoch(self, row: Mapping[str, Any], progress: Progress, images_per_second: float) -> None:
        pass


def run(training: loop.Training, stopper: Stopper) -> None:
    with StopRequest() as stop:
        training.run(stopper, stop)


def resumed(folder: Path, **changes: Any) -> loop.Training:
    manifest = runs.read_manifest(folder)
    recipe = manifest.recipe.model_copy(update=changes)
    return loop.resume(folder, manifest.model_copy(update={"recipe": recipe}), tiny.data_set(), tiny.CPU)


def same(one: Path, other: Path) -> None:
    """Two run folders hold the same weights, momentum, progress and metrics."""
    for name in (runs.LAST, runs.BEST):
        first, second = checkpoint.read(one / name), checkpoint.read(other / name)
        for tensors, others in ((first.state, second.state), (first.optimizer, second.optimizer)):
            assert list(tensors) == list(others)
            assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())
        times = {"seconds": 0.0}
        assert first.description.progress is not None
        assert second.description.progress is not None
        assert first.description.progress.model_copy(update=times) == second.description.progress.model_copy(
            update=times
        )
    for name in ("metrics.csv", "metrics.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    "network",
    [
        {"scheme": "random"},
        {"scheme": "random-fixed", "tiles": (8, 4)},
        {"scheme": "perforated", "tiles": (2, 2)},
        {"scheme": "random", "pool": "stochastic"},
        {"scheme": "image-pad", "pool": "mixed"},
        {"pool": "stochastic"},
    ],
    ids=lambda network: "-".join(str(value) for value in network.values()),
)
def test_resumed_to_the_last_bit(tmp_path: Path, network: dict[str, Any], momentum: float) -> None:
    changes: dict[str, Any] = {
        "epochs": 3,
        "momentum": momentum,
        "brightness": 0.2,
        "step_epochs": 1,
        "step_factor": 0.5,
    }
    run(tiny.begin(tmp_path / "whole", network=network, **changes), Stopper())
    training = tiny.begin(tmp_path / "parts", network=network, **changes)
    stops = [Stopper(after=2), Stopper(after=STEPS), Stopper(testing=1), Stopper(after=2 * STEPS + 4)]
    for stopper in stops:
        with pytest.raises(Interrupted):
            run(training, stopper)
        training = resumed(tmp_path / "parts")
    run(training, Stopper())
    same(tmp_path / "whole", tmp_path / "parts")


_ON_ARRAYS: dict[str, dict[str, Any]] = {
    "constant steps": {"preset": "Idealized", "merge": 0},
    "steps of the state": {"preset": "EcRam", "merge": 40},
    "write noise": {"preset": "ReRamES", "merge": 0},
    "decay": {"preset": "Capacitor", "merge": 0, "device": {"lifetime": 20.0, "diffusion": 0.001}},
    "read in torch": {"preset": "GokmenVlasov", "merge": 0, "forward": {"noise_management": "AverageAbsMax"}},
    "split": {"preset": "Idealized", "merge": 0, "mapping": {"max_input_size": 20}},
    "inference": {"preset": "StandardHWATraining", "input_range": {"init_from_data": 6}},
    "modified": {
        "preset": "StandardHWATraining",
        "modifier": {"type": "AddNormal", "std_dev": 0.1},
        "clip": {"type": "LayerGaussian", "fixed_value": -1.0},
    },
}


@pytest.mark.parametrize("name", _ON_ARRAYS)
def test_on_arrays_resumed_to_the_last_bit(tmp_path: Path, name: str) -> None:
    network = {"scheme": "random", "arrays": _ON_ARRAYS[name]}
    changes: dict[str, Any] = {"momentum": 0.9, "step_epochs": 1, "step_factor": 0.5}
    run(tiny.begin(tmp_path / "whole", network=network, **changes), Stopper())
    training = tiny.begin(tmp_path / "parts", network=network, **changes)
    start = {key: values.clone() for key, values in training.network.state_dict().items()}
    for stopper in (Stopper(after=2), Stopper(after=STEPS + 4)):
        with pytest.raises(Interrupted):
            run(training, stopper)
        training = resumed(tmp_path / "parts")
    run(training, Stopper())
    same(tmp_path / "whole", tmp_path / "parts")
    state = checkpoint.read(tmp_path / "parts" / runs.LAST).state
    weight = "weight" if "conv1.weight" in state else "matrices.0.weight"
    for layer in ("conv1", "conv2", "linear1"):
        assert not torch.equal(state[f"{layer}.{weight}"], start[f"{layer}.{weight}"])
    loaded = checkpoint.load(tmp_path / "parts")
    assert all(torch.equal(values, state[key]) for key, values in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_what_is_saved_when_a_signal_comes(tmp_path: Path, number: int, code: int, word: str) -> None:
    training = tiny.begin(tmp_path, epochs=3, momentum=0.5)
    with pytest.raises(Interrupted) as caught:
        run(training, Stopper(after=STEPS + 2, number=number))
    assert (caught.value.exit_code, caught.value.message) == (code, word)
    saved = checkpoint.read(tmp_path / runs.LAST).description.progress
    assert saved == training.progress
    assert saved is not None
    assert (saved.epoch, saved.step, saved.seen, saved.images) == (1, 2, 14, 44)
    assert saved.loss_sum > 0
    assert [row["epoch"] for row in runs.read_metrics(tmp_path)] == [1]


def test_the_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.exit_code == 143
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_saves_nothing(tmp_path: Path) -> None:
    training = tiny.begin(tmp_path, epochs=3, network={"scheme": "random"})
    with pytest.raises(KeyboardInterrupt):
        run(training, Stopper(after=STEPS + 2, times=2))
    saved = checkpoint.read(tmp_path / runs.LAST).description.progress
    assert saved == training.progress
    assert saved is not None
    assert (saved.epoch, saved.step) == (1, 0)
    run(resumed(tmp_path), Stopper())
    run(tiny.begin(tmp_path / "whole", epochs=3, network={"scheme": "random"}), Stopper())
    same(tmp_path, tmp_path / "whole")


@pytest.mark.parametrize("stopper", [Stopper(after=STEPS + 3), Stopper(testing=1)], ids=["in a step", "in the test"])
def test_a_diverged_state_is_not_saved(tmp_path: Path, stopper: Stopper) -> None:
    run(tiny.begin(tmp_path, epochs=1), Stopper())
    good = (tmp_path / runs.LAST).read_bytes()
    with pytest.raises(CheckFailed, match="diverged in epoch 2"):
        run(resumed(tmp_path, epochs=2, lr=1e30), stopper)
    assert (tmp_path / runs.LAST).read_bytes() == good


@pytest.mark.parametrize("stop", [True, False], ids=["a signal", "the end of the epoch"])
def test_weights_that_a_step_has_ruined_are_not_saved(tmp_path: Path, stop: bool) -> None:
    run(tiny.begin(tmp_path, epochs=1), Stopper())
    good = (tmp_path / runs.LAST).read_bytes()
    training = resumed(tmp_path, epochs=2)

    class Ruining(Stopper):
        def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
            if step == steps:
                # No loss has been computed from it yet.
                with torch.no_grad():
                    next(training.network.parameters()).fill_(float("nan"))
                if stop:
                    self.stop()

    with pytest.raises(CheckFailed, match="diverged in epoch 2, by step 5: the loss or a weight is not finite"):
        run(training, Ruining())
    assert (tmp_path / runs.LAST).read_bytes() == good


def test_before_the_first_checkpoint(tmp_path: Path) -> None:
    tiny.begin(tmp_path / "begun", network={"scheme": "random"})
    run(resumed(tmp_path / "begun"), Stopper())
    run(tiny.begin(tmp_path / "whole", network={"scheme": "random"}), Stopper())
    same(tmp_path / "begun", tmp_path / "whole")


def test_more_epochs(tmp_path: Path) -> None:
    for name, epochs in (("short", 1), ("long", 3)):
        run(tiny.begin(tmp_path / name, epochs=epochs, momentum=0.9), Stopper())
    run(resumed(tmp_path / "short", epochs=3), Stopper())
    same(tmp_path / "short", tmp_path / "long")
    assert runs.read_manifest(tmp_path / "short").recipe.epochs == 3


def test_a_run_that_is_done(tmp_path: Path) -> None:
    run(tiny.begin(tmp_path), Stopper())
    before = (tmp_path / runs.LAST).read_bytes()
    run(resumed(tmp_path), Stopper())
    assert (tmp_path / runs.LAST).read_bytes() == before


def test_a_run_folder_can_be_moved(tmp_path: Path) -> None:
    run(tiny.begin(tmp_path / "whole"), Stopper())
    with pytest.raises(Interrupted):
        run(tiny.begin(tmp_path / "here"), Stopper(after=2))
    shutil.move(tmp_path / "here", tmp_path / "there")
    run(resumed(tmp_path / "there"), Stopper())
    same(tmp_path / "whole", tmp_path / "there")


def test_rows_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    run(tiny.begin(tmp_path / "whole"), Stopper())
    run(tiny.begin(tmp_path / "parts", epochs=1), Stopper())
    saved = (tmp_path / "parts" / runs.LAST).read_bytes()
    run(resumed(tmp_path / "parts", epochs=2), Stopper())
    # As if the process had died after the metrics of the second epoch, before its checkpoint.
    (tmp_path / "parts" / runs.LAST).write_bytes(saved)
    run(resumed(tmp_path / "parts"), Stopper())
    same(tmp_path / "whole", tmp_path / "parts")


def _lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:1], "ends with epoch 1, and .* is of epoch 3"),
        (lambda lines: [lines[0], lines[2]], "line 2 is of epoch 3, and line 1 of epoch 1"),
        (lambda lines: lines * 2, "line 4 is of epoch 1, and line 1 of epoch 1"),
        (lambda lines: [lines[0].replace('"epoch": 1', '"epoch": -1'), *lines[1:]], "line 1 is no row of metrics"),
        (lambda lines: [lines[0].replace('"epoch": 1', '"epoch": 0'), *lines[1:]], "line 1 is no row of metrics"),
    ],
    ids=["the last lost", "one lost", "doubled", "negative", "epoch 0"],
)
def test_metrics_that_are_not_of_each_epoch_are_refused(
    tmp_path: Path, change: Callable[[list[str]], list[str]], said: str
) -> None:
    run(tiny.begin(tmp_path, epochs=3), Stopper())
    damaged = "".join(change(_lines(tmp_path)))
    (tmp_path / "metrics.jsonl").write_text(damaged, encoding="utf-8")
    with pytest.raises(FileError, match=said) as caught:
        resumed(tmp_path, epochs=4)
    assert caught.value.hint
    assert "".join(_lines(tmp_path)) == damaged


def test_a_run_goes_on_without_the_metrics_that_were_deleted(tmp_path: Path) -> None:
    run(tiny.begin(tmp_path / "whole", epochs=4), Stopper())
    run(tiny.begin(tmp_path / "parts", epochs=2), Stopper())
    (tmp_path / "parts" / "metrics.jsonl").unlink()
    run(resumed(tmp_path / "parts", epochs=3), Stopper())
    run(resumed(tmp_path / "parts", epochs=4), Stopper())
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")[2:]


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """The checkpoint with other tensors of the optimizer."""
    saved = checkpoint.read(path)
    optimizer = dict(saved.optimizer)
    change(optimizer)
    checkpoint.save(path, saved.description, saved.state, optimizer)


def test_damaged_checkpoints(tmp_path: Path) -> None:
    run(tiny.begin(tmp_path, momentum=0.9), Stopper())
    rewrite(tmp_path / runs.LAST, lambda tensors: tensors.update({"conv1.weight": torch.zeros(3)}))
    with pytest.raises(FileError, match=r"the momentum of 'conv1\.weight' has the wrong shape") as caught:
        resumed(tmp_path)
    assert caught.value.hint
    save_file({}, tmp_path / runs.LAST, {})
    with pytest.raises(FileError, match="cannot be used"):
        resumed(tmp_path)
    (tmp_path / runs.LAST).unlink()
    (tmp_path / runs.LAST).mkdir()
    with pytest.raises(FileError, match="is a folder"):
        resumed(tmp_path)


def test_the_checkpoint_of_another_run(tmp_path: Path) -> None:
    for name, scheme in (("one", "none"), ("two", "random")):
        run(tiny.begin(tmp_path / name, epochs=1, network={"scheme": scheme}), Stopper())
    shutil.copy(tmp_path / "one" / runs.LAST, tmp_path / "two" / runs.LAST)
    with pytest.raises(FileError, match="does not belong to the run"):
        resumed(tmp_path / "two", epochs=2)


def test_other_images(tmp_path: Path) -> None:
    run(tiny.begin(tmp_path, epochs=1), Stopper())
    other = tiny.data_set()
    other = type(other)(**{**vars(other), "classes": ("a", "b", "c")})
    with pytest.raises(ConfigError, match="has other images or classes") as caught:
        loop.resume(tmp_path, runs.read_manifest(tmp_path), other, tiny.CPU)
    assert caught.value.hint == "the run's data set is 'tiny'"
