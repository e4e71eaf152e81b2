"""A training that is killed, damaged, stopped or out of disk, and goes on: the same bytes."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from atlantis.cli import main
from atlantis.errors import ResumableError, StoreError
from atlantis.models.loading import LoadingConfig
from atlantis.records import Example
from atlantis.stages import Stage
from atlantis.training import checkpoints, stage
from atlantis.training.config import TrainingConfig
from atlantis.training.resuming import CheckpointCallback

NUM_KILLS = 20
SECRETS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "progress.json")
"""What the Trainer resumes without, or with something else in its place, or not at all."""


def examples(num_rows=60, seed=0):
    rng = random.Random(seed)
    words = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author"]
    return [
        Example(
            f"r{row}",
            " ".join(rng.choices(words, k=rng.randint(2, 20))),
            " " + " ".join(rng.choices(words, k=rng.randint(1, 8))),
        )
        for row in range(num_rows)
    ]


def weights_of(rows, seed=0):
    rng = random.Random(seed)
    return {row.example_id: rng.uniform(0.2, 2.0) for row in rows}


@pytest.fixture(scope="module")
def model(saved_model):
    # Dropout: the random numbers of a step decide its gradient.
    return str(saved_model("qwen2", attention_dropout=0.1))


ROWS = examples()
SETTINGS = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 4, "checkpoint_steps": 5}


def train(model, out, *, rows=ROWS, weights=None, seed=0, num_steps=None, **changes):
    """45 steps in 3 epochs of 15, unless told."""
    stage.run(
        rows,
        weights or weights_of(rows),
        model,
        out,
        config=TrainingConfig.model_validate(SETTINGS | changes),
        loading=LoadingConfig(),
        max_length=128,
        seed=seed,
        num_steps=num_steps,
    )
    return content(out)


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


class StoppedError(Exception):
    """Ends a training after a checkpoint."""


def train_until(model, out, step, **changes):
    """Stop right after ``checkpoint-step`` got its name."""
    seal = checkpoints.seal

    def sealed(written, *arguments):
        seal(written, *arguments)
        if written.name == f"checkpoint-{step}":
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "seal", sealed)
        with pytest.raises(StoppedError):
            train(model, out, **changes)
    return out


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    return train(model, tmp_path_factory.mktemp("t") / "out", checkpoint_steps="never")


@pytest.fixture(scope="module")
def stopped(model, tmp_path_factory):
    """A training that was stopped with checkpoint-20 and checkpoint-25 there."""
    return train_until(model, tmp_path_factory.mktemp("t") / "out", 25)


@pytest.fixture
def out(stopped, tmp_path):
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "out")


def test_twenty_kills_leave_the_model_and_the_losses_of_an_undisturbed_run(model, tmp_path, fork):
    steps = {"num_steps": 105, "checkpoint_steps": 7}  # logged every second step, saved in between
    log, begin = tmp_path / "log", time.monotonic()
    assert fork(lambda: train(model, tmp_path / "whole", **steps), log).wait() == 0
    seconds, expected = time.monotonic() - begin, content(tmp_path / "whole")
    assert {"model.safetensors", "run.json"} <= expected.keys()
    assert len(json.loads(expected["run.json"])["loss"]) == 52
    rng, kills, number = random.Random(1), 0, 0
    while kills < NUM_KILLS:
        number += 1
        out = tmp_path / f"killed{number}"
        while True:
            child = fork(lambda out=out: train(model, out, **steps), log)
            if kills < NUM_KILLS:
                time.sleep(rng.uniform(0, 0.6 * seconds))
                child.kill()
            code = child.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL, log.read_text()
            kills += 1
        assert content(out) == expected
    assert log.read_text().count("goes on from checkpoint-") > 5


SHORT = {"num_steps": 16, "checkpoint_steps": 5}


@pytest.fixture(scope="module")
def expected_of_short(model, tmp_path_factory):
    return train(model, tmp_path_factory.mktemp("t") / "out", **SHORT)


@pytest.mark.parametrize("number", range(1, 70, 7))
def test_a_kill_at_the_nth_operation_on_the_disk(model, tmp_path, number, expected_of_short, fork):
    out, log = tmp_path / "out", tmp_path / "log"

    def killed():
        count = 0

        def counted(real):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for owner, name in ((os, "fsync"), (os, "replace"), (Path, "rename"), (shutil, "rmtree")):
            setattr(owner, name, counted(getattr(owner, name)))
        train(model, out, **SHORT)

    assert fork(killed, log).wait() == -signal.SIGKILL
    assert all(checkpoints.damage(path) is None for path in out.glob("checkpoint-*"))
    assert train(model, out, **SHORT) == expected_of_short


@pytest.mark.parametrize(
    "changes",
    [
        {"group_by_length": False},
        {"gradient_accumulation": 2, "schedule": "cosine", "loss": "dft"},
        {"lora": {"r": 4, "dropout": 0.1}},
    ],
    ids=["random order", "accumulation", "adapters"],
)
def test_every_kind_of_training_goes_on_inside_and_between_epochs(model, tmp_path, changes):
    expected = train(model, tmp_path / "whole", num_steps=45, **changes)
    for step in (10, 15, 25, 40):
        train_until(model, tmp_path / "out", step, num_steps=45, **changes)
    assert train(model, tmp_path / "out", num_steps=45, **changes) == expected


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_every_damage_is_seen_and_the_older_checkpoint_taken(stopped, tmp_path, caplog):
    manifest = json.loads((stopped / "checkpoint-20" / "manifest.json").read_text())
    for name in (*SECRETS, "model.safetensors", "manifest.json"):
        for harm in (Path.unlink, truncate, flip):
            caplog.clear()
            out = shutil.copytree(stopped, tmp_path / f"{name}-{harm.__name__}")
            harm(out / "checkpoint-25" / name)
            assert checkpoints.newest(out, manifest["fingerprint"]) == out / "checkpoint-20"
            (record,) = caplog.records
            assert f"{out / 'checkpoint-25'} is skipped: " in record.getMessage()
            assert name in record.getMessage()


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("optimizer.pt", Path.unlink),  # the Trainer resumes without these three, and differs
        ("scheduler.pt", Path.unlink),
        ("rng_state.pth", Path.unlink),
        ("optimizer.pt", flip),
        ("trainer_state.json", truncate),
        ("model.safetensors", flip),
    ],
)
def test_after_damage_the_bytes_are_those_of_an_undisturbed_run(
    model, expected, out, caplog, name, harm
):
    harm(out / "checkpoint-25" / name)
    assert train(model, out) == expected
    skipped, resumed = (record.getMessage() for record in caplog.records)
    assert "checkpoint-25 is skipped: " in skipped
    assert resumed == f"{out}: goes on from checkpoint-20 of 45 steps"


def test_without_a_checkpoint_that_is_whole_it_begins_anew(model, expected, out, caplog):
    (out / "checkpoint-20" / "rng_state.pth").unlink()
    shutil.rmtree(out / "checkpoint-25")
    (out / "checkpoint-25").mkdir()
    assert train(model, out) == expected
    assert [" is skipped: " in record.getMessage() for record in caplog.records] == [True, True]


def test_a_checkpoint_holds_all_that_the_trainer_reads_and_no_pickle_of_arguments(stopped):
    names = {path.name for path in (stopped / "checkpoint-25").iterdir()}
    assert {*SECRETS, "model.safetensors", "manifest.json"} <= names
    assert "training_args.bin" not in names


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("data", {"rows": [*ROWS[:-1], Example("r59", "another", " row")]}),
        ("weights", {"weights": weights_of(ROWS, seed=1)}),
        ("training.learning_rate", {"learning_rate": 2e-3}),
        ("training.lora", {"lora": {"r": 4}}),
        ("training.num_steps", {"num_steps": 46}),
        ("seed", {"seed": 1}),
    ],
)
def test_checkpoints_of_another_training_are_refused_with_the_field(model, out, field, changes):
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(StoreError, match=rf"checkpoint-25 was made with {field} = "):
        train(model, out, **changes)
    assert sorted(path.name for path in out.iterdir()) == before


def test_checkpoints_of_another_model_or_version_are_refused(model, out, saved_model, monkeypatch):
    with pytest.raises(StoreError, match="made with model = "):
        train(str(saved_model("qwen2", seed=1)), out)
    monkeypatch.setattr(stage.torch, "__version__", "3.0")
    with pytest.raises(StoreError, match=r"made with versions.torch = .*now it is '3.0'"):
        train(model, out)


def test_how_often_checkpoints_are_saved_may_change_on_the_way(model, expected, out):
    assert train(model, out, checkpoint_steps=11) == expected


def test_a_stage_goes_on_in_the_folder_of_the_killed_one(model, expected, tmp_path, caplog):
    def made(work):
        return Stage(tmp_path, "train", {}, (), work, resumable=True).make(lambda stage: None)

    with pytest.raises(StoppedError):
        made(lambda folder: (train_until(model, folder, 25), stop(folder)))
    found = content(made(lambda folder: train(model, folder)))
    assert "goes on from checkpoint-25" in caplog.text
    del found["stage.json"]
    assert found == expected


def stop(folder):
    raise StoppedError


def test_a_result_that_was_whole_when_it_was_killed_is_left_as_it_is(
    model, expected, out, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "remove", stop)
        with pytest.raises(StoppedError):
            train(model, out)
    monkeypatch.setattr(stage, "training_rows", lambda *_, **__: pytest.fail("trained again"))
    assert train(model, out) == expected
    with pytest.raises(StoreError, match="made with seed = 0"):
        train(model, out, seed=1)


def test_a_loss_that_is_not_finite_stops_at_once_and_leaves_no_checkpoints(model, tmp_path):
    for checkpoint_steps in (1, 100):
        with pytest.raises(ResumableError, match=r"not finite; lower training.learning_rate"):
            train(model, tmp_path, learning_rate=1e30, checkpoint_steps=checkpoint_steps)
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def command(model, tmp_path_factory, fork):
    """``atlantis train`` in a process of its own."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [
        {"example_id": row.example_id, "prompt": row.prompt, "completion": row.completion}
        for row in ROWS
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(out, prepare=lambda: None, **options):
        settings = SETTINGS | {"model": model, "data": data, "out": out} | options
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]

        def work():
            prepare()
            sys.argv = ["atlantis", "train", *arguments]
            main()

        log = out.with_suffix(".log")
        log.unlink(missing_ok=True)
        return fork(work, log).wait()

    return run


