"""The NBD server: listening sockets, the loop, and an orderly end.

    session = Session.open("/blockstore.dat", "write")
    serve(session, unix="/run/parallax/nbd.sock")

Everything runs in the thread that calls `serve`. Two other kinds of thread wait for the
disk on its behalf: one for commits, a few for reads that miss the page cache.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from core.ending import on_ending_signals
from core.errors import BadRequest, ParallaxError
from core.listen import (
    listen_tcp,
    raise_descriptor_limit,
    refuse_public_sockets,
    tls_context,
    tune,
)
from core.notify import inherited_sockets, notify
from core.session import Session
from core.tap.aside import Aside
from core.tap.budget import Budget
from core.tap.calls import Desk
from core.tap.client import Client
from core.tap.collecting import Chore, Collecting
from core.tap.commits import Commits
from core.tap.counts import Totals
from core.tap.crowd import Crowd
from core.tap.disconnecting import Disconnecting
from core.tap.doors import Doors
from core.tap.exports import Exports
from core.tap.gate import Gate
from core.tap.handover import HandOver
from core.tap.http import PATH, Pages
from core.tap.jobs import Jobs
from core.tap.listing import Listing
from core.tap.loop import Loop
from core.tap.opening import Openings
from core.tap.replies import Replies
from core.tap.room import Room
from core.tap.schedules import Schedules
from core.tap.shared import Shared
from core.tap.status import (
    MOST_ASKING,
    PATIENCE,
    StatusReply,
    check_path,
    document,
    status_path,
)
from core.tap.sweeping import Sweeping
from core.tap.timers import Timers
from core.tap.turns import Turns

logger = logging.getLogger(__name__)

COMMIT_INTERVAL: Final = 5.0
"""Seconds after which what was written is committed without being asked."""
_GRACE: Final = 5.0
"""Seconds that clients have to take their last replies when the server stops."""
MOST_STRANGERS: Final = 256
"""Clients that have yet to choose an export; one more, and the oldest has to go."""
HANDSHAKE: Final = 30.0
"""Seconds that each of them has for that."""


class Tap:
    """A server for the VDIs of one session. Nobody else may use the session meanwhile.

    Args:
        session: an open session.
        unix: path of the Unix socket to listen on, if any.
        tcp: address and port to listen on, if any.
        tls: folder of certificates; TCP clients have to use TLS, others may.
        commit_interval: seconds between commits of what was written.
        inherited: sockets that listen already.
        metrics: address and port where it tells its metrics over HTTP, if any.
        collector: collects garbage, None for no collections.
        lock_master: where the lock master is, to show.

    Attributes:
        addresses: where it listens.
        metrics_addresses: where it tells its metrics.

    Raises:
        BadRequest, InUse, NotFound, ReadOnly: it cannot listen there.
    """

    def __init__(
        self,
        session: Session,
        unix: str | None = None,
        tcp: tuple[str, int] | None = None,
        tls: str | None = None,
        commit_interval: float = COMMIT_INTERVAL,
        inherited: list[socket.socket] | None = None,
        metrics: tuple[str, int] | None = None,
        collector: Chore | None = None,
        lock_master: str = "",
    ) -> None:
        """Listen, but answer nobody before `run`."""
        self._session = session
        self._interval = commit_interval
        self._tls: ssl.SSLContext | None = tls_context(tls) if tls else None
        self._strangers = Crowd(MOST_STRANGERS, HANDSHAKE)
        self._asking = Crowd(MOST_ASKING, PATIENCE)
        self._clients: set[Client] = set()
        self._since = time.time()
        self._stopping = False
        listeners = list(inherited or ())
        if self._tls is None:
            refuse_public_sockets(listeners)
        if unix is None and tcp is None and not listeners:
            raise BadRequest("the tap has nowhere to listen", "use --unix or --tcp")
        told: list[socket.socket] = []
        crowds = [self._strangers, self._asking]
        self._doors = doors = Doors(crowds)
        try:
            doors.open(listeners, self._welcome)
            if tcp is not None:
                listeners += doors.open(listen_tcp(*tcp, self._tls is not None), self._welcome)
            if unix is not None:
                check_path(unix)
                listeners += doors.open_unix(unix, self._welcome)
                doors.open_unix(status_path(unix), self._tell_status)
            if metrics is not None:
                told = doors.open(listen_tcp(*metrics, public=True), self._tell_metrics)
        except BaseException:
            doors.close()
            raise
        self.addresses = [sock.getsockname() for sock in listeners]
        self.metrics_addresses = [sock.getsockname() for sock in told]
        self._loop = Loop()
        self._timers = Timers()
        self._lock_master = lock_master
        locks, totals = session.locks, Totals()
        commits = Commits(session, self._loop.wake)
        jobs = Jobs(session.store.device, self._loop.wake)
        self._openings = Openings(locks, self._timers)
        self._turns = Turns()
        exports = Exports(session, commits, self._openings, Listing(session, self._turns))
        self._aside = Aside(self._loop.wake)
        self._room = Room(session, exports, self._aside, self._timers)
        self._gate = Gate(session, locks, exports, commits, jobs, self._room, self._timers)
        self._collecting = Collecting(collector or Chore(), self._loop, self._timers)
        self._schedules = Schedules(exports, commits, self._timers, totals)
        self._desk = Desk(locks, session.answers, commits, totals, self._loop.wake)
        handover = HandOver(session.registry, exports, self._openings, self._timers)
        self._connect_parts(exports, handover, Disconnecting(exports, self._timers))
        self._shared = Shared(
            session,
            exports,
            commits,
            jobs,
            Replies(),
            totals,
            self._gate,
            self._room,
            self._collecting,
            self._turns,
            Budget(self._timers),
        )
        self._pages = _pages(self._loop, self._shared) if metrics else None
        if self._pages is not None:
            crowds.append(self._pages.visitors)
        doors.inside = lambda: len(self._clients) + sum(map(len, crowds)) - len(self._strangers)

    def _connect_parts(
        self, exports: Exports, handover: HandOver, disconnecting: Disconnecting
    ) -> None:
        """Tell the parts what they have to do with each other."""
        exports.refuse = self._gate.refusal
        exports.admit = disconnecting.admit
        exports.changed = self._exports_changed
        self._desk.specials |= {
            "give_up": handover.give_up,
            "take": handover.take,
            "clients": disconnecting.clients,
            "disconnect": disconnecting.disconnect,
            "sweep": Sweeping(self._session, self._aside).sweep,
        }
        self._desk.after = lambda method: self._schedules.look() if method == "schedule" else None

    def _exports_changed(self) -> None:
        """Look what the VDIs that are open now need."""
        self._schedules.look()
        if self._session.locks.shared:
            self._room.look()

    # -- running -----------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`; then answer what was asked, commit and let go.

        Raises:
            NoSpace, IoFailed, Fenced: the last commit failed.
        """
        self._doors.watch(self._loop, self._timers)
        self._say_where()
        shared, timers = self._shared, self._timers
        locks = shared.session.locks
        if locks.shared:
            self._desk.open()
            self._room.start()
        if locks.leased:
            self._loop.look = self._gate.look
        if locks.leased or locks.shared:
            self._gate.start()
        self._collecting.start()
        timers.at(time.monotonic() + self._interval, self._tick)
        try:
            while not self._stopping:
                now = time.monotonic()
                if now >= timers.due():
                    timers.run(now)
                self._turn(timers.due() - now)
            self._finish()
        finally:
            self._collecting.close()
            self._desk.close()
            self._openings.close()
            self._room.close()
            self._aside.close()
            for client in list(self._clients):
                client.close("the server stopped")
            shared.jobs.close()
            shared.commits.close()
            self._doors.close()
            self._asking.close()
            if self._pages is not None:
                self._pages.visitors.close()
            self._collecting.wait()
            try:
                shared.exports.close()
            finally:
                self._loop.close()
        logger.info("stopped; everything is committed", extra={"event": "stopped"})

    def stop(self) -> None:
        """Make `run` end soon; may be called from any thread or signal handler."""
        self._stopping = True
        self._loop.wake()

    def _turn(self, timeout: float) -> None:
        """Wait for something to do, and do it."""
        shared = self._shared
        turns = self._turns
        if turns.pieces:
            timeout = min(timeout, turns.due() - time.monotonic())
        self._loop.turn(0 if shared.jobs.ready else max(timeout, 0.0))
        if turns.pieces:
            turns.run()
        if self._aside.rung:
            self._aside.poll()
        shared.jobs.run()
        if self._desk.rung:
            self._desk.serve()
            self._openings.poll()
        shared.commits.poll()

    def _tick(self) -> None:
        """Do what is to be done now and then."""
        now = time.monotonic()
        self._timers.at(now + self._interval, self._tick)
        self._shared.exports.settle_all()
        self._end_old_collection()
        clock = time.time()
        for client in list(self._clients):
            transmission = client.transmission
            if transmission is not None:
                transmission.tidy()
                transmission.recent.sample(clock, transmission.counts)
        self._shared.totals.prune({e.name for e in self._shared.exports.open.values()})

    def _end_old_collection(self) -> None:
        """Forget a collection of another session that did not come to its end."""
        member = self._session.member
        token = member.token

        def told(held: bool | ParallaxError) -> None:
            if isinstance(held, ParallaxError):
                logger.warning("cannot ask who collects: %s", held, extra={"event": "expire"})
            elif member.token == token:
                member.expire_unless(held)

        if token:
            self._aside.ask(partial(member.is_held, token), told)
        else:
            member.expire()

    def _finish(self) -> None:
        """Answer what was asked before the end, as long as clients take the replies."""
        logger.info("stopping", extra={"event": "stopping", "connections": len(self._clients)})
        self._doors.close()
        for client in list(self._clients):
            client.stop()
        until = time.monotonic() + _GRACE
        while (left := until - time.monotonic()) > 0:
            if not self._shared.commits.busy and all(client.idle for client in self._clients):
                return
            self._turn(min(left, 0.1))

    # -- accepting ---------------------------------------------------------------------

    def _welcome(self, sock: socket.socket) -> None:
        """Take a client."""
        try:
            tune(sock)
        except OSError:
            sock.close()
            return
        self._shared.totals.connections += 1
        required = self._tls is not None and sock.family != socket.AF_UNIX
        client = Client(self._loop, self._shared, sock, self._tls, required, self._known)
        if client.open:  # it may have gone while it was greeted
            self._clients.add(client)
            self._strangers.add(client)

    def _known(self, client: Client) -> None:
        """Note that a client has chosen an export, or that it is gone."""
        self._strangers.discard(client)
        if client.open:
            return
        self._clients.discard(client)
        if client.transmission is not None:
            self._shared.totals.retire(client.transmission.name, client.transmission.counts)

    def _tell_status(self, sock: socket.socket) -> None:
        StatusReply(self._loop, sock, self.status(), self._asking)

    def _tell_metrics(self, sock: socket.socket) -> None:
        assert self._pages is not None
        self._pages.greet(sock)

    def status(self) -> dict[str, Any]:
        """Return what the status socket tells."""
        told = document(self._session, self._shared.exports.open.values(), self._since)
        return told | {"lock_master": self._about_locks()}

    def _about_locks(self) -> dict[str, Any]:
        """Return where the lock master is, and whether it answers."""
        locks = self._session.locks
        place = "remote" if locks.leased else "hosted" if locks.shared else "embedded"
        left = locks.lease_left()
        return {
            "place": place,
            "address": self._lock_master,
            "up": not self._gate.shut,
            "lease_left": left if locks.leased else None,
        }

    def _say_where(self) -> None:
        """Log where clients can connect."""
        store = self._session.store.device.name
        listening = [*map(_shown, self.addresses)]
        told = [f"http://{_shown(address)}{PATH}" for address in self.metrics_addresses]
        logger.info(
            "%s: listening on %s",
            store,
            ", ".join(listening + told),
            extra={"event": "listening", "store": store, "sockets": listening, "metrics": told},
        )


