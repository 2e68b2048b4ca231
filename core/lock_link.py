"""What carries the messages of a `LockClient`: a thread, a connection, and the next one.

The thread waits for the master and for the client's next due time. When the connection
breaks, or nothing comes though a renewal must have been answered, it connects again, sooner
than the lease ends, after a while that is longer each time and never the same for two.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from core.errors import BadRequest, IoFailed, ParallaxError
from core.listen import short_path
from core.lock_auth import Seal, is_proof, new_nonce, pack, proof, unpack
from core.lock_channel import Channel, Gone, Refusal, client_channel, streams
from core.lock_client import LockClient
from core.lock_messages import Request
from core.lock_timing import now
from core.lock_wire import decode_reply, encode
from core.text import printable

logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.05
_LAST_WORDS: Final = 2.0
"""Seconds for a goodbye to be sent."""
_NEVER: Final = 3600.0
_HINT: Final = "look whether the lock master runs there: 'plxsh lock master'"
_KEY: Final = "name its key with PARALLAX_LOCK_KEY or [lock_master] key"
_NO_KEY: Final = "start it anew: this version has a key of its own where it is given none"
_TLS: Final = "look at the certificates in PARALLAX_LOCK_TLS or [lock_master] tls, and its log"
_PERHAPS_TLS: Final = "if it wants certificates: PARALLAX_LOCK_TLS or [lock_master] tls"


class Link:
    """The connection of a client, whatever becomes of it.

    Args:
        client: says what to send; used with `desk` held.
        desk: the mutex, and where others wait for news.
        after: called with the mutex after the client was told something.
        address: "HOST:PORT", "[V6]:PORT" or "unix:PATH".
        key, tls: how to be known to the master over TCP.
        on_state: called with `state` when it changes.

    Attributes:
        address: where the master is.
        state: "up", or since when it is down.

    Raises:
        BadRequest: the address is none.
    """

    def __init__(
        self,
        client: LockClient,
        desk: threading.Condition,
        after: Callable[[], None],
        address: str,
        key: Callable[[], bytes] | None,
        tls: ssl.SSLContext | None,
        on_state: Callable[[str], None] | None,
    ) -> None:
        """Connect to nothing yet."""
        self.address = address
        self.state = "not connected yet"
        self._path, self._host, self._port = parse_address(address)
        self._client = client
        self._desk = desk
        self._after = after
        self._key = None if self._path else key
        self._tls = None if self._path else tls
        self._on_state = on_state
        self._trouble = ""
        self._hint = _HINT
        self._leaving = threading.Event()
        self._is_hopeless = False
        self._channel: Channel | None = None
        self._seal: Seal | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kick: asyncio.Event | None = None
        self._connecting: asyncio.Task[Channel] | None = None
        self._thread = threading.Thread(target=self._run, name="lock session", daemon=True)

    def start(self, seconds: float) -> None:
        """Join the master.

        Raises:
            IoFailed: that did not succeed in so many seconds, or it never will.
        """
        self._thread.start()
        try:
            with self._desk:
                joined = self._desk.wait_for(
                    lambda: self._client.phase == "joined" or self._is_hopeless, seconds
                )
                joined = joined and not self._is_hopeless
                why, hint = self._trouble, self._hint
            if not joined:
                what = f"the lock master at {self.address} cannot be used"
                raise IoFailed(f"{what}: {why or 'it does not answer'}", hint)
        except BaseException:  # a Ctrl-C too: nobody else could end the thread
            self.close()
            raise

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the mutex while something is asked of the client, then have it sent."""
        with self._desk:
            yield
            self._after()
        self._nudge()

    def close(self) -> None:
        """Send what is left, if that is quick, and end the thread.

        While there is no connection there is nobody to tell: what is held is free when the
        lease is over.
        """
        self._leaving.set()
        self._nudge()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _nudge(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """Wake the thread, on that thread itself."""
        assert self._kick is not None
        self._kick.set()
        if self._connecting is not None and self._leaving.is_set():
            self._connecting.cancel()

    # -- the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._kick = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while not self._leaving.is_set():
            began = now()
            try:
                self._connecting = asyncio.create_task(self._connect())
                channel = await self._connecting
                self._connecting = None
                try:
                    await self._talk(channel)
                finally:
                    self._channel = None
                    await channel.close(_LAST_WORDS)
            except asyncio.CancelledError:
                break  # by `close`, while it was connecting
            except TimeoutError as error:
                self._down(error)
            except (Gone, Refusal, ParallaxError, OSError) as error:
                self._is_hopeless = not isinstance(error, Gone)
                self._down(error)
            except Exception as error:
                logger.exception("a connection to the lock master failed")
                self._down(error)
            with self._desk:
                self._after()
            if self._leaving.is_set():
                break
            longest = self._client.timing.retry_every
            pause = _FIRST_PAUSE if now() - began > 2 * longest else min(2 * pause, longest)
            await self._sleep(pause * random.uniform(0.5, 1.0))

    async def _sleep(self, seconds: float) -> None:
        """Wait; the client's own deadlines go on without a master."""
        end = now() + seconds
        while not self._leaving.is_set() and (left := end - now()) > 0:
            with self._desk:
                self._client.tick(now())
                self._client.outgoing.clear()
                self._after()
                left = min(left, max(self._client.next_due() - now(), 0.01))
            await self._wait_for_kick(left)

    async def _wait_for_kick(self, seconds: float) -> None:
        assert self._kick is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, _NEVER)):
                await self._kick.wait()
        self._kick.clear()

    async def _connect(self) -> Channel:
        """Connect, and agree on who is who."""
        patience = min(5.0, self._client.timing.renew_every)
        async with asyncio.timeout(patience):
            if self._path:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.setblocking(False)
                try:
                    with short_path(self._path) as path:
                        await asyncio.get_running_loop().sock_connect(sock, path)
                except BaseException:
                    sock.close()
                    raise
                channel = client_channel(*await streams(sock), "localhost")
            else:
                name = self._host if self._tls else None
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=self._tls, server_hostname=name
                )
                host = f"[{self._host}]" if ":" in self._host else self._host
                channel = client_channel(reader, writer, f"{host}:{self._port}")
            try:
                await channel.connect()
                self._seal = await self._prove(channel)
            except BaseException:
                await channel.close(0.0)
                raise
        return channel

    async def _prove(self, channel: Channel) -> Seal | None:
        """Show the master that this client has the key, and have it show the same."""
        (challenge,) = unpack(await channel.receive(), "challenge")
        if self._key is None:
            if challenge:
                raise BadRequest("it wants a shared key", _KEY)
            if self._tls is None and not self._path:
                raise BadRequest("it shows no key, so it may be anybody's", _NO_KEY)
            return None
        if not challenge:
            raise BadRequest("it shows no key, so it may be anybody's", _NO_KEY)
        key = self._key()
        nonce = new_nonce()
        channel.send(pack(nonce=nonce, proof=proof(key, "client", challenge, nonce)))
        (said,) = unpack(await channel.receive(), "proof")
        if not is_proof(said, proof(key, "master", challenge, nonce)):
            raise BadRequest("it does not have the shared key", _KEY)
        return Seal(key, "client", challenge, nonce)

    async def _talk(self, channel: Channel) -> None:
        """Carry messages until the connection ends; say what is due meanwhile."""
        self._channel = channel
        with self._desk:
            if self._client.phase == "left":
                return
            self._client.reconnected(now())
        reading = asyncio.create_task(self._read(channel))
        try:
            while not reading.done():
                with self._desk:
                    # Looked at before the messages are taken: the last one is put there first.
                    leaving = self._leaving.is_set()
                    self._client.tick(now())
                    self._after()
                    due = _NEVER if leaving else self._client.next_due() - now()
                    outgoing = [*self._client.outgoing]
                    self._client.outgoing.clear()
                self._send(channel, outgoing)
                if leaving:
                    reading.cancel()
                    await asyncio.wait((reading,))
                    await channel.part(_LAST_WORDS)
                    return
                assert self._kick is not None
                kick = asyncio.create_task(self._kick.wait())
                await asyncio.wait(
                    (kick, reading),
                    timeout=max(due, 0.0),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                kick.cancel()
                self._kick.clear()
            await reading
        finally:
            reading.cancel()

    def _send(self, channel: Channel, requests: list[Request]) -> None:
        for request in requests:
            try:
                data = encode(request)
            except BadRequest as error:  # it would be the same on the next connection
                logger.error("a message was not sent: %s", error, extra={"event": "too_long"})
                continue
            channel.send(self._seal.close(data) if self._seal else data)

    async def _read(self, channel: Channel) -> None:
        """Take what the master says; a renewal is answered, or the connection is dead."""
        assert self._kick is not None
        while True:
            async with asyncio.timeout(1.5 * self._client.timing.renew_every):
                data = await channel.receive()
            reply = decode_reply(self._seal.open(data) if self._seal else data)
            with self._desk:
                self._client.receive(now(), reply)
                self._after()
                joined = self._client.phase == "joined"
            if joined and self.state != "up":
                self._up()
            self._kick.set()

    # -- telling -------------------------------------------------------------------------

    def _up(self) -> None:
        again = self.state.startswith("down")
        self._trouble = ""
        self._say("up")
        word = "answers again" if again else "answers"
        logger.info("the lock master at %s %s", self.address, word, extra={"event": "lock_up"})

    def _down(self, error: Exception) -> None:
        why = printable(_explained(error))
        self._trouble, self._hint = why, self._what_to_do(error)
        if self._leaving.is_set() or self.state.startswith("down"):
            return
        was_up = self.state == "up"
        self._say(f"down since {time.strftime('%H:%M:%S')}")
        if was_up:
            logger.warning(
                "the lock master at %s is gone: %s",
                self.address,
                why,
                extra={"event": "lock_down", "reason": why},
            )

    def _what_to_do(self, error: Exception) -> str:
        """Return the hint for one who could not connect."""
        if isinstance(error, ParallaxError):
            return error.hint or _HINT
        ended = isinstance(error, (ssl.SSLError, Gone, Refusal, ConnectionResetError))
        if ended and self._tls is not None:
            return _TLS
        if isinstance(error, Refusal):
            return _KEY if error.reason == "refused" and self._key else _PERHAPS_TLS
        return _PERHAPS_TLS if isinstance(error, Gone) else _HINT

    def _say(self, state: str) -> None:
        self.state = state
        if self._on_state is not None:
            self._on_state(state)


def parse_address(address: str) -> tuple[str, str, int]:
    """Return (path, "", 0) of "unix:PATH", or ("", host, port) of "HOST:PORT".

    Raises:
        BadRequest: it is neither.
    """
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address.removeprefix("unix:"), "", 0
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise BadRequest(f"{address!r} is no address", "use HOST:PORT, [V6]:PORT or unix:PATH")
    return "", host, int(port)


def _explained(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or "the connection was closed"
