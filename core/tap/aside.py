"""Questions to a lock master: asked on threads of their own, so that the loop goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from threading import Lock, Thread
from typing import Final, TypeVar

from core.errors import ParallaxError, unexpected

_Answer = TypeVar("_Answer")

_PATIENCE: Final = 2.0
"""Seconds that threads have to end when the tap stops; those that wait longer are left."""


class Aside:
    """Has questions answered that may take a while.

    Args:
        wake: callable from any thread; makes the loop call `poll` soon.

    Attributes:
        rung: there are answers.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """Ask nothing yet."""
        self._wake = wake
        self._mutex = Lock()
        self._answers: list[Callable[[], None]] = []
        self._unwanted: list[Callable[[], None]] = []
        self._threads: list[Thread] = []
        self._closed = False
        self.rung = False

    def ask(
        self,
        question: Callable[[], _Answer],
        told: Callable[[_Answer | ParallaxError], None],
        unwanted: Callable[[_Answer], None] = lambda _answer: None,
    ) -> None:
        """Ask something.

        Args:
            question: called on another thread; it must touch nothing of the loop's.
            told: given its answer, or what it raised, in the loop thread.
            unwanted: given an answer that came after `close`, on any thread.
        """
        thread = Thread(
            target=self._run, args=(question, told, unwanted), name="tap-aside", daemon=True
        )
        self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        thread.start()

    def _run(
        self,
        question: Callable[[], _Answer],
        told: Callable[[_Answer | ParallaxError], None],
        unwanted: Callable[[_Answer], None],
    ) -> None:
        outcome: _Answer | ParallaxError
        try:
            outcome = question()
        except ParallaxError as error:
            outcome = error
        except Exception as error:
            outcome = unexpected(error, "a question to the lock master")
        drop: Callable[[], None] = lambda: None  # noqa: E731
        if not isinstance(outcome, ParallaxError):
            drop = partial(unwanted, outcome)
        with self._mutex:
            if not self._closed:
                self._answers.append(partial(told, outcome))
                self._unwanted.append(drop)
                self.rung = True
                self._wake()
                return
        drop()

    def poll(self) -> None:
        """Tell what was answered."""
        with self._mutex:
            self.rung = False
            answers, self._answers = self._answers, []
            self._unwanted.clear()
        for tell in answers:
            try:
                tell()
            except Exception as error:
                unexpected(error, "an answer")

    def close(self) -> None:
        """Want no answer any more."""
        with self._mutex:
            self._closed = True
            unwanted, self._unwanted = self._unwanted, []
            self._answers.clear()
        for drop in unwanted:
            drop()
        until = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))
