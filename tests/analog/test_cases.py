"""Reading reference cases: other ways to write parameters and results."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch

from rapa_cli.analog.parameters import Mapping
from rapa_cli.analog.pcm import PCMLikeNoiseModel
from tests.analog import cases
from tests.analog.test_reference import mapping_of, noise_model, run

FIRST = {case["group"]: case for case in reversed(cases.load())}
WEIGHT = [[0.1, -0.5], [0.25, 0.2], [0.0, 0.05]]
LAYER: dict[str, Any] = {
    "id": "scaled",
    "group": "layers",
    "api": "AnalogLinear",
    "params": {"mapping": {"weight_scaling_omega": 1.0, "weight_scaling_columnwise": False, "learn_out_scaling": True}},
    "inputs": {"W": WEIGHT, "x": [[1.0, 0.0]]},
    "expected": {"y": [[0.1, 0.25, 0.0]]},
}


@pytest.mark.parametrize("scale", [0.5, [0.5], [0.5, 0.5, 0.5]])
@pytest.mark.parametrize("name", ["scale", "scales"])
def test_a_scale_of_a_whole_matrix_is_written_in_several_ways(name: str, scale: Any) -> None:
    run({**LAYER, "expected": {**LAYER["expected"], name: scale}})
    with pytest.raises(AssertionError, match="scale"):
        run({**LAYER, "expected": {**LAYER["expected"], name: torch.tensor(scale).mul(1.1).tolist()}})


FLAT = {"g_lst": [0.0, 10.0, 25.0], "nu_mean_lst": [0.1, 0.06, 0.04], "nu_std_lst": [0.0, 0.02, 0.01]}
CUSTOM = ((0.0, 0.1, 0.0), (10.0, 0.06, 0.02), (25.0, 0.04, 0.01))


@pytest.mark.parametrize(
    ("params", "drift"),
    [
        (FLAT, CUSTOM),
        ({"custom_drift_model": FLAT}, CUSTOM),
        ({"nu": 0}, ((0.0, 0.0, 0.0), (25.0, 0.0, 0.0))),
        ({"nu_mean": 0.05, "nu_std": 0.01}, ((0.0, 0.05, 0.01), (25.0, 0.05, 0.01))),
        ({"nu_mean": 0.05, "g_max": 30.0}, ((0.0, 0.05, 0.0), (30.0, 0.05, 0.0))),
        ({"model": "PCMLikeNoiseModel"}, ()),
    ],
)
def test_drift_is_written_in_several_ways(params: dict[str, Any], drift: tuple[Any, ...]) -> None:
    model = noise_model(params, {})
    assert model == PCMLikeNoiseModel(g_max=params.get("g_max", 25.0), custom_drift=drift)


@pytest.mark.parametrize(
    "params",
    [
        {"nu_std": 0.1},
        {"g_lst": [0.0, 1.0]},
        {"model": "ReRamWan2022NoiseModel"},
        {"g_converter": "DualPairConductanceConverter"},
        {"drift_compensation": False},
    ],
)
def test_what_of_conductances_is_not_known_fails(params: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        noise_model(params, {})


def test_bounds_may_be_infinite() -> None:
    made = cases.io(json.loads('{"inp_bound": Infinity, "out_bound": Infinity, "noise_management": "None"}'))
    assert (made.inp_bound, made.out_bound) == (0, 0)
    case = copy.deepcopy(FIRST["forward"])
    case["params"]["forward"] = {**case["params"]["forward"], "out_bound": math.inf, "is_perfect": True}
    case["expected"] = {"y": (cases.vectors(case["inputs"]["x"]) @ cases.tensor(case["inputs"]["W"]).T).tolist()}
    run(case)


def test_a_parameter_that_is_not_known_is_left_to_the_results() -> None:
    """What aihwkit says besides, as of a feature that is off, does not keep a case from being compared."""
    case = copy.deepcopy(FIRST["forward"])
    case["params"]["forward"]["of_the_future"] = 0.0
    run(case)


def test_a_digital_bias_that_is_none_fails() -> None:
    with pytest.raises(AssertionError):
        mapping_of({"params": {"digital_bias": False}, "inputs": {"W": WEIGHT, "bias": [0.0, 0.0, 0.0]}})


def test_an_input_range_may_be_a_table() -> None:
    for given, expected in (({"enable": True, "init_value": 2.0}, 2.0), ({"enable": False, "init_value": 2.0}, 0.0)):
        case = {"params": {"pre_post": {"input_range": given}}, "inputs": {"W": WEIGHT}}
        assert mapping_of(case) == Mapping(input_range=expected)


def test_an_unknown_device_fails() -> None:
    for params in ({"preset": "OfTheFuturePreset"}, {"device": "OfTheFutureDevice"}):
        with pytest.raises(AssertionError, match="there is no device"):
            cases.device(params)
    assert cases.device({"device": "IdealDevice"}) == cases.device({})
