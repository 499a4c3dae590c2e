"""A training as it is watched: on a terminal a view that is drawn anew now and then, else a line for each epoch."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rapa_cli import console

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from rapa_cli.checkpoint import Progress
    from rapa_cli.config import Recipe
    from rapa_cli.training.loop import Sums

# How often it is drawn: asking the device for the loss so far makes it wait.
_REFRESH_SECONDS = 0.5
_BLOCKS, _PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#"
_BAR, _PLAIN_BAR = ("━", "─"), ("#", "-")
# From so many columns on, words are written out.
_WIDE = 72
_MOST = 100
_FIGURE = 9
# A curve's key in the metrics, long and short name, and colour.
_CURVES = (
    ("train_loss", "loss", "loss", "cyan"),
    ("train_error", "train error", "train", "blue"),
    ("test_error", "test error", "test", "green"),
    ("rate", "rate", "rate", "yellow"),
)


def sparkline(values: Sequence[float], width: int, blocks: str = _BLOCKS) -> str:
    """A curve of one line: the lowest value is the lowest block, the highest one the highest.

    Args:
        values: finite or not; of more than there is room for, neighbours are averaged.
        width: columns, at least 1.
        blocks: from low to high.
    """
    count = min(len(values), width)
    edges = [round(number * len(values) / count) for number in range(count + 1)] if count else []
    groups = [values[start:end] for start, end in itertools.pairwise(edges)]
    means = [sum(group) / len(group) for group in groups]
    known = [mean for mean in means if math.isfinite(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    steps = len(blocks) - 1

    def block(mean: float) -> str:
        if not math.isfinite(mean):
            return "?"
        return blocks[round((mean - low) / (high - low) * steps)] if high > low else blocks[0]

    return "".join(map(block, means))


def _figure(key: str, value: float) -> str:
    return f"{value:.2f} %" if key.endswith("error") else f"{value:.3g}" if key == "rate" else f"{value:.3f}"


class View:
    """Watches a training.

    Args:
        recipe: of the training.
        rows: the metrics so far; the training adds to them, or to a list like it.
    """

    def __init__(self, recipe: Recipe, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self._recipe, self._epochs = recipe, recipe.epochs
        self._rows = list(rows)
        self._screen = console.err()
        self._live: Live | None = None
        self._drawn = self._began = time.monotonic()
        self._first: int | None = None
        self._done = self._all = 0
        self._epoch = len(self._rows)
        self._now: dict[str, float] = {}
        # Before the first epoch has ended, its own course is the curve.
        self._course: list[dict[str, float]] = []
        self._doing = ""

    def __enter__(self) -> View:
        if self._screen.is_terminal and not self._screen.quiet:
            from rich.live import Live

            self._live = Live(console=self._screen, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            if self._all:
                self._draw()
            self._live.stop()

    def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
        """Draws loss and error of the epoch so far now and then."""
        if self._live is None:
            return
        now = time.monotonic()
        if self._first is None:
            # What came before was not done just now, and the first step also prepares the others.
            self._first, self._began = epoch * steps + step, now
        if now - self._drawn < _REFRESH_SECONDS:
            return
        from rapa_cli.training.schedule import rate

        self._epoch, self._done, self._all = epoch, epoch * steps + step, self._epochs * steps
        self._now = {
            "train_loss": float(sums.loss) / max(sums.seen, 1),
            "train_error": 100 * int(sums.wrong) / max(sums.seen, 1),
            "rate": rate(self._recipe, epoch),
        }
        if not self._rows:
            self._course.append(self._now)
        passed = now - self._began
        speed = (self._done - self._first) * self._recipe.batch_size / passed if passed > 0 else 0.0
        self._doing = f"{speed:,.0f} images/s" if speed else ""
        self._draw()

    def testing(self, epoch: int) -> None:
        """Says that the test images are classified."""
        if self._live is not None and self._all:
            self._doing = "testing"
            self._draw()

    def epoch(self, row: Mapping[str, Any], progress: Progress, images_per_second: float) -> None:
        """Takes the epoch into the curves, or shows its line."""
        self._rows.append(row)
        if self._live is not None:
            steps = self._all // self._epochs if self._all else 1
            self._all, self._done, self._now = self._epochs * steps, row["epoch"] * steps, {}
            self._epoch, self._doing = row["epoch"] - 1, f"{images_per_second:,.0f} images/s"
            self._draw()
            return
        self._screen.print(
            f"epoch {row['epoch']:>{len(str(self._epochs))}}/{self._epochs}  rate {row['rate']:.3g}  "
            f"loss {row['train_loss']:.3f}  train {row['train_error']:.2f} %  test {row['test_error']:.2f} %  "
            f"{images_per_second:.0f} images/s",
            markup=False,
            highlight=False,
        )

    def _draw(self) -> None:
        assert self._live is not None
        self._drawn = time.monotonic()
        self._live.update(self.lines(self._screen.width), refresh=True)

    def lines(self, width: int) -> Text:
        """The view, of lines that are shorter than `width`."""
        from rich.text import Text

        width = min(width, _MOST) - 1
        lines = [*self._head(width), *self._curves(width)]
        return Text("\n").join(lines)

    def _head(self, width: int) -> list[Text]:
        """How far the training is, how quick, and for how long."""
        from rich.text import Text

        full, rest = _BAR if self._unicode else _PLAIN_BAR
        part = self._done / self._all if self._all else 0.0
        where = f"epoch {min(self._epoch + 1, self._epochs)}/{self._epochs}  "
        percent = f"  {100 * part:3.0f} %"
        left = self._left()
        said = [word for word in (self._doing, left) if word]
        beside = "".join(f"  {word}" for word in said) if width >= _WIDE - 1 else ""
        room = max(width - len(where) - len(percent) - len(beside), 4)
        done = round(part * room)
        bar = Text.assemble((where, "bold"), (full * done, "magenta"), (rest * (room - done), "dim"), percent, beside)
        return [bar] if width >= _WIDE - 1 else [bar, Text("  ".join(said))]

    def _curves(self, width: int) -> list[Text]:
        from rich.text import Text

        wide = width >= _WIDE - 1
        label = max(len(long if wide else short) for _, long, short, _ in _CURVES) + 2
        lowest = self._lowest() if wide else ""
        room = max(width - label - _FIGURE - 2 - (len(lowest) + 2 if lowest else 0), 4)
        found = []
        for key, long, short, colour in _CURVES:
            values = [float(row[key]) for row in self._rows] or [now[key] for now in self._course if key in now]
            if self._rows and key in self._now:
                values.append(self._now[key])
            curve = sparkline(values, room, _BLOCKS if self._unicode else _PLAIN_BLOCKS)
            figure = "" if not values else _figure(key, values[-1])
            said = f"  {lowest}" if key == "test_error" and lowest else ""
            found.append(
                Text.assemble(
                    (f"{long if wide else short:<{label}}", "dim"),
                    (f"{figure:>{_FIGURE}}  ", "bold"),
                    (f"{curve:<{room}}" if said else curve, colour),
                    (said, "dim"),
                )
            )
        return found

    def _lowest(self) -> str:
        if not self._rows:
            return ""
        row = min(self._rows, key=lambda row: float(row["test_error"]))
        return f"lowest {row['test_error']:.2f} %, epoch {row['epoch']}"

    def _left(self) -> str:
        """The time left by the speed so far, testing counted in."""
        if self._first is None or self._done <= self._first or self._done >= self._all:
            return ""
        passed = time.monotonic() - self._began
        return f"{console.duration(passed / (self._done - self._first) * (self._all - self._done))} left"

    @property
    def _unicode(self) -> bool:
        return (self._screen.encoding or "").lower().startswith("utf")
