"""Score rows under one model into a store that survives a kill at any moment.

The rows are read twice. The first pass checks every row and makes the fingerprint, before a model
is loaded; the second scores one window of rows after the other. A window is one part of the store.
Its batches go into a journal as they are done, so that a rerun repeats at most one of them, and
memory holds two windows whatever the size of the data.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import transformers
from pydantic import BaseModel, ConfigDict, Field

from atlantis.data.rendering import RowDigest, chat_template, digest_rows
from atlantis.data.tokenization import TokenizedExample, Truncation
from atlantis.models.encoder_decoder import decoder_start_token
from atlantis.models.loading import LoadingConfig, load_tokenizer
from atlantis.records import Row
from atlantis.scoring.backends import Backend, ModelToScore, OpenScorer, TransformersBackend
from atlantis.scoring.windows import Tokenizing, score_windows
from atlantis.store import ScoreStore

VERSION = 2
"""Raised when a change of the code changes scores."""

_TRANSFORMERS = TransformersBackend()


class ScoringConfig(BaseModel):
    """How completions are scored. The same for every model that goes into one set of weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_length: int = Field(default=1024, ge=2)
    """Most tokens of prompt and completion."""
    truncation: Truncation = "drop"
    """What happens to a longer row: ``drop`` gives it the status ``too_long``, ``keep_prefix`` cuts
    its end off and counts it. The same for every model and for training."""
    template: Literal["shared", "native"] = "shared"
    """Whether chats must read the same to every model (``shared``), or each may have the template
    of its own tokenizer (``native``)."""
    chat_template: str | None = None
    """What turns chats into text: ``plain`` or a file with a Jinja template. By default the
    tokenizer's own template, and the plain one where it has none."""
    score_end_of_turn: bool = False
    """Whether the end-of-turn token counts. A tuned reference has learnt it and a base model has
    not, so by default it would say more than the completion itself."""
    token_budget: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Padded tokens of one forward pass; ``auto`` is measured on a GPU. Scores differ in the last
    bits with it."""
    tokenizer_workers: int = Field(default=0, ge=0)
    """Processes that tokenize ahead of the model; 0 does it in a thread."""

    @property
    def meaning(self) -> dict[str, Any]:
        """The settings that decide what is scored, without those that decide how fast."""
        return self.model_dump(exclude={"token_budget", "tokenizer_workers"})


@dataclass(frozen=True)
class ScoringJob:
    """Work that was found possible: the model is there and every row can be read."""

    examples: Iterable[Row]
    num_rows: int
    fingerprint: dict[str, Any]
    tokenizing: Tokenizing
    open_scorer: Callable[[Sequence[TokenizedExample]], OpenScorer]
    config: ScoringConfig

    def run(self, out: Path) -> ScoreStore:
        """Score what the folder ``out`` does not hold yet.

        Raises:
            StoreError: ``out`` holds scores of another model, other data or other settings.
            DataError: The rows changed since they were first read.
        """
        store = ScoreStore(out)
        store.start(self.fingerprint)
        if not store.is_complete:
            score_windows(
                store,
                self.examples,
                self.tokenizing,
                self.open_scorer,
                token_budget=self.config.token_budget,
                num_rows=self.num_rows,
                workers=self.config.tokenizer_workers,
            )
        return store


def prepare(
    examples: Iterable[Row],
    model: str,
    *,
    config: ScoringConfig,
    loading: LoadingConfig,
    backend: Backend = _TRANSFORMERS,
) -> ScoringJob:
    """Find the model and read every row; nothing is loaded or written.

    Args:
        examples: Rows with unique ids; iterated over twice.
        model: Folder or Hub name of a causal or encoder-decoder language model.
        config: What is scored, and the batch size.
        loading: How the model is loaded.
        backend: What computes the scores.

    Raises:
        ModelError: There is no such model.
        DataError: A row is malformed or cannot be rendered.
    """
    asked = ModelToScore(model, loading, config.max_length, config.score_end_of_turn)
    of_backend = backend.fingerprint(asked)
    tokenizing = _tokenizing(model, config, loading)
    read = digest_rows(examples, tokenizing.template)
    return ScoringJob(
        examples,
        read.num_rows,
        _fingerprint(read, config) | of_backend,
        tokenizing,
        lambda rows: backend.open(asked, rows),
        config,
    )


def run(
    examples: Iterable[Row],
    model: str,
    out: Path,
    *,
    config: ScoringConfig,
    loading: LoadingConfig,
) -> ScoreStore:
    """Score ``examples`` under ``model`` into a folder, going on where a killed run stopped.

    The arguments and errors are those of `prepare` and `ScoringJob.run`.
    """
    return prepare(examples, model, config=config, loading=loading).run(out)


def _tokenizing(model: str, config: ScoringConfig, loading: LoadingConfig) -> Tokenizing:
    tokenizer = load_tokenizer(model, loading)
    return Tokenizing(
        tokenizer,
        chat_template(tokenizer, config.chat_template),
        config.max_length,
        config.truncation,
        decoder_start_token(model, loading),
    )


def _fingerprint(rows: RowDigest, config: ScoringConfig) -> dict[str, Any]:
    return {
        "code": VERSION,
        "rendered_text": rows.rendered_text,
        "source": rows.source,
        "scoring": config.meaning,
        "transformers": transformers.__version__,
    }
