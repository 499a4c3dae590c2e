"""Parameters of the converters and of the update, by aihwkit's names, with its defaults and units.

All are frozen, hashable and plain dictionaries under `model_dump()`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, model_validator

from rapa_cli.config import Frozen

Compat = Literal["rpucuda", "torch"] | None
"""Which of aihwkit's two back ends is imitated with its faults; None computes the right values."""


class Named(StrEnum):
    """Choices that are written as aihwkit writes them ("AbsMax") or names them ("ABS_MAX"), in any case."""

    @classmethod
    def _missing_(cls, value: object) -> Named | None:
        if not isinstance(value, str):
            return None
        return next((member for member in cls if value.lower() in (member.value.lower(), member.name.lower())), None)


class NoiseManagement(Named):
    """What a vector is divided by before its DAC; see `periphery.Periphery`."""

    NONE = "None"
    ABS_MAX = "AbsMax"
    ABS_MAX_NP_SUM = "AbsMaxNPSum"
    MAX = "Max"
    CONSTANT = "Constant"
    AVERAGE_ABS_MAX = "AverageAbsMax"


class BoundManagement(Named):
    """What happens where a vector's outputs exceed the ADC's bound."""

    NONE = "None"
    ITERATIVE = "Iterative"
    ITERATIVE_WORST_CASE = "IterativeWorstCase"


class ProductType(Named):
    """Whether positive and negative inputs are applied at once, one after the other, or also converted so."""

    ONE_PASS = "OnePass"
    POS_NEG_SEPARATE = "PosNegSeparate"
    POS_NEG_SEPARATE_DIGITAL_SUM = "PosNegSeparateDigitalSum"


class WeightNoise(Named):
    """How the noise of weights being read depends on them."""

    NONE = "None"
    ADDITIVE_CONSTANT = "AdditiveConstant"
    PCM_READ = "PCMRead"


class PulseType(Named):
    """How an outer product becomes pulses; see `update`."""

    NONE = "None"
    STOCHASTIC_COMPRESSED = "StochasticCompressed"
    STOCHASTIC = "Stochastic"
    NONE_WITH_DEVICE = "NoneWithDevice"
    MEAN_COUNT = "MeanCount"
    DETERMINISTIC_IMPLICIT = "DeterministicImplicit"


class IOParameters(Frozen):
    """What lies around an array when it is read: DAC, ADC, noise, and how vectors are scaled into their ranges.

    Bounds, noise and resolutions are in the units of the array: inputs within `inp_bound`, weights about 1.

    Attributes:
        is_perfect: the exact product, times `out_scale`; all else is without effect.
        mv_type: passes of one product.
        inp_bound: largest DAC output; 0 or less is none.
        inp_res: DAC step as a fraction of its range, or, above 1, the number of steps; 0 or less is none.
        inp_sto_round: whether the DAC rounds stochastically.
        inp_noise: standard deviation of the noise on DAC outputs.
        inp_asymmetry: negative inputs are multiplied by 1 minus this.
        out_bound: largest ADC input; 0 or less is none.
        out_res: like `inp_res`.
        out_sto_round: like `inp_sto_round`.
        out_noise: standard deviation of the noise before the ADC.
        out_noise_std: relative spread of `out_noise` over output lines, drawn once.
        out_asymmetry: negative outputs are multiplied by 1 minus this.
        out_scale: factor of the digital result.
        noise_management: what a vector is divided by before the DAC, and its result multiplied by.
        nm_thres: largest max|x| of ABS_MAX, ABS_MAX_NP_SUM and MAX (0: none), the divisor of CONSTANT (0: 1).
        bound_management: whether a vector whose outputs clip is read again, smaller.
        max_bm_factor: no further reading after a reduction above this.
        max_bm_res: nor after one above this fraction of the DAC's steps on one side.
        bm_test_negative_bound: whether outputs at the negative bound count too.
        w_noise: strength of `w_noise_type`.
        w_noise_type: noise of the weights being read, in its effect on the output.
        ir_drop: strength of the voltage drop along the lines; 1 is physical.
        ir_drop_g_ratio: conductance of the wire between two cells over the largest of a cell.
        out_nonlinearity: s-shaped compression of outputs, at `out_bound`.
        out_nonlinearity_std: its relative spread over output lines, drawn once.
        slope_calibration: how far the mean compression is corrected, 0 to 1.
        v_offset_std: spread of voltage offsets over output lines, drawn once.
        v_offset_w_min: weight of the reference against which offsets act.
        r_series: series resistance, in units of the inverse largest current.
        w_read_asymmetry_dtod: relative spread of weights read with negative inputs, drawn once for each device.

    Raises:
        ValidationError: unknown names, or settings that do not work together.
    """

    is_perfect: bool = False
    mv_type: ProductType = ProductType.ONE_PASS
    inp_bound: float = 1.0
    inp_res: float = 1 / 126
    inp_sto_round: bool = False
    inp_noise: float = Field(0.0, ge=0)
    inp_asymmetry: float = 0.0
    out_bound: float = 12.0
    out_res: float = 1 / 510
    out_sto_round: bool = False
    out_noise: float = Field(0.06, ge=0)
    out_noise_std: float = Field(0.0, ge=0)
    out_asymmetry: float = 0.0
    out_scale: float = 1.0
    noise_management: NoiseManagement = NoiseManagement.ABS_MAX
    nm_thres: float = Field(0.0, ge=0)
    bound_management: BoundManagement = BoundManagement.ITERATIVE
    max_bm_factor: int = Field(1000, ge=1)
    max_bm_res: float = 0.25
    bm_test_negative_bound: bool = True
    w_noise: float = Field(0.0, ge=0)
    w_noise_type: WeightNoise = WeightNoise.NONE
    ir_drop: float = Field(0.0, ge=0)
    ir_drop_g_ratio: float = Field(1 / 0.35 / 5e-6, gt=0)
    out_nonlinearity: float = Field(0.0, ge=0)
    out_nonlinearity_std: float = Field(0.0, ge=0)
    slope_calibration: float = Field(0.0, ge=0)
    v_offset_std: float = Field(0.0, ge=0)
    v_offset_w_min: float = -1.0
    r_series: float = Field(0.0, ge=0)
    w_read_asymmetry_dtod: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _works_together(self) -> IOParameters:
        if self.is_perfect:
            return self
        managed = self.noise_management is not NoiseManagement.NONE
        if managed and self.inp_bound != 1:
            raise ValueError(
                f"inp_bound: got {self.inp_bound}, with noise_management {self.noise_management} allowed is 1; "
                "with 'None' any bound"
            )
        if self.w_noise > 0 and self.w_noise_type is WeightNoise.NONE:
            raise ValueError("w_noise: has no effect without a w_noise_type (AdditiveConstant or PCMRead)")
        if self.w_read_asymmetry_dtod > 0 and self.mv_type is ProductType.ONE_PASS:
            raise ValueError("w_read_asymmetry_dtod: has no effect with mv_type OnePass; use PosNegSeparate")
        return self

    @property
    def inp_step(self) -> float:
        """The DAC's least significant bit, 0 for none."""
        return step_of(self.inp_res, self.inp_bound)

    @property
    def out_step(self) -> float:
        """The ADC's least significant bit, 0 for none."""
        return step_of(self.out_res, self.out_bound)

    def quiet(self) -> IOParameters:
        """The same periphery without anything random: converters and limits stay, noise and stochastic rounding go."""
        silent = dict.fromkeys(("inp_noise", "out_noise", "out_noise_std", "w_noise"), 0.0)
        steady = {"inp_sto_round": False, "out_sto_round": False, "w_noise_type": WeightNoise.NONE}
        return self.model_copy(update={**silent, **steady})


