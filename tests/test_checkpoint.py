"""Checkpoints: what is written comes back, and every kind of damage is one line with a hint."""

from __future__ import annotations

import json
import resource
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rapa_cli import checkpoint, tensors
from rapa_cli.checkpoint import Description, Progress
from rapa_cli.errors import FileError
from rapa_cli.keyed import draws
from rapa_cli.layers.network import Network
from tests.training import tiny

Head = dict[str, Any]


def described(network: Network) -> Description:
    return Description(
        network=network.definition,
        shape=network.shape,
        classes=tiny.CLASSES,
        data="tiny",
        seed=5,
        recipe=tiny.recipe(),
        progress=Progress(epoch=2, step=3, seen=21, loss_sum=0.1 + 0.2, wrong=4, best_test_error=100 / 3),
        provenance={"rapa": "1"},
    )


def momentum(network: Network) -> dict[str, Tensor]:
    return {name: torch.full_like(parameter, 0.5) for name, parameter in network.named_parameters()}


@pytest.fixture
def network() -> Network:
    return tiny.network(scheme="random", pool="stochastic", seed=5)


@pytest.fixture
def path(tmp_path: Path, network: Network) -> Path:
    file = tmp_path / "one.safetensors"
    checkpoint.save(file, described(network), network.state_dict(), momentum(network))
    return file


