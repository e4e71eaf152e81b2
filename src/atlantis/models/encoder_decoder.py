"""The two halves of an encoder-decoder, so that only scored positions reach the vocabulary."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from atlantis.data.rendering import ChatTemplate
from atlantis.data.tokenization import TokenizedExample, Truncation, tokenize, tokenize_pairs
from atlantis.errors import ModelError
from atlantis.models.settings import DEFAULT, LoadingConfig
from atlantis.models.sources import read_config
from atlantis.records import Row


def encoder_hidden(model: PreTrainedModel, encoder_ids: Tensor, encoder_mask: Tensor) -> Tensor:
    """What the encoder makes of the prompts, ``[batch, encoder token, hidden]``."""
    encoder: Any = model.get_encoder()
    return encoder(input_ids=encoder_ids, attention_mask=encoder_mask).last_hidden_state


def decoder_hidden(
    model: PreTrainedModel,
    encoder_ids: Tensor,
    encoder_mask: Tensor,
    decoder_ids: Tensor,
    decoder_mask: Tensor,
) -> Tensor:
    """Hidden states that the head takes, ``[batch, decoder token, hidden]``.

    Args:
        model: T5, BART or a descendant.
        encoder_ids: Prompts, ``[batch, encoder token]``.
        encoder_mask: 1 where a prompt has a token.
        decoder_ids: The decoder's start token and the completion, ``[batch, decoder token]``.
        decoder_mask: 1 where a completion has a token.
    """
    decoder: Any = model.get_decoder()
    output = decoder(
        input_ids=decoder_ids,
        attention_mask=decoder_mask,
        encoder_hidden_states=encoder_hidden(model, encoder_ids, encoder_mask),
        encoder_attention_mask=encoder_mask,
        use_cache=False,
    )
    return output.last_hidden_state


def decoder_start_token(name: str, config: LoadingConfig = DEFAULT) -> int | None:
    """The decoder's first token; None for a model that is not an encoder-decoder.

    Raises:
        ModelError: There is no such model, or it does not say how a completion starts.
    """
    found: Any = read_config(name, config)
    if not found.is_encoder_decoder:
        return None
    start = getattr(found, "decoder_start_token_id", None)
    if start is None:
        raise ModelError(f"{name}: its config.json names no decoder_start_token_id")
    return int(start)


def loaded_start_token(model: PreTrainedModel) -> int:
    """The decoder's first token, of a model that is in memory.

    Raises:
        ModelError: It does not say how a completion starts.
    """
    start: Any = model.config.decoder_start_token_id
    if start is None:
        raise ModelError(f"{model.name_or_path}: its config.json names no decoder_start_token_id")
    return int(start)


def tokenize_for(
    decoder_start: int | None,
    examples: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    truncation: Truncation = "drop",
    template: ChatTemplate | None = None,
) -> list[TokenizedExample]:
    """Rows as a model reads them: one sequence, or two for an encoder-decoder.

    Args:
        decoder_start: The decoder's first token; None for a causal model.
        examples: As in `tokenize`, and so is the rest.
        tokenizer: The model's tokenizer.
        max_length: Most tokens of a row.
        truncation: What happens to a longer one.
        template: How chats become text.

    Raises:
        ModelError: The tokenizer has no end-of-sequence token.
        DataError: The rows are not such that the model can read them.
    """
    if decoder_start is None:
        return tokenize(
            examples, tokenizer, max_length=max_length, truncation=truncation, template=template
        )
    return tokenize_pairs(
        examples,
        tokenizer,
        start_token=decoder_start,
        max_length=max_length,
        truncation=truncation,
        template=template,
    )
