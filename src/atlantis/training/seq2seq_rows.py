"""Rows and batches of an encoder-decoder in training.

A row is read with ``input_ids`` (the encoder's), ``labels`` (what the decoder predicts, the end of
sequence included; -100 where nothing is learnt) and, where the decoder reads something else than
the labels shifted by one, ``decoder_input_ids`` of the same length.

Inside, the decoder's columns stand as those of a causal model do: the token that is read and the
label that is the same token, one position apart from what predicts it. Everything that is counted
and weighted per token is then the same for both kinds of model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.utils import pad

from atlantis.errors import ConfigError, DataError
from atlantis.training.collation import WEIGHT_COLUMNS, Normaliser, with_token_columns

PAIR_COLUMNS = ("input_ids", "decoder_input_ids", "labels")
"""What the model reads and predicts."""

_IGNORED = -100


def with_pair_columns(
    dataset: Any,
    normaliser: Normaliser,
    *,
    start_token: int | None,
    pad_token: int,
    columns: Sequence[str] = (),
) -> Dataset:
    """A tokenized data set with the token columns; nothing else is kept.

    Args:
        dataset: Rows with ``input_ids``, ``labels`` and a weight, or none for weights of one.
        normaliser: See `training.collation`.
        start_token: What the decoder reads first; None if the model does not say.
        pad_token: What it reads where a label that is not learnt was.
        columns: Columns of log-probabilities under other models, one number per label.

    Raises:
        ConfigError: It is no `datasets.Dataset`, or nothing says what the decoder reads.
        DataError: A column is missing, has another length than the labels, or is unusable.
    """
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"a data set must be a datasets.Dataset, got {type(dataset).__name__}")
    per_token = [name for name in ("token_weights", *columns) if name in dataset.column_names]
    _check(dataset, ("input_ids", "labels", *columns), per_token)
    labels: list[list[int]] = dataset["labels"][:]
    data: dict[str, Any] = {
        "input_ids": _read(dataset, labels, start_token, pad_token),
        "labels": [[_IGNORED, *row] for row in labels],
        **{name: _begun(dataset[name][:], math.nan) for name in columns},
    }
    if "token_weights" in dataset.column_names:
        data["token_weights"] = _begun(dataset["token_weights"][:], 0.0)
    elif "weight" in dataset.column_names:
        data["weight"] = dataset["weight"][:]
    weighted = with_token_columns(Dataset.from_dict(data), normaliser, columns=columns)
    weighted = weighted.rename_column("input_ids", "decoder_input_ids")
    return weighted.add_column("input_ids", dataset["input_ids"][:])  # pyright: ignore[reportCallIssue]


def _check(dataset: Dataset, needed: Sequence[str], per_token: Sequence[str]) -> None:
    missing = [name for name in needed if name not in dataset.column_names]
    if missing:
        raise DataError(
            f"an encoder-decoder is trained on tokenized rows with {', '.join(needed)}; the data "
            f"set has {', '.join(dataset.column_names)}"
        )
    if "decoder_input_ids" in dataset.column_names:
        per_token = [*per_token, "decoder_input_ids"]
    for name in per_token:
        for row, (values, labels) in enumerate(zip(dataset[name], dataset["labels"], strict=True)):
            if len(values) != len(labels):
                raise DataError(
                    f"row {row}: {len(values)} numbers in {name!r} for {len(labels)} labels"
                )


def _read(
    dataset: Dataset, labels: list[list[int]], start: int | None, pad_token: int
) -> list[list[int]]:
    """What the decoder reads, and one token more, which it does not."""
    if "decoder_input_ids" in dataset.column_names:
        return [[*row, pad_token] for row in dataset["decoder_input_ids"]]
    if start is None:
        raise ConfigError(
            "the model's configuration has no decoder_start_token_id; set it, or give the data set "
            "a column 'decoder_input_ids'"
        )
    return [[start, *(pad_token if i == _IGNORED else i for i in row)] for row in labels]


def _begun(rows: list[list[Any]], value: float) -> list[list[Any]]:
    """Rows with a value for the decoder's first token."""
    return [[value, *row] for row in rows]


@dataclass
class PairCollator:
    """Rows to a batch, padded on the right."""

    pad_token_id: int
    logprob_columns: tuple[str, ...] = ()
    """Columns of log-probabilities under other models."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        fill = dict.fromkeys((*WEIGHT_COLUMNS, *self.logprob_columns), 0)
        fill |= dict.fromkeys(PAIR_COLUMNS, self.pad_token_id) | {"labels": _IGNORED}
        batch = {name: _padded([row[name] for row in examples], fill[name]) for name in fill}
        for name, of in (("attention_mask", ""), ("decoder_attention_mask", "decoder_")):
            ones = [[1] * len(row[f"{of}input_ids"]) for row in examples]
            batch[name] = _padded(ones, 0)
        return batch


def _padded(rows: Sequence[Sequence[float]], value: int) -> Tensor:
    return pad([torch.tensor(row) for row in rows], padding_value=value, padding_side="right")
