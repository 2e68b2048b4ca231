"""`plxsh vdi fill`, `validate` and `export`: images in and out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from core.errors import BadRequest
from core.text import human_size
from plxsh import render
from plxsh.context import Settings, pass_settings
from plxsh.groups import Command
from plxsh.losing import unkept
from plxsh.params import FILE, FORMAT, VDI, VDI_OR_SNAPSHOT, WordsArgument, names_snapshot
from plxsh.progress import Progress

if TYPE_CHECKING:
    from core.image import Image

_source_format = click.option(
    "--format",
    "image_format",
    type=FORMAT,
    help="Format of SOURCE: raw, qcow2, or another that qemu-img knows.",
)


@click.command(
    cls=Command,
    examples=["plxsh vdi fill base disk.img", "plxsh vdi fill base - < disk.img"],
    effect="destroys",
)
@click.argument("vdi", type=VDI)
@click.argument("source", type=FILE)
@_source_format
@pass_settings
def fill(settings: Settings, vdi: str, source: str, image_format: str | None) -> None:
    """Read an image file, a device or - (standard input) into a VDI.

    The VDI takes the image's size if it has none; an image that is larger is refused. Holes
    and zeros take no space. Afterwards the VDI equals the image, followed by zeros. It asks
    before it replaces data that no snapshot has.

    An image is raw unless --format says otherwise or it is a qcow2 file by itself. What looks
    like another format is refused, and so is what is compressed (unpack it on the way: 'gzip
    -dc FILE | plxsh vdi fill VDI -'), damaged or cut short.
    """
    from core import source as images
    from core import transfer

    with settings.session() as session:
        record = session.registry.find(vdi)
        done, size = None, record.size or None
        if settings.dry_run or not _is_pipe(source):  # a pipe would lose what is read now
            # What is wrong with the source is told before anybody is asked.
            done = images.measured(source, image_format, session.store.device.name, size)
            size = size or done
        lost = unkept(session.store, record)
        if lost:
            settings.confirm(f"filling VDI {record.id} {record.name!r} loses {lost}")
        if settings.dry_run:
            with session.opened(record):  # refused while somebody else has it open
                pass
        else:
            with session.opened(record) as opened, Progress(settings, "fill") as progress:
                done = transfer.fill(
                    opened, session, source, image_format, progress, progress.stage("convert")
                )
                size = opened.size
    much = f": {human_size(done)}" if done is not None else ""
    what = f"VDI {record.id} {record.name!r} from {source}{much}"
    result = {"vdi": {"id": record.id, "size": size}, "source": source, "bytes": done}
    render.outcome(settings, "fill", "filled", what, result)


def _is_pipe(source: str) -> bool:
    return source == "-" or Path(source).is_fifo()


@click.command(cls=Command, examples=["plxsh vdi validate base disk.img"])
@click.argument("contents", metavar="VDI|SNAPSHOT", cls=WordsArgument, type=VDI_OR_SNAPSHOT)
@click.argument("source", type=FILE)
@_source_format
@pass_settings
def validate(settings: Settings, contents: str, source: str, image_format: str | None) -> None:
    """Compare a VDI or a snapshot with an image, byte by byte.

    Exit status 1 at the first difference, which is named by its byte offset. A VDI must not
    be in use, a snapshot may.
    """
    from core import transfer

    with _image(settings, contents) as image, Progress(settings, "validate") as progress:
        transfer.validate(image, source, image_format, progress, progress.stage("convert"))
        size = image.size
    if settings.output in ("json", "yaml"):
        result = {"equal": True, "source": source, "bytes": size}
        render.data(settings, {"validate": result})
    settings.note(f"{settings.named(contents)} and {source} are equal: {human_size(size)}")


@click.command(
    cls=Command,
    examples=[
        "plxsh vdi export base@clean clean.img",
        "plxsh vdi export base base.qcow2 --format qcow2",
    ],
    effect="changes",
)
@click.argument("contents", metavar="VDI|SNAPSHOT", cls=WordsArgument, type=VDI_OR_SNAPSHOT)
@click.argument("target", type=FILE)
@click.option(
    "--format",
    "image_format",
    type=FORMAT,
    default="raw",
    help="Format of TARGET: raw, or another that qemu-img knows, such as qcow2.",
)
@click.option("--force", is_flag=True, help="Replace a file, overwrite a device; asks first.")
@pass_settings
def export(settings: Settings, contents: str, target: str, image_format: str, force: bool) -> None:
    """Write a VDI or a snapshot to an image file or to - (standard output).

    The file is sparse, and raw unless --format says otherwise. It has exactly the size of the
    VDI: other formats than raw hold whole sectors of 512 bytes, and refuse other sizes. A VDI
    must not be in use, a snapshot may. --force asks for the last part of TARGET to be typed.
    """
    from core import transfer

    if target == "-" and sys.stdout.isatty():
        raise BadRequest(
            "standard output is a terminal", "redirect it, as in 'export web - > FILE'"
        )
    if transfer.would_lose(target):
        if not force:
            raise BadRequest(f"{target} exists already", "use --force to replace it")
        name = os.path.basename(os.path.abspath(target))
        settings.confirm(f"writing {target} loses what is in it", typed=name)
    with _image(settings, contents) as image, Progress(settings, "export") as progress:
        size = image.size
        if settings.dry_run:
            transfer.check_target(image, target, image_format, force)
        else:
            convert = progress.stage("convert")
            transfer.export(image, target, image_format, force, progress, convert)
    if target == "-" and not settings.dry_run:
        return  # standard output is the image
    what = f"{settings.named(contents)} to {target}: {human_size(size)}"
    result = {"export": {"target": target, "bytes": size}}
    render.outcome(settings, "export", "exported", what, result)


@contextmanager
def _image(settings: Settings, reference: str) -> Iterator[Image]:
    """Open the contents of a snapshot, or of a VDI while keeping writers out."""
    if names_snapshot(reference):
        with (
            settings.session("read") as session,
            session.reading(session.find_snapshot(reference)) as image,
        ):
            yield image
    else:
        with settings.session("shared") as session:
            yield session.live_image(session.registry.find(reference))
