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
from rapa_cli.analog.inference import Programmed, compensation, mean_answer
from rapa_cli.analog.mapping import MappedBank
from rapa_cli.analog.modifiers import WeightModifier
from rapa_cli.analog.parameters import Mapping, PulseType, UpdateParameters
from rapa_cli.analog.pcm import PCMLikeNoiseModel
from rapa_cli.analog.update import scales
from tests.analog import cases
from tests.analog.cases import Case, assert_near, assert_sample, first_of, tensor, vectors


@pytest.mark.parametrize("case", cases.load(), ids=lambda case: case["id"])
def test_case(case: Case) -> None:
    run(case)


def run(case: Case) -> None:
    """Compares one case."""
    group = case["group"]
    _RUN[group](case)


def _reading(case: Case) -> None:
    """Forward, and where there are gradients backward; y_alone is read from x_alone, and so on."""
    inputs, expected = case["inputs"], case["expected"]
    bank, draws = _bank(case)
    for name in [key for key in expected if key.startswith("y")] or ["y"]:
        if "x" + name[1:] in inputs:
            bank, draws = _bank(case)
        x = vectors(first_of(inputs, "x" + name[1:], "x"))
        reading = bank.forward(x, [len(x)], draws)
        found = {name: reading.values}
        if "grad_y" in inputs:
            d = vectors(inputs["grad_y"])
            found["grad_x"] = bank.backward(d, [len(d)], draws, reading)
        target = {key: value for key, value in expected.items() if key == name or not key.startswith("y")}
        shaped = {key: value.view(tensor(target[key]).shape) for key, value in found.items() if key in target}
        _compare({**found, **shaped}, target, _tol(case))


def mapping_of(case: Case) -> Mapping:
    """How the matrices of a layer are put on arrays, from the parameters themselves and the tables among them."""
    params, inputs = case["params"], case["inputs"]
    tables = [params, *(params[name] for name in ("mapping", "pre_post") if isinstance(params.get(name), dict))]
    # The bias of a case is added to what the arrays give.
    assert first_of(tables, "digital_bias", default=True) or "bias" not in inputs, "digital_bias: there is no other"
    known = {name: value for table in tables for name, value in table.items() if name in Mapping.model_fields}
    found = known.get("input_range")
    if isinstance(found, dict):
        known["input_range"] = first_of([found, inputs], "init_value", "value", "input_range", default=0)
        if found.get("enable") is False:
            known["input_range"] = 0
    return Mapping(**{name: value for name, value in known.items() if value is not None})


# What of aihwkit's mapping says only how scales are learned.


