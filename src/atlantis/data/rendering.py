"""Rows to text: what a model reads, and which characters of it are the completion.

A prompt with its completion is text already. A chat becomes text by a chat template; which part of
that text the assistant says follows from the template's own ``{% generation %}`` markers, or else
from what each turn adds to the text before it.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from atlantis.errors import ConfigError, DataError
from atlantis.records import Conversation, Row

PLAIN = "plain"
"""Name of the template for models that have none."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError)
"""What a template raises that cannot render a chat."""
_SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


class Span(NamedTuple):
    """Characters ``[start, stop)`` of a rendered text."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """One row as text."""

    example_id: str
    text: str
    completions: tuple[Span, ...]
    """What is learnt, in order; one span for every turn that is learnt."""
    has_special_tokens: bool
    """Whether the text holds the special tokens already, those that end a turn among them. If not,
    the tokenizer adds its own, and an end-of-turn token stands after every completion."""


class Opening(NamedTuple):
    """A chat as text up to where the assistant speaks next."""

    text: str
    has_special_tokens: bool
    """Whether the text holds the special tokens already."""


class ChatTemplate(Protocol):
    """Turns a chat into text."""

    @property
    def source(self) -> str:
        """What decides the text: the template itself."""
        ...

    def render(self, chat: Conversation) -> RenderedExample:
        """The chat as text.

        Raises:
            DataError: The template cannot render this chat.
        """
        ...

    def opening(self, chat: Conversation) -> Opening:
        """The whole chat and the beginning of the assistant's next turn.

        Raises:
            DataError: The template cannot render this chat.
        """
        ...


class PlainTemplate:
    """Speaker, colon, text, blank line: for base models, which know no chat template."""

    source = PLAIN

    def render(self, chat: Conversation) -> RenderedExample:
        """The chat as text; never fails."""
        text = f"Tools: {_json(chat.tools)}\n\n" if chat.tools else ""
        spans: list[Span] = []
        for position, message in enumerate(chat.messages):
            speaker = _SPEAKERS.get(message["role"])
            said = _said(message)
            text += f"{speaker}:" if speaker else ""
            start = len(text)
            text += f" {said}" if speaker else said
            if position in chat.learnt:
                spans.append(Span(start, len(text)))
            text += "\n\n"
        end = spans[-1].stop  # what follows the last learnt turn conditions nothing
        return RenderedExample(chat.example_id, text[:end], tuple(spans), has_special_tokens=False)

    def opening(self, chat: Conversation) -> Opening:
        """The chat, and the assistant's name before its next turn; never fails."""
        turn = {"role": "assistant", "content": "."}
        longer = replace(chat, messages=(*chat.messages, turn), learnt=(len(chat.messages),))
        rendered = self.render(longer)
        return Opening(rendered.text[: rendered.completions[-1].start], has_special_tokens=False)


class JinjaTemplate:
    """A chat template as tokenizers carry it."""

    def __init__(self, source: str, special_tokens: dict[str, Any]) -> None:
        self.source = source
        self._special_tokens = special_tokens
        self._has_markers = bool(_GENERATION.search(source))

    def render(self, chat: Conversation) -> RenderedExample:
        """The chat as text.

        Raises:
            DataError: The template refuses the chat, or gives a turn another text once the chat
                goes on, so that what the assistant says cannot be told apart.
        """
        try:
            text, spans = self._marked(chat) if self._has_markers else self._by_prefixes(chat)
        except _REFUSALS as error:
            raise _refusal(chat, error) from None
        end = spans[-1].stop
        return RenderedExample(chat.example_id, text[:end], tuple(spans), has_special_tokens=True)

    def opening(self, chat: Conversation) -> Opening:
        """The chat, and the template's own beginning of an answer.

        Raises:
            DataError: The template refuses the chat.
        """
        try:
            text = self._render(chat, len(chat.messages), add_generation_prompt=True)[0][0]
        except _REFUSALS as error:
            raise _refusal(chat, error) from None
        return Opening(text, has_special_tokens=True)

    def _marked(self, chat: Conversation) -> tuple[str, list[Span]]:
        texts, spans = self._render(chat, len(chat.messages), return_assistant_tokens_mask=True)
        turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if len(spans[0]) != len(turns):
            raise ValueError(f"it marks {len(spans[0])} of {len(turns)} assistant turns")
        by_turn = dict(zip(turns, spans[0], strict=True))
        return texts[0], [Span(*by_turn[position]) for position in chat.learnt]

    def _by_prefixes(self, chat: Conversation) -> tuple[str, list[Span]]:
        whole = self._render(chat, len(chat.messages))[0][0]
        spans: list[Span] = []
        for position in chat.learnt:
            before = self._render(chat, position, add_generation_prompt=True)[0][0]
            last = position + 1 == len(chat.messages)
            upto = whole if last else self._render(chat, position + 1)[0][0]
            if not (whole.startswith(upto) and upto.startswith(before)):
                raise ValueError(
                    f"turn {position + 1} reads differently at generation time or once the chat "
                    "goes on, and the template has no {% generation %} markers"
                )
            spans.append(Span(len(before), len(upto)))
        return whole, spans

    def _render(self, chat: Conversation, num_messages: int, **options: Any) -> Any:
        return render_jinja_template(
            [[dict(message) for message in chat.messages[:num_messages]]],
            tools=[dict(tool) for tool in chat.tools] or None,
            chat_template=self.source,
            **options,
            **self._special_tokens,
        )


