"""A store with a few VDIs, and a tap that serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.tap import RawClient, TapProcess, make_store, tap_in_thread, tap_process

from core.device import Cache

Connect = Callable[..., RawClient]


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


@pytest.fixture
def cache() -> Cache:
    """How the tap opens the store; a test may ask for another, or for both."""
    return "host"


@pytest.fixture
def unix(store: str, cache: Cache) -> Iterator[str]:
    """The socket of a tap that runs in a thread."""
    with tap_in_thread(store, cache) as (_, path):
        yield path


@pytest.fixture
def connect(unix: str) -> Iterator[Connect]:
    """Opens an export over the tap; everything is closed at the end."""
    with ExitStack() as stack:

        def opened(
            name: str = "clone", structured: bool = False, contexts: bool = False
        ) -> RawClient:
            client = stack.enter_context(RawClient(unix))
            return client.go(name, structured, contexts)

        yield opened


@pytest.fixture
def server(store: str, cache: Cache) -> Iterator[TapProcess]:
    """A tap in a process of its own."""
    with tap_process(store, cache=cache) as tap:
        yield tap
