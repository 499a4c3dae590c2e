"""Layers on analog arrays against ideal ones: with a perfect periphery nothing differs, and what arrays add shows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.modifiers import ClipType, WeightClip, WeightModifier, WeightRemap
from rapa_cli.analog.module import AwareMatrices, PulsedMatrices, noiseless
from rapa_cli.analog.parameters import IOParameters, Mapping, PulseType, UpdateParameters
from rapa_cli.analog.ranges import InputRange
from rapa_cli.analog.steps import ConstantStepDevice
from rapa_cli.kernels import cpu
from rapa_cli.keyed import draws
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.tiling.arrays import AnyArrays
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import SCHEMES
from rapa_cli.training.sgd import AnalogSGD
from tests.tolerances import assert_near

PERFECT = IOParameters(is_perfect=True)
# Perfect as well, but read by the kernels where there are any.
BARE = IOParameters(
    inp_bound=0, inp_res=0, out_bound=0, out_res=0, out_noise=0, noise_management="None", bound_management="None"
)
SCALED = BARE.model_copy(update={"noise_management": IOParameters().noise_management, "inp_bound": 1.0})
PERIPHERIES = {"perfect": PERFECT, "bare": BARE, "scaled": SCALED}
IDEAL, CONSTANT = IdealDevice(), ConstantStepDevice()
WIDE = InputRange(init_value=100.0, init_from_data=0, decay=0.0)
NO_PULSES = UpdateParameters(pulse_type=PulseType.NONE)

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "odd": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "bias": False},
    "same": {"kernel_size": (2, 3), "padding": "same", "dilation": (2, 1)},
}


@pytest.fixture(params=["kernels", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where layers are computed: by the C kernels, or in torch as where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(cpu, "available", lambda: False)
    elif not cpu.available():
        pytest.skip("the C kernels could not be compiled; `rapa doctor` says why")
    yield request.param


def pulsed(io: IOParameters = PERFECT, **changes: Any) -> Arrays:
    return Arrays(**{"device": IDEAL, "forward": io, "backward": io, **changes})


KINDS: dict[str, AnyArrays] = {
    "kernels": pulsed(BARE),
    "perfect": pulsed(PERFECT),
    "inference": InferenceArrays(forward=BARE),
    "in a range": InferenceArrays(forward=BARE, input_range=WIDE),
    "in parts": InferenceArrays(forward=BARE, mapping=Mapping(max_input_size=5, max_output_size=2)),
}


def convolution(arrays: AnyArrays | None, scheme: str = "random", **arguments: Any) -> TiledConv2d:
    tiles = arguments.pop("tiles", 1 if scheme == "none" else 4)
    return TiledConv2d(3, 5, **{**SHAPES["plain"], **arguments}, tiles=tiles, scheme=scheme, arrays=arrays)


def twins(arrays: AnyArrays, scheme: str = "random", **arguments: Any) -> tuple[TiledConv2d, TiledConv2d]:
    """A layer on arrays and an ideal one with the same weights and seed."""
    layer, ideal = convolution(arrays, scheme, **arguments), convolution(None, scheme, **arguments)
    with torch.no_grad():
        ideal.weight.copy_(layer.weight)
        if ideal.bias is not None:
            assert layer.bias is not None
            ideal.bias.copy_(layer.bias)
    ideal.seed.copy_(layer.seed)
    return layer, ideal


def _any(value: Any) -> Any:
    """A value of any type, as from where types are not checked."""
    return value


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 6, 7, generator=torch.Generator().manual_seed(4))


def computed(layer: TiledConv2d, x: Tensor, *, draw: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of the inputs; those of the parameters are added to what they have."""
    x = x.clone().requires_grad_()
    with draws(layer, images=torch.arange(len(x)) + 7, seed=3, draw=draw, stream="train"):
        y = layer(x)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    torch.autograd.backward((y * towards).sum())
    assert x.grad is not None
    return y.detach(), x.grad


