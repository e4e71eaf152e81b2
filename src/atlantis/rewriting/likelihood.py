"""How likely a completion is to the policy itself, after the plain prompt."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from atlantis.data.rendering import ChatTemplate
from atlantis.models.encoder_decoder import loaded_start_token, tokenize_for
from atlantis.models.proxy_roles import length_limit
from atlantis.records import Row
from atlantis.scoring.batching import make_batches, score_what_fits
from atlantis.scoring.budget import CPU_TOKENS
from atlantis.scoring.transformers_scorer import TransformersScorer

_GPU_TOKENS = 8192
"""Padded tokens of a pass; one that does not fit is halved."""


class LogProbability(NamedTuple):
    """Of a whole completion."""

    total: float
    """Sum over its tokens."""
    num_tokens: int

    @property
    def per_token(self) -> float:
        """The mean."""
        return self.total / self.num_tokens


class Likelihood:
    """Scores completions under a model that is in memory.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        template: How chats become text.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._scorer = TransformersScorer(model)
        self._limit = length_limit(model.config) or 2**30
        # Not measured: batches, and with them the last digits, are to be the same at a rerun.
        self._budget = CPU_TOKENS if model.device.type == "cpu" else _GPU_TOKENS

    def __call__(self, rows: Sequence[Row]) -> list[LogProbability | None]:
        """Log-probability of each row's completion; None where the model cannot read the row."""
        encoded = bool(self._model.config.is_encoder_decoder)
        tokenized = tokenize_for(
            loaded_start_token(self._model) if encoded else None,
            rows,
            self._tokenizer,
            max_length=self._limit,
            template=self._template,
        )
        places = [place for place, row in enumerate(tokenized) if row.status == "ok"]
        found: list[LogProbability | None] = [None] * len(rows)
        lengths = [tokenized[place].num_tokens for place in places]
        for batch in make_batches(lengths, token_budget=self._budget):
            chosen = [places[number] for number in batch]
            scores = score_what_fits(self._scorer, [tokenized[place] for place in chosen])
            for place, score in zip(chosen, scores, strict=True):
                if score.sequence_logprob is not None and score.num_tokens:
                    found[place] = LogProbability(score.sequence_logprob, score.num_tokens)
        return found
