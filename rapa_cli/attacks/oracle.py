"""What attacks ask of a network: logits and gradients under numbered draws, without a trace left in it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.analog.module import exact_gradients, noiseless
from rapa_cli.analysis.evaluation import evaluating
from rapa_cli.keyed import draws


class Loss(Enum):
    """What an attack raises, from the logits of one draw or of several.

    Of several draws `CROSS_ENTROPY` and `DLR` are means over the draws (expectation over transformation, Athalye et
    al. 2018); `VOTE` is the cross-entropy of the mean of the draws' softmax.
    """

    CROSS_ENTROPY = "cross-entropy"
    VOTE = "vote"
    DLR = "dlr"

    def of_draw(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image under one draw, (B,), from logits (B, classes) and labels (B,)."""
        if self is Loss.DLR:
            return difference_of_logits_ratio(logits, labels)
        return cross_entropy(logits, labels)

    def together(self, losses: Tensor) -> Tensor:
        """The loss of each image, (B,), from those under each draw, (K, B)."""
        if self is Loss.VOTE:
            wrong = -torch.expm1(-losses).mean(0)
            # Each way loses the digits that the other one keeps.
            return torch.where(wrong < 0.5, -torch.log1p(-wrong), math.log(len(losses)) - torch.logsumexp(-losses, 0))
        return losses.mean(0)

    def weights(self, losses: Tensor) -> Tensor:
        """What each draw's gradient counts in that of the whole, (K, B), summing to 1 over the draws."""
        if self is Loss.VOTE:
            return torch.softmax(-losses, 0)
        return torch.full_like(losses, 1 / len(losses))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax of the label, (B,), as log(1 + sum exp(z_k - z_y)) over the other classes k.

    torch's own takes 1 - p from p. For logits about 16 apart that leaves nothing but rounding, so that the gradients
    of a very sure network point anywhere, and it looks robust. These keep all their digits until logits are 87 apart.

    Args:
        logits: (B, classes).
        labels: int64 (B,).
    """
    own = logits.gather(1, labels[:, None])
    others = (logits - own).scatter(1, labels[:, None], -torch.inf)
    return F.softplus(others.logsumexp(1))


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """-(z_y - max of the others) / (largest - third largest logit), (B,) (Croce and Hein 2020).

    It does not change when logits are shifted or scaled, as a very sure network has them; at least 3 classes.
    """
    ordered = logits.sort(1).values
    own = logits.gather(1, labels[:, None])[:, 0]
    right = ordered[:, -1] == own
    other = torch.where(right, ordered[:, -2], ordered[:, -1])
    return (other - own) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


class Oracle:
    """A network as attacks see it.

    Every answer is that of evaluation mode and of a numbered draw on the stream "attack". Gradients are those of
    someone who knows the arrays: without the noise of reading, and through the plain product. Parameters (and the
    pulses that wait for arrays), their gradients and `requires_grad`, modes and buffers stay as they are.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        seed: of all draws, in [0, 2^32).
    """

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        self.model, self.seed = model, seed

    def logits(self, x: Tensor, ids: Tensor, draw: int, *, noise: bool = True) -> Tensor:
        """What the network answers, (B, classes), without a graph.

        Args:
            x: images (B, C, H, W) in [0, 1].
            ids: their ids, int64 (B,).
            draw: the number of the draw.
            noise: whether readings of arrays have noise.
        """
        quiet = contextlib.nullcontext() if noise else noiseless(self.model)
        with torch.no_grad(), evaluating(self.model), quiet, self._draw(ids, draw):
            return self._call(x)

    def loss(
        self, x: Tensor, labels: Tensor, ids: Tensor, draws: Sequence[int], *, loss: Loss = Loss.CROSS_ENTROPY
    ) -> Tensor:
        """The loss of each image over the draws, (B,), without noise and without a graph."""
        return loss.together(
            torch.stack([loss.of_draw(self.logits(x, ids, draw, noise=False), labels) for draw in draws])
        )

    def gradient(
        self, x: Tensor, labels: Tensor, ids: Tensor, draws: Sequence[int], *, loss: Loss = Loss.CROSS_ENTROPY
    ) -> tuple[Tensor, Tensor]:
        """The loss of each image over the draws, and its gradient.

        Memory is that of one draw, whatever their number.

        Args:
            x: images (B, C, H, W) in [0, 1].
            labels: int64 (B,).
            ids: image ids, int64 (B,).
            draws: the numbers of the draws, at least one.
            loss: what is differentiated.

        Returns:
            The loss (B,), and its gradient with respect to x, (B, C, H, W); 0 where x does not reach the logits, not
            finite where the network's own backward pass is not.
        """
        losses, gradients = [], []
        with self.known():
            for draw in draws:
                point = x.detach().clone().requires_grad_()
                each = loss.of_draw(self.answer(point, ids, draw), labels)
                losses.append(each.detach())
                gradients.append(_slope(each, point))
        each_draw = torch.stack(losses)
        if len(gradients) == 1:
            return loss.together(each_draw), gradients[0]
        weights = loss.weights(each_draw)[..., None, None, None]
        return loss.together(each_draw), (weights * torch.stack(gradients)).sum(0)

    @contextlib.contextmanager
    def known(self) -> Iterator[None]:
        """Inside the block gradients are taken as by someone who knows the arrays, and no parameter takes part."""
        parameters = list(self.model.parameters())
        wanted = [parameter.requires_grad for parameter in parameters]
        with evaluating(self.model), noiseless(self.model), exact_gradients(self.model), torch.enable_grad():
            try:
                # Also for arrays: pulses that wait for the next step are dropped by a backward pass of others.
                for parameter in parameters:
                    parameter.requires_grad_(False)
                yield
            finally:
                for parameter, before in zip(parameters, wanted, strict=True):
                    parameter.requires_grad_(before)

    def answer(self, x: Tensor, ids: Tensor, draw: int) -> Tensor:
        """Logits (B, classes) with their graph to x; inside `known`."""
        with self._draw(ids, draw):
            return self._call(x)

    def _draw(self, ids: Tensor, draw: int) -> contextlib.AbstractContextManager[None]:
        return draws(self.model, images=ids, seed=self.seed, draw=draw, stream="attack")

    def _call(self, x: Tensor) -> Tensor:
        call: Callable[[Tensor], Tensor] = self.model
        return call(x)


def _slope(losses: Tensor, point: Tensor) -> Tensor:
    if not losses.requires_grad:
        return torch.zeros_like(point)
    (found,) = torch.autograd.grad(losses.sum(), point, allow_unused=True)
    return torch.zeros_like(point) if found is None else found


def without_gradient(gradient: Tensor) -> Tensor:
    """Which images have a gradient of 0 everywhere, or one that is not finite everywhere, bool (B,).

    They look robust against methods that follow gradients, but may only be hidden from them.
    """
    each = gradient.flatten(1)
    return (each == 0).all(1) | ~each.isfinite().all(1)
