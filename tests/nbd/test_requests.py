"""Requests that make sense: what is written is read, in both forms of reply."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from support.stores import noise
from support.tap import CONTENTS, MIB, NbdError, RawClient, both_caches, error_of, tap_in_thread

from core.radix import RadixMap
from core.session import Session
from core.tap import protocol as p

Connect = Callable[..., RawClient]

both_forms = pytest.mark.parametrize("structured", [False, True], ids=["simple", "structured"])


@both_caches
@both_forms
@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (0, 4096), (4095, 2), (5000, 100_000), (MIB - 70_000, 200_000), (0, 3 * MIB)],
)
def test_reads_of_any_range(connect: Connect, structured: bool, offset: int, length: int) -> None:
    client = connect("golden", structured)
    assert client.read(offset, length) == CONTENTS[offset : offset + length]


@both_caches
def test_reads_longer_than_the_reply_buffer(connect: Connect) -> None:
    client = connect("empty")
    client.write(8 * MIB - 3, b"end")
    assert client.read(0, 8 * MIB) == bytes(8 * MIB - 3) + b"end"
    assert client.read(0, 1) == b"\0"


@both_caches
def test_a_structured_read_leaves_holes_out(connect: Connect) -> None:
    client = connect("golden", structured=True)
    client.send(p.CMD_READ, MIB - 4096, MIB + 8192)
    assert [(c.type, c.flags) for c in client.chunks()] == [
        (p.CHUNK_OFFSET_DATA, 0),
        (p.CHUNK_OFFSET_HOLE, 0),
        (p.CHUNK_OFFSET_DATA, p.CHUNK_DONE),
    ]


@both_caches
def test_a_read_that_must_not_be_fragmented_is_one_chunk(connect: Connect) -> None:
    client = connect("golden", structured=True)
    client.send(p.CMD_READ, MIB - 4096, MIB + 8192, p.FLAG_DF)
    [chunk] = client.chunks()
    assert chunk.payload[8:] == CONTENTS[MIB - 4096 : 2 * MIB + 4096]


@both_caches
@both_forms
@pytest.mark.parametrize(
    ("offset", "length"), [(0, 4096), (1, 1), (4090, 12), (8191, 70_001), (100, 2 * MIB)]
)
def test_writes_of_any_range(connect: Connect, structured: bool, offset: int, length: int) -> None:
    client = connect("clone", structured)
    data = noise(length, offset)
    assert client.write(offset, data) == 0
    expected = CONTENTS[:offset] + data + CONTENTS[offset + length :]
    assert client.read(0, len(CONTENTS)) == expected


@both_caches
def test_many_requests_at_once_are_all_answered(connect: Connect) -> None:
    client = connect("clone")
    pages = [noise(4096, n) for n in range(64)]
    for n, page in enumerate(pages):
        client.send(p.CMD_WRITE, n * 8192, data=page)
    assert {client.reply().cookie for _ in pages} == set(range(1, 65))
    for n in range(64):
        client.send(p.CMD_READ, n * 8192, 4096)
    replies = [client.reply(4096) for _ in pages]
    assert {r.cookie - 65: r.payload for r in replies} == dict(enumerate(pages))


@both_caches
def test_a_read_sees_the_write_before_it_in_the_same_packet(connect: Connect) -> None:
    client = connect("clone")
    head = struct.Struct(">IHHQQI")
    write = head.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, 1, 4096, 4) + b"new!"
    read = head.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 2, 4096, 4)
    client.sock.sendall(write + read)
    assert client.reply().cookie == 1
    assert client.reply(4).payload == b"new!"


def test_a_write_may_come_in_small_pieces(connect: Connect) -> None:
    client = connect("clone")
    data = noise(300_000)
    client.sock.sendall(struct.pack(">IHHQQI", p.REQUEST_MAGIC, 0, p.CMD_WRITE, 1, 7, len(data)))
    for at in range(0, len(data), 9_999):
        client.sock.sendall(data[at : at + 9_999])
    assert client.reply().flags == 0
    assert client.read(7, len(data)) == data


@both_caches
def test_the_largest_write_is_taken(connect: Connect) -> None:
    client = connect("empty")
    data = noise(8 * MIB)
    assert client.write(0, data) == 0
    assert client.write(5, b"after") == 0
    assert client.read(0, 10) == data[:5] + b"after"


@both_caches
@pytest.mark.parametrize("kind", [p.CMD_TRIM, p.CMD_WRITE_ZEROES])
@pytest.mark.parametrize(("offset", "length"), [(4096, 8192), (100, 50), (5000, 300_000)])
def test_trimmed_and_zeroed_ranges_read_as_zeros(
    connect: Connect, kind: int, offset: int, length: int
) -> None:
    client = connect("clone")
    assert client.call(kind, offset, length) == 0
    expected = CONTENTS[:offset] + bytes(length) + CONTENTS[offset + length :]
    assert client.read(0, len(CONTENTS)) == expected


def status(client: RawClient, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
    client.send(p.CMD_BLOCK_STATUS, offset, length, flags)
    [chunk] = client.chunks()
    assert chunk.type == p.CHUNK_BLOCK_STATUS
    numbers = struct.unpack(f">{len(chunk.payload) // 4}I", chunk.payload)[1:]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_block_status_tells_data_from_holes(connect: Connect) -> None:
    client = connect("golden", structured=True, contexts=True)
    assert status(client, 4096, 3 * MIB - 4096) == [(MIB - 4096, 0), (MIB, 3), (MIB, 0)]


def test_block_status_of_one_extent(connect: Connect) -> None:
    client = connect("golden", structured=True, contexts=True)
    assert status(client, 100, 3 * MIB - 100, p.FLAG_REQ_ONE) == [(MIB - 100, 0)]


def test_block_status_of_a_hole_costs_nothing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 GiB of hole in 200 TiB are one extent, found by looking at one node a level."""
    size = 200 << 40
    with Session.open(store) as session, session.opened(session.create("huge", size)) as vdi:
        vdi.write(0, b"begin")
        vdi.write(size - 3, b"end")
    visits = []
    visit = RadixMap._visit
    monkeypatch.setattr(RadixMap, "_visit", lambda *a: visits.append(a[1]) or visit(*a))
    with tap_in_thread(store) as (_, unix), RawClient(unix) as client:
        client.go("huge", structured=True, contexts=True)
        most = (4 << 30) - 4096
        assert status(client, 4096, most) == [(most, 3)]
        assert status(client, 100 << 40, most) == [(most, 3)]
        assert status(client, (200 << 40) - (1 << 30), 1 << 30) == [
            ((1 << 30) - 4096, 3),
            (4096, 0),
        ]
        assert len(visits) <= 3 * 4


