"""Types of command-line arguments: VDI, SNAPSHOT, SIZE.

They check the form of a word, not whether the thing exists. Completion hangs on them:
an argument that names a VDI has the type `VDI`, whatever the command.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from core.errors import BadRequest
from core.schedule import parse_interval
from plxsh.context import Settings

if TYPE_CHECKING:
    from plxsh.offers import Items

Value = TypeVar("Value")

_UNITS: Final = "KMGTP"
_SIZE: Final = re.compile(rf"(\d+)(?:([{_UNITS}])(?:iB)?)?", re.IGNORECASE)
_SIZE_HELP: Final = (
    "write bytes or a power of 1024: 4096, 64K, 2G, 1T, 2GiB (whole numbers, no kB or GB)"
)


def parse_size(text: str) -> int | None:
    """Return the bytes that a size such as `2G` stands for, None when it is no size."""
    match = _SIZE.fullmatch(text)
    if match is None or not text.isascii():
        return None
    number, unit = match.groups()
    power = _UNITS.index(unit.upper()) + 1 if unit else 0
    return int(number) << (10 * power)


class CompletedType(click.ParamType[Value]):
    """A type whose values `plxsh.offers` knows, under the name of the type."""

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> Items:
        """Return all values that there are; leaving out and ranking is for who asks."""
        from plxsh.offers import offers

        return offers(self.name, ctx.ensure_object(Settings), incomplete)


class SizeType(CompletedType[int]):
    """A number of bytes, with or without a unit."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes; fail with the forms that are accepted."""
        if isinstance(value, int):
            return value
        size = parse_size(value)
        if size is None:
            self.fail(f"{value!r} is no size; {_SIZE_HELP}", param, ctx)
        return size


class IntervalType(CompletedType[int]):
    """How often something is to happen: `10ms`, `1h`, or `off`."""

    name = "INTERVAL|off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the nanoseconds, 0 for `off`; fail with the forms that are accepted."""
        if isinstance(value, int):
            return value
        try:
            return parse_interval(value)
        except BadRequest as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


class AddressType(CompletedType[tuple[str, int]]):
    """A TCP address and port: `127.0.0.1:10809` or `[::1]:10809`.

    Args:
        port: the usual one of what listens there.
    """

    name = "ADDR:PORT"

    def __init__(self, port: int) -> None:
        """Know the port that examples have."""
        self._port = port

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return host and port; fail with the form that is accepted."""
        if isinstance(value, tuple):
            return value
        host, colon, port = value.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
            example = f"127.0.0.1:{self._port}"
            self.fail(f"{value!r} is no address; write ADDR:PORT, as {example}", param, ctx)
        return host, int(port)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,  # noqa: ARG002
    ) -> Items:
        """Return addresses to listen on, with the usual port."""
        from plxsh.offers import addresses

        return addresses(self._port)


class LockMasterType(CompletedType[str]):
    """Where a lock master is: `HOST:PORT`, or `unix:PATH`."""

    name = "HOST:PORT|unix:PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; fail with the forms that are accepted."""
        kind, _, path = value.partition(":")
        if kind == "unix" and path:
            return str(value)
        host, _, port = value.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
            self.fail(
                f"{value!r} names no lock master; write HOST:PORT, as 10.0.0.5:8440, or unix:PATH",
                param,
                ctx,
            )
        return str(value)


class LockType(CompletedType[str]):
    """The name of a lock that someone holds: `vdi/3`."""

    name = "LOCK"


class LockHostType(CompletedType[str]):
    """A host on which a VDI can be served: its name, or its session."""

    name = "HOST"


class VdiType(CompletedType[str]):
    """A VDI: its id, its name or its UUID."""

    name = "VDI"


class DeletedVdiType(CompletedType[str]):
    """A deleted VDI that can still be restored: its id, its name or its UUID."""

    name = "DELETED"


class SnapshotType(CompletedType[str]):
    """A snapshot: `BLOCK OFFSET` (two words), `BLOCK.OFFSET` or `VDI@LABEL`.

    `@LABEL` alone is a snapshot of the VDI that `use` selected.
    """

    name = "SNAPSHOT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the reference with its VDI; fail when it needs one and `use` chose none."""
        settings = ctx.find_object(Settings) if ctx is not None else None
        if not value.startswith("@"):
            return str(value)
        if settings is None or not settings.vdi:
            self.fail(
                f"{value!r} has no VDI; write VDI{value}, or choose one with 'use'", param, ctx
            )
        return f"{settings.vdi}{value}"


class VdiOrSnapshotType(SnapshotType):
    """The contents of a VDI or of a snapshot."""

    name = "VDI|SNAPSHOT"


class ServedType(VdiOrSnapshotType):
    """A VDI or a snapshot that clients have open."""

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> Items:
        """Return all VDIs and snapshots, those first that somebody has open."""
        from plxsh.offers import open_first

        return open_first(ctx.ensure_object(Settings), incomplete)


