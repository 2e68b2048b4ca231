"""What lock master and clients say to each other, as plain data.

A transport carries these and knows nothing about locks. It may lose them, repeat them and
change their order. What it must do: let a connection speak only for sessions that were
welcomed on it, and bring a reply to the session that it names (`Welcome` to the connection
that the `Hello` with its nonce came from, and `Unknown` to the one that asked).
A `Hello` with the nonce of a session that exists brings that session to another connection,
so nonces are secrets between a client and the master.

Every request has a sequence number of its session, and the reply repeats it. Of the
requests that take and give locks (`ORDERED`) the master drops those that are not newer than
the last one it followed; a client repeats itself with a new number.

Nobody changes a message. The classes are not frozen only because that doubles the time that
importing them takes, and every command does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.lock_timing import Timing

TAP: Final = "tap"
TOOL: Final = "tool"
UNKNOWN: Final = ""
"""What a session is to others, its *role*: one that serves VDIs and can be asked about clients,
one that does not, or one of an earlier version, which did not say."""


@dataclass(slots=True)
class Who:
    """A session as people know it; only `role` is for programs."""

    session: int
    host: str
    pid: int
    purpose: str
    role: str = UNKNOWN

    def __str__(self) -> str:
        """Return it for a message."""
        return f"{self.host}, process {self.pid} ({self.purpose})"


@dataclass(slots=True)
class Holding:
    """One grant, and who has it; `breaking` if an operator took it back."""

    name: str
    token: int
    shared: bool
    who: Who
    breaking: bool = False


@dataclass(slots=True)
class Claim:
    """A grant of the previous run of the master that its holder still has."""

    name: str
    token: int
    shared: bool


# -- from a client to the master -------------------------------------------------------


@dataclass(slots=True)
class Hello:
    """Begin a session; `nonce` is new for every attempt."""

    nonce: str
    host: str
    pid: int
    purpose: str
    role: str = UNKNOWN


@dataclass(slots=True)
class Renew:
    """Begin the lease of the session again."""

    session: int
    seq: int


@dataclass(slots=True)
class Reclaim:
    """Keep grants over a restart of the master; sent only while they are valid."""

    session: int
    seq: int
    claims: tuple[Claim, ...]


@dataclass(slots=True)
class Acquire:
    """Lock a name, waiting up to `wait` seconds; `floor` is the token on record."""

    session: int
    seq: int
    name: str
    shared: bool
    wait: float
    floor: int


@dataclass(slots=True)
class Release:
    """Give back what the session holds under a name, or stop waiting for it."""

    session: int
    seq: int
    name: str


@dataclass(slots=True)
class Acknowledge:
    """The session has stopped using a grant that was broken."""

    session: int
    seq: int
    token: int


@dataclass(slots=True)
class Bye:
    """End the session and give back all it holds."""

    session: int
    seq: int


@dataclass(slots=True)
class Call:
    """Ask the exclusive holder of a name to do something; repeats keep the number `call`."""

    session: int
    seq: int
    call: int
    name: str
    method: str
    argument: str
    wait: float


@dataclass(slots=True)
class Answer:
    """What a holder says to `Called`."""

    session: int
    seq: int
    number: int
    done: bool
    text: str


@dataclass(slots=True)
class Break:
    """Take a grant from its holder; the token says which, so a repeat harms no other."""

    session: int
    seq: int
    name: str
    token: int


@dataclass(slots=True)
class ListLocks:
    """Ask who holds what."""

    session: int
    seq: int


@dataclass(slots=True)
class Watch:
    """Ask to be told of events from now on."""

    session: int
    seq: int


# -- from the master to a client -------------------------------------------------------


@dataclass(slots=True)
class Welcome:
    """The session exists; `run` is the epoch in which the master started.

    `store` is the UUID, in hex, of the store that the master's own process has locked, if any;
    `master` that of the master itself, for one that stores are shared under.
    """

    session: int
    nonce: str
    run: int
    timing: Timing
    store: str = ""
    master: str = ""


@dataclass(slots=True)
class Unknown:
    """There is no such session (any more): it died, or the master was restarted."""

    session: int
    seq: int
    run: int


@dataclass(slots=True)
class Renewed:
    """The lease was begun again; `lost` are tokens of broken grants."""

    session: int
    seq: int
    lost: tuple[int, ...] = ()


@dataclass(slots=True)
class Reclaimed:
    """All claims were kept but those of these names."""

    session: int
    seq: int
    refused: tuple[str, ...]


@dataclass(slots=True)
class Granted:
    """The lock is the session's, under this token."""

    session: int
    seq: int
    name: str
    token: int


@dataclass(slots=True)
class Waiting:
    """The session waits its turn, behind these holders."""

    session: int
    seq: int
    name: str
    holders: tuple[Holding, ...]


@dataclass(slots=True)
class Refused:
    """The lock is not to be had, or not in time; `early` if nothing is granted yet at all."""

    session: int
    seq: int
    name: str
    reason: str
    early: bool = False


@dataclass(slots=True)
class Released:
    """The session neither holds nor awaits the name."""

    session: int
    seq: int
    name: str


@dataclass(slots=True)
class Called:
    """Someone asks the holder of `name` to do something; once per `number`."""

    session: int
    number: int
    name: str
    method: str
    argument: str
    wait: float


@dataclass(slots=True)
class Answered:
    """What came of a call."""

    session: int
    call: int
    done: bool
    text: str


@dataclass(slots=True)
class Broken:
    """The grant is being taken back; `seconds` until others can have the name at the latest."""

    session: int
    seq: int
    seconds: float


@dataclass(slots=True)
class Listing:
    """Who holds what, and who is there."""

    session: int
    seq: int
    holdings: tuple[Holding, ...]
    sessions: tuple[Who, ...]


@dataclass(slots=True)
class Watching:
    """Events will be told."""

    session: int
    seq: int


@dataclass(slots=True)
class SessionDied:
    """A session did not renew in time; told to those who watch."""

    session: int
    who: Who


@dataclass(slots=True)
class LockReleased:
    """Nobody holds the grant of this token any more; told to those who watch."""

    session: int
    name: str
    token: int


Ordered = Reclaim | Acquire | Release
ORDERED = (Reclaim, Acquire, Release)
Asking = Break | ListLocks | Watch
Request = Hello | Renew | Reclaim | Acquire | Release | Acknowledge | Bye | Call | Answer | Asking
Told = Broken | Listing | Watching
Event = SessionDied | LockReleased
Reply = (
    Welcome
    | Unknown
    | Renewed
    | Reclaimed
    | Granted
    | Waiting
    | Refused
    | Released
    | Called
    | Answered
    | Told
    | Event
)
