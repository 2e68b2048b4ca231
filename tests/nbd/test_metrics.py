"""`GET /metrics`: what it tells, and that whoever asks cannot disturb the tap."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from socket import create_connection, socket

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.fake_locks import wait_for
from support.stores import small_store
from support.tap import NbdError, RawClient, tap_in_thread

from core.errors import InUse, IoFailed
from core.session import Session
from core.tap import protocol as p
from core.tap.counts import BOUNDS, MOST_EXPORTS, Counts, Durations, Recent, Totals
from core.tap.http import MOST_VISITORS
from core.tap.metrics import CONTENT_TYPE
from core.tap.server import Tap
from core.tap.status import query_status

LOOPBACK = ("127.0.0.1", 0)
Address = tuple[str, int]


@contextmanager
def told(store: str, **options: float) -> Iterator[tuple[Tap, str, Address]]:
    """A tap that tells its metrics: the tap, its socket, and where it tells them."""
    with tap_in_thread(store, metrics=LOOPBACK, **options) as (tap, unix):
        yield tap, unix, tap.metrics_addresses[0]


def ask(address: Address, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
    """Send something; return all that comes back until the tap hangs up."""
    with create_connection(address, 90) as sock:
        sock.sendall(request)
        return everything(sock)


def everything(sock: socket) -> bytes:
    answer = b""
    while part := sock.recv(1 << 16):
        answer += part
    return answer


def body(answer: bytes) -> str:
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(rest)}\r\n".encode() in head
    return rest.decode()


class Values(dict[tuple[str, ...], float]):
    """The samples of a page by name and label values, as prometheus-client reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.families = {}
        for family in text_string_to_metric_families(text):
            assert family.documentation, family.name
            self.families[family.name] = family
            for sample in family.samples:
                key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
                assert key not in self, key
                self[key] = sample.value

    def __missing__(self, key: str) -> float:
        return self[(key,)]


def values(address: Address) -> Values:
    """What the tap tells; waits as long as a page is given out again."""
    time.sleep(1.0)
    return Values(body(ask(address)))


def closed(unix: str, left: int = 0) -> None:
    """Wait until only so many exports are open: what was written to others is committed."""
    wait_for(lambda: len(query_status(unix)["exports"]) <= left)


def test_a_page_is_what_openmetrics_says(store: str) -> None:
    with told(store) as (_, unix, address), RawClient(unix) as client:
        client.go("clone").write(0, b"12345")
        answer = ask(address)
    head = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert head[0] == "HTTP/1.1 200 OK"
    assert f"Content-Type: {CONTENT_TYPE}" in head
    assert CONTENT_TYPE.startswith("application/openmetrics-text; version=1.0.0")
    assert "Connection: close" in head
    page = Values(body(answer))
    assert page.text.endswith("# EOF\n")
    assert page.text.count("# EOF\n") == 1
    for name, family in page.families.items():
        assert name.startswith(("parallax_", "process_")), name
        assert not family.unit or name.endswith(f"_{family.unit}")
    for name in ("process_resident_memory_bytes", "parallax_build_info"):
        assert any(key[0] == name for key in page)


