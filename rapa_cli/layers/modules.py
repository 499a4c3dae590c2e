"""Networks written in Python: those of torchvision, and those in a file of the user's.

A definition, and with it a checkpoint, holds only a name, and the digest of a file. The file's code is run where the
caller hands that very file over as `code`, and never because a checkpoint names it.
"""

from __future__ import annotations

import functools
import inspect
import json
import shlex
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from rapa_cli import tensors
from rapa_cli.config import Module, digest, read_code
from rapa_cli.errors import ConfigError, FileError, suggestion
from rapa_cli.tiling.tracing import Trace, trace

# With further outputs in training, which no loss here knows; they can be left out.
_WITH_AUXILIARIES = ("googlenet", "inception_v3")


def make(module: Module, classes: int, code: Sequence[Path] = (), *, weightless: bool = False) -> nn.Module:
    """Makes a network; weights are drawn from torch's global generator.

    Args:
        module: which one.
        classes: its outputs.
        code: Python files whose code may be run.
        weightless: whether a network of torchvision is made on the device "meta", without memory for weights.

    Raises:
        ConfigError: there is no such network, its code may not be run, or fails, or gives something else.
        FileError: its file is missing, or another one than that which is meant.
    """
    if module.file is None:
        return _of_torchvision(module.name, classes, weightless=weightless)
    network = _guarded(module, lambda: _called(written_in(module, code), classes))
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{module.file}: {module.name} gives {type(network).__name__}, not a network",
            hint="it is a class derived from torch.nn.Module, or a function that returns one",
        )
    for name, parameter in (*network.named_parameters(), *network.named_buffers()):
        if isinstance(parameter, UninitializedParameter | nn.UninitializedBuffer):
            raise ConfigError(
                f"{module.file}: '{name}' of {module.name} has no size yet", hint="write sizes out, without lazy layers"
            )
    odd = [name for name, value in network.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise ConfigError(
            f"{module.file}: the state of {module.name} has '{odd[0]}', which is no tensor",
            hint="keep what a checkpoint is to hold in parameters and buffers",
        )
    return network


def written_in(module: Module, code: Sequence[Path]) -> Callable[..., Any]:
    """The class or function of a network that is written in a Python file; runs the file, once in a process.

    Raises:
        ConfigError: the file was not handed over, or running it fails, or there is nothing of that name in it.
        FileError: it is missing, or another one than that which is meant.
    """
    if not code:
        raise ConfigError(
            f"network '{module.name}' is written in {module.file}, whose code is not run unasked",
            hint=f"name the file, if you trust it: --code {module.file}; its run folder holds a copy",
        )
    contents = {path: read_code(path) for path in code}
    found = next((path for path, content in contents.items() if digest(content) == module.sha256), None)
    if found is None:
        raise FileError(
            f"{', '.join(map(str, code))}: not the {module.file} that network '{module.name}' was made with, whose "
            f"SHA-256 is {module.sha256}",
            hint="was it changed? The run folder holds a copy of the file as it was",
        )
    name = f"rapa_network_{module.sha256}"
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__file__ = str(found)
        try:
            # The bytes whose digest was taken, whatever the file holds by now.
            _guarded(module, lambda: exec(compile(contents[found], str(found), "exec"), sys.modules[name].__dict__))
        except BaseException:
            del sys.modules[name]
            raise
    known = {key: value for key, value in vars(sys.modules[name]).items() if callable(value)}
    if module.name not in known:
        own = [key for key, value in known.items() if getattr(value, "__module__", None) == name]
        raise ConfigError(f"{found}: there is no '{module.name}' in it", hint=suggestion(module.name, own or known))
    return known[module.name]  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=16)
def traced(module: Module, shape: tuple[int, int, int], classes: int, code: tuple[Path, ...] = ()) -> Trace:
    """The convolutions of a network, in the order in which they compute for an image of a shape (C, H, W).

    Raises:
        ConfigError: it cannot take such an image, or gives something else than a number for each class.
    """
    with torch.random.fork_rng(devices=[]):
        network = make(module, classes, code, weightless=True)
    try:
        found = trace(network, shape, (nn.Conv2d,))
    except ConfigError as error:
        which = f"network '{module.name}' of {module.file or 'torchvision'}"
        raise ConfigError(error.message.replace("the network", which, 1), hint=error.hint) from error
    if found.out != (classes,):
        got = "no tensor" if found.out is None else f"a tensor of shape {found.out}"
        raise ConfigError(
            f"network '{module.name}' gives {got} for an image, not a number for each of {classes} classes",
            hint="let its last layer have as many outputs as it is told by num_classes",
        )
    return found


