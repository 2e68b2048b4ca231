"""A lock master with certificates or a key, as commands see it: who is refused is told why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shell.conftest import Plx
from shell.tap import lock_master
from support.pki import certify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    for name, authority in (("ca", None), ("server", folder), ("client", folder)):
        certify(folder, name, authority)
    return folder


@pytest.fixture(scope="module")
def secure(pki: Path) -> Iterator[str]:
    """A lock master that wants certificates."""
    with lock_master("--tls", str(pki), "--state", str(pki / "state")) as address:
        yield address


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A lock master that wants a key."""
    key = _key(tmp_path_factory.mktemp("key") / "key", "what only tests have")
    with lock_master("--key", str(key), "--state", f"{key}.epoch") as address:
        yield address, key


def _key(path: Path, text: str) -> Path:
    path.write_text(f"{text}\n")
    path.chmod(0o600)
    return path


def test_certificates(plx: Plx, secure: str, pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLAX_LOCK_TLS", str(pki))
    assert plx("--lock-master", secure, "lock", "list").status == 0


def test_other_certificates(
    plx: Plx, secure: str, pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(folder: Path) -> str:
        monkeypatch.setenv("PARALLAX_LOCK_TLS", str(folder))
        line = plx.fails(5, "--lock-master", secure, "vdi", "create", "x")
        assert "PARALLAX_LOCK_TLS" in line
        assert "[lock_master] tls" in line
        return line

    old = tmp_path / "old"
    certify(old, "client", pki, days="-1")
    told(old)
    foreign = tmp_path / "foreign"
    for name, authority in (("ca", None), ("client", foreign)):
        certify(foreign, name, authority)
    assert "not trusted" in told(foreign)
    (foreign / "ca-cert.pem").write_bytes((pki / "ca-cert.pem").read_bytes())
    told(foreign)
    monkeypatch.delenv("PARALLAX_LOCK_TLS")
    assert "PARALLAX_LOCK_TLS" in plx.fails(5, "--lock-master", secure, "vdi", "create", "x")
    monkeypatch.setenv("PARALLAX_LOCK_TLS", str(tmp_path))
    assert "client-cert.pem" in plx.fails(3, "--lock-master", secure, "vdi", "create", "x")
    monkeypatch.setenv("PARALLAX_LOCK_TLS", str(pki))
    plx("--lock-master", secure, "lock", "list")


def test_a_key(
    plx: Plx,
    locked: tuple[str, Path],
    pki: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, key = locked

    def told() -> str:
        return plx.fails(5, "--lock-master", address, "vdi", "create", "x")

    monkeypatch.setenv("PARALLAX_STATE_DIR", str(tmp_path))
    monkeypatch.setattr("plxsh.context.STATE_FOLDER", str(tmp_path))
    line = told()
    assert "it wants a key, and no lock master has made one here" in line
    assert "PARALLAX_LOCK_KEY or [lock_master] key" in line
    wrong = _key(tmp_path / "wrong", "what nobody else has")
    monkeypatch.setenv("PARALLAX_LOCK_KEY", str(wrong))
    line = told()
    assert "does not have the key" in line
    assert "PARALLAX_LOCK_KEY or [lock_master] key" in line
    monkeypatch.setenv("PARALLAX_LOCK_KEY", str(key))
    plx("--lock-master", address, "lock", "list")
    monkeypatch.setenv("PARALLAX_LOCK_TLS", str(pki))
    assert "PARALLAX_LOCK_TLS" in told()
