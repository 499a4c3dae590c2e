"""Arrays read and updated patch by patch in C: the same as the torch path, apart from the numbers of the noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from rapa_cli.analog import merged, passes
from rapa_cli.analog.parameters import (
    BoundManagement,
    IOParameters,
    NoiseManagement,
    ProductType,
    PulseType,
    UpdateParameters,
    WeightNoise,
)
from rapa_cli.analog.passes import NoiseKey
from rapa_cli.analog.periphery import Periphery, Reading
from rapa_cli.kernels import compiled
from rapa_cli.kernels.cpu import Work, available
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.philox import Purpose, Stream, key_of, philox4x32, words
from tests.tolerances import SIGNIFICANCE, assert_near

pytestmark = pytest.mark.skipif(not available(), reason="the C kernels could not be compiled; `rapa doctor` says why")

SEED = 7
NO_NOISE = IOParameters(out_noise=0.0)
ONLY_NOISE = IOParameters(
    out_noise=1.0, out_res=-1, out_bound=-1, inp_res=-1, noise_management=NoiseManagement.NONE, inp_bound=-1
)


@dataclass(frozen=True)
class Sizes:
    batch: int
    channels: int
    out: int
    side: int
    tiles: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: int = 0
    dilation: tuple[int, int] = (1, 1)
    bias: bool = True
    left_out: bool = False

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.side, self.side, self.kernel, self.stride, (self.padding,) * 4, self.dilation)

    @property
    def lines(self) -> int:
        return self.channels * math.prod(self.kernel) + self.bias


@dataclass
class Problem:
    """A batch, and the same as the torch path takes it: rows in the order of tiles."""

    sizes: Sizes
    x: Tensor
    d: Tensor
    weights: Tensor
    assignment: Tensor

    @classmethod
    def of(cls, sizes: Sizes, seed: int = 0, scale: float = 0.3) -> Problem:
        g = torch.Generator().manual_seed(seed)
        geometry = sizes.geometry
        x = torch.randn(sizes.batch, sizes.channels, sizes.side, sizes.side, generator=g)
        d = torch.randn(sizes.batch, sizes.out, geometry.out_height, geometry.out_width, generator=g)
        weights = scale * torch.randn(sizes.tiles, sizes.out, sizes.lines, generator=g)
        lowest = -1 if sizes.left_out else 0
        assignment = torch.randint(lowest, sizes.tiles, (sizes.batch, geometry.patches), generator=g)
        return cls(sizes, x, d, weights, assignment)

    @property
    def work(self) -> Work:
        s = self.sizes
        return Work.sized(self.assignment, s.geometry, tiles=s.tiles, out=s.out, channels=s.channels)

    @property
    def order(self) -> Tensor:
        flat = self.assignment.flatten()
        return torch.argsort(flat, stable=True)[int((flat < 0).sum()) :]

    @property
    def counts(self) -> list[int]:
        return [int((self.assignment == tile).sum()) for tile in range(self.sizes.tiles)]

    def rows(self) -> Tensor:
        """Every patch as a vector, (B n_p, lines)."""
        s, g = self.sizes, self.sizes.geometry
        columns = functional.unfold(
            self.x, g.kernel, dilation=g.dilation, padding=(s.padding, s.padding), stride=g.stride
        )
        parts = columns.view(s.batch, s.channels, math.prod(g.kernel), g.patches).permute(0, 3, 2, 1)
        rows = parts.reshape(s.batch * g.patches, -1)
        return torch.cat([rows, torch.ones(len(rows), 1)], 1) if s.bias else rows

    def images(self, rows: Tensor) -> Tensor:
        """What is added to the images by rows (B n_p, lines) without the bias line."""
        s, g = self.sizes, self.sizes.geometry
        columns = rows.view(s.batch, g.patches, math.prod(g.kernel), s.channels).permute(0, 3, 2, 1)
        flat = columns.reshape(s.batch, -1, g.patches)
        side, padding = (s.side, s.side), (s.padding, s.padding)
        return functional.fold(flat, side, g.kernel, dilation=g.dilation, padding=padding, stride=g.stride)

    def read(self, io: IOParameters, x: Tensor, weights: Tensor, *, managed: bool = True) -> Reading:
        """The torch path on rows of all patches; 0 where there is no tile."""
        order = self.order
        reading = Periphery(io, {}).read(
            weights, x[order], self.counts, torch.Generator().manual_seed(0), bound_management=managed
        )
        values = torch.zeros(len(x), weights.shape[1]).index_copy_(0, order, reading.values)
        clipped = torch.zeros(values.shape, dtype=torch.bool).index_copy_(0, order, reading.clipped)
        return Reading(values, clipped, x)


def as_rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def key(batch: int, *, layer: int = 0, draw: int = 0, first: int = 0, stream: Stream = Stream.TRAIN) -> NoiseKey:
    of_all = torch.full((batch,), draw, dtype=torch.int64)
    return NoiseKey(key_of(Purpose.ANALOG, SEED, stream), layer, torch.arange(first, first + batch), of_all)


def forward(problem: Problem, io: IOParameters, noise: NoiseKey | None = None) -> tuple[Tensor, Tensor | None]:
    s = problem.sizes
    return passes.forward(problem.work, problem.x, problem.weights, io, noise or key(s.batch), bias_line=s.bias)


def backward(
    problem: Problem, io: IOParameters, noise: NoiseKey | None = None, clipped: Tensor | None = None
) -> Tensor:
    s = problem.sizes
    return passes.backward(
        problem.work,
        problem.d,
        problem.weights,
        io,
        noise or key(s.batch),
        channels=s.channels,
        bias_line=s.bias,
        clipped=clipped,
    )


def assert_rows_near(actual: Tensor, expected: Tensor, allowed: int) -> None:
    """Near but for this many rows: a number between two levels may be rounded to either."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    off = ((actual - expected).abs() > 1e-5 * max(largest, 1.0) + 1e-5 * expected.abs()).any(1)
    assert int(off.sum()) <= allowed, f"{int(off.sum())} rows of {len(off)} differ"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- without noise


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = draw(st.integers(0, min(kernel) // 2))
    least = max((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)) - 2 * padding
    return Sizes(
        batch=draw(st.integers(1, 5)),
        channels=draw(st.sampled_from((1, 2, 3, 7, 16, 17, 33))),
        out=draw(st.sampled_from((1, 2, 5, 15, 16, 17, 31, 32, 33, 49))),
        side=max(least, 1) + draw(st.integers(0, 7)),
        tiles=draw(st.integers(1, 6)),
        kernel=kernel,
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        bias=draw(st.booleans()),
        left_out=draw(st.booleans()),
    )


@st.composite
def peripheries(draw: st.DrawFn) -> IOParameters:
    management = draw(st.sampled_from(("None", "AbsMax", "Constant", "Max")))
    return IOParameters(
        noise_management=management,
        inp_bound=draw(st.sampled_from((1.0, 0.7, -1.0))) if management == "None" else 1.0,
        nm_thres=draw(st.sampled_from((0.0, 0.0, 0.8, 2.0))),
        inp_res=draw(st.sampled_from((-1.0, -1.0, 1 / 126, 15.0))),
        out_res=draw(st.sampled_from((-1.0, -1.0, 1 / 510))),
        out_bound=draw(st.sampled_from((-1.0, 0.5, 2.0, 12.0))),
        out_noise=0.0,
        out_scale=draw(st.sampled_from((1.0, 2.5))),
        bound_management=draw(st.sampled_from(("None", "Iterative"))),
        bm_test_negative_bound=draw(st.booleans()),
        max_bm_factor=draw(st.sampled_from((1, 4, 1000))),
        ir_drop=draw(st.sampled_from((0.0, 0.0, 1.0, 0.5))),
        ir_drop_g_ratio=100.0,
    )


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(sizes(), peripheries(), st.integers(0, 1000))
def test_readings_without_noise_are_those_of_the_torch_path(sizes: Sizes, io: IOParameters, seed: int) -> None:
    problem = Problem.of(sizes, seed)
    rounds = io.inp_res > 0 or io.out_res > 0
    allowed = 1 + problem.assignment.numel() // 50 if rounds else 0
    assert passes.supports(io, {}, forward=True)
    assert passes.supports(io, {}, forward=False)
    expected = problem.read(io, problem.rows(), problem.weights)
    y, clipped = forward(problem, io)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_rows_near(as_rows(y), expected.values, allowed)
    marks = torch.zeros_like(expected.clipped) if clipped is None else clipped.bool()
    assert clipped is None or bool(marks.any())
    assert int((marks != expected.clipped).any(1).sum()) <= allowed
    # The same marks for both, so that the directions are compared one by one.
    lines = sizes.lines - sizes.bias
    d = torch.where(marks, 0.0, as_rows(problem.d))
    columns = problem.read(io, d, problem.weights.transpose(1, 2), managed=False).values[:, :lines]
    into_images = backward(problem, io, clipped=clipped)
    exact = problem.images(columns)
    off = (into_images - exact).abs() > 1e-5 * max(float(exact.abs().max()), 1.0)
    # A pixel belongs to as many patches as a kernel has pixels, a patch to as many pixels.
    assert int(off.sum()) <= (allowed * lines if rounds else 0)


@pytest.mark.parametrize(
    "part", [Sizes(3, 3, 32, 32, 16, (5, 5), padding=2), Sizes(2, 32, 64, 8, 1, (5, 5), padding=2)]
)
def test_the_layers_of_the_paper(part: Sizes) -> None:
    problem = Problem.of(part, scale=0.1)
    expected = problem.read(NO_NOISE, problem.rows(), problem.weights)
    assert_rows_near(as_rows(forward(problem, NO_NOISE)[0]), expected.values, 3)
    assert_rows_near(as_rows(forward(replace_x(problem), NO_NOISE)[0]), expected.values, 3)


def replace_x(problem: Problem) -> Problem:
    """The same images, laid out otherwise."""
    return replace(problem, x=problem.x.contiguous(memory_format=torch.channels_last))


def test_bound_management_is_that_of_each_patch() -> None:
    """One of two equal patches more does not change the other, and r is doubled for those that clip only."""
    io = IOParameters(out_noise=0.0, out_bound=1.0, out_res=-1, inp_res=-1, max_bm_factor=1000)
    x = torch.tensor([[0.5, 0.0], [1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])[:, :, None, None]
    weights = torch.tensor([[[1.5, 1.3]]])
    work = Work.sized(torch.zeros(4, 1, dtype=torch.int64), Geometry(1, 1, (1, 1)), tiles=1, out=1, channels=2)
    y, clipped = passes.forward(work, x, weights, io, key(4), bias_line=False)
    assert_near(y.flatten(), torch.tensor([0.75, 2.8, 0.2, -2.8]))
    assert clipped is None
    one_sided = io.model_copy(update={"bm_test_negative_bound": False})
    y, clipped = passes.forward(work, x, weights, one_sided, key(4), bias_line=False)
    assert_near(y.flatten(), torch.tensor([0.75, 2.8, 0.2, -1.0]))
    assert clipped is not None
    assert clipped.flatten().tolist() == [0, 0, 0, 1]


def test_silent_patches_and_those_without_a_tile_answer_exactly_nothing() -> None:
    problem = Problem.of(Sizes(3, 2, 5, 4, 2, bias=False))
    problem.x[1] = 0
    problem.d[2] = 0
    problem.assignment[0, :3] = -1
    noisy = IOParameters(out_noise=1.0)
    y = as_rows(forward(problem, noisy)[0]).view(3, 16, 5)
    assert not y[1].any()
    assert not y[0, :3].any()
    assert bool(y[0, 3:].all(1).any())
    gradient = backward(problem, noisy)
    assert not gradient[2].any()
    assert not gradient[0].flatten(1)[:, :3].any()
    assert bool(gradient[0].flatten(1)[:, 3:].any())
    # With noise on its inputs an array answers to nothing, too.
    y = as_rows(forward(problem, IOParameters(out_noise=0.0, inp_noise=1.0))[0]).view(3, 16, 5)
    assert bool(y[1].any())
    assert not y[0, :3].any()


def test_no_images() -> None:
    problem = Problem.of(Sizes(0, 2, 5, 4, 2))
    assert forward(problem, NO_NOISE)[0].shape == (0, 5, 4, 4)
    assert backward(problem, NO_NOISE).shape == (0, 2, 4, 4)
    found = passes.moments(problem.work, problem.x, problem.d, 0.1, 0.01, UpdateParameters(), bias_line=True)
    assert not any(part.any() for part in found)


def test_a_network_that_diverged_is_not_hidden() -> None:
    problem = Problem.of(Sizes(2, 3, 5, 1, 1, bias=False))
    problem.x[1] = torch.nan
    y = forward(problem, IOParameters())[0]
    assert not y[0].isnan().any()
    assert bool(y[1].isnan().all())


# ---------------------------------------------------------------- moments

UPDATES = [
    UpdateParameters(),
    UpdateParameters(update_bl_management=False, um_grad_scale=0.5),
    UpdateParameters(update_bl_management=False, update_management=False),
    UpdateParameters(update_bl_management=False, fixed_bl=False, pulse_type=PulseType.STOCHASTIC),
    UpdateParameters(update_management=False, update_bl_management=False, fixed_bl=False, desired_bl=5),
    UpdateParameters(desired_bl=7, res=1 / 16),
]


def assert_same_moments(found: merged.Moments, expected: merged.Moments, relative: float = 1e-5) -> None:
    for name, actual, exact in zip(found._fields, found, expected, strict=True):
        assert actual.shape == exact.shape
        worst = float((actual - exact).abs().max() / expected.up.abs().max().clamp_min(1e-6))
        assert worst <= relative, f"{name}: off by {worst:.2g} of the largest"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(sizes(), st.sampled_from(UPDATES), st.sampled_from((0.5, 0.03, 0.002, 0.0)), st.integers(0, 1000), st.booleans())
def test_moments_are_those_of_the_torch_path(
    sizes: Sizes, update: UpdateParameters, lr: float, seed: int, signs: bool
) -> None:
    problem = Problem.of(sizes, seed)
    if not signs:
        # Most inputs behind a ReLU; the last image still has signs.
        problem.x[:-1].relu_()
    order = problem.order
    expected = merged.moments(
        problem.rows()[order], as_rows(problem.d)[order], problem.counts, lr, 0.01, update, torch.Generator()
    )
    found = passes.moments(problem.work, problem.x, problem.d, lr, 0.01, update, bias_line=sizes.bias)
    # One number between two levels moves a device by a step of the probabilities.
    assert_same_moments(found, expected, 0.1 if update.res else 2e-5)


def test_chunks_add_up_and_hold_the_patches_they_should(threads: None) -> None:
    problem = Problem.of(Sizes(7, 3, 17, 6, 3, (3, 3), padding=1))
    arguments = (problem.work, problem.x, problem.d, 0.05, 0.01, UpdateParameters())
    whole = passes.moments(*arguments, bias_line=True)
    # Chunks of less than an image, of whole images, and of some images and a part of one.
    for number in (30, 7, 3):
        chunks = [passes.moments(*arguments, bias_line=True, chunk=(i, number)) for i in range(number)]
        assert_same_moments(merged.Moments(*(sum(parts) for parts in zip(*chunks, strict=True))), whole)
    chunks = [passes.moments(*arguments, bias_line=True, chunk=(i, 7)) for i in range(7)]
    for i in range(7):
        part = replace(
            problem,
            sizes=replace(problem.sizes, batch=1),
            **{name: getattr(problem, name)[i : i + 1] for name in ("x", "d", "assignment")},
        )
        alone = passes.moments(part.work, part.x, part.d, 0.05, 0.01, UpdateParameters(), bias_line=True)
        assert all(torch.equal(a, b) for a, b in zip(alone, chunks[i], strict=True))
    for wrong in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="chunk: got"):
            passes.moments(*arguments, bias_line=True, chunk=wrong)


# ---------------------------------------------------------------- noise


def silent_arrays(sizes: Sizes) -> Problem:
    """Arrays of zeros: what comes out is noise."""
    return replace(problem := Problem.of(sizes), weights=torch.zeros_like(problem.weights))


def assert_normal(sample: Tensor) -> None:
    flat = sample.flatten().double()
    p = stats.kstest(flat.numpy(), "norm").pvalue
    assert p > SIGNIFICANCE, f"Kolmogorov-Smirnov: p = {p}"
    n = len(flat)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        # The variance of a power's mean, from the moments of N(0, 1).
        spread = math.sqrt(({1: 1, 2: 3, 3: 15, 4: 105}[power] - moment**2) / n)
        assert abs(float((flat**power).mean()) - moment) < 4.5 * spread, f"moment {power}"


def test_noise_of_outputs_is_gaussian() -> None:
    problem = silent_arrays(Sizes(40, 1, 33, 20, 3, bias=False))
    sample = forward(problem, ONLY_NOISE)[0]
    assert_normal(sample)
    rows = as_rows(sample)
    # Neighbours in any direction are not correlated.
    products = [
        rows[1:] * rows[:-1],
        rows[:, 1:] * rows[:, :-1],
        rows[:, 8:] * rows[:, :-8],
        rows[:, 16:] * rows[:, :-16],
    ]
    for product in products:
        assert abs(float(product.double().mean())) < 4.5 / math.sqrt(product.numel())


def test_noise_of_backward_readings_is_gaussian() -> None:
    problem = silent_arrays(Sizes(30, 70, 3, 10, 2, bias=True))
    assert_normal(backward(problem, ONLY_NOISE))


def test_noise_grows_with_the_divisor() -> None:
    problem = silent_arrays(Sizes(30, 3, 40, 6, 2, bias=False))
    io = ONLY_NOISE.model_copy(update={"noise_management": NoiseManagement.ABS_MAX, "inp_bound": 1.0, "out_scale": 2.0})
    largest = problem.rows().abs().amax(1, keepdim=True)
    assert_normal(as_rows(forward(problem, io)[0]) / (2 * largest))


@pytest.mark.parametrize("kind", [WeightNoise.ADDITIVE_CONSTANT, WeightNoise.PCM_READ])
@pytest.mark.parametrize("rest", [0.0, 0.3])
def test_noise_of_weights(kind: WeightNoise, rest: float) -> None:
    problem = Problem.of(Sizes(40, 5, 20, 6, 2, bias=True))
    io = ONLY_NOISE.model_copy(update={"w_noise": 0.2, "w_noise_type": kind, "out_noise": rest})
    assert passes.supports(io, {}, forward=True)
    u = problem.rows()
    tile = problem.assignment.flatten()
    exact = torch.einsum("nl,nol->no", u, problem.weights[tile])
    energy = torch.einsum("nl,nol->no", u**2, problem.weights[tile].abs())
    if kind is WeightNoise.ADDITIVE_CONSTANT:
        energy = (u**2).sum(1, keepdim=True).expand_as(exact)
    spread = (0.04 * energy + rest**2).sqrt()
    assert_normal((as_rows(forward(problem, io)[0]) - exact) / spread)


def test_noise_of_inputs() -> None:
    """One line of weight 1 for each output shows the noise on it."""
    problem = Problem.of(Sizes(40, 37, 37, 6, 1, bias=False))
    problem.weights[:] = torch.eye(37)
    io = ONLY_NOISE.model_copy(update={"out_noise": 0.0, "inp_noise": 0.5})
    assert_normal((as_rows(forward(problem, io)[0]) - problem.rows()) / 0.5)
    lines = backward(problem, io) - problem.d
    assert_normal(lines / 0.5)


def test_a_gaussian_is_box_muller_of_the_words_of_its_place() -> None:
    part = Sizes(3, 1, 45, 3, 2, bias=False)
    noise = NoiseKey(
        key_of(Purpose.ANALOG, SEED, Stream.VOTE), 5, torch.tensor([9, 2**32 - 1, 4]), torch.tensor([1, 0, 2**31])
    )
    found = as_rows(forward(silent_arrays(part), ONLY_NOISE, noise)[0]).view(3, 9, 45)
    # 45 outputs take two groups of 32, each of eight blocks.
    numbers = words(
        Purpose.ANALOG, SEED, images=noise.images, draw=noise.draws, count=9 * 2 * 32, layer=5, stream=Stream.VOTE
    ).view(3, 9, 2, 8, 2, 2)
    a, b = numbers.double().unbind(-1)
    radius = (-2 * (((a / 2).floor() + 0.5) / 2**31).log()).sqrt()
    angle = 2 * math.pi * b / 2**32
    both = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)  # (image, patch, group, block, pair, member)
    expected = both.permute(0, 1, 2, 4, 5, 3).reshape(3, 9, 64)[..., :45]
    assert_near(found, expected.float())


def test_directions_and_readings_have_keys_of_their_own() -> None:
    """The transposed reading of one output line is Box-Muller with 2 in the key; a second reading has 1 x 2^20."""
    part = Sizes(2, 64, 1, 1, 1, bias=False)
    found = backward(silent_arrays(part), ONLY_NOISE).flatten(1)
    low, high = key_of(Purpose.ANALOG, SEED, Stream.TRAIN)

    def gaussians(kind: int, reading: int, groups: int) -> Tensor:
        blocks = torch.arange(8 * groups)
        counter = (
            blocks,
            torch.zeros(1, dtype=torch.int64),
            torch.arange(2)[:, None],
            torch.zeros(1, dtype=torch.int64),
        )
        parts = philox4x32(counter, (low, high + (kind << 16) + (reading << 20)))
        a, b = torch.stack([parts[0], parts[2]], -1).double(), torch.stack([parts[1], parts[3]], -1).double()
        radius, angle = (-2 * (((a / 2).floor() + 0.5) / 2**31).log()).sqrt(), 2 * math.pi * b / 2**32
        both = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).view(2, groups, 8, 4)
        return both.transpose(2, 3).reshape(2, -1).float()

    assert_near(found, gaussians(2, 0, 2))
    # Outputs far above the bound are read twice; the second time half as large, noise twice.
    io = IOParameters(out_noise=0.01, out_bound=1.0, out_res=-1, inp_res=-1)
    problem = replace(problem := Problem.of(replace(part, out=32)), weights=torch.zeros(1, 32, 64))
    problem.x[:], problem.weights[..., 0] = 1.0, 1.5
    y = forward(problem, io)[0].flatten(1)
    assert_near((y - 1.5) / 0.02, gaussians(0, 1, 1))


