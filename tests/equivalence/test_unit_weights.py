"""Unit weights are stock `trl.SFTTrainer`: loss and gradient norm of twenty steps, and the weights.

With TRL's own head, which is what runs on a GPU, every number is the same to the last bit. Our head
for the CPU adds the same float32 numbers in another order.
"""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

END_OF_TURN = 0  # the tokenizer's
NUM_ROWS, NUM_STEPS = 64, 20

LAYOUTS = {
    "padded": {},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "packed": {"packing": True, "max_length": 32, "per_device_train_batch_size": 2},
    "padding_free": {"padding_free": True, "max_length": None},
    "lora": {"lora": True},
    "lora_packed": {"lora": True, "packing": True, "max_length": 32},
}
ATTENTIONS = {"packed": ("sdpa", "eager"), "padding_free": ("sdpa", "eager")}
CASES = [(name, kind) for name in LAYOUTS for kind in ATTENTIONS.get(name, ("sdpa",))]


def ragged_rows() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(NUM_ROWS):
        length = int(torch.randint(4, 14, (1,), generator=generator))
        boundary = int(torch.randint(1, length - 1, (1,), generator=generator))
        ids = torch.randint(2, 320, (length - 1,), generator=generator).tolist()
        ids.append(END_OF_TURN)
        rows.append({"input_ids": ids, "labels": [-100] * boundary + ids[boundary:]})
    return Dataset.from_list(rows)


@pytest.fixture
def train(bpe_tokenizer, tmp_path):
    """Trains, stock or weighted: the logged numbers of each step and the trained parameters."""

    def run(model, *, weighted, lora=False, **changes):
        rows = ragged_rows()
        trainer_class, config_class = SFTTrainer, SFTConfig
        if weighted:
            trainer_class, config_class = WeightedSFTTrainer, WeightedSFTConfig
            rows = rows.add_column("weight", [1.0] * NUM_ROWS)
        settings = {
            "per_device_train_batch_size": 8,
            "max_steps": NUM_STEPS,
            "learning_rate": 1e-3,
            "max_grad_norm": 1e9,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "activation_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "seed": 3,
        }
        trainer = trainer_class(
            copy.deepcopy(model).train(),
            config_class(output_dir=str(tmp_path), **settings | changes),
            train_dataset=rows,
            processing_class=bpe_tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        )
        trainer.train()
        steps = [log for log in trainer.state.log_history if "loss" in log]
        logged = torch.tensor(
            [[step["loss"], step["grad_norm"]] for step in steps], dtype=torch.float64
        )
        assert logged.shape == (trainer.args.max_steps, 2)
        return logged, dict(trainer.model.named_parameters())

    return run


@pytest.mark.parametrize("loss", ["nll", "dft"])
@pytest.mark.parametrize(("layout", "attention"), CASES)
def test_with_the_head_of_trl_every_number_is_the_same_to_the_last_bit(
    tiny_model, train, monkeypatch, layout, attention, loss
):
    monkeypatch.setattr("atlantis.training.trainers.use_compact_head", lambda *_, **__: None)
    model = tiny_model("qwen2", attn_implementation=attention)
    settings = LAYOUTS[layout] | {"loss_type": loss}
    stock, trained = train(model, weighted=False, **settings)
    ours, ours_trained = train(model, weighted=True, **settings)
    assert torch.equal(ours, stock)
    for name, parameter in trained.items():
        assert torch.equal(ours_trained[name], parameter), name


@pytest.mark.parametrize(("layout", "attention"), CASES)
def test_with_our_head_they_differ_by_float32_rounding(tiny_model, train, layout, attention):
    # Both heads take a float32 log-softmax, which is rounded otherwise. The layers are float64,
    # because twenty steps of AdamW in float32 make up to 4e-6 of that.
    model = tiny_model("qwen2", attn_implementation=attention).double()
    stock, _ = train(model, weighted=False, **LAYOUTS[layout])
    ours, _ = train(model, weighted=True, **LAYOUTS[layout])
    difference = (ours / stock - 1).abs()
    assert difference.max() < 1e-6
    assert difference.mean() < 1e-7


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["packed", "padding_free"])
def test_examples_of_one_row_do_not_see_each_other(tiny_model, train, layout, attention):
    # What the two tests above compare must itself be right: an attention that ignored positions
    # would be wrong on both sides alike. One step over all rows has the padded step's numbers.
    model = tiny_model("qwen2", attn_implementation=attention).double()
    settings = {"per_device_train_batch_size": NUM_ROWS, "max_steps": 1}
    padded, _ = train(model, weighted=True, **settings)
    flat, _ = train(model, weighted=True, **LAYOUTS[layout] | settings)
    assert (flat / padded - 1).abs().max() < 1e-6  # the float32 log-softmax
