"""Tables of arrays as users write them: any case of a choice, and nothing that is without effect."""

from __future__ import annotations

from typing import Any

import pytest

from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.parameters import BoundManagement, NoiseManagement, PulseType
from rapa_cli.analog.presets import INFERENCE_PRESETS, PRESETS
from rapa_cli.analog.specification import arrays_of
from rapa_cli.errors import ConfigError


def made(**table: Any) -> Arrays:
    arrays = arrays_of({"device": {"kind": "ConstantStep"}, **table})
    assert isinstance(arrays, Arrays)
    return arrays


@pytest.mark.parametrize("word", ["Iterative", "ITERATIVE", "iterative", "iTerative"])
def test_choices_are_written_in_any_case(word: str) -> None:
    assert made(forward={"bound_management": word}).forward.bound_management is BoundManagement.ITERATIVE


def test_choices_are_written_by_value_or_by_name() -> None:
    for word in ("AbsMaxNPSum", "absmaxnpsum", "ABS_MAX_NP_SUM", "abs_max_np_sum"):
        assert NoiseManagement(word) is NoiseManagement.ABS_MAX_NP_SUM
    for kind in (NoiseManagement, BoundManagement, PulseType):
        for member in kind:
            words = (member.value, member.value.lower(), member.name, member.name.lower())
            assert all(kind(word) is member for word in words)


def test_the_message_of_a_wrong_choice_keeps_the_case_of_values() -> None:
    with pytest.raises(ConfigError) as caught:
        made(forward={"bound_management": "Iterativ"})
    assert caught.value.message == (
        "arrays: forward.bound_management: input should be 'None', 'Iterative' or 'IterativeWorstCase', got 'Iterativ'"
    )
    assert caught.value.hint == "did you mean 'Iterative'?"


SOFT = {"kind": "SoftBounds"}
PAIR = {"kind": "OneSided", "unit_cell_devices": [SOFT, SOFT]}


@pytest.mark.parametrize(
    ("table", "idle"),
    [
        (
            {"forward": {"out_noise": 0.0, "out_noise_std": 0.1}},
            "forward.out_noise_std: has no effect without out_noise",
        ),
        (
            {"backward": {"noise_management": "None", "nm_thres": 1.0}},
            "backward.nm_thres: has no effect with noise_management None",
        ),
        (
            {"forward": {"noise_management": "AverageAbsMax", "nm_thres": 1.0}},
            "forward.nm_thres: has no effect with noise_management AverageAbsMax",
        ),
        (
            {"forward": {"out_nonlinearity_std": 0.1}},
            "forward.out_nonlinearity_std: has no effect without out_nonlinearity",
        ),
        (
            {"forward": {"slope_calibration": 1.0}},
            "forward.slope_calibration: has no effect without out_nonlinearity or r_series",
        ),
        (
            {"forward": {"inp_res": 0, "inp_sto_round": True}},
            "forward.inp_sto_round: has no effect without inp_res and inp_bound",
        ),
        (
            {"forward": {"out_bound": 0, "out_sto_round": True}},
            "forward.out_sto_round: has no effect without out_res and out_bound",
        ),
        (
            {"forward": {"bound_management": "None", "max_bm_factor": 8, "max_bm_res": 0.5}},
            "forward.max_bm_factor: has no effect with bound_management None; "
            "forward.max_bm_res: has no effect with bound_management None",
        ),
        ({"forward": {"w_noise_type": "PCMRead"}}, "forward.w_noise_type: has no effect without w_noise"),
        ({"update": {"sto_round": True}}, "update.sto_round: has no effect without res"),
        (
            {"update": {"pulse_type": "DeterministicImplicit", "sto_round": True}},
            "update.sto_round: has no effect without x_res_implicit or d_res_implicit",
        ),
        (
            {"update": {"pulse_type": "DeterministicImplicit", "res": 0.1}},
            "update.res: has no effect with pulse_type DeterministicImplicit; use x_res_implicit and d_res_implicit",
        ),
        (
            {"update": {"update_management": False, "update_bl_management": False, "um_grad_scale": 2.0}},
            "update.um_grad_scale: has no effect without update_management or update_bl_management",
        ),
        (
            {"mapping": {"weight_scaling_columnwise": True}},
            "mapping.weight_scaling_columnwise: has no effect without weight_scaling_omega",
        ),
        (
            {"device": {"kind": "ConstantStep", "lifetime_dtod": 0.1, "diffusion_dtod": 0.2}},
            "device.lifetime_dtod: has no effect without lifetime; "
            "device.diffusion_dtod: has no effect without diffusion",
        ),
        ({"update": {"pulse_type": "None"}, "merge": 0}, "merge: has no effect with update.pulse_type None"),
        (
            {"device": {"kind": "Ideal"}, "merge": 4},
            "merge: has no effect with Ideal devices, whose products are summed exactly",
        ),
        (
            {"device": {**PAIR, "refresh_forward": {"out_noise_std": 0.1, "out_noise": 0}}},
            "device.refresh_forward.out_noise_std: has no effect without out_noise",
        ),
        (
            {"device": {"kind": "Vector", "unit_cell_devices": [SOFT, {**SOFT, "diffusion_dtod": 1}]}},
            "device.unit_cell_devices.1.diffusion_dtod: has no effect without diffusion",
        ),
    ],
)
def test_what_is_without_effect_is_refused(table: dict[str, Any], idle: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**table)
    assert caught.value.message == f"arrays: {idle}"
    assert caught.value.hint == "leave these out, or set what they depend on"


@pytest.mark.parametrize(
    ("table", "idle"),
    [
        ({"weight_scaling_columnwise": True}, "weight_scaling_columnwise: has no effect without weight_scaling_omega"),
        ({"modifier": {"sto_round": True}}, "modifier.sto_round: has no effect without res"),
        ({"modifier": {"assumed_wmax": 2.0}}, "modifier.assumed_wmax: has no effect with rel_to_actual_wmax"),
        ({"clip": {"sigma": 2.0}}, "clip.sigma: has no effect without type LayerGaussian"),
        ({"remap": {"remapped_wmax": 2.0}}, "remap.remapped_wmax: has no effect without a type"),
    ],
)
def test_what_is_without_effect_on_inference_arrays(table: dict[str, Any], idle: str) -> None:
    with pytest.raises(ConfigError) as caught:
        arrays_of({"drift_compensation": True, **table})
    assert caught.value.message == f"arrays: {idle}"


def test_only_what_the_table_itself_sets_is_looked_at() -> None:
    """A preset's own settings may lose their effect by a change, and values that change nothing are no mistake."""
    changed = arrays_of({"preset": "Capacitor", "device": {"lifetime": 0.0}, "update": {"pulse_type": "none"}})
    assert isinstance(changed, Arrays)
    assert changed.device.model_dump()["lifetime_dtod"] == 0.3
    assert changed.merge == 256
    made(forward={"is_perfect": True, "out_noise": 0.0, "out_noise_std": 0.5})
    made(forward={"bound_management": "None", "noise_management": "AbsMaxNPSum", "max_bm_res": 0.5})
    with pytest.raises(ConfigError, match=r"device\.lifetime_dtod"):
        arrays_of({"preset": "Capacitor", "device": {"lifetime": 0.0, "lifetime_dtod": 0.3}})


@pytest.mark.parametrize("name", [*PRESETS, *INFERENCE_PRESETS])
def test_a_preset_written_out_is_taken(name: str) -> None:
    arrays = arrays_of(name)
    assert isinstance(arrays, Arrays | InferenceArrays)
    assert arrays_of(arrays.model_dump(mode="json")) == arrays
