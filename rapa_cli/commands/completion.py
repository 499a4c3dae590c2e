"""What shells offer for names: of runs, networks, data sets, schemes and the like.

A shell asks at every press of a key, in a process of its own: nothing here loads torch, and what only modules that need
it know is written down once more. A test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from glob import escape, glob
from pathlib import Path

import typer

from rapa_cli import resources
from rapa_cli.attacks.levels import SPACES
from rapa_cli.errors import RapaError

MANIFEST = "run.json"
SCHEMES = ("none", "random", "random-fixed", "image-overlap", "image-pad", "alternate", "perforated")
POOLS = ("max", "average", "mixed", "stochastic")
DATA = ("shapes", "cifar10", "cifar100", "svhn")
EXPERIMENTS = ("table1", "table2", "figure2", "figure3", "figure4", "large", "tiles", "learning-speed", "regularizer")
WAYS = ("norm", "winner", "mean", "first")
FORMS = ("onnx", "torch-export", "state-dict", "aihwkit")
KINDS = ("network", "recipe", "arrays")
SPLITS = ("train", "test")
METHODS = (
    *("fgsm", "noise", "pgd", "pgd-l2", "eotpgd", "eotpgd-l2", "square"),
    *("apgd-ce", "apgd-dlr", "apgd-ce-l2", "apgd-dlr-l2", "autoattack-rand", "cw", "deepfool"),
)
THREATS = ("same-draw", "fresh-draw", "eot", "vote-aware", "transfer", "noise")
_CELLS = ("ReRamES", "ReRamSB", "Capacitor", "EcRam", "EcRamMO", "Idealized")
PRESETS = (
    *_CELLS,
    *("GokmenVlasov", "PCM"),
    *(f"MixedPrecision{cell}" for cell in (*_CELLS, "GokmenVlasov", "PCM")),
    *(f"{algorithm}{cell}" for algorithm in ("TikiTaka", "TTv2") for cell in _CELLS),
    *(f"{cell}{count}" for count in (2, 4) for cell in _CELLS),
    *("Inference", "StandardHWATraining"),
)

Completer = Callable[[str], list[str]]


def _offering(known: Callable[[], Iterable[str]]) -> Completer:
    """What completes one of some names."""

    def complete(incomplete: str) -> list[str]:
        return _beginning(incomplete, known)

    return complete


def _listing(known: Callable[[], Iterable[str]]) -> Completer:
    """What completes the last of several names with commas between them."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [f"{before}{comma}{name}" for name in _beginning(last, known) if name not in given]

    return complete


def _beginning(incomplete: str, known: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return sorted(name for name in known() if name.startswith(incomplete))
    except (OSError, RapaError):
        # A folder that cannot be read holds nothing to offer, and nothing may be said in the middle of a line.
        return []


def runs(incomplete: str) -> list[str]:
    """Run folders: those below the current folder and ./runs, and below the folder that is being written."""
    written = incomplete[: incomplete.rfind("/") + 1]
    suffix = f"/{MANIFEST}"
    found = {
        path.removesuffix(suffix)
        for place in {"", "runs/", written}
        for path in glob(f"{escape(place)}*{suffix}")  # noqa: PTH207 - as it is typed
    }
    return _beginning(incomplete, lambda: found)


def checkpoints(incomplete: str) -> list[str]:
    """What stands for a checkpoint: run folders, and names of the zoo."""
    return [*runs(incomplete), *_zoo(incomplete)]


def planned(incomplete: str) -> list[str]:
    """What `rapa plan` takes: definitions, and what stands for a checkpoint."""
    return [*networks(incomplete), *checkpoints(incomplete)]


def inspected(incomplete: str) -> list[str]:
    """What `rapa inspect` takes: what stands for a checkpoint, and array presets."""
    return [*checkpoints(incomplete), *presets(incomplete)]


def sources(incomplete: str) -> list[str]:
    """What `rapa attack --source` takes."""
    return [*_beginning(incomplete, lambda: ("reduced",)), *checkpoints(incomplete)]


def models(incomplete: str) -> list[str]:
    """Networks that come with the package."""
    return [*networks(incomplete), *_zoo(incomplete)]


def _stored(folder: Path | None) -> set[str]:
    from rapa_cli.data.places import data_dir

    home = data_dir(folder)
    return {path.name for path in home.iterdir() if path.is_dir() and any(path.glob("*.safetensors"))}


def data(context: typer.Context, incomplete: str) -> list[str]:
    """Data sets: those that the program knows, and those in the store."""
    folder = context.params.get("data_dir")
    here = _beginning(incomplete, lambda: _stored(folder))
    return sorted({*here, *_beginning(incomplete, lambda: DATA)})


_zoo = _offering(resources.zoo_names)
networks = _offering(lambda: resources.names("networks"))
recipes = _offering(lambda: resources.names("recipes"))
recipes_or_paper = _offering(lambda: ["paper", *resources.names("recipes")])
schemes = _offering(lambda: SCHEMES)
scheme_list = _listing(lambda: SCHEMES)
pools = _offering(lambda: POOLS)
pool_list = _listing(lambda: POOLS)
data_list = _listing(lambda: DATA)
presets = _offering(lambda: PRESETS)
arrays = _offering(lambda: ("ideal", *PRESETS))
experiments = _offering(lambda: (*EXPERIMENTS, "all"))
ways = _offering(lambda: WAYS)
forms = _offering(lambda: FORMS)
method_list = _listing(lambda: METHODS)
threats = _offering(lambda: THREATS)
spaces = _offering(lambda: SPACES)
kinds = _offering(lambda: KINDS)
splits = _offering(lambda: SPLITS)
devices = _offering(lambda: ("auto", "cpu", "cuda", "mps"))
scalings = _offering(lambda: ("none", "sqrt", "linear"))
