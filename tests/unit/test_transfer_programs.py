"""Transfer with what it meets outside: qemu-img, real signals, standard input and output."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.stores import live, noise, small_store

from core import qemu_img as programs
from core import source as sources
from core import transfer
from core.errors import BadRequest, IoFailed, NoSpace, ParallaxError
from core.format import BLOCK
from core.session import Session

pytestmark = pytest.mark.slow

SIZE = 40 * BLOCK
PARTS = {0: noise(5 * BLOCK), 20 * BLOCK: noise(3 * BLOCK, 1), SIZE - 512: noise(512, 2)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return small_store(tmp_path)


def raw_image(folder: Path, name: str = "raw") -> Path:
    path = folder / name
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for offset, data in PARTS.items():
            file.seek(offset)
            file.write(data)
    return path


def full_image(folder: Path) -> Path:
    """A raw image that fills whole clusters of every format."""
    path = folder / "raw"
    path.write_bytes(noise(2 << 20))
    return path


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def fill(store: str, image: Path, image_format: str | None = None) -> bytes:
    with Session.open(store) as session:
        record = session.create(f"from {image.name} as {image_format}"[:40])
        with session.opened(record) as vdi:
            transfer.fill(vdi, session, str(image), image_format)
        transfer.validate(
            session.live_image(session.registry.find(record.name)), str(image), image_format
        )
        return live(session, record.name)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qcow2", []),
        ("qcow2", ["-c"]),
        ("qcow2", ["-o", "compat=0.10"]),
        ("vmdk", []),
        ("vdi", []),
        ("vhdx", []),
        ("vpc", ["-o", "force_size=on"]),
        ("qed", []),
    ],
)
def test_every_format_qemu_img_reads(
    store: str, tmp_path: Path, kind: str, options: list[str]
) -> None:
    raw = raw_image(tmp_path)
    image = tmp_path / "image"
    qemu_img("convert", "-f", "raw", "-O", kind, *options, raw, image)
    assert fill(store, image, kind) == raw.read_bytes()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("options", [[], ["-o", "compat=0.10"]])
def test_a_qcow2_file_that_stands_alone_needs_no_name(
    store: str, tmp_path: Path, options: list[str]
) -> None:
    raw = raw_image(tmp_path)
    image = tmp_path / "image"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, image)
    assert fill(store, image) == raw.read_bytes()


def test_a_backing_file_is_read_only_when_the_format_is_named(store: str, tmp_path: Path) -> None:
    raw = raw_image(tmp_path)
    image = tmp_path / "overlay"
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", image)
    with pytest.raises(BadRequest, match="looks like a qcow2 image"):
        fill(store, image)
    assert fill(store, image, "qcow2") == raw.read_bytes()


def test_a_data_file_is_read_only_when_the_format_is_named(store: str, tmp_path: Path) -> None:
    raw = raw_image(tmp_path)
    image = tmp_path / "image"
    options = f"data_file={tmp_path / 'data'},data_file_raw=on"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, image)
    with pytest.raises(BadRequest, match="looks like a qcow2 image"):
        fill(store, image)
    assert fill(store, image, "qcow2") == raw.read_bytes()


def test_a_name_with_a_colon_is_no_protocol(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_image(tmp_path)
    image = tmp_path / "nbd:host"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    monkeypatch.chdir(tmp_path)
    assert fill(store, Path(image.name), "qcow2") == raw.read_bytes()


def test_an_image_of_another_format_than_named(store: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"qemu-img: .*not in qcow2 format"):
        fill(store, raw_image(tmp_path), "qcow2")
    with pytest.raises(BadRequest, match=r"qemu-img: .*[Uu]nknown driver 'banana'"):
        fill(store, raw_image(tmp_path), "banana")


def contents(image: Path, image_format: str | None) -> bytes:
    """What a fill would read."""
    with sources.opened(str(image), image_format, "/no/store") as opened:
        data = bytearray(opened.size or 0)
        for offset, length, part in opened.pieces():
            data[offset : offset + length] = part or bytes(length)
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qcow2", []),
        ("qcow2", ["-c"]),
        ("qcow2", ["-o", "compat=0.10"]),
        ("vmdk", []),
        ("vmdk", ["-o", "subformat=streamOptimized"]),
        ("vdi", []),
        ("vdi", ["-o", "static=on"]),
        ("vhdx", []),
        ("vpc", ["-o", "force_size=on"]),
        ("vpc", ["-o", "force_size=on,subformat=fixed"]),
        ("qed", []),
        ("qcow", []),
        ("parallels", []),
    ],
)
def test_an_image_that_was_cut_anywhere_is_refused(
    store: str, tmp_path: Path, kind: str, options: list[str]
) -> None:
    raw = full_image(tmp_path)
    image = tmp_path / "image"
    qemu_img("convert", "-f", "raw", "-O", kind, *options, raw, image)
    assert contents(image, kind) == raw.read_bytes()
    size = image.stat().st_size
    cuts = {size * part // 12 for part in range(1, 12)} | {size - 1, size - 512, size - 4097}
    refused = 0
    for cut in sorted(cuts, reverse=True):
        os.truncate(image, cut)
        try:
            found = contents(image, kind)
        except ParallaxError:
            refused += 1
        else:
            assert found == raw.read_bytes(), cut  # what was cut off is a footer, or nothing
    assert refused >= 5
    if kind != "qcow2":
        return
    with Session.open(store) as session:
        record = session.create("a", 2 << 20)
        with pytest.raises(ParallaxError), session.opened(record) as vdi:
            transfer.fill(vdi, session, str(image), kind)
        with pytest.raises(ParallaxError):
            transfer.validate(session.live_image(record), str(image), kind)
        with pytest.raises(ParallaxError):
            sources.measured(str(image), kind, store)
        assert session.registry.find("a") == record


@pytest.mark.parametrize(
    ("kind", "options", "part"),
    [
        ("vmdk", "subformat=monolithicFlat", "image-flat.vmdk"),
        ("vmdk", "subformat=twoGbMaxExtentSparse", "image-s001.vmdk"),
        ("vmdk", "subformat=twoGbMaxExtentFlat", "image-f001.vmdk"),
        ("qcow2", "data_file=image.data,data_file_raw=on", "image.data"),
        ("qcow2", "data_file=image.data", "image.data"),
    ],
)
def test_the_other_files_of_an_image_may_be_cut_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, part: str
) -> None:
    raw = full_image(tmp_path)
    monkeypatch.chdir(tmp_path)
    image = Path(f"image.{kind}")
    qemu_img("convert", "-f", "raw", "-O", kind, "-o", options, raw, image)
    assert contents(image, kind) == raw.read_bytes()
    os.truncate(part, os.stat(part).st_size - 512)
    with pytest.raises(IoFailed, match=rf"{part} is cut short: it has \d+ bytes, and data as far"):
        contents(image, kind)
    os.truncate(part, 65536)
    with pytest.raises(IoFailed, match=r"is (damaged or )?cut short"):
        contents(image, kind)


@pytest.mark.parametrize("kind", ["qcow2", "vdi"])
def test_a_backing_file_may_be_cut_too(tmp_path: Path, kind: str) -> None:
    base, middle, top = tmp_path / "base", tmp_path / "middle", tmp_path / "top"
    raw = full_image(tmp_path)
    qemu_img("convert", "-f", "raw", "-O", kind, raw, base)
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", kind, middle)
    qemu_img("create", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
    assert contents(top, "qcow2") == raw.read_bytes()
    os.truncate(base, base.stat().st_size - 100)
    with pytest.raises(IoFailed, match=rf"{base} is cut short"):
        contents(top, "qcow2")
    os.truncate(base, base.stat().st_size * 2 // 3)
    with pytest.raises(IoFailed, match=rf"{base} is (damaged or )?cut short"):
        contents(top, "qcow2")


def test_a_damaged_image_is_refused_and_the_hint_mends_it(tmp_path: Path) -> None:
    """QEMU was killed, and the reference counts are behind."""
    image = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", "-o", "lazy_refcounts=on", image, SIZE)
    killed = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", "-c", "sigraise 9", image]
    subprocess.run(killed, check=False, capture_output=True)
    with pytest.raises(IoFailed, match=f"^{image} is damaged") as error:
        contents(image, None)
    look, mend = re.findall("'(.*?)'", error.value.hint)
    assert subprocess.run(look.split(), capture_output=True).returncode == 2
    command = [*look.split(), *mend.split()]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert contents(image, None) == (b"\7" * 65536).ljust(SIZE, b"\0")


def test_space_that_is_not_used_is_no_damage(tmp_path: Path) -> None:
    """A snapshot inside a qcow2 file, or one that was interrupted, leaves such."""
    image = tmp_path / "image"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw_image(tmp_path), image)
    with open(image, "ab") as file:
        file.write(bytes(1 << 20))
    assert contents(image, None) == (tmp_path / "raw").read_bytes()


def test_whatever_qemu_recognises_is_not_taken_for_a_raw_image(tmp_path: Path) -> None:
    raw = raw_image(tmp_path)
    image = tmp_path / "image"
    for kind in ("qcow", "qcow2", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels", "raw"):
        for options in ("", "subformat=fixed", "subformat=monolithicFlat"):
            image.unlink(missing_ok=True)
            more = ["-o", options] if options else []
            done = subprocess.run(
                ["qemu-img", "convert", "-f", "raw", "-O", kind, *more, raw, image],
                stderr=subprocess.DEVNULL,
            )
            if done.returncode:
                continue  # it has no such option
            said = subprocess.check_output(["qemu-img", "info", "--output=json", image])
            probed = json.loads(said)["format"]
            hint = None
            assert probed in (kind, "raw")  # a fixed VHD is raw to qemu-img, too
            if kind not in ("raw", "qcow2"):
                with pytest.raises(BadRequest, match=f"looks like a {kind} image") as error:
                    contents(image, None)
                [hint] = re.findall(r"--format (?!raw)(\w+)", error.value.hint)
            found = contents(image, hint)
            assert found[:SIZE] == raw.read_bytes()  # a VHD may be a little larger


def test_a_converted_image_that_is_too_large_is_not_even_converted(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", image, "1T")
    asked: list[str] = []
    real = programs.run

    def record_and_run(*arguments: str, **more: Any) -> str:
        asked.append(arguments[0])
        return real(*arguments, **more)

    monkeypatch.setattr(programs, "run", record_and_run)
    with Session.open(store) as session:
        record = session.create("a", BLOCK)
        with (
            pytest.raises(BadRequest, match=f"has {1 << 40} bytes or more, the VDI has {BLOCK}"),
            session.opened(record) as vdi,
        ):
            transfer.fill(vdi, session, str(image))
    assert asked == ["info"]


EXPORTED = ("qcow2", "vmdk", "vhdx", "vpc", "vdi", "qed", "qcow", "parallels")


@pytest.mark.parametrize("kind", EXPORTED)
def test_an_export_in_another_format_has_exactly_the_same_bytes(
    store: str, tmp_path: Path, kind: str
) -> None:
    for size in (512, SIZE + 1536, 10 << 20):
        raw = raw_image(tmp_path)
        os.truncate(raw, size)
        target = tmp_path / f"out{size}"
        with Session.open(store) as session:
            record = session.create(f"a{size}")
            with session.opened(record) as vdi:
                transfer.fill(vdi, session, str(raw))
            image = session.live_image(session.registry.find(record.name))
            transfer.export(image, str(target), kind)
            transfer.validate(image, str(target), kind)
        assert programs.virtual_size(str(target), kind) == size
        target.unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"store", "tmp", "raw"}


@pytest.mark.parametrize("kind", EXPORTED)
@pytest.mark.parametrize("size", [1, 513, SIZE - 1])
def test_a_size_that_a_format_cannot_hold_is_refused(
    store: str, tmp_path: Path, kind: str, size: int
) -> None:
    with Session.open(store) as session:
        image = session.live_image(session.create("a", size))
        for attempt in (transfer.export, transfer.check_target):
            with pytest.raises(BadRequest, match=f"whole sectors of 512 bytes, not {size} bytes"):
                attempt(image, str(tmp_path / "out"), kind, False)
        transfer.export(image, str(tmp_path / "out"))  # as the hint says
    assert {path.name for path in tmp_path.iterdir()} == {"store", "tmp", "out"}
    assert os.listdir(tmp_path / "tmp") == []


def test_an_image_too_large_for_its_format_is_refused_before_it_is_read(
    store: str, tmp_path: Path
) -> None:
    read: list[int] = []
    with Session.open(store) as session:
        image = session.live_image(session.create("a", 4 << 40))
        with pytest.raises(BadRequest, match=r"qemu-img: .*too large"):
            transfer.export(
                image, str(tmp_path / "out"), "vpc", progress=lambda done, _: read.append(done)
            )
    assert read == []


def test_an_exported_vmdk_names_itself_as_it_is_called(store: str, tmp_path: Path) -> None:
    with Session.open(store) as session:
        image = session.live_image(session.create("a", SIZE))
        transfer.export(image, str(tmp_path / "disk.vmdk"), "vmdk")
    assert b'SPARSE "disk.vmdk"' in (tmp_path / "disk.vmdk").read_bytes()


def test_a_failed_export_in_another_format_leaves_nothing(store: str, tmp_path: Path) -> None:
    raw = raw_image(tmp_path)
    fill(store, raw)
    with Session.open(store, "shared") as session:
        [record] = session.registry.vdis()
        with pytest.raises(BadRequest, match=r"qemu-img: .*banana"):
            transfer.export(session.live_image(record), str(tmp_path / "out"), "banana")
    assert {path.name for path in tmp_path.iterdir()} == {"store", "tmp", "raw"}


# -- a process of its own --------------------------------------------------------------

FILL = """
import sys
from core import transfer
from core.errors import ParallaxError
from core.session import Session

