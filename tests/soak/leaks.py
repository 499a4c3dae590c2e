"""Mistakes put in on purpose: programs that keep what they need no more, for the checks of memory to notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from torch import Tensor

from rapa_cli.analysis import voting
from rapa_cli.attacks.evaluation import Evaluation
from rapa_cli.training.loop import Training

_kept: list[Tensor] = []


def batches() -> None:
    """A training keeps the bytes of each batch."""
    gradients = Training._gradients

    def keeping(training: Training, ids: Tensor, images: Tensor, device: Any) -> Any:
        _kept.append(images.clone())
        return gradients(training, ids, images, device)

    patch.object(Training, "_gradients", keeping).start()


def draws() -> None:
    """A vote keeps the probabilities of each draw."""
    polled = voting._polled

    def keeping(*arguments: Any) -> Iterator[Any]:
        for ballots in polled(*arguments):
            _kept.append(ballots.probability.float())
            yield ballots

    patch.object(voting, "_polled", keeping).start()


def adversarial() -> None:
    """An attack keeps the images that it has changed, those of one level."""
    perturbed = Evaluation._perturbed

    def keeping(*arguments: Any) -> Any:
        found = perturbed(*arguments)
        evaluation, level = arguments[0], arguments[6]
        if level == evaluation._settings.levels[0]:
            _kept.append(found.images.clone())
        return found

    patch.object(Evaluation, "_perturbed", keeping).start()
