"""How sure a network is: its highest probability, without noise and under FGSM (paper, section 4).

The paper argues that random tiling keeps predictions from being made with high confidence, most of all wrong ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapa_cli.analysis.evaluation import batches
from rapa_cli.attacks.fgsm import perturb
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.snr import eps_for_snr
from rapa_cli.attacks.threat import attackers_draw, scoring_draw
from rapa_cli.data.stream import Images

# Bins of the distribution, each a twentieth wide.
BINS = 20


@dataclass(frozen=True)
class Confidence:
    """The highest probability of each image in one draw.

    Attributes:
        snr_db: of the attack; None without noise.
        highest: float64 (N,), in [1 / classes, 1].
        right: bool (N,), whether it is that of the label.
    """

    snr_db: float | None
    highest: Tensor
    right: Tensor

    @property
    def mean(self) -> float:
        """Mean, percent."""
        return 100 * float(self.highest.mean())

    @property
    def over_90(self) -> float:
        """Images with a probability above 0.9, percent."""
        return 100 * float((self.highest > 0.9).double().mean())

    @property
    def mean_wrong(self) -> float | None:
        """Mean over the images that are classified wrongly, percent; None where there are none."""
        wrong = self.highest[~self.right]
        return 100 * float(wrong.mean()) if len(wrong) else None

    @property
    def se_wrong(self) -> float | None:
        """Standard error of that; None for less than two images."""
        wrong = self.highest[~self.right]
        return 100 * float(wrong.std()) / math.sqrt(len(wrong)) if len(wrong) > 1 else None

    @property
    def histogram(self) -> list[int]:
        """Images in each twentieth of [0, 1]; 1 itself is in the last."""
        places = (self.highest * BINS).long().clamp(max=BINS - 1)
        return torch.bincount(places, minlength=BINS).tolist()


def confidence(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    snr_db: Sequence[float] = (),
    *,
    seed: int = 0,
    batch_size: int = 200,
    on_batch: Callable[[int], None] | None = None,
) -> list[Confidence]:
    """The highest probability of each image, without noise and under FGSM with a gradient on another draw.

    Args:
        model: takes (B, C, H, W) in [0, 1]; it is as before afterwards.
        images: uint8 (N, C, H, W); their ids are their places in the split.
        labels: int64 (N,).
        snr_db: strengths, as signal-to-noise ratios of raw pixels.
        seed: of the draws.
        batch_size: changes the result in the last bits only.
        on_batch: called with the number of images after each batch.

    Returns:
        Without noise first, then one for each strength.
    """
    oracle, device = Oracle(model, seed), next(model.parameters()).device
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(1 + len(snr_db))]
    for ids, x, y in batches(images, labels, batch_size, device):
        seen = [x]
        if snr_db:
            sign = oracle.gradient(x, y, ids, (attackers_draw(0),))[1].sign()
            seen += [perturb(x, sign, eps_for_snr(x, ratio)) for ratio in snr_db]
        for each, these in zip(seen, found, strict=True):
            highest, predicted = oracle.logits(each, ids, scoring_draw(0)).double().softmax(1).max(1)
            these.append((highest.cpu(), (predicted == y).cpu()))
        if on_batch:
            on_batch(len(x))
    return [
        Confidence(ratio, *(torch.cat(column) for column in zip(*these, strict=True)))
        for ratio, these in zip((None, *snr_db), found, strict=True)
    ]
