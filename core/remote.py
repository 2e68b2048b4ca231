"""How sessions ask each other: JSON objects as text, and errors that stay what they are.

The lock master carries a method's name and two texts and knows neither. What can be asked
is in `core.answering`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from core import errors
from core.errors import Corrupt, IoFailed, ParallaxError

if TYPE_CHECKING:
    from core.locks import Locks

Argument = dict[str, Any]
"""A JSON object."""


def ask(locks: Locks, name: str, method: str, argument: Argument, wait: float = 10.0) -> Argument:
    """Have the holder of a name do something; return its answer.

    Raises:
        NotFound: nobody holds the name: it was not done.
        IoFailed: no answer came; nobody knows whether it was done.
        Others: what the holder raised; it was not done.
    """
    return parse(locks.call(name, method, json.dumps(argument), wait))


def parse(text: str) -> Argument:
    """Return the object in an argument or an answer.

    Raises:
        IoFailed: it holds none; the other side is no session of this version.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise IoFailed("another session sent what is no message", "use the same version everywhere")
    return found


def pack_error(error: ParallaxError) -> str:
    """Return an error as the answer to a call."""
    return json.dumps({"error": error.code, "message": error.message, "hint": error.hint})


def raise_error(text: str) -> NoReturn:
    """Raise why a call was not done: the error of the holder or the lock master, of its class.

    Raises:
        IoFailed: it is no such text; nobody knows whether it was done.
    """
    try:
        packed = json.loads(text)
    except ValueError:
        packed = None
    if isinstance(packed, dict) and "error" in packed:
        raise _unpack(packed)
    raise IoFailed(text or "no answer came", "look whether it was done before you try again")


def _unpack(packed: Argument) -> ParallaxError:
    """Return the error that `pack_error` made a text of."""
    kind = _kinds().get(str(packed["error"]), ParallaxError)
    error = kind.__new__(kind)  # some are made from other arguments than these two
    ParallaxError.__init__(error, str(packed.get("message", "")), str(packed.get("hint", "")))
    if isinstance(error, Corrupt):
        error.block = 0
    return error


def _kinds() -> dict[str, type[ParallaxError]]:
    """Return the classes of errors by their code; one without a code of its own is its base."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    own = [kind for kind in found if issubclass(kind, ParallaxError) and "code" in vars(kind)]
    return {kind.code: kind for kind in own}
