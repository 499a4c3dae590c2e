"""`python -m tests.soak`: the long run, with a report; exit code 1 where something was lost."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from rapa_cli import checkpoint, runs
from tests.soak import kills, load
from tests.soak.kills import Kill, Tally
from tests.soak.launcher import Launcher

_ENDLESS = 10**6
_FILES = 12
"""The renamings among which the one is drawn that does not come to pass: of the manifest and of two epochs or three."""

_EARLY = 3
"""The first kills of a run, in place of its first renamings: of the manifest and of metrics, before any checkpoint."""

_MOST_CPU = 2.0
"""Seconds of CPU time from a signal to the end of a training; by the clock it is longer where others compute too."""

_MEASURED = 10
"""Kills from one measurement of the time that a short run takes to the next."""


class Soak:
    """The parts of the long run, in a folder of their own."""

    def __init__(self, folder: Path, launcher: Launcher, seed: int, most: int) -> None:
        self._folder, self._launcher, self._rng, self._most = folder, launcher, Random(seed), most

    def kills(self) -> Iterator[str]:
        """Runs killed at random moments; the first of them `most` times, the others a tenth as often."""
        total = Tally()
        for number, name in enumerate(kills.SETTINGS):
            count = self._most if number == 0 else max(self._most // 10, 1)
            begin, parts, whole = kills.words(name, _ENDLESS), f"{number} parts", f"{number} whole"
            tally = kills.killed_often(self._launcher, self._folder, parts, begin, self._moments(name, count))
            epochs = self._epochs(parts) + 2
            kills.finish(self._launcher, self._folder, parts, begin, "--epochs", str(epochs))
            kills.finish(self._launcher, self._folder, whole, kills.words(name, epochs))
            kills.same(self._folder / whole, self._folder / parts)
            assert tally.kills == count, tally
            assert tally.early >= min(_EARLY, count), tally
            total.add(tally)
            yield f"{name}: {tally.kills} kills ({_told(tally)}), {epochs} epochs, the same to the last bit"
        assert total.renaming >= self._most // 10, total
        yield f"in all {total.kills} kills, {_told(total)}"

    def signals(self) -> Iterator[str]:
        """Runs stopped by signals: they save, and end with the exit code of the signal."""
        begin = kills.words("random", _ENDLESS)
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            run, lingered, spent = f"stopped {code}", [], []
            kills.killed_often(self._launcher, self._folder, run, begin, [Kill(rename=12)])
            for _ in range(max(self._most // 10, 1)):
                ended = self._launcher.run(["train", "--resume", run], seconds=self._rng.uniform(2, 6), number=number)
                assert ended.code == code, (ended.code, ended.messages[-500:])
                assert ended.lingered is not None
                assert ended.spent is not None
                assert ended.spent <= _MOST_CPU, ended
                lingered.append(ended.lingered)
                spent.append(ended.spent)
            epochs, whole = self._epochs(run) + 2, f"whole {code}"
            kills.finish(self._launcher, self._folder, run, begin, "--epochs", str(epochs))
            kills.finish(self._launcher, self._folder, whole, kills.words("random", epochs))
            kills.same(self._folder / whole, self._folder / run)
            yield (
                f"{signal.Signals(number).name}: {len(lingered)} times, exit code {code}, the longest took "
                f"{max(lingered):.2f} s by the clock, {max(spent):.2f} s of CPU time, the same to the last bit"
            )

    def reproduce(self) -> Iterator[str]:
        """Experiments killed, or stopped by signals, at random moments."""
        kills.prepare_experiment(self._folder, self._launcher)
        started = time.monotonic()
        whole = self._launcher.run([*kills.EXPERIMENT, "--out", "experiments whole"])
        seconds = time.monotonic() - started
        # A claim that fails is no failure here.
        assert whole.code in (0, 4), whole.messages[-2000:]
        codes = {signal.SIGKILL: kills.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
        ends, lingered = Counter[str](), []
        command = [*kills.EXPERIMENT, "--out", "experiments parts"]
        for _ in range(max(self._most // 10, 3)):
            number = self._rng.choice(list(codes))
            ended = self._launcher.run(command, seconds=self._rng.uniform(0.1, 0.7) * seconds, number=number)
            if ended.lingered is None:
                assert ended.code == whole.code, (ended.code, ended.messages[-2000:])
                break
            assert ended.code == codes[number], (ended.code, ended.messages[-2000:])
            ends[number.name] += 1
            if number != signal.SIGKILL:
                lingered.append(ended.lingered)
        ended = self._launcher.run(command)
        assert ended.code == whole.code, ended.messages[-2000:]
        kills.same_experiments(self._folder / "experiments whole", self._folder / "experiments parts")
        told = ", ".join(f"{count} {name}" for name, count in sorted(ends.items()))
        yield f"{told}, the longest took {max(lingered, default=0):.2f} s to end, the same to the last bit"

    def load(self) -> Iterator[str]:
        """Memory over long runs."""
        for measured in (load.epochs, load.voted, load.attacked):
            found = measured(self._launcher, self._folder)
            assert found.growth <= found.limit, found
            yield (
                f"{found.name}: {found.kib_few / 1024:.0f} MiB for {found.few}, "
                f"{found.kib_many / 1024:.0f} MiB for {found.many}, {found.limit / 1024:.0f} MiB more are allowed"
            )

    def _moments(self, name: str, count: int) -> Iterator[Kill]:
        """So many kills; what a short run takes is measured now and then, since others may use the machine as well."""
        usual = 0.0
        for number in range(count):
            if number % _MEASURED == 0:
                started = time.monotonic()
                kills.done(self._launcher.run([*kills.words(name, 1), "--out", f"{name} {number}"]))
                usual = time.monotonic() - started
            if number < _EARLY:
                yield Kill(rename=number + 1)
            elif self._rng.randrange(3) == 0:
                yield Kill(rename=self._rng.randint(1, _FILES))
            else:
                yield Kill(seconds=self._rng.uniform(0, 1.2 * usual))

    def _epochs(self, run: str) -> int:
        """How many epochs of a run are done."""
        path = self._folder / run / runs.LAST
        progress = checkpoint.read(path).description.progress if path.exists() else None
        return progress.epoch if progress is not None else 0


def _told(tally: Tally) -> str:
    return (
        f"{tally.renaming} in place of a renaming, {tally.early} before the first checkpoint, {tally.resumed} of a "
        "run that was gone on with"
    )


def main() -> int:
    """Does the parts that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="kills, signals, reproduce, load; all when left out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="of the first run")
    asked = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="rapa-soak-") as name:
        folder = Path(name)
        with Launcher(folder, folder / "data") as launcher:
            soak = Soak(folder, launcher, asked.seed, asked.kills)
            parts: dict[str, Callable[[], Iterator[str]]] = {
                "kills": soak.kills,
                "signals": soak.signals,
                "reproduce": soak.reproduce,
                "load": soak.load,
            }
            kills.prepare(folder, launcher, train=28, test=12)
            for part in asked.parts or parts:
                failed += not _did(part, parts[part])
    return int(failed > 0)


def _did(name: str, part: Callable[[], Iterator[str]]) -> bool:
    started = time.monotonic()
    try:
        for line in part():
            _say(f"{name}: {line}")
    except AssertionError:
        traceback.print_exc()
        _say(f"{name}: FAILED")
        return False
    _say(f"{name}: done in {time.monotonic() - started:.0f} s")
    return True


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