def _layer(case: Case) -> None:
    """Matrices on arrays: split, scaled, with an input range; or a convolution, patch by patch."""
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    weight = tensor(first_of(inputs, *_WEIGHTS))
    mapping = mapping_of(case)
    draws, x = cases.generator(case), tensor(inputs["x"])
    matrix = weight.flatten(1)
    arrays = _arrays(case).model_copy(update={"mapping": mapping})
    bank = MappedBank(arrays, 1, len(matrix), matrix.shape[1], draws)
    bank.set_weights(matrix[None], draws)
    patches, kernel, padding = x, (0, 0), 0
    if weight.ndim == 4:
        kernel = (weight.shape[2], weight.shape[3])
        padding = first_of(params, "padding", default=(len(expected["y"][0][0]) - x.shape[2] + kernel[0] - 1) // 2)
        patches = F.unfold(x, kernel, padding=padding).transpose(1, 2).reshape(-1, matrix.shape[1])
    reading = bank.forward(patches, [len(patches)], draws)
    found: dict[str, Any] = {"y": reading.values, **bank.grid._asdict()}
    found["scales"] = torch.cat([scale[0] for scale in bank.scales[:: len(bank.grid.in_sizes)]])
    if not mapping.weight_scaling_columnwise and len(bank.grid.out_sizes) == 1:
        # One scale for the whole matrix, however it is written: alone, as a list of one, or for every line.
        for name in (key for key in expected if "scale" in key):
            found[name] = found["scales"][: tensor(expected[name]).numel()].view(tensor(expected[name]).shape)
    else:
        found["scale"] = found["scales"]
    found["tile_weights"] = bank.banks[0].get_weights()[0]
    found["weights"] = bank.get_weights()[0]
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
    _compare(found, expected, _tol(case))


def _deterministic_update(case: Case) -> None:
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    device, draws = cases.device(params), cases.generator(case)
    update, lr = cases.update(params.get("update")), first_of([params, inputs], "learning_rate", "lr")
    x, d = vectors(inputs["x"]), vectors(inputs["d"])
    bank = AnalogBank(_arrays(case, update=update), 1, d.shape[1], x.shape[1], draws)
    start = first_of(inputs, "W0", "w0", *_WEIGHTS, default="zeros")
    if start != "zeros":
        bank.set_weights(tensor(start).expand(1, d.shape[1], x.shape[1]), draws)
    before = bank.get_weights()
    bank.update(x, d, [len(x)], lr, draws)
    found: dict[str, Any] = {"delta_w": (bank.get_weights() - before)[0], "W": bank.get_weights()[0]}
    if isinstance(device, PulsedDevice):
        granularity = device.granularity(cases.compat(case))
        if params.get("weight_granularity") is not None:
            assert_near(granularity, params["weight_granularity"], 1e-8, "weight_granularity")
        found["coincidences"] = torch.round(found["delta_w"] / granularity)
        trains = scales(x[:1], d[:1], lr, granularity, update)
        found |= {"BL": trains.slots[0], "A_on_d": trains.a[0], "B_on_x": trains.b[0]}
    known = {name: value for name, value in expected.items() if name in found or isinstance(value, list)}
    _compare(found, known, _tol(case))


def _trajectory(case: Case) -> None:
    """Weights after so many pulses up, then after so many down from where the last went."""
    expected, inputs = case["expected"], case["inputs"]
    bank, draws, granularity = _devices(case, 1)
    if expected.get("weight_granularity") is not None:
        assert_near(granularity, expected["weight_granularity"], 1e-8, "weight_granularity")
    for direction, sign in (("up", -1.0), ("down", 1.0)):
        weights, done = [], 0
        for count in inputs[f"{direction}_pulses"]:
            _pulses(bank, sign, count - done, granularity, draws)
            weights.append(float(bank.get_weights()))
            done = count
        assert_near(weights, expected[f"w_after_{direction}"], _tol(case), direction)


def _device_statistics(case: Case) -> None:
    """Weights of many devices after pulses, decay or resets: `after_10_up_5_down`, `after_set`, `after_3_decay`.

    A list has one result for each number of times in a list of the inputs.
    """
    inputs = case["inputs"]
    for name, target in case["expected"].items():
        if name in ("weight_granularity", "num_states"):
            continue
        actions = [(int(before or after or 0), action) for before, action, after in _ACTIONS.findall(name)]
        if not actions and not re.search(r"(^|_)(set|start|initial)", name):
            # What is done is said in the description only.
            number = re.search(r"\d+", name)
            actions = [(int(number[0]) if number else 0, _first_action(case))]
        if not isinstance(target, list):
            _after(case, actions, target, name)
            continue
        times = next(value for value in inputs.values() if isinstance(value, list) and len(value) == len(target))
        for count, one in zip(times, target, strict=True):
            _after(case, [(int(count), actions[-1][1])], one, f"{name}, {count} times")


_ACTIONS = re.compile(r"(?:(\d+)_)?(up|down|decay|diffus|reset|step)(?:s?_(\d+)$)?")


def _first_action(case: Case) -> str:
    words = f"{case['id']} {case['description']} {case['api']}".lower()
    return str(re.findall("decay|diffus|reset", words)[0])


def _after(case: Case, actions: list[tuple[int, str]], target: Any, what: str) -> None:
    """Does what is asked for to new devices, and compares their weights."""
    inputs = case["inputs"]
    bank, draws, granularity = _devices(case, int(first_of(inputs, "n_devices", "n", default=1)))
    for count, action in actions:
        times = count or int(first_of(inputs, "n_steps", "steps", "n_decay", default=1))
        if action in ("up", "down"):
            _pulses(bank, -1.0 if action == "up" else 1.0, times, granularity, draws)
        for _ in range(times if action in ("decay", "diffus", "step") else 0):
            bank.after_step(draws)
        if action == "reset":
            device = bank.arrays.device
            assert isinstance(device, PulsedDevice)
            chosen = torch.rand(bank.out_size, generator=draws) < inputs.get("reset_prob", 1.0)
            device.reset_devices(bank.devices, chosen.nonzero()[:, 0], draws)
    if isinstance(target, dict):
        assert_sample(bank.get_weights(), target, what)
    else:
        assert_near(bank.get_weights().mean(), target, _tol(case), what)


def _device_parameters(case: Case) -> None:
    device, expected = cases.device(case["params"]), case["expected"]
    assert isinstance(device, PulsedDevice | Cell)
    side = math.isqrt(int(first_of(case["inputs"], "n_devices", "n", default=40_000)))
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
    if expected.get("num_states") is not None:
        single = device if isinstance(device, PulsedDevice) else device.unit_cell_devices[0]
        assert_near(single.states(cases.compat(case)), expected["num_states"], 2e-6, "num_states")


def _stochastic_update(case: Case) -> None:
    """One update of as many tiles of 2 x 2 devices, the second lines of which carry the largest values."""
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    update, lr = cases.update(params.get("update")), first_of([params, inputs], "learning_rate", "lr")
    results = {name: target for name, target in expected.items() if isinstance(target, dict)}
    n, draws = next(iter(results.values()))["n"], cases.generator(case)
    x = tensor([[inputs["x"], first_of(inputs, "x_abs_max", default=abs(inputs["x"]))]])
    d = tensor([[inputs["d"], first_of(inputs, "d_abs_max", default=abs(inputs["d"]))]])
    bank = AnalogBank(_arrays(case, update=update), n, 2, 2, draws)
    start = float(first_of(inputs, "w0", default=0.0))
    bank.set_weights(torch.full((n, 2, 2), start), draws)
    bank.update(x.expand(n, 2), d.expand(n, 2), [1] * n, lr, draws)
    sample = bank.get_weights()[:, 0, 0] - start
    for name, target in results.items():
        assert_sample(sample, target, name)
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
    inputs, expected = case["inputs"], case["expected"]
    x = tensor(inputs["x"]).view(1, -1).expand(int(first_of(inputs, "n", "n_repeats", default=20_000)), -1)
    noise = bank.forward(x, [len(x)], draws).values - x @ tensor(first_of(inputs, *_WEIGHTS)).T
    for line, target in enumerate(first_of(expected, "outputs", "lines", default=list(expected.values()))):
        assert_sample(noise[:, line], target, f"line {line}")
    theory = (case.get("theory") or {}).get("std") or []
    for line, std in enumerate(theory if isinstance(theory, list) else [theory] * noise.shape[1]):
        assert float(noise[:, line].std()) == pytest.approx(std, rel=cases.ERRORS / math.sqrt(2 * len(x)))


def _weight_modifier(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    modifier = WeightModifier(**{name: value for name, value in params.items() if name in WeightModifier.model_fields})
    for backend, target in case["expected"].items():
        weights = torch.full((1, 1, target["n"] + 1), inputs["w"])
        weights[..., -1] = inputs["wmax"]
        compat = "rpucuda" if backend == "rpucuda" else "torch"
        changed = modifier.modify(weights, cases.generator(case), compat)  # type: ignore[arg-type]
        assert_sample((changed - weights)[..., :-1], target, backend)


def noise_model(params: dict[str, Any], inputs: dict[str, Any]) -> PCMLikeNoiseModel:
    """The model of conductances; drift may be given for some conductances, or one mean and spread for all."""
    tables = [params]
    for name, table in params.items():
        if isinstance(table, dict) and name not in ("forward", "device"):
            tables.append(table)
    tables.append(inputs)
    for name, only in (("model", "PCMLike"), ("noise_model", "PCMLike"), ("g_converter", "SinglePair")):
        assert not isinstance(params.get(name), str) or only in params[name], f"{name}: there is no {params[name]}"
    assert params.get("drift_compensation") is not False, "drift_compensation: outputs are always compensated"
    known = {name: first_of(tables, name) for name in PCMLikeNoiseModel.model_fields if name != "kind"}
    model = PCMLikeNoiseModel(**{name: value for name, value in known.items() if value is not None})
    places = [first_of(tables, name) for name in _CUSTOM_DRIFT]
    mean, spread = first_of(tables, *_MEAN_DRIFT), first_of(tables, "nu_std", default=0.0)
    if any(values is not None for values in places):
        assert all(values is not None for values in places), f"drift needs all of {_CUSTOM_DRIFT}"
        return PCMLikeNoiseModel(**{**model.model_dump(), "custom_drift": tuple(zip(*places, strict=True))})
    if mean is not None:
        ends = ((0.0, float(mean), float(spread)), (model.g_max, float(mean), float(spread)))
        return PCMLikeNoiseModel(**{**model.model_dump(), "custom_drift": ends})
    assert spread == 0, "nu_std: there is no nu_mean"
    return model


_CUSTOM_DRIFT = ("g_lst", "nu_mean_lst", "nu_std_lst")
_MEAN_DRIFT = ("nu", "nu_mean", "drift_nu", "constant_nu", "nu_drift")


def _pcm(case: Case) -> None:
    """Conductances of given targets one by one, or weights through all of it."""
    params, inputs = case["params"], case["inputs"]
    model = noise_model(params, inputs)
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
    given = tensor(first_of(inputs, *_WEIGHTS))
    copies = int(first_of(inputs, "n", "n_devices", default=1))
    # Single values are rows of as many devices as there are samples.
    listed = given.ndim < 2 and copies > 1
    matrix = given.reshape(-1, 1).expand(-1, copies) if listed else vectors(given)
    largest = first_of(inputs, "wmax", "w_max", "abs_max")
    if largest is not None:
        matrix = torch.cat([matrix, torch.zeros_like(matrix[:1])])
        matrix[-1, 0] = largest
    pair, shape = single_pair(matrix[None], model.g_max, model.g_min), matrix.shape if listed else given.shape
    plus, minus, back = (values.view(matrix.shape) for values in (pair.plus, pair.minus, pair.weights()))
    found: dict[str, Any] = {"g_plus": plus, "g_minus": minus, "weights": back}
    if largest is None:
        found = {name: values.view(shape) for name, values in found.items()}
    found |= {"conductances": torch.stack([found["g_plus"], found["g_minus"]]), "scale_ratio": pair.scale.flatten()[0]}
    # The noise model alone keeps its pairs; aihwkit's tiles convert programmed weights again for every reading.
    compat = None if re.search(r"apply_noise\b", case["api"]) else "rpucuda"
    programmed = Programmed(matrix[None], model, draws, compat=compat)  # type: ignore[arg-type]
    arrays = Arrays(device=IdealDevice(), forward=cases.io(params.get("forward")))
    bank = AnalogBank(arrays, 1, len(matrix), matrix.shape[1], draws)
    bank.set_weights(programmed.weights(), draws)

    def answer() -> Tensor:
        return mean_answer(lambda x, sizes: bank.forward(x, sizes, draws).values, bank.get_weights())

    first = answer()
    found |= {"baseline": first[0], "programmed": programmed.weights()[0]}
    times = first_of([inputs, params], "t_inference", "times", "t", default=[])
    later: dict[float, dict[str, Any]] = {}
    for t in times if isinstance(times, list) else [times]:
        weights = programmed.at(t, draws)
        bank.set_weights(weights, draws)
        alpha = compensation(first, answer())[0]
        later[float(t)] = {"weights": weights[0], "alpha": alpha}
        later[float(t)]["weight_ratio"] = weights.sum() / programmed.weights().sum()
        if "x" in inputs:
            x = vectors(inputs["x"])
            later[float(t)]["y"] = bank.forward(x, [len(x)], draws).values * alpha
    for name in ("alpha", "weight_ratio", "weights", "y"):
        of_times = [one[name] for one in later.values() if name in one]
        if of_times and name != "weights":
            found[name] = torch.stack(of_times) if isinstance(times, list) else of_times[0]
    for path, target in _leaves(case["expected"]):
        words = " ".join(path)
        t, number = _time_and_weight(words, list(later), given.flatten().tolist() if listed else [])
        if not isinstance(target, dict):
            there = found if t is None else {name: value for name, value in later[t].items() if name != "weights"}
            meant = there.get(path[-1], there.get(_quantity(words, there)))
            _compare({**there, path[-1]: meant} if meant is not None else there, {path[-1]: target}, _tol(case))
            continue
        row = given.flatten().tolist().index(number) if number is not None else 0
        rows = slice(row, row + 1) if listed else slice(len(vectors(given)))
        start, sample = matrix[rows], (programmed.weights()[0] if t is None else later[t]["weights"])[rows]
        if "ratio" in words or "relative" in words:
            sample = sample / start
        if re.search("error|diff|delta", words):
            sample = sample - start
        if t is not None and re.search(r"(^|[ _])compensated", words):
            sample = sample * later[t]["alpha"]
        assert_sample(sample, target, words)


def _time_and_weight(words: str, times: list[float], weights: list[float]) -> tuple[float | None, float | None]:
    """Which time and which weight the numbers in the path of a result mean, None where there is none."""
    numbers = [float(number) for number in re.findall(r"(?<![\d.])-?\d+\.?\d*(?:e[-+]?\d+)?", words)]
    for first, second in ((0, 1), (1, 0)) if len(numbers) == 2 else ():
        if numbers[first] in times and numbers[second] in weights:
            return numbers[first], numbers[second]
    t = None if "prog" in words else next((number for number in numbers if number in times), None)
    return t, next((number for number in numbers if number != t and number in weights), None)


_WEIGHTS = ("W", "weights", "weight", "w", "w_target")


def _quantity(words: str, there: dict[str, Any]) -> str:
    """Which of the results found the words of a path mean."""
    synonyms = {"y": r"(^|\s)y|output", "alpha": "alpha|compens|gdc", "weight_ratio": "ratio", "baseline": "base|refer"}
    return next((name for name, meant in synonyms.items() if name in there and re.search(meant, words)), "")


def _leaves(expected: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Numbers, lists and statistics in nested results, with the keys that lead to them."""
    for name, value in expected.items():
        if isinstance(value, dict) and "mean" not in value:
            yield from _leaves(value, (*path, name))
        elif value is not None:
            yield (*path, name), value


def _tol(case: Case) -> float:
    return float(case.get("tol") or 2e-6)


def _compare(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Compares what has a name in common; a result of another name is one of those found of its shape."""
    for name, target in expected.items():
        if target is None:
            continue
        if found.get(name) is not None:
            assert_near(found[name], target, tolerance, name)
            continue
        shape = torch.as_tensor(target).shape
        same = {key: values for key, values in found.items() if torch.as_tensor(values).shape == shape}
        assert same, f"{name}: nothing of shape {tuple(shape)} was found, only {sorted(found)}"
        near = [
            torch.allclose(tensor(target), torch.as_tensor(value).float(), tolerance, tolerance)
            for value in same.values()
        ]
        assert any(near), f"{name}: {target} is none of {same}"


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
    draws, weights = cases.generator(case), tensor(first_of(case["inputs"], *_WEIGHTS))
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