def test_block_status_of_much_data_looks_at_some_of_it(store: str) -> None:
    with tap_in_thread(store) as (_, unix), RawClient(unix) as client:
        client.go("empty", structured=True, contexts=True)
        client.write(0, b"x" * 8 * MIB)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.tap.reads._MAX_LEAVES", 2)
            assert status(client, 100, 8 * MIB - 100) == [(4 * MIB - 100, 0)]
        assert status(client, 100, 8 * MIB - 100) == [(8 * MIB - 100, 0)]


@both_caches
def test_zeros_that_must_take_space_do(connect: Connect) -> None:
    client = connect("empty", structured=True, contexts=True)
    assert client.call(p.CMD_WRITE_ZEROES, 0, 6 * MIB, p.FLAG_NO_HOLE) == 0
    assert status(client, 0, 8 * MIB) == [(6 * MIB, 0), (2 * MIB, 3)]
    assert client.read(6 * MIB - 10, 20) == bytes(20)


def test_zeros_that_take_space_are_not_fast(connect: Connect) -> None:
    client = connect("empty")
    flags = p.FLAG_NO_HOLE | p.FLAG_FAST_ZERO
    assert client.call(p.CMD_WRITE_ZEROES, 0, MIB, flags) == p.ENOTSUP
    assert client.call(p.CMD_WRITE_ZEROES, 0, MIB, p.FLAG_FAST_ZERO) == 0


@both_caches
def test_cache_is_accepted(connect: Connect) -> None:
    assert connect("golden").call(p.CMD_CACHE, 0, 3 * MIB) == 0


@both_caches
def test_connections_to_one_vdi_see_each_other(connect: Connect) -> None:
    one, two = connect("clone"), connect("clone")
    one.write(10, b"shared")
    assert two.read(10, 6) == b"shared"


@both_caches
def test_a_clone_does_not_change_its_origin(connect: Connect) -> None:
    clone, golden, snapshot = connect("clone"), connect("golden"), connect("golden@base")
    clone.write(0, b"changed")
    assert golden.read(0, 7) == snapshot.read(0, 7) == CONTENTS[:7]


# -- requests that make no sense -------------------------------------------------------


@both_forms
@pytest.mark.parametrize(
    ("offset", "length"),
    [(3 * MIB, 1), (3 * MIB - 1, 2), (2**64 - 1, 1), (0, (32 << 20) + 1), (0, 0)],
    ids=["behind", "across", "wrapping", "oversized", "nothing"],
)
def test_a_read_out_of_bounds_is_invalid(
    connect: Connect, structured: bool, offset: int, length: int
) -> None:
    client = connect("golden", structured)
    with pytest.raises(NbdError) as caught:
        client.read(offset, length)
    assert caught.value.args == (p.EINVAL,)
    assert client.read(0, 5) == CONTENTS[:5]


