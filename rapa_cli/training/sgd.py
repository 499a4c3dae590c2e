"""SGD for networks with layers on arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rapa_cli.analog.module import PulsedMatrices
from rapa_cli.tiling.arrays import ArrayLayer


class AnalogSGD(torch.optim.SGD):
    """`torch.optim.SGD`, which also makes the steps of arrays.

    Arrays that learn by pulses get the pulses of the backward passes since `zero_grad`, at the rate of their group.
    They have no momentum and no weight decay, which a step by pulses cannot have: those of their groups are 0.
    Inference arrays clip their weights after each step.

    Args:
        network: what is trained.
        groups: parameters, or groups of them as torch has them; by default all of the network's.
        lr: learning rate.
        momentum: of digital parameters.
        weight_decay: of digital parameters.
        fused: whether torch's fused step is used.

    Attributes:
        without: whether momentum or weight decay was asked for that arrays do not have.

    Raises:
        TypeError: something else than a network, or than parameters.
        ValueError: there are no parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Iterable[Any] | None = None,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        fused: bool | None = None,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"network: got {type(network).__name__}, allowed is the network, whose arrays make steps; parameters "
                "come second: AnalogSGD(network, parameters, lr=0.1)"
            )
        if isinstance(groups, Tensor):
            raise TypeError("groups: got one tensor, allowed are lists of parameters, or of groups of them")
        self._pulsed = {m.pulses: m for m in network.modules() if isinstance(m, PulsedMatrices)}
        self._layers = [layer for layer in network.modules() if isinstance(layer, ArrayLayer)]
        given: list[Any] = list(network.parameters() if groups is None else groups)
        tables: list[dict[str, Any]] = given if given and isinstance(given[0], dict) else [{"params": given}]
        settings = {"momentum": momentum, "weight_decay": weight_decay}
        parts: list[dict[str, Any]] = []
        self.without = False
        for table in tables:
            parameters = [table["params"]] if isinstance(table["params"], Tensor) else list(table["params"])
            wrong = [type(p).__name__ for p in parameters if not isinstance(p, Tensor)]
            if wrong:
                raise TypeError(f"groups: got {wrong[0]} among the parameters, allowed are parameters alone")
            pulses = [p for p in parameters if p in self._pulsed]
            digital = [p for p in parameters if p not in self._pulsed]
            if digital:
                parts.append({**table, "params": digital})
            if pulses:
                asked = {name: table.get(name, value) for name, value in settings.items()}
                self.without |= any(asked.values())
                parts.append({**table, "params": pulses, **dict.fromkeys(settings, 0.0)})
        if not parts:
            raise ValueError(f"{'network' if groups is None else 'groups'}: there are no parameters to train")
        super().__init__(parts, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; arrays and digital parameters alike."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        counts = {pulses: pulses.grad for pulses in self._pulsed}
        for pulses in counts:
            pulses.grad = None
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self._pulsed:
                    parameter.grad = counts[parameter]
                    self._pulsed[parameter].step(group["lr"])
        for layer in self._layers:
            layer.after_step()
        return loss
