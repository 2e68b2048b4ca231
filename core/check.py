"""Is this store sound? Looked at by itself, or while others have it open."""

from __future__ import annotations

from contextlib import closing
from typing import Final

from core.blockset import BlockSet
from core.blockstore import Blockstore, Mode
from core.checker import look
from core.collection import Sealing
from core.device import Cache
from core.errors import Corrupt, IoFailed
from core.findings import Finding, Report
from core.format import LIVE, VdiRecord
from core.progress import Progress, silent
from core.reclaim import reached_before, read_before
from core.registry import Registry
from core.session import Session

__all__ = ["Report", "check", "check_beside", "check_store"]

_TRIES: Final = 3
"""How often a store that others use is looked at before it is called damaged."""


def check(
    path: str, mode: Mode = "shared", progress: Progress = silent, cache: Cache = "host"
) -> Report:
    """Check the store in a file or device.

    Args:
        path: the file or device.
        mode: "shared" keeps writers out while it runs.
        progress: told about blocks that are accounted for, of those that are allocated.
        cache: whose memory stands before the device.

    Raises:
        NotFound, NotAStore, InUse: there is nothing to check, or someone is writing.
    """
    try:
        store = Blockstore.open(path, mode, cache=cache)
    except IoFailed as error:
        block = error.block if isinstance(error, Corrupt) else None
        return Report([Finding("damage", block, error.message)])
    try:
        return check_store(store, progress)
    finally:
        store.close()


def check_beside(session: Session, progress: Progress = silent) -> Report:
    """Check a store while this session and others have it open for writing.

    All sessions are sealed as for a collection, so what the records lead to stays readable
    and is not used again. The records are read once, while no VDI is made or dropped. What a
    session that could not be sealed has may change all the same, so only damage that is found
    each time of several counts; who that was is among the findings.

    Raises:
        InUse: someone collects or checks the store.
        NoSpace, IoFailed, Fenced: this session could not commit.
    """
    with closing(session.seal()) as sealing:
        report = _look_beside(session, sealing, progress)
        lasting = _damage(report)
        for _ in range(_TRIES - 1):
            if not lasting:
                break
            report = _look_beside(session, sealing, progress)
            lasting &= _damage(report)
        passing = _damage(report) - lasting
        report.findings = [f for f in report.findings if f not in passing]
        for who in sealing.unsealed:
            report.findings.append(
                Finding("note", None, f"what {who} has was not checked exactly: it did not answer")
            )
    return report


def _look_beside(session: Session, sealing: Sealing, progress: Progress) -> Report:
    """Check once.

    What is allocated is looked up twice: before the records are read, for what may be called
    unreachable, and after it (in `Checker`), for what they refer to.
    """
    settled = sealing.allocated()
    with sealing.registry():
        table = dict(Registry(session.store).scan())
        before = read_before(session.store)
    live = {n for n, r in table.items() if isinstance(r, VdiRecord) and r.state == LIVE}
    before = [record for record in before if record.id in live]
    settled -= reached_before(session.store, before, BlockSet(0))
    return look(session.store, sealing.heard(progress), table, settled).report


def _damage(report: Report) -> set[Finding]:
    return {finding for finding in report.findings if finding.severity == "damage"}


def check_store(store: Blockstore, progress: Progress = silent) -> Report:
    """Check an open store to which nobody writes meanwhile."""
    return look(store, progress).report