@pytest.fixture(scope="module")
def made(command, tmp_path_factory):
    """What the command makes when nothing happens."""
    out = tmp_path_factory.mktemp("made") / "out"
    assert command(out) == 0
    assert out.with_suffix(".log").read_text() == ""
    return content(out)


def lines_of(out):
    return out.with_suffix(".log").read_text().splitlines()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_the_same_command_goes_on(
    command, made, tmp_path, number, code
):
    out = tmp_path / "out"

    def sent_in_the_ninth_step():
        def on_step_begin(callback, args, state, control, **_):
            if state.global_step == 8:
                os.kill(os.getpid(), number)

        CheckpointCallback.on_step_begin = on_step_begin

    # Nothing else saves: there are 45 steps.
    assert command(out, sent_in_the_ninth_step, checkpoint_steps=1000) == code
    assert lines_of(out) == [f"stopped: {number.name}; run the same command to go on"]
    (saved,) = (tmp_path / "out.partial").glob("checkpoint-*")
    assert saved.name == "checkpoint-9"
    assert checkpoints.damage(saved) is None
    assert command(out) == 0
    assert lines_of(out) == [f"{tmp_path / 'out.partial'}: goes on from checkpoint-9 of 45 steps"]
    assert content(out) == made


def test_a_signal_in_the_last_step_lets_it_finish(command, made, tmp_path):
    def sent_in_the_last_step():
        def on_step_begin(callback, args, state, control, **_):
            if state.global_step == 44:
                os.kill(os.getpid(), signal.SIGTERM)

        CheckpointCallback.on_step_begin = on_step_begin

    out = tmp_path / "out"
    assert command(out, sent_in_the_last_step) == 143
    assert {"run.json", "model.safetensors"} <= content(tmp_path / "out.partial").keys()
    assert command(out) == 0
    assert lines_of(out) == []
    assert content(out) == made


def test_the_command_refuses_other_settings_and_takes_up_its_own(command, made, tmp_path):
    out = tmp_path / "out"

    def killed_after_a_checkpoint():
        seal = checkpoints.seal

        def sealed(*arguments):
            seal(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.seal = sealed

    assert command(out, killed_after_a_checkpoint) == -signal.SIGKILL
    assert command(out, learning_rate=1e-4) == 2
    (line,) = lines_of(out)
    assert "was made with training.learning_rate = 0.001, but now it is 0.0001" in line
    assert command(out) == 0
    assert content(out) == made


def test_a_full_disk_is_one_line_and_leaves_no_half_checkpoint(command, made, tmp_path, stopped):
    out = tmp_path / "out"
    for name in ("model.safetensors", "optimizer.pt"):
        limit = (stopped / "checkpoint-25" / name).stat().st_size - 100

        def small_files(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        assert command(out, small_files) == 1
        (line,) = lines_of(out)
        assert "checkpoint-5 could not be saved" in line
        left = [path.name for path in (tmp_path / "out.partial").rglob("*")]
        assert sorted(left) == [".lock", ".tmp-checkpoints"]
    assert command(out) == 0
    assert content(out) == made
