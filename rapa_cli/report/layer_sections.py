"""Sections on the layers of networks: assignments, filters, similarity, analog time."""

from __future__ import annotations

import torch
from torch import Tensor

from rapa_cli.analysis.analog_time import acceleration, acceleration_sequential
from rapa_cli.analysis.modules import layers_of_network, network_costs
from rapa_cli.analysis.similarity import similarity
from rapa_cli.keyed import draws
from rapa_cli.report import layer_figures, run_figures
from rapa_cli.report.page import Beside, Block, Picture, Section, Table
from rapa_cli.report.reported import Named, Run, fixed
from rapa_cli.tiling.conv import TiledConv2d

# Filters of so many tiles and channels are shown; more would be too small to see.
_MOST_TILES, _MOST_CHANNELS = 16, 32
_SCHEMES = {
    "random": "Every image has a new random partition of its pixels, in training and in test.",
    "random-fixed": "One random partition of the pixels for all images.",
    "image-overlap": "Every tile has a region of the image; patches at its border reach into the next.",
    "image-pad": "Every tile has a region of the image; pixels beyond its border read as zero.",
    "alternate": "Neighbouring pixels go to different tiles.",
    "perforated": "One tile; in training a random part of the pixels is computed, and the others are zero (white).",
}


def assignments(named: Named) -> Section:
    """Which tile computes which pixel, for each tiling."""
    by_tiling: dict[str, Run] = {}
    for _, run in named:
        if _tiled(run):
            by_tiling.setdefault(run.tiling, run)
    pictures: list[Block] = []
    for tiling, run in by_tiling.items():
        panels = _panels(run)
        sizes = "; ".join(f"{panel.title}: {panel.tile.shape[0]} x {panel.tile.shape[1]} pixels" for panel in panels)
        says = " ".join(dict.fromkeys(_says(layer) for layer in _tiled(run)))
        pictures.append(Picture(layer_figures.assignments(panels), tiling, f"{says} {sizes}.", caption=says))
    if not pictures:
        return Section("Assignment", ["One kernel matrix computes all patches of each layer."])
    words = "Output pixels of tiled layers, in the colours of the tiles that compute them, as in the paper's figure 2."
    return Section("Assignment", [words, Beside(pictures)])


def _tiled(run: Run) -> list[TiledConv2d]:
    return [layer for layer in run.network.modules() if isinstance(layer, TiledConv2d) and layer.tiles > 1]


def _says(layer: TiledConv2d) -> str:
    own = "Each image and draw may have its own" if layer.random_in_test else "All images have the same"
    return _SCHEMES.get(layer.scheme, f"Scheme '{layer.scheme}', of the network's own code. {own} assignment.")


def _panels(run: Run) -> list[layer_figures.Assigned]:
    """Assignments of the tiled layers for an image, and where images differ those of the first layer for another."""
    panels: list[layer_figures.Assigned] = []
    images = torch.arange(2)
    for shape in layers_of_network(run.network).convolutions:
        layer = run.network.get_submodule(shape.name)
        if not isinstance(layer, TiledConv2d) or layer.tiles == 1:
            continue
        # A perforated layer leaves out pixels in training only.
        perforated = layer.scheme == "perforated"
        stream = "train" if perforated else "test"
        layer.train(perforated)
        with draws(run.network, images=images, seed=run.manifest.seed, draw=0, stream=stream):
            both = layer.assign(images, (shape.height, shape.width)).view(2, shape.height, shape.width)
        layer.eval()
        tiles = 1 if perforated else layer.tiles
        what = f"1 of {layer.tiles}" if perforated else f"{layer.tiles} tiles"
        panels.append(layer_figures.Assigned(f"{shape.name}, {what}", both[0], tiles))
        if len(panels) == 1 and not torch.equal(both[0], both[1]):
            panels.append(layer_figures.Assigned(f"{shape.name}, next image", both[1], tiles))
    return panels


