"""Matrices on arrays in a network: what changes them and what does not, their noise, and their state."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rapa_cli.analog.aware import STANDARD_HWA, InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.kinds import AnyDevice
from rapa_cli.analog.modifiers import WeightModifier
from rapa_cli.analog.module import AwareMatrices, PulsedMatrices, exact_gradients, noiseless, silence
from rapa_cli.analog.parameters import IOParameters, Mapping
from rapa_cli.analog.periphery import Periphery
from rapa_cli.analog.presets import DEVICES, PRESET_IO, preset
from rapa_cli.attacks.evaluation import Level, attack
from rapa_cli.kernels import cpu
from rapa_cli.keyed import draws, number_layers
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.tiling.arrays import AnyArrays, ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.training.sgd import AnalogSGD
from tests.attacks.toy import gradient_sign
from tests.tolerances import assert_near

PERFECT = IOParameters(is_perfect=True)
EXACT = Arrays(device=IdealDevice(), forward=PERFECT, backward=PERFECT)
SLOW_TO_ADJUST = STANDARD_HWA.model_copy(
    update={"modifier": WeightModifier(type="MultNormal", std_dev=0.1), "input_range": None}
)
IN_PARTS = Mapping(max_input_size=16, max_output_size=2)
# Without a kernel in C.
SEPARATE = PRESET_IO.model_copy(update={"out_noise_std": 0.2})


def around(device: AnyDevice, io: IOParameters = PRESET_IO, **changes: Any) -> Arrays:
    return Arrays(device=device, forward=io, backward=io, merge=0, **changes)


ALL: dict[str, AnyArrays] = {
    "Idealized": around(DEVICES["Idealized"]),
    "ReRamES": around(DEVICES["ReRamES"]),
    "in torch": around(DEVICES["EcRam"], SEPARATE),
    "inference": STANDARD_HWA,
    "inference, unranged": SLOW_TO_ADJUST,
    "inference, in parts": STANDARD_HWA.model_copy(update={"mapping": IN_PARTS}),
}


def network(arrays: AnyArrays, scheme: str = "random") -> nn.Sequential:
    torch.manual_seed(3)
    made = nn.Sequential(
        TiledConv2d(2, 4, 3, padding=1, tiles=4, scheme=scheme, arrays=arrays),
        nn.ReLU(),
        TiledConv2d(4, 3, 3, tiles=2, scheme="random", arrays=arrays),
        nn.ReLU(),
        nn.Flatten(),
        AnalogLinear(48, 3, arrays=arrays),
    )
    number_layers(made)
    return made


def pixels(count: int = 5) -> Tensor:
    return torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 2, 0, 1])


def loss_of(model: nn.Module, x: Tensor, *, draw: int = 0, stream: str = "train", ids: Tensor | None = None) -> Tensor:
    with draws(model, images=torch.arange(len(x)) if ids is None else ids, seed=2, draw=draw, stream=stream):
        return nn.functional.cross_entropy(model(x), LABELS[: len(x)])


def matrices(model: nn.Module) -> list[PulsedMatrices]:
    return [module for module in model.modules() if isinstance(module, PulsedMatrices)]


def snapshot(model: nn.Module) -> list[Tensor]:
    """All that a model holds, and torch's own generator."""
    grads = [torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()]
    parameters = [p.detach().clone() for p in model.parameters()]
    return [*(values.clone() for values in model.state_dict().values()), *parameters, *grads, torch.get_rng_state()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    return same(list(one.state_dict().values()), list(other.state_dict().values()))


def by_autograd(model: nn.Module) -> None:
    x = pixels().requires_grad_()
    torch.autograd.grad(loss_of(model, x), x)


def by_sign(model: nn.Module) -> None:
    with draws(model, images=torch.arange(5)):
        gradient_sign(model, pixels(), LABELS)


def by_attack(model: nn.Module) -> None:
    attack(model, (255 * pixels()).to(torch.uint8), LABELS, [Level(eps=0.1), Level(snr_db=20)], batch_size=2)


def by_torchattacks(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks
    with draws(model, images=torch.arange(5)):
        torchattacks.FGSM(model, eps=0.1)(pixels(), LABELS)


INPUT_GRADIENTS = [by_autograd, by_sign, by_attack, by_torchattacks]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("gradient", INPUT_GRADIENTS)
def test_gradients_of_inputs_change_nothing(name: str, gradient: Callable[[nn.Module], None], training: bool) -> None:
    """Not even with a step of the optimizer after it, and not what waits for that step."""
    model = network(ALL[name]).train(training)
    if name in ("inference", "inference, in parts"):
        # An input range is taken from the first batches of a training, like the statistics of a batch normalisation.
        for layer in model:
            if isinstance(layer, ArrayLayer):
                assert isinstance(layer.matrices, AwareMatrices)
                layer.matrices.get_buffer("batches").fill_(100)
    sgd = AnalogSGD(model, lr=0.1)
    before = snapshot(model)
    gradient(model)
    assert same(snapshot(model), before)
    sgd.step()
    if isinstance(ALL[name], Arrays):
        assert same(snapshot(model), before)
    twin = copy.deepcopy(model)
    twins_sgd = AnalogSGD(twin, lr=0.1)
    for each in (model, twin):
        torch.autograd.backward(loss_of(each, pixels()))
    gradient(model)
    for optimizer in (sgd, twins_sgd):
        optimizer.step()
    assert same_state(model, twin)
    assert not same(list(model.state_dict().values()), before[: len(model.state_dict())])


def steps_like(model: nn.Module, train: Callable[[nn.Module, torch.optim.Optimizer], None]) -> None:
    """On exact arrays a way to train comes to the same as with plain SGD on an ideal network."""
    plain = nn.Sequential(
        TiledConv2d(2, 4, 3, padding=1, tiles=4), nn.ReLU(), TiledConv2d(4, 3, 3, tiles=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 3),
    )  # fmt: skip
    ours = [layer for layer in model.children() if isinstance(layer, ArrayLayer)]
    theirs = [plain[0], plain[2], plain[5]]
    with torch.no_grad():
        for layer, ideal in zip(ours, theirs, strict=True):
            ideal.get_parameter("weight").copy_(layer.weight)
            assert layer.bias is not None
            ideal.get_parameter("bias").copy_(layer.bias)
    before = ours[0].weight
    train(model, AnalogSGD(model, lr=0.1))
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    assert not torch.equal(ours[0].weight, before)
    for layer, ideal in zip(ours, theirs, strict=True):
        assert layer.bias is not None
        assert_near(layer.weight, ideal.get_parameter("weight").detach())
        assert_near(layer.bias, ideal.get_parameter("bias").detach())


def two_backwards(model: nn.Module, sgd: torch.optim.Optimizer) -> None:
    torch.autograd.backward(loss_of(model, pixels()))
    torch.autograd.backward(loss_of(model, pixels().flip(0), draw=1))
    sgd.step()


def two_forwards_first(model: nn.Module, sgd: torch.optim.Optimizer) -> None:
    one, two = loss_of(model, pixels()), loss_of(model, pixels().flip(0), draw=1)
    torch.autograd.backward(two)
    torch.autograd.backward(one)
    sgd.step()


def one_graph_of_two(model: nn.Module, sgd: torch.optim.Optimizer) -> None:
    torch.autograd.backward(loss_of(model, pixels()) + 2 * loss_of(model, pixels().flip(0), draw=1))
    sgd.step()


def one_graph_twice(model: nn.Module, sgd: torch.optim.Optimizer) -> None:
    loss = loss_of(model, pixels())
    torch.autograd.backward(loss, retain_graph=True)
    torch.autograd.backward(loss)
    sgd.step()


def dropped(model: nn.Module, sgd: torch.optim.Optimizer, *, to_none: bool) -> None:
    torch.autograd.backward(loss_of(model, pixels(), draw=4))
    sgd.zero_grad(set_to_none=to_none)
    torch.autograd.backward(loss_of(model, pixels()))
    sgd.step()


def zeroed_at_last(model: nn.Module, sgd: torch.optim.Optimizer, *, to_none: bool) -> None:
    torch.autograd.backward(loss_of(model, pixels()))
    sgd.step()
    torch.autograd.backward(loss_of(model, pixels(), draw=4))
    sgd.zero_grad(set_to_none=to_none)
    sgd.step()


def two_steps(model: nn.Module, sgd: torch.optim.Optimizer) -> None:
    torch.autograd.backward(loss_of(model, pixels()))
    sgd.step()
    sgd.step()
    torch.autograd.backward(loss_of(model, pixels(), draw=1))
    sgd.step()


def attacked_between(model: nn.Module, sgd: torch.optim.Optimizer) -> None:
    x = pixels().requires_grad_()
    loss = loss_of(model, x)
    torch.autograd.grad(loss, x, retain_graph=True)
    torch.autograd.backward(loss)
    by_autograd(model)
    sgd.step()


def penalised(model: nn.Module, sgd: torch.optim.Optimizer) -> None:
    """An input gradient of the graph that is then gone through, after a pass that waits already."""
    torch.autograd.backward(loss_of(model, pixels().flip(0), draw=1))
    attacked_between(model, sgd)


def by_closure(model: nn.Module, sgd: torch.optim.Optimizer) -> None:
    def closure() -> float:
        sgd.zero_grad()
        loss = loss_of(model, pixels())
        torch.autograd.backward(loss)
        return float(loss.detach())

    assert isinstance(sgd.step(closure), float)


def on_a_schedule(model: nn.Module, sgd: torch.optim.Optimizer) -> None:
    schedule = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)
    for draw in range(2):
        sgd.zero_grad()
        torch.autograd.backward(loss_of(model, pixels(), draw=draw))
        sgd.step()
        schedule.step()


WAYS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], None]] = {
    "two backward passes": two_backwards,
    "two forward passes, then backwards": two_forwards_first,
    "one graph of two": one_graph_of_two,
    "one graph twice": one_graph_twice,
    "dropped to none": lambda model, sgd: dropped(model, sgd, to_none=True),
    "dropped to zero": lambda model, sgd: dropped(model, sgd, to_none=False),
    "none at last": lambda model, sgd: zeroed_at_last(model, sgd, to_none=True),
    "zero at last": lambda model, sgd: zeroed_at_last(model, sgd, to_none=False),
    "two steps": two_steps,
    "attacked between": attacked_between,
    "attacked after one": penalised,
    "a closure": by_closure,
    "a schedule": on_a_schedule,
}


