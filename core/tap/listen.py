"""Where the tap listens: by the same rules as the lock master."""

from __future__ import annotations

from core.listen import listen_tcp, listen_unix, refuse_public_sockets, tls_context, tune

__all__ = ["listen_tcp", "listen_unix", "refuse_public_sockets", "tls_context", "tune"]