def assert_alike(layer: TiledConv2d, ideal: TiledConv2d) -> None:
    """The same weights."""
    assert_near(layer.weight.detach(), ideal.weight.detach())
    assert (layer.bias is None) == (ideal.bias is None)
    if layer.bias is not None:
        assert ideal.bias is not None
        assert_near(layer.bias.detach(), ideal.bias.detach())


def assert_learns_like(layer: TiledConv2d, ideal: TiledConv2d, x: Tensor, steps: int = 2) -> None:
    """The layers give the same, pass the same gradients, and make the same steps."""
    ours = AnalogSGD(layer, lr=0.05)
    plain = torch.optim.SGD(ideal.parameters(), lr=0.05)
    for step in range(steps):
        for found, expected in zip(computed(layer, x, draw=step), computed(ideal, x, draw=step), strict=True):
            assert_near(found, expected)
        before = ideal.weight.detach().clone()
        for optimizer in (ours, plain):
            optimizer.step()
            optimizer.zero_grad()
        assert_alike(layer, ideal)
        assert float((ideal.weight.detach() - before).abs().max()) > 0.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("periphery", PERIPHERIES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_perfect_arrays_are_ideal_ones(path: str, periphery: str, scheme: str, shape: str) -> None:
    for arrays in (
        pulsed(PERIPHERIES[periphery]),
        pulsed(PERIPHERIES[periphery], device=CONSTANT, update=NO_PULSES),
    ):
        layer, ideal = twins(arrays, scheme, **SHAPES[shape])
        assert layer.number_of_weights() == sum(parameter.numel() for parameter in ideal.parameters())
        assert_learns_like(layer, ideal, images())


def test_assignments_that_leave_patches_and_tiles_out(path: str) -> None:
    assignment = torch.randint(-1, 3, (3, 42))
    x = images()
    for arrays in (pulsed(BARE), pulsed(PERFECT), InferenceArrays(forward=BARE), InferenceArrays(forward=PERFECT)):
        layer, ideal = twins(arrays)
        assert_near(layer(x, assignment), ideal(x, assignment))
        assert_near(layer(x, torch.full_like(assignment, -1)), torch.zeros(3, 5, 6, 7))


@pytest.mark.parametrize(
    "mapping",
    [
        Mapping(max_input_size=10),
        Mapping(max_output_size=2),
        Mapping(max_input_size=9, max_output_size=3, weight_scaling_omega=0.5),
        Mapping(weight_scaling_omega=0.7, weight_scaling_columnwise=True),
        Mapping(input_range=10.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("scheme", ["random", "image-pad", "perforated"])
def test_split_and_scaled_matrices_sum_to_the_whole(path: str, mapping: Mapping, scheme: str) -> None:
    layer, ideal = twins(pulsed(BARE, mapping=mapping), scheme)
    matrices = layer.matrices
    assert isinstance(matrices, PulsedMatrices)
    split = mapping.max_input_size > 0 or mapping.max_output_size > 0
    assert (len(matrices.bank.banks) > 1) == split
    if mapping.weight_scaling_omega == 0:
        assert_learns_like(layer, ideal, images())
        return
    # d / alpha is what arrays learn from, so that the matrix of a line with scale alpha gets the whole step.
    for found, expected in zip(computed(layer, images()), computed(ideal, images()), strict=True):
        assert_near(found, expected)
    before = layer.weight
    AnalogSGD(layer, lr=0.05).step()
    assert ideal.weight.grad is not None
    assert_near(layer.weight, before - 0.05 * ideal.weight.grad)


def test_split_matrices_learn_by_pulses() -> None:
    mapping = Mapping(max_input_size=10, max_output_size=3)
    layer = convolution(Arrays(device=CONSTANT, merge=0, mapping=mapping), tiles=2)
    x = images(4)
    target = torch.nn.functional.conv2d(x, 0.2 * torch.randn(5, 3, 3, 3), padding=1)
    sgd = AnalogSGD(layer, lr=0.3)
    losses = []
    for step in range(20):
        with draws(layer, images=torch.arange(4), draw=step, stream="train"):
            loss = (layer(x) - target).square().mean()
        sgd.zero_grad()
        torch.autograd.backward(loss)
        sgd.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.parametrize("periphery", PERIPHERIES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight_scaling_omega": 0.7},
        {"weight_scaling_omega": 1.0, "weight_scaling_columnwise": True},
        {"weight_scaling_omega": 1.0, "remap": WeightRemap(type="ChannelwiseSymmetric")},
        {"remap": WeightRemap(type="LayerwiseSymmetric")},
    ],
    ids=["", "omega", "columns", "remapped", "remapped from 1"],
)
@pytest.mark.parametrize("scheme", ["random", "none", "perforated", "image-pad"])
def test_perfect_inference_arrays_are_ideal_ones(
    path: str, periphery: str, changes: dict[str, Any], scheme: str
) -> None:
    layer, ideal = twins(InferenceArrays(forward=PERIPHERIES[periphery], **changes), scheme)
    assert_learns_like(layer, ideal, images())
    layer, ideal = twins(InferenceArrays(forward=PERIPHERIES[periphery], **changes), scheme, **SHAPES["odd"])
    assert_learns_like(layer, ideal, images())


PARTS = [Mapping(max_input_size=10), Mapping(max_output_size=2), Mapping(max_input_size=9, max_output_size=3)]


@pytest.mark.parametrize("mapping", PARTS, ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {"forward": PERFECT},
        {"weight_scaling_omega": 0.7},
        {"weight_scaling_omega": 1.0, "weight_scaling_columnwise": True},
        {"remap": WeightRemap(type="LayerwiseSymmetric"), "forward": SCALED},
        {"input_range": WIDE},
    ],
    ids=["perfect", "omega", "columns", "remapped", "in a range"],
)
@pytest.mark.parametrize("scheme", ["random", "none", "perforated", "image-pad"])
def test_split_inference_arrays_are_ideal_ones(
    path: str, mapping: Mapping, changes: dict[str, Any], scheme: str
) -> None:
    arrays = InferenceArrays(**{"forward": BARE, "mapping": mapping, **changes})
    for shape in ("plain", "odd"):
        layer, ideal = twins(arrays, scheme, **SHAPES[shape])
        assert isinstance(layer.matrices, AwareMatrices)
        assert len(layer.matrices.parts) > 1
        assert_learns_like(layer, ideal, images())


def test_matrices_that_fit_are_whole() -> None:
    for mapping in (Mapping(), Mapping(max_input_size=28, max_output_size=5)):
        layer = convolution(InferenceArrays(mapping=mapping, weight_scaling_omega=1.0))
        assert isinstance(layer.matrices, AwareMatrices)
        assert layer.matrices.parts == [layer.matrices]
        assert "matrices.scale" in layer.state_dict()


def test_gradients_of_split_arrays_go_straight_through_converters_and_noise() -> None:
    mapping = Mapping(max_input_size=10, max_output_size=3)
    layer, ideal = twins(InferenceArrays(mapping=mapping, weight_scaling_omega=1.0))
    (found, to_x), (expected, plain_to_x) = computed(layer, images()), computed(ideal, images())
    assert 0.01 < float((found - expected).std()) < 0.5 * float(expected.std())
    assert_near(to_x, plain_to_x)
    for ours, theirs in zip((layer.weight, layer.bias), (ideal.weight, ideal.bias), strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.grad is not None
        assert theirs.grad is not None
        assert_near(ours.grad, theirs.grad)


@pytest.mark.parametrize("columnwise", [True, False])
def test_parts_are_clipped_scaled_and_remapped_each_by_itself(columnwise: bool) -> None:
    """Clipped to what was the largest weight of each part's line, or of the part, whose place the new one takes."""
    arrays = InferenceArrays(
        forward=BARE,
        clip=WeightClip(type="FixedValue", fixed_value=1.0),
        remap=WeightRemap(type="ChannelwiseSymmetric" if columnwise else "LayerwiseSymmetric"),
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=columnwise,
        mapping=Mapping(max_input_size=14, max_output_size=3),
    )
    layer, ideal = twins(arrays, bias=False)
    matrices = layer.matrices
    assert isinstance(matrices, AwareMatrices)
    sgd, plain = AnalogSGD(layer, lr=0.02), torch.optim.SGD(ideal.parameters(), lr=0.02)
    for step in range(3):
        lines = layer.to_lines(ideal.weight.detach(), None)
        bounds = torch.zeros_like(lines)
        grid = [(rows, columns) for rows in (slice(0, 3), slice(3, 5)) for columns in (slice(0, 14), slice(14, 27))]
        for part, (rows, columns) in zip(matrices.parts, grid, strict=True):
            own = lines[:, rows, columns]
            largest = own.abs().amax(2, keepdim=True) if columnwise else own.abs().amax((1, 2), keepdim=True)
            bounds[:, rows, columns] = largest
            assert_near(part.scale, largest[..., 0].expand(own.shape[:2]).contiguous())
        computed(layer, images(), draw=step)
        computed(ideal, images(), draw=step)
        sgd.step()
        plain.step()
        with torch.no_grad():
            lines = layer.to_lines(ideal.weight.detach(), None)
            assert bool((lines.abs() > bounds).any())
            ideal.weight.copy_(layer.from_lines(torch.maximum(torch.minimum(lines, bounds), -bounds))[0])
        assert_alike(layer, ideal)
        sgd.zero_grad()
        plain.zero_grad()


def test_parts_are_modified_in_training_only_each_by_its_own_largest_weight() -> None:
    arrays = InferenceArrays(
        forward=BARE,
        modifier=WeightModifier(type="AddNormal", std_dev=0.2),
        mapping=Mapping(max_output_size=4),
    )
    layer = AnalogLinear(50, 8, bias=False, arrays=arrays)
    layer.set_weights(torch.cat([torch.full((4, 50), 0.01), torch.full((4, 50), 1.0)]), None)
    x = torch.eye(50)
    with draws(layer, images=torch.arange(50)):
        assert_near(layer.eval()(x), layer.weight.T.detach())
        off = (layer.train()(x) - layer.weight.T).detach()
    assert float(off[:, :4].std()) == pytest.approx(0.002, rel=0.2)
    assert float(off[:, 4:].std()) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("scheme", ["random", "none", "perforated"])
@pytest.mark.parametrize("periphery", ["perfect", "bare"])
def test_a_wide_input_range_changes_nothing(path: str, periphery: str, scheme: str) -> None:
    arrays = InferenceArrays(forward=PERIPHERIES[periphery], input_range=WIDE)
    layer, ideal = twins(arrays, scheme)
    assert_learns_like(layer, ideal, images())
    assert isinstance(layer.matrices, AwareMatrices)
    assert layer.matrices.input_range is not None
    assert layer.matrices.input_range.item() == 100


@pytest.mark.parametrize("mapping", [Mapping(), *PARTS], ids=str)
def test_the_gradient_of_an_input_range(path: str, mapping: Mapping) -> None:
    """dL/dr of a convolution of clamp(x, -r, r), as autograd has it for the ideal layer; and r > 0.95 decays."""
    for decay, least in ((0.0, 0.95), (0.1, 0.0)):
        settings = InputRange(init_value=0.8, init_from_data=0, decay=decay, input_min_percentage=least)
        layer, ideal = twins(InferenceArrays(forward=BARE, input_range=settings, mapping=mapping))
        r = torch.tensor(0.8, requires_grad=True)
        x = images().requires_grad_()
        assignment = torch.randint(0, 4, (3, 42))
        found, expected = layer(x, assignment), ideal(torch.maximum(torch.minimum(x, r), -r), assignment)
        assert_near(found, expected)
        towards = torch.randn_like(expected)
        own = layer.matrices
        assert isinstance(own, AwareMatrices)
        assert own.input_range is not None
        assert layer.bias is not None
        assert ideal.bias is not None
        ours = torch.autograd.grad((found * towards).sum(), [x, own.input_range, layer.weight, layer.bias])
        theirs = torch.autograd.grad((expected * towards).sum(), [x, r, ideal.weight, ideal.bias])
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_near(one, other + decay * 0.8 if number == 1 else other)


def test_an_input_range_below_zero_means_its_size(path: str) -> None:
    settings = InputRange(init_value=0.8, init_from_data=0, decay=0.1, input_min_percentage=0.0)
    layer = convolution(InferenceArrays(forward=BARE, input_range=settings))
    other = copy.deepcopy(layer)
    results = []
    for each, sign in ((layer, 1), (other, -1)):
        assert isinstance(each.matrices, AwareMatrices)
        assert each.matrices.input_range is not None
        with torch.no_grad():
            each.matrices.input_range.mul_(sign)
        y, to_x = computed(each, images())
        assert each.matrices.input_range.grad is not None
        results.append((y, to_x, sign * each.matrices.input_range.grad))
    for one, two in zip(*results, strict=True):
        assert_near(one, two)


def test_an_input_range_is_taken_from_the_first_batches_of_a_training() -> None:
    layer = convolution(InferenceArrays(forward=BARE, input_range=InputRange(init_from_data=2)))
    matrices, x = layer.matrices, images()
    assert isinstance(matrices, AwareMatrices)
    r = matrices.input_range
    assert r is not None
    layer.eval()(x)
    layer.train()
    with torch.no_grad():
        layer(x)
    layer(x[:0])
    assert (r.item(), int(matrices.get_buffer("batches"))) == (3, 0)
    expected = 3 * x.std(unbiased=False)
    layer(x)
    assert_near(r.detach(), expected)
    layer(2 * x)
    assert_near(r.detach(), 1.5 * expected)
    layer(4 * x)
    assert_near(r.detach(), 1.5 * expected)


def test_kernels_and_torch_read_alike_where_reading_has_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """With converters, limits and bound management."""
    if not cpu.available():
        pytest.skip("the C kernels could not be compiled; `rapa doctor` says why")
    quiet = IOParameters(out_noise=0.0, out_bound=0.8)
    for io in (
        quiet,
        quiet.model_copy(update={"bound_management": BARE.bound_management}),
        quiet.model_copy(update={"noise_management": BARE.noise_management, "inp_bound": 0.9}),
        BARE.model_copy(update={"inp_bound": 0.9, "out_bound": 0.8, "out_scale": 1.5}),
        IOParameters(out_noise=0.0, out_bound=0.8, ir_drop=1.0, noise_management="Constant", nm_thres=2.0),
    ):
        for arrays in (pulsed(io), InferenceArrays(forward=io)):
            layer = convolution(arrays)
            found = computed(layer, images())
            gradients = [parameter.grad for parameter in layer.parameters()]
            layer.zero_grad()
            with monkeypatch.context() as patch:
                patch.setattr(cpu, "available", lambda: False)
                expected = computed(layer, images())
            for one, other in zip(found, expected, strict=True):
                # A rounding error on the other side of a step of a converter is a step.
                far = (one - other).abs() > 1e-4 * float(other.abs().max())
                assert float(far.float().mean()) < 0.02
            for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
                assert parameter.grad is not None
                assert gradient is not None
                largest = float(parameter.grad.abs().max())
                assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=0.02 * largest)


def test_weights_are_clipped_after_a_step() -> None:
    arrays = InferenceArrays(forward=BARE, clip=WeightClip(type="FixedValue", fixed_value=0.1))
    layer, ideal = twins(arrays)
    computed(layer, images())
    computed(ideal, images())
    AnalogSGD(layer, lr=0.05).step()
    torch.optim.SGD(ideal.parameters(), lr=0.05).step()
    assert float(ideal.weight.detach().abs().max()) > 0.2
    with torch.no_grad():
        for parameter in ideal.parameters():
            parameter.clamp_(-0.1, 0.1)
    assert_alike(layer, ideal)


def test_a_bias_beside_the_arrays_is_not_clipped() -> None:
    arrays = InferenceArrays(
        forward=BARE, clip=WeightClip(type="FixedValue", fixed_value=0.1), input_range=InputRange()
    )
    layer = convolution(arrays)
    computed(layer, images())
    AnalogSGD(layer, lr=0.5).step()
    assert float(layer.weight.detach().abs().max()) == pytest.approx(0.1)
    assert layer.bias is not None
    assert float(layer.bias.detach().abs().max()) > 0.2


def test_no_line_outgrows_its_range_where_it_is_clipped_and_remapped() -> None:
    """As hardware-aware training has it: clipped to the largest weight of before, whose place the new one takes."""
    arrays = InferenceArrays(
        forward=BARE,
        clip=WeightClip(type="FixedValue", fixed_value=1.0),
        remap=WeightRemap(type="ChannelwiseSymmetric"),
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=True,
    )
    layer, ideal = twins(arrays, bias=False)
    assert isinstance(layer.matrices, AwareMatrices)
    sgd, plain = AnalogSGD(layer, lr=0.02), torch.optim.SGD(ideal.parameters(), lr=0.02)
    for step in range(3):
        largest = ideal.weight.detach().abs().amax((2, 3, 4))
        assert_near(layer.matrices.scale, largest)
        computed(layer, images(), draw=step)
        computed(ideal, images(), draw=step)
        sgd.step()
        plain.step()
        bound = largest[:, :, None, None, None]
        with torch.no_grad():
            assert bool((ideal.weight.abs() > bound).any())
            ideal.weight.copy_(torch.maximum(torch.minimum(ideal.weight, bound), -bound))
        assert_alike(layer, ideal)
        sgd.zero_grad()
        plain.zero_grad()
    again = convolution(arrays, bias=False)
    again.load_state_dict(layer.state_dict())
    assert isinstance(again.matrices, AwareMatrices)
    assert torch.equal(again.matrices.scale, layer.matrices.scale)


def test_weights_are_modified_in_training_only() -> None:
    arrays = InferenceArrays(forward=BARE, modifier=WeightModifier(type="AddNormal", std_dev=0.3))
    layer, ideal = twins(arrays)
    before = copy.deepcopy(layer.state_dict())
    x = images()
    with draws(layer, images=torch.arange(3)), draws(ideal, images=torch.arange(3)):
        expected = ideal(x)
        assert_near(layer.eval()(x), expected)
        noisy = layer.train()(x)
        assert torch.equal(layer(x), noisy), "the same draw"
        assert float((noisy - expected).detach().abs().max()) > 0.1
    with draws(layer, images=torch.arange(3), draw=1):
        assert not torch.equal(layer(x), noisy)
    assert all(torch.equal(values, before[name]) for name, values in layer.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_are_ideal_ones(path: str, name: str, bias: bool) -> None:
    arrays = KINDS[name]
    layer, ideal = AnalogLinear(7, 4, bias, arrays=arrays), torch.nn.Linear(7, 4, bias)
    ideal.load_state_dict({"weight": layer.weight, "bias": layer.bias} if bias else {"weight": layer.weight})
    sgd, plain = AnalogSGD(layer, lr=0.1), torch.optim.SGD(ideal.parameters(), lr=0.1)
    for shape in ((5, 7), (7,), (2, 3, 7), (2, 3, 2, 7), (1, 7), (0, 7), (2, 0, 7)):
        x = torch.randn(shape).requires_grad_()
        other = x.detach().clone().requires_grad_()
        found, expected = layer(x), ideal(other)
        assert_near(found, expected)
        torch.autograd.backward(found.square().sum())
        torch.autograd.backward(expected.square().sum())
        assert x.grad is not None
        assert other.grad is not None
        assert_near(x.grad, other.grad)
    for optimizer in (sgd, plain):
        optimizer.step()
    assert_near(layer.weight.detach(), ideal.weight.detach())
    if bias:
        assert layer.bias is not None
        assert_near(layer.bias.detach(), ideal.bias.detach())


@pytest.mark.parametrize("name", KINDS)
def test_batches_without_images_and_single_images(path: str, name: str) -> None:
    layer = convolution(KINDS[name])
    x = torch.zeros(0, 3, 6, 7, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, 5, 6, 7)
    torch.autograd.backward(y.sum())
    AnalogSGD(layer, lr=0.1).step()
    assert layer(images()[0]).shape == (5, 6, 7)


@pytest.mark.parametrize(
    "arrays",
    [
        pulsed(),
        InferenceArrays(forward=PERFECT),
        InferenceArrays(forward=PERFECT, weight_scaling_omega=1.0, mapping=Mapping(max_input_size=10)),
    ],
    ids=["pulsed", "inference", "in parts"],
)
def test_other_types_of_numbers(arrays: AnyArrays) -> None:
    layer, ideal = twins(arrays)
    assert_learns_like(layer.double(), ideal.double(), images().double())


def test_weights_can_be_written() -> None:
    device = ConstantStepDevice(w_max_dtod=0.0, w_min_dtod=0.0, w_max=0.5, w_min=-0.4)
    for arrays in (Arrays(device=device), InferenceArrays()):
        layer = convolution(arrays)
        weight, bias = torch.randn(4, 5, 3, 3, 3), torch.randn(4, 5)
        layer.set_weights(weight, bias)
        assert layer.bias is not None
        bounded = isinstance(arrays, Arrays)
        assert torch.equal(layer.weight, weight.clamp(-0.4, 0.5) if bounded else weight)
        assert torch.equal(layer.bias, bias.clamp(-0.4, 0.5) if bounded else bias)
    with pytest.raises(ValueError, match=r"weights: got shape"):
        convolution(Arrays(device=device)).set_weights(torch.zeros(1, 5, 3, 3, 3), torch.zeros(1, 5))


def test_new_weights_are_new_devices() -> None:
    layer = convolution(Arrays(device=CONSTANT))
    before = {name: values.clone() for name, values in layer.state_dict().items()}
    layer.reset_parameters(torch.Generator().manual_seed(1))
    first = {name: values.clone() for name, values in layer.state_dict().items()}
    layer.reset_parameters(torch.Generator().manual_seed(1))
    after = layer.state_dict()
    for part in ("weight", "max_bound", "dwmin_up"):
        name = f"matrices.0.{part}"
        assert torch.equal(first[name], after[name])
        assert not torch.equal(before[name], after[name])
    weight, high, low = (after[f"matrices.0.{part}"] for part in ("weight", "max_bound", "min_bound"))
    assert bool(((weight >= low) & (weight <= high)).all())


def test_weights_start_as_those_of_ideal_arrays_whatever_the_devices() -> None:
    def start(arrays: AnyArrays | None) -> TiledConv2d:
        layer = convolution(arrays)
        layer.reset_parameters(torch.Generator().manual_seed(6))
        return layer

    ideal = start(None)
    for arrays in (pulsed(), InferenceArrays(), InferenceArrays(weight_scaling_omega=1.0)):
        assert_alike(start(arrays), ideal)
    layer = start(Arrays(device=CONSTANT))
    state = layer.state_dict()
    lines = layer.to_lines(ideal.weight, ideal.bias)
    bounded = torch.maximum(torch.minimum(lines, state["matrices.0.max_bound"]), state["matrices.0.min_bound"])
    assert torch.equal(state["matrices.0.weight"], bounded)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: convolution(_any("ReRamES")), r"^arrays: got 'ReRamES', allowed are None \(ideal arrays\), Arr"),
        (lambda: AnalogLinear(3, 2, arrays=_any(None)), r"^arrays: got None, allowed are Arrays and InferenceArrays"),
        (lambda: AnalogLinear(0, 2, arrays=pulsed()), r"^in_features: got 0, allowed are whole numbers from 1"),
        (lambda: convolution(pulsed(mapping=Mapping(input_range=0.5))), r"^arrays: got mapping\.input_range 0\.5, whi"),
        (lambda: convolution(pulsed(), scheme="none", tiles=2), r"^tiles: got 2, but scheme 'none' has one tile"),
        (lambda: Arrays(device=CONSTANT, merge=0, update=UpdateParameters(pulse_type=PulseType.MEAN_COUNT)), "merge: "),
        (lambda: InferenceArrays(input_range=InputRange()), "input_range: with noise_management AbsMax inputs are"),
    ],
)  # fmt: skip
def test_what_does_not_work_together_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_input_range_around_1_serves_the_bias_too() -> None:
    for range_, bias in ((0.5, False), (1.0, True), (4.0, True)):
        layer, ideal = twins(pulsed(mapping=Mapping(input_range=range_)), bias=bias)
        x = images()
        with draws(layer, images=torch.arange(3)), draws(ideal, images=torch.arange(3)):
            assert_near(layer(x), ideal(x.clamp(-range_, range_)))


