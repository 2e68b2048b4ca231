"""Jobs: requests that take a while, a step at a time.

A job is a generator that runs in the loop thread. It yields `WouldBlock` when it needs
bytes that are not in memory: they are read on a thread, which brings them into the page
cache and touches nothing of the engine, and then the job goes on and looks again. So no
block number is held from one step to the next. It yields None to let others have a turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final

from core.device import BlockDevice
from core.errors import ParallaxError, WouldBlock

Steps = Generator[WouldBlock | None, None, None]

_THREADS: Final = 4
_SCRATCH: Final = 256 << 10


class Jobs:
    """All jobs of a tap.

    A few plain threads with a queue, not an executor: its futures would cost more than
    the reads do.

    Args:
        device: where bytes are read ahead of a job.
        wake: callable from any thread; makes the loop call `run` soon.
    """

    def __init__(self, device: BlockDevice, wake: Callable[[], None]) -> None:
        """Start the threads that read."""
        self._device = device
        self._wake = wake
        self._ready: deque[Steps] = deque()
        self._missing: SimpleQueue[tuple[Steps, WouldBlock] | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._fetch_all, name=f"tap-read-{n}", daemon=True)
            for n in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """Whether there is a step to be done now."""
        return bool(self._ready)

    def add(self, steps: Steps, needs: WouldBlock | None = None) -> None:
        """Take a job on; with `needs`, its first step comes when those bytes are there."""
        if needs is None:
            self._ready.append(steps)
        else:
            self._missing.put((steps, needs))

    def run(self) -> None:
        """Do one step of each job that is ready."""
        for _ in range(len(self._ready)):
            steps = self._ready.popleft()
            with suppress(StopIteration):
                self.add(steps, next(steps))

    def _fetch_all(self) -> None:
        """Bring bytes into memory, on a thread, until `close`."""
        scratch = memoryview(bytearray(_SCRATCH))
        while (wanted := self._missing.get()) is not None:
            steps, needs = wanted
            end = needs.offset + needs.length
            with suppress(ParallaxError):  # which the job will meet as well
                for at in range(needs.offset, end, _SCRATCH):
                    self._device.preadv(at, [scratch[: min(_SCRATCH, end - at)]])
            self._ready.append(steps)
            self._wake()

    def close(self) -> None:
        """Drop all jobs and end the threads, after the reads they are at."""
        with suppress(Empty):
            while True:
                self._missing.get_nowait()
        for _ in self._threads:
            self._missing.put(None)
        for thread in self._threads:
            thread.join()
        for steps in self._ready:
            steps.close()
        self._ready.clear()
