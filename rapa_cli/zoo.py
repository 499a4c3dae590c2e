"""The zoo: trained networks that come with the package, each with a card of what was measured.

A folder `models/zoo/NAME` holds the checkpoint `NAME.safetensors` and the card `card.toml`. Where a command takes a
checkpoint it also takes NAME.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from rapa_cli import config, resources
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.philox import MAX_SEED

CARD = "card.toml"

Percent = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class Card(config.Frozen):
    """What is known of a network of the zoo: how it was trained, and how good it is.

    Errors and accuracies are in percent, over all test images of its data.

    Attributes:
        description: one sentence.
        network: name of its definition.
        scheme: the tiling scheme.
        tiles: of each convolution.
        data: the data set it was trained on and is measured with.
        data_licence: under which its images are given.
        recipe: how it was trained, with what was changed in it.
        seed: of the training.
        epochs: of the training.
        test_error: of one draw, after the last epoch.
        test_error_ci95: its 95 % interval, from the number of test images.
        vote5_error: of the vote of 5 draws; only one that draws has it.
        reduced_error: of its reduction by norm; only one with several tiles has it.
        accuracy_33db: under FGSM noise of 33 dB, over the images that are right without noise.
        seconds: that the training took.
        machine: that it took them on.
        rapa_version: that trained it.
        torch_version: likewise.
        date: of the training.
        command: that trains it again.
    """

    description: Text
    network: Text
    scheme: config.SchemeName
    tiles: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    data: Text
    data_licence: Text
    recipe: Text
    seed: int = Field(ge=0, le=MAX_SEED)
    epochs: int = Field(ge=1)
    test_error: Percent
    test_error_ci95: tuple[Percent, Percent]
    vote5_error: Percent | None = None
    reduced_error: Percent | None = None
    accuracy_33db: Percent
    seconds: float = Field(gt=0)
    machine: Text
    rapa_version: Text
    torch_version: Text
    date: datetime.date
    command: Text

    @model_validator(mode="after")
    def _check(self) -> Card:
        low, high = self.test_error_ci95
        if not low <= self.test_error <= high:
            raise ValueError(f"test_error {self.test_error:g} lies outside of its interval {low:g} to {high:g}")
        if self.scheme != "none" and (self.vote5_error is None or self.reduced_error is None):
            raise ValueError("vote5_error and reduced_error must be there, since it has several tiles")
        if not self.command.startswith("rapa train "):
            raise ValueError("command must begin with 'rapa train'")
        return self


def card(name: str) -> Card:
    """Reads the card of a network of the zoo.

    Raises:
        FileError: there is no such network, or its card is missing or damaged.
    """
    checkpoint = resources.in_zoo(name)
    if checkpoint is None:
        known = resources.zoo_names()
        hint = f"known: {', '.join(known)}" if known else "there is none in this installation"
        raise FileError(f"there is no network '{name}' in the zoo", hint=hint)
    return read_card(checkpoint.with_name(CARD))


def read_card(path: Path) -> Card:
    """Reads a card.

    Raises:
        FileError: it is missing or damaged; all errors are named.
    """
    try:
        return config.validate(Card, config.read_toml(path), str(path))
    except ConfigError as error:
        raise FileError(error.message, hint=error.hint or "install the package anew") from None
