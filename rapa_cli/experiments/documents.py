"""What experiments read of the documents that jobs print; what a job has left is checked against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator


class _Training(BaseModel):
    test_error: float
    best_test_error: float
    train_error: float
    test_errors: list[float]
    vote_errors: list[float] | None = None
    test_images: int = Field(ge=1)


class _Vote(BaseModel):
    single_error: float
    vote_error: float
    gain_se: float


class _Reduction(BaseModel):
    test_error_after: float | None
    images: int = Field(ge=1)


class _Asked(BaseModel):
    snr_db: float


class _Point(BaseModel):
    asked: _Asked
    snr_db: float | None
    # None where no image was right without noise.
    accuracy: float | None
    ci95: tuple[float | None, float | None]
    gap_closed: float | None = None
    gap_closed_ci95: tuple[float | None, float | None] = (None, None)

    @model_validator(mode="after")
    def _check_interval(self) -> _Point:
        if self.gap_closed is not None and "gap_closed_ci95" not in self.model_fields_set:
            raise ValueError("gap_closed has no interval")
        return self


class _Attack(BaseModel):
    points: list[_Point] = Field(min_length=1)


class _Confidence(BaseModel):
    snr_db: float | None
    mean: float
    over_90: float
    mean_wrong: float | None
    se_wrong: float | None
    histogram: list[int] = Field(min_length=1)


class _Evaluation(BaseModel):
    confidence: list[_Confidence] = Field(min_length=2)


class _Layer(BaseModel):
    similarity: float | None


class _Inspection(BaseModel):
    layers: list[_Layer] = Field(min_length=2)


class _Row(BaseModel):
    tiles: int
    training: str
    regularizer: list[float]
    approximation: list[float]
    variance: list[float]
    train_loss: list[float]
    test_error: list[float]
    gap: list[float]


class _Regularizer(BaseModel):
    data: str
    classes: list[str]
    images: int
    rows: list[_Row] = Field(min_length=1)


_OF: Mapping[str, type[BaseModel]] = {
    "train": _Training,
    "vote": _Vote,
    "reduce": _Reduction,
    "attack": _Attack,
    "evaluate": _Evaluation,
    "inspect": _Inspection,
    "regularizer": _Regularizer,
}


def check(command: str, document: Any) -> dict[str, Any]:
    """The document of a command, if it holds what experiments read of it.

    Raises:
        ValueError: it does not; the message names the first key.
    """
    if not isinstance(document, dict):
        raise ValueError("there is no document in it")
    if command in _OF:
        try:
            _OF[command].model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
    return document
