"""``atlantis score``: data and a model to a score store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlantis.cli.options import (
    ChatTemplate,
    Data,
    Device,
    Dtype,
    Json,
    MaxLength,
    Out,
    Truncation,
)
from atlantis.cli.output import put, put_json, quiet_libraries, warn
from atlantis.errors import ConfigError

if TYPE_CHECKING:
    from atlantis.store import ScoreStore

_API_KEY = "OPENAI_API_KEY"


def score(
    data: Data,
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="Folder or Hub name of a language model. Several in one pass: NAME=MODEL each, "
            "scores in OUT/NAME.",
        ),
    ],
    out: Out,
    max_length: MaxLength = 1024,
    truncation: Truncation = "drop",
    template: Annotated[
        str, typer.Option(help="Chats read the same to all models (shared), or not (native).")
    ] = "shared",
    chat_template: ChatTemplate = None,
    score_end_of_turn: Annotated[
        bool,
        typer.Option(
            "--score-end-of-turn", help="Count the end-of-turn token as part of the completion."
        ),
    ] = False,
    condition: Annotated[
        str, typer.Option(help="Score completions after their prompt (prompt), or alone (none).")
    ] = "prompt",
    token_budget: Annotated[
        str, typer.Option(help="Padded tokens of one pass: a number, or auto to measure it.")
    ] = "auto",
    tokenizer_workers: Annotated[
        int, typer.Option(min=0, help="Processes that tokenize ahead; 0 does it in a thread.")
    ] = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    device_map: Annotated[
        str | None, typer.Option(help="Spread the model over GPUs: auto, balanced, ...")
    ] = None,
    attention: Annotated[
        str, typer.Option(help="auto, sdpa, eager or flash_attention_2.")
    ] = "auto",
    quantization: Annotated[
        str | None, typer.Option(help="Weights in 4bit or 8bit (bitsandbytes).")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag of a Hub model.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="PEFT adapter on top of the model, a folder or Hub name.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ] = False,
    backend: Annotated[
        str,
        typer.Option(
            help="What computes: transformers, vllm, server with --base-url, or proxy with "
            "--proxy-small and --proxy-reference."
        ),
    ] = "transformers",
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server, such as http://HOST:8000/v1.")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(help="The model's name on the server, if it is another.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=_API_KEY, help="Key for the server.", show_default=False)
    ] = None,
    parity_rows: Annotated[
        int, typer.Option(min=0, help="Rows on which vllm or server must equal transformers.")
    ] = 16,
    proxy_small: Annotated[str | None, typer.Option(help="proxy: the small base model.")] = None,
    proxy_reference: Annotated[
        str | None, typer.Option(help="proxy: the small model, tuned.")
    ] = None,
    proxy_alpha: Annotated[
        float | None, typer.Option(help="proxy: how far the model is moved, by default 1.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every row of the finished store again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Log-probability of every completion under a model, or under several in one pass.

    Writes Parquet parts and a manifest; a rerun goes on where it stopped.
    """
    from atlantis import api

    quiet_libraries()
    options: dict[str, Any] = {
        "max_length": max_length,
        "truncation": truncation,
        "template": template,
        "chat_template": chat_template,
        "score_end_of_turn": score_end_of_turn,
        "condition": condition,
        "token_budget": _budget(token_budget),
        "tokenizer_workers": tokenizer_workers,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "attention": attention,
        "quantization": quantization,
        "revision": revision,
        "adapter": adapter,
        "trust_remote_code": trust_remote_code,
        "backend": backend,
        "base_url": base_url,
        "served_model": served_model,
        "api_key": api_key if backend == "server" else None,  # it may stand in the environment
        "parity_rows": parity_rows,
        "proxy_small": proxy_small,
        "proxy_reference": proxy_reference,
        "proxy_alpha": proxy_alpha,
    }
    if len(model) == 1:
        stores = [api.score(data, model=model[0], out=out, **options)]
    else:
        stores = list(api.score_models(data, _by_name(model), out=out, **options).values())
    for store in stores:
        summary = _summary(store)
        if verify:
            summary["num_verified"] = store.verify()
        _show(store, summary, as_json=as_json)


def _by_name(models: Sequence[str]) -> dict[str, str]:
    """What several ``NAME=MODEL`` say."""
    found: dict[str, str] = {}
    for text in models:
        name, equals, model = text.partition("=")
        if not (name and equals and model):
            raise ConfigError(f"--model {text}: with several models, write NAME=MODEL for each")
        if name in found:
            raise ConfigError(f"--model {text}: the name {name!r} stands there twice")
        found[name] = model
    return found


def _budget(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--token-budget {text}: give a number of tokens, or auto") from None


def _show(store: "ScoreStore", summary: dict[str, Any], *, as_json: bool) -> None:
    if summary["num_truncated"]:
        warn(f"{summary['num_truncated']:,} rows were cut off at the limit; raise --max-length")
    if as_json:
        put_json({"out": str(store.folder)} | summary)
        return
    counts = ", ".join(f"{count:,} {status}" for status, count in summary["status_counts"].items())
    nll = "" if summary["mean_nll"] is None else f"; mean NLL {summary['mean_nll']:.3f} per token"
    put(f"{store.folder}: {counts}{nll}")
    if "num_verified" in summary:
        put(f"{store.folder}: {summary['num_verified']:,} rows verified")


def _summary(store: "ScoreStore") -> dict[str, Any]:
    """Counts of every status, and the mean negative log-likelihood per scored token."""
    table = store.read(["status", "num_tokens", "sequence_logprob"])
    counted: list[dict[str, Any]] = table["status"].value_counts().to_pylist()
    num_tokens = int(table["num_tokens"].drop_null().to_numpy().sum())
    total = float(table["sequence_logprob"].drop_null().to_numpy().sum())
    return {
        "num_examples": table.num_rows,
        "status_counts": {
            row["values"]: row["counts"] for row in sorted(counted, key=lambda row: row["values"])
        },
        "num_tokens": num_tokens,
        "num_truncated": store.num_truncated,
        "mean_nll": -total / num_tokens if num_tokens else None,
    }
