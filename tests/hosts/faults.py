"""What goes wrong: each function breaks something under a scene's writers and mends it again.

Who may suffer is said before anything breaks (`Scene.disturbed`); for all others any error or
hang-up is a failure of the test.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from hosts.client import Client, Refused
from hosts.deeds import Deed
from hosts.fleet import Tap
from hosts.story import BLOCKS, Scene
from hosts.truth import Image

Fault = Callable[[Scene, list[Deed]], None]


# -- what clients do not notice -----------------------------------------------------------


def nothing(scene: Scene, _: list[Deed]) -> None:
    """No fault at all."""
    scene.busy(0.8)


def short_cut(scene: Scene, _: list[Deed]) -> None:
    """Hosts are cut off for less than their lease."""
    for host in scene.story.rng.sample(scene.story.fleet.hosts, 2):
        silently = scene.story.rng.random() < 0.5
        scene.story.note(f"{host.name} is cut off for a moment")
        host.cut(silently)
        time.sleep(scene.story.rng.uniform(0.1, 0.2) * scene.story.fleet.lease)
        host.join()
        scene.busy(0.3)


def short_stop(scene: Scene, _: list[Deed]) -> None:
    """A tap is suspended for less than its lease."""
    tap = scene.story.tap()
    scene.story.note(f"the tap of {tap.host.name} is suspended for a moment")
    tap.suspend()
    time.sleep(scene.story.rng.uniform(0.1, 0.4) * scene.story.fleet.lease)
    tap.go_on()
    scene.busy(0.3)


def master_back(scene: Scene, _: list[Deed]) -> None:
    """The lock master is killed and comes back within the lease, under load and idle."""
    fleet = scene.story.fleet
    for _ in range(2):
        scene.busy(0.3)
        began = time.monotonic()
        fleet.kill_master()
        fleet.start_master()
        fleet.wait_for(fleet.connected, "the taps to find the lock master")
        away = time.monotonic() - began
        scene.story.note(f"the lock master was away for {away:.2f} s")
        if away > fleet.lease / 4:  # this machine is too busy to promise anything
            scene.disturbed.update(scene.writers)
    scene.busy(fleet.lease)


def killed_deeds(scene: Scene, deeds: list[Deed]) -> None:
    """Commands are killed in the middle."""
    for deed in deeds:
        time.sleep(scene.story.rng.uniform(0.1, 0.6))
        scene.story.note(f"kill {deed}")
        deed.kill()
    scene.busy(0.4)


def race(scene: Scene, _: list[Deed]) -> None:
    """All hosts want one VDI at once: one gets it, the others are told who."""
    story = scene.story
    number = story.number()
    image = Image(number, f"race{number}", [0] * BLOCKS)
    host = story.rng.choice(story.fleet.hosts)
    size = str(BLOCKS * 4096)
    said = story.fleet.run(host, "vdi", "create", image.name, "--size", size)
    assert said.status == 0, said
    story.add(image)
    start = threading.Barrier(len(story.fleet.taps))
    won: dict[str, Client] = {}
    told: dict[str, str] = {}

    def run(tap: Tap) -> None:
        start.wait()
        try:
            won[tap.host.name] = tap.open(str(image.id))
        except Refused as error:
            told[tap.host.name] = str(error)

    racers = [threading.Thread(target=run, args=(tap,)) for tap in story.fleet.taps.values()]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    for client in won.values():
        client.close()
    assert len(won) == 1, f"{sorted(won)} have VDI {image.id} at the same time; refused: {told}"
    assert len(told) == len(racers) - 1
    (winner,) = won
    assert all(winner in text for text in told.values()), f"{winner} won, and they said {told}"
    story.note(f"{winner} won the race; the others: {next(iter(told.values()))}")
    scene.busy(0.2)


def handover(scene: Scene, _: list[Deed]) -> None:
    """VDIs move to other hosts while they are written to."""
    story = scene.story
    for image in story.rng.sample(list(scene.writers), min(2, len(scene.writers))):
        old = scene.places[image]
        new = story.rng.choice([tap for tap in story.fleet.taps.values() if tap is not old])
        story.note(f"hand {image.name} over from {old.host.name} to {new.host.name}")
        scene.disturbed.add(image)
        keeper = story.rng.choice(story.fleet.hosts)
        said = story.fleet.run(keeper, "lock", "handover", str(image.id), new.host.name)
        assert said.status == 0, said
        writer = scene.writers[image]
        assert writer.ended(), "the client was not thrown out by the hand-over"
        image.all_durable()  # what was answered was committed first
        scene.take_over([image], [new])
        scene.busy(0.2)


# -- what costs a host its VDIs -----------------------------------------------------------


def lost(scene: Scene, ways: list[str]) -> None:
    """Some hosts fail, each in its own way, and the others take their VDIs over.

    Args:
        scene: who writes.
        ways: `kill`, `stop` or `cut` for each host that fails; one at least is left.
    """
    story = scene.story
    taps = story.rng.sample(list(story.fleet.taps.values()), len(ways))
    left = [tap for tap in story.fleet.taps.values() if tap not in taps]
    images = scene.on(*taps)
    scene.disturbed.update(images)
    for tap, way in zip(taps, ways, strict=True):
        story.note(f"{way} {tap.host.name}")
        if way == "kill":
            tap.end(signal.SIGKILL)
        elif way == "stop":
            tap.suspend()
        else:
            tap.host.cut(silently=story.rng.random() < 0.5)
    scene.take_over(images, left)
    scene.busy(story.rng.uniform(0.2, 0.6))
    for tap, way in zip(taps, ways, strict=True):
        story.note(f"mend {tap.host.name}")
        if way == "kill":
            tap.start()
        elif way == "stop":
            tap.go_on()
        else:
            tap.host.join()
    scene.busy(0.5)
    scene.silenced()


def one_lost(scene: Scene, _: list[Deed]) -> None:
    """One host fails."""
    lost(scene, [scene.story.rng.choice(("kill", "stop", "cut"))])


def two_lost(scene: Scene, _: list[Deed]) -> None:
    """Two of the hosts fail at once."""
    lost(scene, [scene.story.rng.choice(("kill", "stop", "cut")) for _ in range(2)])


def killed(scene: Scene, _: list[Deed]) -> None:
    """A tap is killed in the middle of writes."""
    lost(scene, ["kill"])


def stopped(scene: Scene, _: list[Deed]) -> None:
    """A tap is suspended for longer than its lease."""
    lost(scene, ["stop"])


def cut_off(scene: Scene, _: list[Deed]) -> None:
    """A host is cut off for longer than its lease."""
    lost(scene, ["cut"])


def master_away(scene: Scene, _: list[Deed]) -> None:
    """The lock master is away for longer than the lease: all lose what they hold."""
    fleet = scene.story.fleet
    scene.disturbed.update(scene.writers)
    scene.story.note("the lock master is away for long")
    fleet.kill_master()
    time.sleep(scene.story.rng.uniform(1.0, 1.5) * fleet.lease)
    fleet.start_master()
    scene.recover(list(scene.writers))
    scene.busy(0.2)


CALM: tuple[Fault, ...] = (
    nothing,
    short_cut,
    short_stop,
    master_back,
    killed_deeds,
    race,
    handover,
    nothing,
    killed_deeds,
    short_cut,
)
HARD: tuple[Fault, ...] = (killed, stopped, cut_off, one_lost, two_lost, master_away)
