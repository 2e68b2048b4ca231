"""Rounds of faults on several hosts with one store; after each, nothing may be lost.

    python -m hosts.rounds FOLDER --menu calm --rounds 20 --seed 7

It has to be the first process of a world of its own (`hosts.world.inside`).
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

from hosts import deeds, faults
from hosts.fleet import Fleet
from hosts.story import BLOCKS, Scene, Story
from hosts.truth import Image

from core import mkfs

HOSTS = ("plxa", "plxb", "plxc")
LEASES = {"calm": 6.0, "hard": 2.0}
_MENUS = {"calm": faults.CALM, "hard": faults.HARD}
_EXTENT = 4 << 20
_EXTENTS = 48
_FIRST_VDIS = 4
_COLLECT_EVERY = 6


def play(story: Story, menu: str, rounds: int) -> None:
    """Play rounds; each of the menu once before any of it twice.

    Raises:
        AssertionError: something was lost, or someone suffered who should not.
    """
    fleet = story.fleet
    fleet.start()
    for _ in range(_FIRST_VDIS):
        number = story.number()
        image = Image(number, f"vdi{number}", [0] * BLOCKS)
        size = str(BLOCKS * 4096)
        said = fleet.run(fleet.hosts[0], "vdi", "create", image.name, "--size", size)
        assert said.status == 0, said
        story.add(image)
    cards: list[faults.Fault] = []
    for turn in range(1, rounds + 1):
        cards = cards or story.rng.sample(_MENUS[menu], len(_MENUS[menu]))
        one_round(story, turn, cards.pop(), may_fail=menu == "hard")
        if turn % _COLLECT_EVERY == 0 or turn == rounds:
            collected(story)
    fleet.stop()


def one_round(story: Story, turn: int, fault: faults.Fault, may_fail: bool) -> None:
    """Play one round."""
    story.note(f"-- round {turn}: {fault.__name__}")
    scene = Scene(story)
    taps = list(story.fleet.taps.values())
    images = story.rng.sample(story.images, min(4, len(story.images)))
    for number, image in enumerate(images):
        scene.place(image, taps[number % len(taps)])
    scene.busy(0.1)
    may_fail = may_fail or fault is faults.master_back
    meanwhile = deeds.some(story, set(images), story.rng.randint(1, 2))
    for deed in meanwhile:
        story.note(f"{deed}")
        deed.start()
    fault(scene, meanwhile)
    for deed in meanwhile:
        deed.settle(may_fail)
    scene.end()
    story.sound()
    story.verify()


def collected(story: Story) -> None:
    """Collect, when all is calm: nothing may be left that belongs to nobody."""
    host = story.rng.choice(story.fleet.hosts)
    time.sleep(max(story.in_doubt - time.monotonic(), 0.0))
    said = story.fleet.run(host, "-y", "store", "gc")
    assert said.status == 0, said
    story.note(f"{host.name}: {said.out.strip() or said.error.strip()}")
    story.sound(leaks=False)


def main() -> int:
    """Play what the command line says; print the seed, what was done and all logs on failure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--menu", choices=sorted(_MENUS), required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    chosen = parser.parse_args()
    threading.Thread(target=end_with_parent, daemon=True).start()
    fleet = Fleet(chosen.folder, HOSTS, LEASES[chosen.menu])
    mkfs.create(str(fleet.store), _EXTENT, _EXTENTS)
    story = Story(fleet, chosen.seed)
    story.note(f"menu {chosen.menu}, seed {chosen.seed}")
    return story.tell(partial(play, menu=chosen.menu, rounds=chosen.rounds))


def end_with_parent() -> None:
    """End, and the whole world with this process, when nobody holds its standard input."""
    while os.read(0, 1):
        pass
    os._exit(3)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
