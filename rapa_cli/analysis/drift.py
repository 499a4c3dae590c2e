"""The error of a network some time after its weights were programmed onto analog arrays."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapa_cli.analog.aware import INFERENCE, InferenceArrays
from rapa_cli.analog.module import AwareMatrices, silence
from rapa_cli.analog.parameters import IOParameters
from rapa_cli.analog.programmed import ProgrammedMatrices
from rapa_cli.analog.ranges import Calibration, calibrated
from rapa_cli.analysis.evaluation import evaluating, pixel_batches
from rapa_cli.analysis.voting import VoteResult, vote_error
from rapa_cli.data.stream import Images
from rapa_cli.errors import ConfigError
from rapa_cli.keyed import Draw, KeyedLayer, draws
from rapa_cli.layers.conversion import convert, replaced
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.layers.network import Network
from rapa_cli.philox import Purpose, Stream
from rapa_cli.tiling.arrays import ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d

# What of a programming a generator is for.
_LINES, _PROGRAMMING, _AGEING, _DRAWS = range(4)
# Images that input ranges are calibrated on, and how many at a time.
_CALIBRATING, _BATCH = 1000, 100
_EXACT = InferenceArrays(forward=IOParameters(is_perfect=True))
_UNITS = (("y", 31_536_000), ("d", 86_400), ("h", 3600), ("min", 60))
# Factors of noise models, and what they are factors of.
_SCALES = {
    "prog_noise_scale": "programming noise",
    "noise_scale": "programming noise and later deviations",
    "drift_scale": "drift",
    "read_noise_scale": "read noise of the devices",
}
_READING = "noise of the converters and lines"


@dataclass(frozen=True)
class Age:
    """Errors some time after programming.

    Attributes:
        seconds: since programming.
        t_0: what the noise model adds to that: when it reads for the first time.
        single_errors: mean error of the single draws of each programming, percent.
        vote_errors: error of their vote for each programming, percent.
        compensations: what outputs are multiplied by, for each programming the mean over the arrays of each layer,
            and then over layers; empty without drift compensation.
    """

    seconds: float
    t_0: float
    single_errors: tuple[float, ...]
    vote_errors: tuple[float, ...]
    compensations: tuple[float, ...]

    @property
    def single_error(self) -> float:
        """Mean over the programmings, percent."""
        return statistics.fmean(self.single_errors)

    @property
    def single_se(self) -> float:
        """Standard error of that mean, percent; NaN where there was one programming."""
        return _standard_error(self.single_errors)

    @property
    def vote_error(self) -> float:
        """Mean over the programmings, percent."""
        return statistics.fmean(self.vote_errors)

    @property
    def vote_se(self) -> float:
        """Standard error of that mean, percent; NaN where there was one programming."""
        return _standard_error(self.vote_errors)

    @property
    def compensation(self) -> float | None:
        """Mean over the programmings; None without drift compensation."""
        return statistics.fmean(self.compensations) if self.compensations else None


@dataclass(frozen=True)
class Drift:
    """What `drift` found.

    Attributes:
        images: how many were classified each time.
        votes: draws of a vote.
        repeats: programmings.
        arrays: what was programmed.
        noise_on: what random or drifting there was, in words.
        noise_off: what was switched off, in words.
        calibrated: whether input ranges were calibrated.
        digital_single: error of single draws with exact products and weights, mean over the same draws, percent.
        digital_vote: error of their votes, percent.
        ages: in the order they were asked for.
    """

    images: int
    votes: int
    repeats: int
    arrays: InferenceArrays
    noise_on: tuple[str, ...]
    noise_off: tuple[str, ...]
    calibrated: bool
    digital_single: float
    digital_vote: float
    ages: tuple[Age, ...]


class ProgrammedNetwork:
    """A copy of a network, programmed onto its inference arrays; at first as it is right after that.

    Args:
        network: with inference arrays, as `on_inference_arrays` makes it; it is left as it is.
        seed: with `repeat` the key of programming noise, drift coefficients and read noise.
        repeat: each is another programming of the same arrays.

    Attributes:
        network: the copy; it reads what the arrays hold.

    Raises:
        ValueError: the network has no inference arrays.
    """

    def __init__(self, network: nn.Module, *, seed: int = 0, repeat: int = 0) -> None:
        self.network = copy.deepcopy(network)
        self._seed, self._repeat = seed, repeat
        self._programmed = {
            number: ProgrammedMatrices(layer.matrices, layer.lines().detach(), self._generator(_PROGRAMMING, number))
            for number, layer in _array_layers(self.network)
            if isinstance(layer.matrices, AwareMatrices)
        }
        if not self._programmed:
            raise ValueError("network: has no inference arrays; on_inference_arrays(network) gives it some")
        self.age(0.0)

    def age(self, seconds: float) -> None:
        """Reads the arrays as they are some time after programming, whatever was read before.

        Args:
            seconds: 0 or more.

        Raises:
            ValueError: a time that the noise model has no data for.
        """
        for number, programmed in self._programmed.items():
            programmed.age(seconds, self._generator(_AGEING, number, seconds))

    @property
    def compensation(self) -> float | None:
        """What outputs are multiplied by, mean over the arrays of each layer, then over layers; None for nothing."""
        found = [programmed.compensation for programmed in self._programmed.values()]
        means = [float(factors.mean()) for factors in found if factors is not None]
        return statistics.fmean(means) if means else None

    def _generator(self, part: int, number: int, seconds: float = 0.0) -> torch.Generator:
        return _generator(part, self._seed, number, self._repeat, seconds)


def on_inference_arrays(
    network: nn.Module,
    arrays: InferenceArrays | None = None,
    *,
    training_images: Images | None = None,
    seed: int = 0,
) -> nn.Module:
    """Copies a network with all its convolutions and linear layers on inference arrays, not yet programmed.

    From arrays of another kind it takes the weights that they show. Tiles, schemes, seeds and what was learned of
    input ranges stay, so that draws are the same; only `nn.Conv2d`, which makes no random choices, and `nn.Linear`
    become keyed layers that were none.

    Args:
        network: it is left as it is.
        arrays: what they are made of; None keeps inference arrays as they are and makes others of the preset
            `Inference`.
        training_images: uint8 (N, C, H, W), for input ranges that nobody learned: the 99.995 % quantiles of inputs, on
            up to 1,000 images.
        seed: of what is drawn once for the lines of new arrays.

    Raises:
        ValueError: there are input ranges to calibrate and no images, or a convolution with groups or a padding other
            than zeros.
    """
    moved, _ = _moved(network, arrays, training_images, seed)
    return moved


def drift(
    network: nn.Module,
    images: Images,
    labels: Tensor,
    times: Sequence[float],
    *,
    arrays: InferenceArrays | None = None,
    repeats: int = 3,
    votes: int = 5,
    noise: bool = True,
    training_images: Images | None = None,
    seed: int = 0,
    batch_size: int = 200,
    on_batch: Callable[[int], None] | None = None,
) -> Drift:
    """Programs a network several times, and measures its errors at some times after that.

    Each programming has its own noise, drift coefficients and draws; each time its own read noise of the devices. All
    of it is keyed by the seed, the number of the programming and the time, so that neither other times nor their order
    change a result. Draws are those of the programming at all of its times.

    Args:
        network: takes (B, C, H, W) in [0, 1]; it is left as it is.
        images: uint8 (N, C, H, W); their ids are their places in the split.
        labels: int64 (N,).
        times: seconds after programming; each counts once.
        arrays: what is programmed; as `on_inference_arrays` takes it.
        repeats: programmings.
        votes: draws of a vote.
        noise: False switches the noise of converters and lines off, which otherwise is as the network has it. What
            devices do stays: programming noise, drift, read noise.
        training_images: as `on_inference_arrays` takes them.
        seed: of everything random.
        batch_size: changes the result in the last bits only, and the noise of arrays that the C kernels cannot read.
        on_batch: called with the number of images after each batch, of `passes(times, repeats)` times all images.

    Raises:
        ConfigError: a negative time, one that the noise model has no data for, or none at all.
        ValueError: other arguments out of their range.
    """
    for name, value in (("repeats", repeats), ("votes", votes), ("images", len(images))):
        if value < 1:
            raise ValueError(f"{name}: got {value}, allowed are numbers from 1")
    ready, calibrated_now = _moved(network, arrays, training_images, seed)
    if not noise:
        silence(ready)
    kinds = [layer.matrices for _, layer in _array_layers(ready) if isinstance(layer.matrices, AwareMatrices)]
    if not kinds:
        raise ValueError("network: has neither convolutions nor linear layers")
    times = list(dict.fromkeys(times))
    _check_times(times, kinds)

    def errors(of: nn.Module, repeat: int) -> VoteResult:
        own = int(_key(seed, 0, repeat, 0.0).words(Purpose.ANALOG_SEED, count=1, first_block=_DRAWS))
        return vote_error(of, images, labels, votes, seed=own, batch_size=batch_size, on_batch=on_batch)

    exact, _ = _moved(ready, _EXACT, None, seed)
    digital, found = [], []
    for repeat in range(repeats):
        digital.append(errors(exact, repeat))
        programmed = ProgrammedNetwork(ready, seed=seed, repeat=repeat)
        for seconds in times:
            programmed.age(seconds)
            found.append((seconds, errors(programmed.network, repeat), programmed.compensation))
    on, off = _noises(kinds)
    first = kinds[0].arrays
    ages = []
    for number, seconds in enumerate(times):
        own = found[number :: len(times)]
        ages.append(
            Age(
                seconds,
                float(getattr(first.noise_model, "t_0", 1.0)),
                tuple(result.single_error for _, result, _ in own),
                tuple(result.vote_error for _, result, _ in own),
                tuple(factor for _, _, factor in own if factor is not None),
            )
        )
    return Drift(
        len(images),
        votes,
        repeats,
        first,
        on,
        off,
        calibrated_now,
        statistics.fmean(result.single_error for result in digital),
        statistics.fmean(result.vote_error for result in digital),
        tuple(ages),
    )


def passes(times: Sequence[float], repeats: int) -> int:
    """How often `drift` goes through the images: for each programming once with exact products, once for each time."""
    return repeats * (len(times) + 1)


def duration(seconds: float) -> str:
    """A time for people: 0 s, 100 s, 1.5 h, 1 y (of 365 days)."""
    for name, size in _UNITS:
        text = f"{seconds / size:.4g}"
        if seconds >= size and math.isclose(float(text) * size, seconds, rel_tol=1e-9):
            return f"{text} {name}"
    return f"{seconds:.10g} s"


def _moved(
    network: nn.Module, arrays: InferenceArrays | None, training_images: Images | None, seed: int
) -> tuple[nn.Module, bool]:
    """`on_inference_arrays`, and whether it calibrated input ranges."""
    keyed = {name: layer.index for name, layer in network.named_modules() if isinstance(layer, KeyedLayer)}
    # Layers draw weights as they are made; torch's global generator stays as it was.
    with torch.random.fork_rng(devices=[]):
        # A copy, in which ordinary convolutions are tiled ones.
        moved = convert(network, tiles=1, scheme="none")
        layers = {layer: name for name, layer in _layers(moved)}
        new: dict[nn.Module, nn.Module] = {}
        for number, (layer, name) in enumerate(layers.items()):
            own = layer.arrays if isinstance(layer, ArrayLayer) else None
            kept = own if isinstance(own, InferenceArrays) else None
            wanted = arrays or kept or INFERENCE
            if wanted != kept:
                new[layer] = _on_arrays(layer, wanted, seed, number, known=name in keyed)
    moved = replaced(moved, new)
    fresh = iter(range(len(keyed), len(keyed) + len(layers)))
    for name, module in moved.named_modules():
        if isinstance(module, KeyedLayer):
            module.index = keyed[name] if name in keyed else next(fresh)
    if isinstance(moved, Network) and new:
        used = next(layer.arrays for _, layer in _array_layers(moved))
        assert isinstance(used, InferenceArrays)
        update = {"arrays": used.model_dump(mode="json")}
        moved.definition = moved.definition.model_copy(update=update)
    return moved, _calibrate(moved, training_images, seed)


def _on_arrays(layer: nn.Module, arrays: InferenceArrays, seed: int, number: int, *, known: bool) -> ArrayLayer:
    """A layer like another one, with the weights that it shows, on new arrays."""
    new: ArrayLayer
    assert isinstance(layer, (TiledConv2d, nn.Linear, AnalogLinear))
    weight, bias = layer.weight.detach(), layer.bias
    if isinstance(layer, TiledConv2d):
        new = layer.another(arrays)
    else:
        new = AnalogLinear(layer.in_features, layer.out_features, bias is not None, arrays=arrays)
    matrices = new.matrices
    assert isinstance(matrices, AwareMatrices)
    matrices.draw(_generator(_LINES, seed, number))
    new.to(weight.device, weight.dtype).train(layer.training)
    new.set_weights(weight, bias)
    new.seed.fill_(int(layer.seed) if known and isinstance(layer, ArrayLayer) else seed)
    if isinstance(layer, ArrayLayer):
        new.calls.copy_(layer.calls)
        if layer.matrices is not None:
            matrices.noise = layer.matrices.noise
        before = _range(layer.matrices) if isinstance(layer.matrices, AwareMatrices) else None
        for name, values in (_range(matrices) or {}).items():
            if before is not None:
                values.copy_(before[name])
    return new


def _calibrate(network: nn.Module, images: Images | None, seed: int) -> bool:
    """Takes input ranges that nobody learned from the inputs that layers have with exact products."""
    free = {}
    for number, layer in _array_layers(network):
        state = _range(layer.matrices) if isinstance(layer.matrices, AwareMatrices) else None
        if state is not None and not int(state["batches"]) and isinstance(layer.arrays, InferenceArrays):
            settings = layer.arrays.input_range
            # A range can also be learned from its first value on.
            if settings is not None and float(state["input_range"]) == torch.tensor(settings.init_value).item():
                free[number] = state
    if not free:
        return False
    if images is None or not len(images):
        raise ValueError("training_images: got none, and there are input ranges that nobody learned")
    exact, _ = _moved(network, _EXACT, None, seed)
    device = next(network.parameters()).device
    chosen = images[:: max(1, len(images) // _CALIBRATING)][:_CALIBRATING]
    hooks = []
    for number, layer in _array_layers(exact):
        if number in free:

            def observe(_: nn.Module, inputs: tuple[Tensor], state: dict[str, Tensor] = free[number]) -> None:
                calibrated(state, inputs[0], Calibration.MOVING_QUANTILE)

            hooks.append(layer.register_forward_pre_hook(observe))
    with evaluating(exact), torch.no_grad():
        for ids, x in pixel_batches(chosen, _BATCH, device):
            with draws(exact, images=ids, seed=seed, stream="test"):
                exact(x)
    return True


def _range(matrices: AwareMatrices) -> dict[str, Tensor] | None:
    """The state of an input range: the tensors themselves."""
    if matrices.input_range is None:
        return None
    seen = matrices.get_buffer("batches")
    return {"input_range": matrices.input_range.data, "batches": seen}


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers whose matrices can lie on arrays."""
    for name, module in network.named_modules():
        if isinstance(module, (ArrayLayer, nn.Linear)):
            yield name, module


