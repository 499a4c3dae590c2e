"""Networks as graphs of torch.export, in which the assignments of tiled convolutions are inputs.

A graph has no random choices of its own. Where a scheme draws a new assignment for each image, the graph has an input
for it; one that is the same for all images is a constant of the graph.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rapa_cli.analysis.reduction import reduce
from rapa_cli.errors import ConfigError
from rapa_cli.keyed import draws
from rapa_cli.layers.conversion import replaced
from rapa_cli.tiling.arrays import ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.tracing import trace

# Of the images that a graph is traced with: 1 would become a constant of it.
_BATCH = 2


@dataclass(frozen=True)
class Assignment:
    """An input of a graph: which tile computes which patch.

    Attributes:
        name: of the input.
        layer: the tiled convolution, as the network names it.
        tiles: its tiles n_t; values are from 0 to n_t - 1, or -1 where nothing is computed.
        size: height and width of its output; the input is int64 (B, n_p), row-major over these pixels.
    """

    name: str
    layer: str
    tiles: int
    size: tuple[int, int]

    @property
    def patches(self) -> int:
        """n_p."""
        return self.size[0] * self.size[1]


@dataclass(frozen=True)
class Graph:
    """A network as a graph.

    Attributes:
        program: takes images (B, C, H, W) in [0, 1] and the assignments, in this order; gives what the network gives.
        module: the same as an ordinary module.
        assignments: what it takes besides images.
    """

    program: ExportedProgram
    module: nn.Module
    assignments: tuple[Assignment, ...]


def graph_of(model: nn.Module, shape: tuple[int, int, int]) -> Graph:
    """Traces a network in evaluation mode, for batches of any size.

    Args:
        model: it is left as it is.
        shape: (C, H, W) of an image.

    Raises:
        ConfigError: its arrays are not ideal, it is not of single precision, or it cannot be traced.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, ArrayLayer) and layer.matrices is not None:
            raise ConfigError(
                f"layer '{name}' lies on arrays that are not ideal, and a graph has neither their noise nor converters",
                hint="export the weights that the arrays show, by --reduced, or reduce the network first",
            )
    other = next((one.dtype for one in model.parameters() if one.dtype != torch.float32), None)
    if other is not None:
        raise ConfigError(
            f"the network computes in {other}, and what is exported in torch.float32", hint="export model.float()"
        )
    inputs = assignment_inputs(model, shape)
    module = _WithAssignments(model, shape, inputs).eval()
    batch = Dim("batch", min=1)
    sizes: Any = ({0: batch}, ({0: batch},) * len(inputs)) if inputs else ({0: batch},)
    images = torch.zeros(_BATCH, *shape)
    given = [torch.zeros(_BATCH, each.patches, dtype=torch.int64) for each in inputs]
    try:
        program = torch.export.export(module, (images, *given), dynamic_shapes=sizes, strict=False)
    except Exception as error:  # Of torch's own kinds, and whatever the network raises.
        raise ConfigError(
            f"torch.export cannot trace the network: {root_cause(error)}",
            hint="its computations may depend on values, or on the size of the batch; export its state-dict",
        ) from error
    return Graph(program, module, inputs)


def assignment_inputs(model: nn.Module, shape: tuple[int, int, int]) -> tuple[Assignment, ...]:
    """The assignments that a network draws for each image anew, in the order in which its layers compute.

    Args:
        model: it is left as it is.
        shape: (C, H, W) of an image.

    Raises:
        ConfigError: the network cannot take such an image, or a tiled convolution computes twice for one.
    """
    return tuple(
        Assignment(f"assignment_{name}", name, layer.tiles, size)
        for name, layer, size in _tiled(model, shape)
        if layer.random_in_test
    )


def assignments(
    model: nn.Module,
    shape: tuple[int, int, int],
    *,
    images: Tensor,
    seed: int = 0,
    draw: int = 0,
    stream: str = "test",
) -> dict[str, Tensor]:
    """Draws what an exported network takes besides images.

    With these it gives what `model` gives inside `draws` with the same arguments.

    Args:
        model: the network that was exported.
        shape: (C, H, W) of an image.
        images: the ids of the images in the batch, int64 (B,).
        seed: in [0, 2^32).
        draw: the number of the draw.
        stream: "train", "test", "vote" or "attack".

    Returns:
        int64 (B, n_p) for each input, by its name.
    """
    inputs = assignment_inputs(model, shape)
    found = {}
    with draws(model, images=images, seed=seed, draw=draw, stream=stream):
        for each in inputs:
            layer = model.get_submodule(each.layer)
            assert isinstance(layer, TiledConv2d)
            found[each.name] = layer.assign(len(images), each.size)
    return found


def root_cause(error: BaseException) -> str:
    """The beginning of what the first error of a chain says, in one line; torch tells the rest for its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:160] or type(error).__name__


class _WithAssignments(nn.Module):
    """A copy of a network on the CPU whose assignments are arguments.

    Attributes:
        network: the copy; its weights are dense and take no gradients.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], inputs: tuple[Assignment, ...]) -> None:
        super().__init__()
        # Hooks of the original are none of the copy's business, but a deep copy would share what they refer to.
        network = copy.deepcopy(model).cpu().eval()
        layers = _tiled(network, shape)
        self._inputs = inputs
        self._given: dict[str, Tensor] = {}
        drawn = {each.layer for each in inputs}
        ordinary: dict[nn.Module, nn.Module] = {}
        for name, layer, size in layers:
            if name not in drawn:
                constant = layer.assign(1, size)
                if not bool(constant.any()):
                    # One kernel matrix computes all patches.
                    ordinary[layer] = reduce(layer, "first")
                    continue
                self.register_buffer(_constant(name), constant.contiguous())
            layer.register_forward_pre_hook(self._giving(name, drawn=name in drawn), with_kwargs=True)
        self.network = replaced(network, ordinary).requires_grad_(False)
        for parameter in self.network.parameters():
            parameter.data = parameter.data.contiguous()

    def forward(self, images: Tensor, *given: Tensor) -> Tensor:
        """Logits of images (B, C, H, W), given the assignments (B, n_p) of the inputs."""
        self._given.update({each.layer: values for each, values in zip(self._inputs, given, strict=True)})
        try:
            logits: Tensor = self.network(images)
        finally:
            self._given.clear()
        return logits

    def _giving(self, name: str, *, drawn: bool) -> Any:
        """The hook that hands a layer its assignment."""

        def give(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            values = self._given[name] if drawn else getattr(self, _constant(name)).expand(arguments[0].shape[0], -1)
            return arguments, {**keywords, "assignment": values}

        return give


def _constant(name: str) -> str:
    """The buffer of an assignment that is the same for all images."""
    return f"assignment_{name.replace('.', '_')}"


def _tiled(model: nn.Module, shape: tuple[int, int, int]) -> list[tuple[str, TiledConv2d, tuple[int, int]]]:
    """Name, layer and output size of each tiled convolution, in the order in which they compute."""
    found = []
    for each in trace(model, shape, (TiledConv2d,)).layers:
        assert isinstance(each.layer, TiledConv2d)
        found.append((each.name, each.layer, (each.out[1], each.out[2])))
    return found
