"""Negotiation: what a client may ask before it has chosen an export, and how wrongly."""

from __future__ import annotations

import struct

import pytest
from support.tap import CONTENTS, NbdError, RawClient, contexts_for, info_for

from core.tap import protocol as p


def names(client: RawClient) -> list[str]:
    found = []
    for kind, payload in client.option(p.OPT_LIST):
        if kind == p.REP_SERVER:
            (length,) = struct.unpack_from(">I", payload)
            found.append(payload[4 : 4 + length].decode())
    return found


def test_the_greeting_offers_fixed_newstyle_without_zeroes(unix: str) -> None:
    with RawClient(unix) as client:
        assert p.GREETING.unpack(client.greeting) == (p.INIT_MAGIC, p.OPTION_MAGIC, 3)


def test_list_names_the_vdis_and_the_labelled_snapshots(unix: str) -> None:
    with RawClient(unix) as client:
        assert names(client) == ["golden", "clone", "empty", "golden@base"]


@pytest.mark.parametrize("name", ["golden", "0", "golden@base", "0@base"])
def test_an_export_is_found_by_each_of_its_names(unix: str, name: str) -> None:
    with RawClient(unix) as client:
        assert client.go(name).read(0, 100) == CONTENTS[:100]


def test_a_snapshot_is_found_by_its_id(unix: str) -> None:
    with RawClient(unix) as client:
        replies = client.option(p.OPT_INFO, info_for("golden@base", p.INFO_DESCRIPTION))
        text = next(body[2:].decode() for _, body in replies if body[:2] == b"\0\x02")
        where = text.split()[1]
        assert client.go(f"golden@{where}").size == len(CONTENTS)


def test_an_unknown_export_is_refused_and_the_client_may_go_on(unix: str) -> None:
    with RawClient(unix) as client:
        with pytest.raises(NbdError, match="there is no VDI 'gloden'"):
            client.go("gloden")
        assert client.go("golden").size == len(CONTENTS)


@pytest.mark.parametrize(
    "name", ["golden@nothing", "golden@1.1", "golden@", "@", "@base", "7", "a@b@c"]
)
def test_names_that_lead_nowhere_are_unknown(unix: str, name: str) -> None:
    with RawClient(unix) as client, pytest.raises(NbdError) as caught:
        client.go(name)
    assert caught.value.args[0] == p.REP_ERR_UNKNOWN & 0xFFFF


def test_the_empty_name_needs_a_store_with_one_vdi(unix: str) -> None:
    with RawClient(unix) as client, pytest.raises(NbdError, match="has 3 VDIs"):
        client.go("")


def test_the_old_way_to_choose_an_export_works(unix: str) -> None:
    with RawClient(unix) as client:
        client.send_option(p.OPT_EXPORT_NAME, b"golden")
        size, flags = p.EXPORT_NAME_REPLY.unpack(client.receive(10))
        assert size == len(CONTENTS)
        assert flags & p.HAS_FLAGS
        assert client.read(5, 10) == CONTENTS[5:15]


def test_the_old_way_sends_zeros_to_those_who_want_them(unix: str) -> None:
    with RawClient(unix, p.FIXED_NEWSTYLE) as client:
        client.send_option(p.OPT_EXPORT_NAME, b"golden")
        assert client.receive(10 + 124)[10:] == bytes(124)
        assert client.read(0, 4) == CONTENTS[:4]


def test_the_old_way_hangs_up_on_an_unknown_export(unix: str) -> None:
    with RawClient(unix) as client:
        client.send_option(p.OPT_EXPORT_NAME, b"nothing")
        assert client.hung_up()


def test_info_tells_the_block_sizes(unix: str) -> None:
    with RawClient(unix) as client:
        replies = client.option(p.OPT_INFO, info_for("golden"))
    assert (p.REP_INFO, p.INFO_BLOCK_SIZE_REPLY.pack(3, 1, 4096, 32 << 20)) in replies


def test_info_tells_the_canonical_name(unix: str) -> None:
    with RawClient(unix) as client:
        replies = client.option(p.OPT_INFO, info_for("0", p.INFO_NAME))
    assert (p.REP_INFO, b"\0\x01golden") in replies


def test_info_does_not_open_the_export(unix: str) -> None:
    with RawClient(unix) as client:
        assert client.option(p.OPT_INFO, info_for("golden"))[-1] == (p.REP_ACK, b"")
        client.send(p.CMD_READ, 0, 4096)  # a request instead of an option
        assert client.hung_up()


def test_a_vdi_may_be_written_and_a_snapshot_not(unix: str) -> None:
    with RawClient(unix) as vdi, RawClient(unix) as snapshot:
        assert not vdi.go("golden").flags & p.READ_ONLY
        assert snapshot.go("golden@base").flags & p.READ_ONLY


def test_df_is_offered_only_with_structured_replies(unix: str) -> None:
    with RawClient(unix) as simple, RawClient(unix) as structured:
        assert not simple.go("golden").flags & p.SEND_DF
        assert structured.go("golden", structured=True).flags & p.SEND_DF