@pytest.mark.parametrize("way", WAYS)
def test_pulses_wait_as_gradients_do(way: str) -> None:
    steps_like(network(EXACT), WAYS[way])


@pytest.mark.parametrize("name", ["ReRamES", "inference", "inference, in parts"])
def test_a_copy_learns_by_itself(name: str) -> None:
    model = network(ALL[name])
    torch.autograd.backward(loss_of(model, pixels()))
    copied = copy.deepcopy(model)
    assert same_state(model, copied)
    before = snapshot(model)
    sgd = AnalogSGD(copied, lr=0.1)
    sgd.step()
    assert same(list(copied.state_dict().values()), before[: len(copied.state_dict())]), "a copy has no gradients"
    torch.autograd.backward(loss_of(copied, pixels(), draw=1))
    sgd.step()
    assert same(snapshot(model), before)
    assert not same_state(model, copied)
    torch.autograd.backward(loss_of(copied, pixels(), draw=2))


def test_frozen_arrays_are_read_only() -> None:
    model = network(ALL["ReRamES"])
    first = matrices(model)[0]
    first.pulses.requires_grad_(False)
    kept = {name: values.clone() for name, values in first.state_dict().items()}
    others = [{name: values.clone() for name, values in part.state_dict().items()} for part in matrices(model)[1:]]
    sgd = AnalogSGD(model, lr=0.1)
    torch.autograd.backward(loss_of(model, pixels()))
    sgd.step()
    assert all(torch.equal(values, kept[name]) for name, values in first.state_dict().items())
    for part, before in zip(matrices(model)[1:], others, strict=True):
        assert not torch.equal(part.state_dict()["0.weight"], before["0.weight"])
    first.pulses.requires_grad_(True)
    sgd.zero_grad()
    torch.autograd.backward(loss_of(model, pixels()))
    sgd.step()
    assert not torch.equal(first.state_dict()["0.weight"], kept["0.weight"])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_ordinary_optimizer_is_refused(kind: Any) -> None:
    model = network(EXACT)
    ordinary = kind(model.parameters(), lr=0.1)
    torch.autograd.backward(loss_of(model, pixels()))
    ordinary.step()
    with pytest.raises(RuntimeError, match=r"^pulses: an ordinary optimizer made a step; arrays learn with AnalogSGD"):
        model(pixels())
    with torch.no_grad(), pytest.raises(RuntimeError, match="AnalogSGD"):
        model(pixels())


