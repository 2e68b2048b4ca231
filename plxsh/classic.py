"""The original tools under their original names, arguments and output.

Each is a small face on the same engine. The store is $PARALLAX_STORE, else the one of the
configuration file, else /blockstore.dat. `TOOLS` is what their man pages and completion are
made from; a tool that is called is the whole program.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, Final

import click

from core.errors import Fenced, InUse, ParallaxError
from core.text import printable
from plxsh import streams
from plxsh.context import Settings, cache_mode, pass_settings
from plxsh.groups import Command
from plxsh.guard import guarded
from plxsh.params import FILE, SIZE, SNAPSHOT, VDI, WordsArgument
from plxsh.progress import Progress
from plxsh.signals import ending_in_order

_COUNT_EVERY: Final = 256
_OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


class Tool(Command):
    """A command that is a program of its own: what a script in the path calls.

    It has no global options: these tools never had a form of output or a dry run.

    Args:
        name: what it is called.
        params: its arguments.
        attrs: as `Command`.
    """

    def __init__(self, name: str, params: list[click.Parameter], **attrs: Any) -> None:
        """Take -h for help, as `plxsh` does."""
        context = {"max_content_width": 100}
        super().__init__(name, context_settings=context, **attrs)
        self.params = params

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Run the command line of this process, and leave it with the exit status."""
        sys.exit(run(self, sys.argv[1:]))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, without a word on global ones."""
        click.Command.format_options(self, ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Find the store, which no option names, and do the work."""
        settings = ctx.ensure_object(Settings)
        settings.store = os.environ.get("PARALLAX_STORE", "")
        cache = os.environ.get("PARALLAX_CACHE")
        settings.cache = cache_mode(cache) if cache else None
        settings.configure(os.environ.get("PARALLAX_CONFIG"))
        return super().invoke(ctx)


def run(tool: Tool, args: Sequence[str]) -> int:
    """Run one tool and return its exit status; errors are one line that begins with its name."""
    settings = Settings(program=tool.name or "")
    streams.prepare()

    def command() -> Any:
        try:
            return tool.main(list(args), tool.name, standalone_mode=False, obj=settings)
        except ParallaxError as error:
            error.hint = _possible(tool, error.hint)
            raise

    return ending_in_order(lambda: guarded(command, settings, tool.name or ""))


def _possible(tool: Tool, hint: str) -> str:
    """Return a hint that says so where it advises an option that only `plxsh` has."""
    known = {name for param in tool.params for name in param.opts}
    lacks = any(option not in known for option in _OPTION.findall(hint))
    return f"with plxsh: {hint}" if lacks and "plxsh" not in hint else hint


# -- making ----------------------------------------------------------------------------


@click.command(
    "parallax-mkfs",
    cls=Tool,
    effect="changes",
    examples=["parallax-mkfs blockstore.dat 2147483648 6"],
)
@click.argument("path", type=FILE)
@click.argument("extent_bytes", type=SIZE)
@click.argument("extents", type=int)
@pass_settings
def mkfs(settings: Settings, path: str, extent_bytes: int, extents: int) -> None:
    """Format a file (made if missing, sparse) or a device as a blockstore.

    It has EXTENTS extents of EXTENT_BYTES each, a power of two. A link is followed. What already
    holds something is refused.
    """
    from core import mkfs

    with Progress(settings, "clear") as clearing:
        looking = clearing.stage("look", "blocks")
        mkfs.create(path, extent_bytes, extents, False, settings.caching, looking, clearing)


@click.command(
    "vdi_create",
    cls=Tool,
    effect="changes",
    examples=['vdi_create "My new VDI"', 'vdi_create "Copy 1" 16 0'],
)
@click.argument("name")
@click.argument("words", metavar="[BLOCK OFFSET]", cls=WordsArgument, type=SNAPSHOT, required=False)
@pass_settings
def vdi_create(settings: Settings, name: str, words: str | None) -> None:
    """Make a VDI, empty or a clone of the snapshot (BLOCK, OFFSET), and print its id."""
    with settings.session() as session:
        snapshot = session.find_snapshot(words) if words else None
        record = session.create(name, 0, snapshot)
    settings.changed(f"created VDI {record.id} {name!r}")
    click.echo(record.id)


@click.command("vdi_fill", cls=Tool, effect="destroys", examples=["vdi_fill 0 ./image"])
@click.argument("vdi", type=VDI)
@click.argument("source", type=FILE)
@pass_settings
def vdi_fill(settings: Settings, vdi: str, source: str) -> None:
    """Read an image file, a device or - (standard input) into a VDI, counting its blocks."""
    from core import transfer

    with (
        settings.session() as session,
        session.opened(session.registry.find(vdi)) as opened,
    ):
        count = _Counter()
        done = transfer.fill(opened, session, source, None, count)
    settings.changed(f"filled VDI {opened.id} {opened.name!r}")
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


@click.command("vdi_validate", cls=Tool, examples=["vdi_validate 0 ./image"])
@click.argument("vdi", type=VDI)
@click.argument("source", type=FILE)
@pass_settings
def vdi_validate(settings: Settings, vdi: str, source: str) -> None:
    """Compare a VDI with an image, byte by byte.

    It says nothing when they are equal. Exit status 1 at the first difference, which is
    named by its byte offset.
    """
    from core import transfer

    with settings.session("shared") as session:
        transfer.validate(session.live_image(session.registry.find(vdi)), source)


# -- looking ---------------------------------------------------------------------------