def test_running_divisors_are_finite_and_learned_in_training_only() -> None:
    io = IOParameters(noise_management="AverageAbsMax", out_noise=0.0)
    split = InferenceArrays(forward=io, mapping=Mapping(max_input_size=10))
    for arrays in (pulsed(io), InferenceArrays(forward=io), split):
        layer = convolution(arrays)
        names = [name for name in layer.state_dict() if name.endswith("nm_average")]
        assert names
        before = copy.deepcopy(layer.state_dict())
        assert all(bool(values.isfinite().all()) for name, values in before.items() if values.is_floating_point())
        layer.eval()
        with noiseless(layer):
            computed(layer, images())
        assert all(torch.equal(layer.state_dict()[name], before[name]) for name in names)
        computed(layer.train(), images())
        assert not any(torch.equal(layer.state_dict()[name], before[name]) for name in names)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_inference_arrays_clip_whatever_the_optimizer(kind: type[torch.optim.Optimizer]) -> None:
    arrays = InferenceArrays(clip=WeightClip(type=ClipType.FIXED_VALUE, fixed_value=0.05))
    layer = TiledConv2d(2, 3, 3, tiles=2, arrays=arrays)
    optimizer = kind(layer.parameters(), lr=0.5)  # type: ignore[call-arg]
    x = torch.rand(2, 2, 5, 5)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    assert float(layer.weight.detach().abs().max()) > 0.05
    layer(x)
    assert float(layer.weight.detach().abs().max()) <= 0.05 + 1e-7


def test_what_lies_on_pulsed_arrays_is_not_assigned() -> None:
    layer = TiledConv2d(2, 3, 3, tiles=2, arrays=pulsed())
    for name in ("weight", "bias"):
        with pytest.raises(
            AttributeError, match=rf"^{name}: it lies on arrays that learn by pulses; write it with set_w"
        ):
            setattr(layer, name, torch.zeros(()))
    layer.set_weights(torch.full_like(layer.weight, 0.1), torch.zeros(2, 3))
    assert float((layer.weight - 0.1).abs().max()) < 1e-6


def test_a_step_of_an_ordinary_optimizer_is_noticed_in_evaluation_too() -> None:
    layer = TiledConv2d(2, 3, 3, tiles=2, arrays=pulsed())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.rand(2, 2, 5, 5)).sum().backward()
    optimizer.step()
    with torch.no_grad(), pytest.raises(RuntimeError, match="AnalogSGD"):
        layer.eval()(torch.rand(2, 2, 5, 5))
