"""``atlantis evaluate-maths``: a model on maths benchmarks, avg@n with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlantis.cli.options import (
    Adapter,
    ApiKey,
    BaseUrl,
    BatchSize,
    ChatTemplate,
    Concurrency,
    Device,
    DeviceMap,
    Dtype,
    GeneratedBy,
    Json,
    Out,
    Patience,
    Quantization,
    TrustRemoteCode,
)
from atlantis.cli.output import put, put_json, put_table, quiet_libraries, say
from atlantis.errors import ConfigError

if TYPE_CHECKING:
    from atlantis.data.maths import MathsProblem

_WHERE = "atlantis evaluate-maths"


def evaluate_maths(
    benchmark: Annotated[
        list[str],
        typer.Option(help="NAME=FILE.jsonl with problems and answers, or FILE.jsonl. Repeatable."),
    ],
    model: Annotated[
        str, typer.Option("--model", help="Folder, Hub name, or the model's name on the server.")
    ],
    out: Out,
    num_samples: Annotated[int, typer.Option(help="Completions of each problem.")] = 16,
    temperature: Annotated[
        float, typer.Option(help="Of the samples; 0 takes the most likely token.")
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens that have this probability.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a completion.")] = 4096,
    prompt: Annotated[
        str | None, typer.Option(help="What the model reads, with {problem}; default in the docs.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="The prompt is text to go on from, not a chat.")
    ] = False,
    grader: Annotated[
        list[str] | None,
        typer.Option(help="math_verify or relative_tolerance; by default both. Repeatable."),
    ] = None,
    extraction: Annotated[
        str, typer.Option(help="Where an answer may stand: boxed, stated or last_expression.")
    ] = "stated",
    num_bootstrap: Annotated[int, typer.Option(help="Replicates behind every interval.")] = 10_000,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many problems of each benchmark.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples and of the bootstrap.")] = 0,
    backend: GeneratedBy = "transformers",
    base_url: BaseUrl = None,
    concurrency: Concurrency = None,
    patience: Patience = None,
    api_key: ApiKey = None,
    batch_size: BatchSize = None,
    chat_template: ChatTemplate = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    adapter: Adapter = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Test a model on maths problems with checkable answers.

    Several samples of each problem are verified: avg@n, pass@k and maj@n, each with a bootstrap
    interval over problems. A rerun goes on where it stopped.
    """
    from atlantis.cli.generation_job import read_job
    from atlantis.cli.once import make_once
    from atlantis.disk import read_json
    from atlantis.evaluation.maths_stage import MathsEvaluation, MathsEvaluationConfig
    from atlantis.store import begin
    from atlantis.validation import validated

    settings: dict[str, Any] = {
        "chat": not plain,
        "num_samples": num_samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "extraction": extraction,
        "num_bootstrap": num_bootstrap,
    }
    settings |= {} if prompt is None else {"prompt": prompt}
    settings |= {} if grader is None else {"graders": grader}
    config = validated(MathsEvaluationConfig, settings, where=_WHERE)
    job = read_job(
        backend,
        model=model,
        where=_WHERE,
        base_url=base_url,
        concurrency=concurrency,
        patience=patience,
        api_key=api_key,
        batch_size=batch_size,
        chat_template=chat_template,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
        adapter=adapter,
        trust_remote_code=trust_remote_code,
    )
    quiet_libraries()
    evaluation = MathsEvaluation(_benchmarks(benchmark, limit), job.backend, config)
    fingerprint = evaluation.fingerprint()

    def work(folder: Path) -> None:
        begin(folder, fingerprint)
        evaluation.run(folder)

    made = make_once(out, fingerprint, work, resumable=True)
    metrics = read_json(out / "metrics.json")
    if as_json:
        put_json({"out": str(out), "cached": not made} | metrics)
        return
    _show(metrics)
    put(str(out))


def _benchmarks(given: Sequence[str], limit: int | None) -> "dict[str, Sequence[MathsProblem]]":
    """The problems by the benchmark's name, which is the file's unless told."""
    from atlantis.data.maths import read_maths

    found: dict[str, Sequence[MathsProblem]] = {}
    for text in given:
        name, equals, file = text.partition("=")
        path = Path(file if equals else text)
        name = name if equals else path.stem
        if not name or name in found:
            raise ConfigError(f"--benchmark {text}: {'no name' if not name else 'twice'}: {name!r}")
        problems = read_maths(path)
        for place in problems.dropped:
            say(f"left out: {place}")
        found[name] = problems.rows[:limit]
    return found


def _show(metrics: Mapping[str, Any]) -> None:
    """A table of each grader: benchmarks with their number of problems, and their mean."""
    from rich.table import Table

    benchmarks: Mapping[str, Mapping[str, Any]] = metrics["benchmarks"]
    for grader, mean in metrics["average"].items():
        results = {name: by_grader[grader] for name, by_grader in benchmarks.items()}
        first = next(iter(results.values()))
        columns = _columns(first["metrics"])
        table = Table(title=first["verifier"], title_justify="left")
        table.add_column("problems", style="bold", no_wrap=True)
        for title in ("n", *columns):
            table.add_column(title, justify="right")
        for name, result in results.items():
            cells = [_cell(result["metrics"], parts) for parts in columns.values()]
            table.add_row(name, f"{result['num_problems']:,}", *cells)
        if len(results) > 1:
            means = {name: {"mean": value} for name, value in mean.items()}
            cells = [_cell(means, parts) for parts in columns.values()]
            table.add_row("mean", "", *cells, style="italic")
        put_table(table)


def _columns(metrics: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What the table shows, by its title: of several pass@k the one with the largest k."""
    shown: list[str] = []
    for start in ("avg@", "pass@", "maj@"):
        found = [name for name in metrics if name.startswith(start)]
        shown += sorted(found, key=lambda name: int(name.partition("@")[2]))[-1:]
    return {name: (name,) for name in shown} | {
        "cut off": ("truncation_rate",),
        "no answer": ("no_answer_rate",),
        "not graded": ("timeout_rate", "error_rate"),
    }


def _cell(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    from atlantis.report.words import estimate

    if len(names) > 1 or names[0].endswith("_rate"):
        return f"{sum(metrics[name]['mean'] for name in names):.1%}"
    value = metrics[names[0]]
    if "low" not in value:
        return f"{value['mean']:.3f}"
    return estimate(value["mean"], value["low"], value["high"])
