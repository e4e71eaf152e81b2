"""Fine-tune a model on examples with weights; writes a Hugging Face checkpoint and ``run.json``."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import Dataset
from peft import LoraConfig, PeftModel
from pydantic import BaseModel, ConfigDict, Field
from transformers import PrinterCallback, TrainerCallback

from atlantis.data.rendering import ChatTemplate, chat_template
from atlantis.data.tokenization import Truncation, tokenize
from atlantis.disk import write_json
from atlantis.errors import DataError, ResumableError
from atlantis.models.loading import LoadingConfig, load_model, load_tokenizer
from atlantis.progress import progress_bar
from atlantis.records import Row
from atlantis.training.collation import Normaliser
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

VERSION = 1
"""Raised when a change of the code changes trained models."""


class LoraSettings(BaseModel):
    """Low-rank adapters instead of full fine-tuning."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the update, over the rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapters' input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Modules that get an adapter; ``lm_head`` cannot."""


class TrainingConfig(BaseModel):
    """Hyperparameters of one fine-tuning."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    learning_rate: float = Field(default=2e-5, gt=0.0)
    """Peak learning rate of AdamW."""
    epochs: float = Field(default=2.0, gt=0.0)
    """Passes over the training rows. All arms of a recipe take the steps of the noisy rows."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per forward pass and device."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimizer step."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps with a rising learning rate."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Learning rate after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are clipped to this norm."""
    loss: Literal["nll", "dft"] = "nll"
    """Token factor: one (``nll``) or the token's probability (``dft``)."""
    loss_normaliser: Normaliser = "token_mean"
    """What a step's sum is divided by: trained tokens, or examples."""
    group_by_length: bool = True
    """Batch rows of similar length together: less padding."""
    bf16: bool = False
    """Compute in bfloat16 over float32 weights (GPU)."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    lora: LoraSettings | None = None
    """Train adapters only; they are merged into the saved model."""

    def num_steps(self, num_rows: int) -> int:
        """Optimizer steps that the epochs take over so many rows on one device."""
        return math.ceil(self.epochs * num_rows / (self.batch_size * self.gradient_accumulation))


def run(
    examples: Sequence[Row],
    weights: Mapping[str, float] | None,
    model: str,
    out: Path,
    *,
    config: TrainingConfig,
    loading: LoadingConfig,
    max_length: int,
    truncation: Truncation = "drop",
    chat: str | None = None,
    seed: int,
    num_steps: int | None = None,
) -> None:
    """Fine-tune ``model`` into the folder ``out``.

    Args:
        examples: Training rows.
        weights: Weight of each row by id; None for ones. A row with weight zero is left out.
        model: Folder or Hub name of a causal language model.
        out: Folder of the checkpoint; ``run.json`` beside it says what was trained on.
        config: Hyperparameters.
        loading: How the model is loaded. Weights are float32 unless adapters are trained.
        max_length: Most tokens of a row.
        truncation: Longer rows are left out and counted, or cut off, as in scoring.
        chat: The chat template by its name or file, as in scoring.
        seed: Seed of the order of the rows and of the adapters.
        num_steps: Optimizer steps; by default what the epochs take.

    Raises:
        DataError: A row has no weight, or no row can be trained on.
        ResumableError: The loss became NaN or infinite.
    """
    tokenizer = load_tokenizer(model)
    dataset, left_out = training_rows(
        examples,
        weights,
        tokenizer,
        max_length=max_length,
        truncation=truncation,
        template=chat_template(tokenizer, chat),
    )
    steps = num_steps or config.num_steps(len(dataset))
    precision = loading if config.lora else loading.model_copy(update={"dtype": "float32"})
    with _quiet_datasets():
        trainer = WeightedSFTTrainer(
            load_model(model, precision).train(),
            _arguments(out, config, steps=steps, seed=seed, max_length=max_length),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=_peft(config.lora),
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_ProgressCallback(f"train {out.name}"))
    trainer.train()
    losses = [[log["step"], log["loss"]] for log in trainer.state.log_history if "loss" in log]
    if not all(math.isfinite(loss) for _, loss in losses):
        raise ResumableError(f"{out}: the loss is not finite; lower training.learning_rate")
    _save(trainer, tokenizer, out)
    record = {"num_rows": len(dataset), "left_out": left_out, "num_steps": steps, "loss": losses}
    write_json(out / "run.json", record | {"seed": seed, "config": config.model_dump(mode="json")})


def training_rows(
    examples: Sequence[Row],
    weights: Mapping[str, float] | None,
    tokenizer: Any,
    *,
    max_length: int,
    truncation: Truncation = "drop",
    template: ChatTemplate | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Tokenized rows with ``input_ids``, ``labels`` and ``weight``, and what was left out, counted.

    Raises:
        DataError: A row has no weight, or no row is left.
    """
    rows: list[dict[str, Any]] = []
    left_out: dict[str, int] = {}
    for row in tokenize(
        examples, tokenizer, max_length=max_length, truncation=truncation, template=template
    ):
        weight = 1.0 if weights is None else weights.get(row.example_id)
        reason = row.status if row.status != "ok" else "zero_weight" if weight == 0 else None
        if reason is not None:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        if weight is None:
            raise DataError(f"example {row.example_id!r} has no weight; weigh the same data again")
        rows.append({"input_ids": list(row.input_ids), "labels": row.labels, "weight": weight})
    if not rows:
        raise DataError(f"no row is left to train on; left out: {left_out}")
    return Dataset.from_list(rows), left_out


def _arguments(
    out: Path, config: TrainingConfig, *, steps: int, seed: int, max_length: int
) -> WeightedSFTConfig:
    return WeightedSFTConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=round(config.warmup_fraction * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        loss_type=config.loss,
        loss_normaliser=config.loss_normaliser,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        max_length=max_length,
        bf16=config.bf16,
        activation_checkpointing=config.activation_checkpointing,
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, steps // 50),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _peft(lora: LoraSettings | None) -> LoraConfig | None:
    if lora is None:
        return None
    modules = lora.target_modules
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )


def _save(trainer: WeightedSFTTrainer, tokenizer: Any, out: Path) -> None:
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


class _ProgressCallback(TrainerCallback):
    """Our progress bar in place of the Trainer's printed logs."""

    def __init__(self, title: str) -> None:
        self._bar = progress_bar()
        self._task = self._bar.add_task(title, total=None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(self._task, total=state.max_steps)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.stop()


@contextmanager
def _quiet_datasets() -> Generator[None]:
    """The data set library draws a bar for every step of its preparation."""
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
