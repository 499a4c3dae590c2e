"""The matrices of one layer on arrays, as torch modules: what a layer hands its patches to.

`PulsedMatrices` learn on the arrays themselves, by pulses. `AwareMatrices` are weights that any optimizer trains, read
as the arrays that they are meant for will read them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rapa_cli.analog import passes
from rapa_cli.analog.aware import AwareArray, InferenceArrays, aware_product
from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.mapping import Grid, MappedBank, MappedReading
from rapa_cli.analog.merged import Chunk
from rapa_cli.analog.modifiers import ClipType, RemapType
from rapa_cli.analog.noise import any_generator
from rapa_cli.analog.parameters import BoundManagement, IOParameters, NoiseManagement
from rapa_cli.analog.passes import NoiseKey, supports, supports_update
from rapa_cli.analog.periphery import Periphery, product
from rapa_cli.kernels import cpu, reference
from rapa_cli.kernels.cpu import Work
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.keyed import Draw
from rapa_cli.philox import Purpose, key_of

# What of a layer's work a generator is for. Parts of split matrices are read with those from `_PARTS` on.
_FORWARD, _BACKWARD, _UPDATE, _STEP, _MODIFIER, _PARTS = range(6)


@dataclass(frozen=True)
class Call:
    """One call of a layer: which tile computes which patch, and whose noise it has.

    Attributes:
        assignment: int64 (B, n_p), values in [-1, tiles).
        tiles: number of matrices.
        geometry: of the convolution; a linear layer is one of single pixels.
        draw: the key of everything random.
        bias: whether the last line of each array is a bias, whose input is 1.
    """

    assignment: Tensor
    tiles: int
    geometry: Geometry
    draw: Draw
    bias: bool

    @functools.cached_property
    def order(self) -> Tensor:
        """Numbers b n_p + i of the patches in the order of their tiles, int64 (n,)."""
        flat = self.assignment.reshape(-1)
        return torch.argsort(flat, stable=True)[int((flat < 0).sum()) :]

    @functools.cached_property
    def sizes(self) -> list[int]:
        """How many patches each tile has."""
        counts: list[int] = torch.bincount(self.assignment.reshape(-1) + 1, minlength=self.tiles + 1).tolist()
        return counts[1:]

    def counts(self, part: int, parts: int) -> Tensor:
        """How many patches each tile has in one of so many parts of the batch, int64 (tiles,)."""
        flat = self.assignment.reshape(-1)
        first, last = (len(flat) * n // parts for n in (part, part + 1))
        return torch.bincount(flat[first:last] + 1, minlength=self.tiles + 1)[1:]

    def rows(self, x: Tensor) -> Tensor:
        """The patches of images in the order of their tiles, (n, lines); lines: (kh, kw, C), then the bias."""
        patches = reference.gather(x, self.order, self.geometry)
        return F.pad(patches, (0, 1), value=1.0) if self.bias else patches

    def folded(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The sum over patches of what belongs to each input pixel: rows (n, lines), result (B, C, H, W)."""
        rows = rows[:, :-1] if self.bias else rows
        total = self.assignment.numel()
        return reference.fold(reference.scatter(rows, self.order, total, complete=self._complete), shape, self.geometry)

    def outputs(self, images: Tensor) -> Tensor:
        """The output pixels (B, out, h, w) in the order of the tiles, (n, out)."""
        return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])[self.order]

    def images(self, rows: Tensor) -> Tensor:
        """Output images (B, out, h, w) from rows (n, out); 0 where no tile computes."""
        total = self.assignment.numel()
        pixels = reference.scatter(rows, self.order, total, complete=self._complete)
        size = (self.geometry.out_height, self.geometry.out_width)
        return pixels.view(len(self.assignment), *size, rows.shape[1]).permute(0, 3, 1, 2)

    def generator(self, part: int, place: torch.device) -> torch.Generator:
        """The generator of one part of the layer's work in this call."""
        return self.draw.generator(part, place)

    def work(self, x: Tensor, out: int) -> Work:
        """The patches sorted for the kernels."""
        return Work.sized(self.assignment, self.geometry, tiles=self.tiles, out=out, channels=x.shape[1])

    @functools.cached_property
    def key(self) -> NoiseKey:
        """The key of the noise that the kernels make."""
        draws = torch.as_tensor(self.draw.draw).expand(self.draw.images.shape)
        key = key_of(Purpose.ANALOG, self.draw.seed, self.draw.stream)
        return NoiseKey(key, self.draw.layer, self.draw.images, draws)

    def kernels(self, lines: Tensor) -> Tensor:
        """What belongs to lines (tiles, out, lines) as kernels (tiles, out, C, kh, kw), without the bias."""
        lines = lines[..., :-1] if self.bias else lines
        return lines.reshape(*lines.shape[:2], *self.geometry.kernel, -1).permute(0, 1, 4, 2, 3)

    @property
    def _complete(self) -> bool:
        return len(self.order) == self.assignment.numel()


