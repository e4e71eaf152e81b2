"""Token columns: from one weight per example to one per token, and through the collator.

One weight per token serves everything: padding, packing, padding-free batches and the three
normalisers. Two columns travel with the labels:

- ``token_weights``: what multiplies a token's loss in the numerator;
- ``token_counts``: what the token adds to the normaliser N of the optimizer step.

========== ============== ============= ==========================
normaliser token_weights  token_counts  loss
========== ============== ============= ==========================
token_mean w_i            1             sum_i w_i sum_t nll_it / T
sequence_sum w_i          1 / T_i       sum_i w_i sum_t nll_it / B
example_mean w_i / T_i    1 / T_i       sum_i w_i mean_t nll_it / B
========== ============== ============= ==========================

with T_i the trained tokens of example i, T their sum and B the number of examples of the step.
Columns of log-probabilities under other models, which some losses need, travel the same way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad

from atlantis.errors import DataError, WeightError

Normaliser = Literal["token_mean", "sequence_sum", "example_mean"]

WEIGHT_COLUMNS = ("token_weights", "token_counts")

_IGNORED = -100
_ROUNDING = 1e-4
"""A log-probability of bfloat16 or of a server may stand this far above zero."""


def token_columns(
    labels: Sequence[int], weight: float | Sequence[float], *, normaliser: Normaliser
) -> dict[str, list[float]]:
    """The two token columns of one example.

    Args:
        labels: Token ids, -100 where a token is not trained on. The first position is never
            predicted, whatever its label.
        weight: The example's weight, or one per token.
        normaliser: See the table in the module's docstring.
    """
    trained = _trained(labels)
    share = 1.0 / max(1, sum(trained))
    weights = [weight] * len(labels) if isinstance(weight, int | float) else list(weight)
    scale = share if normaliser == "example_mean" else 1.0
    count = 1.0 if normaliser == "token_mean" else share
    return {
        "token_weights": [
            w * scale if used else 0.0 for w, used in zip(weights, trained, strict=True)
        ],
        "token_counts": [count if used else 0.0 for used in trained],
    }


def plain_weights(token_weights: Tensor, token_counts: Tensor, *, normaliser: str) -> Tensor:
    """``w_i`` on each trained token of example i, whatever the normaliser; zero elsewhere."""
    if normaliser != "example_mean":
        return token_weights
    return torch.where(token_counts > 0, token_weights / token_counts, 0.0)


def logprob_column(
    num_tokens: int, positions: Sequence[int], token_logprobs: Sequence[float]
) -> list[float]:
    """Stored log-probabilities of one example as a column aligned with its ``input_ids``.

    Args:
        num_tokens: Length of ``input_ids``.
        positions: Positions of the scored tokens, as `TokenizedExample.scored_positions` gives.
        token_logprobs: Their log-probabilities.

    Returns:
        One value per token, NaN where the token was not scored.
    """
    column = [math.nan] * num_tokens
    for position, logprob in zip(positions, token_logprobs, strict=True):
        column[position] = logprob
    return column


def check_weights(weights: Sequence[float | None]) -> None:
    """Refuse weights that cannot be trained with.

    Raises:
        WeightError: One is missing, NaN, infinite or negative, or all are zero.
    """
    for row, weight in enumerate(weights):
        if weight is None or not math.isfinite(weight) or weight < 0:
            raise WeightError(
                f"weight {weight} in row {row}: weights must be finite numbers of at least 0"
            )
    if not any(weights):
        raise WeightError("the weights sum to zero: there is nothing to train on")


def check_logprobs(dataset: Dataset, columns: Sequence[str]) -> None:
    """Refuse a data set without the columns of log-probabilities that a loss reads.

    Raises:
        DataError: A column is missing, the rows are not tokenized, or the lengths differ.
    """
    for column in columns:
        if not {column, "input_ids"} <= set(dataset.column_names):
            raise DataError(
                f"the loss needs tokenized rows with a column {column!r}, one number per token of "
                f"'input_ids'; the data set has {', '.join(dataset.column_names)}"
            )
        rows = zip(dataset["input_ids"], dataset[column], strict=True)
        for row, (ids, logprobs) in enumerate(rows):
            if len(ids) != len(logprobs):
                raise DataError(
                    f"row {row}: {len(logprobs)} numbers in {column!r} for {len(ids)} tokens; "
                    "score the rows as they are trained on"
                )


def with_token_columns(
    dataset: Dataset, normaliser: Normaliser, *, columns: Sequence[str] = ()
) -> Dataset:
    """A tokenized data set with the token columns, ready to be packed; nothing else is kept.

    Raises:
        DataError: A row's log-probabilities are missing or impossible.
    """
    labels: list[list[int]] = dataset["labels"][:]
    if "token_weights" in dataset.column_names:
        weights: list[Any] = _cut(dataset["token_weights"], labels)
    elif "weight" in dataset.column_names:
        weights = dataset["weight"][:]
    else:
        weights = [1.0] * len(labels)
    rows = [
        token_columns(label, weight, normaliser=normaliser)
        for label, weight in zip(labels, weights, strict=True)
    ]
    data = {"input_ids": dataset["input_ids"][:], "labels": labels}
    data |= {name: [row[name] for row in rows] for name in WEIGHT_COLUMNS}
    return Dataset.from_dict(data | {name: _stored(dataset, name, labels) for name in columns})


def _stored(dataset: Dataset, column: str, labels: list[list[int]]) -> list[list[float]]:
    return [
        _checked(logprobs, label, where=f"row {row}, column {column!r}")
        for row, (logprobs, label) in enumerate(
            zip(_cut(dataset[column], labels), labels, strict=True)
        )
    ]


def _checked(logprobs: Sequence[float | None], labels: Sequence[int], *, where: str) -> list[float]:
    """Log-probabilities of the trained tokens, NaN elsewhere and where there is none."""
    values = [
        math.nan if value is None or not used else value
        for value, used in zip(logprobs, _trained(labels), strict=True)
    ]
    known = [value for value in values if not math.isnan(value)]
    if not known and any(_trained(labels)):
        raise DataError(f"{where}: none of the trained tokens has a log-probability")
    wrong = [value for value in known if not -math.inf < value <= _ROUNDING]
    if wrong:
        raise DataError(f"{where}: {wrong[0]} is no log-probability")
    return values


def _cut(rows: Any, labels: list[list[int]]) -> list[list[Any]]:
    """Truncation by the trainer cut ``input_ids`` and ``labels`` only."""
    return [row[: len(kept)] for row, kept in zip(rows, labels, strict=True)]


def _trained(labels: Sequence[int]) -> list[bool]:
    return [False, *(label != _IGNORED for label in labels[1:])]


@dataclass
class WeightedCollator(DataCollatorForLanguageModeling):
    """TRL's collator, carrying the token columns along with the labels."""

    logprob_columns: tuple[str, ...] = ()
    """Columns of log-probabilities under other models."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        for column in (*WEIGHT_COLUMNS, *self.logprob_columns):
            batch[column] = self._collate([torch.tensor(row[column]) for row in examples])
        if self.padding_free:
            # The first token of every packed sequence would be predicted from its neighbour.
            for column in WEIGHT_COLUMNS:
                batch[column][batch["position_ids"] == 0] = 0.0
        return batch

    def _collate(self, rows: list[Tensor]) -> Tensor:
        return pad(
            [torch.cat(rows)] if self.padding_free else rows,
            padding_value=0,
            padding_side="right",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
