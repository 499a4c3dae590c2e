"""The attacks of torchattacks (Kim 2020), by name, on a network that draws at random.

torchattacks asks a network for logits and takes what it gets for the truth. Here it is handed a stand-in, never the
network: a module without children that answers under the threat's draws. So it cannot leave the network in training
mode, gradients in its parameters or its batch normalisation in another state, and it does not see constants of
normalisation; every network here takes pixels from 0 to 1. The draws are the same at every question of an attack, so
that it meets a network that does not change, and no image is kept or dropped for a lucky draw.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rapa_cli.attacks.methods import Method, within
from rapa_cli.attacks.oracle import Loss
from rapa_cli.attacks.threat import Threat, View
from rapa_cli.errors import ConfigError

# What an attack's random numbers are for, beside the parts that `methods` has.
_SEED = 3

_L2 = ("CW", "PGDL2", "PGDRSL2", "DeepFool", "EADEN")
# Norms that are neither L2 nor Linf, or no attacks at all.
_REFUSED = ("VANILA", "GN", "EADL1", "SparseFool", "OnePixel", "Pixle", "JSMA", "MultiAttack", "LGV")
# They mix what they compute with their images, so that logits must have the same precision.
_SINGLE = ("FAB", "AutoAttack")
_BLACK_BOX = ("SPSA", "Square")
_SQUARES = ("Square", "AutoAttack")
_COLOURED = ("TIFGSM", "PIFGSM", "PIFGSMPP")
# Losses that compare more than two logits.
_LEAST_CLASSES = {"APGDT": 4, "AutoAttack": 4}
_EPS, _STEPS = ("eps", "max_epsilon"), ("steps", "n_queries", "num_iter_set", "max_iterations", "nb_iter")


class OfTorchattacks(Method):
    """A method by torchattacks; it asks the network for answers, whatever else it does."""

    @property
    def least_classes(self) -> int:
        """How many classes its losses compare."""
        return 2

    def check_fit(self, shape: tuple[int, ...], classes: int) -> None:
        """Raises ConfigError where it cannot attack a network with images (C, H, W) and so many classes."""
        if classes < self.least_classes:
            raise ConfigError(
                f"method: {self.name} needs {self.least_classes} classes, the network has {classes}",
                hint="take pgd or apgd-ce",
            )


@dataclass(frozen=True)
class Apgd(OfTorchattacks):
    """Auto-PGD (Croce and Hein 2020) by torchattacks, keeping the iterate of the highest loss.

    torchattacks' own choice keeps an iterate only where the prediction was wrong, and the clean image elsewhere, which
    makes a network look robust as soon as another draw is right. With both losses it is what AutoAttack's version
    `rand` does with 20 draws: of the two results the one that more of the attacker's draws get wrong, and among equals
    the one of higher cross-entropy. All images are attacked together, each with its own strength. The starting points
    come from torch's generator, seeded for them, so that an image's result depends on the others of its batch.

    Attributes:
        losses: "ce", "dlr" or both.
        draws: over how many draws the loss is averaged where the threat is fresh-draw.
    """

    losses: tuple[str, ...] = ("ce",)
    draws: int = 1

    @property
    def least_classes(self) -> int:
        """The ratio of differences of logits takes three."""
        return 3 if "dlr" in self.losses else 2

    def under(self, threat: Threat) -> Threat:
        """With several draws a fresh-draw threat is one of expectation over them."""
        return Threat("eot", self.draws) if threat.name == "fresh-draw" and self.draws > 1 else threat

    def _attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        _check_fit(self, view, x, ids)
        best, wrong, highest = x, x.new_full((len(x),), -1.0), x.new_full((len(x),), -torch.inf)
        for loss in self.losses:
            found = self._run(loss, view, x, labels, ids, eps)
            if len(self.losses) == 1:
                return found
            now, height = view.wrong(found, labels, ids), view.loss(found, labels, ids)
            better = (now > wrong) | ((now == wrong) & (height > highest))
            best = torch.where(better[:, None, None, None], found, best)
            wrong, highest = torch.where(better, now, wrong), torch.where(better, height, highest)
        return best

    def _run(self, loss: str, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        library = _torchattacks()
        with view.oracle.known(), _own_random_state(view, ids):
            stand_in = _StandIn(view, x, ids, reach=0.0, norm=self.norm)
            attack = library.APGD(stand_in, norm=self.norm, steps=self.steps, loss="dlr")
            # One for each image, which it broadcasts; and a loss that is that of the draws, not of their mean logits.
            attack.eps = _radius(eps, x, self.norm)[:, None, None, None]
            # In the images' own precision, since it is put among theirs.
            attack.dlr_loss = lambda logits, y: stand_in.loss(loss, logits, y).to(x.dtype)
            _, found = attack.perturb(x, labels, best_loss=True)
        return _kept(x, found, eps, self.norm)


@dataclass(frozen=True)
class Adapted(OfTorchattacks):
    """Any attack of torchattacks within L2 or Linf.

    Strengths: a group of images for each, as torchattacks takes one for a batch. L2 strengths become norms,
    eps sqrt(C H W). Step sizes keep the ratio to eps that torchattacks has. Attacks without a strength (CW, DeepFool)
    look for the nearest adversarial image; where that is too far it is brought back to within eps.

    Image ids follow the rows: images are attacked together where every row can belong to one image only (see
    `_StandIn`), else one after the other, which is slow, but always right. Random numbers come from torch's generator,
    seeded for the images attacked together: for these attacks an image's result depends on which those are.

    Attributes:
        attack_class: its name in torchattacks.
        given: whether the number of steps is the user's, and not the class's own.
    """

    attack_class: str = ""
    given: bool = False

    @property
    def follows_gradients(self) -> bool:
        """Some classes ask for answers alone."""
        return self.attack_class not in _BLACK_BOX

    @property
    def iterative(self) -> bool:
        """As its steps say; AutoAttack has no number of them."""
        return self.attack_class == "AutoAttack" or super().iterative

    @property
    def least_classes(self) -> int:
        """Losses with a target compare it with others."""
        return _LEAST_CLASSES.get(self.attack_class, 2)

    def check_fit(self, shape: tuple[int, ...], classes: int) -> None:
        """As for all, and colours or sizes that the class is made for."""
        super().check_fit(shape, classes)
        channels, *sides = shape
        if self.attack_class in _COLOURED and channels != 3:
            raise ConfigError(
                f"method: {self.name} needs images of 3 channels, got {channels}", hint="take pgd or apgd-ce"
            )
        if self.attack_class in _SQUARES and self.norm == "L2" and not _holds_squares(*sides):
            raise ConfigError(
                f"method: {self.name} cannot lay its squares out in images of {' x '.join(map(str, sides))}",
                hint="take square or pgd-l2",
            )

    def _attack(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: Tensor) -> Tensor:
        _check_fit(self, view, x, ids)
        found = x.clone()
        for strength in sorted(set(eps.tolist())):
            if not strength:
                continue
            (same,) = (eps == strength).nonzero(as_tuple=True)
            try:
                found[same] = self._run(view, x[same], labels[same], ids[same], strength)
            except _UnclearRowsError:
                for one in same.split(1):
                    found[one] = self._run(view, x[one], labels[one], ids[one], strength)
        return _kept(x, found, eps, self.norm)

    def _run(self, view: View, x: Tensor, labels: Tensor, ids: Tensor, eps: float) -> Tensor:
        radius = float(_radius(x.new_tensor([eps]), x, self.norm))
        parameters = _parameters(self.attack_class)
        bounded = any(name in parameters for name in _EPS)
        with view.oracle.known(), _own_random_state(view, ids) as seed:
            stand_in = _StandIn(view, x, ids, reach=radius if bounded else torch.inf, norm=self.norm)
            if self.attack_class in _SINGLE:
                stand_in.precision = x.dtype
            attack = getattr(_torchattacks(), self.attack_class)(
                stand_in, **self._arguments(parameters, radius, seed, view, x, ids)
            )
            # Some view their images as rows, which those with channels last in memory cannot be.
            found: Tensor = attack(x.clone(memory_format=torch.contiguous_format), labels.clone())
        return found.detach().to(x)

    def _arguments(
        self, parameters: dict[str, Any], radius: float, seed: int, view: View, x: Tensor, ids: Tensor
    ) -> dict[str, Any]:
        """What the class is called with, of the parameters that it has."""
        # Gradients of a sure network are small, and their length must not drown in what is added to it.
        values: dict[str, Any] = {"seed": seed, "norm": self.norm, "eot_iter": 1, "eps_for_division": 1e-38}
        for name in _EPS:
            values[name] = radius
            if parameters.get(name) and "alpha" in parameters:
                values["alpha"] = parameters["alpha"] / parameters[name] * radius
        if "n_classes" in parameters:
            values["n_classes"] = view.logits(x[:1], ids[:1]).shape[1]
        if self.given:
            values |= dict.fromkeys(_STEPS, self.steps)
        return {name: value for name, value in values.items() if name in parameters}


def adapted(name: str, steps: int | None = None) -> Method | None:
    """The method of torchattacks that has this name, or None.

    Args:
        name: a short name, as apgd-ce, or a class of torchattacks, in any case and with or without `torchattacks.`;
            with -l2 behind it in that norm, where the class has two.
        steps: in place of the method's own.

    Raises:
        ConfigError: an attack in another norm, or steps where there are none.
    """
    # A prefix stays in the name: a method of rapa's own may have the same.
    full = name.strip().lower()
    plain = full.removeprefix("torchattacks.")
    short, norm = (plain[:-3], "L2") if plain.endswith("-l2") else (plain, "Linf")
    losses = {"apgd-ce": ("ce",), "apgd": ("ce",), "apgd-dlr": ("dlr",), "autoattack-rand": ("ce", "dlr")}.get(short)
    if losses is not None:
        return Apgd(full, steps or 50, norm, losses=losses, draws=20 if short == "autoattack-rand" else 1)
    library = _torchattacks()
    found = next((known for known in library.__all__ if known.lower() == short), None)
    if found is None:
        return None
    if found in _REFUSED:
        raise ConfigError(
            f"method: torchattacks' {found} is no attack within L2 or Linf",
            hint="strengths are in these two norms; take for example pgd, apgd-ce or cw",
        )
    parameters = _parameters(found)
    if norm == "L2" and "norm" not in parameters:
        raise ConfigError(f"method: torchattacks' {found} has no norm to choose", hint=f"write {short}")
    own = next((parameters[parameter] for parameter in _STEPS if parameter in parameters), None)
    if steps is not None and own is None:
        raise ConfigError(f"method: {name} has no number of steps", hint="leave the number of steps out")
    return Adapted(full, steps or own or 1, "L2" if found in _L2 else norm, attack_class=found, given=steps is not None)


class _UnclearRowsError(Exception):
    """Which images rows stem from cannot be told for sure."""


class _StandIn(nn.Module):
    """What torchattacks gets in the place of a network.

    Rows that it asks about are the batch, a part of it or repetitions. Each takes the draw of the image it stems from:
    the nearest one. With a reach r that is certain where images are more than 2 r apart and the row is within r of one
    of them; otherwise `_UnclearRowsError` is raised, unless there is only one image.

    Args:
        view: what the attacker sees.
        x: the images attacked together, (B, C, H, W).
        ids: theirs, int64 (B,).
        reach: how far rows are from their images, in the norm; 0: rows are always the whole batch in its order.
        norm: "Linf" or "L2".

    Attributes:
        precision: of the logits given. In single precision torch's cross-entropy, which the attacks use, has gradients
            of mere rounding where a network is very sure.
    """

    def __init__(self, view: View, x: Tensor, ids: Tensor, *, reach: float, norm: str) -> None:
        super().__init__()
        # torchattacks takes its device from the first parameter.
        self.place = nn.Parameter(torch.zeros((), device=x.device), requires_grad=False)
        self._view, self._images, self._ids = view, x.flatten(1), ids
        self._draws = view.seen()
        # Rounding takes rows a little beyond.
        self._reach, self._p = reach * (1 + 1e-4) + 1e-6, torch.inf if norm == "Linf" else 2.0
        self._in_order = reach == 0 or len(x) == 1
        self._latest: list[Tensor] = []
        self.precision = torch.float64
        if not self._in_order:
            apart = _distances(self._images, self._images, self._p)
            apart.fill_diagonal_(torch.inf)
            if not float(apart.min()) > 2 * self._reach:
                raise _UnclearRowsError

    def forward(self, rows: Tensor) -> Tensor:
        """One answer (B, classes) for those under all draws."""
        ids = self._ids_of(rows.detach())
        # Some attacks can only view gradients that are contiguous; those of this detour are.
        rows = rows.to(self._images).flatten().view(rows.shape)

        def answer(x: Tensor, draw: int) -> Tensor:
            return self._view.oracle.answer(x, ids, draw)

        if len(self._draws) > 1 and rows.requires_grad and torch.is_grad_enabled():
            # The graphs of all draws at once would take as many times the memory.
            self._latest = [
                checkpoint(answer, rows, draw, use_reentrant=False, preserve_rng_state=False) for draw in self._draws
            ]
        else:
            self._latest = [answer(rows, draw) for draw in self._draws]
        return self._view.one_of(self._latest).to(self.precision)

    def loss(self, name: str, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row over the draws, (B,), for the latest answer.

        Args:
            name: "ce" or "dlr".
            logits: that answer.
            labels: int64 (B,).
        """
        of_threat = self._view.threat.loss
        if name == "dlr" and of_threat is Loss.VOTE:
            return Loss.DLR.of_draw(logits, labels)
        kind = Loss.DLR if name == "dlr" else of_threat
        return kind.together(torch.stack([kind.of_draw(each, labels) for each in self._latest]))

    def _ids_of(self, rows: Tensor) -> Tensor:
        if len(self._ids) == 1:
            return self._ids.expand(len(rows))
        if self._in_order:
            if len(rows) != len(self._ids):
                raise _UnclearRowsError
            return self._ids
        nearest, which = _distances(rows.flatten(1), self._images, self._p).min(1)
        if not float(nearest.max()) <= self._reach:
            raise _UnclearRowsError
        return self._ids[which]