class UpdateParameters(Frozen):
    """How an outer product is turned into pulses; see `update`.

    Attributes:
        desired_bl: largest number of pulse slots of one vector pair.
        fixed_bl: whether that number is used when the learning rate asks for more.
        pulse_type: how coincidences are made.
        res: step of pulse probabilities, or, above 1, their number of steps; 0 or less is none.
        x_res_implicit: the same for the inputs of DETERMINISTIC_IMPLICIT.
        d_res_implicit: the same for its gradients.
        sto_round: whether these round stochastically.
        update_management: whether the largest input and gradient share the range evenly.
        update_bl_management: whether a pair takes only as many slots as its update needs; implies the former.
        um_grad_scale: factor of the gradient's largest value in both.
    """

    desired_bl: int = Field(31, ge=1, le=4096)
    fixed_bl: bool = True
    pulse_type: PulseType = PulseType.STOCHASTIC_COMPRESSED
    res: float = 0.0
    x_res_implicit: float = 0.0
    d_res_implicit: float = 0.0
    sto_round: bool = False
    update_management: bool = True
    update_bl_management: bool = True
    um_grad_scale: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _works_together(self) -> UpdateParameters:
        implicit = self.x_res_implicit > 0 or self.d_res_implicit > 0
        if implicit and self.pulse_type is not PulseType.DETERMINISTIC_IMPLICIT:
            raise ValueError("x_res_implicit, d_res_implicit: have no effect without pulse_type DeterministicImplicit")
        return self


class Mapping(Frozen):
    """How matrices are put on arrays.

    Attributes:
        max_input_size: input lines of the largest array; 0 is any number.
        max_output_size: its output lines.
        weight_scaling_omega: what the largest weight of a part is scaled to when weights are set; 0 leaves them.
        weight_scaling_columnwise: whether each output line has a scale of its own.
        input_range: inputs are clipped to this and divided by it, the outputs multiplied; 0 leaves them.
    """

    max_input_size: int = Field(0, ge=0)
    max_output_size: int = Field(0, ge=0)
    weight_scaling_omega: float = Field(0.0, ge=0)
    weight_scaling_columnwise: bool = False
    input_range: float = Field(0.0, ge=0)


def step_of(res: float, bound: float = 0.5) -> float:
    """The step that a resolution means: `res` as a fraction of the range 2 `bound`, or above 1 a number of steps.

    aihwkit documents the same for `UpdateParameters.res` but does not invert numbers above 1 there, so that every
    update vanishes; here both mean what they say.

    Returns:
        The step, 0 where there is no quantisation (a resolution of 0 or less, or an infinite range).
    """
    if res <= 0 or bound <= 0:
        return 0.0
    return 2 * bound * (1 / res if res > 1 else res)


def plain(parameters: Frozen) -> dict[str, Any]:
    """Parameters as a dictionary of plain JSON values."""
    return parameters.model_dump(mode="json")
