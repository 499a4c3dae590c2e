"""Every reference case, measured from aihwkit, through the public calls; dispatched by the fields of a case only.

`RAPA_ANALOG_REFERENCE` names another file of cases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.cells import Cell
from rapa_cli.analog.conductance import single_pair
from rapa_cli.analog.device import IdealDevice, PulsedDevice
from rapa_cli.analog.inference import Programmed, compensation, read_out
from rapa_cli.analog.mapping import MappedBank, Mapping
from rapa_cli.analog.modifiers import WeightModifier
from rapa_cli.analog.parameters import PulseType, UpdateParameters
from rapa_cli.analog.pcm import PCMLikeNoiseModel
from rapa_cli.analog.update import scales
from tests.analog import cases
from tests.analog.cases import Case, assert_near, assert_sample, tensor


@pytest.mark.parametrize("case", cases.load(), ids=lambda case: case["id"])
def test_case(case: Case) -> None:
    _RUN[case["group"]](case)


def _reading(case: Case) -> None:
    """Forward, and where there are gradients backward."""
    inputs, expected = case["inputs"], case["expected"]
    for name, target in expected.items():
        if not name.startswith("y"):
            continue
        bank, draws = _bank(case)
        x = tensor(inputs["x" + name[1:]])
        reading = bank.forward(x, [len(x)], draws)
        assert_near(reading.values, target, case["tol"], name)
        if "grad_y" in inputs:
            gradient = bank.backward(tensor(inputs["grad_y"]), [len(x)], draws, reading)
            assert_near(gradient, expected["grad_x"], case["tol"], "grad_x")


def _layer(case: Case) -> None:
    """Matrices on arrays: split, scaled, with an input range; or a convolution, patch by patch."""
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    weight = tensor(inputs["weight"] if "weight" in inputs else inputs["W"])
    tables = [params, *(value for value in params.values() if isinstance(value, dict))]
    known = {name: value for table in tables for name, value in table.items() if name in Mapping.model_fields}
    mapping = Mapping(**known)
    draws, x = cases.generator(case), tensor(inputs["x"])
    matrix = weight.flatten(1)
    bank = MappedBank(_arrays(case), mapping, 1, len(matrix), matrix.shape[1], draws)
    bank.set_weights(matrix[None], draws)
    patches, kernel, padding = x, (0, 0), 0
    if weight.ndim == 4:
        kernel = (weight.shape[2], weight.shape[3])
        padding = (len(expected["y"][0][0]) - x.shape[2] + kernel[0] - 1) // 2
        patches = F.unfold(x, kernel, padding=padding).transpose(1, 2).reshape(-1, matrix.shape[1])
    reading = bank.forward(patches, [len(patches)], draws)
    found: dict[str, Any] = {"y": reading.values, "in_sizes": bank.in_sizes, "out_sizes": bank.out_sizes}
    found["scales"] = torch.cat([scale[0] for scale in bank.scales[:: len(bank.in_sizes)]])
    found["scale"] = found["scales"][0] if not mapping.weight_scaling_columnwise else found["scales"]
    found["tile_weights"] = bank.banks[0].get_weights()[0]
    if weight.ndim == 4:
        size = tuple(tensor(expected["y"]).shape)
        found["y"] = reading.values.view(size[0], -1, size[1]).transpose(1, 2).reshape(size)
    if "bias" in inputs:
        found["y"] = found["y"] + tensor(inputs["bias"]).view(-1, *(1,) * (weight.ndim - 2))
    if "grad_y" in inputs:
        gradient = tensor(inputs["grad_y"])
        rows = gradient.flatten(2).transpose(1, 2).reshape(-1, len(matrix)) if weight.ndim == 4 else gradient
        found["grad_x"] = bank.backward(rows, [len(rows)], draws, reading)
        if weight.ndim == 4:
            columns = found["grad_x"].view(len(x), -1, matrix.shape[1]).transpose(1, 2)
            found["grad_x"] = F.fold(columns, x.shape[2:], kernel, padding=padding)
    _compare(found, expected, case["tol"])


def _deterministic_update(case: Case) -> None:
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    device, draws = cases.device(params), cases.generator(case)
    update = cases.update(params["update"])
    x, d, lr = tensor(inputs["x"]), tensor(inputs["d"]), params["learning_rate"]
    bank = AnalogBank(_arrays(case, update=update), 1, d.shape[1], x.shape[1], draws)
    if inputs["W0"] != "zeros":
        bank.set_weights(tensor(inputs["W0"])[None], draws)
    before = bank.get_weights()
    bank.update(x, d, [len(x)], lr, draws)
    change = (bank.get_weights() - before)[0]
    assert_near(change, expected["delta_w"], case["tol"], "delta_w")
    if not isinstance(device, PulsedDevice):
        return
    granularity = device.granularity(cases.compat(case))
    assert_near(granularity, params["weight_granularity"], 1e-8, "weight_granularity")
    if expected.get("coincidences") is not None:
        assert_near(torch.round(change / granularity), expected["coincidences"], 0, "coincidences")
    trains = scales(x[:1], d[:1], lr, granularity, update)
    for name, value in (("BL", trains.slots[0]), ("A_on_d", trains.a[0]), ("B_on_x", trains.b[0])):
        if expected.get(name) is not None:
            assert_near(value, expected[name], case["tol"], name)


def _trajectory(case: Case) -> None:
    """Weights after so many pulses up, then after so many down from where the last went."""
    expected, inputs = case["expected"], case["inputs"]
    bank, draws, granularity = _devices(case, 1)
    assert_near(granularity, expected["weight_granularity"], 1e-8, "weight_granularity")
    for direction, sign in (("up", -1.0), ("down", 1.0)):
        weights, done = [], 0
        for count in inputs[f"{direction}_pulses"]:
            _pulses(bank, sign, count - done, granularity, draws)
            weights.append(float(bank.get_weights()))
            done = count
        assert_near(weights, expected[f"w_after_{direction}"], case["tol"], direction)


def _device_statistics(case: Case) -> None:
    """Weights of many devices after pulses, decay or resets: `after_10_up_5_down`, `after_set`, `after_3_decay`."""
    for name, target in case["expected"].items():
        bank, draws, granularity = _devices(case, case["inputs"]["n_devices"])
        actions = re.findall(r"(?:(\d+)_)?(up|down|decay|step|diffusion|reset)", name)
        if not actions and "set" not in name:
            # What is done is said in the description only.
            number = re.search(r"\d+", name)
            actions = [(number[0] if number else "", re.findall("decay|diffusion|reset", case["description"])[0])]
        for count, action in actions:
            times = int(count or case["inputs"].get("n_steps", 1))
            if action in ("up", "down"):
                _pulses(bank, -1.0 if action == "up" else 1.0, times, granularity, draws)
            for _ in range(times if action in ("decay", "step", "diffusion") else 0):
                bank.after_step(draws)
            if action == "reset":
                device = bank.arrays.device
                assert isinstance(device, PulsedDevice)
                device.reset_devices(bank.devices, torch.arange(bank.out_size), draws)
        if isinstance(target, dict):
            assert_sample(bank.get_weights(), target, name)
        else:
            assert_near(bank.get_weights().mean(), target, case.get("tol") or 2e-6, name)


def _device_parameters(case: Case) -> None:
    device, expected = cases.device(case["params"]), case["expected"]
    assert isinstance(device, PulsedDevice | Cell)
    side = math.isqrt(case["inputs"]["n_devices"])
    state = AnalogBank(Arrays(device=device), 1, side, side, cases.generator(case)).state
    for name, target in expected.items():
        if isinstance(target, dict):
            assert_sample(_parameter(state, name), target, name)
    correlation = expected.get("corr_dwmin_up_down")
    if correlation is not None:
        up, down = (_parameter(state, f"dwmin_{name}").flatten() for name in ("up", "down"))
        error = (1 - correlation**2) / side * math.sqrt(2)
        distance = float(torch.corrcoef(torch.stack([up, down]))[0, 1]) - correlation
        assert abs(distance) < cases.ERRORS * error + 2e-6
    if expected.get("weight_granularity") is not None:
        assert_near(device.granularity(cases.compat(case)), expected["weight_granularity"], 1e-8, "granularity")
    if expected.get("num_states") is not None and isinstance(device, PulsedDevice):
        assert_near(device.states(cases.compat(case)), expected["num_states"], 2e-6, "num_states")


def _stochastic_update(case: Case) -> None:
    """One update of as many tiles of 2 x 2 devices, the second lines of which carry the largest values."""
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    update, lr = cases.update(params["update"]), params["learning_rate"]
    n, draws = expected["delta_w"]["n"], cases.generator(case)
    x = tensor([[inputs["x"], inputs["x_abs_max"]]])
    d = tensor([[inputs["d"], inputs["d_abs_max"]]])
    bank = AnalogBank(_arrays(case, update=update), n, 2, 2, draws)
    bank.update(x.expand(n, 2), d.expand(n, 2), [1] * n, lr, draws)
    sample = bank.get_weights()[:, 0, 0]
    assert_sample(sample, expected["delta_w"], "delta_w")
    theory = case.get("theory") or {}
    if "mean" in theory and "std" in theory:
        assert_sample(sample, {**theory, "n": n}, "theory")
    device = bank.arrays.device
    assert isinstance(device, PulsedDevice)
    trains = scales(x, d, lr, device.granularity(cases.compat(case)), update)
    for name, value in (("BL", trains.slots[0]), ("A_on_d", trains.a[0]), ("B_on_x", trains.b[0])):
        if name in theory:
            assert_near(value, theory[name], 2e-6, name)


def _forward_noise(case: Case) -> None:
    bank, draws = _bank(case)
    x = tensor(case["inputs"]["x"]).expand(case["inputs"]["n"], -1)
    weights = tensor(case["inputs"]["W"])
    noise = bank.forward(x, [len(x)], draws).values - x @ weights.T
    for line, target in enumerate(case["expected"]["outputs"]):
        assert_sample(noise[:, line], target, f"line {line}")
    theory = (case.get("theory") or {}).get("std") or []
    for line, std in enumerate(theory if isinstance(theory, list) else [theory] * noise.shape[1]):
        assert float(noise[:, line].std()) == pytest.approx(std, rel=cases.ERRORS / math.sqrt(2 * len(x)))


def _weight_modifier(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    modifier = WeightModifier(**params)
    for backend, target in case["expected"].items():
        weights = torch.full((1, 1, target["n"] + 1), inputs["w"])
        weights[..., -1] = inputs["wmax"]
        compat = "rpucuda" if backend == "rpucuda" else "torch"
        changed = modifier.modify(weights, cases.generator(case), compat)  # type: ignore[arg-type]
        assert_sample((changed - weights)[..., :-1], target, backend)


def _pcm(case: Case) -> None:
    """Conductances of given targets one by one, or weights through all of it."""
    params, inputs = case["params"], case["inputs"]
    model = PCMLikeNoiseModel(**{name: params[name] for name in PCMLikeNoiseModel.model_fields if name in params})
    if "n" not in inputs or not ("g_target" in inputs or "g_prog" in inputs):
        _weights_in_pcm(case, model)
        return
    draws = cases.generator(case)
    for g in inputs["g_target"] if "g_target" in inputs else inputs["g_prog"]:
        start, target = torch.full((inputs["n"],), g), case["expected"][str(g)]
        if "t_inference" in inputs:
            nu = torch.zeros_like(start) if "nu=0" in case["api"] else model.coefficients(start, draws)
            if "nu" in target:
                assert_sample(nu, target["nu"], "nu")
            for t in inputs["t_inference"]:
                assert_sample(model.at(start, nu, t, draws) / g, target[str(t)], f"{g} uS after {t} s")
        elif "coefficients" in case["api"]:
            assert_sample(model.coefficients(start, draws), target, f"nu of {g} uS")
        else:
            assert_sample(model.program(start, draws), target, f"{g} uS")


def _weights_in_pcm(case: Case, model: PCMLikeNoiseModel) -> None:
    """Conversion, programming, drift and its compensation of one tile, of whichever the case has results."""
    params, inputs, draws = case["params"], case["inputs"], cases.generator(case)
    nu = next((params[name] for name in ("nu", "drift_nu", "constant_nu") if name in params), inputs.get("nu"))
    if nu is not None:
        model = model.model_copy(update={"custom_drift": ((0.0, nu, 0.0), (model.g_max, nu, 0.0))})
    given = tensor(next(inputs[name] for name in _WEIGHTS if name in inputs))
    given = given[None] if given.ndim == 0 else given
    # Single values are rows of as many devices as there are samples.
    matrix = given if given.ndim == 2 else given[:, None].expand(-1, int(inputs.get("n", 1)))
    pair = single_pair(matrix[None], model.g_max, model.g_min)
    found: dict[str, Any] = {"g_plus": pair.plus[0], "g_minus": pair.minus[0], "scale_ratio": pair.scale[0, 0, 0]}
    found |= {"conductances": torch.stack([pair.plus[0], pair.minus[0]]), "weights": pair.weights()[0]}
    programmed = Programmed(matrix[None], model, draws, compat="rpucuda")
    arrays = Arrays(device=IdealDevice(), forward=cases.io(params.get("forward")))
    bank = AnalogBank(arrays, 1, len(matrix), matrix.shape[1], draws)
    bank.set_weights(programmed.weights(), draws)
    first, times = read_out(bank, draws), inputs.get("t_inference", [])
    later: dict[float, Tensor] = {}
    for t in times if isinstance(times, list) else [times]:
        later[float(t)] = programmed.at(t, draws)[0]
        bank.set_weights(later[t][None], draws)
        found.setdefault("alpha", []).append(float(compensation(first, read_out(bank, draws))))
        found.setdefault("weight_ratio", []).append(float(later[t].sum() / programmed.weights().sum()))
    plain = {name: target for name, target in case["expected"].items() if not isinstance(target, dict)}
    _compare(found, plain, case.get("tol") or 2e-6)
    for path, target in _samples(case["expected"]):
        numbers = [float(key) for key in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", " ".join(path))]
        sample = next((later[number] for number in numbers if number in later), programmed.weights()[0])
        row = next((row for number in numbers for row in (given == number).nonzero()[:, 0] if given.ndim == 1), None)
        assert_sample(sample if row is None else sample[row], target, " ".join(path))


_WEIGHTS = ("W", "weights", "weight", "w", "w_target")


def _samples(
    expected: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    """The statistics in nested results, with the keys that lead to them."""
    if "mean" in expected:
        yield path, expected
        return
    for name, part in expected.items():
        if isinstance(part, dict):
            yield from _samples(part, (*path, name))


def _compare(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Compares what has a name in common; a result of another name is the only one found of its shape."""
    for name, target in expected.items():
        if name in found:
            assert_near(found[name], target, tolerance, name)
            continue
        shape = torch.as_tensor(target).shape
        same = [values for values in found.values() if torch.as_tensor(values).shape == shape]
        assert same, f"{name}: nothing of shape {tuple(shape)} was found, only {sorted(found)}"
        assert_near(same[0], target, tolerance, name)


