"""Listening sockets: where the tap and the lock master can be reached, and by whom."""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from core.device import io_error
from core.errors import BadRequest, InUse, NotFound

MOST_SOCKET_PATH: Final = 107
"""Bytes of a Unix socket's path that the kernel takes, and with it every program."""

_BACKLOG: Final = 128
_UNIX_BUFFER: Final = 4 << 20
_WITH_TLS: Final = "name a folder of certificates with --tls, or listen on 127.0.0.1"
_CA, _CERT, _KEY = "ca-cert.pem", "server-cert.pem", "server-key.pem"


def listen_unix(path: str) -> socket.socket:
    """Listen on a Unix socket that only this user may connect to.

    A socket file that nobody listens on any more is replaced. The path may be longer than
    other programs can connect to: see `short_path`.

    Raises:
        InUse: somebody listens there.
        BadRequest: something else has that path, or it is too long.
        NotFound, ReadOnly: the folder is missing or cannot be written to.
    """
    try:
        with short_path(path) as short:
            _remove_stale(short, path)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            mask = os.umask(0o177)
            try:
                sock.bind(short)
                sock.listen(_BACKLOG)
            except BaseException:
                sock.close()
                raise
            finally:
                os.umask(mask)
    except OSError as error:
        raise io_error(error, f"cannot listen on {path}") from error
    return sock


def check_socket_path(path: str, most: int = MOST_SOCKET_PATH) -> None:
    """Raise BadRequest if the path of a Unix socket has more than `most` bytes."""
    size = len(os.fsencode(path))
    if size > most:
        raise BadRequest(
            f"a socket path has at most {most} bytes, {path} has {size}",
            "use a shorter one; PARALLAX_RUN_DIR names the folder of the usual one",
        )


@contextmanager
def short_path(path: str) -> Iterator[str]:
    """Yield a path of a Unix socket that the kernel takes, however long the real one is.

    Raises:
        BadRequest: even the name in its folder is too long.
        OSError: there is no such folder.
    """
    if len(os.fsencode(path)) <= MOST_SOCKET_PATH:
        yield path
        return
    folder, name = os.path.split(path)
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{fd}/{name}"
        if len(os.fsencode(short)) > MOST_SOCKET_PATH:
            check_socket_path(path)
        yield short
    finally:
        os.close(fd)


def _remove_stale(path: str, name: str) -> None:
    """Remove a socket file that a server left behind; `name` is what the user called it."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise BadRequest(f"{name} exists and is no socket", "choose another path")
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as error:
            raise io_error(error, f"cannot look at {name}") from error
        else:
            raise InUse(f"a server listens on {name} already", "stop it, or choose another path")


def listen_tcp(host: str, port: int, public: bool) -> list[socket.socket]:
    """Listen on a TCP port.

    Args:
        host: address or name to listen on.
        port: its number, 0 for any that is free.
        public: whether other hosts may reach it; whoever connects then has to show who it is,
            or there is nothing to hide.

    Raises:
        BadRequest: the address can be reached from other hosts and that is not allowed, or
            it is no address of this host.
        InUse: the port is taken.
    """
    found = _resolved(host, port)
    if not public:
        _refuse_public([str(address[0]) for *_, address in found], _WITH_TLS)
    sockets: list[socket.socket] = []
    try:
        for family, kind, number, _, address in found:
            sock = socket.socket(family, kind, number)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        if error.errno == errno.EADDRINUSE:
            raise InUse(f"port {port} of {host} is taken", "choose another port") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise BadRequest(f"{host} is no address of this host", "use one of its own") from error
        raise io_error(error, f"cannot listen on {host} port {port}") from error
    return sockets


def _resolved(host: str, port: int) -> list[Any]:
    """Return what `getaddrinfo` says of an address to listen on."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BadRequest(f"{host!r} is no address: {error.strerror}", "use ADDR:PORT") from error


def refuse_public(host: str, instead: str) -> None:
    """Refuse an address that other hosts can reach.

    Args:
        host: address or name to listen on.
        instead: what to do about it.

    Raises:
        BadRequest: it is one, or no address.
    """
    _refuse_public([str(address[0]) for *_, address in _resolved(host, 0)], instead)


def refuse_public_sockets(sockets: list[socket.socket]) -> None:
    """Refuse TCP sockets that other hosts can reach; for use without TLS.

    Raises:
        BadRequest: there is one.
    """
    public = [s.getsockname()[0] for s in sockets if s.family != socket.AF_UNIX]
    _refuse_public(public, _WITH_TLS)


def _refuse_public(addresses: list[str], instead: str) -> None:
    for address in addresses:
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            raise BadRequest(
                f"{address} can be reached from other hosts and there is no TLS",
                instead,
            )


def tls_context(folder: str) -> ssl.SSLContext:
    """Return what makes connections private, from a folder of PEM files.

    `server-cert.pem` and `server-key.pem` must be there. With `ca-cert.pem`, clients have
    to show a certificate that it has signed.

    Raises:
        NotFound: a file is missing.
        BadRequest: a file is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    cert, key, ca = (os.path.join(folder, name) for name in (_CERT, _KEY, _CA))
    for path in (cert, key):
        if not os.path.exists(path):
            raise NotFound(f"there is no {path}", f"put {_CERT} and {_KEY} into the folder")
    try:
        context.load_cert_chain(cert, key)
        if os.path.exists(ca):
            context.load_verify_locations(ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise BadRequest(
            f"the certificates in {folder} cannot be used: {error.reason or error}",
            "they have to be PEM files that belong together",
        ) from error
    except OSError as error:
        raise io_error(error, f"cannot read the certificates in {folder}") from error
    return context


def raise_descriptor_limit() -> None:
    """Allow as many connections as the system does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def tune(sock: socket.socket) -> None:
    """Make a connection fast: long buffers on Unix sockets, no delay on TCP."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNIX_BUFFER)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
