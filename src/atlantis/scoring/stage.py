"""Score a set of examples under one model into a resumable store."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import Progress

from atlantis.data.tokenization import TokenizedExample, rendered_digest, tokenize
from atlantis.models.loading import LoadingConfig, fingerprint_model, load_model, load_tokenizer
from atlantis.progress import progress_bar
from atlantis.records import Example
from atlantis.scoring.transformers_scorer import TransformersScorer, make_batches
from atlantis.store import ScoreStore

VERSION = 1
"""Raised when a change of the code changes scores."""

_BATCHES_PER_PART = 16


class ScoringConfig(BaseModel):
    """How completions are scored. The same for every model that goes into one set of weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_length: int = Field(default=1024, ge=2)
    """Most tokens of prompt and completion. A longer row gets the status ``too_long``."""
    token_budget: int = Field(default=4096, ge=1)
    """Padded tokens of one forward pass. More is faster until memory ends."""
    score_end_of_turn: bool = False
    """Whether the end-of-turn token counts. A tuned reference has learnt it and a base model has
    not, so by default it would say more than the completion itself."""


def run(
    examples: Sequence[Example],
    model: str,
    out: Path,
    *,
    config: ScoringConfig,
    loading: LoadingConfig,
) -> ScoreStore:
    """Score ``examples`` under ``model`` into a folder, going on where a killed run stopped.

    Args:
        examples: Rows with unique ids.
        model: Folder or Hub name of a causal language model.
        out: Folder of the store.
        config: What is scored, and the batch size.
        loading: How the model is loaded.

    Raises:
        StoreError: ``out`` holds scores of another model, other data or other settings.
        ModelError: There is no such model.
    """
    tokenizer = load_tokenizer(model)
    rows = tokenize(examples, tokenizer, max_length=config.max_length)
    store = ScoreStore(out)
    store.start(_fingerprint(examples, model, config=config, loading=loading))
    store.repair()
    if store.is_complete:
        return store
    parts = _parts(rows, token_budget=config.token_budget)
    missing = [index for index in range(len(parts)) if not store.has_part(index)]
    if missing:
        scorer = TransformersScorer(
            load_model(model, loading), score_end_of_turn=config.score_end_of_turn
        )
        with progress_bar() as progress:
            for index in _tracked(progress, missing, parts, f"score {Path(model).name}"):
                batches = scorer.score_batches(parts[index], token_budget=config.token_budget)
                store.write_part(index, (row for batch in batches for row in batch))
    store.finish(len(parts))
    return store


def _parts(rows: Sequence[TokenizedExample], *, token_budget: int) -> list[list[TokenizedExample]]:
    """Fixed slices of the work: rows that cannot be scored first, then runs of whole batches."""
    unscorable = [row for row in rows if row.status != "ok"]
    scorable = [row for row in rows if row.status == "ok"]
    batches = make_batches([len(row.input_ids) for row in scorable], token_budget=token_budget)
    parts = [unscorable] if unscorable else []
    for start in range(0, len(batches), _BATCHES_PER_PART):
        chosen = batches[start : start + _BATCHES_PER_PART]
        parts.append([scorable[row] for batch in chosen for row in batch])
    return parts


def _tracked(
    progress: Progress,
    indices: Sequence[int],
    parts: Sequence[Sequence[TokenizedExample]],
    title: str,
) -> Iterator[int]:
    task = progress.add_task(title, total=sum(len(parts[index]) for index in indices))
    for index in indices:
        yield index
        progress.advance(task, len(parts[index]))


def _fingerprint(
    examples: Sequence[Example], model: str, *, config: ScoringConfig, loading: LoadingConfig
) -> dict[str, Any]:
    return {
        "code": VERSION,
        "model": fingerprint_model(model),
        "rendered_text": rendered_digest(examples),
        "scoring": config.model_dump(),
        "loading": loading.model_dump(exclude={"device"}) | {"device": loading.torch_device.type},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
