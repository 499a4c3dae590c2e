"""The methods of attack: how a perturbation is found within a strength, whatever the threat."""

from __future__ import annotations

import abc
import bisect
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rapa_cli.attacks.fgsm import perturb
from rapa_cli.attacks.threat import Threat, View
from rapa_cli.errors import ConfigError, suggestion
from rapa_cli.philox import uniform

# Parts of an attack that have random numbers of their own; 0 is noise.
_START, _SQUARES = 1, 2


@dataclass(frozen=True)
class Method(abc.ABC):
    """A way to find adversarial images.

    Strengths are on the [0, 1] scale of pixels, one for each image. For `Linf` eps is the most that a pixel may change;
    for `L2` the root mean square over all pixels, so that equal eps mean equal signal-to-noise ratios, whatever the
    norm: ||noise||₂ <= eps sqrt(C H W).

    Attributes:
        name: as the command line has it.
        steps: gradients, or questions, for each image.
        norm: "Linf" or "L2".
    """

    name: str
    steps: int = 1
    norm: str = "Linf"

    @property
    def single_gradient(self) -> bool:
        """Whether one direction serves all strengths: `direction`, and then `fgsm.perturb` for each."""
        return False

    @property
    def follows_gradients(self) -> bool:
        """Whether it asks for gradients of the network, and not for its answers alone."""
        return True

    @property
    def iterative(self) -> bool:
        """Whether it asks several times for each image."""
        return self.steps > 1

    def under(self, threat: Threat) -> Threat:
        """The threat that the method really poses where this one is asked for."""
        return threat

    def distinct_draws(self, threat: Threat) -> int:
        """Over how many draws it learns about an image in all; by default it stays with those of its first step."""
        return len(threat.draws())

    def attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        """Adversarial images (B, C, H, W) in [0, 1], within eps of the images given.

        Args:
            view: what the attacker sees.
            x: images (B, C, H, W) in [0, 1].
            labels: int64 (B,).
            ids: image ids, int64 (B,).
            eps: strengths (B,).

        Raises:
            ValueError: images that are not within [0, 1], or a wrong number of strengths.
            ConfigError: the method cannot work under this threat, or on this network.
        """
        check_images(x)
        if eps.shape != (len(x),):
            raise ValueError(f"eps: got shape {tuple(eps.shape)} for {len(x)} images, allowed is ({len(x)},)")
        return self._attack(view, x, labels, ids, eps.to(x))

    def direction(self, view: View, x: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """Signs (B, C, H, W) in {-1, 0, 1} that serve all strengths; only of methods with a single gradient."""
        raise TypeError(f"{self.name} has no single direction")

    @abc.abstractmethod
    def _attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor: ...


class Fgsm(Method):
    """The fast gradient sign method (Goodfellow et al. 2015)."""

    @property
    def single_gradient(self) -> bool:
        """One gradient serves all strengths."""
        return True

    def direction(self, view: View, x: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The sign of the gradient."""
        check_images(x)
        return _slope(view, x, labels, ids).sign()

    def _attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        return perturb(x, self.direction(view, x, labels, ids), eps)


class Noise(Method):
    """Random signs, the control: what noise as strong as FGSM's does that knows nothing."""

    @property
    def single_gradient(self) -> bool:
        """The same signs serve all strengths."""
        return True

    @property
    def follows_gradients(self) -> bool:
        """It knows nothing."""
        return False

    def under(self, threat: Threat) -> Threat:
        """Always noise."""
        return Threat("noise")

    def direction(self, view: View, x: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """Random signs."""
        check_images(x)
        return view.signs(x, ids)

    def _attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        return perturb(x, view.signs(x, ids), eps)


@dataclass(frozen=True)
class Pgd(Method):
    """Projected gradient descent (Madry et al. 2018); under eot it is EOT-PGD (Athalye et al. 2018).

    The last iterate is the result: the best by loss would be chosen by luck where each step has draws of its own.

    Attributes:
        start: whether it starts at a random point of the ball.
        draws: over how many draws gradients are averaged where the threat is fresh-draw.
        stride: length of a step in eps, times the number of steps.
    """

    start: bool = True
    draws: int = 1
    stride: float = 2.5

    def under(self, threat: Threat) -> Threat:
        """With several draws a fresh-draw threat is one of expectation over them."""
        return Threat("eot", self.draws) if threat.name == "fresh-draw" and self.draws > 1 else threat

    def distinct_draws(self, threat: Threat) -> int:
        """Where the threat has others at each step, those of all steps."""
        return len({draw for step in range(self.steps) for draw in threat.draws(step=step)})

    def _attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        adversarial = self._start(view, x, ids, eps) if self.start else x
        for step in range(self.steps):
            gradient = _slope(view, adversarial, labels, ids, step)
            moved = adversarial + _each(eps) * (self.stride / self.steps) * self._unit(gradient)
            adversarial = within(x, moved, eps, self.norm)
        return adversarial

    def _unit(self, gradient: Tensor) -> Tensor:
        """The direction of a step, whose largest entry, or root mean square, is 1."""
        if self.norm == "Linf":
            return gradient.sign()
        length = gradient.flatten(1).norm(dim=1)
        return gradient * _each(torch.where(length > 0, math.sqrt(gradient[0].numel()) / length, 0))

    def _start(self, view: View, x: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        """A random point: each pixel uniform within eps, or for L2 uniform in the ball."""
        size = x[0].numel()
        if self.norm == "Linf":
            chance = uniform(view.words(ids, size, part=_START)).to(x)
            return within(x, x + _each(eps) * (2 * chance - 1).view(x.shape), eps, self.norm)
        chance = uniform(view.words(ids, 2 * size + 1, part=_START)).to(x)
        # Box and Muller; 1 - u is never 0.
        radius, angle = (-2 * torch.log(1 - chance[:, :size])).sqrt(), 2 * torch.pi * chance[:, size:-1]
        normal = radius * torch.cos(angle)
        inside = chance[:, -1:] ** (1 / size) * math.sqrt(size)
        return within(x, x + _each(eps) * (normal / normal.norm(dim=1, keepdim=True) * inside).view(x.shape), eps, "L2")


@dataclass(frozen=True)
class Square(Method):
    """The Square attack (Andriushchenko et al. 2020): random search for squares that raise the loss, without gradients.

    The loss is that of the threat over all its draws, the same at every question, so that no square is kept for a
    lucky draw; it is also raised where the prediction is already wrong. It starts from vertical stripes, or from noise
    where that has the higher loss: it is never weaker than noise on the attacker's draws.

    Attributes:
        share: of the image that the first squares have.
    """

    share: float = 0.8

    @property
    def follows_gradients(self) -> bool:
        """Answers are all it asks for."""
        return False

    def _attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        best = perturb(x, view.signs(x, ids), eps)
        highest = view.loss(best, labels, ids)
        for question in range(1, self.steps):
            if question == 1:
                stripes = _signs(view.words(ids, channels * width, part=_SQUARES))
                tried = perturb(x, stripes.to(x).view(batch, channels, 1, width).expand_as(x), eps)
            else:
                side = min(self._side(question, height * width), height, width)
                words = view.words(ids, 2 + channels, part=_SQUARES, step=question)
                inside = (
                    _band(words[:, 0], side, height)[:, None, :, None] & _band(words[:, 1], side, width)[:, None, None]
                )
                signs = _signs(words[:, 2:]).to(x)[:, :, None, None].expand_as(x)
                tried = torch.where(inside, perturb(x, signs, eps), best)
            loss = view.loss(tried, labels, ids)
            better = loss > highest
            best, highest = torch.where(_each(better), tried, best), torch.where(better, loss, highest)
        return best

    def _side(self, question: int, pixels: int) -> int:
        """The side of a square in pixels: its share of the image is halved as the paper has it for 10,000 questions."""
        halvings = bisect.bisect_left(_HALVINGS, 10_000 * question / self.steps)
        return max(round(math.sqrt(self.share / 2**halvings * pixels)), 1)


# The questions, of 10,000, after which the squares' share of the image is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def _signs(words: Tensor) -> Tensor:
    return 2 * (words >> 31) - 1


def _band(words: Tensor, width: int, size: int) -> Tensor:
    """A band of so many places out of `size`, anywhere: bool (B, size)."""
    first = (words % (size - width + 1))[:, None]
    places = torch.arange(size, device=words.device)
    return (places >= first) & (places < first + width)


_METHODS: dict[str, Method] = {
    "fgsm": Fgsm("fgsm"),
    "noise": Noise("noise"),
    "pgd": Pgd("pgd", 20),
    "pgd-l2": Pgd("pgd-l2", 20, "L2"),
    "eotpgd": Pgd("eotpgd", 20, draws=16),
    "eotpgd-l2": Pgd("eotpgd-l2", 20, "L2", draws=16),
    "square": Square("square", 1000),
}
_OF_TORCHATTACKS = ("apgd-ce", "apgd-dlr", "apgd-ce-l2", "apgd-dlr-l2", "autoattack-rand", "cw", "deepfool")
METHODS = (*_METHODS, *_OF_TORCHATTACKS)


def method_named(name: str, steps: int | None = None) -> Method:
    """The method of a name.

    Args:
        name: one of `METHODS`; or an attack of torchattacks within L2 or Linf, by the name of its class, which
            `torchattacks.` before it tells from a method of the same name here, and -l2 behind it puts in that norm.
        steps: in place of the method's own.

    Raises:
        ConfigError: no such method, or a number of steps that it cannot have.
    """
    if steps is not None and steps < 1:
        raise ConfigError(f"steps: got {steps}, allowed are whole numbers from 1", hint="for example 20")
    method = _METHODS.get(name.strip().lower())
    if method is None:
        from rapa_cli.attacks.torchattacks_adapter import adapted, names

        found = adapted(name, steps)
        if found is None:
            raise ConfigError(f"method: there is no '{name}'", hint=suggestion(name.lower(), {*METHODS, *names()}))
        return found
    if steps is None:
        return method
    if method.single_gradient:
        raise ConfigError(f"method: {method.name} has no number of steps", hint="leave the number of steps out")
    return replace(method, steps=steps)


def within(x: Tensor, moved: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Brings images back to within eps of x and to [0, 1].

    Args:
        x: images (B, C, H, W).
        moved: likewise.
        eps: strengths (B,), as `Method` has them.
        norm: "Linf" or "L2".
    """
    change = moved - x
    if norm == "Linf":
        return (x + torch.maximum(torch.minimum(change, _each(eps)), -_each(eps))).clamp(0, 1)
    length = change.flatten(1).norm(dim=1)
    most = eps * math.sqrt(x[0].numel())
    scale = torch.where(length > most, most / length, 1)
    return (x + _each(scale) * change).clamp(0, 1)


def check_images(x: Tensor) -> None:
    """Raises ValueError unless these are images (B, C, H, W) with all pixels in [0, 1]."""
    if x.ndim != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, allowed is (B, C, H, W)")
    if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ValueError(f"x: got pixels from {float(x.min()):g} to {float(x.max()):g}, allowed are 0 to 1")


def _slope(view: View, x: Tensor, labels: Tensor, ids: Tensor, step: int = 0) -> Tensor:
    """The gradient (B, C, H, W), for methods that follow it.

    Raises:
        ConfigError: it is not finite: no step would be taken, and images would look robust.
    """
    gradient = view.gradient(x, labels, ids, step)[1]
    broken = (~gradient.isfinite()).flatten(1).any(1)
    if broken.any():
        raise ConfigError(
            f"gradient: not finite at image {int(ids[broken][0])}, so that no attack can follow it",
            hint="look for a division by 0 or the root of 0 in the network; square needs no gradients",
        )
    return gradient


def _each(values: Tensor) -> Tensor:
    """One value for each image, (B,), as it meets images: (B, 1, 1, 1)."""
    return values[:, None, None, None]
