"""A tap without the page cache: every read is fetched by a thread, and still none is old."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from support.stores import noise
from support.tap import (
    CONTENTS,
    MIB,
    TIMEOUT,
    RawClient,
    contents_of,
    tap_in_thread,
    tap_process,
)

from core.device import Buffer
from core.direct import DirectDevice
from core.tap import protocol as p
from core.tap.server import Tap

BLOCK = 4096
_HOT = 3 * BLOCK + 70_000


def device_of(tap: Tap) -> DirectDevice:
    device = tap._session.store.device
    assert isinstance(device, DirectDevice)
    return cast(DirectDevice, device)


def settled(tap: Tap) -> int:
    """Bytes that are still kept near when nothing has been asked for a while."""
    deadline = time.monotonic() + TIMEOUT
    while device_of(tap)._near.size and time.monotonic() < deadline:
        time.sleep(0.01)
    return device_of(tap)._near.size


def test_reads_and_writes_in_flight_against_plain_bytes(store: str) -> None:
    """Rounds of overlapping requests in one packet. A read may be answered late and then see
    writes that were sent after it, but nothing older than those before it.
    """
    rng = random.Random(7)
    model = bytearray(8 * MIB)
    with tap_in_thread(store, "none") as (tap, unix), RawClient(unix) as client:
        client.go("empty")
        for serial in range(60):
            hot = rng.randrange(512) * BLOCK
            states = [bytes(model[hot : hot + _HOT])]
            packet: list[bytes] = []
            reads: dict[int, tuple[int, int, int]] = {}
            for n in range(rng.randrange(1, 24)):
                at = rng.choice([0, 0, 512, BLOCK, 3 * BLOCK])
                length = rng.choice([512, BLOCK, BLOCK, 3000, 70_000])
                if rng.random() < 0.5:
                    packet.append(client.request(p.CMD_READ, hot + at, length))
                    reads[client.cookie] = (at, length, len(states) - 1)
                else:
                    data = noise(length, (serial, n))
                    packet.append(client.request(p.CMD_WRITE, hot + at, data=data))
                    model[hot + at : hot + at + length] = data
                    states.append(bytes(model[hot : hot + _HOT]))
            client.sock.sendall(b"".join(packet))
            versions = np.array([np.frombuffer(state, np.uint8) for state in states])
            for _ in packet:
                _, error, cookie = struct.unpack(">IIQ", client.receive(16))
                assert not error
                if cookie in reads:
                    at, length, sent = reads.pop(cookie)
                    found = np.frombuffer(client.receive(length), np.uint8)
                    assert (versions[sent:, at : at + length] == found).any(axis=0).all()
            assert client.read(hot, _HOT) == model[hot : hot + _HOT]
        assert client.read(0, len(model)) == model
        assert settled(tap) == 0
    assert contents_of(store, "empty") == model


def test_several_clients_never_see_a_block_go_back(store: str) -> None:
    """One writes rising numbers to a few blocks, others read them as fast as they can."""
    blocks = 4
    done = threading.Event()
    failures: list[str] = []
    acknowledged = [0] * blocks

    def reading(unix: str, seed: int) -> None:
        rng = random.Random(seed)
        with RawClient(unix) as client:
            client.go("empty")
            while not done.is_set():
                block = rng.randrange(blocks)
                least = acknowledged[block]
                found = client.read(block * BLOCK, BLOCK)
                number = int.from_bytes(found[:8], "little")
                if number < least or found != number.to_bytes(8, "little") * 512:
                    failures.append(f"block {block}: {number} after {least}")
                    return

    with tap_in_thread(store, "none") as (tap, unix), RawClient(unix) as writer:
        writer.go("empty")
        threads = [threading.Thread(target=reading, args=(unix, seed)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for number in range(1, 400):
            for block in range(blocks):
                assert writer.write(block * BLOCK, number.to_bytes(8, "little") * 512) == 0
                acknowledged[block] = number
        done.set()
        for thread in threads:
            thread.join(TIMEOUT)
        assert settled(tap) == 0
    assert failures == []


def test_a_long_read_of_many_pieces_is_fetched_together(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks lie apart in the store; the loop thread waits for none of them."""
    order = list(range(0, 2 * MIB, BLOCK))
    random.Random(3).shuffle(order)
    data = noise(2 * MIB, "scattered")
    with (
        tap_in_thread(store, "none", commit_interval=3600.0) as (tap, unix),
        RawClient(unix) as client,
    ):
        client.go("empty", structured=True)
        for at in order:
            assert client.write(at, data[at : at + BLOCK]) == 0
        waits: list[int] = []
        fetched: list[int] = []
        device = device_of(tap)
        real_read, real_fetch = device.preadv, device.fetch

        def preadv(offset: int, buffers: Sequence[Buffer], wait: bool = True) -> None:
            if wait:
                waits.append(offset)
            real_read(offset, buffers, wait)

        def fetch(offset: int, length: int) -> object:
            fetched.append(length)
            return real_fetch(offset, length)

        monkeypatch.setattr(device, "preadv", preadv)
        monkeypatch.setattr(device, "fetch", fetch)
        assert client.read(0, 2 * MIB) == data
        assert client.read(5000, MIB) == data[5000 : 5000 + MIB]
        assert waits == []
        assert 3 * MIB <= sum(fetched) <= 3 * MIB + 2 * BLOCK  # every block once
        assert settled(tap) == 0


def test_caching_a_long_range_keeps_little_near(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes a MiB at a time, and each goes before the next comes."""
    with tap_in_thread(store, "none") as (tap, unix), RawClient(unix) as client:
        client.go("golden")
        device = device_of(tap)
        real = device.fetch
        sizes: list[int] = []

        def fetch(offset: int, length: int) -> object:
            release = real(offset, length)
            sizes.append(device._near.size)
            return release

        monkeypatch.setattr(device, "fetch", fetch)
        assert client.call(p.CMD_CACHE, 0, len(CONTENTS)) == 0
        assert MIB <= max(sizes) < 2 * MIB
        assert settled(tap) == 0


def test_who_leaves_while_blocks_are_fetched_leaves_nothing_behind(store: str) -> None:
    with tap_in_thread(store, "none") as (tap, unix), RawClient(unix) as stays:
        stays.go("golden")
        for _ in range(5):
            with RawClient(unix) as client:
                client.go("golden")
                reads = [client.request(p.CMD_READ, n * 8192, 8192) for n in range(64)]
                client.sock.sendall(b"".join(reads))
        assert stays.read(0, MIB) == CONTENTS[:MIB]
        assert settled(tap) == 0


@pytest.mark.slow
def test_what_was_flushed_survives_a_kill(store: str) -> None:
    data = noise(MIB, "flushed")
    with tap_process(store, cache="none") as tap, RawClient(tap.unix) as client:
        client.go("empty")
        assert client.write(777, data) == 0
        assert client.call(p.CMD_FLUSH) == 0
        tap.kill()
    assert contents_of(store, "empty")[777 : 777 + MIB] == data