class PulsedMatrices(nn.Module):
    """Matrices on arrays that learn by pulses.

    In an optimizer the parameter `pulses` stands for the weights: its gradient is the number of backward passes whose
    pulses wait for the next step. So a gradient of inputs alone, as attacks take it, changes no weights, and
    `zero_grad` drops what waits. `AnalogSGD` makes the steps.

    Args:
        arrays: what the arrays are made of.
        tiles: number of matrices.
        out: rows of each.
        lines: columns of each, with the bias.
        generator: for what is drawn once; by default seeded by torch's global generator.

    Attributes:
        bank: the arrays. A state dictionary holds all of their state, visible and hidden.
        noise: whether readings have noise.
        exact_gradients: whether gradients of inputs are those of the plain product, and not readings.
    """

    def __init__(
        self, arrays: Arrays, tiles: int, out: int, lines: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.arrays, self.noise, self.exact_gradients = arrays, True, False
        self.pulses = nn.Parameter(torch.zeros(()))
        self._shape = (tiles, out, lines)
        self._candidates: list[_Update] = []
        self._counted = 0
        self._waiting: list[_Update] = []
        self._watched: nn.Parameter | None = None
        self.draw(generator or any_generator())

    def draw(self, generator: torch.Generator) -> None:
        """Puts new devices in the place of the old ones; their weights are 0."""
        place = self.pulses.device
        self.bank = MappedBank(self.arrays, *self._shape, generator, place)

    def read(self, x: Tensor, call: Call) -> Tensor:
        """The products of all patches, (B, out, h, w), from images (B, C, H, W).

        Raises:
            RuntimeError: an ordinary optimizer was used, which cannot change the weights.
        """
        if float(self.pulses.detach()):
            raise RuntimeError("pulses: an ordinary optimizer made a step; arrays learn with AnalogSGD")
        if self.pulses.requires_grad and torch.is_grad_enabled():
            self._watch()
            self._candidates.clear()
            if self.pulses.grad is None:
                self._waiting.clear()
        values: Tensor = _PulsedRead.apply(x, self.pulses, self, call)
        return values

    def step(self, lr: float) -> None:
        """Gives the arrays the pulses that wait, one backward pass after the other; then one step of decay.

        Raises:
            RuntimeError: the gradient of `pulses`, which counts them, was changed.
        """
        count = 0.0 if self.pulses.grad is None else float(self.pulses.grad)
        if not count.is_integer() or not 0 <= count <= len(self._waiting):
            raise RuntimeError(
                f"pulses: their gradient is {count:g}, but {len(self._waiting)} backward passes wait; it counts them, "
                "so that only digital parameters can have their gradients clipped or scaled"
            )
        # They stay until `zero_grad`, as gradients do.
        waiting = self._waiting[len(self._waiting) - int(count) :]
        with torch.no_grad():
            for update in waiting:
                self._pulse(update, lr)
            if waiting:
                self.bank.after_step(waiting[-1].call.generator(_STEP, waiting[-1].x.device))

    def _forward(self, x: Tensor, call: Call) -> tuple[Tensor, _Reading]:
        """Reads all patches: images, and what the backward reading needs."""
        bank = self._whole
        io, _ = self._peripheries
        in_c = self.arrays.aihwkit_compat is None and _in_c(x, call)
        if bank is not None and in_c and supports(io, bank.lines(forward=True), forward=True):
            work = call.work(x, self._shape[1])
            y, clipped = passes.forward(work, x, bank.shown, io, call.key, bias_line=call.bias)
            return y, _Reading(work, clipped, None)
        rows = self._forward_rows(x, call)
        return call.images(rows.values), _Reading(None, None, rows)

    def _backward(self, x: Tensor, d: Tensor, call: Call, reading: _Reading) -> Tensor:
        """The gradients of images."""
        bank, work = self._whole, reading.work
        if self.exact_gradients:
            weights = self.bank.get_weights()
            if work is not None:
                gradient = cpu.backward(work, d, x, call.kernels(weights), wanted=(True, False, False))[0]
                assert gradient is not None
                return gradient
            return call.folded(product(call.outputs(d), weights.transpose(1, 2), call.sizes), x.shape)
        _, io = self._peripheries
        if work is not None and bank is not None and supports(io, bank.lines(forward=False), forward=False):
            return passes.backward(
                work, d, bank.shown, io, call.key,
                channels=x.shape[1], bias_line=call.bias, clipped=reading.clipped,
            )  # fmt: skip
        rows = reading.rows
        if rows is None:
            # Only the forward reading was one for the kernels.
            rows = self._forward_rows(x, call)
        generator = call.generator(_BACKWARD, d.device)
        with _averages(self.bank.state, learned=self.training):
            back = self.bank.backward(call.outputs(d), call.sizes, generator, rows, noise=self.noise)
        return call.folded(back, x.shape)

    def _forward_rows(self, x: Tensor, call: Call) -> MappedReading:
        """Reads the patches as vectors."""
        generator = call.generator(_FORWARD, x.device)
        with _averages(self.bank.state, learned=self.training):
            return self.bank.forward(call.rows(x), call.sizes, generator, noise=self.noise)

    def _pulse(self, update: _Update, lr: float) -> None:
        """Gives the arrays the pulses of one backward pass."""
        call, bank, work = update.call, self._whole, update.work
        generator = call.generator(_UPDATE, update.x.device)
        rate = None if bank is None or work is None else bank.rate(lr)
        if bank is None or work is None or rate is None or not supports_update(self.arrays.update):
            self.bank.update(call.rows(update.x), call.outputs(update.d), call.sizes, lr, generator)
            return
        d = update.d.contiguous(memory_format=torch.channels_last)
        batch, chunks = torch.tensor(call.sizes), 1
        if self.arrays.merge:
            chunks = -(-int(batch.max()) // self.arrays.merge)
        for number in range(chunks):
            pulses = passes.moments(
                work, update.x, d, rate, bank.granularity, self.arrays.update,
                bias_line=call.bias, chunk=(number, chunks),
            )  # fmt: skip
            bank.apply(pulses, generator, Chunk(call.counts(number, chunks), batch, lr, self.arrays.aihwkit_compat))

    @property
    def _whole(self) -> AnalogBank | None:
        """The arrays, where no matrix is split, and neither weights nor inputs are scaled."""
        mapping = self.arrays.mapping
        plain = len(self.bank.banks) == 1 and mapping.weight_scaling_omega <= 0 and mapping.input_range <= 0
        return self.bank.banks[0] if plain else None

    @property
    def _peripheries(self) -> tuple[IOParameters, IOParameters]:
        """What lies around the arrays in forward and in backward readings."""
        io = self.arrays.forward, self.arrays.backward
        return io if self.noise else (io[0].quiet(), io[1].quiet())

    def _watch(self) -> None:
        """Has the pulses of a backward pass wait once it has reached the parameter, not one of inputs alone."""
        if self._watched is self.pulses:
            return
        self._watched = self.pulses

        def keep(pulses: Tensor) -> None:
            assert pulses.grad is not None
            # Older candidates reached inputs alone; of what waits, more than was counted has been dropped.
            new = int(pulses.grad) - self._counted
            kept = self._waiting[len(self._waiting) - self._counted :]
            self._waiting = kept + self._candidates[len(self._candidates) - new :]
            self._candidates = []

        self.pulses.register_post_accumulate_grad_hook(keep)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        # A copy has a parameter of its own, on which nothing watches yet.
        return {**self.__dict__, "_watched": None, "_candidates": [], "_waiting": []}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PulsedMatrices:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.bank.move(fn)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        del keep_vars
        for name, values in self.bank.state.items():
            destination[prefix + name] = values

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        del local_metadata
        state = self.bank.state
        for name, values in state.items():
            found = state_dict.get(prefix + name)
            if found is None:
                missing_keys.append(prefix + name)
            elif found.shape != values.shape:
                error_msgs.append(f"{prefix}{name}: got shape {tuple(found.shape)}, allowed is {tuple(values.shape)}")
            else:
                values.copy_(found)
        if strict:
            known = {prefix + name for name in state}
            unexpected_keys += [name for name in state_dict if name.startswith(prefix) and name not in known]

    def extra_repr(self) -> str:
        """The devices, for printing."""
        device = getattr(self.arrays.device, "kind", type(self.arrays.device).__name__)
        return f"{device}, tiles={self._shape[0]}, out={self._shape[1]}, lines={self._shape[2]}"


@dataclass(frozen=True)
class _Update:
    """Inputs and gradients of a backward pass, for the pulses of the next step."""

    call: Call
    x: Tensor
    d: Tensor
    work: Work | None


@dataclass(frozen=True)
class _Reading:
    """What a forward reading leaves for the backward one: of the kernels the first two, else the third."""

    work: Work | None
    clipped: Tensor | None
    rows: MappedReading | None


class _PulsedRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pulses: Tensor, matrices: PulsedMatrices, call: Call) -> Tensor:
        y, ctx.reading = matrices._forward(x, call)
        ctx.save_for_backward(x)
        ctx.matrices, ctx.call = matrices, call
        return reference.no_view(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,), d = ctx.saved_tensors, gradients[0]
        matrices, call = ctx.matrices, ctx.call
        to_x = to_pulses = None
        if ctx.needs_input_grad[0]:
            to_x = matrices._backward(x, d, call, ctx.reading)
        if ctx.needs_input_grad[1]:
            matrices._candidates.append(_Update(call, x, d, ctx.reading.work))
            before = matrices.pulses.grad
            matrices._counted = 0 if before is None else int(before)
            to_pulses = d.new_ones(())
        return to_x, to_pulses, None, None


class AwareMatrices(AwareArray):
    """Weights that are trained for arrays: readings are those of arrays, gradients go straight through to the weights.

    The weights belong to the layer. Each is scaled to its array, read with the array's noise, and scaled back; with an
    input range inputs are cut to it.

    Args:
        arrays: what the arrays are made of.
        tiles: number of matrices.
        out: rows of each.
        lines: columns of each, with the bias where it is one.
        generator: for what is drawn once; by default seeded by torch's global generator.

    Attributes:
        part: the parts of split matrices, row by row of their grid, which then hold the scales, what is read in place
            of weights, and the compensation; None where matrices are whole.
        grid: how matrices are split.
        input_range: parameter, r, or None.
        noise: whether readings have noise.
    """

    def __init__(
        self, arrays: InferenceArrays, tiles: int, out: int, lines: int, generator: torch.Generator | None = None
    ) -> None:
        grid = Grid.of(out, lines, arrays.mapping)
        split = len(grid.shapes) > 1
        super().__init__(arrays, tiles, out, lines, empty=split)
        self.noise, self.grid = True, grid
        self.part: nn.ModuleList | None = None
        if split:
            self.part = nn.ModuleList(AwareArray(arrays, tiles, rows, columns) for rows, columns in grid.shapes)
        self.input_range: nn.Parameter | None = None
        if arrays.input_range is not None:
            state = arrays.input_range.draw()
            self.input_range = nn.Parameter(state["input_range"])
            self.register_buffer("batches", state["batches"])
        self.draw(generator or any_generator())

    @property
    def parts(self) -> list[AwareArray]:
        """The arrays: these, or the parts of split matrices."""
        if self.part is None:
            return [self]
        return [part for part in self.part if isinstance(part, AwareArray)]

    def draw(self, generator: torch.Generator) -> None:
        """Puts new lines in the place of the old ones."""
        if self.part is None:
            super().draw(generator)
            return
        for part in self.parts:
            part.draw(generator)

    def read(self, x: Tensor, weights: Tensor, call: Call, bias: Tensor | None = None) -> Tensor:
        """The products of all patches, (B, out, h, w).

        Args:
            x: images (B, C, H, W).
            weights: of the layer, (tiles, out, lines).
            call: which tile computes which patch.
            bias: what is added beside the arrays, (tiles, out), or None.
        """
        modifier = call.generator(_MODIFIER, x.device) if self.training else None
        bound = None
        if self.input_range is not None:
            x = self._in_range(x)
            bound = self.input_range.detach().abs()
        if self.part is None:
            periphery = self.periphery(noise=self.noise)
            with _averages(periphery.state, learned=self.training):
                y = _aware_images(x, self.shown(weights, modifier), periphery, call)
            y = y * _of_tiles(self.factors(weights, bound), call)
        else:
            y = self._sums(x, weights, call, modifier, bound)
        return y if bias is None else y + _of_tiles(bias, call)

    def _sums(
        self, x: Tensor, weights: Tensor, call: Call, modifier: torch.Generator | None, bound: Tensor | None
    ) -> Tensor:
        """What the parts of split matrices answer, each with noise of its own, summed over inputs; with the scales."""
        rows: Tensor = _Rows.apply(x, call)
        inputs = torch.split(rows, self.grid.in_sizes, 1)
        tile_of = torch.repeat_interleave(torch.tensor(call.sizes, device=x.device))
        answers = []
        for p, (part, own) in enumerate(zip(self.parts, self.grid.split(weights), strict=True)):
            periphery, generator = part.periphery(noise=self.noise), call.generator(_PARTS + p, x.device)
            with _averages(periphery.state, learned=self.training):
                shown = part.shown(own, modifier)
                read = aware_product(inputs[p % len(inputs)], shown, call.sizes, periphery, generator)
            answers.append(read * part.factors(own, bound)[tile_of])
        return call.images(self.grid.summed(answers))

    @property
    def limits(self) -> bool:
        """Whether weights are clipped or remapped after each step of an optimizer."""
        return self.arrays.clip.type is not ClipType.NONE or self.arrays.remap.type is not RemapType.NONE

    def limited(self, weights: Tensor) -> Tensor:
        """Weights of the layer (tiles, out, lines), clipped as they lie on the arrays, whose scales are remapped."""
        if self.part is None:
            return super().limited(weights)
        return self.grid.joined(
            [part.limited(own) for part, own in zip(self.parts, self.grid.split(weights), strict=True)]
        )

    def scale_to(self, weights: Tensor) -> None:
        """Sets the scales for new weights of the layer."""
        if self.part is None:
            super().scale_to(weights)
            return
        for part, own in zip(self.parts, self.grid.split(weights), strict=True):
            part.scale_to(own)

    def _in_range(self, x: Tensor) -> Tensor:
        """Inputs cut to the range, and divided by it."""
        settings, r = self.arrays.input_range, self.input_range
        assert settings is not None
        assert r is not None
        assert isinstance(self.batches, Tensor)
        state = {"input_range": r.data, "batches": self.batches}
        if self.training and torch.is_grad_enabled() and x.numel():
            settings.observe(state, x)
        inputs: Tensor = _InRange.apply(x, r, self)
        return inputs

    def extra_repr(self) -> str:
        """The noise model and the number of parts, for printing."""
        parts = "" if self.part is None else f", parts={len(self.grid.out_sizes)}x{len(self.grid.in_sizes)}"
        return f"{self.arrays.noise_model.kind}{parts}"


class _InRange(torch.autograd.Function):
    """clamp(x, -|r|, |r|) / |r|; r has the gradient of the clamp times that of the outputs' scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, matrices: AwareMatrices) -> Tensor:
        ctx.save_for_backward(x, r)
        ctx.settings = matrices.arrays.input_range
        bound = r.abs()
        return torch.maximum(torch.minimum(x, bound), -bound) / bound

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, r = ctx.saved_tensors
        bound = r.abs()
        # The outputs are multiplied by |r| outside of this gradient, so that here stands what reaches clamp(x).
        d = gradients[0] / bound
        to_x = torch.where(x.abs() < bound, d, 0.0) if ctx.needs_input_grad[0] else None
        to_r = None
        if ctx.needs_input_grad[1]:
            to_r = torch.sign(r) * ctx.settings.gradient({"input_range": bound}, x, d)
        return to_x, to_r, None


def _aware_images(x: Tensor, weights: Tensor, periphery: Periphery, call: Call) -> Tensor:
    """`aware_product` of the patches of images."""
    io = periphery.io
    by_vector = (NoiseManagement.MAX, NoiseManagement.ABS_MAX_NP_SUM, NoiseManagement.AVERAGE_ABS_MAX)
    # The kernels' gradients are for inputs that are cut the same in all patches, or not at all.
    cut_alike = io.noise_management not in by_vector and (
        io.nm_thres <= 0 or io.noise_management is NoiseManagement.CONSTANT
    )
    # Bound management that reads a patch again, smaller, cuts less of it, where inputs can be cut at all.
    always_fit = io.noise_management is NoiseManagement.ABS_MAX or io.inp_bound <= 0
    cut_alike = cut_alike and (always_fit or io.bound_management is BoundManagement.NONE)
    if cut_alike and _in_c(x, call) and supports(io, periphery.state, forward=True):
        y: Tensor = _AwareImages.apply(x, weights, io, call)
        return y
    generator = call.generator(_FORWARD, x.device)
    rows: Tensor = _Rows.apply(x, call)
    return call.images(aware_product(rows, weights, call.sizes, periphery, generator))


def _in_c(x: Tensor, call: Call) -> bool:
    """Whether images are such that the kernels can read them."""
    return x.is_cpu and x.dtype == torch.float32 and len(x) > 0 and cpu.available() and cpu.fits(x, call.geometry)


class _AwareImages(torch.autograd.Function):
    """Reads by the kernels; gradients are those of the plain product, 0 where a converter clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, io: IOParameters, call: Call) -> Tensor:
        ctx.work, ctx.io, ctx.call = call.work(x, weights.shape[1]), io, call
        y, ctx.clipped = passes.forward(ctx.work, x, weights, io, call.key, bias_line=call.bias)
        ctx.save_for_backward(x, weights)
        return reference.no_view(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weights), d, io, call = ctx.saved_tensors, gradients[0] * ctx.io.out_scale, ctx.io, ctx.call
        if ctx.clipped is not None:
            images = ctx.clipped.view(len(d), *d.shape[2:], d.shape[1]).permute(0, 3, 1, 2)
            d = torch.where(images.bool(), 0.0, d)
        # What the DAC could give.
        most = torch.inf
        if io.inp_bound > 0 and io.noise_management is not NoiseManagement.ABS_MAX:
            constant = io.noise_management is NoiseManagement.CONSTANT and io.nm_thres > 0
            most = io.inp_bound * (io.nm_thres if constant else 1.0)
        seen = x.clamp(-most, most) if most < torch.inf else x
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[1] and call.bias
        to_x, to_kernels, to_bias = cpu.backward(ctx.work, d, seen, call.kernels(weights), wanted=wanted)
        if to_x is not None and seen is not x:
            to_x = torch.where(seen == x, to_x, 0.0)
        if to_kernels is None:
            return to_x, None, None, None
        lines = to_kernels.permute(0, 1, 3, 4, 2).flatten(2)
        if to_bias is not None:
            lines = torch.cat([lines, min(1.0, most) * to_bias[:, :, None]], 2)
        return to_x, lines, None, None


