"""The original tools under their original names, arguments and output.

Each is a small face on the same engine. The store is $PARALLAX_STORE, else the one of the
configuration file, else /blockstore.dat.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Final, NoReturn

import click

from core.errors import BadRequest
from plxsh.context import DEFAULT_STORE, Settings, configured, load_config

Body = Callable[[Settings, list[str]], None]

_COUNT_EVERY: Final = 256


def _tool(name: str, arguments: str, purpose: str, least: int, most: int, body: Body) -> NoReturn:
    """Run one tool: help, the number of its arguments, the store, errors as one line.

    Args:
        name: what it is called.
        arguments: for its usage line.
        purpose: what it does, one line.
        least: fewest arguments.
        most: most arguments.
        body: does it.
    """
    from plxsh.__main__ import guarded

    usage = f"usage: {name} {arguments}".strip()
    settings = Settings()
    words = sys.argv[1:]

    def command() -> int:
        if words and words[0] in ("-h", "--help"):
            click.echo(f"{usage}\n{purpose}")
            return 0
        if words and words[0] == "--":
            del words[0]
        if not least <= len(words) <= most:
            click.echo(usage, err=True)
            return 2
        config = load_config(os.environ.get("PARALLAX_CONFIG"))
        settings.store = (
            os.environ.get("PARALLAX_STORE")
            or configured(config, "blockstore", "data")
            or DEFAULT_STORE
        )
        body(settings, words)
        return 0

    sys.exit(guarded(command, settings, name))


def _number(word: str, what: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise BadRequest(f"{word!r} is no {what}", "write it as a whole number")
    return int(word)


# -- making ----------------------------------------------------------------------------


def mkfs() -> NoReturn:
    """`parallax-mkfs PATH EXTENT_BYTES EXTENTS`: format a file or device."""
    _tool(
        "parallax-mkfs",
        "PATH EXTENT_BYTES EXTENTS",
        "Format a file (made if missing) or a device; refuses one that holds something."
        " Example: parallax-mkfs /blockstore.dat 2147483648 6",
        3,
        3,
        _mkfs,
    )


def _mkfs(_: Settings, words: list[str]) -> None:
    from core import mkfs

    path, size, extents = words
    mkfs.create(path, _number(size, "size in bytes"), _number(extents, "number of extents"))


def vdi_create() -> NoReturn:
    """`vdi_create NAME [BLOCK OFFSET]`: a new VDI, empty or a clone; prints its id."""
    _tool(
        "vdi_create",
        "NAME [BLOCK OFFSET]",
        "Make a VDI, empty or from the snapshot (BLOCK, OFFSET), and print its id."
        ' Example: vdi_create "My new VDI"',
        1,
        3,
        _vdi_create,
    )


def _vdi_create(settings: Settings, words: list[str]) -> None:
    name, *where = words
    with settings.session() as session:
        snapshot = session.find_snapshot(_snapshot_id(where)) if where else None
        record = session.create(name, 0, snapshot)
    click.echo(record.id)


def _snapshot_id(words: list[str]) -> str:
    """Return BLOCK.OFFSET for the two words of a snapshot id."""
    if len(words) != 2:
        raise BadRequest("a snapshot is named by two numbers", "give BLOCK and OFFSET")
    return ".".join(str(_number(word, "snapshot id")) for word in words)


def vdi_fill() -> NoReturn:
    """`vdi_fill VDI SOURCE`: read an image into a VDI, counting up."""
    _tool(
        "vdi_fill",
        "VDI SOURCE",
        "Read an image file or device into a VDI; counts its blocks. Example: vdi_fill 0 ./image",
        2,
        2,
        _vdi_fill,
    )


def _vdi_fill(settings: Settings, words: list[str]) -> None:
    from core import transfer

    vdi, source = words
    with (
        settings.session() as session,
        session.opened(session.registry.find(vdi)) as opened,
    ):
        count = _Counter()
        done = transfer.fill(opened, session, source, None, count)
        count.end(done)


class _Counter:
    """Counts 4 KiB blocks up on standard output: in place on a terminal, else the last."""

    def __init__(self) -> None:
        self._shown = -_COUNT_EVERY
        self._terminal = sys.stdout.isatty()

    def __call__(self, done: int, total: int | None, /) -> None:  # noqa: ARG002
        blocks = done // 4096
        if self._terminal and blocks >= self._shown + _COUNT_EVERY:
            self._shown = blocks
            click.echo(f"\r{blocks}", nl=False)

    def end(self, done: int) -> None:
        click.echo(("\r" if self._terminal else "") + str(-(-done // 4096)))


def vdi_validate() -> NoReturn:
    """`vdi_validate VDI SOURCE`: compare byte by byte; exit status 1 when they differ."""
    _tool(
        "vdi_validate",
        "VDI SOURCE",
        "Compare a VDI with an image, byte by byte. Example: vdi_validate 0 ./image",
        2,
        2,
        _vdi_validate,
    )


def _vdi_validate(settings: Settings, words: list[str]) -> None:
    from core import transfer

    vdi, source = words
    with settings.session("shared") as session:
        transfer.validate(session.live_image(session.registry.find(vdi)), source)


# -- looking ---------------------------------------------------------------------------


def vdi_list() -> NoReturn:
    """`vdi_list`: ids and names."""
    _tool("vdi_list", "", "List the ids and names of the VDIs. Example: vdi_list", 0, 0, _vdi_list)


def _vdi_list(settings: Settings, _: list[str]) -> None:
    from core.errors import Corrupt
    from core.format import LIVE
    from core.registry import Registry

    lines = []
    with closing(settings.blockstore()) as opened:
        for number, record in Registry(opened).scan():
            if isinstance(record, Corrupt):
                settings.warn([record.message])
                lines.append(f"{number:8d} {'(damaged)':>56}\n")
            elif record.state == LIVE:
                lines.append(f"{number:8d} {record.name:>56}\n")
    click.echo("".join(lines), nl=False)


def vdi_snap_list() -> NoReturn:
    """`vdi_snap_list VDI [N]`: the snapshots of a VDI, newest first."""
    _tool(
        "vdi_snap_list",
        "VDI [N]",
        "List the snapshots of a VDI, newest first, at most N. Example: vdi_snap_list 0",
        1,
        2,
        _vdi_snap_list,
    )


def _vdi_snap_list(settings: Settings, words: list[str]) -> None:
    from core import snaplog
    from core.registry import Registry

    limit = _number(words[1], "number of snapshots") if len(words) > 1 else None
    lines = [f"{'Block':>8}{'idx':>4}{'timestamp':>37}{'radix root':>13} d\n"]
    with closing(settings.blockstore()) as opened:
        record = Registry(opened).find(words[0])
        for count, snapshot in enumerate(snaplog.snapshots(opened, record)):
            if count == limit:
                break
            seconds, rest = divmod(snapshot.time_ns, 1_000_000_000)
            when = f"{datetime.fromtimestamp(seconds, UTC).astimezone().ctime()} {rest // 1000:06d}"
            lines.append(
                f"{snapshot.id.block:8d}{snapshot.id.offset:4d}{when:>38}{snapshot.root_block:13d}\n"
            )
    click.echo("".join(lines), nl=False)


def vdi_tree() -> NoReturn:
    """`vdi_tree [FILE.ps]`: draw VDIs and snapshots."""
    _tool(
        "vdi_tree",
        "[FILE.ps]",
        "Draw the VDIs and snapshots, as text or into a PostScript file. Example: vdi_tree",
        0,
        1,
        _vdi_tree,
    )


def _vdi_tree(settings: Settings, words: list[str]) -> None:
    from plxsh.commands.tree import tree

    args = ["-o", words[0]] if words else []
    tree.main(args, "vdi_tree", standalone_mode=False, obj=settings)


# -- snapshots -------------------------------------------------------------------------


def vdi_snap() -> NoReturn:
    """`vdi_snap VDI`: take a snapshot and print its id."""
    _tool("vdi_snap", "VDI", "Take a snapshot of a VDI. Example: vdi_snap 0", 1, 1, _vdi_snap)


def vdi_snap_offline() -> NoReturn:
    """`vdi_snap_offline VDI`: take a snapshot of a VDI that nobody has open."""
    _tool(
        "vdi_snap_offline",
        "VDI",
        "Take a snapshot of a VDI that nobody has open. Example: vdi_snap_offline 0",
        1,
        1,
        _vdi_snap,
    )


def _vdi_snap(settings: Settings, words: list[str]) -> None:
    """Take the snapshot; an open store is refused, and with it an open VDI."""
    with settings.session() as session:
        where = session.snapshot(session.registry.find(words[0]))
    click.echo(f"{where.block} {where.offset}")


def vdi_snap_delete() -> NoReturn:
    """`vdi_snap_delete BLOCK OFFSET`: delete a snapshot."""
    _tool(
        "vdi_snap_delete",
        "BLOCK OFFSET",
        "Delete the snapshot (BLOCK, OFFSET). Example: vdi_snap_delete 16 0",
        2,
        2,
        _vdi_snap_delete,
    )


def _vdi_snap_delete(settings: Settings, words: list[str]) -> None:
    with settings.session() as session:
        session.delete_snapshot(session.find_snapshot(_snapshot_id(words)))


# -- serving ---------------------------------------------------------------------------


def parallaxd() -> NoReturn:
    """`parallaxd`: serve all VDIs over NBD on the usual Unix socket."""
    _tool(
        "parallaxd",
        "",
        "Serve every VDI over NBD on the Unix socket of 'plxsh tap serve'. Example: parallaxd",
        0,
        0,
        _parallaxd,
    )


def _parallaxd(settings: Settings, _: list[str]) -> None:
    from plxsh.commands.tap import serve_store

    serve_store(settings, None, None, None)