def test_requests_are_counted_by_kind_and_export(store: str) -> None:
    with told(store) as (_, unix, address):
        with RawClient(unix) as client:
            client.go("clone", structured=True, contexts=True)
            client.send(p.CMD_WRITE, 0, data=b"x" * 4096)
            client.reply()
            client.send(p.CMD_WRITE, 8192, data=b"x" * 4096, flags=p.FLAG_FUA)
            client.reply()
            client.read(0, 4096)
            client.read(0, 1 << 20)
            client.call(p.CMD_FLUSH)
            client.call(p.CMD_TRIM, 0, 4096)
            client.call(p.CMD_WRITE_ZEROES, 4096, 4096)
            client.call(p.CMD_CACHE, 0, 4096)
            client.send(p.CMD_BLOCK_STATUS, 0, 4096)
            client.chunks()
            with RawClient(unix) as other:
                other.go("golden@base").read(0, 100)
                page = values(address)
                kinds = {"read": 2, "write": 2, "flush": 1, "trim": 1, "write_zeroes": 1}
                kinds |= {"cache": 1, "block_status": 1}
                for kind, count in kinds.items():
                    assert page["parallax_tap_export_requests_total", "clone", kind] == count
                    more = kind == "read"
                    assert page["parallax_tap_requests_total", kind] == count + more
                read = page["parallax_tap_export_read_bytes_total", "clone"]
                assert read == 4096 + (1 << 20)
                assert page["parallax_tap_export_written_bytes_total", "clone"] == 8192
                assert page["parallax_tap_export_read_bytes_total", "golden@base"] == 100
                assert page["parallax_tap_read_bytes_total"] == read + 100
                assert page["parallax_tap_written_bytes_total"] == 8192
                assert page["parallax_tap_connections"] == 2
                assert page["parallax_tap_open_exports"] == 2
                assert page["parallax_tap_accepted_connections_total"] == 2
                assert page["parallax_tap_export_connections", "clone"] == 1
                assert page["parallax_tap_commit_seconds_count"] >= 2
                assert page["parallax_tap_commit_seconds_sum"] > 0
                hits = page["parallax_tap_cache_hits_total"]
                assert hits + page["parallax_tap_cache_misses_total"] == 3
        closed(unix)
        later = values(address)  # nothing goes back when everybody has left
    for key, value in page.items():
        if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
            assert later[key] >= value, key
    assert later["parallax_tap_connections"] == later["parallax_tap_open_exports"] == 0
    assert later["parallax_tap_export_read_bytes_total", "clone"] == read


