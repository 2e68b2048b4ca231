"""Timers of the loop thread: what is to be done at a time of the monotonic clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from core.errors import unexpected

Action = Callable[[], None]


class Timers:
    """Actions by the time they are due; each is done once."""

    def __init__(self) -> None:
        """Have nothing to do."""
        self._heap: list[tuple[float, int, Action]] = []
        self._number = count()

    def at(self, when: float, action: Action) -> None:
        """Have `action` done at `when`, in seconds of `time.monotonic`, or a little later."""
        heappush(self._heap, (when, next(self._number), action))

    def due(self) -> float:
        """Return when the next action is due; infinite if there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def run(self, now: float) -> None:
        """Do what is due; what is added meanwhile waits for the next time."""
        todo = []
        while self._heap and self._heap[0][0] <= now:
            todo.append(heappop(self._heap)[2])
        for action in todo:
            try:
                action()
            except Exception as error:
                unexpected(error, "a timer")
