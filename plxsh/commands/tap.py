"""`plxsh tap`: the NBD server that gives VDIs to virtual machines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from core.lock_messages import TAP
from plxsh import render
from plxsh.commands.disconnect import disconnect
from plxsh.context import Settings, configured, default_socket, hosted_socket, pass_settings
from plxsh.groups import Group
from plxsh.locking import join
from plxsh.params import ADDRESS, FILE, METRICS_ADDRESS, checked
from plxsh.render import Column

if TYPE_CHECKING:
    from core.session import Session
    from core.tap.collecting import Chore

_PURPOSE: Final = "plxsh tap serve"
"""What every tap is known by to the lock master, parallaxd too: 'lock handover' looks for it."""

_LIST: Final = (
    Column("export", "Export", flexible=True),
    Column("peer", "Client", flexible=True),
    Column("access", "Access"),
    Column("since", "Since", "time"),
    Column("requests", "Requests", "number"),
    Column("read_rate", "Read/s", "bytes"),
    Column("write_rate", "Written/s", "bytes"),
    Column("schedule", "Snapshots"),
)


@click.group(cls=Group)
def tap() -> None:
    """Serve VDIs and snapshots over NBD."""


@tap.command(
    examples=[
        "plxsh tap serve",
        "plxsh tap serve --unix nbd.sock --tcp 127.0.0.1:10809",
        "plxsh tap serve --unix nbd.sock --metrics 127.0.0.1:8441",
        "plxsh tap serve --unix nbd.sock --gc-every 1h",
    ]
)
@click.option(
    "--unix", type=FILE, metavar="PATH", help="Unix socket to listen on.  [default: see above]"
)
@click.option("--tcp", type=ADDRESS, help="TCP address and port to listen on as well.")
@click.option(
    "--tls",
    type=FILE,
    metavar="DIR",
    help="Certificates for TCP: server-cert.pem, server-key.pem.",
)
@click.option(
    "--metrics", type=METRICS_ADDRESS, help="Where GET /metrics is answered.  [default: nowhere]"
)
@click.option(
    "--log",
    type=click.Choice(("text", "json")),
    help="Form of the log on standard error.  [default: text]",
)
@click.option(
    "--gc-every", metavar="INTERVAL", help="Collect garbage that often, such as 1h.  [default: off]"
)
@pass_settings
def serve(
    settings: Settings,
    unix: str | None,
    tcp: tuple[str, int] | None,
    tls: str | None,
    metrics: tuple[str, int] | None,
    log: str | None,
    gc_every: str | None,
) -> None:
    """Serve every VDI and snapshot of the store until SIGTERM, SIGHUP or Ctrl-C.

    The Unix socket is /run/parallax/nbd.sock for root and $XDG_RUNTIME_DIR/parallax/nbd.sock
    for others. An export is named by a VDI's name, id or UUID, or by VDI@BLOCK.OFFSET or
    VDI@LABEL for a snapshot, which is read-only. TCP that other hosts can reach needs --tls.

    Metrics are for Prometheus and its like, in OpenMetrics format; they name the exports,
    and whoever reaches that address can read them. The log says who connects and leaves, what
    is refused and what fails; -q leaves warnings and errors, -v adds details. The
    configuration can ask for these too: metrics, log and gc_every in the section [tap].

    Other commands work on the store meanwhile, beside the tap: it is their lock master, on a
    socket in the same folder, unless --lock-master names another one. Snapshots are taken of
    VDIs that are open, on their schedules ('plxsh snap every') too. --gc-every has a process
    of its own collect garbage; the tap has it done as well when the store was full.

    SIGTERM and SIGHUP, as any signal that would end it, have it answer what was asked, commit
    everything and end with status 0. There is nothing to reload.
    """
    serve_store(settings, unix, tcp, tls, metrics, log, gc_every)


def serve_store(
    settings: Settings,
    unix: str | None,
    tcp: tuple[str, int] | None,
    tls: str | None,
    metrics: tuple[str, int] | None = None,
    log: str | None = None,
    gc_every: str | None = None,
) -> None:
    """Serve the store in the foreground; arguments as the command."""
    from core.device import make_folder_of
    from core.tap.server import serve
    from core.tap.status import check_path
    from plxsh.log import level_for, log_form, logging_to_stderr

    form = log_form(log or configured(settings.config, "tap", "log"))
    metrics = metrics or _configured_metrics(settings)
    collector = _collector(settings, gc_every or configured(settings.config, "tap", "gc_every"))
    if unix is None and "LISTEN_FDS" not in os.environ:  # unless systemd listens for us
        unix = default_socket()
        check_path(unix)
        if not settings.dry_run:
            make_folder_of(unix)
    elif unix is not None:
        check_path(unix)
    places = [unix] if unix else []
    places += [f"{tcp[0]} port {tcp[1]}"] if tcp else []
    where = f"{settings.store} on {', '.join(places) or 'the sockets of systemd'}"

    def ready() -> None:
        if form == "text":
            settings.note(f"serving {where}; Ctrl-C ends it")

    level = level_for(settings.quiet, settings.verbose)
    with logging_to_stderr(form, level), _session(settings) as (session, lock_master):
        if settings.dry_run:
            result = {
                "unix": unix,
                "tcp": tcp,
                "metrics": metrics,
                "gc_every_ns": round(collector.every * 1e9),
            }
            render.outcome(settings, "serve", "served", where, result)
            return
        serve(
            session,
            unix=unix,
            tcp=tcp,
            tls=tls,
            metrics=metrics,
            collector=collector,
            lock_master=lock_master,
            ready=ready,
        )


@contextmanager
def _session(settings: Settings) -> Iterator[tuple[Session, str]]:
    """Give out a session to serve, and where its lock master is; empty for none but its own."""
    if settings.dry_run:
        with settings.session() as session:
            yield session, settings.lock_master
        return
    if settings.lock_master:
        with join(settings, "write", settings.connect(_PURPOSE, TAP)) as session:
            settings.warn(session.store.warnings)
            yield session, settings.lock_master
        return
    from core.tap.hosting import hosted_session

    with hosted_session(settings.store, settings.caching, hosted_socket) as (session, socket):
        settings.warn(session.store.warnings)
        yield session, f"unix:{socket}"


def _collector(settings: Settings, every: str | None) -> Chore:
    """Return the command that collects garbage, as a session of its own beside the tap.

    Raises:
        BadRequest: `every` is no interval.
    """
    from core.schedule import parse_interval
    from core.tap.collecting import Chore

    variables = {
        "PARALLAX_STORE": os.path.abspath(settings.store),
        "PARALLAX_CACHE": settings.caching,
        "PARALLAX_OUTPUT": "plain",
        "PARALLAX_LOCK_MASTER": settings.lock_master,
        "PARALLAX_LOCK_KEY": settings.lock_key and os.path.abspath(settings.lock_key),
        "PARALLAX_LOCK_TLS": settings.lock_tls and os.path.abspath(settings.lock_tls),
    }
    command = [sys.executable, "-m", "plxsh", "-y", "store", "gc"]
    given = {name: value for name, value in variables.items() if value}
    return Chore(command, given, parse_interval(every or "off") / 1e9)


def _configured_metrics(settings: Settings) -> tuple[str, int] | None:
    """Return where the section [tap] of the configuration has metrics answered."""
    text = configured(settings.config, "tap", "metrics")
    return checked(METRICS_ADDRESS, text, "[tap] metrics of the configuration") if text else None


@tap.command("list", examples=["plxsh tap list"])
@click.option(
    "--unix", type=FILE, metavar="PATH", help="Unix socket of the tap.  [default: as 'tap serve']"
)
@pass_settings
def list_(settings: Settings, unix: str | None) -> None:
    """List the open exports of a running tap: clients, requests, rates over the last seconds."""
    from core.tap.status import query_status

    told = query_status(unix or default_socket())
    shown = [
        {"store": told["store"], **_described(export, connection, told["now"])}
        for export in told["exports"]
        for connection in export["connections"]
    ]
    render.rows(settings, "connections", shown, _LIST)


def _described(export: dict[str, Any], connection: dict[str, Any], now: float) -> dict[str, Any]:
    """Return one row; rates are bytes a second since the tap looked before, seconds ago."""
    counts = connection["counts"]
    recent = connection["recent"]
    before = recent["counts"]
    seconds = max(now - recent["since"], 1e-3)
    schedule = export.get("schedule")
    return {
        "export": export["name"],
        "vdi": export["id"],
        "snapshot": export["snapshot"],
        "size": export["size"],
        "peer": connection["peer"],
        "access": "r" if export["read_only"] else "w",
        "since": round(connection["since"] * 1e9),
        "requests": counts["requests"],
        "bytes_read": counts["bytes_read"],
        "bytes_written": counts["bytes_written"],
        "read_rate": round((counts["bytes_read"] - before["bytes_read"]) / seconds),
        "write_rate": round((counts["bytes_written"] - before["bytes_written"]) / seconds),
        "schedule": schedule and schedule_text(schedule["every_ns"], schedule["keep"]),
    }


def schedule_text(every_ns: int, keep: int) -> str:
    """Return a snapshot schedule as people write it."""
    from core.schedule import interval_text

    return f"every {interval_text(every_ns)}, keep {keep}"


tap.add_command(disconnect)
