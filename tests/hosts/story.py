"""What is in the store, as far as those outside were told, and how that is compared."""

from __future__ import annotations

import random
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hosts.client import Client
from hosts.fleet import Fleet, Tap
from hosts.truth import Image, Snapshot, values_of, wrong
from hosts.writers import Writer

from core.check import check
from core.session import Session

BLOCKS = 512
_MOST_LEAKED = 0.01


class Found(NamedTuple):
    """A VDI in the store: its id and the labels of its snapshots."""

    id: int
    labels: set[str]


class Story:
    """All VDIs and snapshots that there should be.

    Args:
        fleet: the hosts.
        seed: of all that is random.

    Attributes:
        notes: what has been done, for a failure.
        images: VDIs.
        snapshots: of VDIs that exist.
        in_doubt: until when locks of what was killed may be held, on the monotonic clock.
    """

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.rng = random.Random(seed)
        self.notes: list[str] = []
        self.images: list[Image] = []
        self.snapshots: list[Snapshot] = []
        self.in_doubt = 0.0
        self._numbers = 0
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Remember what is done."""
        self.notes.append(f"{time.monotonic() - self._began:7.2f} s  {text}")
        print(self.notes[-1], flush=True)

    def tell(self, play: Callable[[Story], None]) -> int:
        """Play something; on failure print the logs, why, and how it began; return the status."""
        try:
            play(self)
        except BaseException:
            print(self.fleet.tails(), traceback.format_exc(), *self.notes[:1], sep="\n", flush=True)
            return 1
        return 0

    def number(self) -> int:
        """A number that nothing had before."""
        self._numbers += 1
        return self._numbers

    def tap(self) -> Tap:
        """Any tap."""
        return self.rng.choice(list(self.fleet.taps.values()))

    def add(self, image: Image) -> None:
        """Note that a VDI exists."""
        image.id = self.there()[image.name].id
        self.images.append(image)

    def remove(self, image: Image) -> None:
        """Note that a VDI is gone, with its snapshots."""
        self.images.remove(image)
        self.snapshots = [one for one in self.snapshots if one.image is not image]

    def snapshots_of(self, image: Image) -> list[Snapshot]:
        """What is known of a VDI's snapshots."""
        return [one for one in self.snapshots if one.image is image]

    # -- what is really there ----------------------------------------------------------

    def there(self) -> dict[str, Found]:
        """All VDIs by name, from the store itself."""
        with Session.open(str(self.fleet.store), "read", cache="none") as session:
            return {
                record.name: Found(record.id, {one.label for one in session.snapshots(record)})
                for record in session.registry.vdis()
            }

    def verify(self) -> None:
        """Compare all there is with all there should be; from then on it is known exactly."""
        should = {
            image.name: Found(image.id, {one.label for one in self.snapshots_of(image)})
            for image in self.images
        }
        assert self.there() == should
        for image in self.images:
            client = self.tap().take(str(image.id))
            try:
                self.judge(image, client)
            finally:
                client.close()
        for snapshot in self.snapshots:
            tap = self.tap()
            name = f"{snapshot.image.id}@{snapshot.label}"
            client = tap.take(name)
            try:
                found = values_of(client.read_all())
            finally:
                client.close()
            bad = wrong(found, snapshot.possible())
            assert not bad, f"{name} as seen from {tap.host.name}: {bad}"
            snapshot.values = found

    def judge(self, image: Image, client: Client) -> list[int]:
        """Compare a VDI that nobody writes to with what it may hold; return what it does."""
        found = values_of(client.read_all())
        bad = wrong(found, image.possible())
        assert not bad, f"{image.name}: {bad}"
        image.settle(found)
        return found

    def sound(self, leaks: bool = True) -> None:
        """Look at the store as a power cut now would leave it; clients may be writing.

        Args:
            leaks: whether there may be blocks that nothing refers to.
        """
        copy, possible = self.fleet.copy(self._possible)
        report = check(str(copy), "read")
        assert not report.damaged, [one for one in report.findings if one.severity == "damage"]
        lost = report.unreachable / max(report.allocated, 1)
        assert leaks or lost <= _MOST_LEAKED, f"{lost:.1%} of the blocks belong to nobody"
        with Session.open(str(copy), "read") as session:
            for record in session.registry.vdis():
                found = session.live_image(record)
                bad = possible[record.id] and wrong(
                    values_of(found.read(0, found.size)), possible[record.id]
                )
                assert not bad, f"VDI {record.id} after a power cut: {bad}"

    def _possible(self) -> dict[int, list[tuple[int, ...]]]:
        return defaultdict(list, {image.id: image.possible() for image in self.images})


