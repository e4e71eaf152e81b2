"""``atlantis train``: a data file and weights to a fine-tuned checkpoint."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from atlantis.cli.options import ChatTemplate, Force, Json, MaxLength, Model, Out, Truncation
from atlantis.cli.output import put, put_json, quiet_libraries, warn
from atlantis.errors import ConfigError

if TYPE_CHECKING:
    from atlantis.cli.weighted_rows import Reading, WeightedRows
    from atlantis.data.tokenization import Truncation as Policy
    from atlantis.training.stage import TrainingConfig


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
    max_grad_norm: Annotated[float, typer.Option(help="Gradients are clipped to this norm.")] = 1.0,
    loss: Annotated[
        str, typer.Option(help="Token factor: nll (one) or dft (the token's probability).")
    ] = "nll",
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
    checkpoint_steps: Annotated[
        str,
        typer.Option(
            help="Steps between checkpoints, or never; by default a tenth of all, at least 50."
        ),
    ] = "auto",
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
    lora = _lora(lora_r, lora_alpha, lora_dropout, lora_target_modules)
    settings = {
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "warmup_fraction": warmup_fraction,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "loss": loss,
        "loss_normaliser": loss_normaliser,
        "group_by_length": group_by_length,
        "bf16": bf16,
        "activation_checkpointing": activation_checkpointing,
        "lora": lora,
        "checkpoint_steps": checkpoint_steps,
    }
    rows = _Rows(data, weights, max_length, _truncation(truncation), chat_template)
    _train(rows, model, out, settings, seed=seed, force=force, as_json=as_json)


class _Rows(NamedTuple):
    """What is trained on, and how it is read."""

    data: str
    weights: Path | None
    max_length: int
    truncation: "Policy"
    chat_template: str | None


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
    from atlantis.cli.once import make_once
    from atlantis.disk import read_json, write_json
    from atlantis.models.loading import LoadingConfig, check_decoder_only
    from atlantis.training import stage as training
    from atlantis.validation import validated

    quiet_libraries()
    config = validated(training.TrainingConfig, settings, where="atlantis train")
    check_decoder_only(model)
    reading, weighted = _read(rows, model, force=force)
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
        )
        record = read_json(folder / "run.json")
        record["left_out"] |= weighted.left_out
        write_json(folder / "run.json", record)

    made = make_once(out, fingerprint, work, resumable=True)
    _tell(out, made=made, as_json=as_json)


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
    from atlantis.models.loading import fingerprint_model
    from atlantis.training.stage import VERSION

    return {
        "code": VERSION,
        "model": fingerprint_model(model),
        "rendered_text": reading.digest.rendered_text,
        "weights": None if rows.weights is None else digest_file(rows.weights),
        "training": config.settings,
        "max_length": rows.max_length,
        "truncation": rows.truncation,
        "seed": seed,
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
