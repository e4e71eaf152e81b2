"""Checkpoint folders without a model: whole or absent, checked to the byte, never another's."""

import errno
import json
import logging
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from atlantis.errors import ConfigError, ResumableError, StoreError
from atlantis.training import checkpoints
from atlantis.training.config import TrainingConfig
from atlantis.training.resuming import saving, signals_wait
from atlantis.validation import validated

FILES = ("model.safetensors", "optimizer.pt", "rng_state.pth", "part/adapter.bin")
FINGERPRINT = {"data": "d", "training.learning_rate": 0.1, "weights": None}


def write(out, step, fingerprint=FINGERPRINT):
    written = checkpoints.staging(out) / f"checkpoint-{step}"
    for name in FILES:
        (written / name).parent.mkdir(parents=True, exist_ok=True)
        (written / name).write_bytes(f"{name} at {step}".encode() * 10)
    return checkpoints.seal(written, out, fingerprint)


def names(out):
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def flip(path, place=5):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_sealed_checkpoint_is_whole_and_found_again(tmp_path):
    assert checkpoints.newest(tmp_path, FINGERPRINT) is None
    sealed = write(tmp_path, 5)
    assert sealed == tmp_path / "checkpoint-5"
    assert checkpoints.damage(sealed) is None
    assert checkpoints.newest(tmp_path, FINGERPRINT) == sealed
    manifest = json.loads((sealed / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(FILES)
    assert manifest["fingerprint"] == FINGERPRINT


def test_the_newest_two_stay_by_step_and_not_by_name(tmp_path):
    for step in (8, 9, 10, 100):
        write(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]
    assert checkpoints.newest(tmp_path, FINGERPRINT) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("harm", [Path.unlink, truncate, flip])
def test_a_missing_cut_or_flipped_file_is_said_and_the_older_one_is_taken(
    tmp_path, caplog, name, harm
):
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    harm(newer / name)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest(tmp_path, FINGERPRINT) == older
    (record,) = caplog.records
    assert "checkpoint-2 is skipped: " in record.getMessage()
    assert name in record.getMessage()
    assert "\n" not in record.getMessage()


def test_an_emptied_folder_and_a_manifest_of_something_else_are_skipped(tmp_path, caplog):
    for step, content in ((1, None), (2, "[]"), (3, "{}"), (4, '{"files": {}}')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if content is not None:
            (folder / "manifest.json").write_text(content)
    assert checkpoints.newest(tmp_path, FINGERPRINT) is None
    assert len(caplog.records) == 4


def test_a_file_that_was_put_there_later_is_not_trusted(tmp_path):
    sealed = write(tmp_path, 1)
    (sealed / "pytorch_model.bin").write_bytes(b"a pickle")
    assert checkpoints.damage(sealed) == "pytorch_model.bin is not in its manifest.json"


@pytest.mark.parametrize("field", list(FINGERPRINT))
def test_a_checkpoint_of_another_training_is_refused_with_the_field(tmp_path, field):
    write(tmp_path, 1)
    with pytest.raises(StoreError, match=f"checkpoint-1 was made with {field} = "):
        checkpoints.newest(tmp_path, FINGERPRINT | {field: "other"})


def test_a_damaged_later_one_is_replaced_when_the_training_comes_to_its_step(tmp_path):
    write(tmp_path, 2)
    flip(write(tmp_path, 4) / "optimizer.pt")
    write(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    flip(tmp_path / "checkpoint-3" / "optimizer.pt")
    assert checkpoints.damage(write(tmp_path, 3)) is None


def test_clearing_leaves_checkpoints_and_hidden_files_only(tmp_path):
    write(tmp_path, 3)
    for name in (".lock", "model.safetensors", "checkpoint-x"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    checkpoints.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoint-3"]
    checkpoints.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_every_byte_is_synced_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    steps = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(handle):
        steps.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def noted_rename(source, target):
        steps.append(f"rename {target.name}")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    write(tmp_path, 1)
    written = checkpoints.staging(tmp_path) / "checkpoint-1"
    assert steps[-2:] == ["rename checkpoint-1", str(tmp_path)]
    before = set(steps[:-2])
    assert before >= {str(written / name) for name in FILES}
    assert {str(written), str(written / "part"), str(written / ".tmp-manifest.json")} <= before


@pytest.mark.parametrize("operation", ["fsync", "replace", "write"])
def test_a_disk_that_fails_leaves_nothing_under_a_name(tmp_path, monkeypatch, operation):
    write(tmp_path, 1)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    written = checkpoints.staging(tmp_path) / "checkpoint-2"
    with monkeypatch.context() as patch:
        patch.setattr(os, operation, fail)
        with pytest.raises(ResumableError, match="No space left"), saving("it", written):
            write(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1"]
    assert not written.exists()
    assert checkpoints.newest(tmp_path, FINGERPRINT) == write(tmp_path, 1)


def test_a_kill_while_one_is_deleted_leaves_no_part_of_it(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(folder, **_):
        raise Killed

    write(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            checkpoints.remove(tmp_path)
    assert all(checkpoints.damage(path) is None for path in tmp_path.glob("checkpoint-*"))
    checkpoints.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


class StoppedError(BaseException):
    pass


@pytest.fixture
def handled():
    """SIGTERM raises, as in the command line."""

    def stop(signum, frame):
        raise StoppedError(signum)

    previous = signal.signal(signal.SIGTERM, stop)
    yield stop
    signal.signal(signal.SIGTERM, previous)


def test_a_signal_waits_for_the_end_and_then_does_what_it_always_did(handled):
    reached = []

    def work():
        with signals_wait() as interruption:
            reached.append(interruption.signum)
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(interruption.signum)

    with pytest.raises(StoppedError):
        work()
    assert reached == [None, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handled


def test_a_second_signal_does_not_wait(handled):
    reached = []

    def work():
        with signals_wait():
            for number in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append(number)

    with pytest.raises(StoppedError):
        work()
    assert reached == [0]


def test_an_error_goes_before_a_signal_that_waits(handled):
    def work():
        with signals_wait():
            os.kill(os.getpid(), signal.SIGTERM)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert signal.getsignal(signal.SIGTERM) is handled


def test_without_a_handler_of_ours_ctrl_c_is_a_keyboard_interrupt():
    # A process in the background ignores the signal unless told otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), signals_wait():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_changes(handled):
    found = []

    def work():
        with signals_wait():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [handled]


@pytest.mark.parametrize(
    ("given", "num_steps", "every"),
    [
        ("auto", 30, 50),
        ("auto", 1000, 100),
        ("auto", 1001, 101),
        ("never", 1000, None),
        (7, 30, 7),
        ("7", 30, 7),
    ],
)
def test_checkpoints_are_a_tenth_of_the_steps_apart_unless_told(given, num_steps, every):
    config = validated(TrainingConfig, {"checkpoint_steps": given}, where="here")
    assert config.steps_between_checkpoints(num_steps) == every
    assert config.settings == TrainingConfig().settings  # the trained model is the same


@pytest.mark.parametrize("given", [0, -1, "often", 1.5])
def test_a_wrong_number_of_steps_is_refused(given):
    with pytest.raises(ConfigError, match="checkpoint_steps"):
        validated(TrainingConfig, {"checkpoint_steps": given}, where="here")
