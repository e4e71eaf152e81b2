"""Score rows under models into stores that survive a kill at any moment.

The rows are read twice. The first pass checks every row and makes the fingerprint, before a model
is loaded; the second scores one window of rows after the other. A window is one part of the store.
Its batches go into a journal as they are done, so that a rerun repeats at most one of them, and
memory holds two windows whatever the size of the data.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import transformers
from pydantic import BaseModel, ConfigDict, Field

from atlantis.data.rendering import RowDigest, chat_template, digest_rows
from atlantis.data.tokenization import TokenizedExample, Truncation
from atlantis.errors import ConfigError
from atlantis.models.encoder_decoder import decoder_start_token
from atlantis.models.loading import LoadingConfig, load_tokenizer
from atlantis.records import Row
from atlantis.scoring.backends import Backend, ModelToScore, OpenScorer, TransformersBackend
from atlantis.scoring.windows import ModelPass, Tokenizing, score_windows
from atlantis.store import ScoreStore

VERSION = 3
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
    condition: Literal["prompt", "none"] = "prompt"
    """Whether a completion is scored after its prompt, or by itself behind a neutral token: the
    same ids, for how much the prompt helps."""
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
    model: ModelToScore
    backend: Backend
    config: ScoringConfig

    @property
    def head(self) -> int | None:
        """The token in place of the prompt, where completions are scored by themselves."""
        if self.config.condition == "prompt":
            return None
        tokenizer: Any = self.tokenizing.tokenizer
        begin = tokenizer.bos_token_id
        return int(tokenizer.eos_token_id if begin is None else begin)

    def __post_init__(self) -> None:
        if self.config.condition == "none" and self.tokenizing.decoder_start is not None:
            raise ConfigError(
                f"{self.model.name}: an encoder-decoder needs a prompt; score completions by "
                "themselves under a causal model"
            )

    def alone(self) -> "ScoringJob":
        """The same rows and model, but completions by themselves.

        Raises:
            ConfigError: The model is an encoder-decoder.
        """
        config = self.config.model_copy(update={"condition": "none"})
        fingerprint = self.fingerprint | {"scoring": config.meaning}
        return replace(self, config=config, fingerprint=fingerprint)

    def run(self, out: Path) -> ScoreStore:
        """Score what the folder ``out`` does not hold yet; the errors are those of `run_all`."""
        return run_all({out: self})[0]


def run_all(jobs: Mapping[Path, ScoringJob]) -> list[ScoreStore]:
    """Score under several models what their folders do not hold yet.

    Models that read the rows as the same tokens share one pass: the rows are read and tokenized
    once, and the models are in memory together.

    Args:
        jobs: Jobs of one call of `prepare_all`, by folder.

    Raises:
        StoreError: A folder holds scores of another model, other data or other settings.
        DataError: The rows changed since they were first read.
    """
    stores = [ScoreStore(out) for out in jobs]
    for store, job in zip(stores, jobs.values(), strict=True):
        store.start(job.fingerprint)
    unfinished: dict[str, list[tuple[ScoringJob, ModelPass]]] = {}
    load = _LoadOnce()
    for store, job in zip(stores, jobs.values(), strict=True):
        if not store.is_complete:
            model_pass = ModelPass(store, partial(load, job), job.head)
            unfinished.setdefault(job.tokenizing.key, []).append((job, model_pass))
    for together in unfinished.values():
        first = together[0][0]
        score_windows(
            [model_pass for _, model_pass in together],
            first.examples,
            first.tokenizing,
            token_budget=first.config.token_budget,
            num_rows=first.num_rows,
            workers=first.config.tokenizer_workers,
        )
    return stores


class _LoadOnce:
    """Opens a model for several jobs."""

    def __init__(self) -> None:
        self._opened: dict[ModelToScore, OpenScorer] = {}

    def __call__(self, job: ScoringJob, rows: Sequence[TokenizedExample]) -> OpenScorer:
        if job.model not in self._opened:
            self._opened[job.model] = job.backend.open(job.model, rows)
        return self._opened[job.model]


def prepare(
    examples: Iterable[Row],
    model: str,
    *,
    config: ScoringConfig,
    loading: LoadingConfig,
    backend: Backend = _TRANSFORMERS,
) -> ScoringJob:
    """Find the model and read every row; see `prepare_all`."""
    return prepare_all(examples, [model], config=config, loading=loading, backend=backend)[0]


def prepare_all(
    examples: Iterable[Row],
    models: Sequence[str],
    *,
    config: ScoringConfig,
    loading: LoadingConfig,
    backend: Backend = _TRANSFORMERS,
) -> list[ScoringJob]:
    """Find the models and read every row; nothing is loaded or written.

    Args:
        examples: Rows with unique ids; iterated over again and again.
        models: Folders or Hub names of causal or encoder-decoder language models.
        config: What is scored, and the batch size.
        loading: How a model is loaded.
        backend: What computes the scores.

    Raises:
        ConfigError: A completion is to be scored by itself under an encoder-decoder.
        ModelError: There is no such model.
        DataError: A row is malformed or cannot be rendered.
    """
    asked = [
        ModelToScore(model, loading, config.max_length, config.score_end_of_turn)
        for model in models
    ]
    fingerprints = [backend.fingerprint(model) for model in asked]
    tokenizings = [_tokenizing(model, config, loading) for model in models]
    read: dict[str, RowDigest] = {}
    for tokenizing in tokenizings:
        if tokenizing.key not in read:
            read[tokenizing.key] = digest_rows(examples, tokenizing.template)
    return [
        ScoringJob(
            examples,
            read[tokenizing.key].num_rows,
            _fingerprint(read[tokenizing.key], config) | fingerprint,
            tokenizing,
            model,
            backend,
            config,
        )
        for model, fingerprint, tokenizing in zip(asked, fingerprints, tokenizings, strict=True)
    ]


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
