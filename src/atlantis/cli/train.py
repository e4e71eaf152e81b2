"""``atlantis train``: a data file and weights to a fine-tuned checkpoint."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from atlantis.cli.options import ChatTemplate, Force, Json, MaxLength, Model, Out, Truncation
from atlantis.cli.output import put, put_json, quiet_libraries, warn
from atlantis.errors import ConfigError
from atlantis.launch.outcomes import is_launched

if TYPE_CHECKING:
    from atlantis.cli.weighted_rows import Reading, WeightedRows
    from atlantis.data.tokenization import Truncation as Policy
    from atlantis.store import ScoreStore
    from atlantis.training.config import TrainingConfig


def train(
    data: Annotated[
        str, typer.Option("--data", help="JSONL, JSON or Parquet, a folder of these, or hub:NAME.")
    ],
    model: Model,
    out: Out,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weights file of these data; all ones without.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 2e-5,
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = 2.0,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass and device.")] = 16,
    gradient_accumulation: Annotated[
        int, typer.Option(help="Forward passes per optimizer step.")
    ] = 1,
    warmup_fraction: Annotated[
        float, typer.Option(help="Share of the steps with a rising learning rate.")
    ] = 0.1,
    schedule: Annotated[
        str, typer.Option(help="After the warm-up: linear, cosine, constant_with_warmup.")
    ] = "linear",
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 0.0,
    adam_beta2: Annotated[
        float, typer.Option(help="AdamW's decay of the mean squared gradient.")
    ] = 0.999,
    max_grad_norm: Annotated[float, typer.Option(help="Gradients are clipped to this norm.")] = 1.0,
    loss: Annotated[
        str,
        typer.Option(
            help="Loss of a token: sft, dft, sft_kl, asft, iw_sft, iw_sft_token, chord_phi, eaft, "
            "psft; with settings: '{name: dft, floor: 0.1}'."
        ),
    ] = "sft",
    reference_scores: Annotated[
        Path | None, typer.Option(help="Scores of these rows under the reference, for iw_sft.")
    ] = None,
    base_scores: Annotated[
        Path | None, typer.Option(help="Scores under the base model, for sft_kl and asft.")
    ] = None,
    loss_normaliser: Annotated[
        str, typer.Option(help="A step's divisor: token_mean, example_mean, sequence_sum.")
    ] = "token_mean",
    group_by_length: Annotated[
        bool, typer.Option(help="Batch rows of similar length: less padding.")
    ] = True,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute in bfloat16 over float32 weights (GPU).")
    ] = False,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory, slower.")
    ] = False,
    lora_r: Annotated[
        int | None, typer.Option(help="Train low-rank adapters of this rank, merged when saved.")
    ] = None,
    lora_alpha: Annotated[
        int | None, typer.Option(help="Scale of the update, by default 32.")
    ] = None,
    lora_dropout: Annotated[
        float | None, typer.Option(help="Dropout on the adapters' input, by default 0.")
    ] = None,
    lora_target_modules: Annotated[
        str | None,
        typer.Option(help="Modules with an adapter, comma-separated; by default all-linear."),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(help="QLoRA: frozen weights in 4bit or 8bit under the adapters, saved alone."),
    ] = None,
    checkpoint_steps: Annotated[
        str,
        typer.Option(
            help="Steps between checkpoints, or never; by default a tenth of all, at least 50."
        ),
    ] = "auto",
    report_to: Annotated[
        list[str] | None,
        typer.Option(help="Also show metrics on tensorboard, trackio or wandb. Repeatable."),
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(
            help="Train in several processes: ddp, fsdp2, zero3, zero3-offload, or a configuration "
            "file of accelerate."
        ),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(min=1, help="With --launch; by default the file's number, or one per GPU."),
    ] = None,
    max_length: MaxLength = 1024,
    truncation: Truncation = "drop",
    chat_template: ChatTemplate = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the order of rows and of adapters.")
    ] = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on weighted examples.

    The same command goes on where it was stopped. What was made from the same inputs already is
    left alone.
    """
    if _has_run_launched(launch, num_processes):
        return
    lora = _lora(lora_r, lora_alpha, lora_dropout, lora_target_modules)
    settings = {
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "warmup_fraction": warmup_fraction,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "adam_beta2": adam_beta2,
        "max_grad_norm": max_grad_norm,
        "loss": _loss(loss),
        "loss_normaliser": loss_normaliser,
        "group_by_length": group_by_length,
        "bf16": bf16,
        "activation_checkpointing": activation_checkpointing,
        "lora": lora,
        "quantization": quantization,
        "checkpoint_steps": checkpoint_steps,
        "report_to": report_to or (),
    }
    from atlantis.store import ScoreStore
    from atlantis.training.losses import BASE, REFERENCE

    given = {REFERENCE: reference_scores, BASE: base_scores}
    scores = {column: ScoreStore(path) for column, path in given.items() if path is not None}
    rows = _Rows(data, weights, max_length, _truncation(truncation), chat_template, scores)
    _train(rows, model, out, settings, seed=seed, force=force, as_json=as_json)


