"""What a user did wrong, or what is missing on this machine: one line, no traceback."""

from __future__ import annotations


class Failure(Exception):
    """The text says what, why, and what to do."""
