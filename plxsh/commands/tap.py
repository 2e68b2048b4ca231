"""`plxsh tap`: the NBD server that gives VDIs to virtual machines."""

from __future__ import annotations

import os
from typing import Any, Final

import click

from core.errors import BadRequest
from plxsh import render
from plxsh.context import Settings, configured, default_socket, pass_settings
from plxsh.groups import Group
from plxsh.params import ADDRESS, FILE
from plxsh.render import Column

_LIST: Final = (
    Column("export", "Export", flexible=True),
    Column("peer", "Client", flexible=True),
    Column("access", "Access"),
    Column("since", "Since", "time"),
    Column("requests", "Requests", "number"),
    Column("read_rate", "Read/s", "bytes"),
    Column("write_rate", "Written/s", "bytes"),
)


@click.group(cls=Group)
def tap() -> None:
    """Serve VDIs and snapshots over NBD."""


@tap.command(
    examples=[
        "plxsh tap serve",
        "plxsh tap serve --unix nbd.sock --tcp 127.0.0.1:10809",
        "plxsh tap serve --unix nbd.sock --metrics 127.0.0.1:8441",
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
@click.option("--metrics", type=ADDRESS, help="Where GET /metrics is answered.  [default: nowhere]")
@click.option(
    "--log",
    type=click.Choice(("text", "json")),
    help="Form of the log on standard error.  [default: text]",
)
@pass_settings
def serve(
    settings: Settings,
    unix: str | None,
    tcp: tuple[str, int] | None,
    tls: str | None,
    metrics: tuple[str, int] | None,
    log: str | None,
) -> None:
    """Serve every VDI and snapshot of the store until SIGTERM or Ctrl-C.

    The Unix socket is /run/parallax/nbd.sock for root and $XDG_RUNTIME_DIR/parallax/nbd.sock
    for others. An export is named by a VDI's id or name, or by NAME@BLOCK.OFFSET or
    NAME@LABEL for a snapshot, which is read-only. TCP that other hosts can reach needs --tls.

    Metrics are for Prometheus and its like, in OpenMetrics format; they name the exports,
    and whoever reaches that address can read them. The log says who connects and leaves, what
    is refused and what fails; -q leaves warnings and errors, -v adds details. The
    configuration can ask for both: metrics and log in the section [tap].
    """
    serve_store(settings, unix, tcp, tls, metrics, log)


def serve_store(
    settings: Settings,
    unix: str | None,
    tcp: tuple[str, int] | None,
    tls: str | None,
    metrics: tuple[str, int] | None = None,
    log: str | None = None,
) -> None:
    """Serve the store in the foreground; arguments as the command."""
    from core.tap.server import serve
    from plxsh.log import level_for, log_form, logging_to_stderr

    form = log_form(log or configured(settings.config, "tap", "log"))
    metrics = metrics or _configured_address(settings, "metrics")
    if unix is None and "LISTEN_FDS" not in os.environ:  # unless systemd listens for us
        unix = default_socket()
        if not settings.dry_run:
            os.makedirs(os.path.dirname(unix), 0o755, exist_ok=True)
    places = [unix] if unix else []
    places += [f"{tcp[0]} port {tcp[1]}"] if tcp else []
    where = f"{settings.store} on {', '.join(places) or 'the sockets of systemd'}"

    def ready() -> None:
        if form == "text":
            settings.note(f"serving {where}; Ctrl-C ends it")

    level = level_for(settings.quiet, settings.verbose)
    with logging_to_stderr(form, level), settings.session() as session:
        if settings.dry_run:
            result = {"unix": unix, "tcp": tcp, "metrics": metrics}
            render.outcome(settings, "serve", "served", where, result)
            return
        serve(
            session,
            unix=unix,
            tcp=tcp,
            tls=tls,
            metrics=metrics,
            ready=ready,
        )


def _configured_address(settings: Settings, key: str) -> tuple[str, int] | None:
    """Return an address in the section [tap] of the configuration.

    Raises:
        BadRequest: what is there is none.
    """
    text = configured(settings.config, "tap", key)
    if text is None:
        return None
    try:
        return ADDRESS.convert(text, None, None)
    except click.BadParameter as error:
        raise BadRequest(
            f"[tap] {key} of the configuration: {error.message}", "correct the file"
        ) from error


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
        _described(export, connection, told["now"])
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
    }
