"""The only owner of text -> token ids + completion mask.

Scoring, training and evaluation all call `tokenize`, so that they agree on what the completion is:
the same rendered text, the same boundary, the same limit, the same end-of-turn token. The boundary
is TRL's: the completion starts where the ids of the text before it and of the whole text diverge.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from atlantis.data.rendering import ChatTemplate, RenderedExample, chat_template, render
from atlantis.errors import DataError, ModelError
from atlantis.records import Conversation, Row

Truncation = Literal["drop", "keep_prefix"]


class Turn(NamedTuple):
    """Positions of one completion in a row's ids."""

    start: int
    """The first token of the completion."""
    stop: int
    """One past its last token."""
    end: int
    """One past its end-of-turn token; equal to ``stop`` where there is none."""


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Token ids of a row, and where its completions stand."""

    example_id: str
    status: str
    """``ok``, or why the row can be neither scored nor trained on: ``too_long``, ``empty``."""
    input_ids: tuple[int, ...]
    """What is predicted token by token: prompt, completion and end-of-turn; for an encoder-decoder
    the decoder's start token, the completion and the end-of-turn."""
    turns: tuple[Turn, ...]
    """One or more completions, in order."""
    num_bytes: int
    """UTF-8 bytes of the completions' text, without end-of-turn tokens."""
    is_truncated: bool = False
    """Whether tokens over the limit were cut off at the end."""
    encoder_ids: tuple[int, ...] = ()
    """The prompt, for an encoder-decoder."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the first completion."""
        return self.turns[0].start

    @property
    def num_completion_tokens(self) -> int:
        """Completion tokens without the end-of-turn tokens."""
        return sum(turn.stop - turn.start for turn in self.turns)

    @property
    def num_tokens(self) -> int:
        """All tokens that a model reads."""
        return len(self.encoder_ids) + len(self.input_ids)

    def scored_positions(self, *, end_of_turn: bool) -> tuple[int, ...]:
        """Positions whose token is scored given the tokens before it, in order."""
        return tuple(
            position
            for turn in self.turns
            for position in range(turn.start, turn.end if end_of_turn else turn.stop)
        )

    @property
    def labels(self) -> list[int]:
        """Ids with -100 wherever nothing is learnt; the end of a turn is learnt."""
        labels = [-100] * len(self.input_ids)
        for turn in self.turns:
            labels[turn.start : turn.end] = self.input_ids[turn.start : turn.end]
        return labels


def tokenize(
    examples: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    truncation: Truncation = "drop",
    template: ChatTemplate | None = None,
) -> list[TokenizedExample]:
    """Turn rows into token ids, with an end-of-turn token after each completion.

    Args:
        examples: Rows with a non-empty prompt and completion, or chats.
        tokenizer: The model's tokenizer. Its special tokens (BOS) are added as in TRL, unless a
            chat template has written them.
        max_length: Most tokens of a row. A longer one is never cut silently.
        truncation: ``drop`` gives a longer row the status ``too_long``; ``keep_prefix`` cuts its
            end off and marks it, and only one whose completion is cut off whole is ``too_long``.
            The same for scoring and for training.
        template: How chats become text; by default the tokenizer's own template.

    Raises:
        ModelError: The tokenizer has no end-of-sequence token.
        DataError: The template refuses a chat.
    """
    if not examples:
        return []
    texts = [text for _, text in _rendered(examples, tokenizer, template)]
    ids = _Ids(tokenizer, texts)
    rows = (_tokenized(text, ids) for text in texts)
    return [_limited(row, tokenizer, max_length, truncation) for row in rows]


