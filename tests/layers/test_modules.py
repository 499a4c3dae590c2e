"""Networks written in Python: built from the seed alone, tiled, kept in checkpoints, and never run unasked."""

from __future__ import annotations

import hashlib
import math
import pickle
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from rapa_cli import checkpoint, config
from rapa_cli.analysis.reduction import reduce
from rapa_cli.analysis.similarity import similarity
from rapa_cli.checkpoint import Description
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.keyed import draws
from rapa_cli.layers.modules import load_weights, take
from rapa_cli.layers.network import Network, Statistics, build, fewest_numbers, resolve
from rapa_cli.tiling.conv import TiledConv2d
from tests.tolerances import assert_near

SHAPE = (3, 16, 16)
CLASSES = 3
SOURCE = """
from pathlib import Path
import torch
from torch import nn

Path(__file__).with_suffix(".ran").touch()


class Net(nn.Module):
    def __init__(self, num_classes=7):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, 2, 1)
        self.third = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        x = torch.relu(self.second(x)).mean((2, 3), keepdim=True)
        return self.head(self.drop(self.third(x).flatten(1)))


class Tied(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.one = nn.Linear(3, num_classes)
        self.two = nn.Linear(3, num_classes)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.one(x) + self.two(x)


def three():
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 3), nn.Flatten(), nn.LazyLinear(3))


class Extra(Net):
    def get_extra_state(self):
        return {"anything": 1}


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class Wide(Net):
    def __init__(self):
        super().__init__(11)


def broken():
    raise RuntimeError("no such thing")


def number():
    return 3


def flat(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, num_classes))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mynet.py"
    # A file is run once in a process: each test has one of its own.
    path.write_text(f"{SOURCE}\n# {tmp_path}\n", encoding="utf-8")
    return path


def defined(file: Path, name: str = "Net", **changes: Any) -> config.Network:
    return config.load_network(f"{file}:{name}").model_copy(update=changes)


def made(file: Path, name: str = "Net", *, seed: int = 0, **changes: Any) -> Network:
    return build(defined(file, name, **changes), SHAPE, CLASSES, seed=seed, code=(file,)).eval()


def images(count: int = 4) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def logits(network: nn.Module) -> Tensor:
    """With the same draw for every network."""
    with draws(network, images=torch.arange(4)):
        found: Tensor = network(images())
    return found


def ran(file: Path) -> bool:
    return file.with_suffix(".ran").exists()


def tiles_of(network: nn.Module) -> dict[str, int]:
    return {name: layer.tiles for name, layer in network.named_modules() if isinstance(layer, TiledConv2d)}


def test_a_name_runs_nothing(file: Path) -> None:
    definition = defined(file)
    assert definition.module == config.Module(
        name="Net", file="mynet.py", sha256=hashlib.sha256(file.read_bytes()).hexdigest()
    )
    assert (definition.scheme, definition.tiles, definition.layers) == ("random", None, ())
    with pytest.raises(ConfigError, match=r"^network 'Net' is written in mynet\.py, whose code is not run unasked$"):
        build(definition, SHAPE, CLASSES)
    assert not ran(file)


def test_tiles_are_balanced_over_what_computes_several_patches(file: Path) -> None:
    network = made(file)
    # 256, 16 and 1 patches.
    assert network.definition.tiles == (16, 1)
    assert tiles_of(network) == {"body.first": 16, "body.second": 1, "body.third": 1}
    assert network(images()).shape == (4, CLASSES)
    assert tiles_of(made(file, tiles=(4, 2))) == {"body.first": 4, "body.second": 2, "body.third": 1}
    assert tiles_of(made(file, scheme="none")) == {}
    with pytest.raises(ConfigError, match=r"^tiles: got 3 numbers \(4,2,1\), but network 'Net' has 2 convolutions$"):
        made(file, tiles=(4, 2, 1))


def test_weights_are_a_function_of_the_seed(file: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = made(file, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = made(file, seed=1).state_dict(), made(file, seed=2).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["body.first.weight"], other["body.first.weight"])
    assert not torch.equal(first["body.head.weight"], other["body.head.weight"])


def test_tiles_begin_apart_with_the_numbers_of_the_first(file: Path) -> None:
    network = build(config.load_network("torchvision:resnet18"), (3, 32, 32), CLASSES)
    layer = network.get_submodule("body.layer1.0.conv1")
    assert isinstance(layer, TiledConv2d)
    assert layer.tiles == 16
    own = layer.weight.detach().flatten(1)
    assert torch.equal(own.sort(1).values, own[:1].sort(1).values.expand(16, -1))
    # The correlation of shuffled numbers has the standard deviation 1 / sqrt(numbers).
    correlation = torch.corrcoef(own)[~torch.eye(16, dtype=torch.bool)]
    assert float(correlation.abs().max()) < 5 / own.shape[1] ** 0.5
    found = similarity(layer.weight)
    assert found is not None
    assert abs(found) < 0.02
    # As torchvision draws it: normal, of variance 2 / (k c_out).
    assert float(own[0].std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_weights_of_a_file_are_those_of_every_tile(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = models.resnet18(num_classes=CLASSES).eval()
    with torch.no_grad():
        for norm in (layer for layer in source.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    path = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in source.state_dict().items() if "batches" not in name}, path)
    definition = config.load_network("torchvision:resnet18").model_copy(update={"normalization": "imagenet"})
    network = build(definition, (3, 32, 32), CLASSES, weights=load_weights(path)).eval()
    assert network.anew == ()
    assert max(tiles_of(network).values()) == 64
    x = torch.rand(3, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        assert_near(network(x), source((x - mean[:, None, None]) / std[:, None, None]))
    # For other classes only the last layer begins anew.
    other = build(definition, (3, 32, 32), 5, weights=load_weights(path))
    assert other.anew == ("fc.weight", "fc.bias")
    assert torch.equal(other.state_dict()["body.layer1.0.bn1.running_mean"], source.layer1[0].bn1.running_mean)


def test_other_weights_are_refused(file: Path, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 5))
    own = network.state_dict()
    with pytest.raises(FileError, match=r"^the weights do not fit: 1, such as '1\.bias', are not in the file$"):
        take(network, {name: value for name, value in own.items() if name != "1.bias"})
    with pytest.raises(FileError, match=r"^the weights do not fit: 1, such as 'two', do not belong to the network$"):
        take(network, {**own, "two": torch.ones(1)})
    with pytest.raises(
        FileError, match=r"^the weights do not fit: '0\.weight' has the shape \(4, 3, 5, 5\) in the file"
    ):
        take(network, {**own, "0.weight": torch.ones(4, 3, 5, 5), "1.bias": torch.ones(3)})
    with pytest.raises(FileError, match=r"^there is no file of weights "):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match=r"^network 'full' takes no weights from a file$"):
        build(config.load_network("full"), (3, 32, 32), 10, weights=own)


@pytest.mark.parametrize("stem", ["own", """own"') $(touch canary)"""])
def test_a_file_of_torch_is_not_unpickled_and_the_hint_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    network = nn.Linear(4, 5)
    file = Path(f"{stem}.pth")
    torch.save(network.state_dict(), file)
    with pytest.raises(FileError, match=r"\.pth: it is no safetensors file") as caught:
        load_weights(file)
    assert caught.value.hint is not None
    # As a shell reads it, but for what the shell itself would run.
    python, option, program = shlex.split(caught.value.hint.partition(": ")[2])
    assert (python, option) == ("python", "-c")
    exec(program, {})
    assert take(network, load_weights(Path(f"{stem}.safetensors"))) == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{stem}.pth", f"{stem}.safetensors"])


