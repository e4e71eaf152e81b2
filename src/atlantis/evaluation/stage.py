"""Test a checkpoint on a task with a closed set of labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from atlantis.disk import write_json, write_table
from atlantis.evaluation.relations import confusion, relation_metrics
from atlantis.generation.decoding import generate_greedily
from atlantis.models.choices import score_choices
from atlantis.models.decoder_choices import OUTSIDE
from atlantis.models.encoder_decoder import loaded_start_token, tokenize_for
from atlantis.models.loading import LoadingConfig, load_model, load_tokenizer
from atlantis.records import Example, LabelSet

VERSION = 1
"""Raised when a change of the code changes predictions."""


class EvaluationConfig(BaseModel):
    """How a checkpoint is asked for its answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    token_budget: int = Field(default=8192, ge=1)
    """Padded tokens of one forward pass."""
    generate: bool = True
    """Also decode greedily and parse strictly: an answer that is no label counts as unparsed."""
    num_bootstrap: int = Field(default=2000, ge=100)
    """Bootstrap replicates behind every interval."""


def run(
    test: Sequence[Example],
    labels: LabelSet,
    completions: Mapping[str, str],
    model: str,
    out: Path,
    *,
    config: EvaluationConfig,
    loading: LoadingConfig,
    max_length: int,
) -> None:
    """Write ``predictions.parquet`` and ``metrics.json`` into ``out``.

    ``predicted`` is the label whose string and end-of-turn have the highest log-probability after
    the prompt; ``generated`` is what greedy decoding writes, a label only if it is one exactly.

    Args:
        test: Test rows; the true label is `Example.gold_label`, or the label where that is unknown.
        labels: The closed set.
        completions: How each label stands after a prompt.
        model: Folder or Hub name of the model.
        out: Folder of the results.
        config: How answers are asked for.
        loading: How the model is loaded.
        max_length: Most tokens of a prompt with a label.

    Raises:
        DataError: A test row is longer than ``max_length``.
    """
    answers = predict(
        test, labels, completions, model, config=config, loading=loading, max_length=max_length
    )
    gold = [true_label(row) for row in test]
    columns: dict[str, Any] = {
        "example_id": [row.example_id for row in test],
        "gold": gold,
        "predicted": answers["predicted"],
    }
    metrics = {"predicted": _metrics(gold, answers["predicted"], labels)}
    if config.generate:
        columns |= {name: answers[name] for name in ("generated", "generated_text")}
        metrics["generated"] = _metrics(gold, answers["generated"], labels)
        unparsed = sum(label is None for label in answers["generated"]) / len(test)
        metrics["generated"]["unparsed"] = unparsed
    write_table(out / "predictions.parquet", pa.table(columns))
    write_json(out / "metrics.json", {"n": len(test), **metrics})


def true_label(example: Example) -> str:
    """The label to be found: the gold one, or the given one where no other is known."""
    return str(example.gold_label if example.gold_label is not None else example.label)


def predict(
    examples: Sequence[Example],
    labels: LabelSet,
    completions: Mapping[str, str],
    model: str,
    *,
    config: EvaluationConfig,
    loading: LoadingConfig,
    max_length: int,
) -> dict[str, Any]:
    """Predicted label, log-probabilities of all labels, and what greedy decoding writes."""
    # The tree of labels needs a mask of its own, which FlashAttention does not take.
    if loading.attention == "flash_attention_2":
        loading = loading.model_copy(update={"attention": "sdpa"})
    network = load_model(model, loading)
    tokenizer = load_tokenizer(model)
    choices = [completions[name] for name in labels.names]
    prompts = [row.prompt for row in examples]
    scores = score_choices(
        network,
        tokenizer,
        prompts,
        choices,
        token_budget=config.token_budget,
        max_length=max_length,
    )
    answers: dict[str, Any] = {
        "predicted": [labels.names[i] for i in scores.logprobs.argmax(1)],
        "logprobs": scores.logprobs,
    }
    if config.generate:
        texts = _decode(network, tokenizer, prompts, choices, scores.greedy)
        known = {completions[name].strip(): name for name in labels.names}
        answers["generated_text"] = texts
        answers["generated"] = [known.get(text.strip()) for text in texts]
    return answers


def _decode(
    model: Any, tokenizer: Any, prompts: Sequence[str], choices: Sequence[str], greedy: np.ndarray
) -> list[str]:
    """Greedy text: known from scoring inside the set of labels, generated outside of it."""
    texts = [str(choices[index]) if index != OUTSIDE else "" for index in greedy]
    outside = [row for row, index in enumerate(greedy) if index == OUTSIDE]
    pairs = [Example(str(i), prompts[0], choice) for i, choice in enumerate(choices)]
    start = loaded_start_token(model) if model.config.is_encoder_decoder else None
    rows = tokenize_for(start, pairs, tokenizer, max_length=2**30)
    before = len(tokenizer(prompts[0])["input_ids"]) if start is None else 1
    room = max(len(row.input_ids) for row in rows) - before + 4
    generated = generate_greedily(
        model, tokenizer, [prompts[row] for row in outside], max_new_tokens=room
    )
    for row, text in zip(outside, generated, strict=True):
        texts[row] = text
    return texts


def _metrics(
    gold: Sequence[str], predicted: Sequence[str | None], labels: LabelSet
) -> dict[str, float]:
    values = relation_metrics(confusion(gold, predicted, labels), labels)
    return {name: float(value) for name, value in values.items()}