def _distances(a: Tensor, b: Tensor, p: float) -> Tensor:
    # Differences, not products: near images would lose the last digits.
    return torch.cdist(a, b, p=p, compute_mode="donot_use_mm_for_euclid_dist")


@contextlib.contextmanager
def _own_random_state(view: View, ids: Tensor) -> Iterator[int]:
    """Inside the block the global generators are seeded for these images, afterwards they are as before.

    Gives the seed, for attacks that seed generators themselves; it is the same for a batch in any order.
    """
    seed = int(view.words(ids, 1, part=_SEED).sum()) % 2**31
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = torch.cuda.get_rng_state_all() if started else []
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield seed
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)


def _kept(x: Tensor, found: Tensor, eps: Tensor, norm: str) -> Tensor:
    """What was found, within the strengths; the image itself where it is no number, as DeepFool's without gradient."""
    number = found.isfinite().flatten(1).all(1)[:, None, None, None]
    return within(x, torch.where(number, found.detach(), x), eps, norm)


def _radius(eps: Tensor, x: Tensor, norm: str) -> Tensor:
    """Strengths (B,) as torchattacks has them in a norm."""
    return eps * float(x[0].numel()) ** 0.5 if norm == "L2" else eps


def _check_fit(method: OfTorchattacks, view: View, x: Tensor, ids: Tensor) -> None:
    classes = view.logits(x[:1], ids[:1]).shape[1] if method.least_classes > 2 else 2
    method.check_fit(tuple(x.shape[1:]), classes)


def _holds_squares(height: int, width: int) -> bool:
    """Whether the first squares of torchattacks' Square in L2 stay within the image: fifths, from a margin on."""
    side = height // 5
    margin = (height - 5 * side) // 2
    return side == 1 or (side > 1 and all(margin + size // side * side <= size for size in (height, width)))


def _torchattacks() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks
    return torchattacks


def _parameters(name: str) -> dict[str, Any]:
    """The parameters of a class of torchattacks, without the model, and their defaults."""
    constructor: Callable[..., Any] = getattr(_torchattacks(), name).__init__
    return {key: value.default for key, value in list(inspect.signature(constructor).parameters.items())[2:]}


def names() -> list[str]:
    """The names that `adapted` takes, without the variants in L2."""
    classes = [name.lower() for name in _torchattacks().__all__ if name not in _REFUSED]
    return ["apgd-ce", "apgd-dlr", "autoattack-rand", *classes]
