"""`plxsh lock master`: the service that grants locks to the sessions of several hosts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from core.device import make_folder_of
from plxsh.context import Settings, configured, pass_settings
from plxsh.groups import Command
from plxsh.params import FILE, LOCK_ADDRESS, METRICS_ADDRESS, AddressType, checked

if TYPE_CHECKING:
    from core.lock_service import LockService

_LISTEN: Final = ("127.0.0.1", 8440)
_STATE: Final = "lock_master.epoch"


@click.command(
    cls=Command,
    examples=[
        "plxsh lock master --unix locks.sock --state locks.epoch",
        "plxsh lock master --listen 127.0.0.1:8440 --state locks.epoch",
    ],
)
@click.option(
    "--listen",
    type=LOCK_ADDRESS,
    help="TCP address and port to listen on.  [default: 127.0.0.1:8440]",
)
@click.option("--unix", type=FILE, metavar="PATH", help="Unix socket to listen on as well.")
@click.option("--key", type=FILE, metavar="FILE", help="File with the key that clients share.")
@click.option(
    "--tls",
    type=FILE,
    metavar="DIR",
    help="Certificates: server-cert.pem, server-key.pem, ca-cert.pem.",
)
@click.option(
    "--state",
    type=FILE,
    metavar="FILE",
    help="What must outlive a restart.  [default: see above]",
)
@click.option(
    "--lease",
    type=click.FloatRange(1, 3600),
    metavar="SECONDS",
    help="How long a session lives without a sign of life.  [default: 20]",
)
@click.option(
    "--metrics", type=METRICS_ADDRESS, help="Where GET /metrics is answered.  [default: nowhere]"
)
@click.option(
    "--log",
    type=click.Choice(("text", "json")),
    help="Form of the log on standard error.  [default: text]",
)
@pass_settings
def master(settings: Settings, /, **options: Any) -> None:
    """Grant locks to the sessions of several hosts until SIGTERM, SIGHUP or Ctrl-C.

    Taps and commands on each host name it with --lock-master. One lock master serves any
    number of stores. After each start it grants nothing for a while (35 seconds with the usual
    lease), but sessions that were there before go on.

    An address that other hosts can reach needs --key or --tls. With --key every client shows
    the same key, with --tls its own certificate (client-cert.pem, client-key.pem and
    ca-cert.pem in the folder that its PARALLAX_LOCK_TLS names).

    Its state is one small file: /var/lib/parallax/lock_master.epoch for root, and
    $XDG_STATE_HOME/parallax/lock_master.epoch for others (~/.local/state without it). Do not
    lose it, and never start two lock masters for one store.
    """
    run_master(settings, **options)


def run_master(
    settings: Settings,
    listen: tuple[str, int] | None = None,
    unix: str | None = None,
    key: str | None = None,
    tls: str | None = None,
    state: str | None = None,
    lease: float | None = None,
    metrics: tuple[str, int] | None = None,
    log: str | None = None,
) -> None:
    """Run a lock master in the foreground; arguments as the command."""
    from core.lock_auth import read_key
    from core.lock_serve import serve_lock_master
    from core.lock_timing import Timing
    from plxsh.log import level_for, log_form, logging_to_stderr

    form = log_form(log or configured(settings.config, "lock_master", "log"))
    key = key or settings.lock_key or None
    tls = tls or settings.lock_tls
    metrics = metrics or _configured(settings, "metrics", METRICS_ADDRESS)
    listen = listen or _configured(settings, "listen", LOCK_ADDRESS) or (None if unix else _LISTEN)
    state = state or configured(settings.config, "lock_master", "state") or default_state()
    secret = read_key(key) if key else None

    def ready(service: LockService) -> None:
        where = [a if isinstance(a, str) else f"{a[0]} port {a[1]}" for a in service.addresses]
        if form == "text":
            settings.note(f"serving locks on {' and '.join(where)}; Ctrl-C ends it")

    with logging_to_stderr(form, level_for(settings.quiet, settings.verbose)):
        make_folder_of(state)
        serve_lock_master(
            listen,
            unix or "",
            state=state,
            timing=Timing.of(lease) if lease else None,
            key=secret,
            tls=tls,
            metrics=metrics,
            ready=ready,
        )


def default_state() -> str:
    """Return where a lock master keeps what must outlive a restart."""
    if os.geteuid() == 0:
        return f"/var/lib/parallax/{_STATE}"
    folder = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(folder, "parallax", _STATE)


def _configured(settings: Settings, name: str, kind: AddressType) -> tuple[str, int] | None:
    """Return an address in the section [lock_master] of the configuration."""
    text = configured(settings.config, "lock_master", name)
    return checked(kind, text, f"[lock_master] {name} of the configuration") if text else None
