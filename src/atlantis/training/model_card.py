"""The README of a trained model: what it was made from and how, so that it can be made again."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from atlantis.disk import digest_json

_NORMALISERS = {
    "token_mean": r"the number of trained tokens of the step",
    "example_mean": r"the number of examples of the step, and $\ell_{it}$ by the example's tokens",
    "sequence_sum": r"the number of examples of the step",
}
_FORMULAS = {
    "influence": r"w = (p_\text{reference} / p_\text{small})^{1/n^\alpha}",
    "algorithm1": r"w = (p_\text{large}\, p_\text{reference} / p_\text{small})^{1/n^\alpha}",
    "proxy": r"w = (p_\text{large}\, p_\text{reference} / p_\text{small} / Z)^{1/n^\alpha}",
    "ratio": r"w = (p_\text{large} / p_\text{small})^{1/n^\alpha}",
    "loss_ratio": r"w = \text{nll}_\text{small} / \text{nll}_\text{reference}",
    "uniform": r"w = 1",
}
"""With ``n`` the units (tokens or bytes) of the completion."""
_HIDDEN = ("code", "model", "data", "weights")
"""Fields of the fingerprint that have a place of their own."""


def model_card(
    base: str,
    record: Mapping[str, Any],
    *,
    weighing: Mapping[str, Any] | None = None,
    results: Mapping[str, str] | None = None,
) -> str:
    """A model card in Markdown, with the metadata that the Hub reads.

    Args:
        base: The model that training started from.
        record: ``run.json`` of the training.
        weighing: Diagnostics of the weights file; None for a training without weights.
        results: What tests of the model gave, by measure.
    """
    metadata = {
        "base_model": base,
        "library_name": "transformers",
        "tags": ["atlantis", "importance-weighted-sft", "trl"],
    }
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {Path(base).name}, fine-tuned",  # not by its folder: the same training, the same bytes
        _summary(base, record),
        *_loss(record),
        *_weights(record, weighing),
        *_results(results),
        *_inputs(record, weighing),
        *_settings(record),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(base: str, record: Mapping[str, Any]) -> str:
    left_out = "".join(f", {n:,} left out ({why})" for why, n in record["left_out"].items())
    weighted = "without weights" if record["fingerprint"]["weights"] is None else "with weights"
    return (
        f"Made from `{base}` by supervised fine-tuning {weighted} on {record['num_rows']:,} "
        f"rows{left_out}, {record['num_steps']:,} steps, seed {record['seed']}."
    )


def _loss(record: Mapping[str, Any]) -> Iterator[str]:
    config = record["config"]
    yield "## Loss"
    yield (
        r"$L = \frac{1}{N} \sum_i w_i \sum_t \ell_{it}$, with $N$ "
        f"{_NORMALISERS[config['loss_normaliser']]} (`{config['loss_normaliser']}`) and "
        f"the token loss {_code(config['loss'])}."
    )


def _weights(record: Mapping[str, Any], weighing: Mapping[str, Any] | None) -> Iterator[str]:
    digest = record["fingerprint"]["weights"]
    if digest is None:
        return
    yield "## Weights"
    spread = record.get("weights")
    rows = {"SHA-256 of the weights": digest}
    if spread is not None:
        share = f"{spread['ess_fraction']:.1%}"
        rows["effective sample size"] = (
            f"{spread['effective_sample_size']:,.1f} of {record['num_rows']:,} rows ({share})"
        )
    if weighing:
        scheme = weighing["scheme"]["scheme"]
        formula = _FORMULAS.get(scheme["kind"])
        if formula is not None:
            yield f"${formula}$, then mean one over {weighing['normalise_for']}."
        rows["scheme"] = _code(weighing["scheme"])
    yield _table(rows)


def _results(results: Mapping[str, str] | None) -> Iterator[str]:
    if results:
        yield "## Results"
        yield _table(results)


def _inputs(record: Mapping[str, Any], weighing: Mapping[str, Any] | None) -> Iterator[str]:
    fingerprint = record["fingerprint"]
    yield "## Made from"
    rows = {"SHA-256 of the rows as read": fingerprint["data"]}
    rows |= {f"base model, {file}": digest for file, digest in fingerprint["model"].items()}
    for role, digest in (weighing or {}).get("scores", {}).items():
        rows[f"scores of the {role} model"] = digest
    yield _table(rows)


def _settings(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## Settings"
    fields = record["fingerprint"].items()
    yield _table({name: _code(value) for name, value in fields if name not in _HIDDEN})
    yield f"SHA-256 of all of these together: `{digest_json(record['fingerprint'])}`"


def _code(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