class Hostile:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("canary"),)


@pytest.mark.parametrize("damage", ["program", "program in an archive", "cut off", "a long header", "nothing"])
def test_damaged_weights_are_refused_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("weights.safetensors")
    save_file(nn.Linear(40, 50).state_dict(), file)
    whole = file.read_bytes()
    if damage == "program in an archive":
        torch.save({"weight": Hostile()}, file)
    else:
        contents = {
            "program": pickle.dumps(Hostile()),
            "cut off": whole[: len(whole) // 2],
            "a long header": (2**40).to_bytes(8, "little") + whole[8:],
            "nothing": b"",
        }
        file.write_bytes(contents[damage])
    with pytest.raises(FileError, match=r"^cannot read the weights weights\.safetensors: it is no safetensors file"):
        load_weights(file)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nett", r"mynet\.py: there is no 'Nett' in it$"),
        ("broken", r"^mynet\.py fails: RuntimeError: no such thing$"),
        ("number", r"^mynet\.py: number gives int, not a network$"),
        ("Lazy", r"^mynet\.py: '2\.weight' of Lazy has no size yet$"),
        ("Extra", r"^mynet\.py: the state of Extra has '_extra_state', which is no tensor$"),
        ("Pair", r"^network 'Pair' gives no tensor for an image, not a number for each of 3 classes$"),
        ("Wide", r"^network 'Wide' gives a tensor of shape \(11,\) for an image, not a number for each of 3 classes$"),
        ("flat", r"^network 'flat' has no convolution of more than one patch$"),
    ],
)
def test_what_is_no_network_is_told(file: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(file, name)


def test_a_function_without_classes_serves_where_it_fits(file: Path) -> None:
    assert made(file, "three")(images()).shape == (4, CLASSES)


def test_a_file_that_fails_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import nothing_of_that_name\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"^bad\.py fails: ModuleNotFoundError: No module named 'nothing_of_that_n"
        ):
            made(path)
    path.write_text("class Net(:\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^bad\.py fails: SyntaxError"):
        made(path)
    with pytest.raises(ConfigError, match=r"no class is named in the file$"):
        config.load_network(str(path))
    with pytest.raises(FileError, match=r"^cannot read the Python file"):
        config.load_network(f"{tmp_path / 'none.py'}:Net")


