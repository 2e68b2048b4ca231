"""The lock master as a service: one `LockMaster`, sockets, and a thread of its own.

    service = LockService("/run/parallax/UUID.locks", epochs=EpochFile(path))
    service.start()
    grant = service.locks.acquire("vdi/3")

The thread never waits for a client: what one does not read is kept up to a limit, and then
the client is dropped. A connection speaks only for the sessions that were welcomed on it.
Whoever does what it may not do is hung up on, with a line in the log; nobody else notices.

**Who is dead cannot write.** On a Unix socket the kernel says which process has connected,
and a pidfd says when it has ended. By then all of its threads have left their system calls,
so each of its writes is done or will never be: its locks are free at once. It is the same
promise that the kernel's own file locks give, and as good: where the file system itself may
go on writing for a dead process (NFS, FUSE), neither holds. A session that only lost its
connection keeps what it has until its lease runs out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
from collections import Counter
from contextlib import suppress
from typing import Final

from core.errors import BadRequest
from core.listen import listen_tcp, listen_unix
from core.lock_auth import Seal, is_proof, new_nonce, pack, proof, server_tls, unpack
from core.lock_channel import Channel, Gone, Refusal, server_channel, streams
from core.lock_epoch import Epochs
from core.lock_here import LocksHere
from core.lock_master import HERE, LockMaster
from core.lock_messages import (
    TOOL,
    Hello,
    Reply,
    Request,
    SessionDied,
    Unknown,
    Watch,
    Welcome,
    Who,
)
from core.lock_peer import peer_name, peer_pidfd
from core.lock_timing import Timing, now
from core.lock_wire import MOST_BYTES_BACK, decode_request, encode
from core.text import printable

logger = logging.getLogger(__name__)

HANDSHAKE: Final = 10.0
"""Seconds until a connection has shown who it is."""
MOST_STRANGERS: Final = 128
"""Connections that have not; one more, and the oldest has to go."""
MOST_LINES: Final = 2000
_TICK: Final = 0.01
"""Seconds between two looks at the time: deadlines in a row must not keep the master busy."""
_LAST_WORDS: Final = 1.0
"""Seconds for the other side to take them."""
_MOST_SESSIONS: Final = 64
"""Sessions of one connection."""


class _Line:
    """One connection whose other side has shown who it is."""

    def __init__(self, channel: Channel, peer: str, seal: Seal | None, pidfd: int) -> None:
        self.channel = channel
        self.peer = peer
        self.seal = seal
        self.pidfd = pidfd
        self.sessions: set[int] = set()
        self.open = True

    def send(self, reply: Reply) -> None:
        """Send a reply; may raise Refusal, because the other side does not read."""
        if self.open:
            data = encode(reply, MOST_BYTES_BACK)
            self.channel.send(self.seal.close(data) if self.seal else data)


class LockService:
    """A lock master that others reach over sockets.

    Args:
        unix: path of a Unix socket, for this user alone.
        listen: address and port; needs TLS or a key, for every user of a host reaches those.
        epochs: where the epoch is kept.
        timing: how long leases last.
        key: what clients on TCP have to share.
        tls: folder of certificates; clients on TCP have to show one.
        alone: no session of an earlier run is left.
        store: the UUID, in hex, of the store that this process has locked.
        purpose: what this process does, for people.
        role: what it is to other sessions.

    Attributes:
        locks: the locks of this process, for any thread.
        master: the master; to be used with `desk` held.
        addresses: where it listens.
        refused: how many were refused, by reason.
        messages: how many came, by kind.

    Raises:
        BadRequest, InUse, NotFound, ReadOnly: it cannot listen there.
        IoFailed: the epoch cannot be made durable.
    """

    def __init__(
        self,
        unix: str = "",
        listen: tuple[str, int] | None = None,
        *,
        epochs: Epochs,
        timing: Timing | None = None,
        key: bytes | None = None,
        tls: str = "",
        alone: bool = False,
        store: str = "",
        purpose: str = "the lock master's own process",
        role: str = TOOL,
    ) -> None:
        """Listen, but answer nobody before `start`."""
        self._key = key
        self._tls = server_tls(tls) if tls else None
        self._unix = unix
        self._listeners: list[socket.socket] = []
        if not unix and listen is None:
            raise BadRequest("the lock master has nowhere to listen", "use --listen or --unix")
        if listen is not None:
            if key is None and self._tls is None:
                raise BadRequest("a lock master on TCP wants a key or certificates", "give it one")
            self._listeners += listen_tcp(*listen, public=True)
        try:
            if unix:
                self._listeners.append(listen_unix(unix))
            host = printable(socket.gethostname())
            here = Who(HERE, host, os.getpid(), printable(purpose), role)
            self.master = LockMaster(timing, epochs, now(), alone=alone, store=store, here=here)
        except BaseException:
            self._close_doors()
            raise
        self.addresses = [
            unix if sock.family == socket.AF_UNIX else sock.getsockname()
            for sock in self._listeners
        ]
        self.desk = threading.Condition()
        self.locks = LocksHere(self.master, self.desk, self._post)
        self.refused: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.connections = 0
        self._lines: dict[int, _Line] = {}
        self._dead: set[_Line] = set()
        self._strangers: dict[asyncio.Task[None], None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lock master", daemon=True)

    def start(self) -> None:
        """Answer clients, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end soon; may be called from any thread or signal handler."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        """Wait for the end of the thread."""
        if self._thread.ident is not None:
            self._thread.join()

    def close(self) -> None:
        """Hang up on everybody and stop; a second call does nothing.

        What this process holds is not given back: it may still be writing.
        """
        if self._thread.ident is not None:
            self._started.wait()
            self.stop()
            self.join()
        self._close_doors()

    # -- the thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException:
            logger.critical("the lock master stopped", exc_info=True, extra={"event": "failed"})
            raise

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started.set()
        with self.desk:
            self._post(self.master.receive(now(), Watch(HERE, 0)))
        doors = [asyncio.create_task(self._accept(sock)) for sock in self._listeners]
        await self._stop.wait()
        for task in [*doors, *self._tasks]:
            task.cancel()
        await asyncio.gather(*doors, *self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        for line in {*self._lines.values(), *self._dead}:
            self._unwatch(line)

    def _close_doors(self) -> None:
        for sock in self._listeners:
            if sock.family == socket.AF_UNIX:
                with suppress(OSError):
                    os.unlink(self._unix)
            sock.close()
        self._listeners.clear()

    # -- connections -------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors: ask again a little later
                logger.error("cannot accept: %s", error, extra={"event": "accept_failed"})
                await asyncio.sleep(1.0)
                continue
            self.connections += 1
            if len(self._tasks) >= MOST_LINES:
                self._refuse(peer_name(sock), "too_many", "too many connections")
                sock.close()
                continue
            while len(self._strangers) >= MOST_STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.cancel("too_many")
            task = asyncio.create_task(self._talk(sock))
            self._strangers[task] = None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)  # a crowd at the door is no reason to stop serving

    async def _talk(self, sock: socket.socket) -> None:
        """Serve one connection to its end; nothing that happens on it goes further."""
        peer = peer_name(sock)
        local = sock.family == socket.AF_UNIX
        channel: Channel | None = None
        line: _Line | None = None
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(HANDSHAKE):
                tls = None if local else self._tls
                limit = {"ssl_handshake_timeout": HANDSHAKE} if tls else {}
                channel = server_channel(*await streams(sock, ssl=tls, **limit))
                await channel.accept()
                seal = await self._prove(channel, None if local else self._key)
            self._strangers.pop(task, None)
            line = self._new_line(channel, peer, seal, sock if local else None)
            patience = self.master.timing.give_away_after
            while True:
                async with asyncio.timeout(patience):
                    data = await channel.receive()
                self._take(line, data)
                await asyncio.sleep(0)  # however much it has to say, others are heard between
        except asyncio.CancelledError:
            if not self._stop.is_set():
                self._refuse(peer, "too_many", "others came, and it had not said who it is")
        except Refusal as refusal:
            self._refuse(peer, refusal.reason, str(refusal), channel)
        except BadRequest as error:
            self._refuse(peer, "malformed", error.message, channel)
        except TimeoutError:
            reason, why = ("silent", "it says nothing") if line else ("handshake", "it is too slow")
            self._refuse(peer, reason, why, channel)
        except ssl.SSLError as error:
            self._refuse(peer, "tls", f"TLS failed: {error.reason or error}")
        except (Gone, OSError) as error:
            if line is None:
                self._refuse(peer, "handshake", str(error) or "it went away")
        except Exception:
            logger.exception("%s: a connection failed", peer, extra={"event": "failed"})
        finally:
            self._strangers.pop(task, None)
            if line is not None:
                self._end(line)
            if channel is not None:
                await channel.close(_LAST_WORDS)
            else:
                sock.close()

    async def _prove(self, channel: Channel, key: bytes | None) -> Seal | None:
        """Have the client show that it has the key, and show it that this master has it."""
        challenge = new_nonce() if key is not None else ""
        channel.send(pack(challenge=challenge))
        if key is None:
            return None
        try:
            data = await channel.receive()
        except (Gone, OSError):
            raise Refusal("key", "it went away without showing a key") from None
        nonce, said = unpack(data, "nonce", "proof")
        if not is_proof(said, proof(key, "client", challenge, nonce)):
            raise Refusal("key", "it does not have the key of this lock master")
        channel.send(pack(proof=proof(key, "master", challenge, nonce)))
        return Seal(key, "master", challenge, nonce)

    def _new_line(
        self, channel: Channel, peer: str, seal: Seal | None, local: socket.socket | None
    ) -> _Line:
        pidfd = peer_pidfd(local) if local is not None else -1
        line = _Line(channel, peer, seal, pidfd)
        if pidfd >= 0:
            asyncio.get_running_loop().add_reader(pidfd, self._died, line)
        return line

    def _end(self, line: _Line) -> None:
        """Go on without a connection; its sessions live until they end, or move to another."""
        line.open = False
        if line.sessions and line.pidfd >= 0:
            self._dead.add(line)
        else:
            self._unwatch(line)

    def _unwatch(self, line: _Line) -> None:
        self._dead.discard(line)
        if line.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(line.pidfd)
            os.close(line.pidfd)
            line.pidfd = -1

    def _died(self, line: _Line) -> None:
        """End the sessions of a process that has ended."""
        self._unwatch(line)
        for session in sorted(line.sessions):
            with self.desk:
                self._post(self.master.session_died(now(), session))
        self._forget_ended()

    def _refuse(self, peer: str, reason: str, why: str, channel: Channel | None = None) -> None:
        self.refused[reason] += 1
        why = printable(why)  # some of it may be in the other side's words
        logger.warning(
            "%s was refused: %s",
            peer,
            why,
            extra={"event": "refused", "client": peer, "reason": reason},
        )
        if channel is not None:
            with suppress(OSError):
                channel.refuse(why)

    # -- messages ----------------------------------------------------------------------

    def _take(self, line: _Line, data: bytes) -> None:
        """Follow a request that came on a connection."""
        request = decode_request(line.seal.open(data) if line.seal else data)
        self.messages[type(request).__name__] += 1
        with self.desk:
            self._may_say(line, request)
            replies = self._others(self.master.receive(now(), request))
        self._deliver(replies, line)

    def _may_say(self, line: _Line, request: Request) -> None:
        """Make sure that a request is its connection's to make."""
        if isinstance(request, Hello):
            if len(line.sessions) >= _MOST_SESSIONS:
                raise Refusal("too_many", "too many sessions on one connection")
            if not self.master.takes(request.nonce):
                raise Refusal("too_many", "too many sessions")
        elif request.session not in line.sessions and self.master.has(request.session):
            raise Refusal("foreign_session", f"it spoke for session {request.session} of another")

    def _post(self, replies: list[Reply]) -> None:
        """Bring replies to their sessions; called with the mutex, on any thread."""
        others = self._others(replies)
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._deliver, others, None)

    def _others(self, replies: list[Reply]) -> list[Reply]:
        """Take what is for this process; return the rest. Called with the mutex."""
        others: list[Reply] = []
        for reply in replies:
            if isinstance(reply, SessionDied) and reply.session == HERE:
                who = reply.who
                logger.warning("%s ended without a word", who, extra={"event": "session_died"})
            elif reply.session == HERE:
                self.locks.take(reply)
            else:
                others.append(reply)
        return others

    def _deliver(self, replies: list[Reply], line: _Line | None) -> None:
        """Send replies, on the service's own thread.

        Args:
            replies: what the master says.
            line: where the request came from, if it came from one.
        """
        for reply in replies:
            if isinstance(reply, Welcome) and line is not None:
                self._bind(reply.session, line)
            target = line if isinstance(reply, Unknown) else self._lines.get(reply.session)
            if target is None or not target.open:
                continue
            try:
                target.send(reply)
            except BadRequest as error:  # a list of very many locks: its session must not go
                logger.error("%s: %s", target.peer, error, extra={"event": "too_long"})
            except Refusal as error:
                target.open = False
                self._refuse(target.peer, error.reason, str(error))
                target.channel.abort()
        self._look_later()

    def _bind(self, session: int, line: _Line) -> None:
        """Let a session be spoken for on this connection, and on no other."""
        before = self._lines.get(session)
        if before is not None and before is not line:
            before.sessions.discard(session)
            if not before.open and not before.sessions:
                self._unwatch(before)
        self._lines[session] = line
        line.sessions.add(session)

    def _tick(self) -> None:
        self._timer = None
        with self.desk:
            self._post(self.master.tick(now()))
        self._forget_ended()

    def _forget_ended(self) -> None:
        for session, line in list(self._lines.items()):
            if not self.master.has(session):
                del self._lines[session]
                line.sessions.discard(session)
                if not line.open and not line.sessions:
                    self._unwatch(line)

    def _look_later(self) -> None:
        """Have the master look at the time when it wants to."""
        loop = self._loop
        if loop is None or loop.is_closed() or self._stop.is_set():
            return
        with self.desk:
            due = self.master.next_due()
        at = loop.time() + max(due - now(), _TICK)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._tick)