class FormatType(CompletedType[str]):
    """A format of image files."""

    name = "FORMAT"


class VirtualDeviceType(CompletedType[str]):
    """A disk as a virtual machine sees it: `xvda`, `sda1`."""

    name = "VDEV"


class PathType(click.Path):
    """A file, a device or a folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; fail when it is empty, as a variable of a script may be."""
        if not value:
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class CommandLineType(click.ParamType[str]):
    """The words of another command."""

    name = "COMMAND"


def checked(kind: click.ParamType[Value], text: str, where: str) -> Value:
    """Return what a text stands for that no command line gave.

    Raises:
        BadRequest: nothing, told with `where` it comes from.
    """
    try:
        return kind.convert(text, None, None)
    except click.BadParameter as error:
        raise BadRequest(f"{where}: {error.message}", "correct it") from error


COMMAND_LINE: Final = CommandLineType()
SIZE: Final = SizeType()
INTERVAL: Final = IntervalType()
FORMAT: Final = FormatType()
FILE: Final = PathType(readable=False)
"""Whether it may be read is for those to say who read it."""
VIRTUAL_DEVICE: Final = VirtualDeviceType()
ADDRESS: Final = AddressType(10809)
"""Of NBD."""
METRICS_ADDRESS: Final = AddressType(8441)
LOCK_ADDRESS: Final = AddressType(8440)
LOCK_MASTER: Final = LockMasterType()
LOCK: Final = LockType()
LOCK_HOST: Final = LockHostType()
VDI: Final = VdiType()
DELETED_VDI: Final = DeletedVdiType()
SNAPSHOT: Final = SnapshotType()
VDI_OR_SNAPSHOT: Final = VdiOrSnapshotType()
SERVED: Final = ServedType()


class WordsArgument(click.Argument):
    """One or more references, each of which may be the two words BLOCK OFFSET.

    Args:
        count: how many references the words must make; a single one is passed as a
            text, several as a tuple.
    """

    def __init__(self, decls: list[str], count: int = 1, **attrs: Any) -> None:
        """Take any number of words."""
        super().__init__(decls, nargs=-1, **{"required": True, **attrs})
        self.count = count

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Join the words to references."""
        words = tuple(value or ())
        if not words:
            return super().type_cast_value(ctx, words)
        references = join_words(words, self.count)
        if references is None:
            raise click.BadParameter(
                f"{' '.join(words)!r} does not name {_COUNTS[self.count]}",
                ctx=ctx,
                param=self,
            )
        return tuple(self.type.convert(reference, self, ctx) for reference in references)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> Items:
        """Return what may come next: behind a BLOCK its OFFSET, else a reference."""
        from plxsh.offers import blocks, offsets

        names = ctx.ensure_object(Settings).names
        found = super().shell_complete(ctx, incomplete)
        if incomplete.isdecimal():
            found = blocks(names) + found
        given = ctx.params.get(self.name, ())
        if not (given and given[-1].isdecimal()):
            return found
        only_snapshots = type(self.type) is SnapshotType
        return offsets(names, given[-1]) + ([] if only_snapshots else found)

    def value_is_missing(self, value: Any) -> bool:
        """Say whether no word was given."""
        return not value

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return what the command gets: a text for one reference."""
        references = super().process_value(ctx, value)
        if self.count == 1:
            return references[0] if references else None
        return references


_COUNTS: Final = {
    1: "one snapshot (BLOCK OFFSET, BLOCK.OFFSET or VDI@LABEL)",
    2: "two of them (BLOCK OFFSET, BLOCK.OFFSET, VDI@LABEL or VDI each)",
}


def join_words(words: tuple[str, ...], count: int) -> tuple[str, ...] | None:
    """Return words as `count` references, joining pairs of numbers to BLOCK.OFFSET.

    Returns None when they do not make that many, or make them in more than one way.
    """
    if len(words) == count:
        return words
    if len(words) > 2 * count:
        return None
    found = {tuple(way) for way in _joined(words) if len(way) == count}
    return found.pop() if len(found) == 1 else None


def _joined(words: tuple[str, ...]) -> list[list[str]]:
    """Return every way to read words as references."""
    if not words:
        return [[]]
    ways = [[words[0], *rest] for rest in _joined(words[1:])]
    if len(words) > 1 and words[0].isdecimal() and words[1].isdecimal():
        ways += [[f"{words[0]}.{words[1]}", *rest] for rest in _joined(words[2:])]
    return ways


def names_snapshot(reference: str) -> bool:
    """Say whether a reference has one of the forms of a snapshot, not those of a VDI."""
    block, dot, offset = reference.partition(".")
    by_number = bool(dot) and block.isdecimal() and offset.isdecimal()
    return "@" in reference or by_number
