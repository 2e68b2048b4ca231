"""`plxsh lock master`: the service that grants locks to the sessions of several hosts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from core.device import make_folder_of
from plxsh.context import Settings, configured, pass_settings, state_folder
from plxsh.groups import Command
from plxsh.params import FILE, LOCK_ADDRESS, METRICS_ADDRESS, AddressType, checked

if TYPE_CHECKING:
    from core.lock_service import LockService

_LISTEN: Final = ("127.0.0.1", 8440)
_STATE: Final = "lock_master.epoch"
_OR_KEY: Final = "give certificates with --tls or a shared key with --key, or use 127.0.0.1"


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

    With --key every client shows the same key, with --tls its own certificate
    (client-cert.pem, client-key.pem and ca-cert.pem in the folder that its PARALLAX_LOCK_TLS
    names). Without either it serves this host alone and makes a key of its own, lock_master.key
    in the folder below: root and its user find it by themselves, other users are kept out.

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
    from core.lock_serve import serve_lock_master
    from core.lock_timing import Timing
    from plxsh.log import level_for, log_form, logging_to_stderr

    form = log_form(log or configured(settings.config, "lock_master", "log"))
    key = key or settings.lock_key or None
    tls = tls or settings.lock_tls
    metrics = metrics or _configured(settings, "metrics", METRICS_ADDRESS)
    listen = listen or _configured(settings, "listen", LOCK_ADDRESS) or (None if unix else _LISTEN)
    state = state or configured(settings.config, "lock_master", "state") or default_state()
    secret = _secret(key, tls, listen)

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
    return os.path.join(state_folder(), _STATE)


def _secret(key: str | None, tls: str | None, listen: tuple[str, int] | None) -> bytes | None:
    """Return the key that clients have to show: the one that is named, else one of its own.

    Raises:
        BadRequest: other hosts can reach the address, and would not have that one.
        Others: as `read_key` and `make_own_key`.
    """
    from core.listen import refuse_public
    from core.lock_key import make_own_key, read_key

    if key:
        return read_key(key)
    if tls or listen is None:
        return None
    refuse_public(listen[0], _OR_KEY)
    return make_own_key(state_folder())


def _configured(settings: Settings, name: str, kind: AddressType) -> tuple[str, int] | None:
    """Return an address in the section [lock_master] of the configuration."""
    text = configured(settings.config, "lock_master", name)
    return checked(kind, text, f"[lock_master] {name} of the configuration") if text else None
