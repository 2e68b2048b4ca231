"""The lock master in the foreground, as `plxlockmaster` and `plxsh lock master` run it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack

from core.ending import on_ending_signals
from core.listen import raise_descriptor_limit
from core.lock_epoch import EpochFile
from core.lock_service import LockService
from core.lock_timing import Timing
from core.notify import notify

logger = logging.getLogger(__name__)


def serve_lock_master(
    listen: tuple[str, int] | None = None,
    unix: str = "",
    *,
    state: str,
    timing: Timing | None = None,
    key: bytes | None = None,
    tls: str = "",
    metrics: tuple[str, int] | None = None,
    ready: Callable[[LockService], None] | None = None,
) -> None:
    """Serve locks until a signal ends it (`core.ending`). Call it from the main thread.

    Args:
        listen: address and port to listen on.
        unix: path of a Unix socket to listen on.
        state: the epoch file.
        timing: how long leases last.
        key: what clients on TCP have to share.
        tls: folder of certificates; clients on TCP have to show one.
        metrics: address and port where `GET /metrics` is answered.
        ready: called when clients can connect.

    Raises:
        BadRequest, InUse, NotFound, ReadOnly: it cannot listen there, or another lock
            master runs with that epoch file.
        IoFailed: the epoch cannot be made durable.
    """
    raise_descriptor_limit()
    with ExitStack() as stack:
        epochs = EpochFile(state)
        stack.callback(epochs.close)
        service = LockService(
            unix, listen, epochs=epochs, timing=timing, key=key, tls=tls, purpose="lock master"
        )
        stack.callback(service.close)
        if metrics is not None:
            from core.lock_metrics import LockMetrics, MetricsPage  # only for those who asked

            stack.callback(MetricsPage(LockMetrics(service), metrics).close)

        def stop() -> None:
            notify("STOPPING=1")
            service.stop()

        stack.enter_context(on_ending_signals(stop))
        service.start()
        _say_where(service)
        notify("READY=1")
        if ready is not None:
            ready(service)
        service.join()
    logger.info("the lock master stopped", extra={"event": "stopped"})


def _say_where(service: LockService) -> None:
    where = [a if isinstance(a, str) else f"{a[0]}:{a[1]}" for a in service.addresses]
    with service.desk:
        quiet = service.master.figures().quiet
    logger.info(
        "the lock master listens on %s; nothing is granted for %d s",
        ", ".join(where),
        round(quiet),
        extra={"event": "listening", "sockets": where, "quiet": quiet},
    )
