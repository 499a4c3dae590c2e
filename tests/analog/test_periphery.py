"""Reading arrays: against a loop over single vectors, against its laws, and where aihwkit is wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.parameters import Compat, IOParameters, NoiseManagement, ProductType, UpdateParameters
from tests.analog.laws import assert_mean, assert_normal, assert_same_law, assert_uncorrelated, draws
from tests.tolerances import assert_near

_QUIET = {"out_noise": 0.0}
_PLAIN = {"out_noise": 0.0, "inp_res": -1, "out_res": -1, "bound_management": "None", "noise_management": "None"}


def _bank(
    weights: Tensor, io: dict[str, Any], backward: dict[str, Any] | None = None, compat: Compat = None
) -> AnalogBank:
    arrays = Arrays(
        device=IdealDevice(),
        forward=IOParameters(**io),
        backward=IOParameters(**(backward or {"is_perfect": True})),
        aihwkit_compat=compat,
    )
    bank = AnalogBank(arrays, len(weights), weights.shape[1], weights.shape[2], draws(1))
    bank.set_weights(weights, draws())
    return bank


def _vector(w: Tensor, x: Tensor, io: IOParameters) -> Tensor:
    """One noise-free reading, number by number in float64, straight from the description."""
    rows, columns = w.tolist(), x.tolist()
    if io.is_perfect:
        return torch.tensor([io.out_scale * _dot(row, columns) for row in rows])
    largest = max(abs(value) for value in columns)
    alpha = {
        NoiseManagement.NONE: 1.0,
        NoiseManagement.ABS_MAX: min(largest, io.nm_thres) if io.nm_thres > 0 else largest,
        NoiseManagement.MAX: max(columns),
        NoiseManagement.CONSTANT: io.nm_thres if io.nm_thres > 0 else 1.0,
        NoiseManagement.ABS_MAX_NP_SUM: _np_sum(columns, io),
        NoiseManagement.AVERAGE_ABS_MAX: largest,
    }[io.noise_management]
    if alpha <= 0:
        return torch.zeros(len(rows))
    r = 1.0
    while True:
        scale = 1 / (alpha * r)
        u = [_clip(_round(value * scale, io.inp_step), io.inp_bound) for value in columns]
        u = [value * (1 - io.inp_asymmetry) if value < 0 else value for value in u]
        passes = [u]
        if io.mv_type is not ProductType.ONE_PASS:
            passes = [[min(value, 0.0) for value in u], [max(value, 0.0) for value in u]]
        currents = [[_current(row, part, io) for row in rows] for part in passes]
        if io.mv_type is ProductType.POS_NEG_SEPARATE:
            currents = [[a + b for a, b in zip(*currents, strict=True)]]
        raw = [[_round(_line(v, io), io.out_step) for v in part] for part in currents]
        out = [sum(_clip(part[i], io.out_bound) for part in raw) for i in range(len(rows))]
        hit = any(abs(v) > io.out_bound > 0 for part in raw for v in part)
        if io.bound_management.value == "None" or not hit or int(r) > io.max_bm_factor:
            break
        if io.inp_step > 0 and r > io.max_bm_res / io.inp_step:
            break
        r *= 2
    return torch.tensor([io.out_scale * v / scale for v in out])


def _dot(row: list[float], x: list[float]) -> float:
    return sum(a * b for a, b in zip(row, x, strict=True))


def _np_sum(x: list[float], io: IOParameters) -> float:
    largest = max(abs(value) for value in x)
    sums = max(sum(v for v in x if v > 0), -sum(v for v in x if v < 0))
    most = largest * io.max_bm_res / io.inp_step if io.inp_step > 0 else math.inf
    return max(largest, min(0.6 * sums / (io.out_bound if io.out_bound > 0 else 1), most))


def _current(row: list[float], u: list[float], io: IOParameters) -> float:
    n, v = len(u), _dot(row, u)
    if io.ir_drop > 0:
        a = n / io.ir_drop_g_ratio * sum(abs(w * value) for w, value in zip(row, u, strict=True))
        c = a * (a * (0.05 * a - 0.2) + 0.5)
        v -= io.ir_drop * c * sum(row[j] * u[j] * (1 - (1 - j / n) ** 2) for j in range(n))
    if io.r_series > 0:
        reference = -io.v_offset_w_min * sum(u)
        total = v + reference
        v = total / (1 + io.r_series * abs(total)) - reference / (1 + io.r_series * abs(reference))
    return v


def _line(v: float, io: IOParameters) -> float:
    if io.out_nonlinearity > 0:
        n = io.out_nonlinearity / io.out_bound
        factor = (1 + (n + io.r_series) * io.slope_calibration * io.out_bound) ** 2
        v = (factor if io.slope_calibration > 0 else 1.0) * v / (1 + abs(n * v))
    return v * (1 - io.out_asymmetry) if v < 0 else v


def _round(value: float, step: float) -> float:
    return round(value / step) * step if step > 0 else value


def _clip(value: float, bound: float) -> float:
    return min(max(value, -bound), bound) if bound > 0 else value


_SETTINGS: list[dict[str, Any]] = [
    {},
    {"is_perfect": True, "out_scale": 0.5},
    {"out_bound": 0.4},
    {"out_bound": 0.02},
    {"out_bound": 0.1, "max_bm_factor": 2},
    {"out_bound": 0.1, "max_bm_factor": 2, "inp_res": -1},
    {"out_bound": 0.3, "bound_management": "None"},
    {"noise_management": "None", "inp_bound": 2.0, "inp_res": 0.03},
    {"noise_management": "Max"},
    {"noise_management": "Constant", "nm_thres": 3.0},
    {"noise_management": "AbsMax", "nm_thres": 0.7},
    {"noise_management": "AbsMaxNPSum", "out_bound": 0.5},
    {"noise_management": "AbsMaxNPSum", "out_bound": 0, "inp_res": -1},
    {"noise_management": "AbsMaxNPSum", "out_bound": 0.3, "bound_management": "IterativeWorstCase"},
    {"inp_res": 14, "out_res": 30},
    {"inp_asymmetry": 0.1, "out_asymmetry": 0.2},
    {"ir_drop": 1.0, "ir_drop_g_ratio": 50.0},
    {"r_series": 0.05, "v_offset_w_min": -0.5},
    {"out_nonlinearity": 0.4},
    {"out_nonlinearity": 0.4, "slope_calibration": 0.5, "r_series": 0.01},
    {"mv_type": "PosNegSeparate", "out_bound": 0.6, "inp_asymmetry": 0.1},
    {"mv_type": "PosNegSeparateDigitalSum", "out_bound": 0.6, "ir_drop": 1.0, "ir_drop_g_ratio": 50.0},
]


@pytest.mark.parametrize("setting", _SETTINGS, ids=str)
def test_every_vector_is_read_as_if_alone(setting: dict[str, Any]) -> None:
    generator = draws(3)
    weights = torch.empty(3, 4, 7).uniform_(-0.6, 0.6, generator=generator)
    x = torch.randn(9, 7, generator=generator) * 1.37
    x[4] = 0
    sizes = [4, 0, 5]
    # With 64 steps on a side the largest input never comes to lie half way between two.
    bank = _bank(weights, _QUIET | {"inp_res": 1 / 128} | setting)
    values = bank.forward(x, sizes, draws()).values
    expected = [
        _vector(weights[tile], row, bank.arrays.forward) for tile, row in zip([0] * 4 + [2] * 5, x, strict=True)
    ]
    torch.testing.assert_close(values, torch.stack(expected), atol=2e-6, rtol=2e-6)


def test_the_backward_reading_is_the_forward_one_of_the_transposed_matrix_without_bound_management() -> None:
    weights = torch.empty(2, 4, 7).uniform_(-0.6, 0.6, generator=draws(3))
    setting = _QUIET | {"out_bound": 0.7, "out_asymmetry": 0.1}
    d = torch.randn(6, 4, generator=draws(4))
    gradient = _bank(weights, _PLAIN, setting).backward(d, [2, 4], draws())
    other = _bank(weights.transpose(1, 2).contiguous(), setting | {"bound_management": "None"})
    assert_near(gradient, other.forward(d, [2, 4], draws()).values)


def test_outputs_pass_their_gradient_unless_the_adc_clipped_them() -> None:
    weights = torch.tensor([[[1.0, 1.0], [0.1, 0.1]]])
    x, d = torch.tensor([[10.0, 10.0], [1.0, 1.0]]), torch.ones(2, 2)
    io = _QUIET | {"inp_res": -1, "out_res": -1}
    bank = _bank(weights, io)
    # 20 is above the bound of 12, but the ADC saw 2.
    assert_near(bank.backward(d, [2], draws(), bank.forward(x, [2], draws())), torch.full((2, 2), 1.1))
    faulty = _bank(weights, io, compat="rpucuda")
    masked = faulty.backward(d, [2], draws(), faulty.forward(x, [2], draws()))
    assert_near(masked, torch.tensor([[0.1, 0.1], [1.1, 1.1]]))
    clipping = _bank(weights, io | {"out_bound": 1.5, "bound_management": "None"})
    reading = clipping.forward(x, [2], draws())
    assert reading.clipped.tolist() == [[True, False], [True, False]]
    assert_near(clipping.backward(d, [2], draws(), reading), torch.full((2, 2), 0.1))


def test_bound_management_of_a_vector_does_not_depend_on_others_unless_asked_to() -> None:
    weights, x = torch.full((1, 1, 4), 0.4), torch.tensor([[0.31, 0.01, 0.02, 0.03], [1.0, 1.0, 1.0, 1.0]])
    io = _QUIET | {"out_bound": 1.0}
    together = _bank(weights, io).forward(x, [2], draws()).values
    alone = _bank(weights, io).forward(x[:1], [1], draws()).values
    assert torch.equal(together[:1], alone)
    joint = _bank(weights, io, compat="torch").forward(x, [2], draws()).values
    assert not torch.equal(joint[:1], alone)


def test_a_positive_hit_counts_whatever_comes_after_it() -> None:
    weights, x = torch.tensor([[[1.0], [-1.0]]]), torch.ones(1, 1)
    io = _QUIET | {"out_bound": 0.9, "out_res": -1, "bm_test_negative_bound": False}
    reading = _bank(weights, io).forward(x, [1], draws())
    assert not reading.clipped.any()
    only_negative = _bank(-weights[:, :1], io).forward(x, [1], draws())
    assert only_negative.clipped.all()


def test_a_vector_of_zeros_gives_exactly_zero_unless_there_is_noise_on_the_inputs() -> None:
    weights, x = torch.ones(1, 3, 4), torch.zeros(5, 4)
    assert not _bank(weights, {}).forward(x, [5], draws()).values.any()
    assert _bank(weights, {"inp_noise": 0.1}).forward(x, [5], draws()).values.any()
    assert not _bank(weights, {}, {"inp_noise": 0.1}).backward(torch.zeros(5, 3), [5], draws()).any()


def test_the_running_mean_of_largest_inputs_belongs_to_a_tile() -> None:
    weights = torch.eye(2).expand(2, 2, 2)
    bank = _bank(weights, _PLAIN | {"noise_management": "AverageAbsMax", "inp_res": 0.25})
    first = bank.forward(torch.tensor([[2.0, 0.0], [1.0, 0.0], [8.0, 0.0]]), [2, 1], draws()).values
    average = 0.999 * 2 + 0.001
    assert_near(bank.state["forward.nm_average"], torch.tensor([average, 8.0]))
    # The DAC has two steps on a side; the second vector is half of the running mean.
    assert_near(first, torch.tensor([[2.0, 0.0], [average / 2, 0.0], [8.0, 0.0]]))
    bank.forward(torch.tensor([[5.0, 0.0]]), [0, 1], draws())
    assert_near(bank.state["forward.nm_average"], torch.tensor([average, 0.999 * 8 + 0.005]))


def test_a_reading_is_repeated_by_the_same_generator() -> None:
    weights, x = torch.rand(2, 3, 4, generator=draws()), torch.rand(6, 4, generator=draws(1))
    bank = _bank(weights, {"inp_noise": 0.1, "w_noise": 0.1, "w_noise_type": "PCMRead", "inp_sto_round": True})
    first, second, third = (bank.forward(x, [3, 3], draws(seed)).values for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(bank.get_weights(), weights)


def test_noise_has_its_law_on_every_line_of_every_tile() -> None:
    """The noise after noise and bound management is out_noise alpha r: it grows with the largest input."""
    n = 4000
    weights = torch.full((2, 2, 3), 0.5)
    bank = _bank(weights, {"out_noise": 0.06, "inp_res": -1, "out_res": -1})
    x = torch.tensor([2.0, -1.0, 0.5]).expand(2 * n, 3)
    noise = bank.forward(x, [n, n], draws(2)).values - 0.75
    for line in noise.view(2, n, 2).permute(0, 2, 1).flatten(0, 1):
        assert_normal(line, 0, 0.12)
    assert_uncorrelated(noise[:n, 0], noise[n:, 0])
    assert_uncorrelated(noise[:, 0], noise[:, 1])


@pytest.mark.parametrize(
    ("io", "std"),
    [
        ({"inp_noise": 0.05}, 0.05 * math.sqrt(0.5**2 + 0.3**2 + 0.1**2)),
        ({"w_noise": 0.02, "w_noise_type": "AdditiveConstant"}, 0.02 * math.sqrt(0.9**2 + 0.3**2 + 0.6**2)),
        (
            {"w_noise": 0.02, "w_noise_type": "PCMRead"},
            0.02 * math.sqrt(0.5 * 0.9**2 + 0.3 * 0.3**2 + 0.1 * 0.6**2),
        ),
    ],
    ids=["inputs", "constant", "pcm"],
)
def test_noise_of_inputs_and_weights(io: dict[str, Any], std: float) -> None:
    n, weights = 4000, torch.tensor([[[0.5, -0.3, 0.1]]]).expand(3, 1, 3)
    bank = _bank(weights, _PLAIN | io)
    x = torch.tensor([0.9, 0.3, -0.6]).expand(3 * n, 3)
    noise = bank.forward(x, [n] * 3, draws(3)).values[:, 0] - (0.45 - 0.09 - 0.06)
    for of_tile in noise.view(3, n):
        assert_normal(of_tile, 0, std)


def test_stochastic_rounding_is_unbiased() -> None:
    bank = _bank(torch.ones(1, 1, 1), _PLAIN | {"inp_res": 0.25, "inp_sto_round": True})
    values = bank.forward(torch.full((20000, 1), 0.3), [20000], draws()).values
    assert set(values.flatten().tolist()) == {0.0, 0.5}
    assert_mean(values, 0.3)


def test_lines_differ_from_each_other_as_their_spreads_say() -> None:
    io = _PLAIN | {"out_noise": 0.1, "out_noise_std": 0.2, "v_offset_std": 0.3, "out_nonlinearity": 2.4}
    bank = _bank(torch.zeros(50, 100, 1), io | {"out_nonlinearity_std": 0.1})
    assert_normal(bank.state["forward.out_noise"], 0.1, 0.02)
    assert_normal(bank.state["forward.out_nonlinearity"], 0.2, 0.02)
    offsets = bank.state["forward.v_offset"]
    assert_mean((offsets == 0).float(), 0.5)
    positive = offsets[offsets > 0]
    assert_same_law(positive, 0.3 * torch.randn(5000, generator=draws(9)).abs())


def test_weights_read_with_negative_inputs_differ() -> None:
    io = _PLAIN | {"mv_type": "PosNegSeparate", "w_read_asymmetry_dtod": 0.2}
    bank = _bank(torch.ones(1, 3000, 1), io)
    up, down = bank.forward(torch.tensor([[0.5], [-0.5]]), [2], draws()).values
    assert_near(up, torch.full_like(up, 0.5))
    assert_normal(-2 * down, 1, 0.2)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"inp_bound": 2.0}, "inp_bound"),
        ({"w_noise": 0.1}, "w_noise"),
        ({"w_read_asymmetry_dtod": 0.1}, "w_read_asymmetry_dtod"),
        ({"bound_management": "Shift"}, "bound_management"),
        ({"mv_type": "BitWise"}, "mv_type"),
        ({"out_noize": 0.1}, "out_noize"),
        ({"out_noise": -0.1}, "out_noise"),
    ],
)
def test_what_does_not_work_is_said_at_construction(parameters: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        IOParameters(**parameters)


def test_wrong_shapes_are_named() -> None:
    bank = _bank(torch.zeros(2, 3, 4), {})
    with pytest.raises(ValueError, match="x: got shape"):
        bank.forward(torch.zeros(2, 3), [1, 1], draws())
    with pytest.raises(ValueError, match="sizes: got"):
        bank.forward(torch.zeros(2, 4), [2, 1], draws())
    with pytest.raises(ValueError, match="weights: got shape"):
        bank.set_weights(torch.zeros(3, 4), draws())
    with pytest.raises(ValueError, match="tiles: got 0"):
        AnalogBank(bank.arrays, 0, 3, 4, draws())


def test_parameters_are_plain_data() -> None:
    arrays = Arrays(
        device=IdealDevice(), forward=IOParameters(noise_management="MAX"), update=UpdateParameters(res=0.1)
    )
    assert Arrays.model_validate_json(arrays.model_dump_json()) == arrays
    assert len({arrays, Arrays.model_validate(arrays.model_dump(mode="json"))}) == 1
