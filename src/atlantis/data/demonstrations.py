"""An expert's answers to prompts: what data rewriting begins with."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atlantis.data import files
from atlantis.data.maths import read_maths
from atlantis.data.prompts import Prompt, user_says
from atlantis.data.sources import Source
from atlantis.errors import DataError
from atlantis.records import Conversation, Example, Row

ANSWER = "answer"
"""The column of right answers, unless another is named."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt, and how an expert completes it."""

    prompt: Prompt
    """A text, or a chat up to its last turn."""
    expert: str
    """The expert's completion."""
    answer: str | None = None
    """The right final answer, where a column says it."""

    @property
    def example_id(self) -> str:
        """The row's id."""
        return self.prompt.example_id

    def completed(self, text: str) -> Row:
        """The prompt with a completion, as a row of training data."""
        content = self.prompt.content
        if isinstance(content, str):
            return Example(self.example_id, content, text)
        turns = (*content.messages, {"role": "assistant", "content": text.strip()})
        return Conversation(self.example_id, turns, (len(turns) - 1,), content.tools)


def read_demonstrations(source: Source, *, answer: str | None = None) -> Iterator[Demonstration]:
    """The rows of a source, each with its answer; open the source with the answer's column, too.

    Of a chat the last turn of the assistant is the expert's completion.

    Args:
        source: Rows of any format.
        answer: Column of the right answers; by default ``answer``, where a row has it.

    Raises:
        DataError: A row is malformed, or lacks the answer that was asked for.
    """
    # Two readings side by side: one checks the rows and their ids, one has the other columns.
    for row, (where, columns) in zip(source, source.raw_rows(), strict=True):
        given = files.column(columns, answer, where) if answer else columns.get(ANSWER)
        if given is None and answer:
            raise DataError(f"{where}: {answer} is null; fill it in or remove the row")
        text = None if given is None else _answer(given, f"{where}: {answer or ANSWER}")
        yield _demonstration(row, text, where)


def solved_problems(path: Path, *, prompt: str, as_chat: bool = False) -> Iterator[Demonstration]:
    """Maths problems with an expert's solution (`atlantis.data.maths`).

    Args:
        path: JSONL.
        prompt: Template with ``{problem}``.
        as_chat: Whether the prompt is what a user says.

    Raises:
        DataError: A row is malformed, or has no solution.
    """
    for row in read_maths(path).rows:
        if row.solution is None:
            raise DataError(f"{path}: problem {row.example_id!r} has no solution; remove it")
        text = prompt.format(problem=row.problem)
        if as_chat:
            said = user_says(text, example_id=row.example_id)
            yield Demonstration(said, row.solution.strip(), row.answer)
        else:
            plain = Prompt(row.example_id, text)
            yield Demonstration(plain, f" {row.solution.strip()}", row.answer)


def _answer(value: object, where: str) -> str:
    """An answer as text: 27.0 is 27, as many tables of numbers have it; their holes are NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: {value} is no finite number; correct it or remove the row")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    text = files.as_text(value, where)
    if not text.strip():
        raise DataError(f"{where} is empty; fill it in or remove the column")
    return text


def _demonstration(row: Row, answer: str | None, where: str) -> Demonstration:
    if isinstance(row, Example):
        return Demonstration(Prompt(row.example_id, row.prompt), row.completion, answer)
    last = row.learnt[-1]
    if last != len(row.messages) - 1 or last == 0:
        raise DataError(f"{where}: the chat does not end with the assistant's answer; cut it there")
    expert = files.as_text(row.messages[last].get("content"), f"{where}: the assistant's last turn")
    before = Conversation(row.example_id, row.messages[:last], (), row.tools)
    return Demonstration(Prompt(row.example_id, before), expert, answer)
