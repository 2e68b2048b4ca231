"""Who may write what: exclusive locks by name, each grant with a fencing token.

Today there is one place the lock master runs: inside the one process that has the store
open for writing. The kernel's lock on the store file keeps every other process out
(`core.device`), so a grant cannot be lost here. The engine sees only `acquire`,
`Grant.check` and `Grant.release`, takes locks when something is opened, never per
request, and compares the token at each commit: what a lock master shared by several
hosts needs is already asked for.

Names: `vdi/3` to write a VDI, `extent/5` to allocate from an extent, `registry` to
create VDIs.
"""

from __future__ import annotations

from core.errors import Fenced, InUse


class Grant:
    """The right to write what `name` stands for, under a token that never repeats."""

    def __init__(self, master: LockMaster, name: str, token: int) -> None:
        """Only a lock master makes these."""
        self._master = master
        self.name = name
        self.token = token

    def check(self) -> None:
        """Make sure that the grant still holds; called right before each commit.

        Raises:
            Fenced: it was lost; nothing more may be written under it.
        """
        if self._master.holder(self.name) is not self:
            raise Fenced(f"{self.name} is no longer held by this session", "open it again")

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        self._master.release(self)


class LockMaster:
    """Grants each name to one holder at a time."""

    def __init__(self) -> None:
        """Start with nothing granted."""
        self._grants: dict[str, Grant] = {}
        self._token = 0

    def acquire(self, name: str, floor: int = 0) -> Grant:
        """Grant `name`, with a token higher than every one before and than `floor`.

        Args:
            name: what to lock.
            floor: the highest token the store has on record for it.

        Raises:
            InUse: it is granted already.
        """
        if name in self._grants:
            raise InUse(f"{name} is already open for writing in this process")
        self._token = max(self._token, floor) + 1
        grant = self._grants[name] = Grant(self, name, self._token)
        return grant

    def holder(self, name: str) -> Grant | None:
        """Return the grant that holds `name`, or None."""
        return self._grants.get(name)

    def release(self, grant: Grant) -> None:
        """Take a grant back if it still holds."""
        if self._grants.get(grant.name) is grant:
            del self._grants[grant.name]
