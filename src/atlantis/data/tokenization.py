"""The only owner of text -> token ids + completion mask.

Scoring, training and evaluation all call `tokenize`, so that they agree on what the completion is:
the same rendered text, the same boundary, the same limit, the same end-of-turn token. The boundary
is TRL's: the completion starts where the ids of the prompt and of prompt + completion diverge.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from atlantis.errors import ModelError
from atlantis.records import Example


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Token ids of ``prompt + completion + end-of-turn``, and where the completion starts."""

    example_id: str
    status: str
    """``ok``, or why the row can be neither scored nor trained on: ``too_long``, ``empty``."""
    input_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_bytes: int
    """UTF-8 bytes of the completion's text, without the end-of-turn token."""

    @property
    def num_completion_tokens(self) -> int:
        """Completion tokens without the end-of-turn token."""
        return len(self.input_ids) - self.num_prompt_tokens - 1


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[TokenizedExample]:
    """Turn examples into token ids, with one end-of-turn token after the completion.

    Args:
        examples: Rows with a non-empty prompt and completion, rendered as plain text.
        tokenizer: The model's tokenizer. Its special tokens (BOS) are added as in TRL.
        max_length: Most tokens of a row. A longer one is never cut silently: it gets the status
            ``too_long``, the same for scoring and for training.

    Raises:
        ModelError: The tokenizer has no end-of-sequence token.
    """
    if not examples:
        return []
    end_of_turn: Any = tokenizer.eos_token
    if end_of_turn is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no eos_token; set one in its "
            "tokenizer_config.json, or nothing can learn where a completion ends"
        )
    prompt_ids = _input_ids(tokenizer, [example.prompt for example in examples])
    # A row from a chat template may end its turn already; a second end would be learnt too.
    texts = [row.prompt + row.completion.removesuffix(end_of_turn) for row in examples]
    all_ids = _input_ids(tokenizer, [text + end_of_turn for text in texts])
    return [
        _tokenized(
            example.example_id,
            prompt,
            whole,
            num_bytes=_num_bytes(text) - _num_bytes(example.prompt),
            max_length=max_length,
        )
        for example, prompt, whole, text in zip(examples, prompt_ids, all_ids, texts, strict=True)
    ]


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return position
    return min(len(first), len(second))


def rendered_digest(examples: Sequence[Example]) -> str:
    """SHA-256 over ids and rendered text: what two stores must share to be compared."""
    digest = hashlib.sha256()
    for example in examples:
        for part in (example.example_id, example.prompt, example.completion):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _input_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    unique = list(dict.fromkeys(texts))  # one prompt stands before many completions
    encoded: Any = tokenizer(unique)
    ids = dict(zip(unique, encoded["input_ids"], strict=True))
    return [ids[text] for text in texts]


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _tokenized(
    example_id: str,
    prompt_ids: list[int],
    all_ids: list[int],
    *,
    num_bytes: int,
    max_length: int,
) -> TokenizedExample:
    boundary = common_prefix_length(prompt_ids, all_ids)
    status = "ok"
    if len(all_ids) > max_length:
        status = "too_long"
    elif len(all_ids) - boundary - 1 < 1 or boundary == 0:
        # Without a completion token there is nothing to score; without a token before it the first
        # completion token has no prediction.
        status = "empty"
    return TokenizedExample(
        example_id=example_id,
        status=status,
        input_ids=tuple(all_ids),
        num_prompt_tokens=boundary,
        num_bytes=num_bytes,
    )
