"""Jobs: requests that take a while, a step at a time.

A job is a generator that runs in the loop thread. It yields `WouldBlock` when it needs
bytes that are not in memory: the device fetches them on a thread, which touches nothing of
the engine, and then the job goes on and looks again. So no block number is held from one
step to the next. It yields None to let others have a turn; what was fetched for it is kept
until then, or until it is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final

from core.device import BlockDevice, Release
from core.errors import ParallaxError, WouldBlock, unexpected

Steps = Generator[WouldBlock | None, None, None]

_THREADS: Final = 4


class _Job:
    """A job that was begun, and what lets go of the bytes that were fetched for it."""

    __slots__ = ("fetched", "held_back", "steps")

    def __init__(self, steps: Steps, held_back: bool) -> None:
        self.steps = steps
        self.held_back = held_back
        self.fetched: list[Release] = []

    def release(self) -> None:
        """Let go of what was fetched."""
        while self.fetched:
            self.fetched.pop()()


class Jobs:
    """All jobs of a tap.

    A few plain threads with a queue, not an executor: its futures would cost more than
    the reads do.

    Args:
        device: what fetches the bytes that a job needs.
        wake: callable from any thread; makes the loop call `run` soon.

    Attributes:
        held: jobs that can be held back are.
        stopped: all jobs are held back.
    """

    def __init__(self, device: BlockDevice, wake: Callable[[], None]) -> None:
        """Start the threads that read."""
        self._device = device
        self._wake = wake
        self.held = False
        self.stopped = False
        self._ready: deque[_Job] = deque()
        self._back: list[_Job] = []
        self._missing: SimpleQueue[tuple[_Job, WouldBlock] | None] = SimpleQueue()
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

    def add(self, steps: Steps, needs: WouldBlock | None = None, held_back: bool = False) -> None:
        """Take a job on; with `needs`, its first step comes when those bytes are there.

        `held_back`: it waits while `held` is set.
        """
        job = _Job(steps, held_back)
        if needs is None:
            self._ready.append(job)
        else:
            self._missing.put((job, needs))

    def run(self) -> None:
        """Do one step of each job that is ready."""
        for _ in range(len(self._ready)):
            job = self._ready.popleft()
            if self.stopped or (self.held and job.held_back):
                self._back.append(job)
                continue
            try:
                needs = next(job.steps)
            except StopIteration:
                job.release()
                continue
            except Exception as error:
                unexpected(error, "a job")
                job.release()
                continue
            if needs is None:
                job.release()
                self._ready.append(job)
            else:
                self._missing.put((job, needs))

    def release(self) -> None:
        """Look anew which jobs are held back."""
        self._ready += self._back
        self._back.clear()

    def _fetch_all(self) -> None:
        """Bring bytes into memory, on a thread, until `close`."""
        while (wanted := self._missing.get()) is not None:
            job, needs = wanted
            with suppress(ParallaxError):  # which the job will meet as well
                for offset, length in needs.ranges:
                    job.fetched.append(self._device.fetch(offset, length))
            self._ready.append(job)
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
        self.release()
        for job in self._ready:
            job.steps.close()
            job.release()
        self._ready.clear()
