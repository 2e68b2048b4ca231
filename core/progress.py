"""How the engine tells whoever waits for it how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told from time to time how far it is; may raise KeyboardInterrupt to stop it."""

    def __call__(self, done: int, total: int | None, /) -> None:
        """Take what is done and what there is in all, None if nobody knows."""


def silent(done: int, total: int | None, /) -> None:
    """Show no progress."""
