"""What a check of a store reports, for people and for a repair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from core.snaplog import SnapshotId

Severity = Literal["damage", "note"]


class Finding(NamedTuple):
    """One thing to report: damage, or a note about something that needs no repair."""

    severity: Severity
    block: int | None
    message: str


class Loss(NamedTuple):
    """A range of virtual blocks of one tree that cannot be read, or should not be there."""

    vdi: int
    snapshot: SnapshotId | None
    first: int
    length: int


@dataclass
class Report:
    """What a check found.

    Attributes:
        findings: everything to report, in the order it was found.
        vdis: VDIs that are live.
        deleted: deleted VDIs that were not collected.
        snapshots: snapshots of live VDIs that are not deleted.
        allocated: payload blocks that the bitmaps call allocated.
        restorable: of those, blocks that only deleted VDIs refer to.
        unreachable: of those, blocks that no VDI and no snapshot refers to.
        losses: what a repair has to cut out of trees.
        suspect: ids of VDIs whose record disagrees with their tree or with others.
        relocate: ids of VDIs whose snapshot log is to move to a block that it cannot have.
    """

    findings: list[Finding] = field(default_factory=list)
    vdis: int = 0
    deleted: int = 0
    snapshots: int = 0
    allocated: int = 0
    restorable: int = 0
    unreachable: int = 0
    losses: list[Loss] = field(default_factory=list)
    suspect: set[int] = field(default_factory=set)
    relocate: set[int] = field(default_factory=set)

    @property
    def damaged(self) -> bool:
        """Whether anything found is damage."""
        return any(finding.severity == "damage" for finding in self.findings)