def tokenize_pairs(
    examples: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    start_token: int,
    max_length: int,
    truncation: Truncation = "drop",
    template: ChatTemplate | None = None,
) -> list[TokenizedExample]:
    """Turn rows into the two sequences of an encoder-decoder.

    The encoder reads the prompt with the special tokens that the tokenizer adds; the decoder
    predicts the completion and the end-of-turn token after ``start_token``. ``max_length`` limits
    the sum of both. Everything else is as in `tokenize`.

    Raises:
        ModelError: The tokenizer has no end-of-sequence token.
        DataError: A chat has more than one turn that is learnt, or the template refuses it.
    """
    if not examples:
        return []
    rendered = _rendered(examples, tokenizer, template)
    pairs = [_pair(row, text) for row, text in rendered]
    encoded: Any = tokenizer([prompt for prompt, _ in pairs])
    targets: Any = tokenizer(text_target=[said for _, said in pairs])
    end: Any = tokenizer.eos_token_id
    special = set(tokenizer.all_special_ids)
    ids = zip(rendered, encoded["input_ids"], targets["input_ids"], strict=True)
    rows = (
        _encoder_decoder_row(text, prompt, target, special, start=start_token, end=end)
        for (_, text), prompt, target in ids
    )
    return [_limited(row, tokenizer, max_length, truncation) for row in rows]


def without_prompt(row: TokenizedExample, head: int) -> TokenizedExample:
    """The same completion ids without what conditions them, behind one neutral token.

    Several turns follow one another, each with its end-of-turn token.

    Args:
        row: A row of a decoder-only model, cut off at the limit or not.
        head: The token that the first completion token is predicted from: the beginning of a
            sequence, or the end of the one before.
    """
    ids, turns = [head], list[Turn]()
    for turn in row.turns:
        shift = len(ids) - turn.start
        ids += row.input_ids[turn.start : turn.end]
        turns.append(Turn(turn.start + shift, turn.stop + shift, turn.end + shift))
    return replace(row, input_ids=tuple(ids), turns=tuple(turns))


def _rendered(
    examples: Sequence[Row], tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None
) -> list[tuple[RenderedExample, "_Text"]]:
    template = template or chat_template(tokenizer)
    end, written_end = _end_of_turn(tokenizer), _written_end(tokenizer)
    rows = [render(row, template) for row in examples]
    return [(row, _texts(row, end, written_end)) for row in rows]


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return position
    return min(len(first), len(second))


class _TurnTexts(NamedTuple):
    """Everything up to three points of a row's text."""

    before: str
    """Up to the completion."""
    said: str
    """Up to the end of the completion."""
    ended: str
    """Up to the end of the end-of-turn token."""


class _Text(NamedTuple):
    example_id: str
    turns: tuple[_TurnTexts, ...]
    has_special_tokens: bool
    num_bytes: int


class _Ids:
    """Ids of many texts at once, each tokenized one time: a prompt may stand before many rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[_Text]) -> None:
        self._ids: dict[tuple[bool, str], list[int]] = {}
        for written in (False, True):
            chosen = [text for text in texts if text.has_special_tokens == written]
            unique = list(dict.fromkeys(part for text in chosen for part in _parts(text)))
            encoded: Any = tokenizer(unique, add_special_tokens=not written) if unique else {}
            for part, ids in zip(unique, encoded.get("input_ids", []), strict=True):
                self._ids[written, part] = ids

    def turn(self, text: _Text, turn: _TurnTexts) -> Turn:
        whole = self.whole(text)
        end = self._boundary(text, turn.ended)
        if text.has_special_tokens:
            stop = end if turn.said == turn.ended else self._boundary(text, turn.said)
        else:  # not by the text: a tokenizer may itself put this token at the end of every text
            stop = end - 1
        start = common_prefix_length(self._ids[text.has_special_tokens, turn.before], whole)
        return Turn(start, max(start, stop), max(start, end))

    def whole(self, text: _Text) -> list[int]:
        return self._ids[text.has_special_tokens, text.turns[-1].ended]

    def _boundary(self, text: _Text, part: str) -> int:
        whole = self.whole(text)
        return common_prefix_length(self._ids[text.has_special_tokens, part], whole)


def _parts(text: _Text) -> list[str]:
    """The texts whose ids tell where the turns stand."""
    parts: list[str] = []
    for turn in text.turns:
        parts += [turn.before, turn.ended]
        if text.has_special_tokens:
            parts.append(turn.said)
    return parts


def _texts(row: RenderedExample, end_of_turn: str, written_end: re.Pattern[str]) -> _Text:
    turns: list[_TurnTexts] = []
    built, position, num_bytes = "", 0, 0
    for start, stop in row.completions:
        before = built + row.text[position:start]
        said, end = _split_end(row, row.text[start:stop], end_of_turn, written_end)
        built, position = before + said + end, stop
        if row.has_special_tokens:  # what follows the end of the turn, such as a line break
            built = before + row.text[start:stop]
        num_bytes += len(said.encode("utf-8", "surrogatepass"))
        turns.append(_TurnTexts(before, before + said, before + said + end))
    return _Text(row.example_id, tuple(turns), row.has_special_tokens, num_bytes)


def _split_end(
    row: RenderedExample, text: str, end_of_turn: str, written_end: re.Pattern[str]
) -> tuple[str, str]:
    """A completion, and the end-of-turn after it."""
    if not row.has_special_tokens:
        # A row from elsewhere may end its turn already; a second end would be learnt too.
        return text.removesuffix(end_of_turn), end_of_turn
    found = written_end.search(text)
    return (text[: found.start()], found[1]) if found else (text, "")


def _written_end(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Special tokens at the end of a turn, as a chat template writes them."""
    tokens: Any = tokenizer.all_special_tokens
    special = "|".join(re.escape(str(token)) for token in sorted(tokens, key=len, reverse=True))
    return re.compile(rf"((?:(?:{special})\s*)*(?:{special}))\s*\Z")


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> int | None:
    """The token that a template puts behind what the assistant says, and so a tuned model does.

    None where the template refuses a chat of one question and one answer, or the tokenizer has no
    end-of-sequence token.
    """
    said = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    try:
        (row,) = tokenize(
            [Conversation("probe", said, (1,))], tokenizer, max_length=2**30, template=template
        )
    except (DataError, ModelError):
        return None
    turn = row.turns[-1]
    return row.input_ids[turn.stop] if turn.end > turn.stop else None


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    end: Any = tokenizer.eos_token
    if end is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no eos_token; set one in its "
            "tokenizer_config.json, or nothing can learn where a completion ends"
        )
    return end


