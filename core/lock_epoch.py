"""The epoch of a lock master: what makes its tokens grow over restarts.

It is the upper half of every token. A start raises it and makes that durable before
anything is granted, so no later token can be as low as an earlier one. Beside it the file
has the time for which promises of earlier runs may still bind: for so long a new run grants
nothing. The UUID there says which lock master it is: stores that are shared under it have it
on record, and none lets in who comes with another (`core/sharing.py`).
"""

from __future__ import annotations

import fcntl
import os
import uuid
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from core.errors import InUse, IoFailed, NotFound

_MAGIC: Final = "parallax-lock-epoch"


@dataclass(frozen=True, slots=True)
class Start:
    """A new run: its epoch, and for how many seconds it grants nothing."""

    epoch: int
    quiet: float


class Epochs(Protocol):
    """Where a master keeps its epoch.

    Attributes:
        uuid: of the master, in hex; empty for one that no store can be shared under.
    """

    uuid: str

    def start(self, hold: float) -> Start:
        """Begin a run whose promises bind for `hold` seconds."""

    def raise_to(self, epoch: int) -> None:
        """Go on in a higher epoch."""

    def settle(self) -> None:
        """Promises of earlier runs have all ended."""


class VolatileEpochs:
    """For a master that lives and dies with all it grants to.

    Nothing outlives it, so there is nothing to wait for; tokens grow because each comes
    with the one that the store has on record.
    """

    uuid = ""

    def start(self, hold: float) -> Start:  # noqa: ARG002  # as its sibling
        """Begin at nothing."""
        return Start(0, 0.0)

    def raise_to(self, epoch: int) -> None:
        """Remember nothing."""

    def settle(self) -> None:
        """Remember nothing."""


class EpochFile:
    """The epoch in a small file, replaced whole and made durable at each change.

    Args:
        path: the file; made when it is not there. Beside it lies PATH.lock, which keeps a
            second master away.

    Attributes:
        uuid: of the master, made with the file.

    Raises:
        InUse: another lock master runs with this file.
        IoFailed: it cannot be read or written, or is damaged.
        NotFound: its folder does not exist.
    """

    def __init__(self, path: str) -> None:
        """Lock it and read it."""
        self._path = Path(path)
        try:
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise NotFound(f"{self._path.parent} does not exist", "make the folder") from error
        except OSError as error:
            raise _failed(path, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._epoch, self._hold, self.uuid = self._read()
        except BlockingIOError as error:
            self.close()
            raise InUse(f"another lock master runs with {path}") from error
        except BaseException:
            self.close()
            raise
        self._own_hold = self._hold

    def close(self) -> None:
        """Let another master have the file; a second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def start(self, hold: float) -> Start:
        """Raise the epoch, durably; quiet is as long as any promise made so far binds.

        A lost file could have had any value, so even the first start is quiet.
        """
        self._own_hold = hold
        self._write(self._epoch + 1, max(self._hold, hold))
        return Start(self._epoch, self._hold)

    def raise_to(self, epoch: int) -> None:
        """Go on in a higher epoch, durably."""
        self._write(epoch, self._hold)

    def settle(self) -> None:
        """Let the next start be quiet for this run's promises only.

        If that cannot be written, the next start waits longer than it must.
        """
        if self._hold != self._own_hold:
            with suppress(IoFailed):
                self._write(self._epoch, self._own_hold)

    def _read(self) -> tuple[int, float, str]:
        """Return what is there; one that has no UUID yet gets one, to be written by a start."""
        fresh = uuid.uuid4().hex
        try:
            text = self._path.read_text(encoding="ascii")
        except FileNotFoundError:
            return 0, 0.0, fresh
        except OSError as error:
            raise _failed(str(self._path), error) from error
        except UnicodeDecodeError:
            text = ""
        said, _, check = text.rstrip("\n").rpartition(" ")
        words = said.split(" ")
        if check != _check(said) or len(words) not in (3, 4) or words[0] != _MAGIC:
            raise IoFailed(
                f"{self._path} is damaged",
                "stop whatever has the store open, remove the file, run 'plxsh store unshare'",
            )
        return int(words[1]), float(words[2]), words[3] if len(words) == 4 else fresh

    def _write(self, epoch: int, hold: float) -> None:
        said = f"{_MAGIC} {epoch} {hold!r} {self.uuid}"
        fresh = f"{self._path}.new"
        try:
            with open(fresh, "w", encoding="ascii") as file:
                file.write(f"{said} {_check(said)}\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _failed(str(self._path), error) from error
        self._epoch, self._hold = epoch, hold


def _check(said: str) -> str:
    return f"{zlib.crc32(said.encode()):08x}"


def _failed(path: str, error: OSError) -> IoFailed:
    return IoFailed(f"{path}: {error.strerror}", "nothing is granted without a durable epoch")
