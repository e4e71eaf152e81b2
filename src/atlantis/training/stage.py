"""Fine-tune a model on examples with weights; writes a Hugging Face checkpoint and ``run.json``."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback

from atlantis.data.rendering import chat_template, digest_rows
from atlantis.data.tokenization import Truncation
from atlantis.disk import digest_json, read_json, write_bytes, write_json
from atlantis.errors import ConfigError
from atlantis.launch.configs import Launch, asked
from atlantis.models.encoder_decoder import decoder_start_token
from atlantis.models.loading import LoadingConfig, fingerprint_model, load_tokenizer
from atlantis.numerics.diagnostics import effective_sample_size
from atlantis.progress import progress_bar
from atlantis.records import Row
from atlantis.store import ScoreStore, check_fingerprint
from atlantis.training import checkpoints, ranks
from atlantis.training.building import make_trainer, trainer_arguments
from atlantis.training.config import TrainingConfig
from atlantis.training.dashboards import check_installed, dashboard_callbacks
from atlantis.training.launch import (
    LaunchCheck,
    check_launch,
    gathered_weights,
    launch_record,
    placed,
)
from atlantis.training.losses import check_scores
from atlantis.training.model_card import model_card
from atlantis.training.resuming import CheckpointCallback, saving, signals_wait
from atlantis.training.rows import training_rows
from atlantis.training.weighted_step import WeightedStep

VERSION = 1
"""Raised when a change of the code changes trained models."""
RECORD = "run.json"

_log = logging.getLogger(__name__)


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
    scores: Mapping[str, ScoreStore] | None = None,
    weighing: Mapping[str, Any] | None = None,
) -> None:
    """Fine-tune ``model`` into the folder ``out``, or go on where a killed run stopped.

    Going on gives the bytes of a run without a stop. A first SIGINT or SIGTERM saves a checkpoint
    at the end of the step before it takes effect. Of several processes (`accelerate launch`) all
    call this; the main one writes.

    Args:
        examples: Training rows.
        weights: Weight of each row by id; None for ones. A row with weight zero is left out.
        model: Folder or Hub name of a language model, causal or encoder-decoder.
        out: Folder of the checkpoint, and of nothing else; ``run.json`` beside it says what was
            trained on.
        config: Hyperparameters.
        loading: How the model is loaded. Weights are float32 unless adapters are trained.
        max_length: Most tokens of a row.
        truncation: Longer rows are left out and counted, or cut off, as in scoring.
        chat: The chat template by its name or file, as in scoring.
        seed: Seed of the order of the rows and of the adapters.
        num_steps: Optimizer steps; by default what the epochs take.
        scores: Score stores of the rows by the column that the loss reads them as
            (``config.loss.columns``).
        weighing: What is known of how the weights were made, for the model card.

    Raises:
        ConfigError: The loss needs scores that are not given, or does not look at those that are;
            or the processes are not those that were asked for.
        DataError: A row has no weight or no scores, or no row can be trained on.
        StoreError: ``out`` holds checkpoints of another training.
        ResumableError: The loss became NaN or infinite, or the disk is full.
    """
    scores = scores or {}
    check_scores(config.loss, scores)
    check_installed(config.report_to)
    launch = asked()
    check_launch(launch, config)
    decoder_start = decoder_start_token(model, loading)
    if decoder_start is not None and config.quantization is not None:
        raise ConfigError(f"{model}: an encoder-decoder is not trained in {config.quantization}")
    ranks.join(launch)
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
        **{f"scores.{column}": store.digest for column, store in scores.items()},
        **{f"training.{name}": value for name, value in config.settings.items()},
        **{f"loading.{name}": value for name, value in loading.model_dump(mode="json").items()},
        **_environment(launch),
    }
    if ranks.decided_by_main(lambda: _is_finished(out, fingerprint)):
        return
    dataset, left_out = training_rows(
        examples,
        weights,
        tokenizer,
        max_length=max_length,
        truncation=truncation,
        template=template,
        scores=scores,
        decoder_start=decoder_start,
    )
    steps = num_steps or config.num_steps(len(dataset), num_processes=ranks.count())
    resumed = ranks.decided_by_main(lambda: _resume_point(out, fingerprint, steps))
    arguments = trainer_arguments(
        out,
        config,
        steps=steps,
        seed=seed,
        max_length=max_length if decoder_start is None else None,
        device=ranks.device_options(launch),
    )
    trainer = make_trainer(
        model, tokenizer, dataset, arguments, config=config, loading=placed(loading, launch)
    )
    trainer.add_callback(LaunchCheck(trainer, launch))
    if ranks.is_main():
        trainer.add_callback(_ProgressCallback(f"train {out.name}"))
        for callback in dashboard_callbacks(config.report_to, out):
            trainer.add_callback(callback)
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
        found = {"loss": _losses(trainer), "weights": _spread(dataset)}
        found |= {"launch": launch_record(trainer.model_wrapped)}
        whole = gathered_weights(trainer)
        ranks.decided_by_main(
            lambda: _finish(
                trainer,
                tokenizer,
                out,
                record | found | settings,
                weights=whole,
                base=model,
                weighing=weighing,
            )
        )


def _environment(launch: Launch | None) -> dict[str, Any]:
    """What else decides the bits of a trained model."""
    libraries = (torch, transformers, trl, peft, accelerate)
    return {
        "code": VERSION,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "launch": None if launch is None else launch.settings,
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


def _losses(trainer: WeightedStep) -> list[list[Any]]:
    """The logged losses by step."""
    return [[log["step"], log["loss"]] for log in trainer.state.log_history if "loss" in log]


def _spread(dataset: Dataset) -> dict[str, float]:
    """How many rows of equal weight the rows are worth."""
    with np.errstate(divide="ignore"):  # a weight of zero is a log-weight of -inf
        size = effective_sample_size(np.log(np.array(dataset["weight"][:])))
    return {"effective_sample_size": size, "ess_fraction": size / len(dataset)}


def _finish(
    trainer: WeightedStep,
    tokenizer: Any,
    out: Path,
    record: dict[str, Any],
    *,
    weights: dict[str, Any] | None,
    base: str,
    weighing: Mapping[str, Any] | None,
) -> None:
    """Write the result; what the record stands beside is whole, and needs no checkpoints."""
    with saving(str(out)):
        _save(trainer, tokenizer, out, weights)
        card = model_card(base, record, weighing=weighing)
        write_bytes(out / "README.md", card.encode())
        checkpoints.sync_files(out)
        write_json(out / RECORD, record)
    checkpoints.remove(out)


def _save(trainer: WeightedStep, tokenizer: Any, out: Path, weights: dict[str, Any] | None) -> None:
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    is_quantized = getattr(model, "is_quantized", False)
    if isinstance(model, PeftModel) and not is_quantized:
        model = model.merge_and_unload()
    model.save_pretrained(str(out), state_dict=weights)
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