def test_gradients_that_were_clipped_are_refused() -> None:
    """They count backward passes; half a pass would be none."""
    model = network(EXACT)
    sgd = AnalogSGD(model, lr=0.1)
    torch.autograd.backward(loss_of(model, pixels()))
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    with pytest.raises(RuntimeError, match=r"^pulses: their gradient is 0\.\d+, but 1 backward passes wait; it count"):
        sgd.step()
    sgd.zero_grad()
    torch.autograd.backward(loss_of(model, pixels()))
    sgd.step()


def trained(arrays: AnyArrays, steps: int = 3, *, torch_seed: int = 0, scheme: str = "random") -> nn.Sequential:
    model = network(arrays, scheme)
    torch.manual_seed(torch_seed)
    sgd = AnalogSGD(model, lr=0.1)
    for step in range(steps):
        sgd.zero_grad()
        torch.autograd.backward(loss_of(model, pixels(), draw=step))
        sgd.step()
    return model


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scheme", ["random", "image-pad"])
def test_the_same_seed_gives_the_same_bits(name: str, scheme: str) -> None:
    one, other = trained(ALL[name], scheme=scheme), trained(ALL[name], torch_seed=9, scheme=scheme)
    assert same_state(one, other)
    for draw in range(2):
        assert torch.equal(loss_of(one, pixels(), draw=draw), loss_of(other, pixels(), draw=draw))


