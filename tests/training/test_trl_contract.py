"""What `atlantis.training` stands on inside TRL and transformers: red after an upgrade."""

import dataclasses
import inspect

import pytest
import torch
from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head, pad

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9], "weight": 2.0},
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "weight": 0.5},
]


def parameters(function):
    return list(inspect.signature(function).parameters)


def settings(folder, **changes):
    return SFTConfig(
        output_dir=str(folder),
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        activation_checkpointing=False,
        **changes,
    )


@pytest.fixture
def stock(tiny_model, bpe_tokenizer, tmp_path):
    def build(rows=ROWS, model=None, **changes):
        return SFTTrainer(
            model or tiny_model("qwen2"),
            settings(tmp_path, **changes),
            train_dataset=Dataset.from_list(rows),
            processing_class=bpe_tokenizer,
        )

    return build


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            SFTTrainer._prepare_dataset,
            [
                "self",
                "dataset",
                "processing_class",
                "args",
                "packing",
                "formatting_func",
                "dataset_name",
            ],
        ),
        (SFTTrainer._set_signature_columns_if_needed, ["self"]),
        (
            SFTTrainer.compute_loss,
            ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        ),
        (Trainer._get_num_items_in_batch, ["self", "batch_samples", "device"]),
        (Trainer.get_batch_samples, ["self", "epoch_iterator", "num_batches", "device"]),
        (DataCollatorForLanguageModeling.torch_call, ["self", "examples"]),
        (pad, ["tensors", "padding_value", "padding_side", "pad_to_multiple_of"]),
        (pack_dataset, ["dataset", "seq_length", "strategy", "map_kwargs"]),
        (add_fused_lm_head, ["model", "temperature", "cast_lm_head_to_fp32", "outputs"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_signatures_are_the_ones_we_override_and_call(function, expected):
    assert parameters(function) == expected


def test_the_fused_head_returns_the_fields_we_read():
    fields = {field.name for field in dataclasses.fields(FusedCausalLMOutput)}
    assert {"log_probs", "label_mask", "is_top1", "aux_loss"} <= fields


def test_the_collator_has_the_fields_we_copy():
    fields = {field.name for field in dataclasses.fields(DataCollatorForLanguageModeling)}
    assert {"pad_token_id", "padding_free", "pad_to_multiple_of"} <= fields


def test_the_trainer_lets_a_subclass_normalise_over_the_whole_step():
    assert Trainer.loss_is_scaled_for_ga is None  # public: True means "already done"


def test_the_configuration_has_the_settings_that_we_read_and_refuse(tmp_path):
    config = settings(tmp_path)
    assert config.loss_type == "nll"
    assert (config.packing_strategy, config.padding_free, config.packing) == ("bfd", False, False)
    for name in ("label_smoothing_factor", "shuffle_dataset", "max_length"):
        assert hasattr(config, name)


def test_a_stock_trainer_drops_a_column_of_weights_without_a_word(stock):
    trainer = stock()
    trainer._set_signature_columns_if_needed()
    assert trainer._signature_columns == ["input_ids", "labels", "seq_lengths"]
    batch = next(iter(trainer.get_train_dataloader()))
    assert "weight" not in batch
    assert set(batch) == {"input_ids", "labels", "attention_mask"}


def test_a_stock_trainer_has_the_attributes_that_our_loss_reads(stock):
    trainer = stock()
    assert trainer.aux_loss_enabled is False
    assert set(trainer._metrics) == {"train", "eval"}
    assert trainer._total_train_tokens == 0
    assert trainer._tokenizer.eos_token == "<eos>"
    assert isinstance(trainer.data_collator, DataCollatorForLanguageModeling)


def test_the_trainer_puts_a_fused_head_on_the_model_that_scores_next_tokens(stock):
    model = stock().model
    ids = torch.tensor([row["input_ids"] for row in ROWS[:1]])
    labels = torch.tensor([row["labels"] for row in ROWS[:1]])
    with torch.no_grad():
        found = model(input_ids=ids, labels=labels, use_cache=False, fused_lm_head=True)
        logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    assert found.log_probs.shape == (1, 4)
    assert found.label_mask.tolist() == [[False, True, True, True]]
    expected = [0.0] + [logprobs[t - 1, ids[0, t]].item() for t in (2, 3, 4)]
    assert found.log_probs[0].tolist() == pytest.approx(expected, abs=1e-5)  # float32
    assert found.is_top1.shape == (1, 4)


def test_packing_carries_columns_of_floats_along():
    rows = {"input_ids": [[1, 2, 3], [4, 5]], "token_weights": [[0.5, 0.5, 0.5], [2.0, 2.0]]}
    packed = pack_dataset(Dataset.from_dict(rows), 8, "bfd")
    assert len(packed) == 1
    weights = dict(zip(packed[0]["input_ids"], packed[0]["token_weights"], strict=True))
    assert weights == {1: 0.5, 2: 0.5, 3: 0.5, 4: 2.0, 5: 2.0}
    assert sorted(packed[0]["seq_lengths"]) == [2, 3]


def test_a_collator_cannot_be_passed_with_flattened_batches(tiny_model, bpe_tokenizer, tmp_path):
    # Why ours is set after the parent's __init__.
    with pytest.raises(ValueError, match="data collator is not supported when using padding-free"):
        SFTTrainer(
            tiny_model("qwen2"),
            settings(tmp_path, padding_free=True),
            data_collator=DataCollatorForLanguageModeling(pad_token_id=1),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=bpe_tokenizer,
        )


def test_preparation_cuts_ids_and_labels_only(stock):
    # Why token weights are cut to the length of the labels afterwards.
    rows = [row | {"token_weights": [1.0] * len(row["input_ids"])} for row in ROWS]
    row = stock(rows, max_length=4).train_dataset[0]
    assert [len(row[name]) for name in ("input_ids", "labels", "token_weights")] == [4, 4, 5]
