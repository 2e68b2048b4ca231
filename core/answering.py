"""What a session does when another one asks it to.

| name | method | argument | answer |
| --- | --- | --- | --- |
| `vdi/N` | all of them | uuid, that of the VDI, and | |
| `vdi/N` | `snapshot` | label | block, offset |
| `vdi/N` | `delete_snapshot` | block, offset, time_ns | |
| `vdi/N` | `rename` | name | |
| `vdi/N` | `schedule` | every_ns, keep | |
| `session/HEX` | `images` | | trees: roots and heights of what is being read |
| `session/HEX` | `grown` | | |
| `session/HEX` | `seal`, `sweep`, `finish` | see `core.collection` | |
| `extent/N` | `yield` | | |

Whoever renames holds `registry` meanwhile, so the holder of the VDI does not take it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from core import snaplog
from core.collection import unpack_bits
from core.errors import BadRequest, InUse, NotFound
from core.lock_messages import Called
from core.parts import Whole
from core.registry import Registry, check_name
from core.remote import Argument, parse
from core.snaplog import SnapshotId
from core.vdi import Vdi


def _nothing() -> None:
    """Undo nothing."""


class Work(NamedTuple):
    """What is left of a call: commit `vdis`; then `finish` returns the answer.

    When the commit or `finish` fails, `undo` ends what was begun.
    """

    vdis: Sequence[Vdi]
    finish: Callable[[], Argument]
    undo: Callable[[], None] = _nothing


Handler = Callable[[str, Argument], Work]
"""Is given what follows the kind in the name (`3` of `vdi/3`), and the argument."""


class Answers:
    """The calls that a session follows.

    Args:
        session: the session that is asked.

    Attributes:
        handlers: by kind of name and method; a server adds its own.
    """

    def __init__(self, session: Whole) -> None:
        """Know the methods of every session."""
        self._session = session
        self.handlers: dict[str, Handler] = {
            "vdi snapshot": self._snapshot,
            "vdi delete_snapshot": self._delete_snapshot,
            "vdi rename": self._rename,
            "vdi schedule": self._schedule,
            "vdi repeat": self._repeat,
            "session images": self._images,
            "session grown": self._grown,
            "session seal": self._seal,
            "session sweep": self._sweep,
            "session finish": self._finish,
            "extent yield": self._yield,
        }

    def begin(self, called: Called) -> Work:
        """Do the part of a call that is to be done at once, on the thread of the session.

        Raises:
            ParallaxError: what is to be answered instead; nothing was done.
        """
        return self.work(called.name, called.method, parse(called.argument))

    def work(self, name: str, method: str, argument: Argument) -> Work:
        """Do the same for a method and its argument; raises as `begin`."""
        kind, _, which = name.partition("/")
        handler = self.handlers.get(f"{kind} {method}")
        if handler is None:
            raise BadRequest(f"{name} has no method {method!r}", "use the same version everywhere")
        try:
            return handler(which, argument)
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(
                f"{method}: the argument makes no sense: {argument!r}",
                "use the same version everywhere",
            ) from error

    def _vdi(self, which: str, argument: Argument) -> Vdi:
        """Return an open VDI that is not in the middle of a change.

        The number alone may be that of another VDI by now.
        """
        session = self._session
        vdi = next((vdi for vdi in session.open_vdis if str(vdi.id) == which), None)
        if vdi is None or vdi.record.uuid.hex() != argument["uuid"]:
            raise NotFound(f"VDI {which} is not open here any more", "try again")
        if session.is_changing(vdi):
            raise InUse(f"VDI {vdi.name!r} is being changed", "wait until that is done")
        return vdi

    def _snapshot(self, which: str, argument: Argument) -> Work:
        vdi = self._vdi(which, argument)
        where = vdi.snapshot(str(argument["label"]))
        return Work([vdi], lambda: {"block": where.block, "offset": where.offset})

    def _delete_snapshot(self, which: str, argument: Argument) -> Work:
        vdi = self._vdi(which, argument)
        where = SnapshotId(int(argument["block"]), int(argument["offset"]))
        snapshot = snaplog.find(self._session.store, vdi.latest, where)
        if snapshot is None or snapshot.time_ns != argument["time_ns"]:
            raise NotFound(f"snapshot {where} was deleted", "list the snapshots again")
        vdi.delete_snapshot(snapshot)
        return Work([vdi], dict)

    def _rename(self, which: str, argument: Argument) -> Work:
        vdi = self._vdi(which, argument)
        name = str(argument["name"])
        check_name(name)
        if any(r.name == name and r.id != vdi.id for r in Registry(vdi.store).vdis()):
            raise BadRequest(f"the name {name!r} is taken", "choose another name")
        vdi.amend(name=name)
        return Work([vdi], dict)

    def _schedule(self, which: str, argument: Argument) -> Work:
        vdi = self._vdi(which, argument)
        vdi.set_schedule(int(argument["every_ns"]), int(argument["keep"]))
        return Work([vdi], dict)

    def _repeat(self, which: str, argument: Argument) -> Work:
        vdi = self._vdi(which, argument)
        vdi.amend()
        return Work([vdi], dict)

    def _images(self, _which: str, _argument: Argument) -> Work:
        trees = self._session.member.images()
        return Work((), lambda: {"trees": trees})

    def _grown(self, _which: str, _argument: Argument) -> Work:
        self._session.store.refresh()
        return Work((), dict)

    def _seal(self, _which: str, argument: Argument) -> Work:
        member = self._session.member
        vdis = self._session.all_held()
        for vdi in vdis:
            vdi.repeat()  # what only the record before the last one leads to is garbage then
        member.seal(int(argument["collection"]))
        return Work(vdis, lambda: {"extents": member.sealed()}, member.unseal)

    def _sweep(self, _which: str, argument: Argument) -> Work:
        token, extent = int(argument["collection"]), int(argument["extent"])
        bits = unpack_bits(argument["garbage"], self._session.store.sb.extent_blocks >> 3)
        return Work((), lambda: {"freed": self._session.member.sweep(token, extent, bits)})

    def _finish(self, _which: str, argument: Argument) -> Work:
        steps = self._session.member.finish(
            int(argument["collection"]), bool(argument["give_back"])
        )
        return Work((), lambda: {"given_back": sum(steps)})

    def _yield(self, which: str, _argument: Argument) -> Work:
        member, number = self._session.member, int(which)
        vdis = self._session.all_held()
        time = member.spare(number)
        return Work(vdis, lambda: member.hand_over(number, time), member.expire)
