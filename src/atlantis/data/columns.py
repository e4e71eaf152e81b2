"""From the columns of a row to what it is: the formats of instruction data.

The columns decide the format. A row that could be read as two is refused, as is one that has
columns which would change what the model reads and which its format does not know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from atlantis.data import files
from atlantis.data.chats import Turn, conversation, read_messages, read_sharegpt
from atlantis.data.files import JsonObject
from atlantis.data.tool_calls import read_tools
from atlantis.errors import DataError
from atlantis.records import Conversation, Example, Row

CONDITIONS = (
    "system",
    "history",
    "tools",
    "images",
    "image",
    "videos",
    "audios",
    "chat_template_kwargs",
)
"""Columns by which other trainers change what stands before a completion."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way to lay out a row in columns."""

    name: str
    required: tuple[str, ...]
    conditions: tuple[str, ...]
    """Those of `CONDITIONS` that it knows."""
    read: Callable[[JsonObject, str], Row]


def read_row(row: JsonObject, where: str) -> tuple[str, Row]:
    """The name of a row's format, and the row.

    Raises:
        DataError: The columns fit no format or several, or a value is not what its column needs.
    """
    found = _format(row, where)
    for name in CONDITIONS:
        if name not in found.conditions and row.get(name):
            raise DataError(
                f"{where}: column {name!r} would have no effect on {found.name}; put it into the "
                "prompt or the messages, or remove the column"
            )
    read = found.read(row, where)
    chat = found.name == "prompt and completion" and isinstance(read, Conversation)
    return found.name + (" as messages" if chat else ""), read


def _format(row: JsonObject, where: str) -> Format:
    complete = [
        known for known in _FORMATS if all(row.get(name) is not None for name in known.required)
    ]
    if len(complete) == 1:
        return complete[0]
    if complete:
        raise DataError(
            f"{where}: could be {' or '.join(known.name for known in complete)}; "
            "keep the columns of one"
        )
    for known in _FORMATS:
        if row.keys() & set(known.required):
            lacking = next(name for name in known.required if row.get(name) is None)
            files.column(row, lacking, where)
            raise DataError(f"{where}: {lacking} is null; fill it in or remove the row")
    wanted = ", ".join(known.name for known in _FORMATS)
    raise DataError(
        f"{where}: no known format (present: {files.column_names(row)}); name the columns for "
        f"one of {wanted}"
    )


def given_id(row: Mapping[str, object], where: str) -> str | None:
    """The row's own id, if it has one."""
    if "example_id" not in row:
        return None
    value = row["example_id"]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return files.text_column(row, "example_id", where)


def _prompt_completion(row: JsonObject, where: str) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = read_messages(prompt, f"{where}: prompt")
        num_prompt = len(turns)
        turns += read_messages(completion, f"{where}: completion")
        return _chat(row, turns, where, num_prompt=num_prompt)
    if row.get("tools"):
        raise DataError(
            f"{where}: column 'tools' has no effect on a prompt that is text; remove it, or give "
            "prompt and completion as messages"
        )
    prompt = files.text_column(row, "prompt", where)
    return _example(row, prompt, files.text_column(row, "completion", where), where)


def _alpaca(row: JsonObject, where: str) -> Row:
    task = files.text_column(row, "instruction", where)
    given = row.get("input")
    source = "" if given is None else files.as_string(given, f"{where}: input")
    middle = f"\n\nInput:\n{source}" if source.strip() else ""
    prompt = f"Task:\n{task}{middle}\n\nAnswer:\n"
    return _example(row, prompt, files.text_column(row, "output", where), where)


def _example(row: JsonObject, prompt: str, completion: str, where: str) -> Example:
    gold = None
    if row.get("gold_completion") is not None:
        gold = files.text_column(row, "gold_completion", where).strip()
    return Example(
        given_id(row, where) or files.content_id(prompt, completion),
        prompt,
        completion,
        label=completion.strip(),
        gold_label=gold,
    )


def _messages(row: JsonObject, where: str) -> Row:
    return _chat(row, read_messages(row["messages"], f"{where}: messages"), where)


def _sharegpt(row: JsonObject, where: str) -> Row:
    place = f"{where}: conversations"
    turns = read_sharegpt(row["conversations"], place)
    if row.get("system"):
        if turns[0].message["role"] == "system":
            raise DataError(f"{place}[0]: there is a column 'system' too; remove one")
        system: JsonObject = {"role": "system", "content": files.text_column(row, "system", where)}
        turns.insert(0, Turn(system, None, f"{where}: system"))
    return _chat(row, turns, where)


def _chat(row: JsonObject, turns: list[Turn], where: str, *, num_prompt: int = 0) -> Conversation:
    return conversation(
        turns,
        where,
        num_prompt=num_prompt,
        tools=read_tools(row.get("tools"), f"{where}: tools"),
        example_id=given_id(row, where),
    )


_FORMATS = (
    Format("prompt and completion", ("prompt", "completion"), ("tools",), _prompt_completion),
    Format("messages", ("messages",), ("tools",), _messages),
    Format("conversations", ("conversations",), ("system", "tools"), _sharegpt),
    Format("instruction and output", ("instruction", "output"), (), _alpaca),
)

READ_COLUMNS = frozenset(
    ["example_id", "gold_completion", "input", *CONDITIONS]
    + [name for known in _FORMATS for name in known.required]
)
"""All columns that any format reads."""
