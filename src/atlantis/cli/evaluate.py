"""``atlantis evaluate``: a checkpoint and a labelled test file to metrics with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from atlantis.cli.options import Device, Dtype, Json, Model, Out, TokenBudget
from atlantis.cli.output import put, put_json, put_table, quiet_libraries, two_columns

if TYPE_CHECKING:
    from atlantis.cli.label_task import LabelTask
    from atlantis.evaluation.stage import EvaluationConfig
    from atlantis.models.loading import LoadingConfig


def evaluate(
    data: Annotated[
        Path, typer.Option("--data", help="JSONL whose completions are the true labels.")
    ],
    model: Model,
    out: Out,
    labels: Annotated[
        str, typer.Option(help="All labels, a text file with one per line; auto: those of --data.")
    ] = "auto",
    negative_label: Annotated[
        str | None, typer.Option(help="The label that means none of these, such as Other.")
    ] = None,
    generate: Annotated[
        bool,
        typer.Option(help="Also decode greedily, and count an answer only if it is a label."),
    ] = True,
    num_bootstrap: Annotated[int, typer.Option(help="Replicates behind every interval.")] = 2000,
    max_length: Annotated[
        int, typer.Option(min=2, help="Most tokens of a prompt with a label; more is an error.")
    ] = 1024,
    token_budget: TokenBudget = 8192,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Test a model on a task with a closed set of labels.

    The answer is the label with the highest log-probability after the prompt. Every metric has a
    bootstrap interval over the test rows.
    """
    from atlantis.cli.label_task import read_label_task
    from atlantis.disk import read_json

    task = read_label_task(data, labels=labels, negative=negative_label)
    asked = {
        "token_budget": token_budget,
        "generate": generate,
        "num_bootstrap": num_bootstrap,
    }
    loading = {"dtype": dtype, "device": device}
    settings = _validated(asked, loading, max_length=max_length)
    made = _evaluate(task, model, out, settings)
    metrics = read_json(out / "metrics.json")
    if as_json:
        put_json({"out": str(out), "cached": not made, "metrics": metrics})
        return
    for kind, intervals in metrics["intervals"].items():
        put_table(two_columns(f"{kind}, n = {metrics['n']:,}", _rows(intervals)))
    put(str(out))


class _Settings(NamedTuple):
    asked: "EvaluationConfig"
    loading: "LoadingConfig"
    max_length: int


def _validated(
    asked: Mapping[str, Any], loading: Mapping[str, Any], *, max_length: int
) -> _Settings:
    from atlantis.evaluation.stage import EvaluationConfig
    from atlantis.models.loading import LoadingConfig
    from atlantis.validation import validated

    where = "atlantis evaluate"
    return _Settings(
        validated(EvaluationConfig, asked, where=where),
        validated(LoadingConfig, loading, where=where),
        max_length,
    )


def _evaluate(task: "LabelTask", model: str, out: Path, settings: _Settings) -> bool:
    from atlantis.cli.once import make_once
    from atlantis.evaluation import stage as evaluation
    from atlantis.models.encoder_decoder import decoder_start_token

    quiet_libraries()
    decoder_start_token(model)  # refuses what is no model before anything is read
    fingerprint = _fingerprint(task, model, settings)

    def work(folder: Path) -> None:
        evaluation.run(
            task.rows,
            task.labels,
            task.completions,
            model,
            folder,
            config=settings.asked,
            loading=settings.loading,
            max_length=settings.max_length,
        )
        _add_intervals(folder, task, num_replicates=settings.asked.num_bootstrap)

    return make_once(out, fingerprint, work)


def _fingerprint(task: "LabelTask", model: str, settings: _Settings) -> dict[str, Any]:
    """All that the predictions and intervals depend on."""
    import torch
    import transformers

    from atlantis.disk import digest_json
    from atlantis.evaluation.stage import VERSION
    from atlantis.models.loading import fingerprint_model

    return {
        "code": VERSION,
        "model": fingerprint_model(model),
        "rows": digest_json([asdict(row) for row in task.rows]),
        "completions": task.completions,
        "negative": task.labels.negative,
        "evaluation": settings.asked.model_dump(),
        "loading": settings.loading.model_dump(),
        "max_length": settings.max_length,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _add_intervals(folder: Path, task: "LabelTask", *, num_replicates: int) -> None:
    """Put each metric's bootstrap interval over the test rows into ``metrics.json``."""
    from atlantis.disk import read_json, read_table, write_json
    from atlantis.evaluation.stage import true_label

    metrics = read_json(folder / "metrics.json")
    table = read_table(folder / "predictions.parquet")
    gold = [true_label(row) for row in task.rows]
    metrics["intervals"] = {
        kind: _intervals(table[kind].to_pylist(), gold, task, num_replicates=num_replicates)
        for kind in ("predicted", "generated")
        if kind in table.column_names
    }
    write_json(folder / "metrics.json", metrics)


def _intervals(
    answers: Sequence[str | None], gold: Sequence[str], task: "LabelTask", *, num_replicates: int
) -> dict[str, Any]:
    from atlantis.evaluation.comparison import compare

    result = compare(
        {"model": {0: answers}},
        gold,
        task.labels,
        baseline="model",
        control=None,
        num_replicates=num_replicates,
    )
    return {
        name: {key: metric[key] for key in ("mean", "low", "high", "n")}
        for name, metric in result["arms"]["model"]["metrics"].items()
    }


def _rows(intervals: Mapping[str, Any]) -> list[tuple[str, str]]:
    from atlantis.report.words import estimate, metric_title

    return [
        (metric_title(name), estimate(value["mean"], value["low"], value["high"]))
        for name, value in intervals.items()
    ]
