"""Transfer with what it meets outside: qemu-img, real signals, standard input and output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.stores import live, noise, small_store

from core import source, transfer
from core.errors import BadRequest, NoSpace
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


def test_a_converted_image_that_is_too_large_is_not_even_converted(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", image, "1T")
    asked: list[str] = []
    real = source.qemu_img

    def record_and_run(*arguments: str, **more: tuple[int, ...]) -> str:
        asked.append(arguments[0])
        return real(*arguments, **more)

    monkeypatch.setattr(source, "qemu_img", record_and_run)
    with Session.open(store) as session:
        record = session.create("a", BLOCK)
        with (
            pytest.raises(BadRequest, match=f"has {1 << 40} bytes or more, the VDI has {BLOCK}"),
            session.opened(record) as vdi,
        ):
            transfer.fill(vdi, session, str(image))
    assert asked == ["info"]


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx"])
def test_export_in_another_format(store: str, tmp_path: Path, kind: str) -> None:
    raw = raw_image(tmp_path)
    fill(store, raw)
    target = tmp_path / "out"
    with Session.open(store, "shared") as session:
        [record] = session.registry.vdis()
        transfer.export(session.live_image(record), str(target), kind)
    qemu_img("compare", "-f", kind, "-F", "raw", target, raw)
    assert {path.name for path in tmp_path.iterdir()} == {"store", "tmp", "raw", "out"}


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
        'if [ "$1" = info ]; then echo \'{"virtual-size": 4096}\'; exit; fi\n'
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
