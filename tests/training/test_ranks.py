"""Two processes take the steps of one; the same file is the program that they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

LOGGED = ("loss", "grad_norm", "mean_weight", "effective_sample_size")
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


def train(loss, batch_size, folder):
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
    options = WeightedSFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_steps=2,
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        token_loss=loss,
    )
    trainer = WeightedSFTTrainer(
        Qwen2ForCausalLM(config),
        options,
        train_dataset=Dataset.from_list(list(rows())),
        processing_class=tokenizer(),
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        logs = [{name: log[name] for name in LOGGED} for log in trainer.state.log_history[:2]]
        (folder / f"{loss}.json").write_text(json.dumps(logs))


def test_two_ranks_take_the_steps_of_one(tmp_path):
    logs = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        # The port is looked up before it is bound: a server test beside this one may take it.
        command += ["--max-restarts=2"]
        command += [f"--nproc_per_node={ranks}", __file__, str(4 // ranks), str(folder)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        logs.append({p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))})
    assert set(logs[0]) == {"sft", "iw_sft", "psft"}
    for loss, steps in logs[0].items():
        for one, two in zip(steps, logs[1][loss], strict=True):
            for name in LOGGED:
                assert two[name] == pytest.approx(one[name], rel=1e-4)  # float32, two steps


if __name__ == "__main__":
    for name in ("sft", "iw_sft", "psft"):
        train(name, int(sys.argv[1]), Path(sys.argv[2]))
