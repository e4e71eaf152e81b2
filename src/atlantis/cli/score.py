"""``atlantis score``: a data file and a model to a score store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlantis.cli.options import Device, Dtype, Json, MaxLength, Model, Out, TokenBudget
from atlantis.cli.output import put, put_json, quiet_libraries

if TYPE_CHECKING:
    from atlantis.store import ScoreStore


def score(
    data: Annotated[Path, typer.Argument(help="JSONL with prompt and completion.")],
    model: Model,
    out: Out,
    max_length: MaxLength = 1024,
    token_budget: TokenBudget = 4096,
    score_end_of_turn: Annotated[
        bool,
        typer.Option(
            "--score-end-of-turn", help="Count the end-of-turn token as part of the completion."
        ),
    ] = False,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Log-probability of every completion under a model.

    Writes Parquet parts and a manifest; a rerun goes on where it stopped.
    """
    from atlantis import api

    quiet_libraries()
    store = api.score(
        data,
        model=model,
        out=out,
        max_length=max_length,
        token_budget=token_budget,
        score_end_of_turn=score_end_of_turn,
        dtype=dtype,
        device=device,
    )
    summary = _summary(store)
    if as_json:
        put_json({"out": str(out)} | summary)
        return
    counts = ", ".join(f"{count:,} {status}" for status, count in summary["status_counts"].items())
    nll = "" if summary["mean_nll"] is None else f"; mean NLL {summary['mean_nll']:.3f} per token"
    put(f"{out}: {counts}{nll}")


def _summary(store: "ScoreStore") -> dict[str, Any]:
    """Counts of every status, and the mean negative log-likelihood per scored token."""
    table = store.read(["status", "num_tokens", "sequence_logprob"])
    status: list[str] = table["status"].to_pylist()
    num_tokens = sum(n for n in table["num_tokens"].to_pylist() if n is not None)
    total = sum(value for value in table["sequence_logprob"].to_pylist() if value is not None)
    return {
        "num_examples": len(status),
        "status_counts": {name: status.count(name) for name in sorted(set(status))},
        "num_tokens": num_tokens,
        "mean_nll": -total / num_tokens if num_tokens else None,
    }
