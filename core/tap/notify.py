"""What the tap tells systemd, and takes from it: as the lock master does."""

from __future__ import annotations

from core.notify import inherited_sockets, notify

__all__ = ["inherited_sockets", "notify"]