@pytest.mark.parametrize("offset", [3 * MIB, 3 * MIB - 1, 2**64 - 1])
def test_a_write_past_the_end_has_no_space_and_changes_nothing(
    connect: Connect, offset: int
) -> None:
    client = connect("clone")
    assert client.write(offset, b"too far") == p.ENOSPC
    assert client.read(0, len(CONTENTS)) == CONTENTS


@pytest.mark.parametrize(
    ("kind", "error"), [(p.CMD_TRIM, p.EINVAL), (p.CMD_WRITE_ZEROES, p.ENOSPC)]
)
@pytest.mark.parametrize(("offset", "length"), [(3 * MIB - 1, 2), (2**64 - 1, 1)])
def test_trim_and_zero_past_the_end(
    connect: Connect, kind: int, error: int, offset: int, length: int
) -> None:
    client = connect("clone")
    assert client.call(kind, offset, length) == error
    assert client.read(3 * MIB - 1, 1) == CONTENTS[-1:]


@pytest.mark.parametrize(
    "kind",
    [p.CMD_READ, p.CMD_WRITE, p.CMD_TRIM, p.CMD_CACHE, p.CMD_WRITE_ZEROES, p.CMD_BLOCK_STATUS],
)
def test_requests_for_nothing_are_invalid(connect: Connect, kind: int) -> None:
    client = connect("clone", structured=True, contexts=True)
    assert client.call(kind, 4096, 0) == p.EINVAL
    assert client.read(0, 5) == CONTENTS[:5]


@pytest.mark.parametrize(("offset", "length"), [(1, 0), (0, 4096)])
def test_a_flush_of_a_range_is_invalid(connect: Connect, offset: int, length: int) -> None:
    assert connect("clone").call(p.CMD_FLUSH, offset, length) == p.EINVAL


def test_a_good_write_among_bad_ones_is_carried_out(connect: Connect) -> None:
    client = connect("clone")
    for offset in (0, 3 * MIB, 8):
        client.send(p.CMD_WRITE, offset, data=b"12345678")
    errors = {reply.cookie: reply.flags for reply in (client.reply() for _ in range(3))}
    assert errors == {1: 0, 2: p.ENOSPC, 3: 0}
    assert client.read(0, 16) == b"12345678" * 2


@pytest.mark.parametrize(
    ("kind", "data"),
    [(p.CMD_WRITE, b"data"), (p.CMD_TRIM, b""), (p.CMD_WRITE_ZEROES, b"")],
    ids=["write", "trim", "zero"],
)
def test_a_snapshot_is_not_written_to(connect: Connect, kind: int, data: bytes) -> None:
    client = connect("golden@base")
    assert client.call(kind, 0, 4, data=data) == p.EPERM
    assert client.read(0, 4) == CONTENTS[:4]


def test_flush_of_a_snapshot_succeeds(connect: Connect) -> None:
    assert connect("golden@base").call(p.CMD_FLUSH) == 0


@pytest.mark.parametrize("kind", [8, 9, 1000, 65535])
def test_an_unknown_command_is_invalid(connect: Connect, kind: int) -> None:
    client = connect("golden")
    assert client.call(kind) == p.EINVAL
    assert client.read(0, 5) == CONTENTS[:5]


@both_forms
@pytest.mark.parametrize("kind", sorted(p.COMMAND_FLAGS))
def test_flags_that_are_not_the_commands_are_invalid(
    connect: Connect, structured: bool, kind: int
) -> None:
    """Each command with each of the 16 flags: those of the protocol document, and no other."""
    own = {
        p.CMD_READ: {2} if structured else set(),
        p.CMD_WRITE_ZEROES: {1, 4},
        p.CMD_BLOCK_STATUS: {3},
    }
    length = 0 if kind in (p.CMD_WRITE, p.CMD_FLUSH) else 4
    if kind == p.CMD_BLOCK_STATUS and not structured:
        own[kind] = set()
    client = connect("clone", structured, structured)
    refused = set()
    for bit in range(16):
        client.send(kind, 0, length, 1 << bit, b"data" if kind == p.CMD_WRITE else b"")
        reply = client.reply(4 if kind == p.CMD_READ else 0)
        failed = reply.flags if reply.type == -1 else reply.type & 1 << 15
        if failed:
            assert (reply.flags if reply.type == -1 else error_of(reply)) == p.EINVAL
            refused.add(bit)
    allowed = {0} | own.get(kind, set())
    if kind == p.CMD_BLOCK_STATUS and not structured:
        allowed = set()  # there are no contexts
    assert refused == set(range(16)) - allowed


