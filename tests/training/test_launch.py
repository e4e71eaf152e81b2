"""``atlantis train`` in two processes on the CPU, and launches that come out other than asked."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import psutil
import pytest
import torch
from safetensors.torch import load_file

from atlantis.errors import ConfigError
from atlantis.launch.configs import Launch, asked, builtin_configs, find_config, read_config
from atlantis.training import checkpoints
from atlantis.training.config import TrainingConfig
from atlantis.training.launch import check_launch

WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author"]
TWO = ["--launch", "ddp", "--num-processes", "2"]
DDP = Launch(2, "ddp")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = (
        {
            "prompt": " ".join(rng.choices(WORDS, k=rng.randint(2, 20))),
            "completion": " " + " ".join(rng.choices(WORDS, k=rng.randint(1, 8))),
        }
        for _ in range(24)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def models(saved_model):
    # Dropout: the random numbers of each process decide its gradient.
    return {"plain": saved_model(), "dropout": saved_model(attention_dropout=0.1)}


@pytest.fixture(scope="module")
def command(models, data):
    def arguments(out, *, model="plain", batch_size=2, epochs=1):
        given = {"data": data, "model": models[model], "out": out, "batch-size": batch_size}
        given |= {"epochs": epochs, "learning-rate": 1e-3, "checkpoint-steps": 4}
        return ["train", *(f"--{name}={value}" for name, value in given.items())]

    return arguments


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(arguments, launcher=()):
    command = [sys.executable, *launcher, "-m", "atlantis.cli", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def run(arguments, launcher=()):
    """The exit code, and what was said on standard error but the libraries' bars."""
    process = start(arguments, launcher)
    said = process.communicate(timeout=200)[1]
    return process.returncode, [line for line in said.splitlines() if "Writing model" not in line]


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_two_processes_give_the_losses_and_weights_of_one(command, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(command(one, batch_size=4)) == (0, [])
    assert run([*command(two), *TWO]) == (0, [])
    records = [json.loads((out / "run.json").read_text()) for out in (one, two)]
    assert [record["launch"] for record in records] == [None, DDP.settings]
    losses = [[loss for _, loss in record["loss"]] for record in records]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)  # float32 sums in another order
    weights = [load_file(out / "model.safetensors") for out in (one, two)]
    for name, tensor in weights[0].items():
        # AdamW divides by the gradient's size: the rounding of a tiny one is a step's share.
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-5, atol=2e-5)


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """What two processes make undisturbed: two epochs of six steps."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run([*command(out, model="dropout", epochs=2), *TWO])[0] == 0
    return content(out)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)


def kill(process):
    """The command, the launcher, and the two."""
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    assert len(family) == 4
    for member in family:
        member.kill()
    process.communicate()
    psutil.wait_procs(family)


def test_after_a_kill_of_all_processes_the_bytes_are_those_of_an_undisturbed_run(
    command, whole, tmp_path
):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    arguments = [*command(out, model="dropout", epochs=2), *TWO]
    process = start(arguments)
    wait_for(partial / "checkpoint-8", process)
    kill(process)
    saved = partial / "checkpoint-8"
    assert checkpoints.damage(saved) is None
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in saved.iterdir()}
    assert run(arguments) == (0, [f"{partial}: goes on from checkpoint-8 of 12 steps"])
    assert content(out) == whole


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed: make test-deepspeed")
@pytest.mark.timeout(900)  # DeepSpeed compiles once
@pytest.mark.parametrize("config", ["zero3", "zero3-offload"])
def test_deepspeed_gives_the_weights_of_one_process_and_goes_on_after_a_kill(
    command, tmp_path, config
):
    one, out, again = (tmp_path / name for name in ("one", "out", "again"))
    options = ["--launch", config, "--num-processes", "2"]
    assert run(command(one, batch_size=4))[0] == 0
    assert run([*command(out), *options])[0] == 0
    asked = json.loads((out / "run.json").read_text())["launch"]
    assert asked == read_config(find_config(config), 2).settings
    whole, expected = (load_file(path / "model.safetensors") for path in (out, one))
    assert set(whole) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(whole[name], tensor, rtol=1e-5, atol=2e-5)
    process = start([*command(again), *options])
    wait_for(tmp_path / "again.partial" / "checkpoint-4", process)
    kill(process)
    code, said = run([*command(again), *options])
    assert code == 0
    assert f"{again}.partial: goes on from checkpoint-4 of 6 steps" in said
    assert content(again) == content(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_after_one_step_and_the_same_command_goes_on(
    command, whole, tmp_path, number, code
):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    arguments = [*command(out, model="dropout", epochs=2), *TWO]
    process = start(arguments)
    wait_for(partial / "checkpoint-4", process)
    process.send_signal(number)
    said = process.communicate(timeout=100)[1]
    assert said.splitlines() == [f"stopped: {number.name}; run the same command to go on"]
    assert process.returncode == code
    found = max(partial.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert checkpoints.damage(found) is None
    if number == signal.SIGTERM:
        assert run(arguments)[0] == 0
        assert content(out) == whole


def test_plain_accelerate_launch_gives_the_same_bytes_and_finds_them_the_next_time(
    command, whole, tmp_path
):
    arguments = command(tmp_path / "out", model="dropout", epochs=2)
    launcher = ["-m", "accelerate.commands.launch", "--num_processes=2"]
    launcher += [f"--config_file={find_config('ddp')}"]
    assert run(arguments, launcher)[0] == 0
    assert content(tmp_path / "out") == whole
    assert run([*arguments, *TWO]) == (0, [])
    assert content(tmp_path / "out") == whole


def test_the_fall_back_of_fsdp_to_ddp_on_a_cpu_is_refused_in_one_line(command, tmp_path):
    options = ["--launch=fsdp2", "--num-processes=2", "--checkpoint-steps=never"]
    assert run([*command(tmp_path / "out"), *options]) == (
        2,
        [
            "error: asked for fsdp2 in 2 processes, but accelerate made ddp in 2 processes; choose "
            "another configuration for --launch"
        ],
    )
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_for_all_processes_is_said_once(command, data, tmp_path):
    arguments = [*command(tmp_path / "out"), "--data", str(data.with_name("none.jsonl")), *TWO]
    code, (line,) = run(arguments)
    assert code == 2
    assert "none.jsonl" in line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--launch=nothing"], "give one, or ddp, fsdp2, zero3, zero3-offload"),
        (["--num-processes=2"], "--num-processes has no effect without --launch"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_started(command, tmp_path, options, reason):
    code, (line,) = run([*command(tmp_path / "out"), *options])
    assert code == 2
    assert reason in line


def test_every_shipped_configuration_says_what_it_is():
    read = {name: read_config(path, 2) for name, path in builtin_configs().items()}
    assert read == {
        "ddp": DDP,
        "fsdp2": Launch(2, "fsdp2"),
        "zero3": Launch(2, "deepspeed", zero_stage=3),
        "zero3-offload": Launch(
            2, "deepspeed", zero_stage=3, offload_optimizer=True, offload_parameters=True
        ),
    }
    assert str(read["zero3-offload"]) == (
        "deepspeed ZeRO-3 in 2 processes, optimizer and weights offloaded"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("distributed_type: MULTI_CPU", "MULTI_CPU is not supported; choose MULTI_GPU"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}", "set fsdp_version: 2"),
        ("distributed_type: MULTI_GPU\nprocesses: 2", "unknown keys"),
        ("distributed_type: [", "not a configuration of accelerate"),
        ("[]", "not a configuration of accelerate"),
        ("compute_environment: AMAZON_SAGEMAKER", "not a configuration of accelerate"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(tmp_path, text, reason):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_config(path, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the GPUs")
def test_the_number_of_processes_is_the_file_s_unless_told(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 3")
    assert read_config(path) == Launch(3, "ddp")
    assert read_config(path, 2) == DDP
    with pytest.raises(ConfigError, match="no GPU is here to count processes by"):
        read_config(find_config("ddp"))


def test_a_deepspeed_file_of_its_own_is_read(tmp_path):
    own, path = tmp_path / "ds.json", tmp_path / "config.yaml"
    zero = {"stage": 3, "offload_optimizer": {"device": "nvme"}}
    own.write_text(json.dumps({"zero_optimization": zero}))
    path.write_text(
        f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {own}}}"
    )
    assert read_config(path, 2) == Launch(2, "deepspeed", zero_stage=3, offload_optimizer=True)
    own.write_text("{")
    with pytest.raises(ConfigError, match="not a DeepSpeed configuration"):
        read_config(path, 2)


def test_under_a_plain_accelerate_launch_its_variables_say_what_was_asked():
    ranks = {"WORLD_SIZE": "2"}
    assert asked({}) is None
    assert asked(ranks) == DDP
    assert asked(ranks | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}) == Launch(2, "fsdp2")
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    deepspeed |= {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}
    deepspeed |= {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none"}
    assert asked(ranks | deepspeed) == Launch(2, "deepspeed", zero_stage=3, offload_optimizer=True)


def test_one_process_where_accelerate_was_to_start_several_is_refused():
    with pytest.raises(ConfigError, match="accelerate started one process of several"):
        asked({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"})


@pytest.mark.parametrize(
    ("launch", "settings", "reason"),
    [
        (Launch(2, "fsdp2"), {}, "checkpoint_steps: never"),
        (Launch(2, "fsdp2"), {"lora": {}, "checkpoint_steps": "never"}, "training.lora cannot"),
        (Launch(2, "deepspeed", zero_stage=3), {"lora": {}}, "training.lora cannot"),
    ],
)
def test_what_shards_cannot_do_is_refused_before_a_model_is_loaded(launch, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        check_launch(launch, TrainingConfig.model_validate(settings))
    check_launch(None, TrainingConfig())
    check_launch(DDP, TrainingConfig.model_validate({"lora": {}}))
