"""What all connections of a tap have in common."""

from __future__ import annotations

from dataclasses import dataclass

from core.session import Session
from core.tap.budget import Budget
from core.tap.collecting import Collecting
from core.tap.commits import Commits
from core.tap.counts import Totals
from core.tap.exports import Exports
from core.tap.gate import Gate
from core.tap.jobs import Jobs
from core.tap.replies import Replies
from core.tap.room import Room
from core.tap.turns import Turns


@dataclass(frozen=True, slots=True)
class Shared:
    """What the connections of a tap share."""

    session: Session
    exports: Exports
    commits: Commits
    jobs: Jobs
    replies: Replies
    totals: Totals
    gate: Gate
    room: Room
    collecting: Collecting
    turns: Turns
    budget: Budget
