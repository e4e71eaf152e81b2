"""The trainer of one fine-tuning, from its hyperparameters."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback

from atlantis.models.loading import LoadingConfig, load_model
from atlantis.training import checkpoints
from atlantis.training.config import LoraSettings, TrainingConfig
from atlantis.training.dashboards import run_name
from atlantis.training.launch import SameRows
from atlantis.training.resuming import Checkpointing
from atlantis.training.seq2seq import WeightedSeq2SeqConfig, WeightedSeq2SeqTrainer
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer


class _Steady(Checkpointing, SameRows):
    """Checkpoints that can be trusted, in any number of processes."""


class _Trainer(_Steady, WeightedSFTTrainer):
    """The trainer of a causal model."""


class _Seq2SeqTrainer(_Steady, WeightedSeq2SeqTrainer):
    """The trainer of an encoder-decoder."""


def trainer_arguments(
    out: Path,
    config: TrainingConfig,
    *,
    steps: int,
    seed: int,
    max_length: int | None,
    device: Mapping[str, Any],
) -> WeightedSFTConfig | WeightedSeq2SeqConfig:
    """Options of the trainer.

    Args:
        out: Folder of the training.
        config: Hyperparameters.
        steps: Optimizer steps.
        seed: Seed of the order of the rows and of the adapters.
        max_length: Most tokens of a row; None for an encoder-decoder.
        device: Options that say where it runs.
    """
    options: Any = (
        WeightedSeq2SeqConfig
        if max_length is None
        else partial(WeightedSFTConfig, max_length=max_length)
    )
    return options(
        output_dir=str(checkpoints.staging(out)),
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=round(config.warmup_fraction * steps),
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        token_loss=config.loss.model_dump(),
        loss_normaliser=config.loss_normaliser,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        bf16=config.bf16,
        **device,
        activation_checkpointing=config.activation_checkpointing,
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,  # it would log another loss in place of one that is NaN
        save_strategy="no",  # `CheckpointCallback` says when
        report_to="none",  # `dashboard_callbacks` knows where
        run_name=run_name(out),
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def make_trainer(
    model: str,
    tokenizer: Any,
    dataset: Dataset,
    arguments: WeightedSFTConfig | WeightedSeq2SeqConfig,
    *,
    config: TrainingConfig,
    loading: LoadingConfig,
) -> _Trainer | _Seq2SeqTrainer:
    """The trainer of a model, whose weights are float32 unless adapters are trained."""
    changed = {"quantization": config.quantization} if config.lora else {"dtype": "float32"}
    precision = loading.model_copy(update=changed)
    is_seq2seq = isinstance(arguments, WeightedSeq2SeqConfig)
    kind: Any = _Seq2SeqTrainer if is_seq2seq else _Trainer
    with _quiet_datasets():
        trainer = kind(
            load_model(model, precision).train(),
            arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=_peft(config.lora, "SEQ_2_SEQ_LM" if is_seq2seq else "CAUSAL_LM"),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _peft(lora: LoraSettings | None, task_type: str) -> LoraConfig | None:
    if lora is None:
        return None
    modules = lora.target_modules
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type=task_type,
    )


@contextmanager
def _quiet_datasets() -> Generator[None]:
    """The data set library draws a bar for every step of its preparation."""
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
