"""A commit that waits for the disk on a second thread, under control of the first."""

from __future__ import annotations

import threading

from support.memory import RecordingDevice

from core.commit import PendingCommit


class Syncing:
    """The second thread of a commit, stopped after the first flush until `end`.

    Only one of the two threads runs at any time.
    """

    def __init__(self, device: RecordingDevice, pending: PendingCommit) -> None:
        self._device = device
        self._flush = device.flush
        self._stopped = threading.Event()
        self._go = threading.Event()
        self._abandoned = False
        self._error: BaseException | None = None
        device.flush = self._flush_and_stop  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._run, args=[pending], daemon=True)
        self._thread.start()
        self._stopped.wait()

    def _run(self, pending: PendingCommit) -> None:
        try:
            pending.sync()
        except BaseException as error:
            self._error = error
        finally:
            self._stopped.set()

    def _flush_and_stop(self) -> None:
        self._flush()
        del self._device.flush  # type: ignore[method-assign]
        self._stopped.set()
        self._go.wait()
        if self._abandoned:
            raise SystemExit

    def end(self) -> None:
        """Let the thread do the rest, and raise what went wrong there."""
        self._go.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Stop the thread where it is."""
        self._abandoned = True
        self._go.set()
        self._thread.join()
