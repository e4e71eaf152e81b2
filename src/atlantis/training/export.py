"""Rows and their weights as files for other trainers.

Each layout is how one trainer takes a weight: a column of the row (ours and TRL's format), a field
of each message (ms-swift, LLaMA-Factory v1), or not at all, so that rows are drawn instead.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from atlantis.disk import write_text
from atlantis.errors import DataError
from atlantis.records import Conversation, Example, Row

_JsonObject = dict[str, Any]
_TEXT_AS_CHAT = (
    "rows of plain text become a user's turn and an assistant's, in the trainer's chat template; "
    "their weights were measured without one"
)


class Layout(Protocol):
    """How one trainer takes rows and weights."""

    def lay_out(self, rows: Sequence[Row], weights: Mapping[str, float]) -> list[_JsonObject]:
        """The lines of the file, from rows whose weights are over 0.

        Raises:
            DataError: A row cannot be said in this layout.
        """
        ...

    def notes(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """What must be set or known so that the trainer trains on these weights."""
        ...


class Exported(NamedTuple):
    """What went into a file."""

    num_rows: int
    num_distinct: int
    """Different rows among them: fewer where rows were drawn with replacement."""
    left_out: dict[str, int]
    """Rows that have no line, counted by the reason."""
    notes: tuple[str, ...]


def export(
    rows: Sequence[Row], weights: Mapping[str, float], out: Path, *, layout: Layout
) -> Exported:
    """Write rows and weights as JSONL, whole or not at all.

    As in our own training, a row with weight zero is left out: its tokens would count in the
    normaliser and teach nothing.

    Args:
        rows: Rows with unique ids, each with a weight.
        weights: Weight of each row by id, at least 0.
        out: The file.
        layout: The trainer that it is for.

    Raises:
        DataError: A row has no weight or cannot be said in this layout, or all weigh zero.
    """
    missing = next((row for row in rows if row.example_id not in weights), None)
    if missing is not None:
        raise DataError(f"example {missing.example_id!r} has no weight; weigh the same data again")
    kept = [row for row in rows if weights[row.example_id] > 0]
    if not kept:
        raise DataError("no row with a weight over zero is left to export")
    lines = layout.lay_out(kept, weights)
    write_text(out, "".join(_json(line) + "\n" for line in lines))
    num_zero = len(rows) - len(kept)
    given = {row.example_id for row in kept}  # a copy has an id of its own
    num_distinct = sum(line["example_id"] in given for line in lines)
    left_out = {"zero_weight": num_zero} if num_zero else {}
    return Exported(len(lines), num_distinct, left_out, layout.notes(kept))


@dataclass(frozen=True)
class TrlLayout:
    """TRL's ``prompt`` and ``completion``, as text or as messages, and a column ``weight``.

    A chat is split before its first turn that is learnt; what follows the last one is cut off.
    """

    def lay_out(self, rows: Sequence[Row], weights: Mapping[str, float]) -> list[_JsonObject]:
        return [_trl_row(row) | {"weight": weights[row.example_id]} for row in rows]

    def notes(self, rows: Sequence[Row]) -> tuple[str, ...]:
        notes = ("trl.SFTTrainer drops the column weight; train with atlantis.WeightedSFTTrainer",)
        if any(isinstance(row, Conversation) and len(row.learnt) > 1 for row in rows):
            notes += (
                "some chats have several turns to learn: set assistant_only_loss=True, or what "
                "the user says between them is learnt too",
            )
        return notes


@dataclass(frozen=True)
class MsSwiftLayout:
    """ms-swift's ``messages`` (4.2 or later), with ``loss_scale`` on what the assistant says.

    A call of a tool is a message of its own, ``tool_call``; ms-swift matches calls and answers by
    their order. Its loss is our token mean.
    """

    def lay_out(self, rows: Sequence[Row], weights: Mapping[str, float]) -> list[_JsonObject]:
        return [_chat_row(row, weights[row.example_id], _swift_messages) for row in rows]

    def notes(self, rows: Sequence[Row]) -> tuple[str, ...]:
        flags = "train with --loss_scale default --is_binary_loss_scale false, or all weights are 1"
        return (flags, *_text_notes(rows))


@dataclass(frozen=True)
class LlamaFactoryLayout:
    """``messages`` of LLaMA-Factory v1, each with a ``loss_weight``."""

    def lay_out(self, rows: Sequence[Row], weights: Mapping[str, float]) -> list[_JsonObject]:
        return [_chat_row(row, weights[row.example_id], _factory_messages) for row in rows]

    def notes(self, rows: Sequence[Row]) -> tuple[str, ...]:
        cancelling = (
            "LLaMA-Factory v1 divides each micro-batch by its own weights: they cancel at one row "
            "per micro-batch, so make it as large as fits"
        )
        return (cancelling, *_text_notes(rows))


@dataclass(frozen=True)
class Resampled:
    """Rows drawn with replacement instead of weighted, for trainers that know no weights.

    A row is drawn in proportion to its weight, not to its weight times its tokens: each copy brings
    all its tokens, so that the expected sum over the drawn rows is already
    ``sum_i w_i sum_t nll_it``.

    Systematic resampling: a row with the expected number of copies ``c`` gets ``floor(c)`` or
    ``ceil(c)``, which adds less noise than independent draws; equal weights give every row once.
    """

    num_rows: int | None = None
    """Rows to draw; as many as there are if None."""
    seed: int = 0

    def lay_out(self, rows: Sequence[Row], weights: Mapping[str, float]) -> list[_JsonObject]:
        values = np.array([weights[row.example_id] for row in rows])
        size = len(rows) if self.num_rows is None else self.num_rows
        drawn = [rows[index] for index in _draw(values, size, seed=self.seed)]
        return [_plain_row(row) for row in _with_own_ids(drawn, rows)]

    def notes(self, rows: Sequence[Row]) -> tuple[str, ...]:
        if any(isinstance(row, Conversation) for row in rows):
            return ("turns that are not learnt say so by weight 0; look whether the trainer obeys",)
        return ()


def _draw(weights: np.ndarray[Any, Any], size: int, *, seed: int) -> list[int]:
    """Indices in order, each as often as it was drawn."""
    random = np.random.default_rng(seed)
    order = random.permutation(weights.size)  # neighbours would otherwise exclude each other
    shares = np.cumsum(weights[order] / weights.max())
    points = (np.arange(size) + random.random()) / size
    # Without the last edge: rounding cannot point beyond the last row.
    found = np.searchsorted(shares[:-1] / shares[-1], points, side="right")
    return sorted(order[found].tolist())


def _with_own_ids(drawn: Sequence[Row], rows: Sequence[Row]) -> Iterator[Row]:
    """The first copy keeps its id, the others get a number that makes theirs new."""
    taken = {row.example_id for row in rows}
    previous, number = None, 1
    for row in drawn:
        if row is not previous:
            previous, number = row, 1
            yield row
            continue
        number += 1
        while f"{row.example_id}#{number}" in taken:
            number += 1
        name = f"{row.example_id}#{number}"
        taken.add(name)
        yield replace(row, example_id=name)


def _plain_row(row: Row) -> _JsonObject:
    if isinstance(row, Example):
        return {"example_id": row.example_id, "prompt": row.prompt, "completion": row.completion}
    messages = [
        dict(message)
        if message["role"] != "assistant" or position in row.learnt
        else {**message, "weight": 0}
        for position, message in enumerate(row.messages)
    ]
    return {"example_id": row.example_id, "messages": messages} | _tools(row)


def _trl_row(row: Row) -> _JsonObject:
    if isinstance(row, Example):
        return _plain_row(row)
    first, last = min(row.learnt), max(row.learnt)
    if first == 0:
        raise DataError(
            f"example {row.example_id!r} begins with a turn to learn, and TRL needs a prompt; put "
            "a message before it, or export to another format"
        )
    between = [n for n in range(first, last) if row.messages[n]["role"] == "assistant"]
    if not set(between) <= set(row.learnt):
        raise DataError(
            f"example {row.example_id!r}: an assistant's turn between two that are learnt is not "
            "learnt, which TRL cannot say; split the chat, or export to another format"
        )
    said = [dict(message) for message in row.messages[: last + 1]]
    parts = {"example_id": row.example_id, "prompt": said[:first], "completion": said[first:]}
    return parts | _tools(row)


class _Turn(NamedTuple):
    """One message and its weight: 0 unless it is learnt."""

    message: Mapping[str, Any]
    weight: float


def _chat_row(
    row: Row, weight: float, messages: Callable[[_Turn, str], list[_JsonObject]]
) -> _JsonObject:
    """The chat up to its last turn that is learnt: these trainers want it to end there."""
    if isinstance(row, Example):
        said: tuple[Mapping[str, Any], ...] = (
            {"role": "user", "content": row.prompt},
            {"role": "assistant", "content": row.completion},
        )
        learnt: tuple[int, ...] = (1,)
    else:
        said, learnt = row.messages[: max(row.learnt) + 1], row.learnt
    turns = [_Turn(message, weight if n in learnt else 0.0) for n, message in enumerate(said)]
    laid_out = [part for turn in turns for part in messages(turn, f"example {row.example_id!r}")]
    return {"example_id": row.example_id, "messages": laid_out} | _tools(row)


def _swift_messages(turn: _Turn, where: str) -> list[_JsonObject]:
    message = turn.message
    _refuse_unknown(message, where, "ms-swift")
    scale = {"loss_scale": turn.weight} if message["role"] == "assistant" else {}
    calls = [{"role": "tool_call", "content": call} | scale for call in _calls(message)]
    if calls and not message.get("content"):
        return calls
    return [{"role": message["role"], "content": message["content"]} | scale, *calls]


def _factory_messages(turn: _Turn, where: str) -> list[_JsonObject]:
    message = turn.message
    _refuse_unknown(message, where, "LLaMA-Factory", also=("reasoning_content",))
    parts = [("reasoning", message.get("reasoning_content")), ("text", message.get("content"))]
    content = [{"type": kind, "value": text} for kind, text in parts if text]
    content += [{"type": "tool_call", "value": call} for call in _calls(message)]
    return [{"role": message["role"], "content": content, "loss_weight": turn.weight}]


def _refuse_unknown(
    message: Mapping[str, Any], where: str, trainer: str, also: tuple[str, ...] = ()
) -> None:
    """What the trainer would drop without a word."""
    role = message["role"]
    if role == "developer":
        raise DataError(f"{where}: {trainer} knows no role developer; call it system")
    known = {"role", "content", "tool_calls", *also}
    if role == "tool":
        known |= {"name", "tool_call_id"}  # calls and answers are matched by their order
    unknown = sorted(message.keys() - known)
    if unknown:
        raise DataError(
            f"{where}: {trainer} knows no field {unknown[0]!r} of a message of {role}; put it into "
            "the content, or remove it"
        )


def _calls(message: Mapping[str, Any]) -> list[str]:
    functions = [call["function"] for call in message.get("tool_calls", ())]
    return [_json({key: function[key] for key in ("name", "arguments")}) for function in functions]


def _tools(row: Row) -> _JsonObject:
    """As a JSON string, which all of them read; as objects, `datasets` would merge the schemas."""
    return {"tools": _json(row.tools)} if isinstance(row, Conversation) and row.tools else {}


def _text_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    return (_TEXT_AS_CHAT,) if any(isinstance(row, Example) for row in rows) else ()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
