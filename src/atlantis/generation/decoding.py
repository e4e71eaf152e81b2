"""Prompts to completions with transformers, greedily."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from atlantis.models.encoder_decoder import loaded_start_token

PLAIN: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
"""Checkpoints ship penalties and sampling of their own, under which greedy is not argmax."""


@torch.inference_mode()
def generate_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[str]:
    """The text that greedy decoding gives after each prompt, special tokens left out."""
    encoded: Any = tokenizer(list(prompts))["input_ids"] if prompts else []
    order = sorted(range(len(prompts)), key=lambda row: -len(encoded[row]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        generated = _generate(model, tokenizer, [encoded[row] for row in rows], max_new_tokens)
        for row, ids in zip(rows, generated, strict=True):
            texts[row] = str(tokenizer.decode(ids, skip_special_tokens=True))
    return texts


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[list[int]]:
    num_given, inputs = prompt_inputs(model, tokenizer, prompts)
    end_of_turn: Any = tokenizer.eos_token_id
    generate: Any = model.generate
    output: Any = generate(
        **inputs,
        **PLAIN,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_of_turn,
        pad_token_id=end_of_turn,
    )
    return output[:, num_given:].tolist()


def prompt_inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]
) -> tuple[int, dict[str, Tensor]]:
    """What ``generate`` takes for prompts, and how many of the ids that it returns are given."""
    longest = max(len(prompt) for prompt in prompts)
    # Padded on the left, so that every row's last prompt token is where generation starts. An
    # encoder's are padded on the right: BART counts the places of its tokens from the left.
    is_encoded = bool(model.config.is_encoder_decoder)
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # every vocabulary has a 0
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        first = 0 if is_encoded else longest - len(prompt)
        input_ids[row, first : first + len(prompt)] = torch.tensor(prompt)
        attention_mask[row, first : first + len(prompt)] = 1
    begun: dict[str, Tensor] = {}
    if is_encoded:
        longest, begun = _decoder_inputs(model, tokenizer, num_rows=len(prompts))
    given = {"input_ids": input_ids, "attention_mask": attention_mask}
    return longest, {name: ids.to(model.device) for name, ids in given.items()} | begun


def _decoder_inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, num_rows: int
) -> tuple[int, dict[str, Tensor]]:
    """What the decoder begins with: its start token, and what the tokenizer puts before a text."""
    around: Any = tokenizer(text_target="")["input_ids"]
    end_of_turn: Any = tokenizer.eos_token_id
    before = around[: around.index(end_of_turn)] if end_of_turn in around else around
    first = torch.tensor([[loaded_start_token(model), *before]] * num_rows)
    return first.shape[1], {"decoder_input_ids": first.to(model.device)}
