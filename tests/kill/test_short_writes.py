"""Writes of which the system does only a part, whether the rest succeeds or not."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from kill.jobs import JOBS, Job, Stores
from kill.repeat import plxsh, works_again
from kill.tracing import PLXSH
from kill.view import sound, view

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

pwritev = os.pwritev


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is written from here on: (offset, length) of each write."""
    seen: list[tuple[int, int]] = []

    def watched(fd: int, buffers: Sequence[Any], offset: int) -> int:
        seen.append((offset, sum(map(len, buffers))))
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", watched)
    return seen


@contextmanager
def size_limit(limit: int) -> Iterator[None]:
    """Let the system write files up to byte `limit` only, and no write beyond at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("most", [512, 5000])
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_rest_of_a_short_write_follows(
    job: Job, most: int, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores.new(job)
    plxsh(job.command(store)[len(PLXSH) :])
    after = view(str(store))

    def short(fd: int, buffers: Sequence[Any], offset: int) -> int:
        return os.pwrite(fd, b"".join(buffers)[:most], offset)

    monkeypatch.setattr(os, "pwritev", short)
    store = stores.new(job)
    status, said = plxsh(job.command(store)[len(PLXSH) :])
    assert status == 0, said
    assert sound(str(store)) == after


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_write_breaks_off_in_the_middle(
    job: Job, stores: Stores, writes: list[tuple[int, int]]
) -> None:
    store = stores.new(job)
    before = view(str(store))
    plxsh(job.command(store)[len(PLXSH) :])
    after = sound(str(store))
    assert writes
    for offset, length in list(writes):
        for part in (512, length - 512):
            store = stores.new(job)
            del writes[:]
            with size_limit(offset + part):
                status, said = plxsh(job.command(store)[len(PLXSH) :])
            assert status == 5, said
            assert "File too large" in said
            found = sound(str(store))
            assert found in (before, after), f"{part} bytes at {offset}"
            works_again(job, store, found != before, after)
            stores.drop(store)
