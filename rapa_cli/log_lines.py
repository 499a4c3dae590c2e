"""Progress where there is no terminal: lines in a log."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress, TaskID

from rapa_cli import console

# Where there is no terminal the first line comes after so many seconds, each next one when twice as many have gone by,
# and at the longest so many later.
_FIRST_LINE, _LATEST_LINE = 10.0, 600.0


class Lines(Progress):
    """What a bar would show, in a log: a line now and then, less often the longer it takes."""

    _next = _FIRST_LINE

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As a bar's."""
        super().update(task_id, **changes)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As a bar's."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        taken = task.elapsed or 0.0
        if taken < self._next:
            return
        self._next = taken + min(taken, _LATEST_LINE)
        done = f"{task.percentage:.0f} %, " if task.total else ""
        console.note(f"{task.description}: {done}{console.duration(taken)} so far")