def test_df_without_structured_replies_is_invalid(connect: Connect) -> None:
    assert connect("golden").call(p.CMD_READ, 0, 4096, p.FLAG_DF) == p.EINVAL


def test_block_status_that_was_not_agreed_on_is_invalid(connect: Connect) -> None:
    assert connect("golden", structured=True).call(p.CMD_BLOCK_STATUS, 0, 4096) == p.EINVAL


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (3 * MIB - 1, 2)])
def test_block_status_out_of_bounds_is_invalid(connect: Connect, offset: int, length: int) -> None:
    client = connect("golden", structured=True, contexts=True)
    assert client.call(p.CMD_BLOCK_STATUS, offset, length) == p.EINVAL


def test_cache_past_the_end_is_invalid(connect: Connect) -> None:
    assert connect("golden").call(p.CMD_CACHE, 3 * MIB, 1) == p.EINVAL


def test_bad_magic_drops_this_client_only(connect: Connect) -> None:
    bad, good = connect("golden"), connect("golden")
    bad.send(p.CMD_READ, 0, 4096, magic=0x12345678)
    assert bad.hung_up()
    assert good.read(0, 5) == CONTENTS[:5]


def test_requests_before_bad_magic_are_answered(connect: Connect) -> None:
    client = connect("clone")
    head = struct.Struct(">IHHQQI")
    write = head.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, 1, 0, 4) + b"done"
    client.sock.sendall(write + bytes(28))
    assert client.reply().cookie == 1
    assert client.hung_up()


def test_an_oversized_write_drops_this_client_only(connect: Connect) -> None:
    bad, good = connect("empty"), connect("golden")
    bad.send(p.CMD_WRITE, 0, (32 << 20) + 1)
    assert bad.hung_up()
    assert good.read(0, 5) == CONTENTS[:5]


@both_caches
@pytest.mark.parametrize("cut", [1, 27, 28, 29, 5000])
def test_a_client_that_vanishes_in_mid_request_harms_nobody(connect: Connect, cut: int) -> None:
    vanishing, other = connect("clone"), connect("clone")
    request = struct.pack(">IHHQQI", p.REQUEST_MAGIC, 0, p.CMD_WRITE, 1, 0, 8192) + bytes(8192)
    vanishing.sock.sendall(request[:cut])
    vanishing.sock.close()
    assert other.read(0, 8192) == CONTENTS[:8192]


def test_a_client_that_never_reads_stalls_only_itself(connect: Connect) -> None:
    greedy, other = connect("golden"), connect("golden")
    greedy.sock.settimeout(0.5)
    with suppress(TimeoutError):  # which comes when the server reads no more requests
        while True:
            greedy.send(p.CMD_READ, 0, MIB)
    assert other.read(0, MIB) == CONTENTS[:MIB]


@both_caches
def test_a_client_that_reads_late_gets_everything(connect: Connect) -> None:
    client = connect("golden")
    for _ in range(40):
        client.send(p.CMD_READ, 0, MIB)
    for _ in range(40):
        assert client.reply(MIB).payload == CONTENTS[:MIB]


@both_caches
def test_replies_that_come_while_others_are_being_sent_keep_out_of_them(connect: Connect) -> None:
    client = connect("golden")
    sent, requests = {}, []
    for _ in range(60):
        for kind, length in ((p.CMD_FLUSH, 0), (p.CMD_READ, MIB)):
            requests.append(client.request(kind, 0, length))
            sent[client.cookie] = length
    client.sock.sendall(b"".join(requests))
    for _ in range(len(sent)):
        magic, error, cookie = struct.unpack(">IIQ", client.receive(16))
        assert (magic, error) == (p.SIMPLE_MAGIC, 0)
        assert client.receive(sent.pop(cookie)) in (b"", CONTENTS[:MIB])
    assert not sent


def test_disc_ends_the_connection(connect: Connect) -> None:
    client = connect("golden")
    client.send(p.CMD_DISC)
    assert client.hung_up()


@both_caches
def test_what_was_asked_before_disc_is_answered(connect: Connect) -> None:
    client = connect("clone")
    write, flush = client.send(p.CMD_WRITE, data=b"last"), client.send(p.CMD_FLUSH)
    client.send(p.CMD_DISC)
    assert [client.reply()[:3], client.reply()[:3]] == [(0, -1, write), (0, -1, flush)]
    assert client.hung_up()
