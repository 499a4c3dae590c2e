"""One training by several processes, each with a GPU, or the cores of a host, of its own.

Each process computes a part of every batch. The weighted sum of their gradients is the mean over the whole batch, so
that all of them make the step that one process would make. Everything random is keyed by image, so that the parts draw
what the whole would have drawn.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rapa_cli.analog.modifiers import ModifierType
from rapa_cli.analog.module import AwareMatrices, PulsedMatrices
from rapa_cli.analog.parameters import NoiseManagement
from rapa_cli.data.images import DataSet
from rapa_cli.errors import ConfigError, RapaError
from rapa_cli.training.stopping import StopRequest, interruption
from rapa_cli.training.world import world

Value = TypeVar("Value")

# Others wait so long for the first process while it draws a data set or writes to a slow disk. One that died closes
# its connections, which the others notice at once.
_TIMEOUT = timedelta(minutes=10)


# While the others take leave, the first draws the learning curve.
_LEAVE = timedelta(minutes=1)


class Unreachable(RapaError):
    """The processes of a training do not reach each other (exit code 1)."""


class PeerLost(RapaError):
    """Another process of the training has ended in the middle of it (exit code 1)."""


class Team:
    """The processes of one training, as one of them sees them; without others it does nothing.

    What is said to raise errors raises the same one in all processes.

    Args:
        rank: the number of this process, from 0.
        size: how many there are.
        local: the number of this process on its host, from 0.

    Attributes:
        first: whether this is process 0, the one that writes files.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.first = rank, size, rank == 0
        self._local = local
        self._group: Any = None

    def device(self, chosen: Callable[[], torch.device]) -> torch.device:
        """On which device this process computes, as chosen by a function for it alone.

        Raises:
            ConfigError: a process has no such device, or they differ in kind, or two processes have the same GPU, or
                gradients on such devices cannot be added.
        """
        with self.together():
            device = chosen()
        if self.size == 1:
            return device
        places = self._gathered((platform.node(), str(device)))
        kinds = sorted({torch.device(name).type for _, name in places})
        if len(kinds) > 1 or kinds[0] not in ("cpu", "cuda"):
            raise ConfigError(
                f"--device: the processes have {' and '.join(kinds)}, allowed are GPUs by CUDA alone and CPUs alone",
                hint="--device cpu computes on CPUs wherever there are GPUs too",
            )
        if kinds == ["cuda"]:
            twice = next((place for place in places if places.count(place) > 1), None)
            if twice is not None:
                raise ConfigError(
                    f"--device: several processes have {twice[1]} of {twice[0]}, allowed is one for each GPU",
                    hint="leave --device out, and start as many processes on a host as it has GPUs",
                )
            torch.cuda.set_device(device)
            with _reached(), _nothing_on_stdout():
                self._group = torch.distributed.new_group(backend="nccl", timeout=_TIMEOUT)
        return device

    def same_options(self, options: Mapping[str, object]) -> None:
        """Checks that all processes were asked for the same.

        Raises:
            ConfigError: they were not; the first option that differs is named.
        """
        if self.size == 1:
            return
        plain = {name: "nothing" if value is None else str(value) for name, value in options.items()}
        found = self._gathered(plain)
        for name, value in found[0].items():
            other = next((rank for rank, one in enumerate(found) if one[name] != value), None)
            if other is not None:
                raise ConfigError(
                    f"{name}: process 0 was started with {value}, process {other} with {found[other][name]}",
                    hint="give all processes the same options; --data-dir, --device and --threads may differ",
                )

    def accept(self, network: nn.Module, batch_size: int, data: DataSet) -> None:
        """Checks that several processes train a network as one does.

        Args:
            network: what is to be trained.
            batch_size: images of one step.
            data: the images that this process has.

        Raises:
            ConfigError: its arrays need all of a batch at one place, or a batch has fewer images than there are
                processes, or the processes have different images.
        """
        if self.size == 1:
            return
        if batch_size < self.size:
            raise ConfigError(
                f"--batch-size {batch_size}: that is less than one image for each of {self.size} processes",
                hint=f"start {batch_size} processes at most, or take larger batches",
            )
        for name, matrices in network.named_modules():
            reason = needs_whole_batches(matrices)
            if reason:
                on_arrays = isinstance(matrices, PulsedMatrices | AwareMatrices)
                layer = name.rpartition(".")[0] if on_arrays else name
                raise ConfigError(
                    f"layer '{layer}' cannot be trained by several processes: {reason}",
                    hint="train with one process" + (", or on other arrays" if on_arrays else ""),
                )
        constants = [values.tolist() for values in (data.mean, data.std)]
        found = self._gathered((data.shape, data.classes, len(data.train), len(data.test), constants))
        other = next((rank for rank, one in enumerate(found) if one != found[0]), None)
        if other is not None:
            raise ConfigError(
                f"data set '{data.name}' of process {other} has other images than that of process 0",
                hint="copy the data folder to all hosts, or name one that they share by --data-dir",
            )

    def part(self, count: int) -> slice:
        """Which of so many images are this process's; some may get one more than others, or none."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def combine(
        self, parameters: Iterable[nn.Parameter], loss: Tensor, wrong: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """Makes the gradients those of the mean over the whole batch.

        One sum of all gradients after the backward pass, in place of torch's DistributedDataParallel: that takes means
        of equal parts, and what it hides behind the backward pass is small here, since convolutions have few weights
        and much work.

        Args:
            parameters: of the network; their gradients are of the mean over this process's part, or None where that
                part is empty.
            loss: mean over the part.
            wrong: how many of its images were classified wrongly.
            share: of the batch.

        Returns:
            The same two of the whole batch.
        """
        if self.size == 1:
            return loss, wrong
        with torch.no_grad():
            parameters = list(parameters)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.view(1)]) * share
            flat = torch.cat([flat, wrong.view(1).to(flat.dtype)])
            with _reached():
                torch.distributed.all_reduce(flat, group=self._group)
            parts = torch.split(flat, [*(gradient.numel() for gradient in gradients), 1, 1])
            for parameter, gradient, values in zip(parameters, gradients, parts, strict=False):
                # In memory as before, which the optimizer's fused step relies on.
                parameter.grad = gradient.copy_(values.view(gradient.shape))
            return parts[-2][0], parts[-1][0].to(wrong.dtype)

    def total(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes."""
        values = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            with _reached():
                torch.distributed.all_reduce(values)
        return values.tolist()

    def check(self, stop: StopRequest) -> None:
        """Raises Interrupted in all processes if a signal came to any; all must ask equally often.

        The answer travels between CPUs, so that nobody waits for what a GPU has still to do.
        """
        if self.size == 1:
            stop.check()
            return
        code = torch.tensor(stop.exit_code or 0)
        with _reached():
            torch.distributed.all_reduce(code, torch.distributed.ReduceOp.MAX)
        # A signal that came here since waits for the next time, when the others hear of it.
        if int(code):
            raise interruption(int(code))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Ends once all processes have left the block.

        Raises:
            RapaError: the block raised one in some process.
        """
        mine: RapaError | None = None
        try:
            yield
        except RapaError as error:
            if self.size == 1:
                raise
            mine = error
        if self.size > 1:
            told = None
            if mine is not None:
                where = f" (process {self.rank} on {platform.node()})"
                told = (mine.message + where, mine.hint, mine.exit_code)
            _raise(next((one for one in self._gathered(told) if one is not None), None), mine)

    def from_first(self, action: Callable[[], Value]) -> Value:
        """What an action gives in process 0; the others do not do it.

        Raises:
            RapaError: the action raised it.
        """
        if self.size == 1:
            return action()
        answer: list[Any] = [None, None]
        mine: RapaError | None = None
        if self.first:
            try:
                answer[0] = action()
            except RapaError as error:
                mine = error
                answer[1] = (error.message, error.hint, error.exit_code)
        with _reached():
            torch.distributed.broadcast_object_list(answer)
        _raise(answer[1], mine)
        value: Value = answer[0]
        return value

    def by_host(self, action: Callable[[], Value]) -> Value:
        """What an action gives here: in the first process of each host before the others, who find what it left.

        Raises:
            RapaError: the action raised one in some process.
        """
        done: list[Value] = []
        for turn in (True, False):
            with self.together():
                if turn == (self._local == 0):
                    done.append(action())
        return done[0]

    def leave(self, *, alone: bool) -> None:
        """Ends the connections: when all do, or at once where the others do not know of it."""
        if not alone:
            # torchrun ends the others as soon as one process has gone with an error.
            with contextlib.suppress(RuntimeError):
                torch.distributed.monitored_barrier(timeout=_LEAVE)
        elif self._group is not None:
            # nccl may wait for those who do not come any more; the end of the process tells them.
            return
        torch.distributed.destroy_process_group()

    def _gathered(self, value: Any) -> list[Any]:
        """What each process gives."""
        values: list[Any] = [None] * self.size
        with _reached():
            torch.distributed.all_gather_object(values, value)
        return values


ALONE = Team()
"""A process without others."""


@contextlib.contextmanager
def joined() -> Iterator[Team]:
    """Joins the processes that torchrun started, by its environment variables; alone where there are none.

    Raises:
        Unreachable: the processes do not reach each other.
    """
    rank, size = world(os.environ)
    if size == 1:
        yield ALONE
        return
    try:
        with _nothing_on_stdout():
            # Small things travel by gloo, also where gradients travel by nccl.
            torch.distributed.init_process_group("gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Unreachable(
            f"process {rank} of {size} does not reach the others: {reason}",
            hint="start all of them by torchrun, with the same --rdzv-endpoint; or unset WORLD_SIZE to train with one",
        ) from error
    team, alone = Team(rank, size, int(os.environ.get("LOCAL_RANK", "0"))), True
    try:
        yield team
        alone = False
    except RapaError as error:
        alone = isinstance(error, PeerLost)
        raise
    finally:
        team.leave(alone=alone)


def needs_whole_batches(module: nn.Module) -> str | None:
    """Why the parts of a batch cannot be computed apart; None where they can."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "it normalises by means over whole batches"
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return "it draws what it drops for whole batches"
    if isinstance(module, PulsedMatrices):
        return "its arrays learn by pulses, which are made from all vectors of a batch"
    if not isinstance(module, AwareMatrices):
        return None
    arrays = module.arrays
    if arrays.input_range is not None:
        return "the input range of its arrays is found from whole batches"
    modifier = arrays.modifier
    if modifier.type not in (ModifierType.NONE, ModifierType.DISCRETIZE) or modifier.sto_round or modifier.pdrop:
        return "its weights are modified at random once for each batch"
    if arrays.forward.noise_management is NoiseManagement.AVERAGE_ABS_MAX:
        return "the noise management of its arrays is a running mean over all vectors"
    return None


def _raise(told: tuple[str, str | None, int] | None, mine: RapaError | None) -> None:
    """Raises the error that processes were told of; in those that made one it is their own."""
    if told is None:
        return
    if mine is not None:
        raise mine
    message, hint, exit_code = told
    error = RapaError(message, hint=hint)
    error.exit_code = exit_code
    raise error


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Turns an error of a collective operation, which others must have caused, into PeerLost."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(
            "another process of the training has ended, or does not answer",
            hint="its own messages say why; --resume goes on from the last checkpoint",
        ) from error


@contextlib.contextmanager
def _nothing_on_stdout() -> Iterator[None]:
    """Sends to standard error what C++ prints: gloo of some versions tells there how many processes it reached."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
