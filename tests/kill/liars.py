"""Taps that say "durable" too early, each in its own way: can the tests tell?

python -m kill.liars LIE STORE SOCKET
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from core.commit import Commit
from core.device import FileDevice
from core.session import Session
from core.tap.commits import Commits
from core.tap.server import serve
from core.tap.writes import Writes


def answer_at_once(_commits: Commits, _vdi: Any, done: Callable[[None], None]) -> None:
    """FLUSH is answered, nothing is done."""
    done(None)


def flush_nothing(_device: FileDevice) -> None:
    """All is written, nothing is synced."""


def leave_last_sync_out(commit: Any) -> None:
    """The record is written and not synced."""
    commit._store.device.flush()
    for change in commit._changes:
        commit._registry.write(change.new)


def leave_first_sync_out(commit: Any) -> None:
    """The record is written before what it refers to is synced; only data is left unsynced."""
    for change in commit._changes:
        commit._registry.write(change.new)
    if commit._changes:
        commit._store.device.flush()


def forget_fua(writes: Any, cookie: int, _flags: int, change: Callable[[Any], None]) -> None:
    """A FUA write is answered like any other."""
    if writes._try(cookie, change):
        writes._replies.simple(cookie)


LIES: dict[str, tuple[type, str, Callable[..., None]]] = {
    "answer at once": (Commits, "add", answer_at_once),
    "flush nothing": (FileDevice, "flush", flush_nothing),
    "leave the last sync out": (Commit, "sync", leave_last_sync_out),
    "leave the first sync out": (Commit, "sync", leave_first_sync_out),
    "forget FUA": (Writes, "_change", forget_fua),
}


def main(lie: str, store: str, unix: str) -> None:
    """Serve a store and lie."""
    place, name, instead = LIES[lie]
    assert hasattr(place, name), "a lie that replaces nothing is none"
    setattr(place, name, instead)
    with Session.open(store) as session:
        serve(session, unix=unix)


if __name__ == "__main__":
    partial(main, *sys.argv[1:])()