class _Rows(torch.autograd.Function):
    """The patches of images, with their gradient summed in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call) -> Tensor:
        ctx.shape, ctx.call = x.shape, call
        return call.rows(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.call.folded(gradients[0], ctx.shape), None


def _of_tiles(values: Tensor, call: Call) -> Tensor:
    """What belongs to each output pixel's tile: values (tiles, out), result (B or 1, out, h or 1, w or 1)."""
    if len(values) == 1 and bool((call.assignment >= 0).all()):
        return values[:, :, None, None]
    size = (call.geometry.out_height, call.geometry.out_width)
    # Where no tile computes stands a 0, which keeps a bias from there too.
    both = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return both[call.assignment].view(len(call.assignment), *size, values.shape[1]).permute(0, 3, 1, 2)


@contextlib.contextmanager
def _averages(state: Mapping[str, Tensor], *, learned: bool) -> Iterator[None]:
    """Has the running divisors of a reading stay as they were after it, unless they are learned."""
    names = [] if learned else [name for name in state if name.endswith("nm_average")]
    before = [state[name].clone() for name in names]
    try:
        yield
    finally:
        for name, values in zip(names, before, strict=True):
            state[name].copy_(values)


@contextlib.contextmanager
def noiseless(model: nn.Module) -> Iterator[None]:
    """Inside the block arrays are read without noise; converters, limits and what devices hold stay as they are."""
    with _set(_matrices(model), "noise", False):
        yield


def silence(model: nn.Module) -> None:
    """As `noiseless`, from now on."""
    for module in _matrices(model):
        module.noise = False


def _matrices(model: nn.Module) -> list[PulsedMatrices | AwareMatrices]:
    return [module for module in model.modules() if isinstance(module, (PulsedMatrices, AwareMatrices))]


@contextlib.contextmanager
def exact_gradients(model: nn.Module) -> Iterator[None]:
    """Inside the block gradients go through arrays as through the plain product, as who knows them computes it."""
    with _set([module for module in model.modules() if isinstance(module, PulsedMatrices)], "exact_gradients", True):
        yield


@contextlib.contextmanager
def _set(modules: Sequence[nn.Module], name: str, value: bool) -> Iterator[None]:
    before = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            setattr(module, name, old)
