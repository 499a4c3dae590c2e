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