def _has_run_launched(config: str | None, num_processes: int | None) -> bool:
    """Whether processes of a launch have done it; False in these, and without one."""
    if config is None and num_processes is not None:
        raise ConfigError("--num-processes has no effect without --launch; give a configuration")
    if config is None or is_launched():
        return False
    from atlantis.cli.launching import launch

    launch(config, num_processes, sys.argv[1:])
    return True


class _Rows(NamedTuple):
    """What is trained on, and how it is read."""

    data: str
    weights: Path | None
    max_length: int
    truncation: "Policy"
    chat_template: str | None
    scores: "Mapping[str, ScoreStore]"
    """Score stores by the column that the loss reads them as."""


def _loss(text: str) -> Any:
    """A name, or a mapping written as YAML."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"--loss {text}: not valid YAML; write '{{name: ..., key: value}}'"
        ) from None


def _truncation(name: str) -> "Policy":
    if name not in ("drop", "keep_prefix"):
        raise ConfigError(f"--truncation {name}: choose drop or keep_prefix")
    return name


def _lora(
    r: int | None, alpha: int | None, dropout: float | None, modules: str | None
) -> dict[str, Any] | None:
    """Settings of the adapters; None without a rank, which then none of the others may want."""
    names = None if modules is None else modules.split(",")
    given: dict[str, Any] = {
        "alpha": alpha,
        "dropout": dropout,
        "target_modules": names and (names[0] if len(names) == 1 else names),
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if r is not None:
        return {"r": r} | settings
    if settings:
        option = next(iter(settings)).replace("_", "-")
        raise ConfigError(f"--lora-{option} has no effect without --lora-r; give a rank")
    return None


def _train(
    rows: _Rows,
    model: str,
    out: Path,
    settings: Mapping[str, Any],
    *,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    from atlantis.cli.launching import make_once_together
    from atlantis.disk import read_json, write_json
    from atlantis.launch.configs import asked
    from atlantis.models.loading import LoadingConfig
    from atlantis.training import ranks
    from atlantis.training import stage as training

    quiet_libraries()
    ranks.join(asked())
    config, reading, weighted = ranks.main_first(
        lambda: _checked(rows, model, settings, force=force)
    )
    if ranks.is_main():
        for warning in (*weighted.warnings, *_other_mean(weighted, config)):
            warn(warning)
    fingerprint = _fingerprint(rows, reading, model, config, seed=seed)

    def work(folder: Path) -> None:
        training.run(
            weighted.rows,
            weighted.weights,
            model,
            folder,
            config=config,
            loading=LoadingConfig(),
            max_length=rows.max_length,
            truncation=reading.truncation,
            chat=rows.chat_template,
            seed=seed,
            scores=rows.scores,
            weighing=weighted.weighing,
        )
        if ranks.is_main():
            record = read_json(folder / "run.json")
            record["left_out"] |= weighted.left_out
            write_json(folder / "run.json", record)

    made = make_once_together(out, fingerprint, work)
    if ranks.is_main():
        _tell(out, made=made, as_json=as_json)
    ranks.leave()


def _checked(
    rows: _Rows, model: str, settings: Mapping[str, Any], *, force: bool
) -> "tuple[TrainingConfig, Reading, WeightedRows]":
    """The settings and the rows, once nothing is wrong with them."""
    from atlantis.cli.weighted_rows import refuse_other_reading
    from atlantis.models.encoder_decoder import decoder_start_token
    from atlantis.training.config import TrainingConfig
    from atlantis.training.losses import check_scores
    from atlantis.validation import validated

    config = validated(TrainingConfig, settings, where="atlantis train")
    check_scores(config.loss, rows.scores)
    decoder_start_token(model)  # refuses what is no model before anything is read
    reading, weighted = _read(rows, model, force=force)
    for store in rows.scores.values():
        refuse_other_reading(store.fingerprint, store.folder, reading)
    return config, reading, weighted


def _read(rows: _Rows, model: str, *, force: bool) -> "tuple[Reading, WeightedRows]":
    """The rows as the model will read them, joined with their weights."""
    from atlantis.cli.weighted_rows import Reading, weighted_rows
    from atlantis.data.rendering import chat_template, digest_rows
    from atlantis.data.sources import open_source
    from atlantis.models.loading import load_tokenizer

    examples = list(open_source(rows.data))
    template = chat_template(load_tokenizer(model), rows.chat_template)
    reading = Reading(rows.max_length, rows.truncation, digest_rows(examples, template))
    return reading, weighted_rows(examples, rows.weights, reading=reading, force=force)


def _other_mean(weighted: "WeightedRows", config: "TrainingConfig") -> Iterator[str]:
    """A warning where the weights have mean one over something else than the loss averages."""
    wanted = "examples" if config.loss_normaliser == "example_mean" else "tokens"
    if weighted.normalised_for not in (None, wanted):
        yield (
            f"the weights have mean one over {weighted.normalised_for}, but the loss normaliser "
            f"{config.loss_normaliser} averages {wanted}: the step size changes; weigh with "
            f"--normalise-for {wanted}"
        )


def _fingerprint(
    rows: _Rows, reading: "Reading", model: str, config: "TrainingConfig", *, seed: int
) -> dict[str, Any]:
    """All that the checkpoint depends on."""
    import torch
    import transformers
    import trl

    from atlantis.disk import digest_file
    from atlantis.launch.configs import asked
    from atlantis.models.loading import fingerprint_model
    from atlantis.training.stage import VERSION

    launch = asked()

    return {
        "code": VERSION,
        "model": fingerprint_model(model),
        "rendered_text": reading.digest.rendered_text,
        "weights": None if rows.weights is None else digest_file(rows.weights),
        "training": config.settings,
        **{column: store.digest for column, store in rows.scores.items()},
        "max_length": rows.max_length,
        "truncation": rows.truncation,
        "seed": seed,
        "launch": None if launch is None else launch.settings,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }


def _tell(out: Path, *, made: bool, as_json: bool) -> None:
    from atlantis.disk import read_json

    record = read_json(out / "run.json")
    loss = record["loss"][-1][1] if record["loss"] else None
    if as_json:
        keys = ("num_rows", "left_out", "num_steps", "seed")
        put_json({"out": str(out), "cached": not made, "loss": loss} | {k: record[k] for k in keys})
        return
    left_out = "".join(f", {n:,} left out ({why})" for why, n in record["left_out"].items())
    done = "trained" if made else "there already: trained"
    end = "" if loss is None else f", last loss {loss:.4g}"
    put(
        f"{out}: {done} {record['num_steps']:,} steps on {record['num_rows']:,} rows{left_out}{end}"
    )
