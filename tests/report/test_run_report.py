"""The page on runs says what the runs are, from any state that a run can be in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rapa_cli import runs
from rapa_cli.analysis.similarity import similarity
from rapa_cli.errors import FileError
from rapa_cli.keyed import draws
from rapa_cli.report import layer_sections, measured, run_figures
from rapa_cli.report.page import Beside, Picture, html
from rapa_cli.report.reported import Run, names_of, read
from rapa_cli.report.run_report import page
from rapa_cli.training.stopping import StopRequest
from tests.report.pages import Read
from tests.training import tiny


class Silent:
    """Watches a training without a word."""

    def step(self, *_: object) -> None: ...

    def testing(self, *_: object) -> None: ...

    def epoch(self, *_: object) -> None: ...


def trained(folder: Path, epochs: int = 1, **network: Any) -> Run:
    """A run of the tiny network."""
    training = tiny.begin(folder, epochs=epochs, network=network)
    runs.write_manifest(folder, training.manifest)
    with StopRequest() as stop:
        training.run(Silent(), stop)
    training.save()
    return read(folder)


def measure(run: Run, images: int = 12) -> Run:
    split = tiny.data_set().test
    settings = measured.Settings(checkpoint=run.sha256, data="tiny", images=images, snr=(60.0, 33.0, 20.0))
    run.measured = measured.measure(run.network, split.images[:images], split.labels[:images], settings)
    return run


@pytest.mark.parametrize(
    ("scheme", "tiles"),
    [
        ("none", (1, 1)),
        ("random", (4, 2)),
        ("random", (64, 16)),
        ("random-fixed", (3, 1)),
        ("image-overlap", (4, 4)),
        ("image-pad", (4, 1)),
        ("alternate", (4, 1)),
        ("perforated", (2, 2)),
    ],
)
def test_every_scheme_has_its_page(tmp_path: Path, scheme: str, tiles: tuple[int, int]) -> None:
    run = measure(trained(tmp_path / "run", scheme=scheme, tiles=tiles))
    found = Read(html(page([run])))
    text = found.text()
    network: Any = run.network
    for weight in (network.conv1.weight, network.conv2.weight):
        value = similarity(weight) if weight.ndim == 5 else None
        assert value is None or f"{value:.3f}" in text
    assert scheme in text
    assert ("One kernel matrix computes all patches" in text) == (scheme == "none")
    assert ("The first 16 of 64 tiles." in text) == (tiles[0] == 64)
    assert "nan" not in text.lower().replace("channel", "")


def test_panels_show_the_layers_own_assignments(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", scheme="random", tiles=(4, 2))
    first, other, second = layer_sections._panels(run)
    network: Any = run.network
    with draws(run.network, images=torch.arange(2), seed=run.manifest.seed, draw=0, stream="test"):
        expected = network.conv1.assign(torch.arange(2), (8, 8)).view(2, 8, 8)
    assert torch.equal(first.tile, expected[0])
    assert torch.equal(other.tile, expected[1])
    assert second.tiles == 2
    assert not any(module.training for module in run.network.modules()), "the network is as it was"


def test_a_perforated_layer_shows_what_training_leaves_out(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", scheme="perforated", tiles=(2, 1))
    panels = layer_sections._panels(run)
    assert all(int((panel.tile == -1).sum()) == 32 for panel in panels)
    assert not any(module.training for module in run.network.modules())


def test_a_run_without_an_epoch_and_without_measurements(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", epochs=0)
    found = Read(html(page([run])))
    assert "No epoch was trained." in found.text("p")
    assert "was not trained for an epoch" in found.text("p")
    assert found.text("p").count("Not measured") >= 3
    with pytest.raises(FileError, match=r"best\.safetensors"):
        read(tmp_path / "run", best=True)


def test_a_run_that_was_stopped(tmp_path: Path) -> None:
    trained(tmp_path / "run", epochs=1)
    run = read(tmp_path / "run")
    progress = run.progress.model_copy(update={"step": 3})
    run.description = run.description.model_copy(update={"progress": progress})
    assert "was stopped in epoch 2 after 3 steps" in Read(html(page([run]))).text("p")


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    first, second = trained(tmp_path / "a" / "run", epochs=0), trained(tmp_path / "b" / "run", epochs=0)
    third = trained(tmp_path / "c", epochs=0, scheme="random", tiles=(4, 1))
    assert names_of([first, third]) == ["none", "random (4,1)"]
    assert names_of([first, second]) == [f"none, {tmp_path}/a/run", f"none, {tmp_path}/b/run"]
    fourth = trained(tmp_path / "d", epochs=0)
    assert names_of([first, fourth]) == ["none, run", "none, d"]
    text = Read(html(page([first, second]))).text()
    assert f"none, {tmp_path}/a/run" in text


def test_measured_figures_are_kept_and_found_by_what_decides_them(tmp_path: Path) -> None:
    run = measure(trained(tmp_path / "run", scheme="random", tiles=(4, 1)))
    found = run.measured
    assert found is not None
    settings = found.settings.model_copy(update={"data_sha256": "x"})
    found = found.model_copy(update={"settings": settings})
    assert measured.find(run.folder, settings) is None
    measured.keep(run.folder, found)
    measured.keep(run.folder, found)
    assert measured.find(run.folder, settings) == found
    assert measured.find(run.folder, settings.model_copy(update={"data_sha256": None})) == found, "data not at hand"
    for key, value in (
        ("checkpoint", "y"),
        ("data", "z"),
        ("data_sha256", "y"),
        ("images", 0),
        ("seed", 1),
        ("votes", 3),
    ):
        assert measured.find(run.folder, settings.model_copy(update={key: value})) is None, key
    assert (run.folder / measured.FILE).read_text(encoding="utf-8").count('"checkpoint"') == 1


def test_its_cost_is_what_it_counts(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", scheme="random", tiles=(4, 1))
    split = tiny.data_set().test
    settings = measured.Settings(checkpoint="", data="tiny", images=12)
    parts: list[str] = []
    counted: list[int] = []
    measured.measure(run.network, split.images, split.labels, settings, on_part=parts.append, on_cost=counted.append)
    assert parts == ["one draw", "vote of 5", "reduced", "under attack"]
    assert sum(counted) == measured.cost(run.network, 12, settings)


def test_learning_curves_of_several_runs_share_an_axis(tmp_path: Path) -> None:
    one, two = trained(tmp_path / "a", epochs=3), trained(tmp_path / "b", epochs=2, scheme="random", tiles=(4, 1))
    figure = run_figures.learning({"$a": one.rows, "_b": two.rows}, "error", "error (%)")
    axes: Any = figure.axes[0]
    solid = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    assert [list(line.get_ydata()) for line in solid] == [[row["test_error"] for row in run.rows] for run in (one, two)]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [r"\$a, test", "b, test", "train"]


def test_every_figure_of_numbers_has_them_in_a_table(tmp_path: Path) -> None:
    both = [measure(trained(tmp_path / name, scheme=name, tiles=(4, 1))) for name in ("random", "alternate")]
    for section in page(both).sections[1:4]:
        blocks = [part for block in section.blocks for part in (block.blocks if isinstance(block, Beside) else [block])]
        tables = [block for block in blocks if type(block).__name__ == "Table"]
        assert all(block.table is not None or tables for block in blocks if isinstance(block, Picture))