def _array_layers(network: nn.Module) -> Iterator[tuple[int, ArrayLayer]]:
    """Numbers and layers of those."""
    return ((n, m) for n, m in enumerate(m for m in network.modules() if isinstance(m, ArrayLayer)))


def _check_times(times: Sequence[float], kinds: Sequence[AwareMatrices]) -> None:
    if not times:
        raise ConfigError("times: got none", hint="name at least one, in seconds after programming")
    nothing, generator = torch.zeros(1), torch.Generator()
    for seconds in times:
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ConfigError(f"times: got {seconds:g} s, allowed are numbers from 0", hint="name seconds")
        for model in {kind.arrays.noise_model for kind in kinds}:
            try:
                model.at(nothing, nothing, seconds, generator)
            except ValueError as error:
                hint = f"{model.kind} was measured at these times only"
                raise ConfigError(str(error), hint=hint) from None


def _noises(kinds: Sequence[AwareMatrices]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What random or drifting there is, and what of it is switched off, in words."""
    models = [kind.arrays.noise_model for kind in kinds]
    on = [words for scale, words in _SCALES.items() if any(getattr(model, scale, 0) for model in models)]
    off: list[str] = []
    for kind in kinds:
        io = kind.arrays.forward
        if not io.is_perfect and io.quiet() != io:
            (on if kind.noise else off).append(_READING)
    return tuple(dict.fromkeys(on)), tuple(dict.fromkeys(off))


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _key(seed: int, number: int, repeat: int, seconds: float) -> Draw:
    """The key of a layer's programming; the bits of the time stand where images have their ids."""
    bits = torch.tensor([abs(seconds)], dtype=torch.float32).view(torch.int32).to(torch.int64)
    return Draw(seed, repeat, bits, Stream.FIXED, number)


def _generator(part: int, seed: int, number: int, repeat: int = 0, seconds: float = 0.0) -> torch.Generator:
    return _key(seed, number, repeat, seconds).generator(part, torch.device("cpu"))
