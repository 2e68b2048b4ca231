"""Builds what is released, of the commit that is checked out: sdist, wheel, Ansible collection.

    dist.py [FOLDER]        dist/ without one

One commit gives the same bytes whoever builds it, where and when. What could tell one build from
another is taken from the commit or from nowhere: its files and their modes as git has them, its
time for all times, no owners, names in order. What is left is the tools: the versions that
pyproject.toml pins, and the zlib of this Python.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ANSIBLE_GALAXY = Path(sys.executable).parent / "ansible-galaxy"
BUILD = "import sys, setuptools.build_meta as to; getattr(to, sys.argv[1])(sys.argv[2])"


def git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", ROOT, *words], check=True, stdout=subprocess.PIPE).stdout


def run(words: list[str | Path], folder: Path, epoch: int) -> None:
    """Run a tool in a folder; what it says matters only when it fails."""
    fixed = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, **fixed, "PYTHONHASHSEED": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout.decode()}\ndist: {Path(words[0]).name} failed (see above)")


def unpack(archive: bytes, folder: Path) -> None:
    folder.mkdir()
    words = ["tar", "-xf", "-", "--no-same-owner", "-C", folder]
    subprocess.run(words, input=archive, check=True)


def repack(archive: Path, target: Path, epoch: int) -> None:
    """Write a .tar.gz again: nothing in it is of the machine that wrote it first."""
    with tarfile.open(archive) as tar:
        held = {
            member.name: (member, file.read() if (file := tar.extractfile(member)) else b"")
            for member in tar
        }
    if "FILES.json" in held:
        order_files(held)
    with (
        open(target, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for _, (member, data) in sorted(held.items()):
            told = tarfile.TarInfo(member.name)
            told.type, told.linkname, told.size = member.type, member.linkname, len(data)
            told.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            told.mtime = epoch
            tar.addfile(told, io.BytesIO(data))


def order_files(held: dict[str, tuple[tarfile.TarInfo, bytes]]) -> None:
    """Order a collection's list of its files, which has the order of the folder otherwise."""

    def change(name: str, told: dict[str, object]) -> bytes:
        data = json.dumps(told, indent=1).encode()
        held[name] = (held[name][0], data)
        return data

    listed = json.loads(held["FILES.json"][1])
    listed["files"].sort(key=lambda file: file["name"])
    data = change("FILES.json", listed)
    manifest = json.loads(held["MANIFEST.json"][1])
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(data).hexdigest()
    change("MANIFEST.json", manifest)


def build(folder: Path) -> list[Path]:
    """Build all into a folder; return what was made."""
    os.umask(0o022)
    epoch = int(git("log", "-1", "--format=%ct"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        unpack(git("-c", "tar.umask=0022", "archive", "HEAD"), place / "tree")
        run([sys.executable, "-c", BUILD, "build_sdist", place / "sdist"], place / "tree", epoch)
        (sdist,) = (place / "sdist").iterdir()
        repack(sdist, folder / sdist.name, epoch)
        unpack(gzip.decompress((folder / sdist.name).read_bytes()), place / "unpacked")
        (source,) = (place / "unpacked").iterdir()
        run([sys.executable, "-c", BUILD, "build_wheel", place / "wheel"], source, epoch)
        (wheel,) = (place / "wheel").iterdir()
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        words = [ANSIBLE_GALAXY, "collection", "build", "--output-path", place / "collection"]
        run([*words], place / "tree/ansible_collection", epoch)
        (collection,) = (place / "collection").iterdir()
        repack(collection, folder / collection.name, epoch)
    return [folder / made.name for made in (sdist, wheel, collection)]


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    if git("status", "--porcelain"):
        print("dist: what is not committed is not in it", file=sys.stderr)
    for path in build(folder):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")


if __name__ == "__main__":
    main()
