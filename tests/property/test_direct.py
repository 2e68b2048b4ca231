"""Devices against plain bytes, and the engine's state machine on a device without page cache."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from support.memory import RecordingDevice
from support.stores import noise

from core.device import Buffer, FileDevice
from core.direct import DirectDevice
from core.errors import WouldBlock
from core.format import BLOCK

BLOCKS = 40

ranges = st.tuples(st.integers(0, BLOCKS * BLOCK), st.integers(0, 9 * BLOCK)).map(
    lambda pair: (pair[0], min(pair[1], BLOCKS * BLOCK - pair[0]))
)
runs = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 20)).map(
    lambda pair: (pair[0], min(pair[1], BLOCKS - pair[0]))
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), runs, st.integers(1, 9)),
        st.tuples(st.just("discard"), runs, st.just(0)),
        st.tuples(st.just("read"), ranges, st.just(0)),
        st.tuples(st.just("fetch"), ranges, st.just(0)),
        st.tuples(st.just("glance"), ranges, st.just(0)),
        st.tuples(st.just("release"), st.just((0, 0)), st.integers(0, 5)),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", [FileDevice, DirectDevice])
@settings(max_examples=100, deadline=None)
@given(steps=steps)
def test_a_device_is_an_array_of_bytes(kind: type[FileDevice], steps: list[Any]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        model = bytearray(noise(BLOCKS * BLOCK, "start"))
        file.write(model)
        file.flush()
        device = kind(file.name, True)
        held: list[Callable[[], None]] = []
        for serial, (what, (first, length), extra) in enumerate(steps):
            end = first + length
            if what == "write":
                data = noise(length * BLOCK, serial)
                cut = len(data) * extra // 10
                device.pwritev(first * BLOCK, [data[:cut], memoryview(data)[cut:]])
                model[first * BLOCK : end * BLOCK] = data
            elif what == "discard":
                device.discard(first * BLOCK, length * BLOCK)
                model[first * BLOCK : end * BLOCK] = bytes(length * BLOCK)
            elif what == "read":
                assert device.pread(first, length) == model[first:end]
            elif what == "fetch":
                held.append(device.fetch(first, length))
            elif what == "glance":
                buffer = bytearray(length)
                try:
                    device.preadv(first, [buffer], wait=False)
                except WouldBlock as miss:
                    for low, size in miss.ranges:
                        assert first <= low < low + size <= end
                else:
                    assert buffer == model[first:end]
            elif extra < len(held):
                held.pop(extra)()
        for release in held:
            release()
        device.close()
        assert file.seek(0) == 0
        assert file.read() == model


class OnDisk(RecordingDevice):
    """A recording device that is a file as well, which has to say the same of every byte."""

    def __init__(self, size: int, pages: Mapping[int, bytes] = {}) -> None:
        super().__init__(size, pages)
        fd, path = tempfile.mkstemp()
        os.truncate(fd, size)
        os.close(fd)
        self._disk = DirectDevice(path, True)
        os.unlink(path)
        weakref.finalize(self, self._disk.close)  # a session that closes it is opened again
        for block, page in pages.items():
            self._disk.pwritev(block * BLOCK, [page])

    def pread(self, offset: int, length: int) -> bytes:
        found = self._disk.pread(offset, length)
        assert found == super().pread(offset, length)
        return found

    def preadv(self, offset: int, buffers: Sequence[Buffer], wait: bool = True) -> None:
        super().preadv(offset, buffers, wait)
        wanted = b"".join(buffers)
        self._disk.preadv(offset, buffers)
        assert b"".join(buffers) == wanted

    def pwritev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        try:
            super().pwritev(offset, buffers)
        finally:  # as much as was written when there was no room for all of it
            self._disk.pwritev(offset, [super().pread(offset, sum(map(len, buffers)))])

    def resize(self, size: int) -> None:
        self._disk.resize(size)
        super().resize(size)


@pytest.mark.slow
def test_the_engine_keeps_its_promises_without_a_page_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine of `test_state_machine`, power cuts included."""
    from property.test_state_machine import StoreMachine

    monkeypatch.setattr("support.bench.RecordingDevice", OnDisk)
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=15, stateful_step_count=30, deadline=None)
    )
