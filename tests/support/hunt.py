"""Running lists of operations until a crash state is wrong, and telling how to see it again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from support.bench import Op
from support.crash import CrashBench, Torn
from support.reader import Reader, Violation
from support.workload import World, shorten

from core.errors import ParallaxError
from core.format import Superblock

FORGET_EVERY = 100
FAILURES = (Torn, Violation, AssertionError, ParallaxError)


@dataclass
class Hunt:
    """Looks at crash states of one world under many lists of operations.

    Args:
        world: what each list starts from.
        limit: most states between two flushes.
        engine_every: let the engine itself open every so many-th state.

    Attributes:
        states: crash states looked at.
        opened: of those, how many the engine opened, checked, and wrote to.
        refused: operations that found the store full.
    """

    world: World
    limit: int = 1 << 30
    engine_every: int = 97
    states: int = 0
    opened: int = 0
    refused: int = 0
    runs: int = 0

    def __post_init__(self) -> None:
        self._reader = self._new_reader()

    def _new_reader(self) -> Reader:
        superblock = Superblock.unpack(self.world[0][0])
        assert superblock is not None
        return Reader(superblock)

    def run(self, operations: Sequence[Op], seed: int = 0, watch_from: int = 0) -> None:
        """Run a list, then commit everything and close.

        Args:
            operations: what to do.
            seed: of the choice of crash states.
            watch_from: the first operation whose crash states are of interest, where
                those of the ones before are looked at elsewhere.

        Raises:
            FAILURES: something was wrong.
        """
        self.runs += 1
        if self.runs % FORGET_EVERY == 0:
            self._reader = self._new_reader()  # the old one remembers too much
        bench = CrashBench(*self.world, seed, self.limit, self.engine_every, self._reader)
        bench.states = self.states
        try:
            bench.watching = False
            bench.run(operations[:watch_from])
            bench.watching = True
            bench.run([*operations[watch_from:], ("flush_all",), ("close",)])
        finally:
            bench.abandon()
            self.opened += bench.opened
            self.refused += bench.refused
            self.states = bench.states

    def all_of(self, lists: Iterable[Sequence[Op]], last_only: bool = False) -> None:
        """Run many lists; shorten the first that goes wrong and show it.

        Raises:
            AssertionError: with the operations to repeat it with.
        """
        for seed, operations in enumerate(lists):
            try:
                self.run(operations, seed, len(operations) - 1 if last_only else 0)
            except FAILURES as error:
                raise AssertionError(self._shortest(operations, seed, error)) from error

    def _shortest(self, operations: Sequence[Op], seed: int, error: Exception) -> str:
        def fails(less: Sequence[Op]) -> bool:
            nonlocal error
            try:
                Hunt(self.world, self.limit, self.engine_every).run(less, seed)
            except FAILURES as found:
                error = found
                return True
            return False

        shortest = list(shorten(operations, fails))
        return f"{type(error).__name__}: {error}\n  seed {seed}, operations {shortest}"
