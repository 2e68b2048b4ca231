"""TLS: with certificates made for the occasion, and the clients that others wrote."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.tap import CONTENTS, RawClient, contents_of, free_port, tap_in_thread, tap_process

from core.tap import protocol as p

pytestmark = pytest.mark.slow


class Secure(NamedTuple):
    """A tap on TCP that wants certificates, and those of a client."""

    port: int
    unix: str
    certificates: Path

    def uri(self, export: str, scheme: str = "nbds") -> str:
        where = f"{scheme}://127.0.0.1:{self.port}/{export}"
        return f"{where}?tls-certificates={self.certificates}" if scheme == "nbds" else where


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


def certify(folder: Path, name: str, authority: Path | None) -> None:
    """Make NAME-key.pem and NAME-cert.pem, signed by an authority or by itself."""
    key, cert = str(folder / f"{name}-key.pem"), str(folder / f"{name}-cert.pem")
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    words = ["req", "-x509", "-new", "-key", key, "-out", cert, "-days", "2"]
    words += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    if authority is not None:
        signed_by = [str(authority / "ca-cert.pem"), "-CAkey", str(authority / "ca-key.pem")]
        words += ["-addext", "basicConstraints=critical,CA:FALSE", "-CA", *signed_by]
    openssl(*words)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    folder = tmp_path / "pki"
    folder.mkdir()
    certify(folder, "ca", None)
    certify(folder, "server", folder)
    certify(folder, "client", folder)
    return folder


@pytest.fixture
def secure(store: str, certificates: Path) -> Iterator[Secure]:
    port = free_port()
    with tap_process(store, port=str(port), tls=str(certificates)) as tap:
        yield Secure(port, tap.unix, certificates)


def attempt(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_nbdinfo_over_tls(secure: Secure) -> None:
    done = attempt("nbdinfo", secure.uri("golden"))
    assert done.returncode == 0, done.stderr
    assert "newstyle-fixed with TLS" in done.stdout


def test_nbdcopy_over_tls(secure: Secure, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    done = attempt("nbdcopy", secure.uri("golden"), str(copy))
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == CONTENTS


def test_nbdcopy_in_over_tls(secure: Secure, tmp_path: Path, store: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENTS[::-1])
    done = attempt("nbdcopy", "--flush", str(image), secure.uri("clone"))
    assert done.returncode == 0, done.stderr
    assert contents_of(store, "clone") == CONTENTS[::-1]


def test_a_client_without_tls_is_turned_away(secure: Secure) -> None:
    done = attempt("nbdinfo", secure.uri("golden", "nbd"))
    assert done.returncode != 0
    assert "Operation not supported" in done.stderr  # what libnbd makes of "TLS required"


def test_a_client_of_another_authority_is_turned_away(secure: Secure, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    certify(other, "ca", None)
    certify(other, "client", other)
    (other / "ca-cert.pem").write_bytes((secure.certificates / "ca-cert.pem").read_bytes())
    done = attempt("nbdinfo", secure._replace(certificates=other).uri("golden"))
    assert done.returncode != 0
    assert attempt("nbdinfo", secure.uri("golden")).returncode == 0


def test_the_unix_socket_needs_no_tls(secure: Secure) -> None:
    done = attempt("nbdinfo", f"nbd+unix:///golden?socket={secure.unix}")
    assert done.returncode == 0, done.stderr


def test_loopback_tcp_without_tls(store: str) -> None:
    port = free_port()
    with tap_process(store, port=str(port)):
        done = attempt("nbdinfo", "--size", f"nbd://127.0.0.1:{port}/golden")
    assert done.stdout.strip() == str(len(CONTENTS))


def test_tls_that_fails_is_a_refusal_in_the_log(
    store: str, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        tap_in_thread(store, tcp=("127.0.0.1", 0), tls=str(certificates)) as (tap, unix),
        RawClient(unix) as client,
    ):
        assert client.option(p.OPT_STARTTLS) == [(p.REP_ACK, b"")]
        client.sock.sendall(b"this is no TLS" * 10)
        while not client.hung_up():
            pass
        assert tap._shared.totals.refused == 1
    [record] = [r for r in caplog.records if getattr(r, "event", "") == "refused"]
    assert ": TLS: " in record.getMessage()