def noisy_io() -> IOParameters:
    """Noise of every kind, and bounds that some patches exceed in their last reading, too."""
    return IOParameters.model_validate(
        {
            "out_noise": 0.1,
            "inp_noise": 0.05,
            "w_noise": 0.02,
            "w_noise_type": "PCMRead",
            "out_bound": 0.5,
            "max_bm_factor": 1,
        }
    )


def test_nothing_is_shared() -> None:
    """Forward and backward readings, their repetitions, layers, draws, images and streams have other numbers."""
    part = Sizes(4, 40, 40, 2, 1, bias=False)
    problem = silent_arrays(part)
    keys = [key(4), key(4, layer=1), key(4, draw=1), key(4, first=4), key(4, stream=Stream.TEST)]
    samples = [forward(problem, ONLY_NOISE, one)[0] for one in keys]
    samples += [backward(problem, ONLY_NOISE, one) for one in keys]
    of_inputs = ONLY_NOISE.model_copy(update={"out_noise": 0.0, "inp_noise": 1.0})
    shown = replace(problem, weights=torch.eye(40)[None], x=torch.zeros_like(problem.x), d=torch.zeros_like(problem.d))
    samples += [forward(shown, of_inputs, keys[0])[0], backward(shown, of_inputs, keys[0])]
    for first, second in itertools.combinations(samples, 2):
        assert not torch.isin(first, second).any()
        n = first.numel()
        assert abs(float((first * second).double().mean())) < 5 / math.sqrt(n)
    flat = torch.cat([sample.flatten() for sample in samples])
    assert len(torch.unique(flat)) > 0.999 * len(flat)