def test_an_unknown_option_is_refused_and_its_data_skipped(unix: str) -> None:
    with RawClient(unix) as client:
        [(kind, _)] = client.option(77, bytes(1000))
        assert kind == p.REP_ERR_UNSUP
        assert client.go("golden").size == len(CONTENTS)


@pytest.mark.parametrize(
    ("option", "expected"), [(77, p.REP_ERR_UNSUP), (p.OPT_INFO, p.REP_ERR_TOO_BIG)]
)
def test_an_oversized_option_is_skipped(unix: str, option: int, expected: int) -> None:
    with RawClient(unix) as client:
        [(kind, _)] = client.option(option, bytes(3 << 20))
        assert kind == expected
        assert client.go("golden").size == len(CONTENTS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack(">I", 100) + b"short",
        struct.pack(">I", 1 << 31),
        info_for("golden") + b"extra",
        info_for("x" * 5000),
        struct.pack(">I", 2) + b"\xff\xfe" + bytes(2),
        info_for("golden")[:-2] + struct.pack(">H", 9),
    ],
    ids=["empty", "short", "huge", "long", "long-name", "not-utf8", "missing-kinds"],
)
def test_a_malformed_go_is_invalid_and_the_client_may_go_on(unix: str, data: bytes) -> None:
    with RawClient(unix) as client:
        [(kind, _)] = client.option(p.OPT_GO, data)
        assert kind == p.REP_ERR_INVALID
        assert client.go("golden").size == len(CONTENTS)


@pytest.mark.parametrize("option", [p.OPT_LIST, p.OPT_STRUCTURED_REPLY, p.OPT_STARTTLS])
def test_options_without_data_refuse_data(unix: str, option: int) -> None:
    with RawClient(unix) as client:
        [(kind, _)] = client.option(option, b"data")
        assert kind == p.REP_ERR_INVALID


def test_without_certificates_there_is_no_tls_to_start(unix: str) -> None:
    with RawClient(unix) as client:
        [(kind, _)] = client.option(p.OPT_STARTTLS)
        assert kind == p.REP_ERR_POLICY


def test_abort_is_acknowledged(unix: str) -> None:
    with RawClient(unix) as client:
        assert client.option(p.OPT_ABORT) == [(p.REP_ACK, b"")]
        assert client.hung_up()


def test_the_allocation_context_is_listed(unix: str) -> None:
    with RawClient(unix) as client:
        replies = client.option(p.OPT_LIST_META_CONTEXT, contexts_for("golden"))
    assert replies == [(p.REP_META_CONTEXT, bytes(4) + b"base:allocation"), (p.REP_ACK, b"")]


def test_other_contexts_are_ignored(unix: str) -> None:
    with RawClient(unix) as client:
        client.option(p.OPT_STRUCTURED_REPLY)
        replies = client.option(p.OPT_SET_META_CONTEXT, contexts_for("golden", "x:y", "base:"))
    assert replies == [(p.REP_ACK, b"")]


def test_a_context_needs_structured_replies(unix: str) -> None:
    with RawClient(unix) as client:
        [(kind, _)] = client.option(
            p.OPT_SET_META_CONTEXT, contexts_for("golden", "base:allocation")
        )
        assert kind == p.REP_ERR_INVALID


def test_a_context_set_for_one_export_is_void_for_another(unix: str) -> None:
    with RawClient(unix) as client:
        client.option(p.OPT_STRUCTURED_REPLY)
        client.structured = True
        client.option(p.OPT_SET_META_CONTEXT, contexts_for("golden", "base:allocation"))
        client.go("clone")
        assert client.call(p.CMD_BLOCK_STATUS, 0, 4096) == p.EINVAL


def test_unknown_client_flags_are_an_error(unix: str) -> None:
    with RawClient(unix, 1 << 20) as client:
        assert client.hung_up()


def test_bad_magic_before_an_option_is_an_error(unix: str) -> None:
    with RawClient(unix) as client:
        client.send_option(p.OPT_LIST, magic=1234)
        assert client.hung_up()


@pytest.mark.parametrize("cut", [0, 2, 4, 9, 20, 24])
def test_a_client_that_vanishes_in_mid_handshake_harms_nobody(unix: str, cut: int) -> None:
    with RawClient(unix, p.FIXED_NEWSTYLE) as client:
        message = p.OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, 12) + info_for("golden")
        client.sock.sendall(message[:cut])
    with RawClient(unix) as client:
        assert client.go("golden").read(0, 4) == CONTENTS[:4]


def test_a_handshake_may_come_byte_by_byte(unix: str) -> None:
    with RawClient(unix) as client:
        data = info_for("golden")
        for byte in p.OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, len(data)) + data:
            client.sock.sendall(bytes([byte]))
        while client.option_reply()[1] != p.REP_ACK:
            pass
        assert client.read(0, 4) == CONTENTS[:4]


def test_requests_may_come_with_the_last_option(unix: str) -> None:
    with RawClient(unix) as client:
        data = info_for("golden")
        request = struct.pack(">IHHQQI", p.REQUEST_MAGIC, 0, p.CMD_READ, 9, 3, 5)
        client.sock.sendall(p.OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, len(data)) + data + request)
        while client.option_reply()[1] != p.REP_ACK:
            pass
        assert client.reply(5).payload == CONTENTS[3:8]
