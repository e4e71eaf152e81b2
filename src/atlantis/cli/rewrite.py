"""``atlantis rewrite``: an expert's demonstrations in the words of the model to be trained."""

from collections.abc import Iterator, Mapping
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
    Data,
    Device,
    DeviceMap,
    Dtype,
    GeneratedBy,
    Json,
    Patience,
    Quantization,
    TrustRemoteCode,
)
from atlantis.cli.output import put, put_json, put_table, quiet_libraries, two_columns, warn
from atlantis.errors import ConfigError

if TYPE_CHECKING:
    from atlantis.data.demonstrations import Demonstration

_WHERE = "atlantis rewrite"


def rewrite(
    data: Data,
    model: Annotated[
        str,
        typer.Option(
            "--model", help="The model to be trained: folder, Hub name, or name on the server."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File of the rewritten rows, FILE.jsonl.")],
    verifier: Annotated[
        str,
        typer.Option(
            help="What tells right from wrong: maths, label, label-at-end or your own "
            "MODULE:FUNCTION."
        ),
    ] = "maths",
    grader: Annotated[
        str | None, typer.Option(help="maths: math_verify (default) or relative_tolerance.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(min=0, help="Seconds for one verification, by default 10.")
    ] = None,
    answer_column: Annotated[
        str | None,
        typer.Option(help="Column of right answers, by default answer, else the expert's text."),
    ] = None,
    problem_prompt: Annotated[
        str | None,
        typer.Option(
            help="DATA are maths problems with solutions (JSONL); the prompt, with {problem}."
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="That prompt is what a user says in a chat.")
    ] = False,
    self_attempts: Annotated[int, typer.Option(help="Samples at the plain prompt; 0: none.")] = 4,
    guided_attempts: Annotated[
        int, typer.Option(help="Samples with the expert's solution in view, if unsolved; 0: none.")
    ] = 4,
    temperature: Annotated[float, typer.Option(help="Of the first samples.")] = 1.0,
    guided_temperature: Annotated[float, typer.Option(help="Of the second.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens that have this probability.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a completion.")] = 2048,
    select: Annotated[
        str, typer.Option(help="Which right one is kept: first, random, shortest, most_likely.")
    ] = "first",
    guided_prompt: Annotated[
        Path | None,
        typer.Option(help="File with your own guided prompt: {prompt}, {solution}, {answer}."),
    ] = None,
    copy_ngram: Annotated[int, typer.Option(help="Words in a row that count as copied.")] = 8,
    max_copied: Annotated[
        float, typer.Option(help="Refuse guided samples with a larger share of copied words.")
    ] = 0.6,
    leak: Annotated[
        list[str] | None,
        typer.Option(help="Regular expression that betrays the expert's solution. Repeatable."),
    ] = None,
    fallback: Annotated[
        str, typer.Option(help="Rows that stay unsolved: expert keeps them as they are, or drop.")
    ] = "expert",
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
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
    """Replace an expert's completions by right ones of the model itself.

    First the model answers alone, then with the expert's solution in view; what stays unsolved
    keeps the expert's completion. The prompts stay as they are. A rerun goes on where it stopped.
    """
    from atlantis.cli.generation_job import read_job
    from atlantis.rewriting.config import RewritingConfig
    from atlantis.rewriting.stage import RewritingJob
    from atlantis.validation import validated

    if out.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: name a file that ends in .jsonl")
    settings: dict[str, Any] = {
        "verifier": _verifier(verifier, grader=grader, deadline=deadline),
        "self_attempts": self_attempts,
        "guided_attempts": guided_attempts,
        "temperature": temperature,
        "guided_temperature": guided_temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "select": select,
        "copy_ngram": copy_ngram,
        "max_copied": max_copied,
        "leaks": leak or (),
        "fallback": fallback,
        "seed": seed,
    }
    if guided_prompt is not None:
        settings["guided_prompt"] = _text_of(guided_prompt)
    config = validated(RewritingConfig, settings, where=_WHERE)
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
    rows = _Rows(data, answer_column, problem_prompt, as_chat=chat)
    report = RewritingJob(rows, job.backend, model, config).run(out)
    _show(report, out, as_json=as_json)


class _Rows:
    """The demonstrations, as often as they are asked for."""

    def __init__(
        self, data: str, answer: str | None, problem_prompt: str | None, *, as_chat: bool
    ) -> None:
        self._data = data
        self._answer = answer
        self._template = problem_prompt
        self._as_chat = as_chat
        if as_chat and problem_prompt is None:
            raise ConfigError("--chat has no effect without --problem-prompt")
        if problem_prompt is None:
            return
        from atlantis.data.maths import read_maths
        from atlantis.validation import check_template

        if answer is not None:
            raise ConfigError("--answer-column has no effect beside --problem-prompt")
        try:
            check_template(problem_prompt, allowed=("problem",), required="problem")
        except ValueError as error:
            raise ConfigError(f"--problem-prompt: {error}") from None
        for place in read_maths(Path(data)).dropped:
            warn(f"left out: {place}")

    def __iter__(self) -> "Iterator[Demonstration]":
        from atlantis.data.demonstrations import ANSWER, read_demonstrations, solved_problems
        from atlantis.data.sources import open_source

        if self._template is not None:
            return solved_problems(Path(self._data), prompt=self._template, as_chat=self._as_chat)
        source = open_source(self._data, also=[self._answer or ANSWER])
        return read_demonstrations(source, answer=self._answer)


def _verifier(kind: str, *, grader: str | None, deadline: float | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"kind": kind}
    if ":" in kind:
        settings = {"kind": "function", "function": kind}
    elif kind == "label-at-end":
        settings = {"kind": "label", "place": "end"}
    elif kind not in ("maths", "label"):
        raise ConfigError(
            f"--verifier {kind}: choose maths, label, label-at-end or MODULE:FUNCTION"
        )
    if grader is not None:
        if kind != "maths":
            raise ConfigError(f"--grader has no effect on --verifier {kind}")
        settings["grader"] = grader
    if deadline is not None:
        if settings["kind"] == "label":
            raise ConfigError(f"--deadline has no effect on --verifier {kind}")
        settings["deadline_seconds"] = deadline
    return settings


def _text_of(path: Path) -> str:
    from atlantis.data.files import read_text

    return read_text(path)


def _show(report: Mapping[str, Any], out: Path, *, as_json: bool) -> None:
    for error in report["verifier_errors"]:
        warn(f"{error['stage']} attempt {error['attempt']}: {error['detail']}")
    for reason in report["unasked"]:
        warn(f"not asked: {reason}")
    if as_json:
        put_json({"out": str(out)} | dict(report))
        return
    put_table(two_columns(f"{report['num_rows']:,} rows", _lines(report)))
    put(str(out))


def _lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    total = max(1, report["num_rows"] + report["num_dropped"])
    lines = [(name, _share(count, total)) for name, count in report["sources"].items()]
    if report["num_dropped"]:
        lines.append(("dropped", _share(report["num_dropped"], total)))
    for stage, counts in report["stages"].items():
        if counts["tried"]:
            lines.append((f"{stage}: samples right", _share(counts["correct"], counts["tried"])))
    lines += [(f"refused: {why}", f"{count:,}") for why, count in report["refused"].items()]
    gap = report["policy_gap"]
    if gap is not None and gap["before"] is not None:
        lines.append(("log-probability per token, expert", f"{gap['before']:.3f}"))
        lines.append(("log-probability per token, now", f"{gap['after']:.3f}"))
    return lines


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"
