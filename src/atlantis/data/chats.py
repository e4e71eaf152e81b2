"""Chats: lists of messages with roles, and ShareGPT's turns, to `Conversation`.

Every turn of the assistant is learnt, unless its ``loss_weight`` (or ``weight``, as OpenAI's
fine-tuning files call it) is 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlantis.data import files
from atlantis.data.files import JsonObject
from atlantis.data.tool_calls import read_calls
from atlantis.errors import DataError
from atlantis.records import Conversation

_ROLES = ("system", "developer", "user", "assistant", "tool")
_CALL = "function_call"
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
    _CALL: "assistant",
}
_WEIGHTS = ("loss_weight", "weight")


class Turn(NamedTuple):
    """One message of a chat."""

    message: JsonObject
    loss_weight: int | None
    """0 or 1, where the file says so."""
    where: str

    @property
    def is_assistant(self) -> bool:
        """Whether the assistant speaks."""
        return self.message["role"] == "assistant"


def read_messages(value: object, where: str) -> list[Turn]:
    """The turns of a list of messages with ``role`` and ``content``.

    Raises:
        DataError: A message is malformed, or there is none.
    """
    return [_message(turn, place) for turn, place in _objects(value, where)]


def read_sharegpt(value: object, where: str) -> list[Turn]:
    """The turns of ShareGPT's ``conversations``, with ``from`` and ``value``.

    A ``function_call`` is a JSON object ``{"name", "arguments"}``, or a list of them: calls of the
    assistant. What a tool answered is ``observation``.

    Raises:
        DataError: A turn is malformed, or there is none.
    """
    return [_sharegpt_turn(turn, place) for turn, place in _objects(value, where)]


def _objects(value: object, where: str) -> list[tuple[JsonObject, str]]:
    turns = files.as_list(value, where)
    if not turns:
        raise DataError(f"{where}: is empty; fill it in or remove the row")
    places = [f"{where}[{number}]" for number in range(len(turns))]
    return [
        (files.as_object(turn, place), place) for turn, place in zip(turns, places, strict=True)
    ]


def _sharegpt_turn(turn: JsonObject, where: str) -> Turn:
    clash = {"role", "content", "tool_calls"} & turn.keys()
    if clash:
        raise DataError(
            f"{where}: has {min(clash)!r} in a list of turns with `from` and `value`; put turns "
            "with `role` and `content` into a column `messages`"
        )
    speaker = files.column(turn, "from", where)
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(
            f"{where}: from {files.shorten(speaker)} is unknown; use {', '.join(_SPEAKERS)}"
        )
    value = files.column(turn, "value", where)
    message = {name: part for name, part in turn.items() if name not in ("from", "value")}
    if speaker != _CALL:
        return _message({"role": role, "content": value, **message}, where)
    calls = files.parse_json(files.as_text(value, f"{where}.value"), f"{where}.value")
    calls = calls if isinstance(calls, list) else [calls]
    return _message({"role": role, "tool_calls": calls, **message}, where)


def _message(given: JsonObject, where: str) -> Turn:
    """The message with its content as one string; keys that are null count as absent."""
    message = {name: part for name, part in given.items() if part is not None}
    loss_weight = _loss_weight(message, where)
    role = files.column(message, "role", where)
    if role not in _ROLES:
        raise DataError(f"{where}: role {files.shorten(role)} is unknown; use {', '.join(_ROLES)}")
    if "tool_calls" in message:
        calls = read_calls(message.pop("tool_calls"), f"{where}.tool_calls")
        if calls and role != "assistant":
            raise DataError(f"{where}: only the assistant has tool_calls; remove those of {role}")
        message |= {"tool_calls": calls} if calls else {}
    if "content" in message or "tool_calls" not in message:
        message["content"] = _content(files.column(message, "content", where), f"{where}.content")
    if role in ("user", "assistant") and "tool_calls" not in message:
        files.as_text(message["content"], f"{where}.content")
    return Turn(message, loss_weight, where)


def _loss_weight(message: JsonObject, where: str) -> int | None:
    """Takes the weight out of a message: templates must not see it."""
    given = {name: message.pop(name) for name in _WEIGHTS if name in message}
    if len(given) > 1:
        raise DataError(f"{where}: loss_weight and weight mean the same; remove one")
    for name, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
            raise DataError(
                f"{where}: {name} {files.shorten(weight)}: a turn is learnt (1) or not (0); what "
                "lies between, a column `weight` or `token_weights` of the trainer can say"
            )
        return int(weight)
    return None


def _content(value: object, where: str) -> str:
    """The text of a message, given as a string or as a list of text parts, which are joined."""
    if not isinstance(value, list):
        return files.as_string(value, where)
    parts = enumerate(files.as_list(value, where))
    return "".join(_part(part, f"{where}[{number}]") for number, part in parts)


def _part(value: object, where: str) -> str:
    part = {name: x for name, x in files.as_object(value, where).items() if x is not None}
    kind = files.column(part, "type", where)
    texts = [part[name] for name in ("text", "value") if name in part]
    if kind != "text" or len(texts) != 1:
        raise DataError(
            f"{where}: expected a text part, {{'type': 'text', 'text': ...}}, found "
            f"{files.shorten(part)}; only text can be scored"
        )
    return files.as_string(texts[0], where)


def conversation(
    turns: Sequence[Turn],
    where: str,
    *,
    num_prompt: int = 0,
    tools: tuple[Mapping[str, Any], ...] = (),
    example_id: str | None = None,
) -> Conversation:
    """The turns as a row; without an id of its own, the id follows from the content.

    Args:
        turns: All turns, in order.
        where: Place of the row.
        num_prompt: So many turns at the beginning are never learnt.
        tools: What the assistant may call.
        example_id: The row's own id.

    Raises:
        DataError: No turn is learnt, or one asks for it that cannot be.
    """
    can_be_learnt = [turn.is_assistant and n >= num_prompt for n, turn in enumerate(turns)]
    for turn, can_be in zip(turns, can_be_learnt, strict=True):
        if turn.loss_weight == 1 and not can_be:
            raise DataError(
                f"{turn.where}: loss_weight 1, but only turns of the assistant are learnt, and "
                "none of a prompt; write 0 or remove it"
            )
    learnt = tuple(n for n, turn in enumerate(turns) if can_be_learnt[n] and turn.loss_weight != 0)
    if not learnt:
        raise DataError(f"{where}: no turn of the assistant to learn; add one or remove the row")
    messages = tuple(turn.message for turn in turns)
    content = files.canonical_json([messages, learnt, tools], where)
    return Conversation(example_id or files.content_id(content), messages, learnt, tools)