def chat_template(tokenizer: PreTrainedTokenizerBase, choice: str | None = None) -> ChatTemplate:
    """The template that a tokenizer's chats are rendered with.

    Args:
        tokenizer: Its own template is used unless ``choice`` names another; one without a template
            gets the plain one.
        choice: ``plain``, or a file with a Jinja template.

    Raises:
        ConfigError: ``choice`` is neither.
    """
    if choice == PLAIN:
        return PlainTemplate()
    if choice is not None:
        return JinjaTemplate(_read_template(Path(choice)), tokenizer.special_tokens_map)
    if tokenizer.chat_template is None:
        return PlainTemplate()
    source: Any = tokenizer.get_chat_template()
    return JinjaTemplate(source, tokenizer.special_tokens_map)


def render(row: Row, template: ChatTemplate) -> RenderedExample:
    """One row as text."""
    if isinstance(row, Conversation):
        return template.render(row)
    text = row.prompt + row.completion
    span = Span(len(row.prompt), len(text))
    return RenderedExample(row.example_id, text, (span,), has_special_tokens=False)


class RowDigest:
    """Running SHA-256 sums over rows: of what a model reads, and of the rows themselves."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._rendered, self._source = hashlib.sha256(), hashlib.sha256()
        self.num_rows = 0

    def add(self, row: Row) -> None:
        """Take one row in."""
        rendered = render(row, self._template)
        _update(self._rendered, _parts(rendered))
        source = (
            [_json(row.messages), _json(row.learnt), _json(row.tools)]
            if isinstance(row, Conversation)
            else [row.prompt, row.completion]
        )
        _update(self._source, [row.example_id, *source])
        self.num_rows += 1

    @property
    def rendered_text(self) -> str:
        """Over ids, texts and completions: what two stores must share to be compared."""
        return self._rendered.hexdigest()

    @property
    def source(self) -> str:
        """Over the rows before any template: what stores with templates of their own share."""
        return self._source.hexdigest()


def digest_rows(rows: Iterable[Row], template: ChatTemplate | None = None) -> RowDigest:
    """The sums over all rows; without a template chats are rendered plainly."""
    digest = RowDigest(template or PlainTemplate())
    for row in rows:
        digest.add(row)
    return digest


def _parts(row: RenderedExample) -> list[str]:
    """The id, and the text cut where completions begin and end."""
    parts, position = [row.example_id], 0
    for start, stop in row.completions:
        parts += [row.text[position:start], row.text[start:stop]]
        position = stop
    return parts


def _update(digest: Any, parts: Iterable[str]) -> None:
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)


def _refusal(chat: Conversation, error: Exception) -> DataError:
    return DataError(
        f"example {chat.example_id!r}: the chat template refuses it ({error}); correct the row or "
        "choose another template"
    )


def _said(message: Any) -> str:
    parts = [message.get("content") or ""]
    if message.get("tool_calls"):
        parts.append(_json(message["tool_calls"]))
    return "\n".join(part for part in parts if part)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _read_template(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(
            f"chat_template {path}: no such file; give a Jinja template, or {PLAIN!r} for the "
            "built-in plain one"
        )
    return path.read_text(encoding="utf-8")
