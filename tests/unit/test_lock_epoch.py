"""The epoch file: raised at each start, durable before anyone hears of it, one master at a time."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from core.errors import InUse, IoFailed, NotFound
from core.lock_epoch import EpochFile, Start, VolatileEpochs
from core.lock_master import LockMaster
from core.lock_messages import Acquire, Granted, Hello, Welcome
from core.lock_timing import Timing


def start(path: Path, hold: float = 35.0) -> Start:
    """Begin a run and have it killed."""
    epochs = EpochFile(str(path))
    try:
        return epochs.start(hold)
    finally:
        epochs.close()


def test_each_start_is_higher(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    assert [start(path).epoch for _ in range(3)] == [1, 2, 3]
    assert sorted(os.listdir(tmp_path)) == ["epoch", "epoch.lock"]


def test_the_quiet_time_is_as_long_as_any_promise_still_binds(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    assert start(path, 140.0) == Start(1, 140.0)
    assert start(path, 35.0) == Start(2, 140.0)
    assert start(path, 35.0) == Start(3, 140.0)
    epochs = EpochFile(str(path))
    epochs.start(35.0)
    epochs.settle()
    epochs.close()
    assert start(path, 35.0) == Start(5, 35.0)
    assert start(path, 60.0) == Start(6, 60.0)


def test_the_uuid_is_made_once_and_stays(tmp_path: Path) -> None:
    told = []
    for _ in range(3):
        epochs = EpochFile(str(tmp_path / "epoch"))
        epochs.start(35.0)
        told.append(epochs.uuid)
        epochs.close()
    assert len(set(told)) == 1
    assert len(bytes.fromhex(told[0])) == 16
    other = EpochFile(str(tmp_path / "other"))
    other.close()
    assert other.uuid != told[0]


def test_an_old_file_gets_a_uuid_at_the_next_start(tmp_path: Path) -> None:
    said = "parallax-lock-epoch 7 35.0"
    (tmp_path / "epoch").write_text(f"{said} {zlib.crc32(said.encode()):08x}\n")
    epochs = EpochFile(str(tmp_path / "epoch"))
    assert epochs.start(35.0) == Start(8, 35.0)
    epochs.close()
    again = EpochFile(str(tmp_path / "epoch"))
    assert again.uuid == epochs.uuid
    again.close()


def test_a_raised_epoch_stays(tmp_path: Path) -> None:
    epochs = EpochFile(str(tmp_path / "epoch"))
    epochs.start(35.0)
    epochs.raise_to(90)
    epochs.close()
    epochs.close()
    assert start(tmp_path / "epoch").epoch == 91


def test_a_second_master_is_kept_away(tmp_path: Path) -> None:
    epochs = EpochFile(str(tmp_path / "epoch"))
    with pytest.raises(InUse, match="another lock master runs with"):
        EpochFile(str(tmp_path / "epoch"))
    epochs.close()
    EpochFile(str(tmp_path / "epoch")).close()


@pytest.mark.parametrize(
    "wrong",
    [b"", b"\xff\xfe", b"parallax-lock-epoch 7 35.0 00000000\n", b"parallax-lock-epoch 7\n"],
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, wrong: bytes) -> None:
    path = tmp_path / "epoch"
    path.write_bytes(wrong)
    with pytest.raises(IoFailed, match="is damaged"):
        EpochFile(str(path))
    assert path.read_bytes() == wrong


def test_every_change_of_a_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    start(path)
    whole = path.read_bytes().rstrip(b"\n")
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(IoFailed):
            EpochFile(str(path))


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        EpochFile(str(tmp_path / "no" / "epoch"))


def test_it_is_durable_before_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file is flushed, takes the place of the old one, and that is flushed too."""
    done = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(fd: int) -> None:
        done.append(f"flush {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def noted_replace(source: str, target: str) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    start(tmp_path / "epoch")
    assert done == ["flush epoch.new", "replace", f"flush {tmp_path.name}"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_without_a_durable_epoch_there_is_no_master(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    start(tmp_path / "epoch")
    epochs = EpochFile(str(tmp_path / "epoch"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(IoFailed, match="No space left on device"):
            LockMaster(Timing(), epochs)
        epochs.settle()
    epochs.close()
    assert start(tmp_path / "epoch").epoch == 2


def test_tokens_grow_over_restarts(tmp_path: Path) -> None:
    tokens = []
    for _ in range(3):
        epochs = EpochFile(str(tmp_path / "epoch"))
        master = LockMaster(Timing(), epochs, 0.0)
        for at in range(1, 36):
            master.tick(float(at))
        (welcome,) = master.receive(35.0, Hello("n", "alpha", 7, "test"))
        assert isinstance(welcome, Welcome)
        for seq, name in enumerate(("vdi/1", "vdi/2"), start=1):
            (granted,) = master.receive(35.0, Acquire(welcome.session, seq, name, False, 0.0, 0))
            assert isinstance(granted, Granted)
            tokens.append(granted.token)
        epochs.close()
    assert tokens == sorted(set(tokens))
    assert tokens[-1] >> 32 == 3


def test_within_one_process_nothing_is_kept() -> None:
    epochs = VolatileEpochs()
    assert epochs.start(35.0) == Start(0, 0.0)
    epochs.raise_to(4)
    epochs.settle()
    assert epochs.start(35.0) == Start(0, 0.0)