@pytest.mark.parametrize("name", ALL)
def test_noise_is_of_the_draw_the_stream_and_the_seed(name: str) -> None:
    model, x, ids = network(ALL[name], "none" if name == "none" else "random-fixed").eval(), pixels(), torch.arange(5)
    found = []
    # The assignments of the second convolution are drawn anew with each.
    with draws(model, images=ids):
        hidden = model[:2](x)
    layer = model[2]
    given = torch.arange(16).remainder(2).expand(5, 16).contiguous()
    for seed, draw, stream in ((0, 0, "test"), (1, 0, "test"), (0, 1, "test"), (0, 0, "vote"), (0, 0, "train")):
        with draws(model, images=ids, seed=seed, draw=draw, stream=stream):
            found.append(layer(hidden, given))
        with draws(model, images=ids, seed=seed, draw=draw, stream=stream):
            assert torch.equal(layer(hidden, given), found[-1])
    with draws(model, images=ids + 5):
        found.append(layer(hidden, given))
    with draws(nn.Sequential(nn.Identity(), model[0], layer), images=ids):
        assert torch.equal(layer(hidden, given), found[0]), "the second layer in any network"
    with draws(nn.Sequential(layer), images=ids):
        found.append(layer(hidden, given))
    outside = [layer(hidden, given), layer(hidden, given)]
    found += outside
    for i, one in enumerate(found):
        assert not any(torch.equal(one, other) for other in found[:i])


