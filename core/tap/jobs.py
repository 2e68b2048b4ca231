"""Jobs: requests that take a while, a step at a time.

A job is a generator that runs in the loop thread. It yields `WouldBlock` when it needs
bytes that are not in memory: they are read on a thread, which brings them into the page
cache and touches nothing of the engine, and then the job goes on and looks again. So no
block number is held from one step to the next. It yields None to let others have a turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from core.device import BlockDevice
from core.errors import ParallaxError, WouldBlock

Steps = Generator[WouldBlock | None, None, None]

_THREADS: Final = 4
_SCRATCH: Final = 256 << 10


class Jobs:
    """All jobs of a tap.

    Args:
        device: where bytes are read ahead of a job.
        wake: callable from any thread; makes the loop call `run` soon.
    """

    def __init__(self, device: BlockDevice, wake: Callable[[], None]) -> None:
        """Start no thread yet."""
        self._device = device
        self._wake = wake
        self._ready: deque[Steps] = deque()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tap-read")

    @property
    def ready(self) -> bool:
        """Whether there is a step to be done now."""
        return bool(self._ready)

    def add(self, steps: Steps, needs: WouldBlock | None = None) -> None:
        """Take a job on; with `needs`, its first step comes when those bytes are there."""
        if needs is None:
            self._ready.append(steps)
        else:
            self._pool.submit(self._fetch, steps, needs)

    def run(self) -> None:
        """Do one step of each job that is ready."""
        for _ in range(len(self._ready)):
            steps = self._ready.popleft()
            try:
                needs = next(steps)
            except StopIteration:
                continue
            self.add(steps, needs)

    def _fetch(self, steps: Steps, needs: WouldBlock) -> None:
        """Bring bytes into memory, on a thread; the job itself meets any error."""
        scratch = memoryview(bytearray(min(needs.length, _SCRATCH)))
        try:
            for at in range(0, needs.length, _SCRATCH):
                part = scratch[: min(_SCRATCH, needs.length - at)]
                self._device.preadv(needs.offset + at, [part])
        except ParallaxError:
            pass
        finally:
            self._ready.append(steps)
            self._wake()

    def close(self) -> None:
        """Drop all jobs and end the threads."""
        self._pool.shutdown(cancel_futures=True)
        for steps in self._ready:
            steps.close()
        self._ready.clear()
