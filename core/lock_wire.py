"""Messages of the lock master as bytes: JSON, `["Acquire", {...}]`, read strictly.

What comes from a socket is not trusted before it is a message of the right kind, with
fields of the right types and sizes: all else is one `BadRequest`. Only who talks over a
socket imports this, and msgspec with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
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
    message: Request = _decode(data, _REQUESTS)
    for wrong in _wrong_texts(message):
        raise BadRequest(f"{type(message).__name__}: {wrong}")
    return message


def decode_reply(data: bytes | str) -> Reply:
    """Read what a master says.

    Raises:
        BadRequest: it is no reply.
    """
    message: Reply = _decode(data, _REPLIES)
    return message


def _decode(data: bytes | str, kinds: _Kinds) -> Any:
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
    for wrong in _wrong_numbers(message):
        raise BadRequest(f"{kind}: {wrong}")
    return message


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Go through all fields of a message, and of what is in it."""
    for field in fields(value):
        part = getattr(value, field.name)
        for item in part if isinstance(part, tuple) else (part,):
            if is_dataclass(item):
                yield from _parts(item)
            else:
                yield field.name, item


def _wrong_numbers(message: Any) -> Iterator[str]:
    for name, value in _parts(message):
        if isinstance(value, float) and not 0 <= value <= _MOST_SECONDS:
            yield f"{name} is no time"
        elif isinstance(value, int) and not 0 <= value <= _MOST_NUMBER:
            yield f"{name} is out of range"


def _wrong_texts(message: Any) -> Iterator[str]:
    for name, value in _parts(message):
        if isinstance(value, str) and name not in _LONG:
            if len(value.encode()) > MOST_NAME:
                yield f"{name} is longer than {MOST_NAME} bytes"
            elif not value.isprintable():
                yield f"{name} has characters that cannot be shown"
            elif name in ("name", "nonce") and not value:
                yield f"{name} is empty"


def _decoders(union: Any) -> _Kinds:
    return {kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(union)}


_REQUESTS: Final = _decoders(Request)
_REPLIES: Final = _decoders(Reply)