@pytest.mark.parametrize(
    "part",
    [Sizes(9, 3, 20, 8, 4, (3, 3), padding=1), Sizes(9, 17, 10, 1, 1), Sizes(9, 5, 33, 5, 30, (3, 3), left_out=True)],
)
def test_results_depend_on_nothing_but_the_key(part: Sizes, threads: None) -> None:
    problem, io = Problem.of(part), noisy_io()
    noise = NoiseKey((SEED, 6), 3, torch.arange(100, 109), torch.arange(9) % 2)
    update = UpdateParameters()

    def everything(p: Problem, k: NoiseKey) -> tuple[Tensor, Tensor, Tensor]:
        y, clipped = forward(p, io, k)
        marks = torch.zeros(len(as_rows(y)), part.out, dtype=torch.uint8) if clipped is None else clipped
        return y, marks.view(p.sizes.batch, -1), backward(p, io, k, clipped)

    def chosen(which: Tensor) -> tuple[Problem, NoiseKey]:
        batch = {name: getattr(problem, name)[which] for name in ("x", "d", "assignment")}
        k = replace(noise, images=noise.images[which], draws=noise.draws[which])
        return replace(problem, sizes=replace(part, batch=len(which)), **batch), k

    torch.set_num_threads(1)
    whole = everything(problem, noise)
    assert bool(whole[1].any())
    pulses = passes.moments(problem.work, problem.x, problem.d, 0.05, 0.01, update, bias_line=True)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert all(torch.equal(a, b) for a, b in zip(everything(problem, noise), whole, strict=True))
        again = passes.moments(problem.work, problem.x, problem.d, 0.05, 0.01, update, bias_line=True)
        assert all(torch.equal(a, b) for a, b in zip(again, pulses, strict=True))
    for which in (torch.tensor([4]), torch.tensor([7, 2, 3]), torch.arange(9).flip(0)):
        found = everything(*chosen(which))
        assert all(torch.equal(a, b[which]) for a, b in zip(found, whole, strict=True))


