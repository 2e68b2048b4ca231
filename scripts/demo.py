"""A guided tour on a throw-away blockstore: what `make demo` runs.

It does what a user would do, with the same commands, checks each result, and fails if
anything is not as it should be. All it leaves behind is a picture.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "build" / "demo-tree.svg"
PROGRAMS = {
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "dot": "graphviz",
    "qemu-io": "qemu-utils",
}
BLOCK = 4096
IMAGE_SIZE = "64M"
PATIENCE = 60
WIDTH = 79
NOTE = "/etc/motd"
OLD = "This is the original.\n"
NEW = "This was overwritten.\n"  # in place, so as long as what it replaces


class Wrong(Exception):
    """Something is not as it should be."""


class Demo:
    """Runs commands in a folder, shows each and how long each step took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("PARALLAX_")}
        self._env["PATH"] = f"{ROOT / '.venv/bin'}:{self._env['PATH']}:/usr/sbin:/sbin"
        self._env["PARALLAX_STORE"] = "blockstore.dat"
        self._steps = 0
        missing = {PROGRAMS[name] for name in PROGRAMS if not self._find(name)}
        if missing:
            raise Wrong(f"missing Debian packages: {' '.join(sorted(missing))}")

    def _find(self, program: str) -> str | None:
        return shutil.which(program, path=self._env["PATH"])

    def step(self, what: str) -> None:
        """Say what the next commands are for."""
        self._steps += 1
        print(f"\n{self._steps:2}. {what}", flush=True)

    @contextmanager
    def timed(self, line: str) -> Iterator[None]:
        """Show a command line, and how long what is in the `with` block took."""
        shown = textwrap.wrap(line, 64, break_long_words=False, break_on_hyphens=False)
        for part in shown[:-1]:
            print(f"    $ {part} \\" if part is shown[0] else f"        {part} \\")
        last = f"    $ {shown[0]}" if len(shown) == 1 else f"        {shown[-1]}"
        print(last, end="", flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = f" {time.monotonic() - start:.2f} s"
            print(seconds.rjust(WIDTH - len(last)), flush=True)

    def run(self, line: str, status: int = 0, show: bool = True) -> str:
        """Run a command line as typed; return its standard output.

        Args:
            line: program and arguments.
            status: the exit status it must have.
            show: print what it says.
        """
        with self.timed(line):
            done = subprocess.run(
                shlex.split(line),
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        if show or done.returncode != status:
            for said in (done.stdout + done.stderr).splitlines():
                print(f"      {said}")
        if done.returncode != status:
            raise Wrong(f"exit status {done.returncode}, expected {status}: {line}")
        return done.stdout

    def expect(self, what: str, true: bool) -> None:
        """State something that has to be true."""
        if not true:
            raise Wrong(f"not true: {what}")
        print(f"      ok: {what}", flush=True)

    def start(self, line: str, ready: str) -> subprocess.Popen[bytes]:
        """Start a server; return when the file `ready` is there."""
        with self.timed(f"{line} &"):
            server = subprocess.Popen(shlex.split(line), cwd=self.folder, env=self._env)
            try:
                self._wait_for(ready, server)
            except BaseException:
                stop(server)
                raise
        return server

    def attach(self, line: str, lock: str) -> subprocess.Popen[bytes]:
        """Start a client that stays; return when the tap has that lock for it."""
        with self.timed(f"{line} &"):
            client = subprocess.Popen(
                shlex.split(line), cwd=self.folder, env=self._env, stdout=subprocess.DEVNULL
            )
            until = time.monotonic() + PATIENCE
            while lock not in self._locks():
                if client.poll() is not None or time.monotonic() > until:
                    stop(client)
                    raise Wrong(f"it has not got {lock}: {line}")
        return client

    def _locks(self) -> str:
        command = ["plxsh", "lock", "list"]
        done = subprocess.run(
            command, cwd=self.folder, env=self._env, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    def _wait_for(self, name: str, server: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + PATIENCE
        while not (self.folder / name).exists():
            if server.poll() is not None or time.monotonic() > until:
                raise Wrong(f"the server has not made {name}")
            time.sleep(0.01)

    def file(self, image: str, name: str) -> str:
        """Return the text of a file inside an image that has a sound file system."""
        self.run(f"e2fsck -fn {image}", show=False)
        return self.run(f"debugfs -R 'cat {name}' {image}", show=False)


def stop(server: subprocess.Popen[bytes]) -> int:
    """End a server, at the latest by force; return its exit status."""
    server.terminate()
    try:
        return server.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def make_image(demo: Demo) -> None:
    """Make a disk image with a file system and files in it."""
    files = demo.folder / "files"
    for name in ("core", "plxsh", "docs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, files / "srv" / name, ignore=ignore)
    (files / "srv" / "data.bin").write_bytes(os.urandom(24 << 20))
    note = files / NOTE.lstrip("/")
    note.parent.mkdir()
    note.write_text(OLD)
    demo.step(f"Make a disk image of {IMAGE_SIZE}: ext4, with files in it")
    demo.run(f"mke2fs -q -t ext4 -b {BLOCK} -d files disk.img {IMAGE_SIZE}")


def fill(demo: Demo) -> None:
    """Bring the image into a blockstore."""
    demo.step("Format a blockstore: one sparse file")
    demo.run("plxsh store create blockstore.dat --extent-size 64M --extents 6")
    demo.step("Make a virtual disk image (VDI) and fill it; holes take no space")
    demo.run("plxsh vdi create base")
    demo.run("plxsh vdi fill base disk.img")
    demo.step("Compare it with the image, byte by byte")
    demo.run("plxsh vdi validate base disk.img")


def clone(demo: Demo) -> None:
    """Take a snapshot and make two clones of it."""
    demo.step("Take a snapshot: the same few blocks whatever the size")
    demo.run("plxsh snap create base --label clean")
    demo.step("Make two clones of it")
    demo.run("plxsh vdi create web --from base@clean")
    demo.run("plxsh vdi create mail --from base@clean")


def write(demo: Demo) -> None:
    """Serve everything, and change a file in one clone as a guest would: by its blocks."""
    demo.step("Serve everything over NBD")
    tap = demo.start("plxsh --quiet tap serve --unix nbd.sock", "nbd.sock")
    try:
        snapshot_live(demo)
        demo.step(f"Overwrite {NOTE} in the clone web, with a client that is not ours")
        where = demo.run(f"debugfs -R 'blocks {NOTE}' disk.img", show=False)
        offset = int(where.split()[-1]) * BLOCK
        (demo.folder / "new").write_bytes(NEW.encode().ljust(BLOCK, b"\0")[:BLOCK])
        uri = "nbd+unix:///web?socket=nbd.sock"
        demo.run(f"qemu-io -f raw -c 'write -s new {offset} {BLOCK}' -c flush '{uri}'", show=False)
        demo.step("Stop the tap: it commits and lets go of the store")
        with demo.timed("kill %1; wait"):
            status = stop(tap)
        demo.expect("it ended in good order", status == 0)
    finally:
        if tap.poll() is None:
            stop(tap)


def snapshot_live(demo: Demo) -> None:
    """Take a snapshot of a clone that a client has open, beside the tap."""
    demo.step("Open the clone web, as a machine that runs would")
    uri = "nbd+unix:///web?socket=nbd.sock"
    machine = demo.attach(f"qemu-io -f raw -c 'sleep 600000' '{uri}'", "vdi/1")
    try:
        demo.run("plxsh --output table tap list --unix nbd.sock")
        demo.step("Take a snapshot of it while it is open")
        demo.run("plxsh snap create web --label before")
    finally:
        stop(machine)


def prove(demo: Demo) -> None:
    """Make sure that what was written is where it belongs, and nowhere else."""
    demo.step("Nothing else has changed")
    demo.run("plxsh vdi validate base@clean disk.img")
    demo.run("plxsh vdi validate mail disk.img")
    demo.run("plxsh vdi validate web disk.img", status=1)
    demo.step("Every file system is sound and holds the right file")
    for name, text in (("web", NEW), ("web@before", OLD), ("mail", OLD)):
        demo.run(f"plxsh vdi export {name} {name}.img")
        demo.expect(f"{NOTE} of {name}: {text.strip()}", demo.file(f"{name}.img", NOTE) == text)
    demo.step("The store is sound, and a clone costs what was written to it")
    demo.run("plxsh store check")
    demo.run("plxsh --output table vdi list")


def draw(demo: Demo) -> None:
    """Draw who comes from whom."""
    PICTURE.parent.mkdir(exist_ok=True)
    demo.step("Draw the family tree")
    demo.run("plxsh tree")
    demo.run(f"plxsh tree -o {shlex.quote(str(PICTURE))}")


def main() -> int:
    """Take the tour; return the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # end in good order: leave nothing behind
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    start = time.monotonic()
    print("Parallax: one disk image, two clones, one of them changed.")
    with tempfile.TemporaryDirectory(prefix="parallax-demo-") as folder:
        try:
            demo = Demo(Path(folder))
            for part in (make_image, fill, clone, write, prove, draw):
                part(demo)
        except Wrong as wrong:
            print(f"\ndemo: {wrong}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ndemo: interrupted", file=sys.stderr)
            return 130
    print(f"\nAll is as it should be, after {time.monotonic() - start:.1f} s.")
    print(f"The tree as a picture: {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
