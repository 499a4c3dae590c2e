"""Batch sizes that fit into the memory."""

from __future__ import annotations

import pytest
import torch

from rapa_cli.attacks import batching
from tests.training import tiny


def test_an_image_takes_what_its_layers_give() -> None:
    network = tiny.network()
    sizes: list[int] = []
    for layer in network.children():
        layer.register_forward_hook(lambda layer, inputs, output: sizes.append(output.numel()))
    network(torch.zeros(1, *tiny.SHAPE))
    outputs, patches = sum(sizes), 9 * 3 * 64 + 9 * 4 * 16
    assert batching.bytes_per_image(network, tiny.SHAPE) == 16 * (outputs + patches)


@pytest.mark.parametrize(("free", "size"), [(None, 100), (0, 1), (10**12, 100)])
def test_the_batch_follows_the_memory(monkeypatch: pytest.MonkeyPatch, free: int | None, size: int) -> None:
    monkeypatch.setattr(batching, "free_memory", lambda _: free)
    assert batching.batch_size(tiny.network(), tiny.SHAPE) == size


def test_a_part_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny.network()
    monkeypatch.setattr(batching, "free_memory", lambda _: 4 * 7 * batching.bytes_per_image(network, tiny.SHAPE))
    assert batching.batch_size(network, tiny.SHAPE) == 7


def test_this_machine_says_what_is_free() -> None:
    free = batching.free_memory(torch.device("cpu"))
    assert free is None or free > 0
    assert batching.free_memory(torch.device("meta")) is None
