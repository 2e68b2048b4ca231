"""Clients that write without a pause and note what they are told."""

from __future__ import annotations

import random
import threading
import time

from hosts.client import FLUSH, FUA, TRIM, WRITE, Client, Request
from hosts.truth import BLOCK, Image, contents, generation_of, said

_MOST = 8
_PACE = 0.004
_INTRUDER = 0xBAD << 40
"""What a writer sends that was replaced: nothing may ever hold it."""


class Writer(threading.Thread):
    """A client that writes to one VDI until it is stopped or something goes wrong.

    Several writes are under way at once, never two to the same block.

    Args:
        client: its connection.
        image: what it notes in.
        seed: of what it writes.

    Attributes:
        answers: how many writes were answered.
        trouble: why it ended, if by itself.
        late: what it was told to be durable, after another host had its VDI.
    """

    def __init__(self, client: Client, image: Image, seed: int) -> None:
        super().__init__(daemon=True)
        self.image = image
        self.answers = 0
        self.trouble = ""
        self.late: list[dict[int, int]] = []
        self._client = client
        self._rng = random.Random(seed)
        self._enough = threading.Event()
        self._replaced = threading.Event()
        self._guard = threading.Lock()
        self.start()

    def run(self) -> None:
        """Write."""
        try:
            while not self._enough.is_set():
                self._batch()
                time.sleep(_PACE)
        except (ConnectionError, TimeoutError) as error:
            self.trouble = self.trouble or f"{type(error).__name__}: {error}"
        finally:
            self._client.close()

    def _batch(self) -> None:
        """Send some writes, and sometimes a flush among them; wait for all answers."""
        rng = self._rng
        todo: dict[int, tuple[str, list[int], dict[int, int]]] = {}
        requests: list[Request] = []
        taken: set[int] = set()
        with self._guard:
            for _ in range(rng.randint(1, _MOST)):
                kind = rng.choices(("write", "flush", "trim", "fua"), (80, 8, 4, 8))[0]
                if kind == "flush":
                    todo[len(requests)] = (kind, [], self.image.flushing())
                    requests.append(Request(FLUSH))
                    continue
                first = rng.randrange(self.image.blocks)
                last = min(first + rng.choice((1, 1, 1, 2, 4)), self.image.blocks)
                blocks = list(range(first, last))
                if taken & set(blocks):
                    continue
                taken.update(blocks)
                if not self._replaced.is_set():
                    values = self.image.sending(blocks, kind == "trim")
                else:
                    values = [_INTRUDER] * len(blocks)
                cover = {
                    b: generation_of(v, self.image) for b, v in zip(blocks, values, strict=True)
                }
                todo[len(requests)] = (kind, blocks, cover if kind == "fua" else {})
                requests.append(_request(kind, blocks, values))
        first_cookie = self._client.send(requests)
        for _ in requests:
            cookie, error = self._client.answer()
            kind, blocks, cover = todo[cookie - first_cookie]
            if error:
                self.trouble = f"error {error} to a {kind}"
                raise ConnectionAbortedError(self.trouble)
            self._answered(kind, blocks, cover)

    def _answered(self, kind: str, blocks: list[int], cover: dict[int, int]) -> None:
        with self._guard:
            if self._replaced.is_set():
                self.late.append(cover)  # of a write without FUA nothing is promised
            elif kind == "flush":
                self.image.flushed(cover)
            else:
                self.answers += 1
                self.image.acknowledged(blocks, durable=kind == "fua")

    def replaced(self) -> None:
        """Note that the VDI is another's: what is answered from now on was done before, if ever."""
        with self._guard:
            self._replaced.set()

    def lies(self, found: list[int]) -> list[str]:
        """What it was told too late to be durable that was not in what the other one found."""
        return [
            f"block {number} had {said(found[number])}"
            for cover in self.late
            for number, generation in cover.items()
            if found[number] and generation_of(found[number], self.image) < generation
        ]

    def stop(self) -> None:
        """Have it end after the answers to what it has sent."""
        self._enough.set()

    def ended(self, patience: float = 60.0) -> bool:
        """Stop it and wait; False when it still waits for an answer."""
        self._enough.set()
        self.join(patience)
        return not self.is_alive()


def _request(kind: str, blocks: list[int], values: list[int]) -> Request:
    at = blocks[0] * BLOCK
    if kind == "trim":
        return Request(TRIM, at, len(blocks) * BLOCK)
    data = b"".join(contents(v, b) for v, b in zip(values, blocks, strict=True))
    return Request(WRITE, at, flags=FUA if kind == "fua" else 0, data=data)