def kept(file: Path, network: Network, path: Path) -> Path:
    description = Description(network=network.definition, shape=SHAPE, classes=("a", "b", "c"), data="mine")
    checkpoint.save(path, description, network.state_dict(), {})
    return path


def test_a_checkpoint_never_runs_code_by_itself(file: Path, tmp_path: Path) -> None:
    network = made(file)
    path = kept(file, network, tmp_path / "kept.safetensors")
    assert_near(logits(checkpoint.load(path, code=[file])), logits(network))
    file.with_suffix(".ran").unlink()
    # As a new process has it.
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, f"rapa_network_{network.definition.module.sha256}")  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match=r"whose code is not run unasked$") as refused:
            checkpoint.load(path)
        assert refused.value.hint == "name the file, if you trust it: --code mynet.py; its run folder holds a copy"
        other = tmp_path / "other.py"
        other.write_text(SOURCE + "\n", encoding="utf-8")
        with pytest.raises(
            FileError, match=r"other\.py: not the mynet\.py that network 'Net' was made with, whose SHA"
        ):
            checkpoint.load(path, code=[other])
        with pytest.raises(FileError, match=r"^cannot read the Python file .*gone\.py: No such file"):
            checkpoint.load(path, code=[tmp_path / "gone.py"])
        assert not ran(file)
        assert not ran(other)
        # Whatever it is called, it is the file of that digest.
        other.write_bytes(file.read_bytes())
        assert_near(logits(checkpoint.load(path, code=[path, other])), logits(network))
        assert ran(other)


def test_a_reduced_network_is_kept_too(file: Path, tmp_path: Path) -> None:
    network = reduce(made(file), by="first")
    assert isinstance(network, Network)
    assert (network.definition.scheme, tiles_of(network)) == ("none", {})
    again = checkpoint.load(kept(file, network, tmp_path / "kept.safetensors"), code=[file])
    assert_near(logits(again), logits(network))


def test_shared_weights_stay_shared(file: Path, tmp_path: Path) -> None:
    network = made(file, "Tied")
    again = checkpoint.load(kept(file, network, tmp_path / "kept.safetensors"), code=[file])
    assert again.get_parameter("body.one.weight") is again.get_parameter("body.two.weight")
    assert_near(logits(again), logits(network))


def test_a_checkpoint_that_is_too_small_for_its_network_is_refused(file: Path, tmp_path: Path) -> None:
    network = made(file)
    definition = network.definition.model_copy(update={"tiles": (256, 16)})
    network.definition = definition
    path = kept(file, network, tmp_path / "kept.safetensors")
    with pytest.raises(FileError, match=r"its network cannot be built: it has \d+ weights at least, and the file \d+"):
        checkpoint.load(path, code=[file])
    held = sum(value.numel() for value in made(file).state_dict().values())
    assert fewest_numbers(resolve(defined(file), SHAPE, code=[file]), SHAPE, CLASSES, [file]) <= held


@pytest.mark.parametrize("tiles", [None, "those of the definition"])
@pytest.mark.parametrize("name", ["vit_h_14", "regnet_y_128gf"])
def test_a_checkpoint_that_names_a_network_larger_than_itself_is_refused_before_that_is_built(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tiles: str | None
) -> None:
    network, size = made(file), (3, 224, 224)
    network.definition = config.Network(name="x", layers=(), module=config.Module(name=name), scheme="random")
    if tiles is not None:
        network.definition = resolve(network.definition, size, scheme="none")
    description = Description(network=network.definition, shape=size, classes=("a", "b", "c"), data="mine")
    checkpoint.save(tmp_path / "kept.safetensors", description, network.state_dict(), {})
    monkeypatch.setattr(checkpoint, "build", lambda *_arguments, **_options: pytest.fail("it was built"))
    with pytest.raises(FileError, match=r"its network cannot be built: it has \d{9,} weights at least, and the file"):
        checkpoint.load(tmp_path / "kept.safetensors")


