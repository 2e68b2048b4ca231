"""Fencing tokens: numbers that only grow, over restarts of the master and a lost epoch file.

The upper half of a token is an epoch, which is durable before a token of it is given out.
"""

from __future__ import annotations

from typing import Final

from core.errors import BadRequest, ParallaxError
from core.lock_epoch import Epochs

_EPOCH_SHIFT: Final = 32
_MAX_TOKEN: Final = (1 << 63) - 1
_MOST_AHEAD: Final = 1 << 20
"""Starts by which another master may be ahead. A floor is somebody's word: were any believed,
one session could use up the tokens of everybody, for ever."""
_MOST_RAISES: Final = 256
"""Times that a run goes on in a higher epoch; each takes a flush that everybody waits for."""


class Tokens:
    """The tokens of one run.

    Args:
        epochs: where the epoch is kept.
        run: the epoch in which the run started.
    """

    def __init__(self, epochs: Epochs, run: int) -> None:
        """Begin with the epoch of the run."""
        self._epochs = epochs
        self._run = run
        self._raises = 0
        self.last = run << _EPOCH_SHIFT
        """The highest one so far."""

    @property
    def epoch(self) -> int:
        """The epoch of the next token."""
        return self.last >> _EPOCH_SHIFT

    def new(self, floor: int) -> int:
        """Return a token higher than every one before; its epoch is durable by then.

        A floor may come from a master with a higher epoch, whose file was lost or is
        another one.

        Raises:
            BadRequest: the floor is none that a master can have come to.
            IoFailed: the epoch could not be made durable.
        """
        token = max(self.last, floor) + 1
        epoch = token >> _EPOCH_SHIFT
        if not 0 < token <= _MAX_TOKEN or epoch > self._run + _MOST_AHEAD:
            raise BadRequest(f"there is no token above {floor}", "run 'plxsh store check'")
        if epoch > self.epoch:
            if self._raises >= _MOST_RAISES:
                raise BadRequest(
                    f"no token above {floor} is given: there were too many such requests",
                    "restart the lock master",
                )
            self._raises += 1
            self._epochs.raise_to(epoch)
        self.last = token
        return token

    def goes_above(self, token: int) -> bool:
        """Return whether all later tokens will be higher; only a lost file makes that work."""
        try:
            if token > self.last:
                self.new(token - 1)
        except ParallaxError:
            return False
        return True
