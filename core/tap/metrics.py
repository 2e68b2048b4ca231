"""What the tap counts, as OpenMetrics text for Prometheus and its like.

Imported only by a tap that was asked to tell its metrics. Numbers of single exports are told
for `MOST_EXPORTS` of them at most; those of the whole tap always hold all. `docs/metrics.md`
lists the names.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from errno import errorcode
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate, islice
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from core.errors import Corrupt
from core.extent import read_bitmap
from core.format import BLOCK_SHIFT
from core.tap.commits import Commits
from core.tap.counts import BOUNDS, MOST_EXPORTS, Counts
from core.tap.shared import Shared
from core.text import printable

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SLICE: Final = 20
"""Exports whose numbers are put into text before requests have their turn."""
_generate: Callable[[Collector], bytes] = generate_latest
_END: Final = b"# EOF\n"
_KINDS: Final = {
    "read": "reads",
    "write": "writes",
    "flush": "flushes",
    "trim": "trims",
    "write_zeroes": "zeroes",
    "cache": "caches",
    "block_status": "statuses",
}


class Metrics:
    """The metrics of one tap.

    Args:
        shared: what the connections of the tap share.
    """

    def __init__(self, shared: Shared) -> None:
        """Look at the extents once; those that nobody has claimed do not change."""
        self._shared = shared
        self._totals = shared.totals
        self._process = ProcessCollector(registry=CollectorRegistry())
        self._build = {"version": _version(), "python": platform.python_version()}
        self._unclaimed: dict[int, int] = {}
        self._free_blocks()

    def page(self) -> Iterator[bytes]:
        """Yield the page in pieces, with the numbers of the moment of the first."""
        exports = self._shared.exports.open.values()
        connections: dict[str, int] = {}
        told = {export.name: Counts() for export in islice(exports, MOST_EXPORTS)}
        for name in islice(reversed(self._totals.exports), MOST_EXPORTS):
            if len(told) < MOST_EXPORTS or name in told:
                told.setdefault(name, Counts()).add(self._totals.exports[name])
        everything = Counts()
        everything.add(self._totals.all)
        for export in exports:
            here = len(export.connections)
            connections[export.name] = connections.get(export.name, 0) + here
            own = told.get(export.name)
            for connection in export.connections:
                everything.add(connection.counts)
                if own is not None:
                    own.add(connection.counts)
        now = [
            *self._about_the_tap(everything, sum(connections.values()), len(exports)),
            *_about_commits(self._shared.commits),
            *self._about_sessions(),
            *self._about_the_store(),
            *self._process.collect(),
        ]
        yield _text(now)
        yield from _about_exports(told, connections)
        yield _END

    def _about_the_tap(self, done: Counts, connections: int, exports: int) -> Iterator[Metric]:
        yield InfoMetricFamily("parallax_build", "What serves here", self._build)
        totals = self._totals
        yield _gauge("parallax_tap_connections", "Clients that have an export open", connections)
        yield _gauge("parallax_tap_open_exports", "Exports that are open", exports)
        yield _counter(
            "parallax_tap_accepted_connections", "Connections accepted", totals.connections
        )
        yield _counter("parallax_tap_refused_handshakes", "Handshakes that failed", totals.refused)
        requests = CounterMetricFamily("parallax_tap_requests", "Requests by kind", labels=["kind"])
        for kind, field in _KINDS.items():
            requests.add_metric([kind], getattr(done, field))
        yield requests
        yield _counter("parallax_tap_read_bytes", "Bytes read", done.bytes_read, "bytes")
        yield _counter("parallax_tap_written_bytes", "Bytes written", done.bytes_written, "bytes")
        errors = CounterMetricFamily(
            "parallax_tap_errors", "Requests answered with an error", labels=["error"]
        )
        for number, count in self._shared.replies.errors.items():
            errors.add_metric([errorcode.get(number, str(number))], count)
        yield errors
        yield _counter(
            "parallax_tap_cache_hits", "Reads answered from memory", done.reads - done.missed
        )
        yield _counter(
            "parallax_tap_cache_misses", "Reads that had to wait for the disk", done.missed
        )

    def _about_sessions(self) -> Iterator[Metric]:
        """Yield what has to do with other sessions, the lock master and schedules."""
        shared = self._shared
        locks, gate = shared.session.locks, shared.gate
        calls = CounterMetricFamily(
            "parallax_tap_calls",
            "Calls of other sessions by method and outcome",
            labels=["method", "outcome"],
        )
        for (method, failed), count in sorted(self._totals.calls.items()):
            calls.add_metric([method, "failed" if failed else "done"], count)
        yield calls
        yield _counter(
            "parallax_tap_scheduled_snapshots",
            "Snapshots taken on a schedule",
            self._totals.scheduled_snapshots,
        )
        yield _counter(
            "parallax_tap_skipped_ticks",
            "Times at which a scheduled snapshot was due and not taken",
            self._totals.skipped_ticks,
        )
        yield _gauge(
            "parallax_tap_lease_left_seconds",
            "Time for which it may write without another renewal; +Inf without a lease",
            locks.lease_left(),
            "seconds",
        )
        yield _counter(
            "parallax_tap_gate_shut_seconds",
            "Time in which writable exports waited for the lease",
            gate.shut_for(),
            "seconds",
        )
        yield _counter("parallax_tap_lost_exports", "Exports lost to others", gate.losses)
        collections = CounterMetricFamily(
            "parallax_tap_collections", "Garbage collections by outcome", labels=["outcome"]
        )
        collections.add_metric(["done"], shared.collecting.runs)
        collections.add_metric(["failed"], shared.collecting.failures)
        yield collections

    def _about_the_store(self) -> Iterator[Metric]:
        store = self._shared.session.store
        sb = store.sb
        free = self._free_blocks()
        used = (sb.extents - 1) * sb.extent_blocks - free
        yield _gauge(
            "parallax_store_size_bytes",
            "Size of the blockstore, its system extent included",
            sb.extents * sb.extent_blocks << BLOCK_SHIFT,
            "bytes",
        )
        yield _gauge(
            "parallax_store_used_bytes", "Space that is taken", used << BLOCK_SHIFT, "bytes"
        )
        yield _gauge(
            "parallax_store_free_bytes", "Space that is free", free << BLOCK_SHIFT, "bytes"
        )
        yield _gauge(
            "parallax_store_failed",
            "1 after a failed flush: nothing is written until the tap starts again",
            int(store.failed is not None),
        )

    def _free_blocks(self) -> int:
        """Return the free blocks of all extents, claimed by this session or not."""
        store = self._shared.session.store
        claimed = store.allocator.claimed if store.writable else frozenset()
        free = store.allocator.free if store.writable else 0
        for number in range(1, store.sb.extents):
            if number in claimed:
                continue
            if number not in self._unclaimed:
                try:
                    parts = read_bitmap(store.device, store.sb, number)
                    left = store.sb.extent_blocks - sum(part.used for part in parts)
                except Corrupt:  # nothing can be taken from it
                    left = 0
                self._unclaimed[number] = left
            free += self._unclaimed[number]
        return free


def _about_commits(commits: Commits) -> Iterator[Metric]:
    took = commits.took
    bounds = [*map(str, BOUNDS), "+Inf"]
    yield HistogramMetricFamily(
        "parallax_tap_commit_seconds",
        "Time from the beginning of a commit to its end on disk",
        buckets=list(zip(bounds, accumulate(took.buckets), strict=True)),
        sum_value=took.sum,
        unit="seconds",
    )
    yield _counter("parallax_tap_failed_commits", "Commits that failed", commits.failures)


def _about_exports(told: dict[str, Counts], connections: dict[str, int]) -> Iterator[bytes]:
    """Yield the text about single exports, a few of them at a time."""

    def clients(name: str, _counts: Counts) -> Iterator[tuple[list[str], int]]:
        yield [], connections.get(name, 0)

    def requests(_name: str, counts: Counts) -> Iterator[tuple[list[str], int]]:
        for kind, field in _KINDS.items():
            yield [kind], getattr(counts, field)

    def read(_name: str, counts: Counts) -> Iterator[tuple[list[str], int]]:
        yield [], counts.bytes_read

    def written(_name: str, counts: Counts) -> Iterator[tuple[list[str], int]]:
        yield [], counts.bytes_written

    start = "parallax_tap_export_"
    label = ["export"]
    families: tuple[tuple[Metric, Callable[..., Iterator[tuple[list[str], int]]]], ...] = (
        (GaugeMetricFamily(start + "connections", "Clients of an export", labels=label), clients),
        (
            CounterMetricFamily(
                start + "requests", "Requests to an export by kind", labels=[*label, "kind"]
            ),
            requests,
        ),
        (
            CounterMetricFamily(
                start + "read_bytes", "Bytes read from an export", labels=label, unit="bytes"
            ),
            read,
        ),
        (
            CounterMetricFamily(
                start + "written_bytes", "Bytes written to an export", labels=label, unit="bytes"
            ),
            written,
        ),
    )
    names = list(told)
    for family, rows in families:
        heading = len(_text([family]))
        for at in range(0, len(names), _SLICE):
            family.samples.clear()
            for name in names[at : at + _SLICE]:
                for more, value in rows(name, told[name]):
                    family.add_metric([printable(name), *more], value)  # type: ignore[attr-defined]
            yield _text([family])[heading if at else 0 :]


class _Given(Collector):
    """Stands for a registry that holds these families and nothing else."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _text(families: Iterable[Metric]) -> bytes:
    """Return families as text, without the mark of the page's end."""
    text: bytes = _generate(_Given(families))
    return text.removesuffix(_END)


def _gauge(name: str, text: str, value: float, unit: str = "") -> Metric:
    return GaugeMetricFamily(name, text, value, unit=unit)


def _counter(name: str, text: str, value: float, unit: str = "") -> Metric:
    return CounterMetricFamily(name, text, value, unit=unit)


def _version() -> str:
    try:
        return version("parallax-vdi")
    except PackageNotFoundError:  # run from a folder of sources
        return "unknown"
