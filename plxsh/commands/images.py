"""`plxsh vdi fill`, `validate` and `export`: images in and out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from core.device import FileDevice
from core.errors import BadRequest
from core.text import human_size
from plxsh import render
from plxsh.context import Settings, pass_settings
from plxsh.groups import Command
from plxsh.params import VDI, VDI_OR_SNAPSHOT, WordsArgument, names_snapshot
from plxsh.progress import Progress

if TYPE_CHECKING:
    from core.image import Image

_source_format = click.option(
    "--format",
    "image_format",
    metavar="FORMAT",
    help="Format of SOURCE: raw, qcow2, or another that qemu-img knows.",
)


@click.command(
    cls=Command,
    examples=["plxsh vdi fill base disk.img", "plxsh vdi fill base - < disk.img"],
)
@click.argument("vdi", type=VDI)
@click.argument("source")
@_source_format
@pass_settings
def fill(settings: Settings, vdi: str, source: str, image_format: str | None) -> None:
    """Read an image file, a device or - (standard input) into a VDI.

    The VDI takes the image's size if it has none; an image that is larger is refused. Holes
    and zeros take no space. Afterwards the VDI equals the image, followed by zeros.
    """
    from core import transfer

    with settings.session() as session:
        record = session.registry.find(vdi)
        if settings.dry_run:
            done, size = _source_size(source, record.size), record.size
        else:
            with session.opened(record) as opened, Progress(settings, "fill") as progress:
                done = transfer.fill(opened, session, source, image_format, progress)
                size = opened.size
    much = f": {human_size(done)}" if done is not None else ""
    what = f"VDI {record.id} {record.name!r} from {source}{much}"
    result = {"vdi": {"id": record.id, "size": size}, "source": source, "bytes": done}
    render.outcome(settings, "fill", "filled", what, result)


def _source_size(source: str, room: int) -> int | None:
    """Look at the source of a fill without reading it; refuse what is larger than the VDI."""
    if source == "-":
        return None
    with closing(FileDevice(source)) as device:
        if room and device.size > room:
            raise BadRequest(
                f"{source} has {device.size} bytes, the VDI {room}", "resize the VDI first"
            )
        return device.size


@click.command(cls=Command, examples=["plxsh vdi validate base disk.img"])
@click.argument("contents", metavar="VDI|SNAPSHOT", cls=WordsArgument, type=VDI_OR_SNAPSHOT)
@click.argument("source")
@_source_format
@pass_settings
def validate(settings: Settings, contents: str, source: str, image_format: str | None) -> None:
    """Compare a VDI or a snapshot with an image, byte by byte.

    Exit status 1 at the first difference, which is named by its byte offset. A VDI must not
    be in use, a snapshot may.
    """
    from core import transfer

    with _image(settings, contents) as image, Progress(settings, "validate") as progress:
        transfer.validate(image, source, image_format, progress)
        size = image.size
    if settings.output in ("json", "yaml"):
        result = {"equal": True, "source": source, "bytes": size}
        render.data(settings, {"validate": result})
    settings.note(f"{contents} and {source} are equal: {human_size(size)}")


@click.command(
    cls=Command,
    examples=[
        "plxsh vdi export base@clean clean.img",
        "plxsh vdi export base base.qcow2 --format qcow2",
    ],
)
@click.argument("contents", metavar="VDI|SNAPSHOT", cls=WordsArgument, type=VDI_OR_SNAPSHOT)
@click.argument("target")
@click.option("--format", "image_format", metavar="FORMAT", default="raw", help="Such as qcow2.")
@click.option("--force", is_flag=True, help="Replace a file or a device; asks first.")
@pass_settings
def export(settings: Settings, contents: str, target: str, image_format: str, force: bool) -> None:
    """Write a VDI or a snapshot to an image file, sparse, or to - (standard output).

    The image is raw unless --format says otherwise. A VDI must not be in use, a snapshot may.
    """
    from core import transfer

    exists = target != "-" and os.path.exists(target)
    if exists and not force:
        raise BadRequest(f"{target} exists already", "use --force to replace it")
    if exists:
        settings.confirm(f"writing {target} loses what is in it")
    with _image(settings, contents) as image, Progress(settings, "export") as progress:
        size = image.size
        if not settings.dry_run:
            transfer.export(image, target, image_format, force, progress)
    if target == "-" and not settings.dry_run:
        return  # standard output is the image
    what = f"{contents} to {target}: {human_size(size)}"
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
