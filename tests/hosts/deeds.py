"""What administrators do while clients write: commands on any host, and what follows from them."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

from hosts.fleet import IN_USE, IO_FAILED, Said
from hosts.story import BLOCKS, Story
from hosts.truth import Image, Snapshot, contents
from hosts.world import Host

_MOST_IMAGES = 8
_MOST_SNAPSHOTS = 3


class Deed(threading.Thread):
    """A command, or a few in a row, on some host.

    Args:
        story: what it changes.
        steps: the words of each command.
        settle: told whether all was done, once it is known; None when nobody knows.

    Attributes:
        host: where.
    """

    def __init__(
        self,
        story: Story,
        steps: list[tuple[str, ...]],
        settle: Callable[[bool | None], None] = lambda _: None,
    ) -> None:
        super().__init__(daemon=True)
        self.host: Host = story.rng.choice(story.fleet.hosts)
        self._story = story
        self._steps = steps
        self._settle = settle
        self._process: subprocess.Popen[str] | None = None
        self._killed = False
        self._in_doubt = time.monotonic() < story.in_doubt
        self._failure: BaseException | None = None
        self.said: list[Said] = []

    def __str__(self) -> str:
        return f"{self.host.name}: {'; '.join(' '.join(step) for step in self._steps)}"

    def run(self) -> None:
        """Run the commands up to the first that fails."""
        try:
            for step in self._steps:
                if self._killed:
                    return
                self._process = self._story.fleet.begin(self.host, *step)
                self.said.append(self._story.fleet.finish(self._process, step))
                self._story.note(f"{self.host.name}: {step[-1]}: {self.said[-1].status}")
                if self.said[-1].status:
                    return
        except BaseException as error:
            self._failure = error

    def kill(self) -> None:
        """End it without a warning."""
        self._killed = True
        # its locks are free after 1.75 leases, by the clock of a lock master that may be busy
        self._story.in_doubt = time.monotonic() + 2.5 * self._story.fleet.lease
        if self._process is not None:
            self._process.kill()

    def settle(self, may_fail: bool) -> None:
        """Wait for its end, and note in the story what came of it.

        Args:
            may_fail: whether locks or the lock master may have been out of its reach.
        """
        self.join()
        if self._failure is not None:
            raise self._failure
        last = self.said[-1] if self.said else None
        done = len(self.said) == len(self._steps) and last is not None and not last.status
        if not done and not self._killed:
            allowed = [IN_USE] * self._in_doubt + [IN_USE, IO_FAILED] * may_fail
            assert last is not None
            assert last.status in allowed, last
            self._story.note(f"{self.host.name}: {last.command}: {last.error.strip()}")
        self._settle(True if done else None)


def snapshot(story: Story, image: Image) -> Deed | None:
    """Take a snapshot, of a VDI that may be written to on any host."""
    if len(story.snapshots_of(image)) >= _MOST_SNAPSHOTS:
        return None
    label = f"s{story.number()}"
    new = Snapshot(image, label)

    def settle(done: bool | None) -> None:
        new.taken()
        if done or label in story.there()[image.name].labels:
            story.snapshots.append(new)

    return Deed(story, [("snap", "create", str(image.id), "--label", label)], settle)


def clone(story: Story) -> Deed | None:
    """Make a clone of a snapshot that was seen."""
    seen = [one for one in story.snapshots if one.values is not None]
    if len(story.images) >= _MOST_IMAGES or not seen:
        return None
    origin = story.rng.choice(seen)
    number = story.number()
    name = f"clone{number}"

    def settle(done: bool | None) -> None:
        if done or name in story.there():
            assert origin.values is not None
            story.add(Image(number, name, origin.values))

    source = f"{origin.image.id}@{origin.label}"
    return Deed(story, [("vdi", "create", name, "--from", source)], settle)


def fill(story: Story) -> Deed | None:
    """Make a VDI and fill it from an image file."""
    if len(story.images) >= _MOST_IMAGES:
        return None
    number = story.number()
    name = f"fill{number}"
    image = Image(number, name, [0] * BLOCKS)
    source = story.fleet.folder / f"{name}.img"
    values = image.sending(range(BLOCKS))
    source.write_bytes(b"".join(contents(value, at) for at, value in enumerate(values)))

    def settle(done: bool | None) -> None:
        source.unlink()
        if done:
            image.settle(values)
        if done or name in story.there():
            story.add(image)

    size = str(BLOCKS * 4096)
    create = ("vdi", "create", name, "--size", size)
    return Deed(story, [create, ("-y", "vdi", "fill", name, str(source))], settle)


def rename(story: Story, image: Image) -> Deed:
    """Give a VDI another name, wherever it is open."""
    old = image.name
    new = f"vdi{image.number}_{story.number()}"

    def settle(done: bool | None) -> None:
        there = story.there()
        assert (old in there) != (new in there)
        assert new in there or not done
        image.name = new if new in there else old

    return Deed(story, [("vdi", "rename", str(image.id), new)], settle)


def delete(story: Story, busy: set[Image]) -> Deed | None:
    """Delete a VDI that nobody has open and that has no snapshots."""
    idle = [i for i in story.images if i not in busy and not story.snapshots_of(i)]
    if len(story.images) <= _MOST_IMAGES // 2 or not idle:
        return None
    image = story.rng.choice(idle)

    def settle(done: bool | None) -> None:
        if done or image.name not in story.there():
            story.remove(image)

    return Deed(story, [("-y", "vdi", "delete", str(image.id))], settle)


def forget(story: Story) -> Deed | None:
    """Delete a snapshot, of a VDI that may be open anywhere."""
    crowded = [
        one for one in story.snapshots if len(story.snapshots_of(one.image)) == _MOST_SNAPSHOTS
    ]
    if not crowded:
        return None
    gone = story.rng.choice(crowded)
    image = gone.image

    def settle(done: bool | None) -> None:
        if done or gone.label not in story.there()[image.name].labels:
            story.snapshots.remove(gone)

    return Deed(story, [("-y", "snap", "delete", f"{image.id}@{gone.label}")], settle)


def collect(story: Story) -> Deed:
    """Collect what nothing refers to."""
    return Deed(story, [("-y", "store", "gc")])


def some(story: Story, busy: set[Image], most: int) -> list[Deed]:
    """A few deeds that do not get in each other's way: no two are about the same VDI."""
    rng = story.rng
    chosen: list[Deed] = []
    written = rng.sample(sorted(busy, key=lambda image: image.number), min(2, len(busy)))
    makers: list[Callable[[], Deed | None]] = [
        lambda: snapshot(story, written[0]) if written else None,
        lambda: rename(story, written[-1]) if len(written) > 1 else None,
        lambda: fill(story),
        lambda: collect(story),
        lambda: rng.choice((clone(story), delete(story, busy), forget(story))),
    ]
    for maker in rng.sample(makers, len(makers)):
        if len(chosen) < most and (deed := maker()) is not None:
            chosen.append(deed)
    return chosen
