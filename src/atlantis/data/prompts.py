"""Prompts to complete: text as it stands, or chats up to where the assistant speaks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from atlantis.data import files
from atlantis.data.chats import read_messages
from atlantis.data.columns import CONDITIONS, given_id
from atlantis.data.files import JsonObject
from atlantis.data.rendering import ChatTemplate
from atlantis.data.tool_calls import read_tools
from atlantis.errors import DataError
from atlantis.records import Conversation


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stands before a completion: a text, or the turns of a chat."""

    example_id: str
    content: str | Conversation


class RenderedPrompt(NamedTuple):
    """A prompt as the text that a model reads."""

    example_id: str
    text: str
    has_special_tokens: bool
    """Whether the text holds the special tokens already; if not, the tokenizer adds its own."""


def read_prompts(path: Path, *, as_chat: bool = False) -> list[Prompt]:
    """Rows of a JSONL file with a ``prompt``, text or messages, or with ``messages``.

    Messages that end with the assistant's turn are a prompt without that turn. Completions and
    other columns are not read.

    Args:
        path: The file.
        as_chat: Whether a text is what a user says.

    Raises:
        DataError: The file is missing or empty, a row has no prompt, or two have one id.
    """
    first: dict[str, str] = {}
    prompts: list[Prompt] = []
    for where, prompt in _located(path, as_chat=as_chat):
        if prompt.example_id in first:
            raise DataError(
                f"{where}: id {prompt.example_id!r} already stands at {first[prompt.example_id]}; "
                "remove one row or give it an example_id of its own"
            )
        first[prompt.example_id] = where
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"{path}: no rows; check the file")
    return prompts


def user_says(text: str, *, example_id: str) -> Prompt:
    """A chat of one turn."""
    message = {"role": "user", "content": text}
    return Prompt(example_id, Conversation(example_id, (message,), ()))


def completed_fields(prompt: Prompt, text: str) -> dict[str, Any]:
    """A prompt and a completion as columns, in the prompt's own layout: text, or messages."""
    if isinstance(prompt.content, str):
        return {"prompt": prompt.content, "completion": text}
    tools = {"tools": list(prompt.content.tools)} if prompt.content.tools else {}
    return {
        "prompt": list(prompt.content.messages),
        "completion": [{"role": "assistant", "content": text.strip()}],
        **tools,
    }


def render_prompt(prompt: Prompt, template: ChatTemplate) -> RenderedPrompt:
    """The prompt as text.

    Raises:
        DataError: The template refuses the chat.
    """
    if isinstance(prompt.content, str):
        return RenderedPrompt(prompt.example_id, prompt.content, has_special_tokens=False)
    opening = template.opening(prompt.content)
    return RenderedPrompt(prompt.example_id, opening.text, opening.has_special_tokens)


def _located(path: Path, *, as_chat: bool) -> Iterator[tuple[str, Prompt]]:
    for where, row in files.read_json_lines(path):
        if "prompt" in row and "messages" in row:
            raise DataError(f"{where}: has a prompt and messages; keep one")
        messages = row.get("messages", row.get("prompt"))
        example_id = given_id(row, where) or files.content_id(files.canonical_json(row, where))
        if isinstance(messages, list):
            yield where, Prompt(example_id, _chat(row, messages, where, example_id))
            continue
        text = files.text_column(row, "prompt", where)
        _check_conditions(row, CONDITIONS, where)
        yield where, user_says(text, example_id=example_id) if as_chat else Prompt(example_id, text)


def _chat(row: JsonObject, messages: object, where: str, example_id: str) -> Conversation:
    _check_conditions(row, [name for name in CONDITIONS if name != "tools"], where)
    turns = read_messages(messages, where)
    if turns[-1].is_assistant:
        turns = turns[:-1]
    if not turns:
        raise DataError(f"{where}: the assistant speaks first; give what it answers")
    tools = read_tools(row.get("tools"), f"{where}: tools")
    return Conversation(example_id, tuple(turn.message for turn in turns), (), tools)


def _check_conditions(row: JsonObject, names: tuple[str, ...] | list[str], where: str) -> None:
    for name in names:
        if row.get(name):
            raise DataError(
                f"{where}: column {name!r} would have no effect; put it into the prompt or the "
                "messages, or remove it"
            )
