"""Log-probabilities of completions under a transformers model, in length-sorted batches."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from atlantis.data.tokenization import TokenizedExample
from atlantis.models.head import target_logprobs
from atlantis.numerics.logprobs import sequence_logprob
from atlantis.records import TokenScores


def make_batches(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Group rows of similar length so that ``rows x longest row`` stays within the budget.

    Longest first, so that running out of memory shows at once; ties keep the order of the input. A
    row longer than the budget is a batch of its own.

    Returns:
        Row numbers of each batch; a pure function of the lengths and the budget.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


class TransformersScorer:
    """Scores batches of tokenized examples with one causal language model.

    The backbone runs once over right-padded rows; the vocabulary projection runs on the scored
    positions only, in float32 chunks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        score_end_of_turn: bool = False,
        head_chunk_size: int = 1024,
    ) -> None:
        self._model = model
        self._score_end_of_turn = score_end_of_turn
        self._head_chunk_size = head_chunk_size

    def score_batches(
        self, examples: Sequence[TokenizedExample], *, token_budget: int
    ) -> Iterator[list[TokenScores]]:
        """Score all rows; yields one list per batch, longest rows first.

        A row whose status is not ``ok`` keeps that status, one with a NaN or infinite
        log-probability gets ``nonfinite``; both have no numbers.
        """
        yield [_unscored(row, row.status) for row in examples if row.status != "ok"]
        scorable = [row for row in examples if row.status == "ok"]
        lengths = [len(row.input_ids) for row in scorable]
        for batch in make_batches(lengths, token_budget=token_budget):
            yield self.score([scorable[i] for i in batch])

    @torch.inference_mode()
    def score(self, batch: Sequence[TokenizedExample]) -> list[TokenScores]:
        """Score one batch of rows with status ``ok``, in one forward pass."""
        device = self._model.device
        input_ids, attention_mask = pad_right([row.input_ids for row in batch])
        scored = _predicting_positions(batch, end_of_turn=self._score_end_of_turn).to(device)
        input_ids = input_ids.to(device)
        hidden = self._model.base_model(
            input_ids=input_ids, attention_mask=attention_mask.to(device), use_cache=False
        ).last_hidden_state
        logprobs = target_logprobs(
            self._model,
            hidden[:, :-1][scored],
            input_ids[:, 1:][scored],
            chunk_size=self._head_chunk_size,
        ).logprobs
        counts = scored.sum(1).tolist()
        rows = logprobs.cpu().split(counts)
        return [_scored(row, values.numpy()) for row, values in zip(batch, rows, strict=True)]


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids ``[batch, token]`` padded on the right with 0, and their attention mask."""
    longest = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask


def _predicting_positions(batch: Sequence[TokenizedExample], *, end_of_turn: bool) -> Tensor:
    """True where a position's next token is a scored completion token, ``[batch, token - 1]``."""
    positions = torch.arange(max(len(row.input_ids) for row in batch) - 1)
    first = torch.tensor([row.num_prompt_tokens - 1 for row in batch])
    count = torch.tensor([row.num_completion_tokens + end_of_turn for row in batch])
    return (positions >= first[:, None]) & (positions < (first + count)[:, None])


def _scored(row: TokenizedExample, logprobs: np.ndarray) -> TokenScores:
    if not np.isfinite(logprobs).all():
        return _unscored(row, "nonfinite")
    return TokenScores(
        example_id=row.example_id,
        status="ok",
        num_tokens=len(logprobs),
        num_bytes=row.num_bytes,
        sequence_logprob=sequence_logprob(logprobs),
        token_logprobs=tuple(logprobs.tolist()),
    )


def _unscored(row: TokenizedExample, status: str) -> TokenScores:
    return TokenScores(example_id=row.example_id, status=status)
