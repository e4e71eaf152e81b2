"""Token weights: from one weight per example to one per token, and through the collator.

One weight per token serves everything: padding, packing, padding-free batches and the three
normalisers. Two columns travel with the labels:

- ``token_weights``: what multiplies a token's negative log-likelihood in the numerator;
- ``token_counts``: what the token adds to the normaliser N of the optimizer step.

========== ============== ============= ==========================
normaliser token_weights  token_counts  loss
========== ============== ============= ==========================
token_mean w_i            1             sum_i w_i sum_t nll_it / T
sequence_sum w_i          1 / T_i       sum_i w_i sum_t nll_it / B
example_mean w_i / T_i    1 / T_i       sum_i w_i mean_t nll_it / B
========== ============== ============= ==========================

with T_i the trained tokens of example i, T their sum and B the number of examples of the step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad

from atlantis.errors import WeightError

Normaliser = Literal["token_mean", "sequence_sum", "example_mean"]

WEIGHT_COLUMNS = ("token_weights", "token_counts")

_IGNORED = -100


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
    trained = [False, *(label != _IGNORED for label in labels[1:])]
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


@dataclass
class WeightedCollator(DataCollatorForLanguageModeling):
    """TRL's collator, carrying the token columns along with the labels."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        for column in WEIGHT_COLUMNS:
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