def refused(path: Path) -> FileError:
    with pytest.raises(FileError) as caught:
        checkpoint.load(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 1000
    assert caught.value.hint
    assert caught.value.exit_code == 3
    return caught.value


def rewritten(path: Path, change: Callable[[Head], object]) -> Path:
    """The checkpoint with another header, and without a digest, as files of earlier versions are."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + length])
    document = json.loads(head["__metadata__"]["rapa"])
    document.pop("sha256", None)
    head["__metadata__"]["rapa"] = json.dumps(document)
    change(head)
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return path


def redescribed(path: Path, change: Callable[[Head], object]) -> Path:
    """The checkpoint with another description."""

    def inside(head: Head) -> None:
        document = json.loads(head["__metadata__"]["rapa"])
        change(document)
        head["__metadata__"]["rapa"] = json.dumps(document)

    return rewritten(path, inside)


def test_round_trip(path: Path, network: Network) -> None:
    found = checkpoint.read(path)
    assert found.description == described(network)
    for expected, got in ((network.state_dict(), found.state), (momentum(network), found.optimizer)):
        assert list(got) == sorted(expected)
        assert all(
            torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype for name, tensor in expected.items()
        )


def test_the_size_that_is_told_is_that_of_the_file(path: Path, network: Network) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    found = checkpoint.read(path)
    held = {**found.state, **{checkpoint.OPTIMIZER + name: value for name, value in found.optimizer.items()}}
    assert abs(tensors.size(held, metadata) - path.stat().st_size) < 16 * len(held) + 8


@pytest.mark.parametrize("what", ["weights", "momentum", "name", "seed", "digest"])
def test_a_flipped_bit_is_found(path: Path, what: str) -> None:
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + length])
    place = {
        # The last byte of a number holds its sign and most of its exponent.
        "weights": 8 + length + head["conv1.weight"]["data_offsets"][0] + 3,
        "momentum": 8 + length + head["optimizer/conv1.bias"]["data_offsets"][1] - 1,
        "name": content.index(b"conv1.bias"),
        "seed": content.index(b"seed") + len(b'seed\\": '),
        "digest": content.index(json.loads(head["__metadata__"]["rapa"])["sha256"].encode()),
    }[what]
    content[place] ^= 1
    path.write_bytes(content)
    refused(path)


def test_a_file_of_an_earlier_version_has_no_digest(path: Path, network: Network) -> None:
    after = checkpoint.read(rewritten(path, lambda head: None))
    assert after.description == described(network)
    assert all(torch.equal(after.state[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(path: Path, network: Network, value: float) -> None:
    network.get_parameter("conv2.weight").data[0, 0, 0, 0, 0] = value
    checkpoint.save(path, described(network), network.state_dict(), {})
    assert "tensor 'conv2.weight' has values that are not finite" in refused(path).message


def test_tensors_are_written_whatever_their_strides(tmp_path: Path, network: Network) -> None:
    state = {name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
             for name, tensor in network.state_dict().items()}  # fmt: skip
    file = tmp_path / "strided.safetensors"
    checkpoint.save(file, described(network), state, {})
    found = checkpoint.read(file).state
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("scheme", ["none", "random", "random-fixed", "image-pad", "perforated"])
def test_a_checkpoint_needs_nothing_but_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    network = tiny.network(scheme=scheme, pool="mixed", seed=9)
    first = tmp_path / "run" / "last.safetensors"
    first.parent.mkdir()
    checkpoint.save(first, described(network), network.state_dict(), {})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(first, elsewhere / "copy.bin")
    shutil.rmtree(first.parent)
    monkeypatch.chdir(elsewhere)
    loaded = checkpoint.load("copy.bin")
    assert loaded.definition == network.definition
    assert not loaded.training
    x, ids = tiny.pixels(tiny.data_set().test), torch.arange(12)
    with torch.no_grad(), draws(network, images=ids, draw=4), draws(loaded, images=ids, draw=4):
        assert torch.equal(network(x), loaded(x))


@pytest.mark.parametrize("size", [0, 4, 8, 20, 0.3, 0.9, -1])
def test_truncated(path: Path, size: float) -> None:
    content = path.read_bytes()
    end = int(size * len(content)) if isinstance(size, float) else size
    path.write_bytes(content[:end])
    refused(path)


@pytest.mark.parametrize("length", [0, 1, 2**20, 99_999_999, 2**40, 2**64 - 1])
def test_wrong_header_length(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(path)


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=generator).numpy().tobytes()
    path.write_bytes(noise)
    refused(path)
    path.write_bytes(struct.pack("<Q", 400) + noise)
    refused(path)


def test_more_than_it_says(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")
    refused(path)


def test_what_is_no_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "there is no checkpoint" in refused(tmp_path / "empty").message
    with pytest.raises(FileError, match="is a folder"):
        checkpoint.read(tmp_path)
    path.unlink()
    assert "there is no checkpoint" in refused(path).message
    assert "there is no checkpoint" in refused(path / "below").message


def test_wrong_type(path: Path) -> None:
    # uint32 fills the same bytes, so that only the comparison with the network finds it.
    error = refused(rewritten(path, lambda head: head["conv1.bias"].update(dtype="U32")))
    assert "tensor 'conv1.bias' is torch.uint32 (4, 4), not torch.float32 (4, 4)" in error.message


def test_wrong_shape(path: Path) -> None:
    error = refused(rewritten(path, lambda head: head["conv1.bias"].update(shape=[16])))
    assert "tensor 'conv1.bias' is torch.float32 (16,), not torch.float32 (4, 4)" in error.message


def test_a_missing_tensor(path: Path) -> None:
    error = refused(rewritten(path, lambda head: head.update({"conv1.bios": head.pop("conv1.bias")})))
    assert "tensor 'conv1.bias' is missing" in error.message


def test_an_extra_tensor(path: Path, network: Network) -> None:
    checkpoint.save(path, described(network), {**network.state_dict(), "stowaway": torch.zeros(2)}, {})
    assert "tensor 'stowaway' does not belong to its network" in refused(path).message


@pytest.mark.parametrize(
    "document", ["", "{", "3", "null", "[1, 2]", '"text"', "{}", "[" * 100_000, '{"format": 1}', "NaN", "\x00"]
)
def test_other_documents(path: Path, document: str) -> None:
    refused(rewritten(path, lambda head: head["__metadata__"].update(rapa=document)))


def test_no_document(path: Path) -> None:
    assert "no checkpoint of this program" in refused(rewritten(path, lambda head: head.pop("__metadata__"))).message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format: input should be 1, got 2"),
        ({"sede": 3}, "unknown key 'sede'"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"shape": [3, 0, 8]}, "shape.1: input should be greater than 0"),
        ({"shape": [-3, 8, 8]}, "shape.0: input should be greater than 0"),
        ({"shape": [3, 8]}, "shape"),
        ({"shape": [3, 2, 2]}, "its network cannot be built"),
        ({"shape": [10**15, 8, 8]}, "its network cannot be built"),
        ({"classes": []}, "classes"),
        ({"classes": ["one"]}, "tensor 'linear1.weight' is"),
        ({"progress": {"loss_sum": float("nan")}}, "progress.loss_sum: input should be a finite number"),
    ],
)
def test_wrong_descriptions(path: Path, changes: Mapping[str, Any], message: str) -> None:
    assert message in refused(redescribed(path, lambda document: document.update(changes))).message


@pytest.mark.parametrize("key", ["channels", "kernel", "padding", "stride", "dilation"])
@pytest.mark.parametrize("value", [0, 65_536, 10**12, 10**30, "many"])
def test_networks_that_cannot_be_built(path: Path, key: str, value: object) -> None:
    if (key, value) != ("padding", 0):
        refused(redescribed(path, lambda document: document["network"]["layers"][0].update({key: value})))


def test_a_network_larger_than_the_memory(path: Path) -> None:
    change = {"kernel": 65_535, "padding": 32_767}
    error = refused(redescribed(path, lambda document: document["network"]["layers"][0].update(change)))
    assert "its network cannot be built: " in error.message


@pytest.mark.parametrize(
    "changes", [{"layers": []}, {"layers": [{"kind": "cnv"}]}, {"tiles": [1]}, {"tiles": [65, 1]}, {"scheme": "most"}]
)
def test_networks_that_do_not_fit(path: Path, changes: Head) -> None:
    refused(redescribed(path, lambda document: document["network"].update(changes)))


def test_a_full_disk_leaves_the_old_file(path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(FileError) as caught:
        checkpoint.save(path, described(network), network.state_dict(), {})
    assert caught.value.message.startswith(f"cannot write {path}: the disk is full (")
    assert "free some space" in str(caught.value.hint)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_system_cuts_off(path: Path, network: Network) -> None:
    before = path.read_bytes()
    with files_no_larger_than(2000), pytest.raises(FileError, match=r"cannot write .*: ") as caught:
        checkpoint.save(path, described(network), network.state_dict(), momentum(network))
    assert "File too large" in caught.value.message
    assert "\n" not in caught.value.message
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_error_without_a_number(path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SafetensorError("something else")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(FileError, match="something else"):
        checkpoint.save(path, described(network), network.state_dict(), {})


def test_is_finite() -> None:
    assert checkpoint.is_finite({"a": torch.ones(2), "count": torch.tensor(3)})
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not checkpoint.is_finite({"a": torch.ones(2), "b": torch.tensor([0.0, value])})