class Scene:
    """The writers of one round: who writes where, and what they may suffer.

    Args:
        story: what they change.
    """

    def __init__(self, story: Story) -> None:
        self.story = story
        self.writers: dict[Image, Writer] = {}
        self.places: dict[Image, Tap] = {}
        self._replaced: list[tuple[Writer, list[int]]] = []
        self.disturbed: set[Image] = set()

    def place(self, image: Image, tap: Tap) -> None:
        """Have a client write to a VDI on a host."""
        self._write(image, tap, tap.take(str(image.id)))

    def _write(self, image: Image, tap: Tap, client: Client) -> None:
        self.places[image] = tap
        self.writers[image] = Writer(client, image, self.story.rng.getrandbits(32))

    def on(self, *taps: Tap) -> list[Image]:
        """The VDIs that are written to on some hosts."""
        return [image for image, tap in self.places.items() if tap in taps]

    def take_over(self, images: Sequence[Image], taps: Sequence[Tap]) -> None:
        """Open VDIs on other hosts, as soon as they may, and write to them there."""
        for image in images:
            tap = self.story.rng.choice(taps)
            client = tap.take(str(image.id))
            old = self.writers.pop(image)
            old.replaced()
            self.story.note(f"{tap.host.name} took {image.name} over")
            self._replaced.append((old, self.story.judge(image, client)))
            self._write(image, tap, client)
            self.disturbed.discard(image)

    def recover(self, images: Sequence[Image]) -> None:
        """Have clients come back when they are thrown out, until all of them can write again."""

        def all_write() -> bool:
            for image in images:
                writer = self.writers[image]
                if writer.trouble and writer.ended():
                    image.crashed()
                    self.place(image, self.places[image])
            time.sleep(0.3)
            return all(self.writers[i].answers and not self.writers[i].trouble for i in images)

        self.story.fleet.wait_for(all_write, "answers to writes")
        self.disturbed.difference_update(images)

    def busy(self, seconds: float) -> None:
        """Let some time pass, and see that everyone who can writes meanwhile."""
        before = {image: writer.answers for image, writer in self._calm()}
        time.sleep(seconds)

        def answered() -> bool:
            self.unharmed()
            return all(writer.answers > before.get(image, 0) for image, writer in self._calm())

        self.story.fleet.wait_for(answered, "answers to writes")
        self.story.sound()

    def _calm(self) -> list[tuple[Image, Writer]]:
        return [(i, w) for i, w in self.writers.items() if i not in self.disturbed]

    def unharmed(self) -> None:
        """See that nobody suffered who should not."""
        for image, writer in self._calm():
            where = self.places[image].host.name
            assert not writer.trouble, f"client of {image.name} at {where}: {writer.trouble}"

    def silenced(self) -> None:
        """See that everyone who was replaced has been thrown out, and was told no lie."""
        for writer, found in self._replaced:
            name = writer.image.name
            assert writer.ended(), f"a client of {name} on its old host still waits"
            assert not writer.lies(found), f"{name} on its old host: {writer.lies(found)}"

    def end(self) -> None:
        """Have all clients finish and leave."""
        for writer in self.writers.values():
            writer.stop()
        for image, writer in self.writers.items():
            assert writer.ended(), f"the client of {image.name} still waits for an answer"
        self.unharmed()
        self.silenced()
