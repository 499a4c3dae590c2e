"""`rapa train --dry-run`: what a training would be, and how long it would take, from ten steps of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapa_cli import console
from rapa_cli.commands.tables import open_table, that_fit

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from rapa_cli.analysis.planning import Plan
    from rapa_cli.checkpoint import Progress
    from rapa_cli.data.images import DataSet
    from rapa_cli.layers.network import Network
    from rapa_cli.runs import Manifest
    from rapa_cli.training.loop import Sums

STEPS = 10
_MEANINGS = {"n_p": "patches of an image", "k": "weights of a filter", "cycles": "operations in sequence"}
_TEST_IMAGES = 200


class _EnoughSeen(Exception):
    """Ends the training, long before it would write something."""


@dataclass
class _Clock:
    """Watches the first steps; those that compile, allocate and capture count only where there are no others.

    Attributes:
        before: how many those are.
        ended: when each step ended, after the time when the first began.
    """

    before: int
    ended: list[float] = field(default_factory=lambda: [time.perf_counter()])

    def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
        """Notes the time. At the end of an epoch metrics would be written."""
        sums.loss.item()
        self.ended.append(time.perf_counter())
        if step == min(steps, self.before + STEPS):
            raise _EnoughSeen

    def testing(self, epoch: int) -> None:
        """Never comes."""

    def epoch(self, row: Mapping[str, Any], progress: Progress, images_per_second: float) -> None:
        """Never comes."""

    @property
    def steps(self) -> int:
        """How many are measured."""
        done = len(self.ended) - 1
        return done - self.before if done > self.before else max(done - 1, 1)

    @property
    def seconds(self) -> float:
        """Of one step, their mean: where images are decoded ahead, single steps tell nothing."""
        return (self.ended[-1] - self.ended[-1 - self.steps]) / self.steps


def dry_run(manifest: Manifest, data: DataSet, network: Network, *, json: bool) -> None:
    """Shows what a training would be; nothing is written, and the network changes by a few steps.

    Args:
        manifest: what is asked for.
        data: the images.
        network: untrained, on its device.
        json: whether as one document.
    """
    plan = _planned(network)
    # Before the steps, whose memory must not stand beside that of another network.
    layers = _layers(network, plan)
    clock = _steps(manifest, data, network)
    tested = _test_rate(manifest, data, network)
    recipe, device = manifest.recipe, next(network.parameters()).device
    steps = -(-len(data.train) // recipe.batch_size)
    epoch = steps * clock.seconds + recipe.test_votes * len(data.test) / tested
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    document = {
        "network": network.definition.name,
        "scheme": network.definition.scheme,
        "tiles": network.definition.tiles,
        "pool": network.definition.pool if network.definition.module is None else None,
        "data": manifest.data,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "shape": data.shape,
        "classes": len(data.classes),
        "recipe": recipe.model_dump(mode="json"),
        "seed": manifest.seed,
        "device": str(device),
        "layers": layers,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "arrays": plan.arrays,
        "acceleration": plan.acceleration,
        "acceleration_sequential": plan.acceleration_sequential,
        "interval_us": plan.interval,
        "latency_us": plan.latency,
        "steps": steps,
        "measured_steps": clock.steps,
        "seconds_per_step": clock.seconds,
        "seconds_per_epoch": epoch,
        "seconds": recipe.epochs * epoch,
        "images_per_second": recipe.batch_size / clock.seconds,
        "memory_bytes": _memory(device.type),
        "checkpoint_bytes": weights,
    }
    if json:
        console.print_json(document)
    else:
        _show(document)


def _planned(network: Network) -> Plan:
    from rapa_cli.analysis.modules import layers_of_network
    from rapa_cli.analysis.planning import plan

    found = layers_of_network(network)
    tiles = [getattr(network.get_submodule(layer.name), "tiles", 1) for layer in found.convolutions]
    return plan(found.convolutions, found.linear, tiles, network.definition.scheme)


def _layers(network: Network, plan: Plan) -> list[dict[str, Any]]:
    """A row for each layer without layers of its own, in the order in which they compute."""
    import torch

    from rapa_cli.keyed import draws

    costs = {cost.name: cost for cost in plan.layers}
    rows: list[dict[str, Any]] = []

    def hook(name: str) -> Any:
        def saw(layer: nn.Module, _inputs: Any, output: Any) -> None:
            cost = costs.get(name)
            rows.append(
                {
                    "name": name,
                    "kind": type(layer).__name__,
                    "shape": list(output.shape[1:]) if isinstance(output, torch.Tensor) else None,
                    "parameters": sum(parameter.numel() for parameter in layer.parameters()),
                    **{key: getattr(cost, key, None) for key in ("tiles", "n_p", "k", "c_out", "macs", "array_cycles")},
                }
            )

        return saw

    leaves = [(name, layer) for name, layer in network.named_modules() if not any(layer.children())]
    handles = [layer.register_forward_hook(hook(name)) for name, layer in leaves]
    was, device = network.training, next(network.parameters()).device
    try:
        network.eval()
        image = torch.zeros(1, *network.shape, device=device)
        with torch.no_grad(), draws(network, images=torch.zeros(1, dtype=torch.int64, device=device)):
            network(image)
    finally:
        network.train(was)
        for handle in handles:
            handle.remove()
    return rows


def _steps(manifest: Manifest, data: DataSet, network: Network) -> _Clock:
    """The first steps of the training itself, which ends before it would write."""
    from rapa_cli.training.captured import EAGER_CALLS
    from rapa_cli.training.loop import Training
    from rapa_cli.training.schedule import optimizer
    from rapa_cli.training.stopping import StopRequest

    # On a GPU the step after the eager ones is captured.
    clock = _Clock(EAGER_CALLS + 1)
    at_least_one = manifest.recipe.model_copy(update={"epochs": max(manifest.recipe.epochs, 1)})
    asked = manifest.model_copy(update={"recipe": at_least_one})
    training = Training(Path(), asked, data, network, optimizer(network, asked.recipe))
    with console.progress() as bar:
        bar.add_task(f"{STEPS} steps", total=None)
        try:
            training.run(clock, StopRequest())
        except _EnoughSeen:
            return clock
    raise AssertionError("an epoch has a step")


def _test_rate(manifest: Manifest, data: DataSet, network: Network) -> float:
    """Test images a second."""
    from rapa_cli.analysis.evaluation import evaluate

    images, labels = data.test.images[:_TEST_IMAGES], data.test.labels[:_TEST_IMAGES]
    started = time.perf_counter()
    evaluate(network, images, labels, seed=manifest.seed)
    return len(labels) / (time.perf_counter() - started)


def _memory(device: str) -> int:
    """The most memory that the steps had: of the GPU, or else of this process with all that it has loaded."""
    import resource

    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _show(document: dict[str, Any]) -> None:
    from rapa_cli.config import tiling

    tiled = tiling(document["scheme"], document["tiles"])
    pooling = f", {document['pool']} pooling" if document["pool"] else ""
    shape = " x ".join(map(str, document["shape"]))
    console.show(f"network     {document['network']}, {tiled}{pooling}, {document['parameters']:,} parameters")
    console.show(f"data        {document['data']}: {document['train_images']:,} + {document['test_images']:,} images")
    console.show(f"            {shape}, {document['classes']} classes\n")
    table = _table(document["layers"])
    console.out().print(table)
    notes = [f"{column.header}: {_MEANINGS[column.header]}" for column in table.columns if column.header in _MEANINGS]
    console.out().print(f"\n{'; '.join(notes)}\n")
    recipe = {key: value for key, value in document["recipe"].items() if key != "description"}
    for number, line in enumerate(_lines([f"{key} {_plain(value)}" for key, value in recipe.items()])):
        console.show(f"{'' if number else 'recipe':<12}{line}")
    console.show(
        f"            seed {document['seed']}\n"
        f"analog      {document['arrays']:,} arrays, {document['interval_us']:.2f} us from image to image, "
        f"{document['acceleration']:.1f} times as fast as untiled\n"
        f"time        about {console.duration(document['seconds'])} on {document['device']}: "
        f"{document['recipe']['epochs']} epochs of {console.duration(document['seconds_per_epoch'])}\n"
        f"            {document['images_per_second']:.0f} images/s in {document['measured_steps']} measured steps of "
        f"{document['steps']} in an epoch\n"
        f"memory      {console.size(document['memory_bytes'])} at the most, checkpoint "
        f"{console.size(document['checkpoint_bytes'])}\n"
        "nothing was written"
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    """The layers; with the columns that have room."""
    columns = {
        "layer": [row["name"] for row in rows],
        "makes": [" x ".join(map(str, row["shape"] or ())) for row in rows],
        "tiles": [_cell(row["tiles"]) for row in rows],
        "n_p": [_cell(row["n_p"]) for row in rows],
        "k": [_cell(row["k"]) for row in rows],
        "cycles": [_cell(row["array_cycles"]) for row in rows],
        "parameters": [_cell(row["parameters"] or None) for row in rows],
    }
    return open_table(that_fit(columns, ("k", "n_p", "parameters"), console.out().width), ("layer", "makes"))


def _cell(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lines(words: list[str]) -> list[str]:
    """Words with commas between them, in lines that fit a screen of 80 columns."""
    lines = [""]
    for word in words:
        joined = f"{lines[-1]}, {word}" if lines[-1] else word
        if len(joined) <= 66:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines
