"""What happens to a score store when the machine fails: kills, full disks, two writers, signals."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atlantis import api, journal
from atlantis.disk import exclusive
from atlantis.errors import ResumableError
from atlantis.scoring import windows
from atlantis.scoring.transformers_scorer import TransformersScorer
from atlantis.store import ScoreStore

NUM_KILLS = 200
BATCH = 4


@pytest.fixture(scope="module")
def model(saved_model):
    return str(saved_model("qwen2"))


def rows_file(path, num_rows):
    rng = random.Random(0)
    words = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author"]
    with path.open("w") as lines:
        for row in range(num_rows):
            prompt = " ".join(rng.choices(words, k=rng.randint(1, 30)))
            completion = " " + " ".join(rng.choices(words, k=rng.randint(1, 20)))
            line = {"example_id": f"r{row}", "prompt": prompt, "completion": completion}
            lines.write(json.dumps(line) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return rows_file(tmp_path_factory.mktemp("data") / "rows.jsonl", 240)


def score(data, model, out):
    return api.score(data, model=model, out=out, token_budget=160, device="cpu")


def content(folder):
    """The store; the lock and unfinished temporary files are no part of it."""
    files = [p for p in folder.iterdir() if not p.name.startswith((".lock", ".tmp-"))]
    return {path.name: path.read_bytes() for path in files}


def digest(folder):
    return sorted(map(str, ScoreStore(folder).read().to_pylist()))


@pytest.fixture(scope="module")
def expected(data, model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "ROWS_PER_PART", 64)
        return content(score(data, model, tmp_path_factory.mktemp("s") / "undisturbed").folder)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(windows, "ROWS_PER_PART", 64)


def score_noting_batches(data, model, out, log):
    """Score in a child; a line of the log says which rows a batch held."""
    original = TransformersScorer.score

    def noted(self, batch):
        found = original(self, batch)
        with log.open("a") as lines:
            lines.write(" ".join(row.example_id for row in batch) + "\n")
        return found

    TransformersScorer.score = noted
    score(data, model, out)


@pytest.mark.timeout(900)
def test_two_hundred_kills_repeat_at_most_a_batch_each_and_change_no_byte(
    data, model, expected, tmp_path, fork
):
    def start(out, batches):
        errors = tmp_path / "errors"
        return fork(lambda: score_noting_batches(data, model, out, batches), errors)

    begin = time.monotonic()
    assert start(tmp_path / "whole", tmp_path / "whole.log").wait() == 0
    seconds = time.monotonic() - begin
    num_batches = len((tmp_path / "whole.log").read_text().splitlines())
    assert num_batches > 20
    rng, kills, number = random.Random(1), 0, 0
    while kills < NUM_KILLS:
        number += 1
        out, log, killed = tmp_path / f"s{number}", tmp_path / f"s{number}.log", 0
        log.touch()
        while True:
            child = start(out, log)
            if kills < NUM_KILLS:
                time.sleep(rng.uniform(0, 0.9 * seconds))
                child.kill()
            code = child.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills, killed = kills + 1, killed + 1
        assert content(out) == expected
        scored = log.read_text().splitlines()
        assert len(scored) - num_batches <= killed  # one batch may be scored, but not yet written


class FailsOnce:
    """A system call whose n-th use fails."""

    def __init__(self, real, number, code):
        self.real, self.number, self.code = real, number, code
        self.calls = 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == self.number:
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*arguments)


@pytest.mark.parametrize("operation", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_the_nth_operation_on_the_disk_may_fail(model, tmp_path, monkeypatch, operation, code):
    data = rows_file(tmp_path / "rows.jsonl", 70)
    expected = content(score(data, model, tmp_path / "undisturbed").folder)
    for fails in range(1, 1000):
        out = tmp_path / str(fails)
        with monkeypatch.context() as patch:
            patch.setattr(os, operation, FailsOnce(getattr(os, operation), fails, code))
            try:
                score(data, model, out)
                break
            except OSError as error:
                found = error.errno
        assert found == code
        assert score(data, model, out).is_complete
        assert content(out) == expected
    assert fails > 5  # the fault struck at several places before a run came through
    assert content(tmp_path / str(fails)) == expected


def test_a_write_that_takes_only_a_part_is_continued(data, model, expected, tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(
        os, "write", lambda handle, rest: real(handle, rest[: max(1, len(rest) // 3)])
    )
    assert content(score(data, model, tmp_path / "s").folder) == expected


COMMAND = (
    "import sys; from atlantis.scoring import windows; windows.ROWS_PER_PART = 64\n"
    "from atlantis.cli import main; sys.argv[0] = 'atlantis'; main()"
)


def run_command(data, model, out, **options):
    return subprocess.Popen(
        [
            *(sys.executable, "-c", COMMAND, "score", str(data), "--model", model),
            *("--out", str(out), "--token-budget", "160", "--device", "cpu"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_full_disk_is_one_line_and_a_rerun_goes_on(data, model, expected, tmp_path):
    limit = len(expected["part-00000.parquet"]) // 2

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = run_command(data, model, tmp_path / "s", preexec_fn=small_files)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert len(errors.strip().splitlines()) == 1, errors
    assert "File too large" in errors
    assert not any(path.name.startswith(".tmp-") for path in (tmp_path / "s").iterdir())
    score(data, model, tmp_path / "s")
    assert content(tmp_path / "s") == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_command_and_a_rerun_goes_on(
    data, model, expected, tmp_path, number, code
):
    out = tmp_path / "s"
    process = run_command(data, model, out)
    while not list(out.glob(".journal-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode in (code, 0)  # 0: the signal came after the last batch
    if process.returncode:
        assert "run the same command to go on" in errors
    score(data, model, out)
    assert content(out) == expected


def test_a_second_writer_is_refused_and_readers_are_not_disturbed(data, model, tmp_path, fork):
    out, log = tmp_path / "s", tmp_path / "errors"
    score(data, model, out)
    before = digest(out)
    with exclusive(out):
        assert fork(lambda: score(data, model, out), log).wait() == 1
        assert ResumableError.__name__ in log.read_text()
        assert "in use by another process" in log.read_text()
        assert digest(out) == before


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 0.99])
def test_a_torn_or_flipped_journal_is_used_as_far_as_it_is_whole(
    data, model, expected, tmp_path, monkeypatch, keep
):
    class StopHereError(Exception):
        pass

    def stop(*_, **__):
        raise StopHereError

    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "write_part", stop)
        for number in (1, 2):
            with pytest.raises(StopHereError):
                score(data, model, tmp_path / str(number))
    torn = tmp_path / "1" / ".journal-00000"
    flipped = tmp_path / "2" / ".journal-00000"
    num_batches = len(journal.Journal(torn).read())
    whole = torn.read_bytes()
    torn.write_bytes(whole[: int(keep * len(whole))])
    place = int(keep * len(whole))
    flipped.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for number in (1, 2):
        left = len(journal.Journal(tmp_path / str(number) / ".journal-00000").read())
        assert left == pytest.approx(keep * num_batches, abs=2)
        assert left < num_batches
        assert content(score(data, model, tmp_path / str(number)).folder) == expected


def test_files_are_synced_before_they_get_their_name(data, model, tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle):
        steps.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def noted_replace(source, target):
        steps.append(("replace", Path(source).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    out = score(data, model, tmp_path / "s").folder
    renamed = [i for i, (what, _) in enumerate(steps) if what == "replace"]
    assert len(renamed) >= 8
    for i in renamed:
        assert steps[i - 1] == ("fsync", steps[i][1])
        assert steps[i + 1] == ("fsync", out.name)
