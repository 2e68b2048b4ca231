"""The lock master as a process of its own, and its metrics."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from lock.conftest import Join
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.locks import KEY, ROOT, soon

from core.errors import InUse
from core.lock_epoch import EpochFile
from core.lock_metrics import LockMetrics, MetricsPage
from core.lock_service import LockService
from core.lock_timing import Timing

pytestmark = pytest.mark.slow

SERVE = """
import json, sys
from core.lock_serve import serve_lock_master
from core.lock_timing import Timing
serve_lock_master(
    ("127.0.0.1", 0), sys.argv[1], state=sys.argv[2], timing=Timing.of(4.0),
    key=sys.argv[3].encode(),
    metrics=("127.0.0.1", 0),
    ready=lambda service: print(json.dumps(service.addresses), flush=True),
)
print("ended", flush=True)
"""


@pytest.fixture
def timing() -> Timing:
    """So long that nothing ends by itself."""
    return Timing.of(600)


def test_it_serves_until_it_is_told_to_stop(folder: Path, unix: str, join: Join) -> None:
    state = str(folder / "epoch")
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(folder / "notify"))
    program = subprocess.Popen(
        [sys.executable, "-c", SERVE, unix, state, KEY.decode()],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(folder / "notify")},
    )
    try:
        assert program.stdout is not None
        (host, port), path = json.loads(program.stdout.readline())
        assert path == unix
        assert told.recv(100) == b"READY=1"
        with pytest.raises(InUse, match="another lock master runs"):
            EpochFile(state)
        join(f"{host}:{port}").acquire("vdi/1", wait=60.0)
        program.send_signal(signal.SIGHUP)  # as SIGTERM
        assert program.stdout.read() == "ended\n"
        assert program.wait(60) == 0
        assert told.recv(100) == b"STOPPING=1"
        assert not os.path.exists(unix)
    finally:
        program.kill()
        program.wait()
        if program.stdout is not None:
            program.stdout.close()
        told.close()


def test_the_metrics(master: LockService, join: Join) -> None:
    page = MetricsPage(LockMetrics(master), ("127.0.0.1", 0))
    try:
        locks = join()
        locks.acquire("vdi/1")
        locks.acquire("vdi/2", shared=True)
        master.refused["browser"] += 1
        with urllib.request.urlopen(f"http://127.0.0.1:{page.address[1]}/metrics") as answer:
            text = answer.read().decode()
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        start = "parallax_lock_"
        assert found[start + "sessions",] == 1
        assert found[start + "grants", "exclusive"] == 1
        assert found[start + "grants", "shared"] == 1
        assert found[start + "refused_connections_total", "browser"] == 1
        assert found[start + "messages_total", "acquire"] == 2
        assert found[start + "epoch",] == 1
        assert found[start + "quiet_seconds",] == 0
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{page.address[1]}/")
    finally:
        page.close()


def test_the_metrics_are_documented(master: LockService) -> None:
    page = LockMetrics(master).text().decode()
    told = {
        (family.name + "_total" * (family.type == "counter"), family.type)
        for family in text_string_to_metric_families(page)
        if family.name.startswith("parallax_")
    }
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^\| `(parallax_lock_\w+)` \| (\w+) \|", text, re.MULTILINE)} == told


def test_a_slow_visitor_of_the_metrics_is_dropped(
    master: LockService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.lock_metrics.PATIENCE", 0.3)
    page = MetricsPage(LockMetrics(master), ("127.0.0.1", 0))
    try:
        with socket.create_connection(page.address, 60) as slow:
            slow.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            soon(lambda: slow.recv(100) == b"")
    finally:
        page.close()
