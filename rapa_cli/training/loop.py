"""The training loop, and what it leaves in the run folder.

Everything random is keyed by the seed, the epoch and the image, so a run goes on from weights, momentum and progress
alone.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rapa_cli import checkpoint, runs
from rapa_cli.analog.module import AwareMatrices, PulsedMatrices
from rapa_cli.analysis.evaluation import Evaluation, evaluate, evaluating
from rapa_cli.analysis.similarity import similarity
from rapa_cli.analysis.voting import vote_error
from rapa_cli.checkpoint import Description, Progress
from rapa_cli.config import Recipe
from rapa_cli.data.augmentation import augment, moved, pixels
from rapa_cli.data.images import DataSet
from rapa_cli.data.stream import Crop, read
from rapa_cli.errors import CheckFailed, ConfigError, FileError, Interrupted
from rapa_cli.keyed import draws, global_generator
from rapa_cli.layers.network import Network, Statistics, build
from rapa_cli.philox import permutation
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.training import captured
from rapa_cli.training.diverging import first_not_finite
from rapa_cli.training.parallel import ALONE, Team, needs_whole_batches
from rapa_cli.training.schedule import optimizer, rate, set_rate
from rapa_cli.training.sgd import AnalogSGD
from rapa_cli.training.stopping import StopRequest

# What is proposed to somebody whose rate was far above what any training bears.
_USUAL_RATE = 0.01
# As many as `evaluate` takes.
_TEST_BATCH = 200


class Watcher(Protocol):
    """Who is told how a training goes."""

    def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
        """After each step."""

    def testing(self, epoch: int) -> None:
        """Before the test images are classified."""

    def epoch(self, row: Mapping[str, Any], progress: Progress, images_per_second: float) -> None:
        """After each epoch, with its row of metrics."""


@dataclass
class Sums:
    """Sums over the images of an epoch so far, on the device, so that no step waits for them."""

    loss: Tensor
    wrong: Tensor
    seen: int = 0

    @classmethod
    def of(cls, progress: Progress, device: torch.device) -> Sums:
        """The sums that a checkpoint carries."""
        return cls(
            torch.tensor(progress.loss_sum, dtype=torch.float64, device=device),
            torch.tensor(progress.wrong, dtype=torch.int64, device=device),
            progress.seen,
        )


@dataclass
class Training:
    """A training in progress.

    Attributes:
        folder: the run folder.
        manifest: what the run was asked to do.
        data: the images.
        network: on its device.
        sgd: the optimizer.
        team: the processes that train it together, each with a `Training`.
        progress: how far it is.
        rows: the metrics of the epochs so far.
        timing: their times.
    """

    folder: Path
    manifest: runs.Manifest
    data: DataSet
    network: Network
    sgd: AnalogSGD
    team: Team = ALONE
    progress: Progress = field(default_factory=Progress)
    rows: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)

    def run(self, watcher: Watcher, stop: StopRequest) -> None:
        """Trains until the recipe's last epoch.

        Raises:
            Interrupted: a signal came, to one process or several; the state is saved.
            KeyboardInterrupt: a second one came; nothing is saved, since it may have come in the middle of a step.
            CheckFailed: the loss is not finite any more; the last good checkpoint is kept.
            FileError: a file could not be written.
            PeerLost: another process has ended.
        """
        while self.progress.epoch < self.manifest.recipe.epochs:
            self._epoch(watcher, stop)

    def save(self) -> None:
        """Writes last.safetensors, from the first process; all have the same state."""
        with self.team.together():
            if self.team.first:
                self._write_last()

    def _write_last(self) -> None:
        state = self.sgd.state
        momentum = {
            name: state[parameter]["momentum_buffer"]
            for name, parameter in self.network.named_parameters()
            if state.get(parameter, {}).get("momentum_buffer") is not None
        }
        checkpoint.save(self.folder / runs.LAST, self._description(), self.network.state_dict(), momentum)

    def _epoch(self, watcher: Watcher, stop: StopRequest) -> None:
        recipe, epoch = self.manifest.recipe, self.progress.epoch
        device = next(self.network.parameters()).device
        sums = Sums.of(self.progress, device)
        start, seen_before = time.perf_counter(), sums.seen
        before = self.progress
        try:
            self._steps(sums, watcher, stop, device)
            self._check_finite(sums)
            training_seconds = time.perf_counter() - start
            watcher.testing(epoch)
            test = self._test(stop, device)
            more = self._votes(stop) | self._similarities()
        except (Interrupted, FileError) as error:
            if isinstance(error, FileError) and self.team.size > 1:
                # The others are in the midst of a step.
                raise
            self._check_finite(sums)
            self.progress = before.model_copy(
                update={
                    "step": self._done(sums),
                    "seen": sums.seen,
                    "loss_sum": float(sums.loss),
                    "wrong": int(sums.wrong),
                    "seconds": before.seconds + time.perf_counter() - start,
                    "images": before.images + sums.seen - seen_before,
                }
            )
            self.save()
            if isinstance(error, FileError):
                # An image that cannot be read: what was done is not lost, and goes on once it can be.
                raise FileError(
                    error.message, hint=f"put a whole image there, and go on: --resume {self.folder}"
                ) from None
            raise
        row = {
            "epoch": epoch + 1,
            "rate": rate(recipe, epoch),
            "train_loss": float(sums.loss) / max(sums.seen, 1),
            "train_error": 100 * int(sums.wrong) / max(sums.seen, 1),
            "test_loss": test.loss,
            "test_error": test.error,
            **more,
        }
        seconds, images = time.perf_counter() - start, sums.seen - seen_before
        best = before.best_test_error is None or test.error < before.best_test_error
        self.progress = Progress(
            epoch=epoch + 1,
            test_error=test.error,
            train_error=row["train_error"],
            best_test_error=test.error if best else before.best_test_error,
            best_epoch=epoch + 1 if best else before.best_epoch,
            seconds=before.seconds + seconds,
            images=before.images + images,
        )
        self.rows.append(row)
        self.timing.append(
            {"epoch": epoch + 1, "train_seconds": training_seconds, "seconds": seconds, "images": images}
        )
        with self.team.together():
            if self.team.first:
                runs.write_rows(self.folder, "metrics", self.rows, lines=True)
                runs.write_rows(self.folder, "timing", self.timing)
                if best:
                    checkpoint.save(self.folder / runs.BEST, self._description(), self.network.state_dict(), {})
                self._write_last()
        watcher.epoch(row, self.progress, images / max(training_seconds, 1e-9))

    def _steps(self, sums: Sums, watcher: Watcher, stop: StopRequest, device: torch.device) -> None:
        """The steps that the epoch has left, added to its sums."""
        recipe, seed, epoch = self.manifest.recipe, self.manifest.seed, self.progress.epoch
        order = torch.split(permutation(seed, epoch, len(self.data.train)), recipe.batch_size)
        left = order[self.progress.step :]
        own = [ids[self.team.part(len(ids))] for ids in left]
        crop = Crop(seed, epoch, recipe.crop) if recipe.crop < 1 else None
        set_rate(self.sgd, rate(recipe, epoch))
        self.network.train()
        whole: Callable[..., None] = functools.partial(self._step, sums, recipe.batch_size)
        if self._recorder is not None:
            # Anew in each epoch, since its rate and its number are constants of what is captured.
            whole = captured.Captured(whole, self._recorder)
        for ids, part, pictures in zip(left, own, read(self.data.train.images, own, crop), strict=True):
            tensors = [moved(tensor, device) for tensor in (part, pictures, self.data.train.labels[part])]
            if len(ids) == recipe.batch_size:
                whole(*tensors)
            else:
                self._step(sums, len(ids), *tensors)
            sums.seen += len(ids)
            watcher.step(epoch, self._done(sums), len(order), sums)
            self.team.check(stop)

    def _done(self, sums: Sums) -> int:
        """How many steps of the epoch are done."""
        return -(-sums.seen // self.manifest.recipe.batch_size)

    @functools.cached_property
    def _recorder(self) -> captured.Recorder | None:
        """What captures steps in CUDA graphs; None where something in them needs the host."""
        network = self.network
        on_arrays = any(isinstance(layer, PulsedMatrices | AwareMatrices) for layer in network.modules())
        if on_arrays or self.team.size > 1 or network.definition.module is not None:
            return None
        return captured.recorder(next(network.parameters()).device)

    def _step(self, sums: Sums, batch: int, ids: Tensor, images: Tensor, labels: Tensor) -> None:
        """One step.

        Args:
            sums: what the device has of them is added to.
            batch: how many images all processes have.
            ids: of this process's part of the batch, (B,), on the device, as all are.
            images: uint8 (B, C, H, W).
            labels: int64 (B,).
        """
        loss, wrong = self._gradients(ids, images, labels)
        loss, wrong = self.team.combine(self.network.parameters(), loss, wrong, len(ids) / batch)
        # Elsewhere looking would make every step wait for the device; there it is noticed at the end of the epoch.
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            raise self._diverged(sums, first_not_finite(self.network, lambda: self._gradients(ids, images, labels)))
        self.sgd.step()
        sums.loss += loss * batch
        sums.wrong += wrong

    def _gradients(self, ids: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leaves the gradients of the mean loss of images; gives that loss, and how many were classified wrongly."""
        self.sgd.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=ids.device)
        wrong = torch.zeros((), dtype=torch.int64, device=ids.device)
        parts = (tensor.chunk(self.manifest.recipe.accumulate) for tensor in (ids, images, labels))
        for part in zip(*parts, strict=True) if len(ids) else ():
            of_part, wrong_of_part = self._add_gradients(*part, share=len(part[0]) / len(ids))
            loss += of_part
            wrong += wrong_of_part
        return loss, wrong

    def _add_gradients(self, ids: Tensor, images: Tensor, labels: Tensor, *, share: float) -> tuple[Tensor, Tensor]:
        """Adds the gradients of a part of the images, their mean loss times its share of them."""
        recipe, seed, epoch = self.manifest.recipe, self.manifest.seed, self.progress.epoch
        device = ids.device
        x = augment(
            pixels(images, device), ids, seed=seed, epoch=epoch, mirror=recipe.mirror, brightness=recipe.brightness
        )
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=recipe.amp)
        # Layers that this package does not know, as dropout, draw from torch's own generator.
        foreign = self.network.definition.module is not None
        own = global_generator(seed=seed, draw=epoch, images=ids) if foreign else contextlib.nullcontext()
        with mixed, own, draws(self.network, images=ids, seed=seed, draw=epoch, stream="train"):
            logits = self.network(x)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        if share < 1:
            loss = loss * share
        with self.network.at_fault():
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), (logits.detach().argmax(1) != labels).sum()

    def _test(self, stop: StopRequest, device: torch.device) -> Evaluation:
        """Classifies the test images; several processes share them."""
        seed, epoch, test, team = self.manifest.seed, self.progress.epoch, self.data.test, self.team
        if team.size == 1:
            return evaluate(
                self.network, test.images, test.labels, seed=seed, draw=epoch, on_batch=lambda _: stop.check()
            )
        own = torch.arange(len(test))[team.part(len(test))]
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        with evaluating(self.network), torch.inference_mode():
            # The largest part says how many batches there are: all processes must ask equally often whether to stop.
            wanted = [own[first : first + _TEST_BATCH] for first in range(0, -(-len(test) // team.size), _TEST_BATCH)]
            for ids, images in zip(wanted, read(test.images, wanted), strict=True):
                if len(ids):
                    labels = test.labels[ids].to(device)
                    with draws(self.network, images=ids.to(device), seed=seed, draw=epoch, stream="test"):
                        logits = self.network(pixels(images, device))
                    wrong += (logits.argmax(1) != labels).sum()
                    loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
                team.check(stop)
        all_wrong, all_loss = team.total(float(wrong), float(loss))
        return Evaluation(len(test), int(all_wrong), all_loss / len(test))

    def _votes(self, stop: StopRequest) -> dict[str, float]:
        """The error of a vote on the test images, where the recipe asks for one; several processes do the same."""
        draws, test = self.manifest.recipe.test_votes, self.data.test
        if draws == 1:
            return {}
        on_batch = (lambda _: stop.check()) if self.team.size == 1 else None
        voted = vote_error(self.network, test.images, test.labels, draws, seed=self.manifest.seed, on_batch=on_batch)
        return {runs.VOTE_ERROR: voted.vote_error}

    def _similarities(self) -> dict[str, float | None]:
        """S of each convolution with several tiles."""
        return {
            f"{runs.SIMILARITY}{name}": similarity(layer.weight)
            for name, layer in self.network.named_modules()
            if isinstance(layer, TiledConv2d) and len(layer.weight) > 1
        }

    def _check_finite(self, sums: Sums) -> None:
        """Raises CheckFailed before a diverged state could take the place of a good checkpoint."""
        if torch.isfinite(sums.loss) and checkpoint.is_finite(self.network.state_dict()):
            return
        raise self._diverged(sums, None)

    def _diverged(self, sums: Sums, layer: str | None) -> CheckFailed:
        """The error for a loss that is not finite, and the first layer whose output was not, where that is known."""
        recipe, epoch = self.manifest.recipe, self.progress.epoch
        step = self._done(sums) + (layer is not None)
        what = "the loss or a weight" if layer is None else f"the output of layer '{layer}'"
        return CheckFailed(
            f"the training diverged in epoch {epoch + 1}, by step {step}: {what} is not finite "
            f"at rate {rate(recipe, epoch):g}",
            hint=f"lower the rate, as in --lr {min(recipe.lr / 3, _USUAL_RATE):.2g}, or warm up: --set warmup_epochs=1",
        )

    def _description(self) -> Description:
        return Description(
            network=self.network.definition,
            shape=self.network.shape,
            classes=self.data.classes,
            data=self.manifest.data,
            seed=self.manifest.seed,
            recipe=self.manifest.recipe,
            progress=self.progress,
            provenance=self.manifest.provenance,
        )


def untrained(
    manifest: runs.Manifest,
    data: DataSet,
    device: torch.device,
    team: Team = ALONE,
    *,
    code: Sequence[Path] = (),
    weights: Mapping[str, Tensor] | None = None,
) -> Network:
    """The network that a run starts from, the same in all processes.

    Args:
        manifest: what the run is asked to do.
        data: the images.
        device: where it computes.
        team: the processes that train it.
        code: Python files whose code may be run, for a network that is written in one.
        weights: for `build`, to begin with.

    Raises:
        ConfigError: the network does not fit the images, or cannot be trained by several processes.
        FileError: a Python file is another one, or the weights are those of another network.
    """
    statistics = Statistics(data.mean, data.std, data.mean_image)
    network = build(
        manifest.network,
        data.shape,
        len(data.classes),
        seed=manifest.seed,
        statistics=statistics,
        code=code,
        weights=weights,
    )
    team.accept(network, manifest.recipe.batch_size, data)
    _check_batches(network, manifest.recipe, len(data.train))
    return placed(network, device)


def placed(network: Network, device: torch.device) -> Network:
    """The network on a device; on a CUDA device ordinary convolutions have channels last in memory, as images have."""
    network.to(device)
    if device.type == "cuda":
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(memory_format=torch.channels_last)
    return network


def _check_batches(network: nn.Module, recipe: Recipe, images: int) -> None:
    """Raises ConfigError where batches are too small for a layer, or their parts cannot be computed apart."""
    size, parts = recipe.batch_size, recipe.accumulate
    if parts > size:
        raise ConfigError(
            f"--accumulate {parts}: that is less than one image for each part of a batch of {size}",
            hint=f"allowed are 1 to {size}",
        )
    for name, layer in network.named_modules():
        # Normalisation and dropout take each part for a batch.
        on_arrays = isinstance(layer, PulsedMatrices | AwareMatrices)
        reason = needs_whole_batches(layer) if parts > 1 and on_arrays else None
        if reason:
            raise ConfigError(f"--accumulate {parts}: layer '{name.rpartition('.')[0]}': {reason}", hint="leave it out")
    last = images % size or size
    norms = [name for name, layer in network.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if norms and any(len(part) == 1 for count in (size, last) for part in torch.empty(count).chunk(parts)):
        raise ConfigError(
            f"--batch-size {size}: of {images} images some are computed alone, too few for layer '{norms[0]}'",
            hint="take another batch size",
        )


def begin(
    folder: Path,
    manifest: runs.Manifest,
    data: DataSet,
    network: Network,
    team: Team = ALONE,
    *,
    code: Sequence[Path] = (),
) -> Training:
    """Starts a run with a network that is not trained yet: writes its manifest, and copies of its code."""
    manifest = manifest.model_copy(update={"network": network.definition})
    _write_manifest(folder, manifest, team, code)
    training = Training(folder, manifest, data, network, optimizer(network, manifest.recipe), team)
    if runs.WEIGHTS in manifest.provenance:
        # A run that is stopped goes on from these weights, and not from new ones.
        training.save()
    return training


def resume(
    folder: Path,
    manifest: runs.Manifest,
    data: DataSet,
    device: torch.device,
    team: Team = ALONE,
    *,
    code: Sequence[Path] = (),
) -> Training:
    """Goes on with a run from its last checkpoint, or from the beginning where it has none.

    The number of processes may be another one than before. The first reads the run folder, the others need not see it.

    Args:
        folder: of the run.
        manifest: what it was asked to do.
        data: the images.
        device: where it computes.
        team: the processes that train it.
        code: Python files whose code may be run, for a network that is written in one.

    Raises:
        FileError: the checkpoint is damaged or of another network, or the metrics end before it.
        ConfigError: the data set is another one, or fewer epochs are asked for than are done, or the network cannot be
            trained by several processes.
    """
    path = folder / runs.LAST
    saved = team.from_first(lambda: checkpoint.read(path) if path.exists() else None)
    if saved is None and runs.WEIGHTS in manifest.provenance:
        raise FileError(
            f"the run in {folder} was stopped before it had kept the weights that it began with",
            hint="begin it anew, with --weights and another --out",
        )
    if saved is None:
        return begin(folder, manifest, data, untrained(manifest, data, device, team, code=code), team, code=code)
    if saved.description.network != manifest.network or saved.description.progress is None:
        raise FileError(f"checkpoint {path} does not belong to the run in {folder}", hint="was it copied there?")
    if saved.description.shape != data.shape or saved.description.classes != data.classes:
        raise ConfigError(
            f"data set '{data.name}' has other images or classes than the run in {folder} was trained on",
            hint=f"the run's data set is '{manifest.data}'",
        )
    progress = saved.description.progress
    begun = progress.epoch + (progress.step > 0)
    if manifest.recipe.epochs < begun:
        raise ConfigError(
            f"--epochs {manifest.recipe.epochs}: the run in {folder} is in epoch {begun} already",
            hint=f"allowed are {begun} and more; for fewer begin a new run with --out",
        )
    network = placed(checkpoint.restore(saved, path, code), device)
    team.accept(network, manifest.recipe.batch_size, data)
    sgd = optimizer(network, manifest.recipe)
    for name, parameter in network.named_parameters():
        if name in saved.optimizer:
            if saved.optimizer[name].shape != parameter.shape:
                raise FileError(
                    f"checkpoint {path} cannot be used: the momentum of '{name}' has the wrong shape",
                    hint=f"was {runs.LAST} copied there from another run?",
                )
            # In memory as the parameter is, which the optimizer's fused step relies on.
            sgd.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(saved.optimizer[name])
    rows, timing = team.from_first(lambda: (runs.read_metrics(folder), runs.read_timing(folder)))
    rows, timing = ([row for row in table if row["epoch"] <= progress.epoch] for table in (rows, timing))
    if rows and rows[-1]["epoch"] != progress.epoch:
        raise FileError(
            f"{folder / 'metrics.jsonl'} ends with epoch {rows[-1]['epoch']}, and {path} is of epoch {progress.epoch}",
            hint="put the whole file back, or delete it to go on without what was measured before",
        )
    _write_manifest(folder, manifest, team)
    return Training(folder, manifest, data, network, sgd, team, progress, rows, timing)


def _write_manifest(folder: Path, manifest: runs.Manifest, team: Team, code: Sequence[Path] = ()) -> None:
    with team.together():
        if team.first:
            runs.keep_code(folder, code)
            runs.write_manifest(folder, manifest)
