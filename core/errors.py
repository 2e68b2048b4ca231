"""Every error that Parallax raises on purpose, in one tree.

A class stands for one answer to "what should the caller do now?", so each carries the
exit status of the command that fails with it and a short machine-readable code. The
message says what was wrong and why; the hint says what to do next. Errno values exist
only at the NBD protocol's edge (`core.tap.replies`).
"""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class ParallaxError(Exception):
    """Base class: something the user can be told in one line.

    Args:
        message: what was wrong and why, one line, no full stop.
        hint: what to do next, one line, or empty.
    """

    exit_status = 5
    code = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the message and the hint apart, so that JSON output can show both."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class Different(ParallaxError):
    """The answer is no: contents differ, or a check found damage."""

    exit_status = 1
    code = "different"


class BadRequest(ParallaxError):
    """The request itself makes no sense: a bad name, size, option or range."""

    exit_status = 2
    code = "usage"


class NotFound(ParallaxError):
    """No such store, VDI, snapshot, file or export."""

    exit_status = 3
    code = "not_found"


class NotAStore(NotFound):
    """The file or device exists but holds no blockstore this version can read."""

    code = "not_a_store"


class NewerStore(NotAStore):
    """There is a blockstore, of a version or with features that only another Parallax reads."""

    code = "newer_store"


class InUse(ParallaxError):
    """Someone else holds it; the message says who and where."""

    exit_status = 4
    code = "in_use"


class VdiOpen(InUse):
    """Another session has the VDI open; to other processes it is the same as `InUse`."""


class TooEarly(InUse):
    """The lock master was started a moment ago and does not know yet who holds what."""

    code = "too_early"


class ReadOnly(ParallaxError):
    """The store, the snapshot or the export cannot be written to."""

    exit_status = 4
    code = "read_only"


class Fenced(InUse):
    """Another session has taken the VDI over: nothing more may be written here."""

    code = "fenced"


class IoFailed(ParallaxError):
    """The operating system could not read or write; data may be missing."""

    exit_status = 5
    code = "io"


class Bug(IoFailed):
    """Something went wrong that nobody thought of; see `unexpected`."""

    code = "bug"


class Corrupt(IoFailed):
    """A metadata block is damaged or stale.

    Args:
        message: what is wrong with it.
        block: the number of the block in the store.
        hint: what to do next.
    """

    code = "corrupt"

    def __init__(self, message: str, block: int, hint: str = "run 'plxsh store check'") -> None:
        """Name the block: it is what an operator looks for first."""
        super().__init__(f"block {block}: {message}", hint)
        self.block = block


class NotSupported(IoFailed):
    """The device or the file system has no such operation; nothing was done."""

    code = "not_supported"


class NoSpace(ParallaxError):
    """The store, or the file system under it, is full."""

    exit_status = 6
    code = "no_space"


class NoSpaceYet(NoSpace):
    """There is no room at the moment, but more has been asked for: try again soon."""

    code = "no_space_yet"


class Interrupted(ParallaxError):
    """The user stopped the command; the message says what state that left."""

    exit_status = 130
    code = "interrupted"


class WouldBlock(Exception):
    """A read that was asked not to wait found that the bytes are not in memory.

    Not an error: whoever asked has the device fetch the bytes on a thread, and asks again.

    Args:
        ranges: (byte offset, length) of each range that is missing.
    """

    def __init__(self, *ranges: tuple[int, int]) -> None:
        """Remember which bytes of the device to fetch."""
        super().__init__(*ranges)
        self.ranges = ranges


def unexpected(error: Exception, what: str) -> Bug:
    """Log an exception that nobody thought of, with its traceback; return one line for users.

    Args:
        error: what was raised.
        what: what was being done, such as "VDI 3: writing".
    """
    logger.error("%s: internal error", what, exc_info=error, extra={"event": "bug"})
    message = f"{what}: internal error: {type(error).__name__}: {error}"
    return Bug(message, "look at the log of that process")
