"""Two processes take the steps of one; the same file is the program that they run."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from atlantis.launch.configs import Launch, asked, find_config
from atlantis.launch.outcomes import end_process
from atlantis.training import compact_head, ranks
from atlantis.training.launch import LaunchCheck, found_launch, whole_weights
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

LOGGED = ("loss", "grad_norm", "mean_weight", "effective_sample_size")
LOSSES = ("sft", "iw_sft", "psft")
VOCABULARY = 64


def rows():
    generator = torch.Generator().manual_seed(2)
    for number in range(16):
        ids = [*torch.randint(2, VOCABULARY, (4 + number % 7,), generator=generator).tolist(), 0]
        logprobs = -4 * torch.rand(len(ids), generator=generator, dtype=torch.float64)
        labels = [-100] * (1 + number % 3) + ids[1 + number % 3 :]
        yield {
            "input_ids": ids,
            "labels": labels,
            "weight": 2.0 ** (number % 5),
            "reference_logprobs": logprobs.tolist(),
        }


def tokenizer():
    words = {f"w{i}": i for i in range(2, VOCABULARY)} | {"<eos>": 0, "<pad>": 1}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


class WithoutRankFactor(WeightedSFTTrainer):
    """A mistake: the wrapper averages gradients over ranks, and nothing makes up for it."""

    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) / self.accelerator.num_processes


def build(loss, batch_size, *, kind=WeightedSFTTrainer, optim="sgd"):
    compact_head._HEAD_CHUNK_SIZE = 4  # ranks have other numbers of chunks
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    device = ranks.device_options(asked())
    options = WeightedSFTConfig(
        output_dir="unused",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        optim=optim,
        learning_rate=0.1 if optim == "sgd" else 1e-3,
        lr_scheduler_type="constant",
        max_steps=2,
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        activation_checkpointing=False,
        bf16=False,
        token_loss=loss,
        **device,
    )
    return kind(
        Qwen2ForCausalLM(config),
        options,
        train_dataset=Dataset.from_list(list(rows())),
        processing_class=tokenizer(),
    )


def train(trainer, path):
    """Two steps; the wrapper and the number of processes are those that were asked for."""
    trainer.add_callback(LaunchCheck(trainer, asked()))
    trainer.train()
    if trainer.accelerator.is_main_process:
        logs = [{name: log[name] for name in LOGGED} for log in trainer.state.log_history[:2]]
        path.write_text(json.dumps(logs))


def write_gradients(trainer, folder):
    """Gradients of the first step, sharded by FSDP2 where there are two ranks, and the weights."""
    model = trainer.model
    if ranks.count() > 1:
        mesh = init_device_mesh("cpu", (ranks.count(),))
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=mesh)
        assert found_launch(model) == Launch(ranks.count(), "fsdp2")
        trainer.is_fsdp_enabled = True  # as it is on GPUs
    batches, count = trainer.get_batch_samples(
        iter(trainer.get_train_dataloader()), 2, trainer.args.device
    )
    for batch in batches:
        trainer.compute_loss(model.train(), batch, num_items_in_batch=count).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    if ranks.count() > 1:
        gradients = {name: gradient.full_tensor() for name, gradient in gradients.items()}
    weights = whole_weights(model)
    if ranks.is_main():
        save_file(gradients, folder / "gradients.safetensors")
        save_file(weights, folder / "weights.safetensors")


def program(what, batch_size, folder):
    if what == "fsdp2":
        write_gradients(build("sft", batch_size), folder)
        return
    if what == "mutant":
        train(build("sft", batch_size, kind=WithoutRankFactor), folder / "sft.json")
        return
    for loss in LOSSES:
        train(build(loss, batch_size, optim=what), folder / f"{loss}.json")


def run(what, folder, *, num_ranks, launcher=None):
    """What the program wrote: steps by loss."""
    folder.mkdir()
    if launcher is None:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
        # The port is looked up before it is bound: a server test beside this one may take it.
        launcher += ["--max-restarts=2"]
    command = [sys.executable, "-m", *launcher, __file__, what, str(4 // num_ranks), str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def same_steps(found, expected, *, rel):
    assert set(found) == set(expected)
    for loss, steps in expected.items():
        for step, found_step in zip(steps, found[loss], strict=True):
            assert found_step == pytest.approx(step, rel=rel)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    steps = run("sgd", tmp_path_factory.mktemp("ranks") / "one", num_ranks=1)
    assert set(steps) == set(LOSSES)
    return steps


def test_two_ranks_take_the_steps_of_one(one, tmp_path):
    same_steps(run("sgd", tmp_path / "two", num_ranks=2), one, rel=1e-4)  # float32, two steps


def test_without_the_rank_factor_the_gradients_are_half(one, tmp_path):
    first, second = run("mutant", tmp_path / "mutant", num_ranks=2)["sft"]
    expected = one["sft"]
    assert first["grad_norm"] == pytest.approx(expected[0]["grad_norm"] / 2, rel=1e-4)
    assert abs(second["loss"] / expected[1]["loss"] - 1) > 0.01


def test_gradients_that_fsdp2_shards_over_two_ranks_are_those_of_one(tmp_path):
    for num_ranks in (1, 2):
        run("fsdp2", tmp_path / str(num_ranks), num_ranks=num_ranks)
    for name in ("gradients", "weights"):
        one, two = (load_file(tmp_path / n / f"{name}.safetensors") for n in "12")
        assert set(two) == set(one)
        size = torch.stack([tensor.norm() for tensor in one.values()]).norm()
        for key, tensor in one.items():
            assert (two[key] - tensor).norm() < 1e-6 * size, key


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed: make test-deepspeed")
@pytest.mark.timeout(900)  # DeepSpeed compiles once
@pytest.mark.parametrize(
    ("config", "optim"),
    [("zero3", "sgd"), ("zero3", "adamw_torch"), ("zero3-offload", "adamw_torch")],
)
def test_two_ranks_of_deepspeed_take_the_steps_of_one(tmp_path, config, optim):
    launcher = ["accelerate.commands.launch", f"--config_file={find_config(config)}"]
    launcher += ["--num_processes=2"]
    one = run(optim, tmp_path / "one", num_ranks=1)
    two = run(optim, tmp_path / "two", num_ranks=2, launcher=launcher)
    same_steps(two, one, rel=1e-5)


if __name__ == "__main__":
    program(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    ranks.leave()
    end_process(SystemExit())
