"""Who is on the other side of a connection to the lock master: a shared key, or TLS.

With a key both sides prove that they have it, over a nonce of each, and derive a key for
this connection alone. Every message carries a MAC over its direction, its number and its
text, so one that was changed, repeated, left out, reordered, sent back or recorded on
another connection is refused. The key hides nothing: who wants that, uses TLS.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import ssl
from typing import Final

from core.errors import BadRequest, IoFailed, NotFound

_MOST_OPENING: Final = 1000
_NONCE: Final = 32
_MAC: Final = 32
_LABEL: Final = b"parallax lock 1: "


def new_nonce() -> str:
    """Return a text that never repeats, anywhere."""
    return secrets.token_hex(_NONCE)


def proof(key: bytes, side: str, challenge: str, nonce: str) -> str:
    """Return what shows that a side ("client" or "master") has the key.

    Args:
        key: the shared key.
        side: who shows it; the proof of one is none of the other.
        challenge: the nonce of the master.
        nonce: the nonce of the client.
    """
    return _derive(key, f"proof of the {side}", challenge, nonce).hex()


def is_proof(said: str, expected: str) -> bool:
    """Compare two proofs in a time that tells nothing about them."""
    return hmac.compare_digest(said.encode(), expected.encode())


def pack(**texts: str) -> bytes:
    """Return a message of the opening, before there is a seal."""
    return json.dumps(texts).encode()


def unpack(data: bytes, *names: str) -> tuple[str, ...]:
    """Return the texts of these names in a message of the opening.

    Raises:
        BadRequest: they are not there.
    """
    try:
        said = json.loads(data) if len(data) <= _MOST_OPENING else None
    except (ValueError, RecursionError) as error:
        raise BadRequest("not a message of the opening") from error
    texts = [said.get(name) for name in names] if isinstance(said, dict) else []
    found = tuple(text for text in texts if isinstance(text, str) and text.isascii())
    if len(found) != len(names):
        raise BadRequest("not a message of the opening")
    return found


class Seal:
    """Puts a MAC on each message of one side of a connection, and checks the other side's.

    Args:
        key: the shared key.
        side: "client" or "master": which side this is.
        challenge, nonce: those of this connection.
    """

    def __init__(self, key: bytes, side: str, challenge: str, nonce: str) -> None:
        """Begin counting."""
        other = "client" if side == "master" else "master"
        self._out_key = _derive(key, f"messages of the {side}", challenge, nonce)
        self._in_key = _derive(key, f"messages of the {other}", challenge, nonce)
        self._sent = 0
        self._received = 0

    def close(self, data: bytes) -> bytes:
        """Return the next message to send with its MAC before it."""
        self._sent += 1
        return _mac(self._out_key, self._sent, data) + data

    def open(self, sealed: bytes) -> bytes:
        """Return the next message that was received.

        Raises:
            BadRequest: it is not the next message of the other side.
        """
        self._received += 1
        mac, data = sealed[:_MAC], sealed[_MAC:]
        if not hmac.compare_digest(mac, _mac(self._in_key, self._received, data)):
            raise BadRequest("a message was changed, repeated or left out on its way")
        return data


def _derive(key: bytes, purpose: str, challenge: str, nonce: str) -> bytes:
    text = f"{purpose}|{challenge}|{nonce}".encode()
    return hmac.digest(key, _LABEL + text, "sha256")


def _mac(key: bytes, number: int, data: bytes) -> bytes:
    return hmac.digest(key, number.to_bytes(8, "big") + data, "sha256")


# -- TLS ---------------------------------------------------------------------------------


def server_tls(folder: str) -> ssl.SSLContext:
    """Return what a lock master uses: each client has to show a certificate of the CA.

    Args:
        folder: has `server-cert.pem`, `server-key.pem` and `ca-cert.pem`.

    Raises:
        NotFound: a file is missing.
        BadRequest: a file is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, folder, "server")


def client_tls(folder: str) -> ssl.SSLContext:
    """Return what a client uses: the master has to show a certificate of the CA for its name.

    The name is checked because the clients have certificates of the same CA: without it any
    of them could pass for the master.

    Args:
        folder: has `client-cert.pem`, `client-key.pem` and `ca-cert.pem`.

    Raises:
        NotFound: a file is missing.
        BadRequest: a file is not what it should be.
    """
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), folder, "client")


def _loaded(context: ssl.SSLContext, folder: str, side: str) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    names = (f"{side}-cert.pem", f"{side}-key.pem", "ca-cert.pem")
    cert, key, ca = (os.path.join(folder, name) for name in names)
    for path in (cert, key, ca):
        if not os.path.exists(path):
            raise NotFound(f"there is no {path}", f"put {', '.join(names)} into the folder")
    try:
        context.load_cert_chain(cert, key)
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise BadRequest(
            f"the certificates in {folder} cannot be used: {error.reason or error}",
            "they have to be PEM files that belong together",
        ) from error
    except OSError as error:
        raise IoFailed(f"{folder}: {error.strerror}") from error
    return context
