"""Grants: one holder at a time, tokens that never go back."""

from __future__ import annotations

import pytest

from core.errors import Fenced, InUse
from core.lock_master import LockMaster


def test_a_name_is_granted_once_at_a_time() -> None:
    locks = LockMaster()
    grant = locks.acquire("vdi/3")
    with pytest.raises(InUse, match="vdi/3 is already open for writing in this process"):
        locks.acquire("vdi/3")
    locks.acquire("vdi/4")
    grant.release()
    locks.acquire("vdi/3")


def test_tokens_never_go_back() -> None:
    locks = LockMaster()
    first = locks.acquire("vdi/1", floor=41)
    assert first.token == 42
    first.release()
    second = locks.acquire("vdi/1", floor=7)
    assert second.token == 43
    assert locks.acquire("vdi/2").token == 44


def test_a_grant_that_was_given_back_is_fenced() -> None:
    locks = LockMaster()
    grant = locks.acquire("vdi/1")
    grant.check()
    assert locks.holder("vdi/1") is grant
    grant.release()
    assert locks.holder("vdi/1") is None
    with pytest.raises(Fenced) as caught:
        grant.check()
    assert caught.value.message == "vdi/1 is no longer held by this session"
    assert caught.value.hint == "open it again"


def test_releasing_twice_does_not_take_it_from_the_next_holder() -> None:
    locks = LockMaster()
    first = locks.acquire("vdi/1")
    first.release()
    second = locks.acquire("vdi/1")
    first.release()
    second.check()
    with pytest.raises(Fenced):
        first.check()