@pytest.mark.parametrize("changes", [{"scheme": "perforated"}, {"arrays": "ReRamES"}, {"arrays": "PCM"}])
def test_no_network_has_fewer_weights_than_it_is_said_to_have(changes: dict[str, str]) -> None:
    definition = config.Network(name="x", layers=(), module=config.Module(name="squeezenet1_1"), **changes)
    definition = resolve(definition, (3, 64, 64))
    held = sum(value.numel() for value in build(definition, (3, 64, 64), CLASSES).state_dict().values())
    assert held / 20 < fewest_numbers(definition, (3, 64, 64), CLASSES) <= held


def test_a_checkpoint_may_name_what_torchvision_does_not_have(file: Path, tmp_path: Path) -> None:
    network = made(file)
    network.definition = network.definition.model_copy(update={"module": config.Module(name="resnet19")})
    with pytest.raises(FileError, match=r"its network cannot be built: torchvision has no .* 'resnet19'"):
        checkpoint.load(kept(file, network, tmp_path / "kept.safetensors"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "Net", "file": "mynet.py"}, "a Python file has a digest, and torchvision none"),
        ({"name": "Net", "sha256": "0" * 64}, "a Python file has a digest, and torchvision none"),
        ({"name": "Net", "file": "../mynet.py", "sha256": "0" * 64}, "string should match pattern"),
        ({"name": "Net", "file": "mynet.py", "sha256": "0" * 63}, "string should match pattern"),
    ],
)
def test_a_definition_names_a_file_and_its_digest(table: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.validate(config.Network, {"name": "x", "layers": [], "module": table}, "here")


def test_a_network_has_layers_or_a_module() -> None:
    table: dict[str, Any] = {"name": "x", "module": {"name": "resnet18"}}
    with pytest.raises(ConfigError, match="a network has layers or a module, not both"):
        config.validate(config.Network, {**table, "layers": [{"kind": "relu"}]}, "here")
    with pytest.raises(ConfigError, match="network 'x' has pooling layers of its own, so that 'pool' cannot be set"):
        config.validate(config.Network, {**table, "layers": [], "pool": "mixed"}, "here")


def test_normalisation_by_imagenet_is_for_colours() -> None:
    definition = config.load_network("full").model_copy(update={"normalization": "imagenet"})
    statistics = Statistics(torch.zeros(1), torch.ones(1), torch.zeros(1, 28, 28))
    with pytest.raises(ConfigError, match="'imagenet' is for images of 3 channels, these have 1"):
        build(definition, (1, 28, 28), 10, statistics=statistics)


def test_groups_have_one_tile_or_are_refused_with_a_way_out() -> None:
    definition = config.load_network("torchvision:shufflenet_v2_x0_5")
    found = resolve(definition, (3, 64, 64), scheme="random")
    assert found.tiles is not None
    balanced = tiles_of(build(found, (3, 64, 64), CLASSES))
    assert balanced["body.conv1.0"] == found.tiles[0] == 256
    assert "body.stage2.0.branch1.0" not in balanced, "of 24 groups"
    with pytest.raises(
        ConfigError, match=r"^module: convolution 'stage2\.0\.branch1\.0' has 24 groups, and cannot"
    ) as refused:
        build(found.model_copy(update={"tiles": (4,) * len(found.tiles)}), (3, 64, 64), CLASSES)
    assert refused.value.hint == (
        "--scheme none leaves all convolutions as they are; --tiles with a 1 for it leaves this one so"
    )
    plain = build(definition.model_copy(update={"scheme": "none"}), (3, 64, 64), CLASSES)
    assert tiles_of(plain) == {}
    # Those that have no groups can be tiled.
    ones = resolve(definition, (3, 64, 64)).tiles
    assert ones is not None
    some = (4, *(1,) * (len(ones) - 1))
    tiled = build(definition.model_copy(update={"tiles": some}), (3, 64, 64), CLASSES)
    assert tiles_of(tiled)["body.conv1.0"] == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(3, 2), "b.count": torch.ones(1, dtype=torch.int64), "c.bias": torch.zeros(2)}
    save_file(state, tmp_path / "good.safetensors")
    assert list(load_weights(tmp_path / "good.safetensors")) == sorted(state)
    state["a.weight"][1, 1] = value
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(
        FileError, match=r"bad\.safetensors cannot be used: 'a\.weight' holds numbers that are not finite$"
    ):
        load_weights(tmp_path / "bad.safetensors")
