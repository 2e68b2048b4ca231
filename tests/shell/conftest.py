"""A command line to type into: `plx("vdi", "list")` runs it in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.shell import Shell, populated

from core import mkfs
from core.session import Session
from plxsh.cli import run


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Plx:
    """Runs commands on one store; `path` is that store, `folder` where the command runs."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.path = folder / "blockstore.dat"
        self._capfd = capfd

    def __call__(self, *args: object, status: int = 0) -> Result:
        self._capfd.readouterr()
        got = run([str(arg) for arg in args])
        out, err = self._capfd.readouterr()
        assert got == status, f"status {got}\n{out}\n{err}"
        return Result(got, out, err)

    def fails(self, status: int, *args: object) -> str:
        """Run what must fail with one line and nothing on standard output; return the line."""
        result = self(*args, status=status)
        assert result.out == ""
        assert result.err.startswith("plxsh: ")
        assert result.err.count("\n") == 1, result.err
        return result.err.rstrip("\n")

    def bytes(self) -> bytes:
        return self.path.read_bytes()


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*os.environ} - {"PARALLAX_RUN_DIR", "PARALLAX_STATE_DIR"}:
        if name.startswith("PARALLAX_") or name in ("NO_COLOR", "LISTEN_FDS"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tap on a busy machine answers late, and is none only for who has no time."""
    monkeypatch.setattr("plxsh.exports._TIMEOUT", 60.0)


@pytest.fixture
def empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Plx:
    """An empty store."""
    plx = Plx(tmp_path, capfd)
    mkfs.create(str(plx.path), 1 << 20, 6)
    monkeypatch.setenv("PARALLAX_STORE", str(plx.path))
    return plx


@pytest.fixture
def plx(empty: Plx) -> Plx:
    """A store with `base` (0, with data), its snapshot `clean`, and a clone of it, `web` (1)."""
    with Session.open(str(empty.path)) as session:
        base = session.create("base", 64 << 10)
        with session.opened(base) as vdi:
            vdi.write(4096, b"a" * 8192)
            vdi.snapshot("clean")
        session.create("web", 0, session.find_snapshot("base@clean"))
        with session.opened(session.registry.find("base")) as vdi:
            vdi.write(8192, b"b" * 4096)
    return empty


@pytest.fixture
def snapshot(plx: Plx) -> tuple[str, str]:
    """Block and offset of `base@clean`."""
    block, offset, *_ = plx("snap", "list", "base").out.split()
    return block, offset


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of `support.shell.populated`, named by the environment."""
    path = populated(tmp_path)
    monkeypatch.setenv("PARALLAX_STORE", path)
    return Path(path)


OpenShell = Callable[..., Shell]


@pytest.fixture
def open_shell(store: Path) -> Iterator[OpenShell]:  # noqa: ARG001
    """Opens interactive shells on that store, and closes them after the test."""
    opened: list[Shell] = []

    def opening(*options: str, **window: Any) -> Shell:
        opened.append(Shell(*options, **window))
        return opened[-1]

    yield opening
    for shell in opened:
        shell.close()


@pytest.fixture
def shell(open_shell: OpenShell) -> Shell:
    """The interactive shell at its first prompt."""
    return open_shell()