def progress(done, total):
    print(done, file=sys.stderr, flush=True)

try:
    with Session.open(sys.argv[1]) as session:
        with session.opened(session.registry.find("a")) as vdi:
            transfer.fill(vdi, session, sys.argv[2], None, progress)
except ParallaxError as error:
    print(error.message)
    sys.exit(error.exit_status)
"""

EXPORT = """
import sys
from core import transfer
from core.session import Session

with Session.open(sys.argv[1], "shared") as session:
    record = session.registry.find("a")
    transfer.export(session.live_image(record), "-")
"""


def python(*arguments: str, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", *arguments], stdout=subprocess.PIPE, **more
    )


def test_standard_input_and_output(store: str, tmp_path: Path) -> None:
    raw = raw_image(tmp_path)
    with Session.open(store) as session:
        session.create("a")
    with open(raw, "rb") as file:
        process = python(FILL, store, "-", stdin=file, stderr=subprocess.DEVNULL)
        assert process.communicate()[0] == b""
    assert process.returncode == 0
    process = python(EXPORT, store)
    assert process.communicate()[0] == raw.read_bytes()
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_fill_that_is_stopped_leaves_the_vdi_as_before(
    store: str, number: signal.Signals
) -> None:
    size = 2 * transfer.CHUNK
    with Session.open(store) as session:
        record = session.create("a", size)
        with session.opened(record) as vdi:
            vdi.write(0, noise(SIZE))
    process = python(FILL, store, "-", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin
    assert process.stderr
    process.stdin.write(noise(BLOCK, 1) + bytes(transfer.CHUNK - BLOCK))
    process.stdin.flush()
    while process.stderr.readline().strip() != str(transfer.CHUNK).encode():
        pass  # now it waits for more
    process.send_signal(number)
    said, _ = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert said == b"interrupted: VDI 'a' is as before\n"
    with Session.open(store) as session:
        assert live(session, "a").rstrip(b"\0") == noise(SIZE)


def test_ctrl_c_during_a_conversion_leaves_no_file(store: str, tmp_path: Path) -> None:
    """qemu-img is replaced by one that never ends."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "qemu-img"
    fake.write_text(
        "#!/bin/sh\n"
        'case "$1$3" in\n'
        "info--backing-chain) echo []; exit;;\n"
        "info*) echo '{\"virtual-size\": 4096}'; exit;;\n"
        "map*) exit;;\n"
        "esac\n"
        f"echo > {tmp_path / 'started'}\n"
        "exec sleep 60\n"
    )
    fake.chmod(0o700)
    os.mkfifo(tmp_path / "started")
    image = tmp_path / "image"
    image.write_bytes(b"QFI\xfb" + bytes(3) + b"\3" + bytes(96))
    with Session.open(store) as session:
        record = session.create("a")
    folder = str(tmp_path / "tmp")
    path = f"{fake.parent}:{os.environ['PATH']}"
    process = python(
        FILL,
        store,
        str(image),
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PATH": path, "TMPDIR": folder},
        process_group=0,
    )
    (tmp_path / "started").read_text()
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130
    assert said == b"interrupted: VDI 'a' is as before\n"
    assert os.listdir(folder) == []
    with Session.open(store) as session:
        assert session.registry.find("a") == record


def test_no_space_for_a_conversion_is_said(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "qemu-img"
    fake.write_text("#!/bin/sh\necho 'qemu-img: writing: No space left on device' >&2\nexit 1\n")
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(NoSpace, match="No space left") as error:
        fill(store, raw_image(tmp_path), "qcow2")
    assert "TMPDIR" in error.value.hint
