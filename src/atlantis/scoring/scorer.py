"""What every scoring back end is: token ids in, log-probabilities of the completions out."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from atlantis.data.tokenization import TokenizedExample
from atlantis.numerics.logprobs import sequence_logprob
from atlantis.records import TokenScores


class Scorer(Protocol):
    """Scores batches of tokenized rows under one model."""

    def score(self, batch: Sequence[TokenizedExample]) -> list[TokenScores]:
        """Score rows with status ``ok``; the results stand in the order of the rows.

        A row with a NaN or infinite log-probability gets the status ``nonfinite`` and no numbers.
        """
        ...


def token_scores(row: TokenizedExample, logprobs: np.ndarray) -> TokenScores:
    """The result for one row from the log-probabilities of its scored positions, in order."""
    if not np.isfinite(logprobs).all():
        return unscored(row, "nonfinite")
    return TokenScores(
        example_id=row.example_id,
        status="ok",
        num_tokens=len(logprobs),
        num_bytes=row.num_bytes,
        num_trained_tokens=sum(turn.end - turn.start for turn in row.turns),
        sequence_logprob=sequence_logprob(logprobs),
        token_logprobs=tuple(logprobs.tolist()),
    )


def unscored(row: TokenizedExample, status: str) -> TokenScores:
    """The result for a row that has no numbers, and why."""
    return TokenScores(example_id=row.example_id, status=status)