# ---------------------------------------------------------------- what is supported


@pytest.mark.parametrize(
    "change",
    [
        {"is_perfect": True},
        {"mv_type": ProductType.POS_NEG_SEPARATE},
        {"inp_sto_round": True},
        {"out_sto_round": True},
        {"inp_asymmetry": 0.1},
        {"out_asymmetry": 0.1},
        {"out_noise_std": 0.1},
        {"v_offset_std": 0.1},
        {"r_series": 0.1},
        {"out_nonlinearity": 0.1},
        {"slope_calibration": 0.5},
        {"noise_management": NoiseManagement.AVERAGE_ABS_MAX},
        {"noise_management": NoiseManagement.ABS_MAX_NP_SUM},
        {"inp_res": 1e-8},
    ],
    ids=str,
)
def test_what_only_the_torch_path_does(change: dict[str, object]) -> None:
    io = IOParameters.model_validate({**IOParameters().model_dump(), **change})
    assert not passes.supports(io, {}, forward=True)
    assert not passes.supports(io, {}, forward=False)


def test_bound_management_that_only_the_torch_path_does() -> None:
    io = IOParameters(bound_management=BoundManagement.ITERATIVE_WORST_CASE)
    assert not passes.supports(io, {}, forward=True)
    assert passes.supports(io, {}, forward=False)
    assert not passes.supports(IOParameters(), {"v_offset": torch.zeros(1, 1)}, forward=True)


def test_updates_that_only_the_torch_path_does() -> None:
    assert passes.supports_update(UpdateParameters())
    for update in (
        UpdateParameters(sto_round=True),
        UpdateParameters(pulse_type=PulseType.MEAN_COUNT),
        UpdateParameters(res=1e-8),
    ):
        assert not passes.supports_update(update)


def test_nothing_is_supported_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPA_KERNEL", "torch")
    compiled.kernels.cache_clear()
    try:
        assert not passes.supports(IOParameters(), {}, forward=True)
        assert not passes.supports_update(UpdateParameters())
    finally:
        monkeypatch.undo()
        compiled.kernels.cache_clear()


def test_keys_in_their_range() -> None:
    ids = torch.zeros(1, dtype=torch.int64)
    for wrong in ((-1, 0), (2**32, 0), (0, 2**16)):
        with pytest.raises(ValueError, match="key: got"):
            NoiseKey(wrong, 0, ids, ids)
    with pytest.raises(ValueError, match="layer: got"):
        NoiseKey((0, 0), -1, ids, ids)
