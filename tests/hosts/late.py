"""A write that is stuck in the kernel until long after its VDI is another host's.

    python -m hosts.late FOLDER

No lease can prevent that one lands in the end. So whoever takes a VDI over that was not given
up writes to no block that the old holder could have been writing to.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from hosts.client import FLUSH, WRITE, Client, Request
from hosts.fleet import Fleet, Tap
from hosts.rounds import end_with_parent
from hosts.story import BLOCKS, Story
from hosts.truth import BLOCK, Image, contents

from core import mkfs

LEASE = 4.0
STUCK = 24.0
"""Seconds: longer than it takes until the VDI is another's, and that one has written."""
_BLOCK = 5


def stuck_write(story: Story) -> None:
    """Play it.

    Raises:
        AssertionError: the late write replaced what the new holder wrote.
    """
    fleet = story.fleet
    fleet.start()
    old, new = fleet.taps.values()
    said = fleet.run(old.host, "vdi", "create", "web", "--size", str(BLOCKS * BLOCK))
    assert said.status == 0, said
    image = Image(1, "web", [0] * BLOCKS)
    story.add(image)
    client = old.take("web")
    write(image, client)
    tracer = delayed(old.pid)
    try:
        (value,) = image.sending([_BLOCK])
        client.send([Request(WRITE, _BLOCK * BLOCK, data=contents(value, _BLOCK))])
        old.host.cut(silently=True)
        began = time.monotonic()
        successor = new.take("web")
        story.judge(image, successor)
        write(image, successor)
        successor.close()
        assert time.monotonic() - began < STUCK - 1, "it took too long to show anything"
        story.note("the new holder has written; the old write is on its way")
        time.sleep(began + STUCK + 1 - time.monotonic())
    finally:
        tracer.send_signal(signal.SIGINT)
        _, log = tracer.communicate(timeout=90)
    assert "INJECTED" in log or "DELAYED" in log, f"no write was stuck: {log}"
    successor = new.take("web")
    story.judge(image, successor)
    successor.close()
    client.close()
    old.host.join()
    fleet.wait_for(lambda: writes_again(old), "the old holder to begin again")
    story.verify()
    fleet.stop()


def write(image: Image, client: Client) -> None:
    """Write to the one block twice, the second time in place, and make that durable."""
    for _ in range(2):
        (value,) = image.sending([_BLOCK])
        request = Request(WRITE, _BLOCK * BLOCK, flags=1, data=contents(value, _BLOCK))
        assert client.ask(request) == 0
        image.acknowledged([_BLOCK], durable=True)


def writes_again(tap: Tap) -> bool:
    """Whether a client can open the VDI and make it durable."""
    client = tap.take("web")
    try:
        return client.ask(Request(FLUSH)) == 0
    except ConnectionError:
        return False
    finally:
        client.close()


def delayed(pid: int) -> subprocess.Popen[str]:
    """Have the next write that a process submits stay in its system call for a while."""
    inject = f"inject=pwritev,pwritev2,pwrite64:delay_enter={STUCK * 1e6:.0f}:when=1"
    tracer = subprocess.Popen(
        ["strace", "-f", "-e", "trace=pwritev,pwritev2,pwrite64", "-e", inject, "-p", str(pid)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    return tracer


def main() -> int:
    """Play it in a folder; print the logs if it fails."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    fleet = Fleet(Path(sys.argv[1]), ("plxa", "plxb"), LEASE)
    mkfs.create(str(fleet.store), 4 << 20, 8)
    story = Story(fleet, 0)
    return story.tell(stuck_write)


if __name__ == "__main__":
    sys.exit(main())
