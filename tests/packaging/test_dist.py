"""What `make dist` builds of one commit is the same byte for byte, and complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
"""What a hook of git sets would lead to another repository."""

ELSEWHERE = {
    "TZ": "Pacific/Kiritimati",
    "LC_ALL": "C",
    "PYTHONHASHSEED": "7",
    "SOURCE_DATE_EPOCH": "99",
}


def git(folder: Path, *words: str | Path) -> None:
    line = ["git", "-C", folder, "-c", "user.name=A", "-c", "user.email=a@localhost", *words]
    subprocess.run(line, check=True, capture_output=True, env=PLAIN)


def built(repository: Path, folder: Path, **variables: str) -> dict[str, bytes]:
    line = [sys.executable, repository / "scripts/dist.py", folder]
    subprocess.run(line, check=True, capture_output=True, env={**PLAIN, **variables})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_commit_is_built_twice_to_the_same_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "some/where/else"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, one, ignore=ignored)
    git(one, "init", "--quiet")
    git(one, "add", "--all")
    git(one, "commit", "--quiet", "--message", "all", "--date", "2026-11-23T18:37:09Z")
    mask = os.umask(0o077)
    try:
        git(tmp_path, "clone", "--quiet", one, other)
        (other / "core/left_behind.py").write_text("not committed\n")
        second = built(other, other / "made", **ELSEWHERE)
    finally:
        os.umask(mask)
    first = built(one, tmp_path / "made")
    assert len(first) == 3
    assert first.keys() == second.keys()
    for name, made in first.items():
        assert hashlib.sha256(made).digest() == hashlib.sha256(second[name]).digest(), name
    (wheel,) = (tmp_path / "made").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for path in ("parallaxd.service", "plxlockmaster.service", "block-plx", "requirements.lock"):
        assert any(name.endswith(f"data/share/parallax/{path}") for name in names), path
    (collection,) = (tmp_path / "made").glob("parallax-storage-*.tar.gz")
    with tarfile.open(collection) as tar:
        listed = tar.extractfile("FILES.json")
        assert listed is not None
        paths = [file["name"] for file in json.load(listed)["files"]]
    assert paths == sorted(paths)