def _parameter(state: dict[str, Tensor], name: str) -> Tensor:
    """A drawn parameter by aihwkit's name; that of device k of a cell ends in _k."""
    names = {"persistent_weights": "hidden", "hidden_weights": "weight"}
    cell = re.fullmatch(r"(.+)_(\d)", name)
    if cell:
        return state[f"{cell[2]}.{names.get(cell[1], cell[1])}"]
    known = names.get(name, name)
    return state[known] if known in state else state[f"0.{known}"]


def _arrays(case: Case, **parts: Any) -> Arrays:
    params = case["params"]
    return Arrays(
        device=cases.device(params),
        forward=cases.io(params.get("forward")),
        backward=cases.io(params.get("backward")),
        aihwkit_compat=cases.compat(case),
        **parts,
    )


def _bank(case: Case) -> tuple[AnalogBank, torch.Generator]:
    """One tile with the case's weights."""
    draws, weights = cases.generator(case), tensor(case["inputs"]["W"])
    bank = AnalogBank(_arrays(case), 1, len(weights), weights.shape[1], draws)
    bank.set_weights(weights[None], draws)
    return bank, draws


def _devices(case: Case, count: int) -> tuple[AnalogBank, torch.Generator, float]:
    """So many devices on one input line, which get a pulse for each vector pair; and the step they are counted in."""
    draws = cases.generator(case)
    update = UpdateParameters(desired_bl=1, update_management=False, update_bl_management=False)
    assert update.pulse_type is PulseType.STOCHASTIC_COMPRESSED
    bank = AnalogBank(_arrays(case, update=update), 1, count, 1, draws)
    bank.set_weights(torch.full((1, count, 1), float(case["inputs"].get("w0", 0.0))), draws)
    device = bank.arrays.device
    assert isinstance(device, PulsedDevice)
    return bank, draws, device.granularity(cases.compat(case))


def _pulses(bank: AnalogBank, sign: float, count: int, granularity: float, draws: torch.Generator) -> None:
    bank.update(torch.ones(count, 1), torch.full((count, bank.out_size), sign), [count], granularity, draws)


_RUN = {
    "forward": _reading,
    "backward": _reading,
    "layers": _layer,
    "update_deterministic": _deterministic_update,
    "device_trajectory": _trajectory,
    "device_statistics": _device_statistics,
    "device_parameters": _device_parameters,
    "stochastic_update": _stochastic_update,
    "forward_noise": _forward_noise,
    "weight_modifier": _weight_modifier,
    "pcm": _pcm,
}
