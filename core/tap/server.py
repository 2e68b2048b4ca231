"""The NBD server: listening sockets, the loop, and an orderly end.

    session = Session.open("/blockstore.dat", "write")
    serve(session, unix="/run/parallax/nbd.sock")

Everything runs in the thread that calls `serve`. Two other kinds of thread wait for the
disk on its behalf: one for commits, a few for reads that miss the page cache.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Final

from core.errors import BadRequest
from core.session import Session
from core.tap.client import Client
from core.tap.commits import Commits
from core.tap.exports import Exports
from core.tap.jobs import Jobs
from core.tap.listen import listen_tcp, listen_unix, refuse_public_sockets, tls_context, tune
from core.tap.loop import READ, Loop
from core.tap.notify import inherited_sockets, notify
from core.tap.replies import Replies
from core.tap.shared import Shared
from core.tap.status import StatusReply, document, status_path

logger = logging.getLogger(__name__)

COMMIT_INTERVAL: Final = 5.0
"""Seconds after which what was written is committed without being asked."""
_GRACE: Final = 5.0
"""Seconds that clients have to take their last replies when the server stops."""
_HANDSHAKE_LIMIT: Final = 60.0


class Tap:
    """A server for the VDIs of one session. Nobody else may use the session meanwhile.

    Args:
        session: an open session.
        unix: path of the Unix socket to listen on, if any.
        tcp: address and port to listen on, if any.
        tls: folder of certificates; TCP clients have to use TLS, others may.
        commit_interval: seconds between commits of what was written.
        inherited: sockets that listen already.

    Attributes:
        addresses: where it listens.

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
    ) -> None:
        """Listen, but answer nobody before `run`."""
        self._session = session
        self._interval = commit_interval
        self._tls: ssl.SSLContext | None = tls_context(tls) if tls else None
        self._listeners: list[socket.socket] = list(inherited or ())
        self._unlink: list[tuple[str, int]] = []
        self._clients: set[Client] = set()
        self._since = time.time()
        self._stopping = False
        self._paused = False
        if self._tls is None:
            refuse_public_sockets(self._listeners)
        if unix is None and tcp is None and not self._listeners:
            raise BadRequest("the tap has nowhere to listen", "use --unix or --tcp")
        self._status: socket.socket | None = None
        try:
            if tcp is not None:
                self._listeners += listen_tcp(*tcp, private=self._tls is not None)
            if unix is not None:
                self._listeners.append(self._listen_unix(unix))
                self._status = self._listen_unix(status_path(unix))
        except BaseException:
            self._close_listeners()
            raise
        self.addresses = [sock.getsockname() for sock in self._listeners]
        self._loop = Loop()
        commits = Commits(session, self._loop.wake)
        jobs = Jobs(session.store.device, self._loop.wake)
        exports = Exports(session, commits)
        self._shared = Shared(session, exports, commits, jobs, Replies())

    def _listen_unix(self, path: str) -> socket.socket:
        sock = listen_unix(path)
        self._unlink.append((path, os.stat(path).st_ino))
        return sock

    # -- running -----------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`; then answer what was asked, commit and let go.

        Raises:
            NoSpace, IoFailed, Fenced: the last commit failed.
        """
        self._watch_listeners()
        shared = self._shared
        due = time.monotonic() + self._interval
        try:
            while not self._stopping:
                now = time.monotonic()
                if now >= due:
                    self._tick(now)
                    due = now + self._interval
                self._turn(due - now)
            self._finish()
        finally:
            for client in list(self._clients):
                client.close("the server stopped")
            shared.jobs.close()
            shared.commits.close()
            self._close_listeners()
            try:
                shared.exports.close()
            finally:
                self._loop.close()

    def stop(self) -> None:
        """Make `run` end soon; may be called from any thread or signal handler."""
        self._stopping = True
        self._loop.wake()

    def _turn(self, timeout: float) -> None:
        """Wait for something to do, and do it."""
        shared = self._shared
        self._loop.turn(0 if shared.jobs.ready else timeout)
        shared.jobs.run()
        shared.commits.poll()

    def _tick(self, now: float) -> None:
        """Do what is to be done now and then."""
        self._shared.exports.settle_all()
        for client in list(self._clients):
            if client.transmission is not None:
                client.transmission.shrink()
            elif now - client.since > _HANDSHAKE_LIMIT:
                client.close("no export was chosen in time")
        if self._paused:
            self._watch_listeners()

    def _finish(self) -> None:
        """Answer what was asked before the end, as long as clients take the replies."""
        self._close_listeners()
        for client in list(self._clients):
            client.stop()
        until = time.monotonic() + _GRACE
        while (left := until - time.monotonic()) > 0:
            if not self._shared.commits.busy and all(client.idle for client in self._clients):
                return
            self._turn(min(left, 0.1))

    # -- accepting ---------------------------------------------------------------------

    def _watch_listeners(self) -> None:
        self._paused = False
        for sock in self._listeners:
            self._loop.watch(sock.fileno(), partial(self._accept, sock), READ)
        if self._status is not None:
            self._loop.watch(self._status.fileno(), self._accept_status, READ)

    def _accept(self, listener: socket.socket, _events: int) -> None:
        sock = self._accept_from(listener)
        if sock is None:
            return
        try:
            tune(sock)
        except OSError:
            sock.close()
            return
        required = self._tls is not None and sock.family != socket.AF_UNIX
        client = Client(self._loop, self._shared, sock, self._tls, required, self._forget)
        self._clients.add(client)

    def _accept_from(self, listener: socket.socket) -> socket.socket | None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            # Out of descriptors: ask again at the next tick rather than all the time.
            logger.error("cannot accept a connection: %s", error)
            self._unwatch_listeners()
            return None
        return sock

    def _accept_status(self, _events: int) -> None:
        assert self._status is not None
        sock = self._accept_from(self._status)
        if sock is not None:
            StatusReply(self._loop, sock, self.status())

    def status(self) -> dict[str, Any]:
        """Return what the status socket tells."""
        return document(self._session, self._shared.exports.open.values(), self._since)

    def _forget(self, client: Client) -> None:
        self._clients.discard(client)

    def _unwatch_listeners(self) -> None:
        if not self._paused:
            self._paused = True
            for sock in [*self._listeners, *([self._status] if self._status else [])]:
                self._loop.unwatch(sock.fileno())

    def _close_listeners(self) -> None:
        """Stop listening and remove the socket files, unless somebody replaced them."""
        for sock in [*self._listeners, *([self._status] if self._status else [])]:
            with suppress(KeyError, AttributeError):
                self._loop.unwatch(sock.fileno())
            sock.close()
        self._listeners.clear()
        self._status = None
        for path, inode in self._unlink:
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._unlink.clear()


def serve(
    session: Session,
    *,
    unix: str | None = None,
    tcp: tuple[str, int] | None = None,
    tls: str | None = None,
    commit_interval: float = COMMIT_INTERVAL,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve the VDIs of a session over NBD until SIGTERM or SIGINT; see `Tap`.

    Sockets handed over by systemd are served as well. Call it from the main thread.

    Args:
        session: an open session; it is not closed.
        unix: path of the Unix socket to listen on.
        tcp: address and port to listen on.
        tls: folder with `server-cert.pem`, `server-key.pem` and perhaps `ca-cert.pem`.
        commit_interval: seconds between commits of what was written.
        ready: called when clients can connect.

    Raises:
        BadRequest, InUse, NotFound, ReadOnly: it cannot listen there.
        NoSpace, IoFailed, Fenced: the last commit failed.
    """
    tap = Tap(session, unix, tcp, tls, commit_interval, inherited_sockets())
    _raise_descriptor_limit()

    def stop(_number: int, _frame: FrameType | None) -> None:
        notify("STOPPING=1")
        tap.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        notify("READY=1")
        if ready is not None:
            ready()
        tap.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
