"""`WeightedSFTTrainer` against stock TRL and against a float64 hand computation."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer

from atlantis.errors import ConfigError, WeightError
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

VOCABULARY = 40


@pytest.fixture
def tokenizer():
    words = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<pad>": 38, "<eos>": 39}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,  # far from uniform predictions, which hide wrong normalisers
    )
    return Qwen2ForCausalLM(config)


def ragged_rows(num_rows: int, *, weights: bool = True) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(num_rows):
        length = int(torch.randint(4, 14, (1,), generator=generator))
        boundary = int(torch.randint(1, length - 1, (1,), generator=generator))
        ids = torch.randint(0, VOCABULARY - 2, (length,), generator=generator).tolist()
        row = {"input_ids": ids, "labels": [-100] * boundary + ids[boundary:]}
        if weights:
            row["weight"] = float(torch.randn(1, generator=generator).mul(1.5).exp())
        rows.append(row)
    return Dataset.from_list(rows)


def arguments(cls, folder: Path, **changes):
    return cls(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": 8,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "max_steps": 1,
            "max_grad_norm": 1e9,
            "save_strategy": "no",
            "report_to": "none",
            "activation_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "seed": 3,
        }
        | changes,
    )


def hand_computed_gradient(model, dataset: Dataset, normaliser: str) -> torch.Tensor:
    """The definition, one example at a time in float64, from the model's own logits."""
    double = copy.deepcopy(model).double()
    total, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for row in dataset:
        ids = torch.tensor([row["input_ids"]])
        logprobs = double(ids).logits[0, :-1].log_softmax(-1)
        targets = torch.tensor(row["labels"])[1:]
        kept = targets != -100
        nll = -logprobs[kept].gather(-1, targets[kept][:, None]).sum()
        total = total + row["weight"] * (nll / kept.sum() if normaliser == "example_mean" else nll)
        num_tokens += int(kept.sum())
    (total / (num_tokens if normaliser == "token_mean" else len(dataset))).backward()
    return torch.cat([p.grad.flatten() for p in double.parameters()])


class KeepsGradient(WeightedSFTTrainer):
    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)

        def keep(*_):
            self.gradient = torch.cat(
                [p.grad.flatten().double() for p in self.model.parameters() if p.requires_grad]
            )

        optimizer.register_step_pre_hook(keep)
        return optimizer


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("normaliser", ["token_mean", "example_mean", "sequence_sum"])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_gradient_equals_a_float64_hand_computation(
    model, tokenizer, tmp_path, normaliser, batch, accumulation
):
    dataset = ragged_rows(8)
    expected = hand_computed_gradient(model, dataset, normaliser)
    trainer = KeepsGradient(
        model,
        arguments(
            WeightedSFTConfig,
            tmp_path,
            loss_normaliser=normaliser,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    assert relative_error(trainer.gradient, expected) < 1e-5  # float32 against float64


def test_gradient_of_packed_rows_equals_the_hand_computation(model, tokenizer, tmp_path):
    dataset = ragged_rows(8)
    expected = hand_computed_gradient(model, dataset, "token_mean")
    trainer = KeepsGradient(
        model,
        arguments(WeightedSFTConfig, tmp_path, packing=True, max_length=32),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    assert len(trainer.train_dataset) < 8
    trainer.train()
    assert relative_error(trainer.gradient, expected) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
        {"packing": True, "max_length": 32},
        {"loss_type": "dft"},
        {"lora": True},
    ],
    ids=["padded", "accumulated", "packed", "dft", "lora"],
)
def test_unit_weights_are_stock_sft_trainer_step_for_step(model, tokenizer, tmp_path, changes):
    rows = ragged_rows(48, weights=False)
    changes = dict(changes)
    peft = LoraConfig(r=4, target_modules="all-linear") if changes.pop("lora", False) else None
    runs = {}
    for name, cls, config, data in [
        ("stock", SFTTrainer, SFTConfig, rows),
        ("ours", WeightedSFTTrainer, WeightedSFTConfig, rows.add_column("weight", [1.0] * 48)),
    ]:
        trainer = cls(
            copy.deepcopy(model),
            arguments(config, tmp_path / name, max_steps=20, **changes),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=peft,
        )
        trainer.train()
        runs[name] = torch.tensor(
            [[log["loss"], log["grad_norm"]] for log in trainer.state.log_history if "loss" in log],
            dtype=torch.float64,
        )
    difference = (runs["ours"] / runs["stock"] - 1).abs()
    assert runs["stock"].shape == (20, 2)
    assert difference.max() < 1e-4  # twenty steps of float32 arithmetic in another order
    assert difference[:3].max() < 2e-6


def test_weight_two_is_the_example_twice_up_to_the_normaliser(model, tokenizer, tmp_path):
    rows = ragged_rows(4).to_list()
    doubled = [{**row, "weight": 2.0 if i == 1 else 1.0} for i, row in enumerate(rows)]
    repeated = [{**row, "weight": 1.0} for row in [*rows, rows[1]]]
    gradients, tokens = [], []
    for data in (doubled, repeated):
        trainer = KeepsGradient(
            copy.deepcopy(model),
            arguments(WeightedSFTConfig, tmp_path),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
        )
        trainer.train()
        gradients.append(trainer.gradient)
        tokens.append(sum(label != -100 for row in data for label in row["labels"]))
    assert relative_error(gradients[0] * tokens[0], gradients[1] * tokens[1]) < 1e-5


def test_a_training_set_without_weights_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(WeightError, match="no column 'weight'"):
        WeightedSFTTrainer(
            model,
            arguments(WeightedSFTConfig, tmp_path),
            train_dataset=ragged_rows(4, weights=False),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -0.5], "-0.5 in row 1"),
        ([1.0, float("nan")], "nan in row 1"),
        ([0.0, 0.0], "sum to zero"),
    ],
)
def test_unusable_weights_are_refused(model, tokenizer, tmp_path, weights, message):
    rows = ragged_rows(2, weights=False).add_column("weight", weights)
    with pytest.raises(WeightError, match=message):
        WeightedSFTTrainer(
            model,
            arguments(WeightedSFTConfig, tmp_path),
            train_dataset=rows,
            processing_class=tokenizer,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_normaliser": "batch"}, "token_mean, sequence_sum, example_mean"),
        ({"dft_floor": 0.1}, "no effect"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"packing": True, "packing_strategy": "wrapped"}, "splits examples"),
    ],
)
def test_options_that_cannot_be_right_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        arguments(WeightedSFTConfig, tmp_path, **changes)