def _tokenized(text: _Text, ids: _Ids) -> TokenizedExample:
    turns = tuple(ids.turn(text, turn) for turn in text.turns)
    return TokenizedExample(
        example_id=text.example_id,
        status=_status(turns),
        input_ids=tuple(ids.whole(text)),
        turns=turns,
        num_bytes=text.num_bytes,
    )


def _status(turns: Sequence[Turn]) -> str:
    # Without a completion token there is nothing to score; without a token before it the first
    # completion token has no prediction.
    scored = sum(turn.stop - turn.start for turn in turns)
    return "empty" if scored < 1 or turns[0].start == 0 else "ok"


def _limited(
    row: TokenizedExample,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncation: Truncation,
) -> TokenizedExample:
    if row.num_tokens <= max_length:
        return row
    room = max_length - len(row.encoder_ids)
    turns = tuple(
        Turn(turn.start, min(turn.stop, room), min(turn.end, room))
        for turn in row.turns
        if turn.start < room
    )
    if truncation == "drop" or not turns:
        return replace(row, status="too_long")
    kept = row.input_ids[:room]
    said = [str(tokenizer.decode(list(kept[turn.start : turn.stop]))) for turn in turns]
    return replace(
        row,
        input_ids=kept,
        turns=turns,
        num_bytes=sum(len(text.encode()) for text in said),
        is_truncated=True,
    )


def _pair(row: RenderedExample, text: _Text) -> tuple[str, str]:
    """Prompt and completion as text; what an encoder-decoder can read."""
    if len(row.completions) > 1:
        raise DataError(
            f"example {row.example_id!r}: {len(row.completions)} turns of the assistant are "
            "learnt; an encoder-decoder takes one prompt and one completion per row"
        )
    (turn,) = text.turns
    return turn.before, turn.said.removeprefix(turn.before)


def _encoder_decoder_row(
    text: _Text, prompt: list[int], target: list[int], special: set[int], *, start: int, end: int
) -> TokenizedExample:
    target = target if target[-1:] == [end] else [*target, end]
    lead = next(i for i, token in enumerate(target) if token not in special or i + 1 == len(target))
    turn = Turn(1 + lead, len(target), 1 + len(target))
    return TokenizedExample(
        example_id=text.example_id,
        status=_status([turn]) if prompt else "empty",
        input_ids=(start, *target),
        turns=(turn,),
        num_bytes=text.num_bytes,
        encoder_ids=tuple(prompt),
    )
