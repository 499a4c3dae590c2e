"""Graphs as ONNX models of ordinary operators, and running them with onnxruntime.

A tiled convolution becomes its patches, written out once, and for each tile one product of the patches that are
assigned to it: as many multiply-adds as the untiled convolution has, and k numbers of memory for each patch.
"""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rapa_cli.errors import ConfigError
from rapa_cli.exporting.graph import Graph, root_cause

OPSET = 18
NEEDED = ("onnx", "onnxscript", "onnxruntime")
# A protocol buffer holds no more.
_LARGEST = 2**31 - 1


def check_installed() -> None:
    """Raises ConfigError where a package of the extra `onnx` is missing."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"ONNX needs packages that are missing: {error}", hint="pip install 'rapa-cli[onnx]'"
            ) from None


def onnx_bytes(graph: Graph, about: Mapping[str, Any]) -> bytes:
    """The ONNX model of a graph.

    Args:
        graph: its inputs become `images` and those of its assignments, its output `logits`, for batches of any size.
        about: becomes the JSON document `rapa` of the model's metadata.

    Raises:
        ConfigError: an operator has no counterpart in ONNX, the model is too large, or a package is missing.
    """
    check_installed()
    names = ["images", *(each.name for each in graph.assignments)]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        # What it tells is about torch's own versions and for its developers.
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.program,
                input_names=names,
                output_names=["logits"],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                custom_translation_table={torch.ops.rapa.tiled_conv2d.default: _tiled_conv2d},
            )
            assert program is not None
            model = program.model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConfigError(
            f"the network cannot be written as ONNX: {root_cause(error)}", hint="try --to torch-export"
        ) from error
    finally:
        logger.setLevel(level)
    entry = model.metadata_props.add()
    entry.key, entry.value = "rapa", json.dumps(about)
    if model.ByteSize() > _LARGEST:
        raise ConfigError("the network is larger than the 2 GiB of an ONNX file", hint="use --to torch-export")
    return bytes(model.SerializeToString())


def run(model: bytes, images: Tensor, assignments: Mapping[str, Tensor]) -> Tensor:
    """What onnxruntime gives for images (B, C, H, W) and assignments (B, n_p), on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = {"images": images, **assignments}
    (logits,) = session.run(None, {name: values.numpy() for name, values in given.items()})
    return torch.from_numpy(logits)


def _tiled_conv2d(x: Any, weight: Any, bias: Any, assignment: Any, geometry: Any) -> Any:
    """`rapa::tiled_conv2d` in operators of ONNX; the arguments are values of its graph, the geometry is known."""
    from onnxscript import opset18 as op

    from rapa_cli.kernels.operator import geometry_of

    shape = geometry_of(geometry)
    tiles, out, channels = (int(size) for size in weight.shape[:3])
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.stride, shape.dilation
    top, bottom, left, right = shape.padding
    pixels = op.Transpose(x, perm=[0, 2, 3, 1])
    if any(shape.padding):
        pixels = op.Pad(pixels, [0, top, left, 0, 0, bottom, right, 0])
    reach = (shape.out_height - 1) * sh + 1, (shape.out_width - 1) * sw + 1
    taps = [
        op.Slice(pixels, [i * dh, j * dw], [i * dh + reach[0], j * dw + reach[1]], [1, 2], [sh, sw])
        for i in range(kh)
        for j in range(kw)
    ]
    patches = op.Reshape(op.Concat(*taps, axis=3), [-1, kh * kw * channels])
    matrices = op.Reshape(op.Transpose(weight, perm=[0, 3, 4, 2, 1]), [tiles, kh * kw * channels, out])
    tile_of = op.Reshape(assignment, [-1])
    rows, places = [], []
    for tile in range(tiles):
        number = op.Constant(value_int=tile)
        place = op.Transpose(op.NonZero(op.Equal(tile_of, number)), perm=[1, 0])
        product = op.MatMul(op.GatherND(patches, place), op.Gather(matrices, number, axis=0))
        rows.append(product if bias is None else op.Add(product, op.Gather(bias, number, axis=0)))
        places.append(place)
    total = op.Concat(op.Shape(tile_of), op.Constant(value_ints=[out]), axis=0)
    zeros = op.ConstantOfShape(total)
    pixels = op.ScatterND(zeros, op.Concat(*places, axis=0), op.Concat(*rows, axis=0))
    image = op.Reshape(pixels, [-1, shape.out_height, shape.out_width, out])
    return op.Transpose(image, perm=[0, 3, 1, 2])
