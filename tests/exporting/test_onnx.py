"""ONNX models, run by onnxruntime and compared with torch."""

from __future__ import annotations

import json
import sys
from typing import Any

import onnx as official
import pytest
import torch
from torch import nn

import rapa_cli
from rapa_cli import TiledConv2d
from rapa_cli.errors import ConfigError
from rapa_cli.exporting import onnx
from rapa_cli.exporting.graph import assignments, graph_of
from tests.exporting.networks import SHAPE, branches, pixels
from tests.tolerances import assert_near
from tests.training import tiny

LAYERS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1, "tiles": 4},
    {"kernel_size": (3, 2), "stride": (2, 1), "dilation": (1, 2), "padding": (0, 1), "tiles": 3, "bias": False},
    {"kernel_size": 4, "padding": "same", "tiles": 2},
]


@pytest.mark.parametrize("arguments", LAYERS)
def test_the_operator_under_any_assignment(arguments: dict[str, Any]) -> None:
    """Tiles of unequal sizes, one of them empty, and patches that nothing computes."""
    layer = TiledConv2d(3, 5, **arguments)
    graph = graph_of(nn.Sequential(layer), SHAPE)
    (entry,) = graph.assignments
    generator = torch.Generator().manual_seed(1)
    given = torch.randint(-1, entry.tiles - 1, (3, entry.patches), generator=generator)
    assert set(given.flatten().tolist()) == set(range(-1, entry.tiles - 1))
    images = pixels(3)
    expected = layer(images, given).detach()
    assert_near(onnx.run(onnx.onnx_bytes(graph, {}), images, {entry.name: given}), expected)


def test_networks_in_ordinary_operators() -> None:
    model, images, ids = branches(), pixels(4), torch.arange(4)
    content = onnx.onnx_bytes(graph_of(model, SHAPE), {"classes": ["a", "ß"]})
    given = assignments(model, SHAPE, images=ids, seed=2, draw=1)
    with torch.no_grad(), rapa_cli.draws(model, images=ids, seed=2, draw=1):
        assert_near(onnx.run(content, images, given), model(images))
    found = official.load_from_string(content)
    official.checker.check_model(found, full_check=True)
    assert {node.domain for node in found.graph.node} == {""}
    assert [entry.version for entry in found.opset_import if entry.domain == ""] == [onnx.OPSET]
    assert not found.functions
    assert [each.name for each in found.graph.input] == ["images", *given]
    assert [each.name for each in found.graph.output] == ["logits"]
    (entry,) = (entry for entry in found.metadata_props if entry.key == "rapa")
    assert json.loads(entry.value) == {"classes": ["a", "ß"]}


@pytest.mark.parametrize(("pool", "scheme"), [("mixed", "image-pad"), ("stochastic", "random-fixed")])
def test_networks_without_other_inputs(pool: str, scheme: str) -> None:
    model = tiny.network(scheme=scheme, tiles=(4, 4), pool=pool)
    images = pixels(3, tiny.SHAPE)
    with torch.no_grad():
        assert_near(onnx.run(onnx.onnx_bytes(graph_of(model, tiny.SHAPE), {}), images, {}), model(images))


@pytest.mark.parametrize("missing", onnx.NEEDED)
def test_a_missing_package(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=f"ONNX needs packages that are missing: .*{missing}") as caught:
        onnx.check_installed()
    assert caught.value.hint == "pip install 'rapa-cli[onnx]'"
