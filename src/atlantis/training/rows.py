"""Rows to train on: tokenized, weighted, with stored log-probabilities of other models."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from atlantis.data.rendering import ChatTemplate
from atlantis.data.tokenization import TokenizedExample, Truncation
from atlantis.errors import DataError
from atlantis.models.encoder_decoder import tokenize_for
from atlantis.records import Row
from atlantis.store import ScoreStore
from atlantis.training.collation import logprob_column


def training_rows(
    examples: Sequence[Row],
    weights: Mapping[str, float] | None,
    tokenizer: Any,
    *,
    max_length: int,
    truncation: Truncation = "drop",
    template: ChatTemplate | None = None,
    scores: Mapping[str, ScoreStore] | None = None,
    decoder_start: int | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Tokenized rows with ``input_ids``, ``labels`` and ``weight``, and what was left out, counted.

    Args:
        examples: Training rows.
        weights: Weight of each row by id; None for ones.
        tokenizer: Of the model to be trained.
        max_length: Most tokens of a row.
        truncation: Longer rows are left out and counted, or cut off.
        template: What turns chats into text.
        scores: Score stores by the name of the column that their log-probabilities become. A row
            that could not be scored is left out.
        decoder_start: The decoder's first token, of an encoder-decoder. Its rows have what the
            encoder reads as ``input_ids``, and ``decoder_input_ids``.

    Raises:
        DataError: A row has no weight or no scores, or was scored as other tokens; or no row is
            left.
        StoreError: A store is incomplete or damaged.
    """
    columns = {name: _Stored(store) for name, store in (scores or {}).items()}
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    tokenized = tokenize_for(
        decoder_start,
        examples,
        tokenizer,
        max_length=max_length,
        truncation=truncation,
        template=template,
    )
    for row in tokenized:
        weight = 1.0 if weights is None else weights.get(row.example_id)
        if weight is None and row.status == "ok":
            raise DataError(f"example {row.example_id!r} has no weight; weigh the same data again")
        reason = row.status if row.status != "ok" else "zero_weight" if weight == 0 else None
        reason = reason or next(filter(None, (c.reason(row) for c in columns.values())), None)
        if reason is not None:
            left_out[reason] += 1
            continue
        predicted = {name: column.of(row) for name, column in columns.items()}
        predicted |= {"labels": row.labels}
        rows.append(_read(row, predicted) | {"weight": weight})
    if not rows:
        raise DataError(f"no row is left to train on; left out: {dict(left_out)}")
    return Dataset.from_list(rows), dict(left_out)


def _read(row: TokenizedExample, predicted: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What a model reads, beside what stands at each of its tokens.

    A decoder reads its tokens but the last and predicts them but the first.
    """
    if not row.encoder_ids:
        return {"input_ids": list(row.input_ids), **predicted}
    return {
        "input_ids": list(row.encoder_ids),
        "decoder_input_ids": list(row.input_ids[:-1]),
        **{name: values[1:] for name, values in predicted.items()},
    }


class _Stored:
    """The log-probabilities of one store, by row."""

    def __init__(self, store: ScoreStore) -> None:
        self._folder = store.folder
        self._end_of_turn = bool(store.fingerprint["scoring"]["score_end_of_turn"])
        table = store.read(["example_id", "status", "token_logprobs"])
        names = table["example_id"].to_pylist()
        self._status = dict(zip(names, table["status"].to_pylist(), strict=True))
        self._logprobs = dict(zip(names, table["token_logprobs"], strict=True))

    def reason(self, row: TokenizedExample) -> str | None:
        """Why a row has no log-probabilities; None if it has."""
        if row.example_id not in self._status:
            raise DataError(
                f"{self._folder}: example {row.example_id!r} has no scores; score the same data"
            )
        status = self._status[row.example_id]
        return None if status == "ok" else f"{status} in {self._folder.name}"

    def of(self, row: TokenizedExample) -> list[float]:
        """One log-probability per token of the row, NaN where none was scored."""
        positions = row.scored_positions(end_of_turn=self._end_of_turn)
        logprobs: list[float] = self._logprobs[row.example_id].as_py()
        if len(positions) != len(logprobs):
            raise DataError(
                f"{self._folder}: example {row.example_id!r} was scored as {len(logprobs)} tokens "
                f"and would be trained as {len(positions)}; score with the tokenizer, template and "
                "limits of the training"
            )
        return logprob_column(len(row.input_ids), positions, logprobs)