def test_errors_and_refusals_are_counted(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IoFailed("the disk is gone")

    with told(store) as (tap, unix, address), RawClient(unix) as client:
        with RawClient(unix) as wrong, pytest.raises(NbdError):
            wrong.go("nothing")
        with RawClient(unix) as rude:
            rude.send_option(p.OPT_GO, magic=1)
            assert rude.hung_up()
        with RawClient(unix) as polite:  # asks what there is, and leaves: refused nothing
            polite.option(p.OPT_LIST)
        client.go("clone")
        assert client.call(p.CMD_WRITE_ZEROES, 1 << 40, 4096) == p.ENOSPC
        with pytest.raises(NbdError):
            client.read(1 << 40, 1)
        vdi = next(iter(tap._shared.exports.open.values())).vdi
        monkeypatch.setattr(vdi, "trim", broken)
        assert client.call(p.CMD_TRIM, 0, 4096) == p.EIO
        page = values(address)
    assert page["parallax_tap_refused_handshakes_total"] == 2
    assert page["parallax_tap_errors_total", "ENOSPC"] == 1
    assert page["parallax_tap_errors_total", "EINVAL"] == 1
    assert page["parallax_tap_errors_total", "EIO"] == 1
    assert page["parallax_tap_errors_total", "EPERM"] == 0


def test_a_failed_store_is_told(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise IoFailed("the disk is gone")

    with ExitStack() as serving:
        tap, unix, address = serving.enter_context(told(store, commit_interval=3600.0))
        client = serving.enter_context(RawClient(unix))
        client.go("clone").write(0, b"x")
        assert values(address)["parallax_store_failed"] == 0
        monkeypatch.setattr(tap._session.store.device, "flush", broken)
        assert client.call(p.CMD_FLUSH) == p.EIO
        page = values(address)
        assert page["parallax_store_failed"] == 1
        assert page["parallax_tap_failed_commits_total"] == 1
        with pytest.raises(IoFailed):
            serving.close()


def test_the_space_of_the_store_adds_up(store: str) -> None:
    """As `store info` has it, and before and after an extent is claimed."""
    with told(store) as (_, unix, address):
        before = values(address)
        with RawClient(unix) as client:
            client.go("empty").write(0, b"x" * (1 << 20))
            client.call(p.CMD_FLUSH)
            after = values(address)
    used = "parallax_store_used_bytes"
    size = before["parallax_store_size_bytes"]
    assert size == 6 * 4096 * 4096
    for page in (before, after):
        free = page["parallax_store_free_bytes"]
        assert free + page[used] == size * 5 / 6  # without the system extent
    assert (1 << 20) <= after[used] - before[used] < 2 << 20


def test_names_that_need_quoting(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    names = ['say "hi"', "back\\slash", "ünï", "new VDI, with = and {}"]
    with Session.open(store) as session:
        for name in names:
            session.create(name, 4096)
    with told(store) as (_, unix, address), ExitStack() as clients:
        for name in names:
            clients.enter_context(RawClient(unix)).go(name)
        page = values(address)
    for name in names:
        assert page["parallax_tap_export_connections", name] == 1


# -- the protocol ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "line"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404, "there is only /metrics\n"),
        (b"GET /metrics/x HTTP/1.0\r\n\r\n", 404, "there is only /metrics\n"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\na=b", 405, "use GET or HEAD\n"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405, "use GET or HEAD\n"),
        (b"hello\r\n\r\n", 400, "this is no HTTP/1 request\n"),
        (b"\0\xff\r\n\r\n", 400, "this is no HTTP/1 request\n"),
        (b"GET /metrics HTTP/2\r\n\r\n", 400, "this is no HTTP/1 request\n"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000, 431, "the request is too long\n"),
        (b"x" * 60000, 431, "the request is too long\n"),
    ],
)
def test_anything_else_is_refused_in_one_line(
    store: str, request_: bytes, status: int, line: str
) -> None:
    with told(store) as (_, _, address):
        answer = ask(address, request_)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert body(answer) == line
    assert (b"Allow: GET, HEAD" in answer) == (status == 405)


def test_head_tells_the_length_only(store: str) -> None:
    with told(store) as (_, _, address):
        head = ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        page = body(ask(address, b"GET /metrics?collect=all HTTP/1.0\r\n\r\n"))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert f"Content-Length: {len(page.encode())}\r\n".encode() in head


def test_a_request_may_come_a_byte_at_a_time(store: str) -> None:
    with told(store) as (_, _, address), create_connection(address, 90) as sock:
        for byte in b"GET /metrics HTTP/1.1\r\n\r\n":
            sock.send(bytes([byte]))
        assert everything(sock).endswith(b"# EOF\n")


def test_without_being_asked_for_there_are_no_metrics(store: str) -> None:
    with tap_in_thread(store) as (tap, _):
        assert tap.metrics_addresses == []
        assert tap._pages is None


def test_a_taken_port_is_in_use_and_nothing_is_left(store: str, tmp_path: Path) -> None:
    with told(store) as (_, _, address), Session.open(store, "read") as session:
        unix = str(tmp_path / "s")
        with pytest.raises(InUse):
            Tap(session, unix, metrics=address)
        assert not Path(unix).exists()


@pytest.mark.slow
def test_curl_gets_the_page(store: str) -> None:
    with told(store) as (_, _, (host, port)):
        url = f"http://{host}:{port}/metrics"
        command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "90", url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert Values(done.stdout)["parallax_tap_connections"] == 0
        refused = subprocess.run([*command, "--data", "x=y"], capture_output=True, check=False)
        assert refused.returncode == 22  # curl's word for 405


# -- those who ask ---------------------------------------------------------------------


def test_visitors_who_say_nothing_make_room(store: str) -> None:
    """At once, not when their time is up: nobody looks at that here."""
    with told(store, commit_interval=3600.0) as (_, _, address), ExitStack() as idle:
        silent = [
            idle.enter_context(create_connection(address, 90)) for _ in range(MOST_VISITORS + 5)
        ]
        assert body(ask(address)).endswith("# EOF\n")
        for sock in silent[:5]:
            assert sock.recv(1) == b""


def test_visitors_who_take_too_long_are_dropped(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tap.http.PATIENCE", 0.05)
    with (
        told(store, commit_interval=0.05) as (_, _, address),
        create_connection(address, 90) as sock,
    ):
        sock.send(b"GET /met")
        assert sock.recv(1) == b""


def test_a_visitor_who_never_reads_does_not_hold_up_a_guest(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page is far larger than what the sockets hold."""
    with told(store) as (tap, unix, address), RawClient(unix) as client:
        assert tap._pages is not None
        monkeypatch.setattr(tap._pages, "_page", lambda: iter([b"x" * (1 << 20)] * 64))
        client.go("clone")
        with create_connection(address, 90) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert sock.recv(1) == b"H"
            assert client.write(0, b"12345") == 0
            assert client.read(0, 5) == b"12345"


def test_visitors_who_come_together_share_a_page(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    with told(store) as (tap, _, address):
        assert tap._pages is not None
        page = tap._pages._page

        def counting() -> Iterator[bytes]:
            made.append(1)
            yield from page()

        monkeypatch.setattr("core.tap.http._FRESH", 60.0)
        monkeypatch.setattr(tap._pages, "_page", counting)
        pages = {ask(address) for _ in range(20)}
    assert len(made) == 1
    assert len(pages) == 1


def test_a_visitor_who_leaves_early_is_forgotten(store: str) -> None:
    with told(store) as (tap, _, address):
        for _ in range(5):
            with create_connection(address, 90) as sock:
                sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        ask(address)
        assert tap._pages is not None
        while tap._pages.visitors:
            time.sleep(0.01)
        assert tap._pages._waiting == []


def test_a_page_that_cannot_be_made_is_an_error_and_serving_goes_on(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("a bug")

    with told(store) as (tap, unix, address), RawClient(unix) as client:
        assert tap._pages is not None
        good = tap._pages._page
        monkeypatch.setattr(tap._pages, "_page", broken)
        answer = ask(address)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert body(answer) == "see the log\n"
        assert client.go("clone").write(0, b"x") == 0
        monkeypatch.setattr(tap._pages, "_page", good)
        assert body(ask(address)).endswith("# EOF\n")


# -- counting --------------------------------------------------------------------------


def test_the_number_of_exports_is_bounded() -> None:
    """Ten thousand exports: the latest keep their numbers, the sum keeps all."""
    totals = Totals()
    for number in range(10_000):
        totals.retire(f"vdi{number}", Counts(reads=1, bytes_read=4096))
        totals.prune({"vdi7"})
    assert len(totals.exports) == MOST_EXPORTS
    assert "vdi9999" in totals.exports
    assert "vdi8" not in totals.exports
    assert "vdi7" in totals.exports, "an open export went back"
    assert totals.all == Counts(reads=10_000, bytes_read=40_960_000)


def test_a_page_tells_of_no_more_exports(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open ones come first; the numbers of the tap hold all."""
    monkeypatch.setattr("core.tap.metrics.MOST_EXPORTS", 2)
    monkeypatch.setattr("core.tap.metrics._SLICE", 1)
    with told(store) as (_, unix, address), ExitStack() as stack:
        for name in ("golden@base", "golden"):
            with RawClient(unix) as client:
                client.go(name).read(0, 10)
        for name in ("clone", "empty"):
            client = stack.enter_context(RawClient(unix))
            client.go(name).read(0, 10)
        closed(unix, left=2)
        page = values(address)
    exports = {key[1] for key in page if key[0].startswith("parallax_tap_export_")}
    assert exports == {"clone", "empty"}
    assert page["parallax_tap_read_bytes_total"] == 40
    assert page["parallax_tap_open_exports"] == 2


def test_a_closed_export_that_comes_back_goes_on(store: str) -> None:
    with told(store) as (_, unix, address):
        for _ in range(3):
            with RawClient(unix) as client:
                client.go("clone").read(0, 10)
        assert values(address)["parallax_tap_export_read_bytes_total", "clone"] == 30


def test_counts_add_up() -> None:
    """Every one of them: each field has a number of its own."""
    names = [field.name for field in fields(Counts)]
    left = Counts(*range(1, len(names) + 1))
    left.add(Counts(*range(100, 100 + len(names))))
    assert [getattr(left, name) for name in names] == [101 + 2 * n for n in range(len(names))]


def test_durations_are_counted_by_how_long_they_were() -> None:
    durations = Durations()
    for seconds in (0.0001, BOUNDS[0], BOUNDS[0] + 1e-6, 1e6):
        durations.add(seconds)
    assert durations.buckets[0] == 2
    assert durations.buckets[1] == 1
    assert durations.buckets[-1] == 1
    assert sum(durations.buckets) == 4
    assert durations.sum > 1e6


def test_rates_have_a_full_interval_behind_them() -> None:
    recent = Recent(100.0)
    counts = Counts()
    for now in (105.0, 110.0, 115.0):
        counts.bytes_read += 1000
        recent.sample(now, counts)
        since, before = recent.told
        assert now - since == 5.0
        assert counts.bytes_read - before.bytes_read == 1000


def test_a_tap_remembers_what_was_done_a_moment_ago(store: str) -> None:
    with tap_in_thread(store, commit_interval=0.02) as (_, unix), RawClient(unix) as client:
        client.go("clone").read(0, 1000)
        while True:
            [connection] = query_status(unix)["exports"][0]["connections"]
            if connection["recent"]["counts"]["bytes_read"]:
                break
        assert connection["recent"]["counts"] == connection["counts"]
        assert connection["recent"]["since"] > connection["since"]
