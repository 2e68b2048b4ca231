"""Messages of the lock master as bytes: JSON, `["Acquire", {...}]`, read strictly.

What comes from a socket is not trusted before it is a message of the right kind, with
fields of the right types and sizes: all else is one `BadRequest`. Only who talks over a
socket imports this, and msgspec with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any, Final, get_args

import msgspec

from core.errors import BadRequest
from core.lock_messages import Reply, Request

MOST_BYTES: Final = 1 << 20
"""Of one message to the master."""
MOST_BYTES_BACK: Final = 16 << 20
"""Of one message to a client, who trusts the master: a list of all locks may be long."""
MOST_NAME: Final = 200
"""Bytes of a name, a method, a host or a purpose."""
_MOST_NUMBER: Final = (1 << 63) - 1
_MOST_SECONDS: Final = 1e9
_LONG: Final = {"argument", "text"}
"""Fields that sessions fill for each other, as long as a message may be."""
_NEVER_EMPTY: Final = {"name", "nonce"}
_PLAIN: Final = (str, int, float)

_Kinds = dict[str, msgspec.json.Decoder[Any]]
_encode: Final = msgspec.json.Encoder().encode
_envelope: Final = msgspec.json.Decoder(tuple[str, msgspec.Raw])


def encode(message: Request | Reply, most: int = MOST_BYTES) -> bytes:
    """Return a message as bytes.

    Raises:
        BadRequest: it is too long for whoever is to read it.
    """
    data = _encode((type(message).__name__, message))
    if len(data) > most:
        raise BadRequest(f"a message of {len(data)} bytes is too long for the lock master")
    return data


def decode_request(data: bytes | str) -> Request:
    """Read what a client says.

    Raises:
        BadRequest: it is no request.
    """
    message: Request = _decode(data, _REQUESTS, MOST_NAME)
    return message


def decode_reply(data: bytes | str) -> Reply:
    """Read what a master says.

    Raises:
        BadRequest: it is no reply.
    """
    message: Reply = _decode(data, _REPLIES, MOST_BYTES_BACK)
    return message


def _decode(data: bytes | str, kinds: _Kinds, most_text: int) -> Any:
    try:
        kind, body = _envelope.decode(data)
        decoder = kinds.get(kind)
        if decoder is None:
            raise BadRequest(f"there is no message {kind[:40]!r}")
        message = decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BadRequest(f"not a message: {error}") from error
    except RecursionError as error:
        raise BadRequest("not a message: it is nested too deeply") from error
    for name, value in _parts(message):
        if wrong := _wrong(name, value, most_text):
            raise BadRequest(f"{kind}: {name} {wrong}")
    return message


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Go through all fields of a message, and of what is in it."""
    kind: Any = type(value)
    for name in _names(kind):
        part = getattr(value, name)
        for item in part if isinstance(part, tuple) else (part,):
            if isinstance(item, _PLAIN):
                yield name, item
            else:
                yield from _parts(item)


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _wrong(name: str, value: float | str, most_text: int) -> str:
    """Return what is wrong with a field; what is told to people must not move their cursor."""
    if not isinstance(value, str):
        if isinstance(value, int):
            return "" if 0 <= value <= _MOST_NUMBER else "is out of range"
        return "" if 0 <= value <= _MOST_SECONDS else "is no time"
    if name in _LONG:
        return ""
    if not value:
        return "is empty" if name in _NEVER_EMPTY else ""
    if len(value) > most_text or len(value.encode()) > most_text:
        return f"is longer than {most_text} bytes"
    return "" if value.isprintable() else "has characters that cannot be shown"


def _decoders(union: Any) -> _Kinds:
    return {kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(union)}


_REQUESTS: Final = _decoders(Request)
_REPLIES: Final = _decoders(Reply)