def _shown(address: Any) -> str:
    """Return the address of a socket as people write it."""
    if not isinstance(address, tuple):
        return str(address)
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _pages(loop: Loop, shared: Shared) -> Pages:
    """Return what tells the metrics."""
    from core.tap.metrics import CONTENT_TYPE, Metrics  # only for those who asked for it

    return Pages(loop, shared.jobs, Metrics(shared).page, CONTENT_TYPE)


def serve(
    session: Session,
    *,
    unix: str | None = None,
    tcp: tuple[str, int] | None = None,
    tls: str | None = None,
    commit_interval: float = COMMIT_INTERVAL,
    metrics: tuple[str, int] | None = None,
    collector: Chore | None = None,
    lock_master: str = "",
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve the VDIs of a session over NBD until a signal ends it (`core.ending`); see `Tap`.

    Sockets handed over by systemd are served as well. Call it from the main thread.

    Args:
        session: an open session; it is not closed.
        unix: path of the Unix socket to listen on.
        tcp: address and port to listen on.
        tls: folder with `server-cert.pem`, `server-key.pem` and perhaps `ca-cert.pem`.
        commit_interval: seconds between commits of what was written.
        metrics: address and port where `GET /metrics` is answered.
        collector: collects garbage.
        lock_master: where the lock master is, to show.
        ready: called when clients can connect.

    Raises:
        BadRequest, InUse, NotFound, ReadOnly: it cannot listen there.
        NoSpace, IoFailed, Fenced: the last commit failed.
    """
    tap = Tap(
        session,
        unix,
        tcp,
        tls,
        commit_interval,
        inherited_sockets(),
        metrics,
        collector,
        lock_master,
    )
    raise_descriptor_limit()

    def stop() -> None:
        notify("STOPPING=1")
        tap.stop()

    with on_ending_signals(stop):
        notify("READY=1")
        if ready is not None:
            ready()
        tap.run()
