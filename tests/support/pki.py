"""Certificates for tests: an authority, and what it signs."""

from __future__ import annotations

import subprocess
from pathlib import Path


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


def certify(folder: Path, name: str, authority: Path | None, days: str = "2") -> None:
    """Make NAME-key.pem and NAME-cert.pem, signed by an authority or by itself."""
    folder.mkdir(exist_ok=True)
    key, cert = str(folder / f"{name}-key.pem"), str(folder / f"{name}-cert.pem")
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    words = ["req", "-new", "-key", key, "-subj", f"/CN={name}"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1"]
    if authority is None:
        openssl(*words, "-x509", "-out", cert, "-days", days)
        return
    asked = str(folder / f"{name}.csr")
    openssl(*words, "-out", asked)
    signed_by = ["-CA", str(authority / "ca-cert.pem"), "-CAkey", str(authority / "ca-key.pem")]
    more = ["-CAcreateserial", "-copy_extensions", "copy", "-days", days]
    openssl("x509", "-req", "-in", asked, *signed_by, *more, "-out", cert)
    (folder / "ca-cert.pem").write_bytes((authority / "ca-cert.pem").read_bytes())