def filters(named: Named) -> Section:
    """How alike the tiles of each layer are, and the filters of the first."""
    found = {name: {layer: similarity(weight) for layer, weight in _kernels(run).items()} for name, run in named}
    tiled = {name: values for name, values in found.items() if any(value is not None for value in values.values())}
    blocks: list[Block] = []
    if tiled:
        said = "; ".join(
            f"{name}: " + ", ".join(f"{layer} {value:.3f}" for layer, value in values.items() if value is not None)
            for name, values in tiled.items()
        )
        blocks += [
            "S is the correlation of an output channel's filters in two tiles, averaged over all pairs of tiles and "
            "all channels: 1 where all tiles learned the same, 0 where they have nothing in common.",
            Beside(
                [
                    Picture(layer_figures.similarities(tiled), "Similarity S of the tiles of each layer", f"{said}."),
                    Table(
                        "Similarity S",
                        ["run", "layer", "S"],
                        [
                            [name, layer, fixed(value, 3)]
                            for name, values in found.items()
                            for layer, value in values.items()
                        ],
                    ),
                ]
            ),
        ]
    for name, run in named:
        layer, weight = next(iter(_kernels(run).items()))
        tiles, channels = range(min(len(weight), _MOST_TILES)), range(min(weight.shape[1], _MOST_CHANNELS))
        cut = "" if len(tiles) == len(weight) else f" The first {len(tiles)} of {len(weight)} tiles."
        cut += "" if len(channels) == weight.shape[1] else f" The first {len(channels)} of {weight.shape[1]} channels."
        size = f"{weight.shape[3]} x {weight.shape[4]}"
        blocks.append(
            Picture(
                layer_figures.filters(weight, channels, tiles=tiles),
                f"Filters of {layer}: {name}",
                f"{len(tiles)} rows, one for each tile, of {len(channels)} filters of {size} weights.{cut}",
                caption=f"Each filter is stretched by itself from its smallest weight to its largest.{cut}",
                wide=True,
            )
        )
    return Section("Filters and similarity", blocks)


def analog_time(named: Named) -> Section:
    """Array operations of each layer."""
    rows: list[list[str]] = []
    found: dict[str, dict[str, int]] = {}
    gains = []
    for name, run in named:
        costs = network_costs(run.network)
        rows += [
            [
                name,
                cost.name,
                f"{cost.n_p:,}",
                f"{cost.k:,}",
                f"{cost.c_out:,}",
                f"{cost.macs:,}",
                f"{cost.tiles:,}",
                f"{cost.array_cycles:,}",
            ]
            for cost in costs
        ]
        if not found:
            found["without tiling"] = {cost.name: cost.n_p for cost in costs}
        found[name] = {cost.name: cost.array_cycles for cost in costs}
        gains.append([name, f"{acceleration(costs):.4g}", f"{acceleration_sequential(costs):.4g}"])
    said = "; ".join(
        f"{name}: {', '.join(f'{layer} {value:,}' for layer, value in values.items())}"
        for name, values in found.items()
    )
    return Section(
        "Analog time",
        [
            "An array multiplies a patch with its whole matrix in one operation, however large the matrix is. A layer "
            "takes as many operations, one after the other, as its largest tile has patches (paper, section 1).",
            Beside(
                [
                    Picture(
                        run_figures.array_operations(found), "Array operations of each layer, for one image", f"{said}."
                    ),
                    Table(
                        "Speed-up in array operations, against one array for each layer",
                        ["run", "layers pipelined", "one after another"],
                        gains,
                    ),
                ]
            ),
            Table(
                "Costs of each layer, for one image",
                ["run", "layer", "n_p", "k", "c_out", "multiply-adds", "tiles", "array operations"],
                rows,
                ["n_p: patches; k: weights of a filter; c_out: output channels."],
            ),
        ],
    )


def _kernels(run: Run) -> dict[str, Tensor]:
    """Kernels (tiles, out, in, kh, kw) of each convolution."""
    found: dict[str, Tensor] = {}
    for name, layer in run.network.named_modules():
        if isinstance(layer, TiledConv2d):
            found[name] = layer.weight.detach()
        elif isinstance(layer, torch.nn.Conv2d):
            found[name] = layer.weight.detach()[None]
    return found
