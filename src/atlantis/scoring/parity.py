"""Whether a scoring back end gives the numbers of a trusted one, on a few rows, before all of them.

A back end that pairs log-probabilities with the wrong tokens, serves other weights than it says, or
applies another scaling still returns plausible numbers. Importance weights are exponentials of
sums of them, so that nothing later on would notice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from atlantis.data.tokenization import TokenizedExample
from atlantis.errors import ModelError
from atlantis.records import TokenScores
from atlantis.scoring.scorer import Scorer


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest differences that count as rounding, in nats per token."""

    maximum: float
    """Of any one token."""
    mean: float
    """Of the mean over all tokens of the sample."""


TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        "float32": Tolerance(maximum=1e-3, mean=1e-4),
        "float16": Tolerance(maximum=0.25, mean=0.005),
        "bfloat16": Tolerance(maximum=1.0, mean=0.02),
    }
)
"""By the dtype of weights and activations; both back ends have the same one.

Measured between vLLM 0.32 and transformers on a CPU, a Qwen2 of 2 layers, 1,007 tokens: float32 at
most 5e-6; bfloat16 0.005 on average and 0.04 at most, although both had a float32 head. bfloat16
keeps 8 bits, so that kernels which sum in another order differ by up to one part in 256 in each
layer. The bounds leave room for deep models and unlikely tokens. Another model or a shift by one
token is off by whole nats on average, so that the mean finds it in every dtype; the maximum finds
the single wrong token, in bfloat16 only one that is far off. float16 keeps 11 bits; not measured.
"""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two back ends are apart, in nats per token."""

    max_difference: float
    mean_difference: float
    num_tokens: int
    worst_example_id: str
    """The row with the largest difference of a token."""


def parity_sample(rows: Sequence[TokenizedExample], num_rows: int) -> list[TokenizedExample]:
    """Rows with status ``ok`` from the shortest to the longest, evenly spread over the ranks.

    The same rows in any order of the input give the same sample.
    """
    scorable = sorted(
        (row for row in rows if row.status == "ok"),
        key=lambda row: (len(row.input_ids), row.example_id),
    )
    count = min(num_rows, len(scorable))
    ranks = np.linspace(0, len(scorable) - 1, count).round().astype(int) if count else []
    return [scorable[rank] for rank in ranks]


def check_parity(
    scorer: Scorer, trusted: Scorer, rows: Sequence[TokenizedExample], *, tolerance: Tolerance
) -> Parity:
    """Score the same rows twice and compare them token by token.

    ``scorer`` gets all rows at once, as in earnest; ``trusted`` gets them one by one, so that
    batching and padding are on trial too. A row that is ``nonfinite`` to both is left out.

    Args:
        scorer: The back end on trial.
        trusted: What it must agree with: `TransformersScorer` with the same model and dtype.
        rows: Rows with status ``ok``, such as those of `parity_sample`.
        tolerance: One of `TOLERANCES`.

    Raises:
        ModelError: The differences are larger, or there is nothing to compare.
    """
    found = scorer.score(rows)
    expected = [score for row in rows for score in trusted.score([row])]
    differences = {
        score.example_id: _differences(score, other)
        for score, other in zip(found, expected, strict=True)
        if not score.status == other.status == "nonfinite"
    }
    if not differences:
        raise ModelError("no row of the sample has finite log-probabilities; nothing to compare")
    parity = _parity(differences)
    if parity.max_difference > tolerance.maximum or parity.mean_difference > tolerance.mean:
        raise ModelError(_refusal(parity, tolerance))
    return parity


def _differences(score: TokenScores, other: TokenScores) -> NDArray[np.float64]:
    """Absolute differences of the tokens of one row."""
    if score.token_logprobs is None or other.token_logprobs is None:
        raise ModelError(
            f"row {score.example_id}: the scoring back end says {score.status}, transformers says "
            f"{other.status}; check that it serves this model"
        )
    if len(score.token_logprobs) != len(other.token_logprobs):
        raise ModelError(
            f"row {score.example_id}: the scoring back end scored {len(score.token_logprobs)} "
            f"tokens, transformers {len(other.token_logprobs)}"
        )
    return np.abs(np.subtract(score.token_logprobs, other.token_logprobs, dtype=np.float64))


def _parity(differences: Mapping[str, NDArray[np.float64]]) -> Parity:
    values = np.concatenate(list(differences.values()))
    worst = max(differences, key=lambda example_id: float(differences[example_id].max()))
    return Parity(float(values.max()), float(values.mean()), len(values), worst)


def _refusal(parity: Parity, tolerance: Tolerance) -> str:
    return (
        f"the scoring back end differs from transformers by up to {parity.max_difference:.2g} nats "
        f"per token (row {parity.worst_example_id}) and {parity.mean_difference:.2g} on average "
        f"over {parity.num_tokens} tokens; allowed are {tolerance.maximum:g} and "
        f"{tolerance.mean:g}. Check that it serves this model in this dtype"
    )
