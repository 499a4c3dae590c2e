"""The methods of attack: how a perturbation is found within a strength, whatever the threat."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

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

    def under(self, threat: Threat) -> Threat:
        """The threat that the method really poses where this one is asked for."""
        return threat

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
        return view.gradient(x, labels, ids)[1].sign()

    def _attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        return perturb(x, self.direction(view, x, labels, ids), eps)


class Noise(Method):
    """Random signs, the control: what noise as strong as FGSM's does that knows nothing."""

    @property
    def single_gradient(self) -> bool:
        """The same signs serve all strengths."""
        return True

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

    def _attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        adversarial = self._start(view, x, ids, eps) if self.start else x
        for step in range(self.steps):
            _, gradient = view.gradient(adversarial, labels, ids, step)
            moved = adversarial + _each(eps) * (self.stride / self.steps) * self._unit(gradient)
            adversarial = within(x, moved, eps, self.norm)
        return adversarial

    def _unit(self, gradient: Tensor) -> Tensor:
        """The direction of a step, whose largest entry, or root mean square, is 1."""
        if self.norm == "Linf":
            return gradient.sign()
        length = gradient.flatten(1).norm(dim=1)
        return gradient * _each(math.sqrt(gradient[0].numel()) / length.clamp(min=torch.finfo(length.dtype).tiny))

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


_METHODS: dict[str, Method] = {
    "fgsm": Fgsm("fgsm"),
    "noise": Noise("noise"),
    "pgd": Pgd("pgd", 20),
    "pgd-l2": Pgd("pgd-l2", 20, "L2"),
    "eotpgd": Pgd("eotpgd", 20, draws=16),
    "eotpgd-l2": Pgd("eotpgd-l2", 20, "L2", draws=16),
}


def method_named(name: str, steps: int | None = None) -> Method:
    """The method of a name.

    Args:
        name: fgsm, pgd, pgd-l2, eotpgd, eotpgd-l2, noise.
        steps: in place of the method's own.

    Raises:
        ConfigError: no such method, or a wrong number of steps.
    """
    method = _METHODS.get(name.strip().lower())
    if method is None:
        raise ConfigError(f"method: there is no '{name}'", hint=suggestion(name, _METHODS))
    return method


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


def _each(values: Tensor) -> Tensor:
    """One value for each image, (B,), as it meets images: (B, 1, 1, 1)."""
    return values[:, None, None, None]