@click.command("vdi_list", cls=Tool, examples=["vdi_list"])
@pass_settings
def vdi_list(settings: Settings) -> None:
    """List the ids and names of the VDIs."""
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
                lines.append(f"{number:8d} {printable(record.name):>56}\n")
    click.echo("".join(lines), nl=False)


@click.command("vdi_snap_list", cls=Tool, examples=["vdi_snap_list 0", "vdi_snap_list 0 1"])
@click.argument("vdi", type=VDI)
@click.argument("number", metavar="[N]", type=click.IntRange(0), required=False)
@pass_settings
def vdi_snap_list(settings: Settings, vdi: str, number: int | None) -> None:
    """List the snapshots of a VDI, newest first: block, offset, time, radix root.

    With N only the newest N.
    """
    from itertools import islice

    from core import snaplog
    from core.registry import Registry

    lines = [f"{'Block':>8}{'idx':>4}{'timestamp':>37}{'radix root':>13} d\n"]
    with closing(settings.blockstore()) as opened:
        record = Registry(opened).find(vdi)
        for snapshot in islice(snaplog.snapshots(opened, record), number):
            seconds, rest = divmod(snapshot.time_ns, 1_000_000_000)
            when = f"{datetime.fromtimestamp(seconds, UTC).astimezone().ctime()} {rest // 1000:06d}"
            lines.append(
                f"{snapshot.id.block:8d}{snapshot.id.offset:4d}{when:>38}{snapshot.root_block:13d}\n"
            )
    click.echo("".join(lines), nl=False)


@click.command("vdi_tree", cls=Tool, examples=["vdi_tree", "vdi_tree tree.ps"])
@click.argument("file", metavar="[FILE.ps]", type=FILE, required=False)
@click.pass_context
def vdi_tree(ctx: click.Context, file: str | None) -> None:
    """Draw the VDIs and their snapshots, as text or into a PostScript file.

    A file that ends in .svg, .png, .pdf or .dot is drawn in that form.
    """
    from plxsh.commands.tree import tree

    ctx.invoke(tree, file=file)


# -- snapshots -------------------------------------------------------------------------


@click.command("vdi_snap", cls=Tool, effect="changes", examples=["vdi_snap 0"])
@click.argument("vdi", type=VDI)
@pass_settings
def vdi_snap(settings: Settings, vdi: str) -> None:
    """Take a snapshot of a VDI, open or not, and print its id (BLOCK OFFSET)."""
    with settings.session() as session:
        where = session.snapshot(session.registry.find(vdi))
    settings.changed(f"took snapshot {where}")
    click.echo(f"{where.block} {where.offset}")


@click.command("vdi_snap_offline", cls=Tool, effect="changes", examples=["vdi_snap_offline 0"])
@click.argument("vdi", type=VDI)
@pass_settings
def vdi_snap_offline(settings: Settings, vdi: str) -> None:
    """Take a snapshot of a VDI that nobody has open, and print its id (BLOCK OFFSET)."""
    with settings.session() as session:
        try:
            with session.opened(session.registry.find(vdi)) as opened:
                where = opened.snapshot("")
        except Fenced:
            raise
        except InUse as error:
            raise InUse(error.message, "vdi_snap takes a snapshot of one that is open") from error
    settings.changed(f"took snapshot {where}")
    click.echo(f"{where.block} {where.offset}")


@click.command("vdi_snap_delete", cls=Tool, effect="destroys", examples=["vdi_snap_delete 16 0"])
@click.argument("snapshot", metavar="BLOCK OFFSET", cls=WordsArgument, type=SNAPSHOT)
@pass_settings
def vdi_snap_delete(settings: Settings, snapshot: str) -> None:
    """Delete a snapshot; clones made from it are not affected."""
    with settings.session() as session:
        session.delete_snapshot(session.find_snapshot(snapshot))


# -- serving ---------------------------------------------------------------------------


@click.command("parallaxd", cls=Tool, examples=["parallaxd"])
@pass_settings
def parallaxd(settings: Settings) -> None:
    """Serve every VDI and snapshot over NBD until SIGTERM, SIGHUP or Ctrl-C.

    It is 'plxsh tap serve' on the usual Unix socket: /run/parallax/nbd.sock for root and
    $XDG_RUNTIME_DIR/parallax/nbd.sock for others.
    """
    from plxsh.commands.tap import serve_store

    settings.look()  # on a terminal it says what it serves, and where
    serve_store(settings, None, None, None)


@click.command("plxlockmaster", cls=Tool, examples=["plxlockmaster"])
@pass_settings
def plxlockmaster(settings: Settings) -> None:
    """Grant locks to the sessions of several hosts until SIGTERM, SIGHUP or Ctrl-C.

    It is 'plxsh lock master' on 127.0.0.1:8440, or where the configuration says. One host
    needs none. Its state is /var/lib/parallax/lock_master.epoch for root, and
    $XDG_STATE_HOME/parallax/lock_master.epoch for others (~/.local/state without it). Beside
    it is lock_master.key, if it was given no key: it lets in root and its user.
    """
    from plxsh.commands.master import run_master

    settings.look()  # on a terminal it says where it listens
    run_master(settings)


TOOLS: Final = {
    str(tool.name): tool
    for tool in (
        mkfs,
        vdi_create,
        vdi_fill,
        vdi_validate,
        vdi_list,
        vdi_snap_list,
        vdi_tree,
        vdi_snap,
        vdi_snap_offline,
        vdi_snap_delete,
        parallaxd,
        plxlockmaster,
    )
}
"""Every original tool by its name."""