def load_weights(path: Path) -> Mapping[str, Tensor]:
    """Reads the weights of a network from a safetensors file.

    Raises:
        FileError: it is missing, damaged, no such file, or holds numbers that are not finite.
    """
    if not path.is_file():
        raise FileError(f"there is no file of weights {path}", hint="nothing is downloaded; name a file of yours")
    try:
        weights = tensors.read(path)[0]
    except (OSError, ValueError) as error:
        # Quoted for Python and for the shell, since the name may be a stranger's too.
        names = [json.dumps(name, ensure_ascii=False) for name in (path.name, f"{path.stem}.safetensors")]
        convert = (
            "from safetensors.torch import save_file; import torch; "
            f"save_file(torch.load({names[0]}, weights_only=True), {names[1]})"
        )
        reason = " ".join(str(error).split())[:100]
        raise FileError(
            f"cannot read the weights {path}: it is no safetensors file ({reason})",
            hint=f"a state dictionary of torch becomes one by: python -c {shlex.quote(convert)}",
        ) from None
    for name, values in weights.items():
        if not bool(values.isfinite().all()):
            raise FileError(
                f"the weights {path} cannot be used: '{name}' holds numbers that are not finite",
                hint="did the training diverge that they come from?",
            )
    return weights


def take(network: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Gives a network the weights of a file; its last layer stays as it is where that has other classes.

    Args:
        network: it is changed.
        weights: by the names of its state.

    Returns:
        The names of what stays as it is.

    Raises:
        FileError: the weights are those of another network.
    """
    own = network.state_dict()
    # Counts of batches are of no use here, and older files have none.
    counts = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in weights and name not in counts]
    unknown = [name for name in weights if name not in own]
    other = tuple(name for name in own if name in weights and weights[name].shape != own[name].shape)
    hint = "were they saved from the state dictionary of this very network?"
    for names, what in ((missing, "are not in the file"), (unknown, "do not belong to the network")):
        if names:
            raise FileError(f"the weights do not fit: {len(names)}, such as '{names[0]}', {what}", hint=hint)
    if len({name.rpartition(".")[0] for name in other}) > 1:
        shapes = f"{tuple(weights[other[0]].shape)} in the file and {tuple(own[other[0]].shape)} in the network"
        raise FileError(f"the weights do not fit: '{other[0]}' has the shape {shapes}", hint=hint)
    network.load_state_dict({**own, **{name: value for name, value in weights.items() if name not in other}})
    return other


def _of_torchvision(name: str, classes: int, *, weightless: bool) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        hint = suggestion(name, known)
        raise ConfigError(
            f"torchvision has no classification network '{name}'",
            hint=hint if len(hint) < 100 else "torchvision.models.list_models() lists all",
        )
    settings: dict[str, Any] = {"aux_logits": False} if name in _WITH_AUXILIARIES else {}
    with warnings.catch_warnings():
        # Some announce how their weights will be drawn.
        warnings.simplefilter("ignore")
        if not weightless:
            return models.get_model(name, weights=None, num_classes=classes, **settings)  # type: ignore[no-any-return]
        with _WeightsOnMeta():
            return models.get_model(name, weights=None, num_classes=classes, **settings).to("meta")  # type: ignore[no-any-return]


class _WeightsOnMeta(TorchFunctionMode):
    """Layers made under it have no memory for weights; numbers that a network computes its sizes from stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _called(found: Callable[..., Any], classes: int) -> Any:
    """Calls a class or function, with the number of classes where it takes one as torchvision's do."""
    parameters = inspect.signature(found).parameters.values()
    takes = any(one.name == "num_classes" or one.kind is one.VAR_KEYWORD for one in parameters)
    return found(num_classes=classes) if takes else found()


def _guarded(module: Module, action: Callable[[], Any]) -> Any:
    """Does what the user's code does; its errors become one line."""
    try:
        return action()
    except (ConfigError, FileError):
        raise
    except Exception as error:
        raise ConfigError(
            f"{module.file} fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            hint="RAPA_TRACEBACK=1 shows where",
        ) from error
