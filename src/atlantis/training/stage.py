"""Fine-tune a model on examples with weights; writes a Hugging Face checkpoint and ``run.json``."""

import logging
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import accelerate
import datasets
import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from transformers import PrinterCallback, TrainerCallback

from atlantis.data.rendering import ChatTemplate, chat_template, digest_rows
from atlantis.data.tokenization import Truncation, tokenize
from atlantis.disk import digest_json, read_json, write_json
from atlantis.errors import DataError
from atlantis.models.loading import LoadingConfig, fingerprint_model, load_model, load_tokenizer
from atlantis.progress import progress_bar
from atlantis.records import Row
from atlantis.store import check_fingerprint
from atlantis.training import checkpoints
from atlantis.training.collation import Normaliser
from atlantis.training.resuming import (
    CheckpointCallback,
    Checkpointing,
    saving,
    signals_wait,
)
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

VERSION = 1
"""Raised when a change of the code changes trained models."""
_FEWEST_STEPS = 50
"""Between checkpoints, unless told: where a tenth of the training is over in seconds."""
RECORD = "run.json"

_log = logging.getLogger(__name__)


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
    checkpoint_steps: PositiveInt | Literal["auto", "never"] = "auto"
    """Steps between checkpoints, from which a killed training goes on; by default a tenth of all,
    and at least 50. They change nothing in the trained model, and are deleted with the last step.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """What a trained model depends on, JSON."""
        return self.model_dump(mode="json", exclude={"checkpoint_steps"})

    def steps_between_checkpoints(self, num_steps: int) -> int | None:
        """Every how many of so many steps a checkpoint is due; None for never."""
        if self.checkpoint_steps == "never":
            return None
        if self.checkpoint_steps == "auto":
            return max(_FEWEST_STEPS, math.ceil(num_steps / 10))
        return self.checkpoint_steps

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
    """Fine-tune ``model`` into the folder ``out``, or go on where a killed run stopped.

    Going on gives the bytes of a run without a stop. A first SIGINT or SIGTERM saves a checkpoint
    at the end of the step before it takes effect.

    Args:
        examples: Training rows.
        weights: Weight of each row by id; None for ones. A row with weight zero is left out.
        model: Folder or Hub name of a causal language model.
        out: Folder of the checkpoint, and of nothing else; ``run.json`` beside it says what was
            trained on.
        config: Hyperparameters.
        loading: How the model is loaded. Weights are float32 unless adapters are trained.
        max_length: Most tokens of a row.
        truncation: Longer rows are left out and counted, or cut off, as in scoring.
        chat: The chat template by its name or file, as in scoring.
        seed: Seed of the order of the rows and of the adapters.
        num_steps: Optimizer steps; by default what the epochs take.

    Raises:
        DataError: A row has no weight, or no row can be trained on.
        StoreError: ``out`` holds checkpoints of another training.
        ResumableError: The loss became NaN or infinite, or the disk is full.
    """
    tokenizer = load_tokenizer(model)
    template = chat_template(tokenizer, chat)
    fingerprint = {
        "data": digest_rows(examples, template).rendered_text,
        "weights": None if weights is None else digest_json(dict(weights)),
        "model": fingerprint_model(model, loading),
        "max_length": max_length,
        "truncation": truncation,
        "seed": seed,
        "training.num_steps": num_steps,
        **{f"training.{name}": value for name, value in config.settings.items()},
        **{f"loading.{name}": value for name, value in loading.model_dump(mode="json").items()},
        **_environment(),
    }
    if _is_finished(out, fingerprint):
        return
    dataset, left_out = training_rows(
        examples,
        weights,
        tokenizer,
        max_length=max_length,
        truncation=truncation,
        template=template,
    )
    steps = num_steps or config.num_steps(len(dataset))
    resumed = _resume_point(out, fingerprint, steps)
    arguments = _arguments(out, config, steps=steps, seed=seed, max_length=max_length)
    trainer = _trainer(model, tokenizer, dataset, arguments, lora=config.lora, loading=loading)
    trainer.add_callback(_ProgressCallback(f"train {out.name}"))
    with signals_wait() as interruption:
        keeper = CheckpointCallback(
            trainer,
            out,
            fingerprint=fingerprint,
            every=config.steps_between_checkpoints(steps),
            interruption=interruption,
            resumed=resumed,
        )
        trainer.keep(keeper)
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        if trainer.state.global_step < steps:
            return  # a signal came, and takes effect now
        record = {"num_rows": len(dataset), "left_out": left_out, "num_steps": steps}
        settings = {"seed": seed, "config": config.settings, "fingerprint": fingerprint}
        _finish(trainer, tokenizer, out, record | {"loss": _losses(trainer)} | settings)


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
        output_dir=str(checkpoints.staging(out)),
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
        logging_nan_inf_filter=False,  # it would log another loss in place of one that is NaN
        save_strategy="no",  # `CheckpointCallback` says when
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _trainer(
    model: str,
    tokenizer: Any,
    dataset: Dataset,
    arguments: WeightedSFTConfig,
    *,
    lora: LoraSettings | None,
    loading: LoadingConfig,
) -> "_Trainer":
    """The trainer of a model, whose weights are float32 unless adapters are trained."""
    precision = loading if lora else loading.model_copy(update={"dtype": "float32"})
    with _quiet_datasets():
        trainer = _Trainer(
            load_model(model, precision).train(),
            arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=_peft(lora),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


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


class _Trainer(Checkpointing, WeightedSFTTrainer):
    """The weighted trainer with checkpoints that can be trusted."""


def _environment() -> dict[str, Any]:
    """What else decides the bits of a trained model."""
    libraries = (torch, transformers, trl, peft, accelerate)
    return {
        "code": VERSION,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        **{f"versions.{library.__name__}": str(library.__version__) for library in libraries},
    }


def _is_finished(out: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a run that was killed in its very last moments is whole."""
    if not (out / RECORD).exists():
        return False
    check_fingerprint(out, read_json(out / RECORD).get("fingerprint", {}), fingerprint)
    checkpoints.remove(out)
    return True


def _resume_point(out: Path, fingerprint: Mapping[str, Any], steps: int) -> Path | None:
    """The checkpoint to go on from; what else a killed run left is deleted."""
    out.mkdir(parents=True, exist_ok=True)
    found = checkpoints.newest(out, fingerprint)
    checkpoints.clear(out)
    if found is not None:
        _log.warning("%s: goes on from %s of %d steps", out, found.name, steps)
    return found


def _losses(trainer: WeightedSFTTrainer) -> list[list[Any]]:
    """The logged losses by step."""
    return [[log["step"], log["loss"]] for log in trainer.state.log_history if "loss" in log]


def _finish(trainer: WeightedSFTTrainer, tokenizer: Any, out: Path, record: dict[str, Any]) -> None:
    """Write the result; what the record stands beside is whole, and needs no checkpoints."""
    with saving(str(out)):
        _save(trainer, tokenizer, out)
        checkpoints.sync_files(out)
        write_json(out / RECORD, record)
    checkpoints.remove(out)


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
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
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