@pytest.mark.parametrize("arrays", [ALL["ReRamES"], SLOW_TO_ADJUST], ids=["pulsed", "inference"])
def test_in_the_kernels_noise_belongs_to_the_image(arrays: AnyArrays) -> None:
    """The same in any batch, forwards and backwards."""
    if not cpu.available():
        pytest.skip("the C kernels could not be compiled; `rapa doctor` says why")
    model, ids = network(arrays).eval(), torch.tensor([8, 3, 5, 4, 11])

    def read(order: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels()[order].requires_grad_()
        with draws(model, images=ids[order], seed=4):
            y = model(x)
        (to_x,) = torch.autograd.grad(y.square().sum(), x)
        return y.detach(), to_x

    whole = read(torch.arange(5))
    for order in (torch.tensor([4, 2, 0, 3, 1]), torch.tensor([2]), torch.tensor([1, 3])):
        for part, of_all in zip(read(order), whole, strict=True):
            assert torch.equal(part, of_all[order])


def test_noise_backwards_is_not_that_of_reading_forwards() -> None:
    """Of a symmetric matrix that is read with the same vector in both directions."""
    io = PRESET_IO.model_copy(update={"inp_res": 0.0, "out_res": 0.0})
    for each in (io, io.model_copy(update={"out_noise_std": 1e-9})):
        layer = AnalogLinear(6, 6, bias=False, arrays=Arrays(device=IdealDevice(), forward=each, backward=each))
        layer.set_weights(torch.eye(6), None)
        x = torch.rand(4, 6).requires_grad_()
        with draws(layer, images=torch.arange(4)):
            y = layer(x)
        (back,) = torch.autograd.grad(y, x, x.detach())
        forwards, backwards = (y - x).detach(), back - x.detach()
        assert 0.02 < float(forwards.std()) < 0.2
        assert 0.02 < float(backwards.std()) < 0.2
        assert abs(float(torch.corrcoef(torch.stack([forwards.flatten(), backwards.flatten()]))[0, 1])) < 0.8


@pytest.mark.parametrize("name", ALL)
def test_without_noise_draws_read_alike(name: str) -> None:
    """Up to the tiles that they draw, which are the same here."""
    model = network(ALL[name]).eval()
    layer, x = model[2], torch.rand(5, 4, 6, 6)
    given = torch.arange(16).remainder(2).expand(5, 16).contiguous()

    def read(draw: int) -> Tensor:
        with draws(layer, images=torch.arange(5), draw=draw):
            y: Tensor = layer(x, given)
            return y.detach()

    noisy = read(0)
    assert not torch.equal(read(1), noisy)
    with noiseless(model):
        quiet = read(0)
        assert torch.equal(read(1), quiet)
        with noiseless(model):
            pass
        assert torch.equal(read(2), quiet)
    assert torch.equal(read(0), noisy)
    assert not torch.equal(quiet, noisy)
    with pytest.raises(KeyError), noiseless(model):
        raise KeyError
    assert torch.equal(read(0), noisy)
    silence(model)
    assert torch.equal(read(7), quiet)


# What can be drawn for lines, and converters.
LINES_DRAWN = IOParameters(
    out_noise_std=0.2,
    out_nonlinearity=0.1,
    out_nonlinearity_std=0.3,
    v_offset_std=0.02,
    mv_type="PosNegSeparate",
    w_read_asymmetry_dtod=0.1,
    ir_drop=1.0,
    out_bound=3.0,
)


def test_split_matrices_are_the_sums_of_parts_read_by_hand() -> None:
    arrays = InferenceArrays(
        forward=LINES_DRAWN,
        weight_scaling_omega=1.0,
        mapping=Mapping(max_input_size=4, max_output_size=3),
    )
    layer = AnalogLinear(9, 5, arrays=arrays).eval()
    silence(layer)
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    vectors, state = torch.cat([x, torch.ones(6, 1)], 1), layer.state_dict()
    assert layer.bias is not None
    weights = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    wanted = torch.zeros(6, 5)
    grid = [(rows, columns) for rows in ((0, 3), (3, 5)) for columns in ((0, 4), (4, 7), (7, 10))]
    drawn = []
    for p, (rows, columns) in enumerate(grid):
        own = weights[slice(*rows), slice(*columns)]
        largest = own.abs().max()
        assert torch.equal(state[f"matrices.part.{p}.scale"], largest.expand(1, len(own)))
        start = f"matrices.part.{p}.line_"
        lines = {name.removeprefix(start): values for name, values in state.items() if name.startswith(start)}
        assert lines.keys() == {"v_offset", "out_nonlinearity", "out_noise", "w_asymmetry"}
        assert lines["w_asymmetry"].shape == (1, *own.shape)
        drawn.append(lines["w_asymmetry"].flatten()[:6])
        alone = Periphery(LINES_DRAWN, lines).quiet()
        inputs = vectors[:, slice(*columns)].contiguous()
        wanted[:, slice(*rows)] += largest * alone.read((own / largest)[None], inputs, [6], torch.Generator()).values
    found = layer(x).detach()
    assert_near(found, wanted)
    assert float((found - vectors @ weights.T).abs().max()) > 0.01
    assert not any(torch.equal(one, other) for i, one in enumerate(drawn) for other in drawn[:i])


def test_each_part_has_noise_of_its_own() -> None:
    io = IOParameters(noise_management="None", out_noise=0.1, out_res=0.0)
    layer = AnalogLinear(
        12, 8, False, arrays=InferenceArrays(forward=io, mapping=Mapping(max_input_size=3, max_output_size=4))
    )
    layer.set_weights(torch.zeros(8, 12), None)
    x = torch.rand(4000, 12)
    with draws(layer, images=torch.arange(4000)):
        y = layer(x).detach()
    # The sum of four.
    assert float(y.std()) == pytest.approx(0.2, rel=0.02)
    correlations = torch.corrcoef(y.T) - torch.eye(8)
    assert float(correlations.abs().max()) < 0.07


def test_parts_move_and_keep_their_state() -> None:
    arrays = ALL["inference, in parts"].model_copy(update={"forward": LINES_DRAWN, "input_range": None})
    layer = TiledConv2d(2, 4, 3, tiles=4, arrays=arrays)
    names = [name for name in layer.state_dict() if "matrices.part." in name]
    assert len(names) == 4 * 5
    before = copy.deepcopy(layer.state_dict())
    layer.double()
    assert all(layer.state_dict()[name].dtype == torch.float64 for name in names)
    assert layer(pixels().double()).dtype == torch.float64
    layer.float()
    assert all(torch.equal(layer.state_dict()[name], before[name]) for name in names)
    with pytest.raises(RuntimeError, match=r"matrices\.part\.0\.scale"):
        TiledConv2d(2, 4, 3, tiles=4, arrays=arrays.model_copy(update={"mapping": Mapping()})).load_state_dict(before)


def test_exact_gradients_are_those_of_the_weights_that_arrays_show() -> None:
    for arrays in (around(DEVICES["ReRamES"]), around(DEVICES["EcRam"], SEPARATE)):
        layer = TiledConv2d(2, 4, 3, padding=1, tiles=4, arrays=arrays)
        ideal = TiledConv2d(2, 4, 3, padding=1, tiles=4)
        ideal.set_weights(layer.weight, layer.bias)
        assignment, towards = torch.randint(-1, 4, (5, 36)), torch.randn(5, 4, 6, 6)
        x = pixels().requires_grad_()
        (expected,) = torch.autograd.grad((ideal(x, assignment) * towards).sum(), x)
        with exact_gradients(layer):
            (found,) = torch.autograd.grad((layer(x, assignment) * towards).sum(), x)
        assert_near(found, expected)
        (noisy,) = torch.autograd.grad((layer(x, assignment) * towards).sum(), x)
        assert float((noisy - expected).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["ReRamES", "in torch", "inference", "inference, in parts"])
def test_state_goes_through_a_file(name: str, tmp_path: Path) -> None:
    model = trained(ALL[name])
    state = model.state_dict()
    if name == "ReRamES":
        assert not torch.equal(state["0.matrices.0.hidden"], state["0.matrices.0.weight"])
    save_file({key: values.contiguous() for key, values in state.items()}, tmp_path / "a.safetensors")
    other = network(ALL[name])
    assert not same_state(other, model)
    other.load_state_dict(load_file(tmp_path / "a.safetensors"))
    assert same_state(other, model)
    for each in (model, other):
        sgd = AnalogSGD(each, lr=0.1)
        sgd.zero_grad()
        torch.autograd.backward(loss_of(each, pixels(), draw=8))
        sgd.step()
    assert same_state(other, model)


def test_state_that_does_not_fit() -> None:
    model = network(ALL["ReRamES"])
    state = model.state_dict()
    less = {name: values for name, values in state.items() if name != "2.matrices.0.hidden"}
    more = {**state, "0.matrices.0.other": torch.zeros(1), "0.matrices.scale": torch.zeros(1)}
    other = {**state, "5.matrices.0.weight": torch.zeros(1, 3, 48)}
    with pytest.raises(RuntimeError, match=r'Missing key.* "2\.matrices\.0\.hidden"'):
        model.load_state_dict(less)
    with pytest.raises(RuntimeError, match=r'Unexpected key.* "0\.matrices\.0\.other", "0\.matrices\.scale"'):
        model.load_state_dict(more)
    with pytest.raises(RuntimeError, match=r"5\.matrices\.0\.weight: got shape \(1, 3, 48\), allowed is \(1, 3, 49\)"):
        model.load_state_dict(other)
    found = model.load_state_dict(less, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["2.matrices.0.hidden"], [])
    assert model.load_state_dict(more, strict=False).missing_keys == []


@pytest.mark.parametrize(
    "name", ["PCM", "ReRamES", "TikiTakaIdealized", "TTv2EcRam", "MixedPrecisionReRamES", "Capacitor2", "GokmenVlasov"]
)
def test_every_kind_of_cell_reads_learns_and_keeps_its_state(name: str) -> None:
    arrays = preset(name)
    assert isinstance(arrays, Arrays)

    def made() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(
            TiledConv2d(2, 3, 2, tiles=2, arrays=arrays), nn.Flatten(), AnalogLinear(12, 2, arrays=arrays)
        )

    def step(model: nn.Sequential, draw: int) -> None:
        sgd = AnalogSGD(model, lr=0.1)
        with draws(model, images=torch.arange(2), draw=draw, stream="train"):
            loss = nn.functional.cross_entropy(model(pixels()[:2, :, :3, :3]), LABELS[:2])
        torch.autograd.backward(loss)
        sgd.step()
        sgd.zero_grad()

    whole, half = made(), made()
    before = copy.deepcopy(whole.state_dict())
    for draw in range(4):
        step(whole, draw)
    for draw in range(2):
        step(half, draw)
    resumed = made()
    resumed.load_state_dict(half.state_dict())
    for draw in range(2, 4):
        step(resumed, draw)
    assert same_state(resumed, whole)
    assert any(not torch.equal(values, before[key]) for key, values in whole.state_dict().items())
    assert all(bool(v.isfinite().all()) for v in whole.state_dict().values() if v.is_floating_point())


def test_a_whole_layer_can_be_moved() -> None:
    layer = network(ALL["ReRamES"])[0]
    assert isinstance(layer, TiledConv2d)
    weight = layer.weight
    layer.double()
    assert all(values.dtype != torch.float32 for values in layer.state_dict().values())
    assert torch.equal(layer.weight, weight.double())
    layer.float()
    assert torch.equal(layer.weight, weight)
    sgd = AnalogSGD(layer, lr=0.1)
    torch.autograd.backward(layer(pixels()).square().sum())
    sgd.step()
    assert not torch.equal(layer.weight, weight)


def test_arrays_show_what_they_are() -> None:
    model = network(ALL["ReRamES"])
    assert "ExpStep, tiles=4, out=4, lines=19" in repr(model)
    assert "PCMLike" in repr(network(InferenceArrays()))
    assert "PCMLike, parts=2x2" in repr(network(InferenceArrays(mapping=IN_PARTS)))
