"""What an OpenAI-compatible server answers, and whether it is what was asked for."""

import json
from collections.abc import Mapping
from typing import Any, cast

from atlantis.generation.requests import Completion

_UNFINISHED = (None, "abort", "error")
"""Reasons with which vLLM and SGLang end a request that they gave up."""


class WrongAnswerError(Exception):
    """The server answers something else than what was asked for."""


class UnfinishedError(Exception):
    """The server gave up in the middle of an answer."""


def read_completion(
    answer: bytes, *, is_chat: bool, served_model: str, max_new_tokens: int
) -> Completion:
    """The completion in an answer.

    Args:
        answer: The body.
        is_chat: Whether a chat was sent, or a text.
        served_model: The model that was asked.
        max_new_tokens: Most tokens that were asked for.

    Raises:
        WrongAnswerError: It comes from another model, is longer than asked, says nothing about its
            length, or is no text.
        UnfinishedError: The server broke the completion off.
    """
    parsed = _mapping(_parsed(answer), "the answer")
    _check_model(parsed.get("model"), served_model)
    choices: Any = parsed.get("choices")
    if not isinstance(choices, list) or len(cast(list[Any], choices)) != 1:
        raise WrongAnswerError("the answer does not have one choice")
    choice = _mapping(choices[0], "the choice")
    reason: Any = choice.get("finish_reason")
    if reason in _UNFINISHED:
        raise UnfinishedError(f"the server broke a completion off (finish_reason {reason!r})")
    if reason not in ("stop", "length"):
        raise WrongAnswerError(
            f"finish_reason is {reason!r}; only completions that end with 'stop' or 'length' count"
        )
    text: Any = _mapping(choice.get("message"), "the message")["content"] if is_chat else None
    text = text if is_chat else choice.get("text")
    if text is None and reason == "length":
        text = ""  # a model that was still thinking
    if not isinstance(text, str):
        raise WrongAnswerError(f"the completion is {text!r}, no text")
    return Completion(text, _num_tokens(parsed, max_new_tokens), reason)


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        raise WrongAnswerError(
            "the answer is not JSON; check the address (it ends in /v1)"
        ) from None


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise WrongAnswerError(f"{what} is not that of a completions endpoint")
    return cast(Mapping[str, Any], value)


def _check_model(name: Any, served_model: str) -> None:
    """Servers add a revision or a date to the name that they were asked for."""
    if not isinstance(name, str) or not name.startswith(served_model):
        raise WrongAnswerError(f"the answer comes from the model {name!r}, not {served_model!r}")


def _num_tokens(parsed: Mapping[str, Any], max_new_tokens: int) -> int:
    usage: Any = parsed.get("usage")
    count: Any = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    if not isinstance(count, int):
        raise WrongAnswerError("the answer has no usage.completion_tokens")
    if count > max_new_tokens:
        raise WrongAnswerError(
            f"the completion has {count} tokens where at most {max_new_tokens} were asked for"
        )
    return count
