"""Snapshots on a schedule, of the VDIs that are open here: up to a hundred a second each.

A snapshot is taken between two requests, in the loop thread, and becomes durable with the
next commit, together with the deletion of those that are no longer kept. A VDI has one such
commit under way at most: snapshots taken meanwhile share the next one. Only so many may wait:
then ticks are skipped, so a slow disk makes snapshots rarer and never piles them up. Nothing is
taken of a VDI that did not change.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Final

from core.errors import ParallaxError
from core.schedule import Schedule
from core.tap.commits import Commits
from core.tap.counts import Totals
from core.tap.exports import Export, Exports
from core.tap.timers import Timers

logger = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
_COMPLAIN_EVERY: Final = 60.0
_AHEAD: Final = 32
"""Snapshots that may wait in memory while a commit is on its way to the disk."""


class _Plan:
    """The schedule of one export."""

    def __init__(self, export: Export, every: int) -> None:
        self.export = export
        self.every = every
        self.schedule = Schedule(every, time.monotonic_ns())
        self.missed = 0
        self.waiting = 0  # snapshots that no commit has begun with
        self.committing = 0  # snapshots on their way to the disk
        self.over = False


class Schedules:
    """Takes the scheduled snapshots of all exports.

    Args:
        exports: what is open.
        commits: makes them durable.
        timers: say when.
        totals: where they are counted.
    """

    def __init__(self, exports: Exports, commits: Commits, timers: Timers, totals: Totals) -> None:
        """Follow no schedule yet."""
        self._exports = exports
        self._commits = commits
        self._timers = timers
        self._totals = totals
        self._plans: dict[int, _Plan] = {}
        self._complain_at = 0.0

    def look(self) -> None:
        """Follow the schedules of the VDIs that are open now; drop those that are over."""
        found: dict[int, _Plan] = {}
        for export in self._exports.writable():
            assert export.vdi is not None
            every, _ = export.vdi.schedule
            plan = self._plans.get(export.id)
            if plan is not None and plan.export is export and plan.every == every:
                found[export.id] = plan
            elif every:
                found[export.id] = plan = _Plan(export, every)
                self._again(plan)
        for plan in self._plans.values():
            plan.over = found.get(plan.export.id) is not plan
        self._plans = found

    def _again(self, plan: _Plan) -> None:
        left = plan.schedule.left(time.monotonic_ns()) / _NS
        self._timers.at(time.monotonic() + left, partial(self._tick, plan))

    def _tick(self, plan: _Plan) -> None:
        """Take a snapshot if it is time for one and there is anything new."""
        if plan.over:
            return
        if plan.schedule.due(time.monotonic_ns()):
            missed, plan.missed = plan.schedule.missed - plan.missed, plan.schedule.missed
            self._totals.skipped_ticks += missed
            if plan.waiting >= _AHEAD or plan.export.paused:
                self._totals.skipped_ticks += 1
            else:
                self._take(plan)
        self._again(plan)

    def _take(self, plan: _Plan) -> None:
        vdi = plan.export.vdi
        assert vdi is not None
        try:
            if not vdi.unsaved:
                return
            vdi.snapshot(scheduled=True)
            vdi.drop_scheduled()
        except ParallaxError as error:
            self._failed(plan, error)
            return
        except Exception as error:
            self._failed(plan, vdi.fail(error, "a scheduled snapshot"))
            return
        plan.waiting += 1
        if not plan.committing:
            self._commit(plan)

    def _commit(self, plan: _Plan) -> None:
        """Have the snapshots taken so far made durable; those taken meanwhile go next."""
        assert plan.export.vdi is not None
        plan.committing, plan.waiting = plan.waiting, 0
        self._commits.add(plan.export.vdi, partial(self._taken, plan))

    def _taken(self, plan: _Plan, error: ParallaxError | None) -> None:
        done, plan.committing = plan.committing, 0
        if error is not None:
            self._failed(plan, error)
            return
        self._totals.scheduled_snapshots += done
        if plan.waiting and not plan.over:
            self._commit(plan)

    def _failed(self, plan: _Plan, error: ParallaxError) -> None:
        """Count a snapshot that could not be taken; say so once in a while."""
        self._totals.skipped_ticks += 1
        now = time.monotonic()
        if now >= self._complain_at:
            self._complain_at = now + _COMPLAIN_EVERY
            logger.error(
                "export %s: no scheduled snapshot: %s",
                plan.export.name,
                error,
                extra={"event": "schedule_failed", "export": plan.export.name},
            )
