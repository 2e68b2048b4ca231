"""What a lock master counts, as OpenMetrics text, and the one page that tells it.

Imported only by a lock master that was asked to tell its metrics. The page is put together
and sent on a thread of its own, one visitor at a time, with limits on the size and the time
of a request: whatever a visitor does, no lock waits for it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from core.listen import listen_tcp
from core.lock_service import LockService

PATH: Final = "/metrics"
PATIENCE: Final = 5.0
"""Seconds for which a visitor may keep the page from the next."""
_generate: Callable[[Collector], bytes] = generate_latest


class LockMetrics:
    """The metrics of one service.

    Args:
        service: the service; its numbers are those of the moment they are asked for.
    """

    def __init__(self, service: LockService) -> None:
        """Begin to count the time."""
        self._service = service
        self._since = time.monotonic()
        self._process = ProcessCollector(registry=CollectorRegistry())

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        service = self._service
        with service.desk:
            now = service.master.figures()
        start = "parallax_lock_"
        yield _gauge(start + "sessions", "Sessions, without the own process", now.sessions)
        grants = GaugeMetricFamily(start + "grants", "Grants by kind", labels=["kind"])
        for kind in ("exclusive", "shared", "breaking"):
            grants.add_metric([kind], getattr(now, kind))
        yield grants
        yield _gauge(start + "waiting", "Requests that wait for their turn", now.waiting)
        yield _gauge(start + "calls", "Calls that wait for an answer", now.calls)
        yield _gauge(start + "epoch", "Epoch: the upper half of each new token", now.epoch)
        quiet = GaugeMetricFamily(
            start + "quiet_seconds", "Time for which nothing is granted yet", unit="seconds"
        )
        quiet.add_metric([], now.quiet)
        yield quiet
        up = GaugeMetricFamily(start + "up_seconds", "Time since the start", unit="seconds")
        up.add_metric([], time.monotonic() - self._since)
        yield up
        accepted = CounterMetricFamily(start + "accepted_connections", "Connections accepted")
        accepted.add_metric([], service.connections)
        yield accepted
        refused = CounterMetricFamily(
            start + "refused_connections", "Connections refused, by reason", labels=["reason"]
        )
        for reason, count in sorted(service.refused.copy().items()):
            refused.add_metric([reason], count)
        yield refused
        messages = CounterMetricFamily(start + "messages", "Messages by kind", labels=["kind"])
        for kind, count in sorted(service.messages.copy().items()):
            messages.add_metric([kind.lower()], count)
        yield messages
        yield from self._process.collect()

    def text(self) -> bytes:
        """Return the page."""
        return _generate(_Collected([*self.collect()]))


class MetricsPage:
    """`GET /metrics` on a port of its own.

    Args:
        metrics: what to tell.
        listen: address and port.

    Attributes:
        address: where it is.

    Raises:
        BadRequest, InUse: it cannot listen there.
    """

    def __init__(self, metrics: LockMetrics, listen: tuple[str, int]) -> None:
        """Listen; visitors are answered from now on."""
        sock, *others = listen_tcp(*listen, public=True)
        for other in others:
            other.close()
        self.address: tuple[str, int] = sock.getsockname()[:2]
        self._server = _Server(sock, metrics)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="lock metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(HTTPServer):
    """A server on a socket that listens already; a visitor's troubles are its own."""

    def __init__(self, sock: socket.socket, metrics: LockMetrics) -> None:
        super().__init__(sock.getsockname()[:2], _Visitor, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.metrics = metrics

    def handle_error(self, request: object, client_address: object) -> None:
        """Forget it."""


class _Visitor(BaseHTTPRequestHandler):
    timeout = 1.0
    """Seconds between two pieces of a request; `setup` bounds the whole."""
    server: _Server

    def setup(self) -> None:
        """Hang up when it takes too long, however busy the visitor looks."""
        super().setup()
        self._end = threading.Timer(PATIENCE, self._hang_up)
        self._end.daemon = True
        self._end.start()

    def finish(self) -> None:
        """Let go of the visitor."""
        self._end.cancel()
        super().finish()

    def _hang_up(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:  # the name that is looked for
        """Tell the metrics, whoever asks."""
        if self.path.partition("?")[0] != PATH:
            self.send_error(404, f"there is only {PATH}")
            return
        body = self.server.metrics.text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  # likewise

    def log_message(self, *_words: object) -> None:
        """Say nothing: a visitor every few seconds is no news."""

    def version_string(self) -> str:
        """Name the program, not its parts."""
        return "parallax"


class _Collected(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)
